//! Both halves behind one handle: the engine-agnostic cache that Python, C and the benches use.
//!
//! A [`BlockCache`] maps the keys of a prompt's blocks to their bytes. Calls take whole prefixes, may come from any
//! number of threads, and never wait for each other's copies: the [`Directory`] is locked only to reserve or pin slots.

mod config;
mod device;
mod device_io;
mod fetching;
mod filling;
mod in_place;
mod l2;
mod lease;
mod pinned;
mod prefetch;
mod segments;
mod slot_io;
mod wrong_buffer;

#[cfg(test)]
mod device_tests;
#[cfg(test)]
mod lease_tests;
#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod segments_tests;
#[cfg(test)]
mod test_blocks;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

pub use config::{BlockCacheConfig, OpenError};
pub use in_place::{InPlaceFill, Place};
pub use l2::{L2Config, L2Stats};
pub use lease::Lease;
pub use segments::Segment;
pub use wrong_buffer::WrongBuffer;

use crate::BlockKey;
use crate::copy_engine::HostCopyEngine;
use crate::directory::{Directory, DirectoryStats};
use crate::eviction::EvictionPolicy;
use crate::remote::{Presence, RemoteStore};
use crate::store::SlotMemory;
use device::Device;
use filling::{Filling, Published};
use l2::L2;
use pinned::Pinned;
use segments::{Source, Target};
use wrong_buffer::{check_length, check_segments};

/// A cache of fixed-size blocks in one process.
///
/// With L2 a block that is not here may be on the ring: see [`with_l2`](Self::with_l2).
pub struct BlockCache {
    /// First, so that it is dropped before what it uses.
    l2: Option<L2>,
    directory: Arc<Directory>,
    memory: Arc<dyn SlotMemory>,
    copies: Option<HostCopyEngine>,
    device: Option<Device>,
    block_bytes: usize,
    /// What the directory was told last of how far the memory has come. Only a hint of whether to tell it again.
    usable: AtomicU32,
    warnings: Vec<String>,
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
        let usable = memory.usable_slots();
        directory.limit_usable(usable);
        let mut warm = memory.warm_slots();
        warm.sort_unstable_by_key(|block| (block.fill, block.slot));
        directory.start_fills_above(memory.highest_fill());
        directory.adopt(&warm);
        let usable = AtomicU32::new(usable);
        Self { l2: None, directory, memory, copies, device: None, block_bytes, usable, warnings: Vec::new() }
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
    /// block on. Returns how many leading blocks the cache holds then: fewer than asked if everything else is in use. A
    /// block that another call is filling just now counts as held.
    ///
    /// # Errors
    /// [`WrongBuffer`] if `data` is not `keys.len() * block_bytes` long; nothing is stored then.
    pub fn put(&self, keys: &[BlockKey], data: &[u8]) -> Result<usize, WrongBuffer> {
        check_length("data", data.len(), keys.len(), self.block_bytes)?;
        Ok(self.put_from(keys, Source::of(data, self.block_bytes)))
    }

    /// As [`put`](Self::put), from any places: the segments belong to the blocks in order, the same number for each, and those
    /// of a block are its bytes one after the other.
    ///
    /// # Errors
    /// [`WrongBuffer`] if there are more or fewer segments for some blocks than for others, or those of a block are not
    /// `block_bytes` long together; nothing is stored then.
    ///
    /// # Safety
    /// Each segment is readable memory of this process, which nobody writes until the return.
    pub unsafe fn put_segments(&self, keys: &[BlockKey], segments: &[Segment]) -> Result<usize, WrongBuffer> {
        let per_block = check_segments(segments, keys.len(), self.block_bytes)?;
        // SAFETY: the caller's promise is the same.
        Ok(self.put_from(keys, unsafe { Source::scattered(segments, per_block) }))
    }

    fn put_from(&self, keys: &[BlockKey], source: Source<'_>) -> usize {
        let published = self.put_here(keys, source);
        self.tell_l2(&published);
        published.held
    }

    /// Stores blocks in L1.
    fn put_here(&self, keys: &[BlockKey], source: Source<'_>) -> Published {
        let filling = Filling::reserve(self, keys, 0);
        let places = filling.reserved().iter().map(|reserved| (reserved.index, reserved.slot));
        let copied = slot_io::copy_in(&*self.memory, self.copies.as_ref(), places, source);
        filling.publish(keys, |_| copied)
    }

    /// Blocks that were stored, and those beside them that were used, may be such as L2 gets.
    fn tell_l2(&self, published: &Published) {
        if let Some(l2) = &self.l2 {
            l2.used(&published.hits);
            l2.stored(&published.stored);
        }
    }

    /// Blocks were read by a caller.
    fn used(&self, keys: &[BlockKey]) {
        self.directory.touch(keys);
        if let Some(l2) = &self.l2 {
            l2.used(keys);
        }
    }

    /// Copies the leading blocks of `keys` into `out`, one after the other, and returns their number. What is not here is
    /// fetched from L2, verified, and stored here as well. The rest of `out` is left as it was, unless L2 was asked for it.
    ///
    /// # Errors
    /// [`WrongBuffer`] if `out` is not `keys.len() * block_bytes` long.
    pub fn get(&self, keys: &[BlockKey], out: &mut [u8]) -> Result<usize, WrongBuffer> {
        check_length("out", out.len(), keys.len(), self.block_bytes)?;
        Ok(self.get_into(keys, Target::of(out, self.block_bytes)))
    }

    /// As [`get`](Self::get), to any places: see [`put_segments`](Self::put_segments). Blocks of several segments that come
    /// from L2 are copied once more than others, through a buffer of 32 MiB or one block.
    ///
    /// # Errors
    /// [`WrongBuffer`] as for [`put_segments`](Self::put_segments); nothing is written then.
    ///
    /// # Safety
    /// Each segment is writable memory of this process, which nobody else uses until the return, and no two of them
    /// overlap. What is in it need not have been written before.
    pub unsafe fn get_segments(&self, keys: &[BlockKey], segments: &[Segment]) -> Result<usize, WrongBuffer> {
        let per_block = check_segments(segments, keys.len(), self.block_bytes)?;
        // SAFETY: the caller's promise is the same.
        Ok(self.get_into(keys, unsafe { Target::scattered(segments, per_block, self.block_bytes) }))
    }

    fn get_into(&self, keys: &[BlockKey], mut target: Target<'_>) -> usize {
        // Before L1 is looked at: what is stored there at the end was there, or in this space, after it.
        let space = self.l2.as_ref().map(L2::space);
        let here = self.get_here(keys, 0, &mut target);
        let (Some(l2), Some(space)) = (&self.l2, space) else { return here };
        l2.used(&keys[..here]);
        if here == keys.len() {
            return here;
        }
        let ready = self.fetch(l2, space, keys, here, &mut target);
        if ready > here {
            // Their heads are here already; what others have stored meanwhile is left as it is.
            l2.unless_cleared(space, || {
                self.put_here(&keys[..ready], target.as_source());
            });
            l2.filled();
        }
        ready
    }

    /// Copies the leading blocks of `keys` that are in L1 to the places from `first` on.
    fn get_here(&self, keys: &[BlockKey], first: usize, target: &mut Target<'_>) -> usize {
        let pinned = Pinned::leading(self, keys);
        let held = pinned.slots().len();
        self.directory.touch(&keys[..held]);
        let copied = slot_io::copy_out(&*self.memory, self.copies.as_ref(), pinned.slots(), first, target);
        if copied { held } else { 0 }
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

    /// Slots whose memory has been taken since the last call can be filled.
    fn take_up_growth(&self) {
        let usable = self.memory.usable_slots();
        if self.usable.swap(usable, Ordering::Relaxed) != usable {
            self.directory.limit_usable(usable);
        }
    }
}
