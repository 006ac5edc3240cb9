//! Why a server does not start.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use crate::store::StoreError;

/// A server that did not start. Once it runs, errors concern single connections and are counted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The store could not be made.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// RDMA is required, or a certain port of it, and cannot be used.
    #[error(transparent)]
    Rdma(#[from] kvcache_rdma::verbs::Error),
    /// The address cannot be listened on.
    #[error(
        "cannot listen on {address}: {source}; give an address of this machine, and a port that is free, or 0 for any"
    )]
    Listen {
        /// The address asked for.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file of the configuration cannot be read.
    #[error("cannot read {}: {source}; give a file that the server's user can read", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A token of no bytes, or longer than the protocol carries.
    #[error("the token in {} has {bytes} bytes: put 16 to 4096 bytes there, for example from `openssl rand -hex 32`", path.display())]
    Token {
        /// The file.
        path: PathBuf,
        /// Bytes found.
        bytes: usize,
    },
    /// Certificate and key make no TLS server.
    #[error("cannot use the certificate {} with the key {}: {reason}; both must be PEM and belong together", certificate.display(), key.display())]
    Tls {
        /// The certificate chain.
        certificate: PathBuf,
        /// The private key.
        key: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// No threads or signals.
    #[error("cannot start the server's threads: {0}")]
    Runtime(#[source] io::Error),
}
