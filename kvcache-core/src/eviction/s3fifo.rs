//! S3-FIFO with a small queue that adapts: the default policy where everything is stored.

use super::age_ratio::AgeRatio;
use super::ghost::{Fingerprint, Ghost, Origin};
use super::list::SlotLists;
use super::victim::PassedOver;
use super::{Candidate, EvictionPolicy, SlotId};
use crate::BlockKey;

/// Small queue, main queue, ghost: scan resistant where the cache is tiny, as good as LRU where it is roomy.
///
/// The three queues are those of S3-FIFO (Yang et al., *FIFO queues are all you need for cache eviction*, SOSP 2023):
/// a new block enters a *small* first-in first-out queue, a block that is used again moves to the *main* queue, and
/// an evicted key is remembered in a *ghost*; a block whose key is in the ghost goes to main at once.
///
/// The paper gives the small queue a tenth of the cache. That is right for tiny caches, and up to four points of hit
/// ratio worse than LRU for roomy ones, where turns of a conversation come back later than a tenth of the cache
/// lasts ([`S3FifoFixed`](super::S3FifoFixed) is that form). Here the share follows from the age at which blocks
/// leave: the oldest new block goes if its age is at least the age of the oldest proven block times a ratio, and the
/// ratio (from 1/256 to 1, where the policy is exactly LRU) is learnt from ghost hits, with separate evidence for
/// blocks evicted out of small and out of main, in the manner of ARC (Megiddo and Modha, FAST 2003). For the ages to
/// be comparable, main is ordered by last use instead of the paper's second chance, and promotion happens at the use.
///
/// Every operation is O(1); an eviction passes over at most 15 blocks with resident children, and moves each pinned
/// block that it meets to the front of its queue, as in use now. Memory: 49 bytes a slot, ghosts included (twice as
/// many ghosts as slots). Ages are counted in inserts and touches and wrap after 2^32 of them.
#[derive(Debug)]
pub struct S3Fifo {
    queues: SlotLists<2>,
    ghost: Ghost,
    age_ratio: AgeRatio,
    /// Per slot: the clock at its last use. Descending from front to back in both queues.
    last_use: Vec<u32>,
    fingerprints: Vec<Fingerprint>,
    /// Inserts and touches so far, wrapping.
    clock: u32,
}

impl S3Fifo {
    /// A policy over the slots `0..slot_count`.
    ///
    /// # Panics
    ///
    /// If twice the slot count does not fit in a `u32`.
    pub fn new(slot_count: u32) -> Self {
        let ghosts = slot_count.checked_mul(GHOSTS_PER_SLOT).expect("ghost positions fit in a u32");
        Self {
            queues: SlotLists::new(slot_count),
            ghost: Ghost::new(ghosts),
            age_ratio: AgeRatio::new(slot_count),
            last_use: vec![0; slot_count as usize],
            fingerprints: vec![Fingerprint::NONE; slot_count as usize],
            clock: 0,
        }
    }

    /// The learnt ratio of the ages at which new and proven blocks leave, within `1/256..=1`. For display.
    pub fn age_ratio(&self) -> f64 {
        self.age_ratio.get()
    }

    /// Share of the tracked slots that the small queue holds now, within `0..=1`. For display.
    pub fn small_share(&self) -> f64 {
        self.queues.len(SMALL) as f64 / self.queues.total_len().max(1) as f64
    }

    fn use_now(&mut self, queue: usize, slot: SlotId) {
        self.clock = self.clock.wrapping_add(1);
        self.last_use[slot.index()] = self.clock;
        self.queues.move_to_front(queue, slot);
    }

    fn age(&self, slot: SlotId) -> u32 {
        self.clock.wrapping_sub(self.last_use[slot.index()])
    }

    /// The queue whose oldest block is worth less.
    fn poorer(&self, oldest: [Option<SlotId>; 2]) -> Option<(usize, SlotId)> {
        match oldest {
            [Some(small), Some(main)] if self.age_ratio.prefers_small(self.age(small), self.age(main)) => {
                Some((SMALL, small))
            }
            [_, Some(main)] => Some((MAIN, main)),
            [Some(small), None] => Some((SMALL, small)),
            [None, None] => None,
        }
    }

    fn evict_slot(&mut self, slot: SlotId) -> SlotId {
        let origin = if self.queues.unlink(slot) == Some(SMALL) { Origin::Small } else { Origin::Main };
        self.ghost.insert(self.fingerprints[slot.index()], origin);
        self.age_ratio.evicted(origin);
        slot
    }
}

impl EvictionPolicy for S3Fifo {
    fn name(&self) -> &'static str {
        "s3fifo"
    }

    fn insert(&mut self, slot: SlotId, key: BlockKey) {
        let fingerprint = Fingerprint::of(key);
        let ghost_hit = self.ghost.take(fingerprint);
        if let Some(hit) = ghost_hit {
            self.age_ratio.came_back(hit);
        }
        self.fingerprints[slot.index()] = fingerprint;
        self.clock = self.clock.wrapping_add(1);
        self.last_use[slot.index()] = self.clock;
        self.queues.push_front(if ghost_hit.is_some() { MAIN } else { SMALL }, slot);
    }

    fn touch(&mut self, slot: SlotId) {
        if self.queues.list_of(slot).is_some() {
            self.use_now(MAIN, slot);
        }
    }

    fn remove(&mut self, slot: SlotId) {
        self.queues.unlink(slot);
    }

    fn evict(&mut self, candidate: &mut dyn FnMut(SlotId) -> Candidate) -> Option<SlotId> {
        let mut passed_over = PassedOver::default();
        let mut oldest = [self.queues.back(SMALL), self.queues.back(MAIN)];
        let mut unseen = [self.queues.len(SMALL), self.queues.len(MAIN)];
        while let Some((queue, slot)) = self.poorer(oldest) {
            // Pinned blocks go to the front, behind which the search must not run in circles.
            unseen[queue] -= 1;
            oldest[queue] = if unseen[queue] == 0 { None } else { self.queues.newer(slot) };
            match candidate(slot) {
                Candidate::Leaf => return Some(self.evict_slot(slot)),
                Candidate::HasChildren if passed_over.is_last(slot) => break,
                Candidate::HasChildren => {}
                Candidate::Pinned => {
                    self.last_use[slot.index()] = self.clock;
                    self.queues.move_to_front(queue, slot);
                }
            }
        }
        passed_over.first().map(|slot| self.evict_slot(slot))
    }

    fn remembers(&self, key: &BlockKey) -> bool {
        self.ghost.contains(Fingerprint::of(*key))
    }

    fn clear(&mut self) {
        *self = Self::new(self.last_use.len() as u32);
    }

    fn len(&self) -> usize {
        self.queues.total_len()
    }

    fn metadata_bytes(&self) -> usize {
        self.queues.metadata_bytes()
            + self.ghost.metadata_bytes()
            + self.last_use.capacity() * size_of::<u32>()
            + self.fingerprints.capacity() * size_of::<Fingerprint>()
    }
}

const SMALL: usize = 0;
const MAIN: usize = 1;

/// Ghosts reach back two slot counts of evictions: on the conversation trace that is worth one point of hit ratio at
/// small capacities against one slot count.
const GHOSTS_PER_SLOT: u32 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remembers_what_it_evicted_until_it_comes_back() {
        let key = BlockKey([7; 16]);
        let mut policy = S3Fifo::new(1);
        policy.insert(SlotId(0), key);
        assert!(!policy.remembers(&key), "resident, never evicted");
        policy.evict(&mut |_| Candidate::Leaf);
        assert!(policy.remembers(&key));
        policy.insert(SlotId(0), key);
        assert!(!policy.remembers(&key));
        policy.remove(SlotId(0));
        assert!(!policy.remembers(&key), "removal leaves no ghost");
    }
}
