//! Both halves behind one handle: the engine-agnostic cache that Python, C and the benches use.
//!
//! A [`BlockCache`] maps the keys of a prompt's blocks to their bytes. Calls take whole prefixes, may come from any
//! number of threads, and never wait for each other's copies: the [`Directory`] is locked only to reserve or pin slots.

mod config;
mod slot_io;

#[cfg(test)]
mod tests;

use std::sync::Arc;

pub use config::{BlockCacheConfig, OpenError};

use crate::BlockKey;
use crate::copy_engine::HostCopyEngine;
use crate::directory::{Directory, DirectoryStats, FillId, Reserved};
use crate::eviction::{EvictionPolicy, SlotId};
use crate::plan::EngineHash;
use crate::store::{SlotLabel, SlotMemory};

/// A cache of fixed-size blocks in one process.
pub struct BlockCache {
    directory: Directory,
    memory: Arc<dyn SlotMemory>,
    copies: Option<HostCopyEngine>,
    block_bytes: usize,
    warnings: Vec<String>,
}

/// A buffer that does not fit the keys.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "{what} has {bytes} bytes, but {blocks} keys of blocks of {block_bytes} bytes need {}: pass a buffer of exactly \
     that size", .blocks.saturating_mul(*.block_bytes)
)]
pub struct WrongBuffer {
    what: &'static str,
    bytes: usize,
    blocks: usize,
    block_bytes: usize,
}

/// A snapshot of a cache: where every byte of it is, and what it has done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockCacheStats {
    /// Slots and their states.
    pub directory: DirectoryStats,
    /// Bytes of a block.
    pub block_bytes: usize,
    /// Bytes of all slots, used or not.
    pub slab_bytes: u64,
}

impl BlockCache {
    /// A cache over `memory`. Takes over what an earlier process left there. With `copies`, the copies of a call are
    /// shared between its caller and the engine's threads; without, the caller copies alone.
    ///
    /// # Panics
    /// If the slots are shorter than a block: an error of the caller, not of input.
    pub fn new(
        memory: Arc<dyn SlotMemory>,
        policy: Box<dyn EvictionPolicy>,
        copies: Option<HostCopyEngine>,
        block_bytes: usize,
    ) -> Self {
        assert!(memory.slot_bytes() >= block_bytes, "slots are shorter than the blocks");
        let directory = Directory::new(memory.slot_count(), policy);
        directory.limit_usable(memory.usable_slots());
        let mut warm = memory.warm_slots();
        warm.sort_unstable_by_key(|block| (block.fill, block.slot));
        directory.start_fills_above(memory.highest_fill());
        directory.adopt(&warm);
        Self { directory, memory, copies, block_bytes, warnings: Vec::new() }
    }

    /// Bytes of a block.
    pub fn block_bytes(&self) -> usize {
        self.block_bytes
    }

    /// What the user should know of how the cache was opened, one line each.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The number of leading `keys` whose blocks are here. Cost: about 0.05 µs a key.
    pub fn match_prefix(&self, keys: &[BlockKey]) -> usize {
        self.directory.match_prefix(keys).ready
    }

    /// Stores the blocks of `keys` from `data`, which holds them one after the other. `keys` is a prefix from its first
    /// block on. Returns how many leading blocks the cache holds then: fewer than asked if everything else is in use.
    ///
    /// # Errors
    /// [`WrongBuffer`] if `data` is not `keys.len() * block_bytes` long; nothing is stored then.
    pub fn put(&self, keys: &[BlockKey], data: &[u8]) -> Result<usize, WrongBuffer> {
        self.check("data", data.len(), keys.len())?;
        if self.memory.usable_slots() < self.memory.slot_count() {
            self.directory.limit_usable(self.memory.usable_slots());
        }
        // Nobody else waits for a share: whoever puts more than fits wants it all.
        let reservation = self.directory.begin_offload(keys, 0, usize::MAX);
        let held = reservation.refused_from.unwrap_or(keys.len());
        let hits = reservation.hits.iter().map(|index| keys[*index]).collect();
        let mut filling = Filling { cache: self, reserved: reservation.reserved, hits, copied: false };
        if filling.reserved.is_empty() {
            return Ok(held);
        }
        let epoch = self.memory.epoch();
        for reserved in &filling.reserved {
            let parent = reserved.index.checked_sub(1).map_or(BlockKey::default(), |parent| keys[parent]);
            let label = SlotLabel {
                key: keys[reserved.index],
                parent,
                engine_hash: EngineHash::default(),
                fill: reserved.fill,
                epoch,
            };
            self.memory.begin_fill(reserved.slot, &label);
        }
        let places = filling.reserved.iter().map(|reserved| (reserved.index, reserved.slot));
        filling.copied =
            slot_io::copy_in(&*self.memory, self.copies.as_ref(), places, data, self.block_bytes);
        Ok(if filling.copied { held } else { filling.reserved[0].index })
    }

    /// Copies the leading blocks of `keys` that are here into `out`, one after the other, and returns their number. The
    /// rest of `out` is left as it was.
    ///
    /// # Errors
    /// [`WrongBuffer`] if `out` is not `keys.len() * block_bytes` long.
    pub fn get(&self, keys: &[BlockKey], out: &mut [u8]) -> Result<usize, WrongBuffer> {
        self.check("out", out.len(), keys.len())?;
        let mut pinned = Pinned { cache: self, slots: self.directory.begin_load(keys) };
        let held =
            pinned.slots.iter().zip(keys).take_while(|(slot, key)| self.memory.holds(**slot, key)).count();
        if held < pinned.slots.len() {
            // What an earlier process left is verified when it is first read; a damaged block makes room for a good one.
            self.delete(&keys[held..=held]);
            let damaged = pinned.slots.split_off(held);
            self.directory.end_load(&damaged);
        }
        self.directory.touch(&keys[..held]);
        let copied =
            slot_io::copy_out(&*self.memory, self.copies.as_ref(), &pinned.slots, out, self.block_bytes);
        Ok(if copied { pinned.slots.len() } else { 0 })
    }

    /// Removes the blocks of `keys`, here and for a later process; returns how many there were.
    pub fn delete(&self, keys: &[BlockKey]) -> usize {
        self.directory.delete_with(keys, |slot| self.memory.forget(slot)).len()
    }

    /// Removes everything, here and for a later process.
    pub fn clear(&self) {
        // In this order: a block that is ready before the clearing has the old epoch in its label, and one that is being
        // filled meanwhile is cancelled and never labelled ready.
        self.directory.clear();
        self.memory.advance_epoch(self.memory.epoch() + 1);
    }

    /// A snapshot.
    pub fn stats(&self) -> BlockCacheStats {
        BlockCacheStats {
            directory: self.directory.stats(),
            block_bytes: self.block_bytes,
            slab_bytes: u64::from(self.memory.slot_count()) * self.memory.slot_bytes() as u64,
        }
    }

    fn check(&self, what: &'static str, bytes: usize, blocks: usize) -> Result<(), WrongBuffer> {
        if Some(bytes) == blocks.checked_mul(self.block_bytes) {
            return Ok(());
        }
        Err(WrongBuffer { what, bytes, blocks, block_bytes: self.block_bytes })
    }
}

/// Blocks on their way in. Dropping it ends the fills, as failed unless everything was copied.
struct Filling<'a> {
    cache: &'a BlockCache,
    reserved: Vec<Reserved>,
    /// Blocks of the same prefix that were there: used after the others are stored, so that heads outlive tails.
    hits: Vec<BlockKey>,
    copied: bool,
}

impl Drop for Filling<'_> {
    fn drop(&mut self) {
        let fills: Vec<(SlotId, FillId)> =
            self.reserved.iter().map(|reserved| (reserved.slot, reserved.fill)).collect();
        // A block that was deleted meanwhile keeps its label of being filled, which no restart serves.
        let memory = &self.cache.memory;
        self.cache
            .directory
            .complete_fills_with(&fills, self.copied, |slot, fill| memory.publish(slot, fill));
        self.cache.directory.touch(&self.hits);
    }
}

/// Blocks being read. Dropping it lets them be evicted again.
struct Pinned<'a> {
    cache: &'a BlockCache,
    slots: Vec<SlotId>,
}

impl Drop for Pinned<'_> {
    fn drop(&mut self) {
        self.cache.directory.end_load(&self.slots);
    }
}
