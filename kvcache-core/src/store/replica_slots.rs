//! A [`SlabReplica`] as the Store sees it: slots to load from, which another rank fills.

use super::unproven::Unproven;
use super::{SlotLabel, SlotMemory};
use crate::BlockKey;
use crate::directory::{FillId, Resident};
use crate::eviction::SlotId;
use crate::slab::SlabReplica;

/// The slots of another rank's slab.
pub struct ReplicaSlots {
    replica: SlabReplica,
    checksums: bool,
    unproven: Unproven,
}

impl ReplicaSlots {
    /// Wraps a replica. With `checksums`, every load verifies the checksum that the slab's owner has made, if it has.
    pub fn new(replica: SlabReplica, checksums: bool) -> Self {
        let unproven = Unproven::new(replica.slot_count(), &replica.warm_slots());
        Self { replica, checksums, unproven }
    }

    /// The replica.
    pub fn replica(&self) -> &SlabReplica {
        &self.replica
    }
}

impl SlotMemory for ReplicaSlots {
    fn slot_count(&self) -> u32 {
        self.replica.slot_count() as u32
    }

    fn usable_slots(&self) -> u32 {
        self.replica.usable_slots() as u32
    }

    fn is_growing(&self) -> bool {
        self.replica.is_growing()
    }

    fn slot_bytes(&self) -> usize {
        self.replica.slot_bytes()
    }

    fn slot_address(&self, slot: SlotId) -> Option<usize> {
        self.replica.slot_ptr(slot).map(|start| start.as_ptr() as usize)
    }

    fn is_replica(&self) -> bool {
        true
    }

    fn begin_fill(&self, slot: SlotId, _label: &SlotLabel) {
        self.unproven.settle(slot);
    }

    fn publish(&self, _slot: SlotId, _fill: FillId) {}

    fn forget(&self, _slot: SlotId) {}

    fn void(&self, slot: SlotId, fill: FillId) {
        if slot.index() < self.replica.slot_count() {
            self.replica.table().void(slot, fill.0);
        }
    }

    fn holds(&self, slot: SlotId, key: &BlockKey) -> bool {
        let table = self.replica.table();
        if self.replica.slot_ptr(slot).is_none() || table.ready(slot).is_none_or(|record| record.key != *key)
        {
            return false;
        }
        let due = self.unproven.settle(slot) || self.checksums;
        if !due || table.checksum(slot).is_none() {
            return true;
        }
        // SAFETY: the caller has pinned the slot for a load, on all ranks, so that nobody fills it.
        unsafe { self.replica.matches_checksum(slot) }
    }

    fn warm_slots(&self) -> Vec<Resident> {
        self.replica.warm_slots().into_iter().map(Resident::from).collect()
    }

    fn highest_fill(&self) -> FillId {
        FillId(self.replica.table().highest_fill_id())
    }

    fn epoch(&self) -> u64 {
        self.replica.table().epoch()
    }

    fn advance_epoch(&self, _epoch: u64) {}
}
