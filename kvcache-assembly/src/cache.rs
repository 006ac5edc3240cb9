//! A block cache from plain settings, with L2 or without.

use std::path::PathBuf;
use std::sync::Arc;

use kvcache_core::block_cache::{BlockCache, BlockCacheConfig, L2Config};
use kvcache_core::block_key::HashAlgorithm;
use kvcache_core::fingerprint::{Namespace, ShardFingerprint};

use crate::{Error, Remote, RemoteSettings, TokenKeys};

/// What a user says of a block cache.
#[derive(Clone, PartialEq, Debug)]
pub struct CacheSettings {
    /// Bytes of a block.
    pub block_bytes: usize,
    /// Memory for blocks; rounded down to whole blocks.
    pub capacity_bytes: u64,
    /// Name of the eviction policy.
    pub eviction: String,
    /// Separates caches by a name. Needed with `slab_path` and with `remote`, unless there is a `namespace_id`.
    pub namespace: Option<String>,
    /// The namespace as a fingerprint instead: that of an engine whose blocks are to be shared. Keys are made in it.
    pub namespace_id: Option<[u8; 16]>,
    /// Which of an engine's shards the blocks are, as a fingerprint. Without one they are those of block caches with this
    /// [`block_bytes`](Self::block_bytes), which share with no engine.
    ///
    /// A value is found by namespace, shard and length: an engine's values are as long as its slots, and a cache whose
    /// blocks are of another length finds none of them.
    pub shard_id: Option<[u8; 16]>,
    /// Directory in shared memory, such as `/dev/shm`, in which the blocks outlive this process.
    pub slab_path: Option<PathBuf>,
    /// Threads that copy, the caller's included; 1 copies on the caller's thread alone.
    pub copy_threads: usize,
    /// Chains tokens into keys: `blake3` or `xxh3`. Without a choice, `xxh3` for a cache that nobody else may read.
    pub hash: Option<String>,
    /// L2.
    pub remote: Option<RemoteSettings>,
}

impl CacheSettings {
    /// Private memory, the default policy, copies on the caller's thread, no L2.
    pub fn new(block_bytes: usize, capacity_bytes: u64) -> Self {
        let defaults = BlockCacheConfig::new(block_bytes, capacity_bytes);
        Self {
            block_bytes,
            capacity_bytes,
            eviction: defaults.eviction,
            namespace: None,
            namespace_id: None,
            shard_id: None,
            slab_path: None,
            copy_threads: defaults.copy_threads,
            hash: None,
            remote: None,
        }
    }

    /// Opens the cache. Takes milliseconds: memory is taken, and servers are connected to, in the background.
    ///
    /// # Errors
    /// What cannot be meant, with its remedy, or what the system refuses.
    pub fn open(&self) -> Result<Cache, Error> {
        let keys = TokenKeys { namespace: self.namespace()?, hash: self.hash()? };
        let remote = match &self.remote {
            None => None,
            Some(_) if self.namespace.is_none() && self.namespace_id.is_none() => {
                return Err(Error::NoNamespace);
            }
            // A cache that others read must not be at the mercy of chosen tokens.
            Some(_) if keys.hash == HashAlgorithm::Xxh3 => return Err(Error::HashNotShared),
            Some(settings) => Some(settings.open()?),
        };
        let mut core = BlockCache::open(&BlockCacheConfig {
            eviction: self.eviction.clone(),
            namespace: self.slab_namespace(),
            slab_path: self.slab_path.clone(),
            copy_threads: self.copy_threads,
            ..BlockCacheConfig::new(self.block_bytes, self.capacity_bytes)
        })?;
        if let Some(remote) = &remote {
            let config = L2Config {
                shard: self.shard_id.map(ShardFingerprint),
                ..remote.l2_config(keys.namespace, self.block_bytes)
            };
            let store = remote.store(Arc::clone(core.memory()))?;
            core = core.with_l2(config, store, remote.presence()?).map_err(Error::RemoteThread)?;
        }
        Ok(Cache { core: Arc::new(core), keys, remote })
    }

    fn namespace(&self) -> Result<Namespace, Error> {
        match (&self.namespace, self.namespace_id) {
            (Some(_), Some(_)) => Err(Error::TwoNamespaces),
            (_, Some(id)) => Ok(Namespace(id)),
            (name, None) => Ok(Namespace::of_text(name.as_deref().unwrap_or(""))),
        }
    }

    fn hash(&self) -> Result<HashAlgorithm, Error> {
        match &self.hash {
            // A cache that others may read must not be at the mercy of chosen tokens.
            None if self.slab_path.is_some() || self.remote.is_some() => Ok(HashAlgorithm::Blake3),
            None => Ok(HashAlgorithm::Xxh3),
            Some(name) => Ok(name.parse()?),
        }
    }

    /// Whose the blocks in a slab are. By the names of its files a cache never takes an engine's lanes, nor the blocks of
    /// another shard.
    fn slab_namespace(&self) -> Option<String> {
        let name = match self.namespace_id {
            None => self.namespace.clone()?,
            Some(id) => format!("namespace_id {:032x}", u128::from_be_bytes(id)),
        };
        Some(match self.shard_id {
            None => name,
            Some(id) => format!("{name} shard_id {:032x}", u128::from_be_bytes(id)),
        })
    }
}

/// An open block cache, and what belongs to it.
pub struct Cache {
    core: Arc<BlockCache>,
    keys: TokenKeys,
    remote: Option<Remote>,
}

impl Cache {
    /// The cache itself. It is closed when the last one who holds it lets go.
    pub fn core(&self) -> &Arc<BlockCache> {
        &self.core
    }

    /// Names its blocks.
    pub fn keys(&self) -> TokenKeys {
        self.keys
    }

    /// Whether there is L2: a match may take a round trip then.
    pub fn has_remote(&self) -> bool {
        self.remote.is_some()
    }

    /// What is wrong now with L2, one line each. May take a millisecond.
    pub fn problems(&self) -> Vec<String> {
        self.remote.as_ref().map_or_else(Vec::new, Remote::problems)
    }
}
