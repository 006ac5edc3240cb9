//! Blocks that come from and go to a device's memory.
//!
//! The device's copy engine moves them between pinned slots and the segments of an engine's tensors, after what the
//! engine's stream holds when the call is made. The calls themselves wait, so that nothing is in flight when they return;
//! an engine that must not wait for its device uses the [`Store`](crate::store::Store).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::device_io::{DeviceBlocks, DeviceCopies};
use super::filling::Filling;
use super::wrong_buffer::check_segments;
use super::{BlockCache, Segment, WrongBuffer};
use crate::BlockKey;
use crate::copy_engine::CopyEngine;
use crate::store::{PinnedSlots, Pinning, SlotMemory};

/// A cache's device.
pub(super) struct Device {
    copies: DeviceCopies,
    slots: Arc<PinnedSlots>,
}

impl BlockCache {
    /// The same cache for blocks in the memory of the device that `engine` copies from and to. Its slots are pinned from now
    /// on, in the background, and can be filled as far as that [has come](Self::pinning); what an earlier process left is
    /// there at once. Open it with [`for_device`](super::BlockCacheConfig::for_device).
    ///
    /// # Errors
    /// If the system refuses a thread.
    ///
    /// # Panics
    /// If the cache has L2, or a device, already: what uses the slots comes after what pins them.
    pub fn with_device(mut self, engine: Arc<dyn CopyEngine>) -> std::io::Result<Self> {
        assert!(self.l2.is_none() && self.device.is_none(), "the device comes before L2, and once");
        let slots = Arc::new(PinnedSlots::new(Arc::clone(&self.memory), Arc::clone(&engine))?);
        let usable = slots.usable_slots();
        self.memory = Arc::clone(&slots) as Arc<dyn SlotMemory>;
        // Nothing is filled before the cache is shared.
        self.directory.withdraw(usable);
        self.usable.store(usable, Ordering::Relaxed);
        self.device = Some(Device { copies: DeviceCopies::new(engine), slots });
        Ok(self)
    }

    /// How far the slots are pinned; `None` without a device.
    pub fn pinning(&self) -> Option<Pinning> {
        self.device.as_ref().map(|device| device.slots.pinning())
    }

    /// Why copies of the device have failed so far, each reason once; the first few.
    pub fn failures(&self) -> Vec<String> {
        self.device.as_ref().map_or_else(Vec::new, |device| device.copies.failures())
    }

    /// As [`put_segments`](Self::put_segments), from device memory. What `stream` (a raw handle of the engine's) holds is
    /// waited for first, and the call returns when the bytes have left the device. Where copies fail fewer blocks are
    /// stored; why is one of the [`failures`](Self::failures).
    ///
    /// Without a stream nothing can be ordered on a device that has streams, so nothing is stored.
    ///
    /// # Errors
    /// [`WrongBuffer`] as there, or without a device; nothing is stored then.
    ///
    /// # Safety
    /// Each segment is memory that the device's copy engine can read. From the moment that `stream` has come to what it holds
    /// now, until the return, nobody writes it.
    pub unsafe fn put_device_segments(
        &self,
        keys: &[BlockKey],
        segments: &[Segment],
        stream: Option<u64>,
    ) -> Result<usize, WrongBuffer> {
        let device = self.device.as_ref().ok_or(WrongBuffer::NoDevice)?;
        let per_block = check_segments(segments, keys.len(), self.block_bytes)?;
        // SAFETY: the caller's promise is the same.
        let from = unsafe { DeviceBlocks::new(segments, per_block) };
        let mut filling = Filling::reserve(self, keys, 0);
        let arrived = device.copies.copy_in(&mut filling, &from, stream);
        let published = filling.publish(keys, |position| position < arrived);
        self.tell_l2(&published);
        Ok(published.held)
    }

    /// As [`get_segments`](Self::get_segments), to device memory. What `stream` holds is waited for first, since it may
    /// still use what is overwritten, and the call returns when the bytes have arrived. Blocks of L2 are
    /// [prefetched](Self::prefetch) before. Where copies fail there are fewer blocks, and the places of the others may hold
    /// anything; why is one of the [`failures`](Self::failures).
    ///
    /// # Errors
    /// [`WrongBuffer`] as there, or without a device; nothing is written then.
    ///
    /// # Safety
    /// Each segment is memory that the device's copy engine can write, and no two of them overlap. From the moment that
    /// `stream` has come to what it holds now, until the return, nobody else uses it.
    pub unsafe fn get_device_segments(
        &self,
        keys: &[BlockKey],
        segments: &[Segment],
        stream: Option<u64>,
    ) -> Result<usize, WrongBuffer> {
        let device = self.device.as_ref().ok_or(WrongBuffer::NoDevice)?;
        let per_block = check_segments(segments, keys.len(), self.block_bytes)?;
        // SAFETY: the caller's promise is the same.
        let to = unsafe { DeviceBlocks::new(segments, per_block) };
        let pinned = self.bring(keys);
        let arrived = device.copies.copy_out(&pinned, to, stream);
        self.used(&keys[..arrived]);
        Ok(arrived)
    }
}
