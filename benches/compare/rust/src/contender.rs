//! The caches whose operations are timed, each as its caller would use it.
//!
//! All hash keys in the same way ([`KeyHasher`]), have room for the same number of blocks, and have their own defaults
//! otherwise: S3-FIFO here, LRU in eight shards in foyer, TinyLFU in moka.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use foyer_memory::CacheBuilder;
use kvcache_core::BlockKey;
use kvcache_core::block_cache::{BlockCache, BlockCacheConfig};
use kvcache_core::directory::{Directory, FillId, evictions_per_request_max};
use kvcache_core::eviction::{PolicyRegistry, SlotId};

use crate::key::KeyHasher;

/// A cache that is timed.
pub(crate) trait Contender: Sync {
    fn name(&self) -> &'static str;

    /// Gets the leading blocks of a prompt that are there, into the buffer; how many there were.
    fn get(&self, keys: &[BlockKey], buffer: &mut Buffer) -> Result<usize, String>;

    /// Stores the blocks of a prompt from the buffer; how many were taken.
    fn put(&self, keys: &[BlockKey], buffer: &Buffer) -> Result<usize, String>;

    /// Does what was put off. For filling alone: in what is timed, a cache decides by itself when to.
    fn settle(&self) {}
}

/// Whose cache.
#[derive(Clone, Copy)]
pub(crate) enum Side {
    Ours,
    Foyer,
    Moka,
}

impl Side {
    pub(crate) const ALL: [Self; 3] = [Self::Ours, Self::Foyer, Self::Moka];

    /// An empty cache of `capacity` blocks of `value_bytes`, or of slots without bytes.
    pub(crate) fn build(self, capacity: u32, value_bytes: usize) -> Box<dyn Contender> {
        match (self, value_bytes) {
            (Self::Ours, 0) => Box::new(Slots::new(capacity)),
            (Self::Ours, bytes) => Box::new(Blocks::new(capacity, bytes)),
            (Self::Foyer, 0) => Box::new(FoyerSlots(foyer(capacity))),
            (Self::Foyer, _) => Box::new(FoyerBlocks(foyer(capacity))),
            (Self::Moka, 0) => Box::new(MokaSlots(moka(capacity))),
            (Self::Moka, _) => Box::new(MokaBlocks(moka(capacity))),
        }
    }
}

/// A prompt's blocks outside of the caches, one after the other.
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    value_bytes: usize,
}

impl Buffer {
    pub(crate) fn new(blocks: usize, value_bytes: usize) -> Self {
        Self { bytes: vec![0x5A; blocks * value_bytes], value_bytes }
    }

    /// Writes each key's first bytes into its block's first and last.
    pub(crate) fn stamp(&mut self, keys: &[BlockKey]) {
        if self.value_bytes > 0 {
            for (key, block) in keys.iter().zip(self.bytes.chunks_exact_mut(self.value_bytes)) {
                block[..8].copy_from_slice(&key.0[..8]);
                block[self.value_bytes - 8..].copy_from_slice(&key.0[..8]);
            }
        }
    }

    /// Whether the blocks are those of the keys.
    pub(crate) fn check(&self, keys: &[BlockKey]) -> Result<(), String> {
        if self.value_bytes > 0 {
            for (index, (key, block)) in
                keys.iter().zip(self.bytes.chunks_exact(self.value_bytes)).enumerate()
            {
                if block[..8] != key.0[..8] || block[self.value_bytes - 8..] != key.0[..8] {
                    return Err(format!("the bytes of block {index} came back wrong"));
                }
            }
        }
        Ok(())
    }

    fn of(&self, keys: &[BlockKey]) -> &[u8] {
        &self.bytes[..keys.len() * self.value_bytes]
    }

    fn of_mut(&mut self, keys: &[BlockKey]) -> &mut [u8] {
        &mut self.bytes[..keys.len() * self.value_bytes]
    }

    fn places<'a>(&'a mut self, keys: &'a [BlockKey]) -> impl Iterator<Item = (&'a BlockKey, &'a mut [u8])> {
        let value_bytes = self.value_bytes;
        keys.iter().zip(self.of_mut(keys).chunks_exact_mut(value_bytes))
    }

    fn blocks<'a>(&'a self, keys: &'a [BlockKey]) -> impl Iterator<Item = (BlockKey, &'a [u8])> {
        keys.iter().copied().zip(self.of(keys).chunks_exact(self.value_bytes))
    }
}

/// A Directory, called as a block cache calls it: a get pins, touches and unpins, a put reserves slots and completes them.
struct Slots {
    directory: Directory,
    evictions_max: usize,
}

impl Slots {
    fn new(capacity: u32) -> Self {
        let policy = PolicyRegistry::with_builtin();
        let policy = policy.build(PolicyRegistry::DEFAULT, capacity).expect("the default is known");
        Self {
            directory: Directory::new(capacity, policy),
            evictions_max: evictions_per_request_max(capacity),
        }
    }
}

impl Contender for Slots {
    fn name(&self) -> &'static str {
        "ours"
    }

    fn get(&self, keys: &[BlockKey], _buffer: &mut Buffer) -> Result<usize, String> {
        let slots = self.directory.begin_load(keys);
        self.directory.touch(&keys[..slots.len()]);
        self.directory.end_load(&slots);
        Ok(slots.len())
    }

    fn put(&self, keys: &[BlockKey], _buffer: &Buffer) -> Result<usize, String> {
        let reservation = self.directory.begin_offload(keys, 0, self.evictions_max);
        let fills: Vec<(SlotId, FillId)> =
            reservation.reserved.iter().map(|one| (one.slot, one.fill)).collect();
        Ok(self.directory.complete_fills(&fills, true).len())
    }
}

/// A block cache with its defaults, the copy on the caller's thread.
struct Blocks(BlockCache);

impl Blocks {
    fn new(capacity: u32, block_bytes: usize) -> Self {
        let config = BlockCacheConfig::new(block_bytes, u64::from(capacity) * block_bytes as u64);
        Self(BlockCache::open(&config).expect("a capacity that was checked"))
    }
}

impl Contender for Blocks {
    fn name(&self) -> &'static str {
        "ours"
    }

    fn get(&self, keys: &[BlockKey], buffer: &mut Buffer) -> Result<usize, String> {
        self.0.get(keys, buffer.of_mut(keys)).map_err(|error| error.to_string())
    }

    fn put(&self, keys: &[BlockKey], buffer: &Buffer) -> Result<usize, String> {
        self.0.put(keys, buffer.of(keys)).map_err(|error| error.to_string())
    }

    /// Memory comes in the background.
    fn settle(&self) {
        let until = Instant::now() + Duration::from_secs(60);
        while self.0.stats().directory.unusable > 0 {
            assert!(Instant::now() < until, "the cache's memory has not come within 60 s");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn foyer<V: Send + Sync + 'static>(capacity: u32) -> foyer_memory::Cache<BlockKey, V, KeyHasher> {
    CacheBuilder::new(capacity as usize).with_hash_builder(KeyHasher::default()).build()
}

/// Numbers of slots in foyer; who hands them out again after an eviction is left out.
struct FoyerSlots(foyer_memory::Cache<BlockKey, u32, KeyHasher>);

impl Contender for FoyerSlots {
    fn name(&self) -> &'static str {
        "foyer"
    }

    fn get(&self, keys: &[BlockKey], _buffer: &mut Buffer) -> Result<usize, String> {
        Ok(keys.iter().map_while(|key| self.0.get(key).map(|entry| black_box(*entry))).count())
    }

    fn put(&self, keys: &[BlockKey], _buffer: &Buffer) -> Result<usize, String> {
        for key in keys {
            self.0.insert(*key, 7);
        }
        Ok(keys.len())
    }
}

/// Bytes in foyer: copied in, copied out.
struct FoyerBlocks(foyer_memory::Cache<BlockKey, Box<[u8]>, KeyHasher>);

impl Contender for FoyerBlocks {
    fn name(&self) -> &'static str {
        "foyer"
    }

    fn get(&self, keys: &[BlockKey], buffer: &mut Buffer) -> Result<usize, String> {
        let places = buffer.places(keys);
        Ok(places
            .map_while(|(key, place)| self.0.get(key).map(|entry| place.copy_from_slice(&entry)))
            .count())
    }

    fn put(&self, keys: &[BlockKey], buffer: &Buffer) -> Result<usize, String> {
        for (key, block) in buffer.blocks(keys) {
            self.0.insert(key, block.into());
        }
        Ok(keys.len())
    }
}

fn moka<V: Clone + Send + Sync + 'static>(capacity: u32) -> moka::sync::Cache<BlockKey, V, KeyHasher> {
    let cache = moka::sync::Cache::builder().max_capacity(u64::from(capacity));
    cache.build_with_hasher(KeyHasher::default())
}

/// Numbers of slots in moka, as in [`FoyerSlots`].
struct MokaSlots(moka::sync::Cache<BlockKey, u32, KeyHasher>);

impl Contender for MokaSlots {
    fn name(&self) -> &'static str {
        "moka"
    }

    fn get(&self, keys: &[BlockKey], _buffer: &mut Buffer) -> Result<usize, String> {
        Ok(keys.iter().map_while(|key| self.0.get(key).map(black_box)).count())
    }

    fn put(&self, keys: &[BlockKey], _buffer: &Buffer) -> Result<usize, String> {
        for key in keys {
            self.0.insert(*key, 7);
        }
        Ok(keys.len())
    }

    fn settle(&self) {
        self.0.run_pending_tasks();
    }
}

/// Bytes in moka: copied in, copied out. A value is cloned when it is got, which for an `Arc` is a counter.
struct MokaBlocks(moka::sync::Cache<BlockKey, Arc<[u8]>, KeyHasher>);

impl Contender for MokaBlocks {
    fn name(&self) -> &'static str {
        "moka"
    }

    fn get(&self, keys: &[BlockKey], buffer: &mut Buffer) -> Result<usize, String> {
        let places = buffer.places(keys);
        Ok(places
            .map_while(|(key, place)| self.0.get(key).map(|value| place.copy_from_slice(&value)))
            .count())
    }

    fn put(&self, keys: &[BlockKey], buffer: &Buffer) -> Result<usize, String> {
        for (key, block) in buffer.blocks(keys) {
            self.0.insert(key, block.into());
        }
        Ok(keys.len())
    }

    fn settle(&self) {
        self.0.run_pending_tasks();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::key;

    #[test]
    fn what_was_put_is_got() {
        for side in Side::ALL {
            for value_bytes in [0, 64] {
                let cache = side.build(64, value_bytes);
                cache.settle();
                let keys = [1, 2, 3].map(key);
                let mut buffer = Buffer::new(3, value_bytes);
                buffer.stamp(&keys);
                assert_eq!(cache.put(&keys, &buffer), Ok(3), "{}", cache.name());
                cache.settle();
                buffer.stamp(&[7, 8, 9].map(key));
                assert_eq!(cache.get(&[1, 2, 4].map(key), &mut buffer), Ok(2), "{}", cache.name());
                assert_eq!(cache.get(&keys, &mut buffer), Ok(3));
                assert_eq!(buffer.check(&keys), Ok(()));
                assert_eq!(buffer.check(&[1, 3, 3].map(key)).is_err(), value_bytes > 0);
            }
        }
    }
}
