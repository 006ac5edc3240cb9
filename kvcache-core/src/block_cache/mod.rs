//! Both halves behind one handle: the engine-agnostic cache that Python, C and the benches use.
//!
//! A [`BlockCache`] maps the keys of a prompt's blocks to their bytes. Calls take whole prefixes, may come from any
//! number of threads, and never wait for each other's copies: the [`Directory`] is locked only to reserve or pin slots.

mod config;
mod l2;
mod slot_io;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

pub use config::{BlockCacheConfig, OpenError};
pub use l2::{L2Config, L2Stats};

use crate::BlockKey;
use crate::copy_engine::HostCopyEngine;
use crate::directory::{Directory, DirectoryStats, FillId, Reserved};
use crate::eviction::{EvictionPolicy, SlotId};
use crate::plan::EngineHash;
use crate::remote::{Presence, RemoteSpace, RemoteStore};
use crate::store::{SlotLabel, SlotMemory};
use l2::L2;

/// A cache of fixed-size blocks in one process.
///
/// With L2 a block that is not here may be on the ring: see [`with_l2`](Self::with_l2).
pub struct BlockCache {
    /// First, so that it is dropped before what it uses.
    l2: Option<L2>,
    directory: Arc<Directory>,
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
    /// What was done with L2, if there is one.
    pub l2: Option<L2Stats>,
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
        let directory = Arc::new(Directory::new(memory.slot_count(), policy));
        directory.limit_usable(memory.usable_slots());
        let mut warm = memory.warm_slots();
        warm.sort_unstable_by_key(|block| (block.fill, block.slot));
        directory.start_fills_above(memory.highest_fill());
        directory.adopt(&warm);
        Self { l2: None, directory, memory, copies, block_bytes, warnings: Vec::new() }
    }

    /// The same cache with L2: blocks that are not here are asked for there, and blocks stored here are stored there too, as
    /// [`L2Config::ingestion`] says, in the background. A fault of L2 is a miss.
    ///
    /// # Errors
    /// If the system refuses a thread.
    pub fn with_l2(
        mut self,
        config: L2Config,
        store: Arc<dyn RemoteStore>,
        presence: Box<dyn Presence>,
    ) -> std::io::Result<Self> {
        let (directory, memory) = (self.directory.clone(), self.memory.clone());
        self.l2 = Some(L2::open(config, store, presence, directory, memory, self.block_bytes)?);
        Ok(self)
    }

    /// The slots that blocks lie in, for a remote store to register.
    pub fn memory(&self) -> &Arc<dyn SlotMemory> {
        &self.memory
    }

    /// Bytes of a block.
    pub fn block_bytes(&self) -> usize {
        self.block_bytes
    }

    /// What the user should know of how the cache was opened, one line each.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The number of leading `keys` whose blocks are here, or in L2. Cost: about 0.05 µs a key; where L2 is asked, a round
    /// trip, and [`L2Config::match_timeout`] at most.
    pub fn match_prefix(&self, keys: &[BlockKey]) -> usize {
        let here = self.directory.match_prefix(keys).ready;
        match &self.l2 {
            Some(l2) if here < keys.len() => here + l2.match_prefix(&keys[here..]),
            _ => here,
        }
    }

    /// Stores the blocks of `keys` from `data`, which holds them one after the other. `keys` is a prefix from its first
    /// block on. Returns how many leading blocks the cache holds then: fewer than asked if everything else is in use.
    ///
    /// # Errors
    /// [`WrongBuffer`] if `data` is not `keys.len() * block_bytes` long; nothing is stored then.
    pub fn put(&self, keys: &[BlockKey], data: &[u8]) -> Result<usize, WrongBuffer> {
        self.check("data", data.len(), keys.len())?;
        let (held, stored, hits) = self.put_here(keys, data);
        if let Some(l2) = &self.l2 {
            l2.used(&hits);
            l2.stored(&stored);
        }
        Ok(held)
    }

    /// Stores blocks in L1: how many leading ones it holds then, those that were stored, and those that were there.
    fn put_here(&self, keys: &[BlockKey], data: &[u8]) -> (usize, Vec<BlockKey>, Vec<BlockKey>) {
        if self.memory.usable_slots() < self.memory.slot_count() {
            self.directory.limit_usable(self.memory.usable_slots());
        }
        // Nobody else waits for a share: whoever puts more than fits wants it all.
        let reservation = self.directory.begin_offload(keys, 0, usize::MAX);
        let held = reservation.refused_from.unwrap_or(keys.len());
        let hits: Vec<BlockKey> = reservation.hits.iter().map(|index| keys[*index]).collect();
        let mut filling =
            Filling { cache: self, reserved: reservation.reserved, hits: hits.clone(), copied: false };
        if filling.reserved.is_empty() {
            return (held, Vec::new(), hits);
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
        if !filling.copied {
            return (filling.reserved[0].index, Vec::new(), hits);
        }
        let stored = filling.reserved.iter().map(|reserved| keys[reserved.index]).collect();
        (held, stored, hits)
    }

    /// Copies the leading blocks of `keys` into `out`, one after the other, and returns their number. What is not here is
    /// fetched from L2, verified, and stored here as well. The rest of `out` is left as it was, unless L2 was asked for it.
    ///
    /// # Errors
    /// [`WrongBuffer`] if `out` is not `keys.len() * block_bytes` long.
    pub fn get(&self, keys: &[BlockKey], out: &mut [u8]) -> Result<usize, WrongBuffer> {
        self.check("out", out.len(), keys.len())?;
        // Before L1 is looked at: what is stored there at the end was there, or in this space, after it.
        let space = self.l2.as_ref().map(L2::space);
        let here = self.get_here(keys, out);
        let (Some(l2), Some(space)) = (&self.l2, space) else { return Ok(here) };
        l2.used(&keys[..here]);
        if here == keys.len() {
            return Ok(here);
        }
        let rest = &mut out[here * self.block_bytes..];
        let fetched = self.fetch(l2, space, &keys[here..], rest);
        if fetched > 0 {
            // Their heads are here already; what others have stored meanwhile is left as it is.
            let held = (here + fetched) * self.block_bytes;
            l2.unless_cleared(space, || {
                self.put_here(&keys[..here + fetched], &out[..held]);
            });
            l2.filled();
        }
        Ok(here + fetched)
    }

    /// Fetches the leading blocks of `keys`, of which the first is not in L1, into `out`.
    fn fetch(&self, l2: &L2, space: RemoteSpace, keys: &[BlockKey], out: &mut [u8]) -> usize {
        let absent = |key: &BlockKey| self.directory.slot_of(key).is_none();
        let wanted: Vec<bool> = keys.iter().map(absent).collect();
        let blocks = out.chunks_exact_mut(self.block_bytes).zip(&wanted);
        let places: Vec<&mut [u8]> = blocks.filter(|(_, wanted)| **wanted).map(|(block, _)| block).collect();
        let names: Vec<BlockKey> =
            keys.iter().zip(&wanted).filter(|(_, wanted)| **wanted).map(|(key, _)| *key).collect();
        let mut came = l2.fetch(space, &names, places).into_iter();
        let mut ready = 0;
        while ready < keys.len() {
            let good = if wanted[ready] {
                came.next() == Some(true)
            } else {
                let block = &mut out[ready * self.block_bytes..(ready + 1) * self.block_bytes];
                self.get_here(&keys[ready..=ready], block) == 1
            };
            if !good {
                break;
            }
            ready += 1;
        }
        ready
    }

    /// Copies the leading blocks that are in L1.
    fn get_here(&self, keys: &[BlockKey], out: &mut [u8]) -> usize {
        let mut pinned = Pinned { cache: self, slots: self.directory.begin_load(keys) };
        let held =
            pinned.slots.iter().zip(keys).take_while(|(slot, key)| self.memory.holds(**slot, key)).count();
        if held < pinned.slots.len() {
            // What an earlier process left is verified when it is first read; a damaged block makes room for a good one.
            self.delete_here(&keys[held..=held]);
            let damaged = pinned.slots.split_off(held);
            self.directory.end_load(&damaged);
        }
        self.directory.touch(&keys[..held]);
        let copied =
            slot_io::copy_out(&*self.memory, self.copies.as_ref(), &pinned.slots, out, self.block_bytes);
        if copied { pinned.slots.len() } else { 0 }
    }

    /// Removes the blocks of `keys`, here, in L2 and for a later process; returns how many there were.
    pub fn delete(&self, keys: &[BlockKey]) -> usize {
        let here = self.delete_here(keys);
        let Some(l2) = &self.l2 else { return here.len() };
        let there = l2.delete(keys);
        keys.iter().zip(there).filter(|(key, there)| *there || here.contains(*key)).count()
    }

    fn delete_here(&self, keys: &[BlockKey]) -> Vec<BlockKey> {
        let deleted = self.directory.delete_with(keys, |slot| self.memory.forget(slot));
        deleted.into_iter().map(|(_, key)| key).collect()
    }

    /// Waits until no block is on its way to L2, for `timeout` at most; whether none is.
    pub fn flush(&self, timeout: Duration) -> bool {
        self.l2.as_ref().is_none_or(|l2| l2.flush(timeout))
    }

    /// Removes everything, here and for a later process. What is in L2 stays there for others; this cache neither finds it
    /// nor shares anything with them from now on.
    pub fn clear(&self) {
        let clear_here = || {
            // In this order: a block that is ready before the clearing has the old epoch in its label, and one that is being
            // filled meanwhile is cancelled and never labelled ready.
            self.directory.clear();
            self.memory.advance_epoch(self.memory.epoch() + 1);
        };
        match &self.l2 {
            Some(l2) => l2.clear(clear_here),
            None => clear_here(),
        }
    }

    /// A snapshot.
    pub fn stats(&self) -> BlockCacheStats {
        BlockCacheStats {
            directory: self.directory.stats(),
            block_bytes: self.block_bytes,
            slab_bytes: u64::from(self.memory.slot_count()) * self.memory.slot_bytes() as u64,
            l2: self.l2.as_ref().map(L2::stats),
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
