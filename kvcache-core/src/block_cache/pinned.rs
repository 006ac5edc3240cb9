//! Blocks in L1 that are being read.

use std::ops::Deref;

use super::BlockCache;
use crate::BlockKey;
use crate::eviction::SlotId;

/// The leading blocks of a prefix, which stay where they are until this is dropped.
pub(super) struct Pinned<C: Deref<Target = BlockCache>> {
    cache: C,
    slots: Vec<SlotId>,
}

impl<C: Deref<Target = BlockCache>> Pinned<C> {
    /// Pins the leading blocks that L1 holds. What an earlier process left is verified when it is first read; a damaged
    /// block ends the prefix, and makes room for a good one.
    pub(super) fn leading(cache: C, keys: &[BlockKey]) -> Self {
        let mut pinned = Self { slots: cache.directory.begin_load(keys), cache };
        let memory = &pinned.cache.memory;
        let held = pinned.slots.iter().zip(keys).take_while(|(slot, key)| memory.holds(**slot, key)).count();
        if held < pinned.slots.len() {
            pinned.cache.delete_here(&keys[held..=held]);
            pinned.truncate(held);
        }
        pinned
    }

    pub(super) fn cache(&self) -> &BlockCache {
        &self.cache
    }

    pub(super) fn slots(&self) -> &[SlotId] {
        &self.slots
    }

    /// Lets go of all but the first `blocks`.
    pub(super) fn truncate(&mut self, blocks: usize) {
        let rest = self.slots.split_off(blocks.min(self.slots.len()));
        self.cache.directory.end_load(&rest);
    }

    /// Takes over the blocks that follow.
    pub(super) fn append<D: Deref<Target = BlockCache>>(&mut self, mut rest: Pinned<D>) {
        self.slots.append(&mut rest.slots);
    }
}

impl<C: Deref<Target = BlockCache>> Drop for Pinned<C> {
    fn drop(&mut self) {
        self.cache.directory.end_load(&self.slots);
    }
}
