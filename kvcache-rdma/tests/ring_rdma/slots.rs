//! Slots of a slab, as a store has them.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ops::Range;
use std::sync::Arc;

use kvcache_core::BlockKey;
use kvcache_core::directory::{FillId, Resident};
use kvcache_core::eviction::SlotId;
use kvcache_core::store::{SlotLabel, SlotMemory};

/// Memory in equal slots, in a row.
pub(crate) struct Slots {
    base: usize,
    layout: Layout,
    count: usize,
    bytes: usize,
}

impl Slots {
    pub(crate) fn new(count: usize, bytes: usize) -> Arc<Self> {
        let layout = Layout::from_size_align(count * bytes, 4096).unwrap();
        // SAFETY: not empty.
        let base = unsafe { alloc_zeroed(layout) } as usize;
        assert_ne!(base, 0);
        Arc::new(Self { base, layout, count, bytes })
    }

    pub(crate) fn address(&self, slot: usize) -> usize {
        assert!(slot < self.count);
        self.base + slot * self.bytes
    }

    pub(crate) fn write(&self, slot: usize, bytes: &[u8]) {
        assert!(bytes.len() <= self.bytes);
        // SAFETY: within the slot; nothing is in flight for it.
        unsafe { std::ptr::copy(bytes.as_ptr(), self.address(slot) as *mut u8, bytes.len()) };
    }

    pub(crate) fn fill(&self, slots: Range<usize>, byte: u8) {
        slots.for_each(|slot| self.write(slot, &vec![byte; self.bytes]));
    }

    pub(crate) fn content(&self, slot: usize) -> Vec<u8> {
        // SAFETY: within the slot; nothing is in flight for it.
        unsafe { std::slice::from_raw_parts(self.address(slot) as *const u8, self.bytes) }.to_vec()
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        // SAFETY: allocated so; whoever uses the slots holds a share of them.
        unsafe { dealloc(self.base as *mut u8, self.layout) }
    }
}

impl SlotMemory for Slots {
    fn slot_count(&self) -> u32 {
        self.count as u32
    }

    fn usable_slots(&self) -> u32 {
        self.count as u32
    }

    fn slot_bytes(&self) -> usize {
        self.bytes
    }

    fn slot_address(&self, slot: SlotId) -> Option<usize> {
        Some(self.address(slot.0 as usize))
    }

    fn begin_fill(&self, _slot: SlotId, _label: &SlotLabel) {}

    fn publish(&self, _slot: SlotId, _fill: FillId) {}

    fn forget(&self, _slot: SlotId) {}

    fn void(&self, _slot: SlotId, _fill: FillId) {}

    fn holds(&self, _slot: SlotId, _key: &BlockKey) -> bool {
        false
    }

    fn warm_slots(&self) -> Vec<Resident> {
        Vec::new()
    }

    fn highest_fill(&self) -> FillId {
        FillId::default()
    }

    fn epoch(&self) -> u64 {
        0
    }

    fn advance_epoch(&self, _epoch: u64) {}
}
