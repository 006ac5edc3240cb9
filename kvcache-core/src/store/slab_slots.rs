//! A [`Slab`] as the Store sees it: labels are its slot table, and what a restart left is verified where it can be.

use std::sync::atomic::{AtomicBool, Ordering};

use super::unproven::Unproven;
use super::{SlotLabel, SlotMemory};
use crate::BlockKey;
use crate::directory::{FillId, Resident};
use crate::eviction::SlotId;
use crate::slab::{Slab, SlotRecord, Verification, WarmSlot};

/// The slots of a slab.
pub struct SlabSlots {
    slab: Slab,
    checksums: bool,
    unproven: Unproven,
    /// Whether any slot has been filled.
    filled: AtomicBool,
}

impl SlabSlots {
    /// Wraps a slab. With `checksums`, every stored slot gets one and every load verifies it: about 50 µs a MiB each.
    pub fn new(slab: Slab, checksums: bool) -> Self {
        let unproven = Unproven::new(slab.slot_count(), &slab.warm_slots());
        Self { slab, checksums, unproven, filled: AtomicBool::new(false) }
    }

    /// The slab.
    pub fn slab(&self) -> &Slab {
        &self.slab
    }
}

impl SlotMemory for SlabSlots {
    fn slot_count(&self) -> u32 {
        self.slab.slot_count() as u32
    }

    fn usable_slots(&self) -> u32 {
        self.slab.usable_slots() as u32
    }

    fn populated_slots(&self) -> u32 {
        self.slab.populated_slots() as u32
    }

    fn is_growing(&self) -> bool {
        self.slab.is_reserving()
    }

    fn slot_bytes(&self) -> usize {
        self.slab.slot_bytes()
    }

    fn slot_address(&self, slot: SlotId) -> Option<usize> {
        self.slab.slot_ptr(slot).map(|start| start.as_ptr() as usize)
    }

    fn begin_fill(&self, slot: SlotId, label: &SlotLabel) {
        // The scheduler side plans nothing before every rank has reported its slots.
        if !self.filled.swap(true, Ordering::Relaxed) {
            self.slab.all_ranks_are_in();
        }
        let mut engine_hash = [0; 32];
        let hash = label.engine_hash.as_bytes();
        engine_hash[..hash.len()].copy_from_slice(hash);
        let record =
            SlotRecord { key: label.key, parent: label.parent, engine_hash, fill_id: label.fill.0, info: 0 };
        self.unproven.settle(slot);
        self.slab.table().begin_fill(slot, &record);
    }

    fn publish(&self, slot: SlotId, fill: FillId) {
        if self.slab.table().publish(slot, fill.0) && self.checksums {
            // SAFETY: the fill's end has not been reported yet, so the slot is still its own and nobody writes it.
            if let Some(checksum) = unsafe { self.slab.checksum_of(slot) } {
                self.slab.table().set_checksum(slot, fill.0, checksum);
            }
        }
    }

    fn forget(&self, slot: SlotId) {
        if slot.index() < self.slab.slot_count() {
            self.slab.table().clear(slot);
        }
    }

    fn void(&self, slot: SlotId, _fill: FillId) {
        // Whatever it says: the slot belongs to that fill.
        self.forget(slot);
    }

    fn holds(&self, slot: SlotId, key: &BlockKey) -> bool {
        if self.slab.slot_ptr(slot).is_none()
            || self.slab.table().ready(slot).is_none_or(|record| record.key != *key)
        {
            return false;
        }
        let due = self.unproven.settle(slot);
        // SAFETY: the caller has pinned the slot for a load, so that nobody fills it.
        !(due || self.checksums) || unsafe { self.slab.verify(slot) } != Verification::Mismatch
    }

    fn may_demote(&self, slot: SlotId, key: &BlockKey) -> bool {
        // With checksums on, the user pays for every byte to be right.
        let is_due = slot.index() < self.slab.slot_count() && self.unproven.is_due(slot);
        !is_due && self.holds(slot, key)
    }

    fn warm_slots(&self) -> Vec<Resident> {
        self.slab.warm_slots().into_iter().map(Resident::from).collect()
    }

    fn highest_fill(&self) -> FillId {
        FillId(self.slab.table().highest_fill_id())
    }

    fn epoch(&self) -> u64 {
        self.slab.table().epoch()
    }

    fn advance_epoch(&self, epoch: u64) {
        self.slab.table().raise_epoch(epoch);
    }
}

impl From<WarmSlot> for Resident {
    fn from(WarmSlot { slot, record, .. }: WarmSlot) -> Self {
        Resident { slot, key: record.key, parent: record.parent, fill: FillId(record.fill_id) }
    }
}
