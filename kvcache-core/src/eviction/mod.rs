//! Chooses which block leaves when room is needed.
//!
//! A policy orders slots; it owns no memory and knows nothing of bytes. The Directory tells it what happened
//! ([`EvictionPolicy::insert`], [`touch`](EvictionPolicy::touch), [`remove`](EvictionPolicy::remove)) and asks for a
//! victim ([`EvictionPolicy::evict`]).

use crate::BlockKey;

/// Index of a slot within its pool, `0..slot_count`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
#[repr(transparent)]
pub struct SlotId(pub u32);

impl SlotId {
    /// The slot as an index into per-slot arrays.
    #[inline]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// What the Directory says of a slot that a policy would like to evict.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Candidate {
    /// Nobody uses it and no resident block extends it: the best victim.
    Leaf,
    /// Nobody uses it, but resident blocks extend it and would become unreachable: a victim of last resort.
    HasChildren,
    /// Pinned: must not be returned.
    Pinned,
}

/// An eviction policy over slots. One instance serves one pool and is called under the pool's lock.
///
/// Every operation is amortised O(1). All memory is bounded by the slot count given to the constructor, the memory of
/// evicted keys (ghosts) included.
pub trait EvictionPolicy: Send {
    /// The name users select it by, for example `s3fifo`.
    fn name(&self) -> &'static str;

    /// `slot` now holds `key` and may be evicted later. The slot is not tracked yet.
    fn insert(&mut self, slot: SlotId, key: BlockKey);

    /// The block in `slot` was used again. The Directory touches the tail of a prefix first, its head last.
    fn touch(&mut self, slot: SlotId);

    /// `slot` was emptied for another reason than eviction: forget it without a ghost. Untracked slots are ignored.
    fn remove(&mut self, slot: SlotId);

    /// Picks a victim, stops tracking it and returns it; `None` if every tracked slot is pinned.
    ///
    /// `candidate` tells what a tracked slot is worth as a victim. A policy passes over pinned slots, and over slots
    /// with children for a bounded number of steps.
    fn evict(&mut self, candidate: &mut dyn FnMut(SlotId) -> Candidate) -> Option<SlotId>;

    /// Whether `key` was evicted not long ago, as far as the policy remembers. Explains misses; may always say no.
    fn remembers(&self, key: &BlockKey) -> bool {
        let _ = key;
        false
    }

    /// Forgets everything, ghosts included.
    fn clear(&mut self);

    /// Number of tracked slots.
    fn len(&self) -> usize;

    /// Whether no slot is tracked.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of memory that the policy holds, ghosts included.
    fn metadata_bytes(&self) -> usize;
}
