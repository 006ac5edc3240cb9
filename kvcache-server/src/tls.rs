//! TLS on every connection, where certificate and key are given.

use std::fmt::Display;
use std::path::PathBuf;
use std::sync::Arc;

use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::Error;

/// Files of a TLS server, both PEM.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// The server's certificate, followed by those that lead to its authority.
    pub certificate: PathBuf,
    /// The private key of the first certificate.
    pub key: PathBuf,
}

impl TlsFiles {
    /// Reads both files.
    pub(crate) fn acceptor(&self) -> Result<TlsAcceptor, Error> {
        let read =
            |path: &PathBuf| std::fs::read(path).map_err(|source| Error::File { path: path.clone(), source });
        let (certificates, key) = (read(&self.certificate)?, read(&self.key)?);
        let certificates = CertificateDer::pem_slice_iter(&certificates)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| self.unusable(error))?;
        let key = PrivateKeyDer::from_pem_slice(&key).map_err(|error| self.unusable(error))?;
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| self.unusable(error))?
            .with_no_client_auth()
            .with_single_cert(certificates, key)
            .map_err(|error| self.unusable(error))?;
        Ok(TlsAcceptor::from(Arc::new(config)))
    }

    fn unusable(&self, reason: impl Display) -> Error {
        let (certificate, key) = (self.certificate.clone(), self.key.clone());
        Error::Tls { certificate, key, reason: reason.to_string() }
    }
}
