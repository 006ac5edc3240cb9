//! Where requests go.

use std::fmt;
use std::str::FromStr;

use hyper::Uri;
use kvcache_workload::InvalidParameter;

/// The base of an OpenAI-compatible API, as `http://localhost:8000/v1`. Without a path it is `/v1`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Endpoint(Uri);

impl Endpoint {
    /// The address of a path below the base.
    pub(crate) fn uri(&self, path: &str) -> Uri {
        let base = self.0.path().trim_end_matches('/');
        let mut parts = self.0.clone().into_parts();
        // Both parts have been in a URI before.
        parts.path_and_query = Some(format!("{base}{path}").parse().expect("a path"));
        Uri::from_parts(parts).expect("the parts of a URI")
    }

    /// Whether connections are TLS.
    pub(crate) fn is_tls(&self) -> bool {
        self.0.scheme_str() == Some("https")
    }
}

impl FromStr for Endpoint {
    type Err = InvalidParameter;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = |reason: &str| {
            InvalidParameter::new(format!("`{text}` {reason}; write it as http://localhost:8000/v1"))
        };
        let uri: Uri = text.parse().map_err(|error| bad(&format!("is no URL ({error})")))?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) {
            return Err(bad("does not begin with http:// or https://"));
        }
        let Some(authority) = uri.authority().filter(|authority| !authority.host().is_empty()) else {
            return Err(bad("has no host"));
        };
        if authority.as_str().contains('@') {
            return Err(bad("has a user or password, which is not sent: give a key instead"));
        }
        if uri.query().is_some() {
            return Err(bad("has a query, which is not sent"));
        }
        if matches!(uri.path(), "" | "/") {
            return format!("{}/v1", text.trim_end_matches('/'))
                .parse()
                .map(Self)
                .map_err(|_| bad("is no URL"));
        }
        Ok(Self(uri))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_below_the_base() {
        for (base, expected) in [
            ("http://localhost:8000/v1", "http://localhost:8000/v1/models"),
            ("http://localhost:8000/v1/", "http://localhost:8000/v1/models"),
            ("http://localhost:8000", "http://localhost:8000/v1/models"),
            ("http://[::1]:80/", "http://[::1]:80/v1/models"),
            ("https://host/a/b", "https://host/a/b/models"),
        ] {
            let endpoint: Endpoint = base.parse().expect(base);
            assert_eq!(endpoint.uri("/models").to_string(), expected);
            assert_eq!(endpoint.is_tls(), base.starts_with("https"));
        }
    }

    #[test]
    fn what_is_no_base_is_refused() {
        for (bad, expected) in [
            ("", "is no URL"),
            ("localhost:8000", "does not begin with http://"),
            ("/v1", "does not begin with http://"),
            ("ftp://host/v1", "does not begin with http://"),
            ("http://", "is no URL"),
            ("http://:8000/v1", "has no host"),
            ("http://user:word@host/v1", "has a user or password"),
            ("http://host/v1?key=5", "has a query"),
        ] {
            let error = bad.parse::<Endpoint>().expect_err(bad).to_string();
            assert!(error.contains(expected) && error.contains("http://localhost:8000/v1"), "{error}");
        }
    }
}
