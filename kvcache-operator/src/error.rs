//! What can fail between the operator and the cluster.

use std::time::Duration;

/// An operation that failed. All of them are tried again: what a user has to mend is a condition, not an error.
#[derive(thiserror::Error, Debug)]
#[non_exhaustive]
pub enum Error {
    /// Somebody else changed the object first; the next look sees it.
    #[error("{what}: changed meanwhile")]
    Conflict {
        /// The operation and its object.
        what: String,
    },
    /// The API server refuses the object as it is.
    #[error("{what}: refused: {message}")]
    Refused {
        /// The operation and its object.
        what: String,
        /// The server's words.
        message: String,
    },
    /// The operator's role lacks a permission.
    #[error(
        "{what}: forbidden ({code}): {message}; give the operator the rights of deploy/base/rbac.yaml, or lift the \
         quota or the policy that forbids it"
    )]
    Forbidden {
        /// The operation and its object.
        what: String,
        /// The status: 401 or 403.
        code: u16,
        /// The server's words.
        message: String,
    },
    /// The API server did not answer in time.
    #[error("{what}: no answer within {} s", .after.as_secs())]
    TimedOut {
        /// The operation and its object.
        what: String,
        /// How long the operator waited.
        after: Duration,
    },
    /// The API server, or the way to it, failed.
    #[error("{what}: {}", words(source))]
    Api {
        /// The operation and its object.
        what: String,
        /// How.
        source: Box<kube::Error>,
    },
    /// An object could not be written as JSON.
    #[error("{what}: {source}")]
    Json {
        /// The object.
        what: String,
        /// How.
        source: serde_json::Error,
    },
}

impl Error {
    /// An answer of the API server, or its absence.
    pub fn api(what: impl Into<String>, source: kube::Error) -> Self {
        let what = what.into();
        match source {
            kube::Error::Api(status) => match status.code {
                409 => Self::Conflict { what },
                // Another object has taken the place of the one that was looked at.
                422 if status.message.contains("metadata.uid") => Self::Conflict { what },
                400 | 422 => Self::Refused { what, message: status.message.clone() },
                code @ (401 | 403) => Self::Forbidden { what, code, message: status.message.clone() },
                _ => Self::Api { what, source: Box::new(kube::Error::Api(status)) },
            },
            source => Self::Api { what, source: Box::new(source) },
        }
    }

    /// One word, for metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Conflict { .. } => "conflict",
            Self::Refused { .. } => "refused",
            Self::Forbidden { .. } => "forbidden",
            Self::TimedOut { .. } => "timeout",
            Self::Api { .. } => "api",
            Self::Json { .. } => "json",
        }
    }

    /// All words of [`reason`](Self::reason).
    pub const REASONS: [&'static str; 6] = ["conflict", "refused", "forbidden", "timeout", "api", "json"];
}

/// The API server's answer, without all that the client knows of it.
fn words(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => format!("{} {}: {}", status.code, status.reason, status.message),
        other => other.to_string(),
    }
}

/// Waits for an answer of the API server, but not for ever: a request that is never answered must not stop an object's
/// reconciliation.
///
/// # Errors
///
/// What the server says, or [`Error::TimedOut`].
pub(crate) async fn answered<T>(
    what: &str,
    answer: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, Error> {
    match tokio::time::timeout(ANSWER, answer).await {
        Ok(answer) => answer.map_err(|source| Error::api(what, source)),
        Err(_) => Err(Error::TimedOut { what: what.to_owned(), after: ANSWER }),
    }
}

/// An API server answers within milliseconds; one that takes longer than its own default timeout never will.
const ANSWER: Duration = Duration::from_secs(8);
