//! TLS over a socket that never blocks.

use std::io::{self, IoSlice, Read, Write};
use std::path::PathBuf;
use std::sync::Arc;

use mio::net::TcpStream;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection};

use super::fault::{Fault, FaultReason};

/// Records that wait for the socket, at most: more is not taken from the caller.
const BUFFER_BYTES: usize = 256 << 10;

#[derive(Debug)]
pub(crate) struct TlsStream {
    socket: TcpStream,
    session: ClientConnection,
}

impl TlsStream {
    pub(super) fn new(
        socket: TcpStream,
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> Result<Self, rustls::Error> {
        let mut session = ClientConnection::new(config, name)?;
        session.set_buffer_limit(Some(BUFFER_BYTES));
        Ok(Self { socket, session })
    }

    pub(super) fn socket(&mut self) -> &mut TcpStream {
        &mut self.socket
    }

    /// Reads plain text. `WouldBlock` when neither it nor records are there.
    pub(super) fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.session.reader().read(out) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => return other,
            }
            if self.session.read_tls(&mut self.socket)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if let Err(error) = self.session.process_new_packets() {
                // The peer should learn what it did; whether it does changes nothing here.
                let _ = self.flush_records();
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
            // The handshake answers while it reads.
            match self.flush_records() {
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
                _ => {}
            }
        }
    }

    pub(super) fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let taken = self.session.writer().write_vectored(slices)?;
        match self.flush_records() {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
            _ => {}
        }
        if taken == 0 { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(taken) }
    }

    pub(super) fn flush_records(&mut self) -> io::Result<()> {
        while self.session.wants_write() {
            self.session.write_tls(&mut self.socket)?;
        }
        Ok(())
    }
}

/// How servers prove who they are.
#[derive(Debug)]
pub(super) struct Tls {
    config: Arc<ClientConfig>,
    /// The name in the servers' certificates, where it is not their host.
    name: Option<ServerName<'static>>,
}

impl Tls {
    /// Trusts the certificates in `ca_file`, PEM.
    pub(super) fn open(settings: &TlsSettings) -> Result<Self, TlsError> {
        let file = || settings.ca_file.clone();
        let read = |source: std::io::Error| TlsError::Read { file: file(), source };
        let pem = std::fs::read(&settings.ca_file).map_err(read)?;
        let mut roots = rustls::RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            let certificate = certificate
                .map_err(|error| TlsError::Certificate { file: file(), text: error.to_string() })?;
            let added = roots.add(certificate);
            added.map_err(|error| TlsError::Certificate { file: file(), text: error.to_string() })?;
        }
        if roots.is_empty() {
            return Err(TlsError::Certificate { file: file(), text: "no certificate is in it".to_owned() });
        }
        let name = match &settings.server_name {
            None => None,
            Some(name) => {
                Some(ServerName::try_from(name.clone()).map_err(|_| TlsError::Name { name: name.clone() })?)
            }
        };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| TlsError::Certificate { file: file(), text: error.to_string() })?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self { config: Arc::new(config), name })
    }

    pub(super) fn config(&self) -> Arc<ClientConfig> {
        self.config.clone()
    }

    /// The name that the certificate of the server at `host` must have.
    pub(super) fn server_name(&self, host: &str) -> Result<ServerName<'static>, Fault> {
        match &self.name {
            Some(name) => Ok(name.clone()),
            None => ServerName::try_from(host.to_owned())
                .map_err(|error| Fault::new(FaultReason::Tls, error.to_string())),
        }
    }
}

/// TLS settings of a client.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TlsSettings {
    /// PEM file with the certificates of the authorities that signed the servers'.
    pub ca_file: PathBuf,
    /// The name in the servers' certificates, where it is not the host of their addresses.
    pub server_name: Option<String>,
}

/// Why TLS cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}; give a PEM file with the certificates of whoever signed the servers'", .file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// What is in it is not a certificate.
    #[error("{} holds no usable certificates: {text}; give a PEM file with those of whoever signed the servers'", .file.display())]
    Certificate {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        text: String,
    },
    /// Not a name that a certificate can have.
    #[error("server name {name:?} is no host name: write it as it is in the servers' certificates")]
    Name {
        /// The name.
        name: String,
    },
}
