//! A block cache from plain settings, with L2 or without.

use std::path::PathBuf;
use std::sync::Arc;

use kvcache_core::block_cache::{BlockCache, BlockCacheConfig, L2Config};
use kvcache_core::block_key::HashAlgorithm;
use kvcache_core::fingerprint::{Namespace, ShardFingerprint};

use crate::cuda::{CudaDevice, check_path};
use crate::device_problems::device_problems;
use crate::{Error, Remote, RemoteSettings, TokenKeys, capacity, slab_folder};

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
    /// `cuda:N` for blocks in that device's memory, beside those in the host's.
    pub device: Option<String>,
    /// How the device copies; `auto` measures.
    pub copy_path: String,
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
            device: None,
            copy_path: "auto".to_owned(),
        }
    }

    /// Opens the cache. Takes milliseconds: memory is taken, and servers are connected to, in the background.
    ///
    /// # Errors
    /// What cannot be meant, with its remedy, or what the system refuses.
    pub fn open(&self) -> Result<Cache, Error> {
        let keys = TokenKeys { namespace: self.namespace()?, hash: self.hash()? };
        if self.is_found_by_others() && self.namespace.as_ref().is_some_and(|name| name.trim().is_empty()) {
            return Err(Error::EmptyNamespace);
        }
        let remote = match &self.remote {
            None => None,
            Some(_) if self.namespace.is_none() && self.namespace_id.is_none() => {
                return Err(Error::NoNamespace);
            }
            // A cache that others read must not be at the mercy of chosen tokens.
            Some(_) if keys.hash == HashAlgorithm::Xxh3 => return Err(Error::HashNotShared),
            Some(settings) => Some(settings.open()?),
        };
        check_path(&self.copy_path)?;
        capacity::slot_count(self.capacity_bytes, 1, self.block_bytes)?;
        let device = self.device.as_ref().map(|name| CudaDevice::open(name, &self.copy_path)).transpose()?;
        self.open_with(keys, remote, device)
    }

    fn open_with(
        &self,
        keys: TokenKeys,
        remote: Option<Remote>,
        device: Option<CudaDevice>,
    ) -> Result<Cache, Error> {
        let folder_warning = self.slab_path.as_deref().map(slab_folder::check).transpose()?.flatten();
        let mut core = BlockCache::open(&BlockCacheConfig {
            eviction: self.eviction.clone(),
            namespace: self.slab_namespace(),
            slab_path: self.slab_path.clone(),
            copy_threads: self.copy_threads,
            for_device: device.is_some(),
            numa_node: device.as_ref().and_then(|device| device.numa_node),
            ..BlockCacheConfig::new(self.block_bytes, self.capacity_bytes)
        })?;
        if let Some(device) = &device {
            core = core.with_device(Arc::clone(&device.engine) as _).map_err(Error::Thread)?;
        }
        if let Some(remote) = &remote {
            let config = L2Config {
                shard: self.shard_id.map(ShardFingerprint),
                ..remote.l2_config(keys.namespace, self.block_bytes)
            };
            let store = remote.store(Arc::clone(core.memory()))?;
            core = core.with_l2(config, store, remote.presence()?).map_err(Error::RemoteThread)?;
        }
        Ok(Cache { core: Arc::new(core), keys, remote, device, folder_warning })
    }

    /// Whether blocks of this cache may be those of another one, of a later process or another machine.
    fn is_found_by_others(&self) -> bool {
        self.slab_path.is_some() || self.remote.is_some()
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
            None if self.is_found_by_others() => Ok(HashAlgorithm::Blake3),
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
    device: Option<CudaDevice>,
    folder_warning: Option<String>,
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

    /// What the user should know of how the cache was opened, one line each.
    pub fn warnings(&self) -> Vec<String> {
        self.folder_warning.iter().chain(self.core.warnings()).cloned().collect()
    }

    /// What is wrong now with L2 and with the device, one line each. May take a millisecond.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = self.remote.as_ref().map_or_else(Vec::new, Remote::problems);
        if let Some((device, pinning)) = self.device.as_ref().zip(self.core.pinning()) {
            let memory = self.core.memory();
            let slots = (memory.usable_slots(), memory.slot_count());
            problems.extend(device_problems(&device.engine, &pinning, slots, self.core.failures()));
        }
        problems
    }
}

#[cfg(test)]
#[expect(unsafe_code, reason = "a device's memory is addresses")]
mod tests {
    use kvcache_core::block_cache::Segment;

    use super::*;

    #[test]
    fn a_copy_path_is_checked_without_a_device() {
        let settings = CacheSettings { copy_path: "dmaa".to_owned(), ..CacheSettings::new(4096, 8192) };
        let error = settings.open().err().unwrap().to_string();
        assert!(error.contains("\"dmaa\"") && error.contains("dma_batch"), "{error}");
    }

    /// A cache whose device is the fake: blocks of its memory come back, and nothing was done that no program may do.
    #[test]
    fn blocks_of_a_device_come_back() {
        const BLOCK_BYTES: usize = 4096;
        let settings = CacheSettings::new(BLOCK_BYTES, 16 * BLOCK_BYTES as u64);
        let mut memory = vec![0u8; 3 * BLOCK_BYTES];
        let device =
            CudaDevice::open_fake(&[(memory.as_mut_ptr() as usize, memory.len())], "auto", 1).unwrap();
        let fake = device.fake.clone().unwrap();
        let keys = TokenKeys { namespace: Namespace::of_text(""), hash: HashAlgorithm::Blake3 };
        let cache = settings.open_with(keys, None, Some(device)).unwrap();
        while cache.core().pinning().is_some_and(|pinning| pinning.is_running) {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        let names = keys.of(&(0..48).collect::<Vec<i32>>(), 16, b"").unwrap();
        let halves: Vec<Segment> = (0..6)
            .map(|half| Segment {
                address: memory.as_ptr() as usize + half * BLOCK_BYTES / 2,
                bytes: BLOCK_BYTES / 2,
            })
            .collect();
        let stream = Some(fake.stream.0);
        let before: Vec<u8> = (0..3 * BLOCK_BYTES).map(|byte| (byte / 5) as u8).collect();
        memory.copy_from_slice(&before);
        // SAFETY: the segments are the fake device's memory, and nobody else's during the calls.
        unsafe {
            assert_eq!(cache.core().put_device_segments(&names, &halves, stream), Ok(3));
            memory.fill(0xEE);
            assert_eq!(cache.core().get_device_segments(&names, &halves, stream), Ok(3));
        }
        assert!(memory == before);
        assert_eq!((cache.problems(), fake.device.settle()), (Vec::new(), Vec::new()));
    }
}
