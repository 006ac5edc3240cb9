//! Why something cannot be opened or done, in the words that users read.

use std::path::PathBuf;

use kvcache_core::block_cache::OpenError;
use kvcache_core::block_key::UnknownHash;
use kvcache_rdma::members::{OpenError as MembersOpenError, RemoteUrlError};
use kvcache_rdma::ring::RingOpenError;

/// A setting that cannot be meant, or a part that the system refuses. Each text names the value and the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The cache cannot be opened.
    #[error(transparent)]
    Cache(#[from] OpenError),
    /// The hash is not known.
    #[error(transparent)]
    Hash(#[from] UnknownHash),
    /// Chosen tokens could be made to collide.
    #[error(
        "hash \"xxh3\" cannot be used with remote, since others choose tokens there: use \"blake3\" or leave it out"
    )]
    HashNotShared,
    /// Blocks that others read must say whose they are.
    #[error("remote needs a namespace: name the model and everything else that makes its blocks different")]
    NoNamespace,
    /// Two namespaces for one cache.
    #[error(
        "namespace and namespace_id are both given: give the name, or the fingerprint that stands for it"
    )]
    TwoNamespaces,
    /// Blocks of no tokens.
    #[error("block_tokens is 0: use 1 or more")]
    NoBlockTokens,
    /// A number outside of what a token id is.
    #[error("token {0} is not a token id: ids are 0 to 4294967295")]
    NotAToken(i64),
    /// What goes to L2 is not known by this name.
    #[error("unknown ingestion {0:?}: use \"all\", \"hot\" or \"evicted\"")]
    Ingestion(String),
    /// A time that is none.
    #[error("{name} is {seconds}: give seconds from 0 up")]
    Seconds {
        /// The setting.
        name: &'static str,
        /// As given.
        seconds: f64,
    },
    /// The servers' URL cannot be read.
    #[error(transparent)]
    RemoteUrl(#[from] RemoteUrlError),
    /// The list of servers cannot be kept.
    #[error(transparent)]
    Members(#[from] MembersOpenError),
    /// Nothing says which servers to trust.
    #[error(
        "remote asks for TLS and tls_ca is missing: give a PEM file with the certificates that sign the servers'"
    )]
    NoTlsCa,
    /// The token is not where it should be.
    #[error(
        "cannot read the token file {}: {source}; give a file with the servers' token, or leave it out for servers that \
         have none", .path.display()
    )]
    TokenFile {
        /// As given.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A token of nothing.
    #[error(
        "the token file {} is empty: put the servers' token into it, or leave it out for servers that have none",
        .0.display()
    )]
    EmptyTokenFile(PathBuf),
    /// The client of L2 cannot be opened.
    #[error(transparent)]
    Ring(#[from] RingOpenError),
    /// The system refuses a thread.
    #[error("cannot start the thread that registers L1: {0}; raise the limit of threads")]
    RegistrationThread(#[source] std::io::Error),
    /// The system refuses a thread.
    #[error("cannot start the thread of L2: {0}; raise the limit of threads")]
    RemoteThread(#[source] std::io::Error),
}
