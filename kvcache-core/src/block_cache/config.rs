//! How a block cache is opened.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::BlockCache;
use crate::copy_engine::{HostCopyConfig, HostCopyEngine};
use crate::eviction::{PolicyError, PolicyRegistry};
use crate::fingerprint::{Namespace, ShardFingerprint};
use crate::slab::{SharedBacking, Slab, SlabConfig, SlabError};
use crate::store::SlabSlots;

/// The settings of a [`BlockCache`].
#[derive(Clone, Debug)]
pub struct BlockCacheConfig {
    /// Bytes of a block.
    pub block_bytes: usize,
    /// Memory for blocks; rounded down to whole blocks.
    pub capacity_bytes: u64,
    /// Name of the eviction policy.
    pub eviction: String,
    /// Separates caches; mandatory with a slab directory.
    pub namespace: Option<String>,
    /// Directory in shared memory, such as `/dev/shm`, in which the blocks outlive this process.
    pub slab_path: Option<PathBuf>,
    /// Whether the cache will be one [with a device](BlockCache::with_device): its memory is then to be pinned.
    pub for_device: bool,
    /// The NUMA node that the memory should come from while it has some: the device's.
    pub numa_node: Option<u32>,
    /// Threads that copy, the caller's included; 1 copies on the caller's thread alone.
    pub copy_threads: usize,
}

/// Why a cache cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The block size is zero.
    #[error("block_bytes is 0: give the bytes of one block, for all layers")]
    NoBlock,
    /// Less memory than one block.
    #[error(
        "capacity of {capacity_bytes} bytes is below one block of {block_bytes} bytes: raise capacity_bytes"
    )]
    Capacity {
        /// The capacity asked for.
        capacity_bytes: u64,
        /// Bytes of a block.
        block_bytes: usize,
    },
    /// Blocks that outlive the process must say whose they are.
    #[error("slab_path {} needs a namespace: name the model and everything else that makes its blocks different", .0.display())]
    NoNamespace(PathBuf),
    /// No thread would copy.
    #[error("copy_threads is 0: use 1 to copy on the caller's thread, or more")]
    NoThreads,
    /// The policy is not known.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The slab cannot be opened.
    #[error(transparent)]
    Slab(#[from] SlabError),
    /// The system refuses a thread.
    #[error("cannot start {threads} copy threads: {source}; lower copy_threads")]
    Thread {
        /// Threads asked for.
        threads: usize,
        /// The system's reason.
        source: std::io::Error,
    },
}

/// Tells caches of one process apart: each takes a lane of its own.
static OPENED: AtomicU64 = AtomicU64::new(0);

impl BlockCacheConfig {
    /// Private memory, the default policy, copies on the caller's thread.
    pub fn new(block_bytes: usize, capacity_bytes: u64) -> Self {
        Self {
            block_bytes,
            capacity_bytes,
            eviction: "default".to_owned(),
            namespace: None,
            slab_path: None,
            for_device: false,
            numa_node: None,
            copy_threads: 1,
        }
    }
}

impl BlockCache {
    /// Opens a cache; finds the blocks of an earlier process where there is a slab directory. Takes milliseconds: memory
    /// is taken in the background.
    ///
    /// # Errors
    /// [`OpenError`] names the value and the remedy.
    pub fn open(config: &BlockCacheConfig) -> Result<Self, OpenError> {
        if config.block_bytes == 0 {
            return Err(OpenError::NoBlock);
        }
        if config.copy_threads == 0 {
            return Err(OpenError::NoThreads);
        }
        let slots = config.capacity_bytes / config.block_bytes as u64;
        if slots == 0 {
            return Err(OpenError::Capacity {
                capacity_bytes: config.capacity_bytes,
                block_bytes: config.block_bytes,
            });
        }
        let slot_count = usize::try_from(slots).unwrap_or(usize::MAX);
        // Checked before anything is allocated.
        PolicyRegistry::with_builtin().build(&config.eviction, 1)?;
        let mut slab = match &config.slab_path {
            None => SlabConfig::anonymous(config.block_bytes, slot_count),
            Some(path) => {
                let name = config.namespace.as_ref().ok_or_else(|| OpenError::NoNamespace(path.clone()))?;
                let shard =
                    ShardFingerprint::of_fields([("block_bytes", &config.block_bytes.to_le_bytes()[..])]);
                let mut backing = SharedBacking::new(path, Namespace::of_text(name).0, shard.0);
                let opened = OPENED.fetch_add(1, Ordering::Relaxed);
                backing.engine_id = format!("{}-{opened}", backing.engine_id);
                SlabConfig::shared(config.block_bytes, slot_count, backing)
            }
        };
        (slab.for_device, slab.numa_node) = (config.for_device, config.numa_node);
        let slab = Slab::open(&slab)?;
        let policy = PolicyRegistry::with_builtin().build(&config.eviction, slab.slot_count() as u32)?;
        let copies = if config.copy_threads > 1 {
            let threads = config.copy_threads - 1;
            let copies = HostCopyEngine::new(HostCopyConfig { threads, ..HostCopyConfig::default() });
            Some(copies.map_err(|source| OpenError::Thread { threads, source })?)
        } else {
            None
        };
        let warnings = slab.warnings();
        let mut cache = Self::new(Arc::new(SlabSlots::new(slab, false)), policy, copies, config.block_bytes);
        cache.warnings = warnings;
        Ok(cache)
    }
}
