//! Least recently used: the baseline that every other policy is measured against.

use super::list::SlotLists;
use super::{Candidate, EvictionPolicy, SlotId, victim};
use crate::BlockKey;

/// Evicts the block whose last use is the longest ago.
///
/// Strong where the cache is roomy; one pass of keys used once empties it of everything else. No ghosts.
/// Memory: 9 bytes a slot.
#[derive(Debug)]
pub struct Lru {
    lists: SlotLists<1>,
}

impl Lru {
    /// A policy over the slots `0..slot_count`.
    pub fn new(slot_count: u32) -> Self {
        Self { lists: SlotLists::new(slot_count) }
    }
}

impl EvictionPolicy for Lru {
    fn name(&self) -> &'static str {
        "lru"
    }

    fn insert(&mut self, slot: SlotId, _key: BlockKey) {
        self.lists.push_front(RECENCY, slot);
    }

    fn touch(&mut self, slot: SlotId) {
        if self.lists.list_of(slot).is_some() {
            self.lists.move_to_front(RECENCY, slot);
        }
    }

    fn remove(&mut self, slot: SlotId) {
        self.lists.unlink(slot);
    }

    fn evict(&mut self, candidate: &mut dyn FnMut(SlotId) -> Candidate) -> Option<SlotId> {
        let mut passed_over = victim::PassedOver::default();
        let mut next = self.lists.back(RECENCY);
        for _ in 0..self.lists.len(RECENCY) {
            let Some(slot) = next else { break };
            next = self.lists.newer(slot);
            match candidate(slot) {
                Candidate::Leaf => {
                    self.lists.unlink(slot);
                    return Some(slot);
                }
                Candidate::HasChildren => {
                    if passed_over.is_last(slot) {
                        break;
                    }
                }
                Candidate::Pinned => self.lists.move_to_front(RECENCY, slot),
            }
        }
        let slot = passed_over.first()?;
        self.lists.unlink(slot);
        Some(slot)
    }

    fn clear(&mut self) {
        self.lists.clear();
    }

    fn len(&self) -> usize {
        self.lists.total_len()
    }

    fn metadata_bytes(&self) -> usize {
        self.lists.metadata_bytes()
    }
}

const RECENCY: usize = 0;
