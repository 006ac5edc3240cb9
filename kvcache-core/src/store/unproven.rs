//! Slots that were found at the start and have not been used since: a checksum, if there is one, is due.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::eviction::SlotId;
use crate::slab::WarmSlot;

pub(super) struct Unproven(Vec<AtomicBool>);

impl Unproven {
    pub(super) fn new(slot_count: usize, warm: &[WarmSlot]) -> Self {
        let slots: Vec<AtomicBool> = (0..slot_count).map(|_| AtomicBool::new(false)).collect();
        for warm in warm {
            slots[warm.slot.index()].store(true, Ordering::Relaxed);
        }
        Self(slots)
    }

    /// Whether the slot is unproven.
    pub(super) fn is_due(&self, slot: SlotId) -> bool {
        self.0[slot.index()].load(Ordering::Relaxed)
    }

    /// The slot is about to be proven, or overwritten; whether it was unproven.
    pub(super) fn settle(&self, slot: SlotId) -> bool {
        self.0[slot.index()].swap(false, Ordering::Relaxed)
    }
}
