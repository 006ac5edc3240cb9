//! Keys and bytes for tests of block caches.

use std::sync::Arc;

use super::BlockCache;
use crate::BlockKey;
use crate::eviction::Lru;
use crate::fakes::fake_memory::{FakeMemory, MemoryBugs, Slab};
use crate::fakes::random::mix;

fn key(number: u64) -> BlockKey {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&mix(number + 1).to_le_bytes());
    bytes[8..].copy_from_slice(&number.to_le_bytes());
    BlockKey(bytes)
}

pub(super) fn chain(document: u64, blocks: u64) -> Vec<BlockKey> {
    (0..blocks).map(|block| key(document * 100 + block)).collect()
}

/// Bytes that say which key they belong to, at every position.
pub(super) fn pattern(keys: &[BlockKey], block_bytes: usize) -> Vec<u8> {
    keys.iter()
        .flat_map(|key| {
            (0..block_bytes / 8).flat_map(|word| mix(key.short_hash() ^ word as u64).to_le_bytes())
        })
        .collect()
}

pub(super) fn cache_over(slab: &Arc<Slab>, block_bytes: usize) -> BlockCache {
    let slots = slab.slot_count() as u32;
    let memory = FakeMemory::new(slab, slots, MemoryBugs::default());
    BlockCache::new(memory, Box::new(Lru::new(slots)), None, block_bytes)
}
