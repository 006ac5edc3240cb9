//! Connections to the endpoint, with TLS where its address wants it.

use std::sync::Arc;
use std::time::Duration;

use hyper_rustls::{ConfigBuilderExt, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use rustls::crypto::ring;
use rustls::{ClientConfig, RootCertStore};

use crate::endpoint::Endpoint;
use crate::error::Error;

/// Trusts the authorities of the system, or those in the file that SSL_CERT_FILE names.
pub(crate) fn https(endpoint: &Endpoint, timeout: Duration) -> Result<HttpsConnector<HttpConnector>, Error> {
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_nodelay(true);
    http.set_connect_timeout(Some(timeout));
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider has the default versions");
    let config = if endpoint.is_tls() {
        config.with_native_roots().map_err(|source| Error::Certificates { source })?
    } else {
        // Never asked: reading the system's authorities takes time and may fail.
        config.with_root_certificates(RootCertStore::empty())
    };
    let config = config.with_no_client_auth();
    Ok(HttpsConnectorBuilder::new()
        .with_tls_config(config)
        .https_or_http()
        .enable_http1()
        .wrap_connector(http))
}
