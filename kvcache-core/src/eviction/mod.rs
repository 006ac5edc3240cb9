//! Chooses which block leaves when room is needed.
//!
//! A policy orders slots; it owns no memory and knows nothing of bytes. The Directory tells it what happened
//! ([`EvictionPolicy::insert`], [`touch`](EvictionPolicy::touch), [`remove`](EvictionPolicy::remove)) and asks for a
//! victim ([`EvictionPolicy::evict`]).
//!
//! | name | policy | for |
//! |---|---|---|
//! | `hit-density` | [`HitDensity`]: expected hits per slot and time, learnt from the traffic | planners without an L2, which need not store every block: their `default` |
//! | `s3fifo` | [`S3Fifo`]: S3-FIFO whose small queue adapts | what stores all that it is given, and planners with an L2: their `default` |
//! | `lru` | [`Lru`] | comparison |
//! | `s3fifo-fixed` | [`S3FifoFixed`]: S3-FIFO with the published 10 % small queue | comparison |
//!
//! Others are added from outside with [`PolicyRegistry::register`] and checked with [`suite::check`].
//!
//! # Order within a request
//!
//! A request's blocks are not independent keys: a block is of use only while all blocks before it are there. The
//! Directory therefore works through a request from its tail to its head, so that heads outlive tails. It first
//! evicts for the missing blocks, at most [a quarter of the slots](crate::directory::evictions_per_request_max), then
//! inserts them, tail first, as they are stored. The ones that were hit are touched, tail first, when the last block of
//! the prompt is stored, or when the request ends before. Against touching the hits before the inserts this is worth up
//! to one point of hit ratio in tiny caches.
//!
//! Where a policy answers that a victim is worth more than the block that wants its place ([`Place::NotWorth`]), the rest of
//! the request is not stored. Only who can do without is asked.

mod age_ratio;
mod ghost;
mod hit_density;
mod list;
mod lru;
mod registry;
mod s3fifo;
mod s3fifo_fixed;
pub mod suite;
mod victim;

pub use hit_density::HitDensity;
pub use lru::Lru;
pub use registry::{PolicyConstructor, PolicyError, PolicyRegistry};
pub use s3fifo::S3Fifo;
pub use s3fifo_fixed::S3FifoFixed;

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

/// A policy's answer to a block that would like to be stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// This slot: its block is evicted, and no longer tracked.
    Victim(SlotId),
    /// None: every block here is worth more.
    NotWorth,
    /// None: every tracked slot is pinned.
    None,
}

/// An eviction policy over slots. One instance serves one pool and is called under the pool's lock.
///
/// Every operation is amortised O(1), but for the pinned slots that an eviction meets: it may look at each of them
/// once. All memory is bounded by the slot count given to the constructor, the memory of evicted keys (ghosts)
/// included. [`suite::check`] tests what is promised here.
pub trait EvictionPolicy: Send {
    /// The name users select it by, for example `s3fifo`.
    fn name(&self) -> &'static str;

    /// `slot` now holds `key` and may be evicted later.
    ///
    /// # Panics
    ///
    /// If the slot is tracked already or not below the slot count: the caller has lost count of its slots.
    fn insert(&mut self, slot: SlotId, key: BlockKey);

    /// The block in `slot` was used again. The Directory touches the tail of a prefix first, its head last. Untracked
    /// slots are ignored.
    fn touch(&mut self, slot: SlotId);

    /// `slot` was emptied for another reason than eviction: forget it without a ghost. Untracked slots are ignored.
    fn remove(&mut self, slot: SlotId);

    /// Picks a victim, stops tracking it and returns it; `None` if and only if every tracked slot is pinned.
    ///
    /// `candidate` tells what a tracked slot is worth as a victim; it is called for tracked slots only. A policy
    /// passes over pinned slots, and over slots with children for a bounded number of steps (at least
    /// [`suite::LEAF_SEARCH_MIN`] slots are looked at before one with children is returned).
    fn evict(&mut self, candidate: &mut dyn FnMut(SlotId) -> Candidate) -> Option<SlotId>;

    /// As [`evict`](Self::evict), to make room for `newcomer`; may answer that the victim is worth more than that.
    ///
    /// Asked only where the newcomer may as well not be stored. Without a victim nothing changes, but for pinned slots
    /// that were met.
    fn evict_for(&mut self, newcomer: &BlockKey, candidate: &mut dyn FnMut(SlotId) -> Candidate) -> Place {
        let _ = newcomer;
        self.evict(candidate).map_or(Place::None, Place::Victim)
    }

    /// A request had a use for `key`, which is not here, and is not stored now: what a policy learns from misses.
    fn pass_by(&mut self, key: &BlockKey) {
        let _ = key;
    }

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

#[cfg(test)]
mod oracle;
