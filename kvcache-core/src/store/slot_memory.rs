//! What the Store needs of the memory behind the slots.

use crate::BlockKey;
use crate::directory::{FillId, Resident};
use crate::eviction::SlotId;
use crate::plan::EngineHash;

/// What is written beside a slot before its bytes are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SlotLabel {
    /// The key of the block.
    pub key: BlockKey,
    /// The key of the block before it; all zero for the first.
    pub parent: BlockKey,
    /// The engine's hash of its last engine block.
    pub engine_hash: EngineHash,
    /// The fill.
    pub fill: FillId,
    /// The epoch: a block of an older one is never served.
    pub epoch: u64,
}

/// Slots of equal size at stable addresses, each with a label that says what it holds.
///
/// The label is what makes a restart safe: it says *filling* before the first byte is copied and *ready* after the last,
/// so whatever kills the process, a ready label means complete bytes.
pub trait SlotMemory: Send + Sync {
    /// Slots in all.
    fn slot_count(&self) -> u32;

    /// Slots that may be filled: those below this index, which have memory that is ready for it. Grows, never shrinks.
    fn usable_slots(&self) -> u32;

    /// Slots whose memory is taken already: those below this index, at most the usable ones. Pinning them takes no more. Grows,
    /// never shrinks. Fewer than all slots when nothing [grows](Self::is_growing) any more: memory is short.
    fn populated_slots(&self) -> u32 {
        self.usable_slots()
    }

    /// Whether more slots may become usable, or populated.
    fn is_growing(&self) -> bool {
        self.usable_slots() < self.slot_count()
    }

    /// Bytes of a slot.
    fn slot_bytes(&self) -> usize;

    /// Address of a slot with memory: of a usable one, and of any that is [warm](Self::warm_slots).
    fn slot_address(&self, slot: SlotId) -> Option<usize>;

    /// Whether another rank fills the slots, so that this one only loads from them: its calls of
    /// [`begin_fill`](Self::begin_fill), [`publish`](Self::publish), [`forget`](Self::forget) and
    /// [`advance_epoch`](Self::advance_epoch) are then for its own books at most.
    fn is_replica(&self) -> bool {
        false
    }

    /// Labels a slot as being filled. What it held is gone.
    fn begin_fill(&self, slot: SlotId, label: &SlotLabel);

    /// Labels a slot as ready, if `fill` is still its fill. Everything written to it before is visible to whoever sees
    /// the label.
    fn publish(&self, slot: SlotId, fill: FillId);

    /// Labels a slot as empty.
    fn forget(&self, slot: SlotId);

    /// This rank knows that a fill which has not ended on all ranks is worthless: nobody may find it, now or after a
    /// restart.
    fn void(&self, slot: SlotId, fill: FillId);

    /// Whether the slot is ready with this key, and its bytes verified where that is due.
    fn holds(&self, slot: SlotId, key: &BlockKey) -> bool;

    /// Whether the slot is ready with this key and known to hold what was stored. What was found after a restart is only
    /// known to once it was [loaded](Self::holds); this does not verify, which would take the engine's time.
    fn may_demote(&self, slot: SlotId, key: &BlockKey) -> bool {
        self.holds(slot, key)
    }

    /// Complete blocks of this namespace and epoch that an earlier process left.
    fn warm_slots(&self) -> Vec<Resident>;

    /// The highest fill that any slot has seen.
    fn highest_fill(&self) -> FillId;

    /// The epoch that the memory was last used in.
    fn epoch(&self) -> u64;

    /// Moves to a newer epoch: blocks of older ones are not warm any more.
    fn advance_epoch(&self, epoch: u64);
}
