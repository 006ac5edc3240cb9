//! Why something cannot be opened or done, in the words that users read.

use std::path::PathBuf;

use kvcache_core::Malformed;
use kvcache_core::block_cache::OpenError;
use kvcache_core::block_key::UnknownHash;
use kvcache_core::copy_engine::drill::UnknownDrill;
use kvcache_core::eviction::PolicyError;
use kvcache_core::planner::PlannerConfigError;
use kvcache_core::slab::SlabError;
use kvcache_core::store::LayoutError;
use kvcache_cuda::driver::{DriverError, Unavailable};
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
    /// A name that separates nothing.
    #[error(
        "namespace is empty, and blocks that others can find need one: name the model and everything else that makes its \
         blocks different"
    )]
    EmptyNamespace,
    /// A setting of L2 without L2.
    #[error("{0} is of no use without remote: set remote, or leave {0} out")]
    NoRemote(&'static str),
    /// Nobody has made the folder for slabs.
    #[error(
        "slab_path {} does not exist, and would be on a disk: set slab_path to a directory in shared memory, such as \
         /dev/shm, or make that directory", .0.display()
    )]
    NoSlabFolder(PathBuf),
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
    /// The kind of a KV cache group is not known.
    #[error("unknown group kind {0:?}: use \"full\", \"sliding\" or \"state\"")]
    GroupKind(String),
    /// Where keys come from is not known.
    #[error("unknown key_source {0:?}: use \"engine\" or \"tokens\"")]
    KeySource(String),
    /// How blocks are loaded is not known.
    #[error("unknown load_mode {0:?}: use \"auto\", \"layerwise\" or \"async\"")]
    LoadMode(String),
    /// The policy is not known.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// No engine is like this.
    #[error(transparent)]
    Planner(#[from] PlannerConfigError),
    /// The drill is not known.
    #[error(transparent)]
    Drill(#[from] UnknownDrill),
    /// The engine's blocks cannot lie like this.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// Not one slot.
    #[error(
        "capacity of {capacity_bytes} bytes is below one slot of {slot_bytes} bytes on each of {shards} ranks: set \
         capacity to at least {}", *.slot_bytes as u64 * u64::from(*.shards)
    )]
    CapacityBelowSlot {
        /// For all ranks.
        capacity_bytes: u64,
        /// Bytes of a slot.
        slot_bytes: usize,
        /// Ranks with a slab of their own.
        shards: u32,
    },
    /// More than there is.
    #[error(
        "capacity of {capacity_bytes} bytes is above this machine's memory of {memory_bytes} bytes: lower capacity_bytes"
    )]
    CapacityAboveMemory {
        /// For all ranks.
        capacity_bytes: u64,
        /// The machine's, or what its control group allows.
        memory_bytes: u64,
    },
    /// More slots than have numbers.
    #[error(
        "capacity of {capacity_bytes} bytes is {slots} slots of {slot_bytes} bytes on each of {shards} ranks, and no more \
         than {} can be numbered: lower capacity_bytes, or use larger blocks",
        u32::MAX
    )]
    SlotsAboveCount {
        /// For all ranks.
        capacity_bytes: u64,
        /// On each rank.
        slots: u64,
        /// Bytes of a slot.
        slot_bytes: usize,
        /// Ranks with a slab of their own.
        shards: u32,
    },
    /// The slab of a rank cannot be opened.
    #[error(transparent)]
    Slab(SlabError),
    /// The system refuses threads that copy.
    #[error("cannot start {threads} copy threads: {source}")]
    CopyThreads {
        /// As asked for.
        threads: usize,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The system refuses a thread.
    #[error("cannot start a thread: {0}")]
    Thread(#[source] std::io::Error),
    /// The device is not known.
    #[error("unknown device {0:?}: use cuda:N, with the number of the device")]
    Device(String),
    /// The way of copying is not known.
    #[error("{0}")]
    CopyPath(String),
    /// No such CUDA device can be used.
    #[error(transparent)]
    Cuda(#[from] Unavailable),
    /// The CUDA device refuses.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// A plan that no planner made.
    #[error(transparent)]
    Plan(#[from] Malformed),
    /// Too late.
    #[error("the store is closed: the engine is shutting down")]
    StoreClosed,
}
