//! An eviction policy of your own, outside the core: SIEVE.
//!
//! A policy is a type that implements [`EvictionPolicy`]. It is told which slot was filled, used or emptied, and
//! answers which slot to empty next; it never sees bytes. This crate is a complete example to copy: one struct, one
//! `impl`, one line to register it under a name, and one test that runs the same suite as the policies of the core.
//! It uses nothing but the public interface.
//!
//! SIEVE (Zhang et al., *SIEVE is simpler than LRU: an efficient turn-key eviction algorithm for web caches*, NSDI
//! 2024) keeps the blocks in order of insertion with one bit each, set when the block is used. A hand walks from the
//! oldest block to the newest, clears set bits and evicts the first block whose bit is clear; it stays where it is,
//! so that new blocks are judged soon and old ones that were used keep their place.
//!
//! ```
//! use kvcache_core::eviction::PolicyRegistry;
//!
//! let mut registry = PolicyRegistry::with_builtin();
//! policy_sieve::register(&mut registry)?;
//! assert_eq!(registry.build("sieve", 1024)?.name(), "sieve");
//! # Ok::<(), kvcache_core::eviction::PolicyError>(())
//! ```

#![forbid(unsafe_code)]

use kvcache_core::BlockKey;
use kvcache_core::eviction::{Candidate, EvictionPolicy, PolicyError, PolicyRegistry, SlotId};

/// Makes `sieve` selectable by name.
///
/// # Errors
///
/// [`PolicyError::NameTaken`] if another policy has the name.
pub fn register(registry: &mut PolicyRegistry) -> Result<(), PolicyError> {
    registry.register("sieve", |slot_count| Box::new(Sieve::new(slot_count)))
}

/// SIEVE over slots. Every operation is amortised O(1), but for pinned blocks, which the hand walks past. Memory: 12
/// bytes a slot, no ghosts.
#[derive(Debug)]
pub struct Sieve {
    slots: Vec<Slot>,
    oldest: Option<SlotId>,
    newest: Option<SlotId>,
    /// Where the search goes on; the oldest block if there is none.
    hand: Option<SlotId>,
    tracked: usize,
}

/// A node of the queue: two links that hold [`NONE`] at the ends, and two marks.
#[derive(Clone, Copy, Debug)]
struct Slot {
    older: u32,
    newer: u32,
    tracked: bool,
    used: bool,
}

impl Sieve {
    /// A policy over the slots `0..slot_count`.
    pub fn new(slot_count: u32) -> Self {
        let untracked = Slot { older: NONE, newer: NONE, tracked: false, used: false };
        Self {
            slots: vec![untracked; slot_count as usize],
            oldest: None,
            newest: None,
            hand: None,
            tracked: 0,
        }
    }

    fn newer(&self, slot: SlotId) -> Option<SlotId> {
        link(self.slots[slot.index()].newer)
    }

    fn unlink(&mut self, slot: SlotId) {
        let Slot { older, newer, .. } = self.slots[slot.index()];
        match link(older) {
            Some(older) => self.slots[older.index()].newer = newer,
            None => self.oldest = link(newer),
        }
        match link(newer) {
            Some(newer) => self.slots[newer.index()].older = older,
            None => self.newest = link(older),
        }
        if self.hand == Some(slot) {
            self.hand = link(newer);
        }
        self.slots[slot.index()].tracked = false;
        self.tracked -= 1;
    }
}

impl EvictionPolicy for Sieve {
    fn name(&self) -> &'static str {
        "sieve"
    }

    fn insert(&mut self, slot: SlotId, _key: BlockKey) {
        assert!(!self.slots[slot.index()].tracked, "slot {} is tracked already", slot.0);
        let older = self.newest.map_or(NONE, |newest| newest.0);
        self.slots[slot.index()] = Slot { older, newer: NONE, tracked: true, used: false };
        match self.newest.replace(slot) {
            Some(older) => self.slots[older.index()].newer = slot.0,
            None => self.oldest = Some(slot),
        }
        self.tracked += 1;
    }

    fn touch(&mut self, slot: SlotId) {
        if let Some(slot) = self.slots.get_mut(slot.index()) {
            slot.used = true;
        }
    }

    fn remove(&mut self, slot: SlotId) {
        if self.slots.get(slot.index()).is_some_and(|slot| slot.tracked) {
            self.unlink(slot);
        }
    }

    fn evict(&mut self, candidate: &mut dyn FnMut(SlotId) -> Candidate) -> Option<SlotId> {
        let mut parent = None;
        let mut parents_left = PARENTS_PASSED_OVER_MAX;
        // Two rounds: the first may find every bit set.
        for _ in 0..2 * self.tracked {
            let slot = self.hand.or(self.oldest)?;
            self.hand = self.newer(slot);
            if std::mem::take(&mut self.slots[slot.index()].used) {
                continue;
            }
            match candidate(slot) {
                Candidate::Leaf => {
                    self.unlink(slot);
                    return Some(slot);
                }
                Candidate::HasChildren => {
                    parent = parent.or(Some(slot));
                    parents_left -= 1;
                    if parents_left == 0 {
                        break;
                    }
                }
                Candidate::Pinned => {}
            }
        }
        let slot = parent?;
        self.unlink(slot);
        Some(slot)
    }

    fn clear(&mut self) {
        *self = Self::new(self.slots.len() as u32);
    }

    fn len(&self) -> usize {
        self.tracked
    }

    fn metadata_bytes(&self) -> usize {
        self.slots.capacity() * size_of::<Slot>()
    }
}

fn link(node: u32) -> Option<SlotId> {
    (node != NONE).then_some(SlotId(node))
}

const NONE: u32 = u32::MAX;

/// Blocks with resident children that one search walks past.
const PARENTS_PASSED_OVER_MAX: u32 = 16;

#[cfg(test)]
mod tests {
    use kvcache_core::eviction::suite;

    use super::*;

    #[test]
    fn holds_the_promises_of_a_policy() {
        suite::check(&|slot_count| Box::new(Sieve::new(slot_count)));
    }

    #[test]
    fn registers_once() {
        let mut registry = PolicyRegistry::with_builtin();
        register(&mut registry).expect("new name");
        assert!(registry.names().any(|name| name == "sieve"));
        assert!(register(&mut registry).is_err());
    }

    /// The worked example of the paper's figure: used blocks stay where they are, the hand moves on.
    #[test]
    fn the_hand_spares_used_blocks_and_stays() {
        let mut sieve = Sieve::new(4);
        (0..4).for_each(|slot| sieve.insert(SlotId(slot), BlockKey([0; 16])));
        sieve.touch(SlotId(0));
        sieve.touch(SlotId(2));
        let evict = |sieve: &mut Sieve| sieve.evict(&mut |_| Candidate::Leaf).map(|slot| slot.0);
        assert_eq!(evict(&mut sieve), Some(1));
        sieve.insert(SlotId(1), BlockKey([1; 16]));
        assert_eq!(evict(&mut sieve), Some(3), "slot 2 was used, the hand is past slot 0");
        assert_eq!(evict(&mut sieve), Some(1), "the new block is judged next");
        assert_eq!(evict(&mut sieve), Some(0), "then the hand begins again at the oldest");
    }

    #[test]
    fn a_removed_block_hands_the_hand_on() {
        let mut sieve = Sieve::new(4);
        (0..4).for_each(|slot| sieve.insert(SlotId(slot), BlockKey([0; 16])));
        assert_eq!(sieve.evict(&mut |_| Candidate::Leaf), Some(SlotId(0)));
        assert_eq!(sieve.evict(&mut |_| Candidate::Leaf), Some(SlotId(1)));
        sieve.insert(SlotId(0), BlockKey([1; 16]));
        sieve.touch(SlotId(2));
        assert_eq!(
            sieve.evict(&mut |_| Candidate::Leaf),
            Some(SlotId(3)),
            "2 was used and stays, the hand is on 0"
        );
        sieve.insert(SlotId(1), BlockKey([2; 16]));
        sieve.remove(SlotId(0));
        assert_eq!(
            sieve.evict(&mut |_| Candidate::Leaf),
            Some(SlotId(1)),
            "not 2, which the hand has passed"
        );
    }
}
