//! S3-FIFO as published, with a small queue of fixed share: for comparison.

use super::ghost::{Fingerprint, Ghost, Origin};
use super::list::SlotLists;
use super::victim::PassedOver;
use super::{Candidate, EvictionPolicy, SlotId};
use crate::BlockKey;

/// The textbook form of S3-FIFO (Yang et al., SOSP 2023): first-in first-out queues, second chances, no adaptation.
///
/// A use only counts up to three. A block leaving the small queue goes to main if it was used since it came in, a
/// block leaving main goes round again with one use less. One use is enough for promotion, as in the authors' text;
/// their pseudo-code and libCacheSim ask for two, which is worse on every trace that we have. The ghost has as many
/// entries as main may have blocks.
///
/// Amortised O(1): a use pays for at most one further round. Memory: at most 32 bytes a slot.
#[derive(Debug)]
pub struct S3FifoFixed {
    queues: SlotLists<2>,
    ghost: Ghost,
    small_blocks_max: usize,
    /// Per slot: uses since it entered its queue, at most [`USES_MAX`].
    uses: Vec<u8>,
    fingerprints: Vec<Fingerprint>,
}

impl S3FifoFixed {
    /// The paper's share of the small queue.
    pub const PAPER_SMALL_SHARE: f64 = 0.1;

    /// A policy over the slots `0..slot_count` whose small queue gives way above `small_share` of them. The share is
    /// clamped to `0..=1`.
    pub fn new(slot_count: u32, small_share: f64) -> Self {
        let small_blocks_max = (f64::from(slot_count) * small_share.clamp(0.0, 1.0)) as u32;
        Self {
            queues: SlotLists::new(slot_count),
            ghost: Ghost::new(slot_count - small_blocks_max),
            small_blocks_max: small_blocks_max as usize,
            uses: vec![0; slot_count as usize],
            fingerprints: vec![Fingerprint::NONE; slot_count as usize],
        }
    }

    fn evict_slot(&mut self, slot: SlotId) -> SlotId {
        let origin = if self.queues.unlink(slot) == Some(SMALL) { Origin::Small } else { Origin::Main };
        // Only new blocks leave a ghost: what main let go had its chances.
        if origin == Origin::Small {
            self.ghost.insert(self.fingerprints[slot.index()], origin);
        }
        slot
    }
}

impl EvictionPolicy for S3FifoFixed {
    fn name(&self) -> &'static str {
        "s3fifo-fixed"
    }

    fn insert(&mut self, slot: SlotId, key: BlockKey) {
        let fingerprint = Fingerprint::of(key);
        let queue = if self.ghost.take(fingerprint).is_some() { MAIN } else { SMALL };
        self.fingerprints[slot.index()] = fingerprint;
        self.uses[slot.index()] = 0;
        self.queues.push_front(queue, slot);
    }

    fn touch(&mut self, slot: SlotId) {
        if self.queues.list_of(slot).is_some() {
            let uses = &mut self.uses[slot.index()];
            *uses = (*uses + 1).min(USES_MAX);
        }
    }

    fn remove(&mut self, slot: SlotId) {
        self.queues.unlink(slot);
    }

    fn evict(&mut self, candidate: &mut dyn FnMut(SlotId) -> Candidate) -> Option<SlotId> {
        let mut passed_over = PassedOver::default();
        let mut oldest = [self.queues.back(SMALL), self.queues.back(MAIN)];
        // Blocks that may still be looked at before the search has seen the whole queue. A promotion hands one on.
        let mut unseen = [self.queues.len(SMALL), self.queues.len(MAIN) * usize::from(USES_MAX + 1)];
        loop {
            let small_over = self.queues.len(SMALL) > self.small_blocks_max;
            let queue = match oldest {
                [Some(_), None] => SMALL,
                [Some(_), Some(_)] if small_over => SMALL,
                [_, Some(_)] => MAIN,
                [None, None] => break,
            };
            let Some(slot) = oldest[queue] else { break };
            let newer = self.queues.newer(slot);
            unseen[queue] -= 1;
            let uses = self.uses[slot.index()];
            let verdict = if uses > 0 { None } else { Some(candidate(slot)) };
            let mut next = newer;
            match verdict {
                None if queue == SMALL => {
                    self.uses[slot.index()] = 0;
                    self.queues.move_to_front(MAIN, slot);
                    unseen[MAIN] += usize::from(USES_MAX + 1);
                    oldest[MAIN] = oldest[MAIN].or(Some(slot));
                }
                None => {
                    self.uses[slot.index()] = uses - 1;
                    self.queues.move_to_front(MAIN, slot);
                    // The newest block is the next one again, with one use less.
                    next = next.or(Some(slot));
                }
                Some(Candidate::Leaf) => return Some(self.evict_slot(slot)),
                Some(Candidate::HasChildren) if passed_over.is_last(slot) => break,
                Some(Candidate::HasChildren) => {}
                Some(Candidate::Pinned) => self.queues.move_to_front(queue, slot),
            }
            oldest[queue] = if unseen[queue] == 0 { None } else { next };
        }
        passed_over.first().map(|slot| self.evict_slot(slot))
    }

    fn remembers(&self, key: &BlockKey) -> bool {
        self.ghost.contains(Fingerprint::of(*key))
    }

    fn clear(&mut self) {
        self.queues.clear();
        self.ghost.clear();
    }

    fn len(&self) -> usize {
        self.queues.total_len()
    }

    fn metadata_bytes(&self) -> usize {
        self.queues.metadata_bytes()
            + self.ghost.metadata_bytes()
            + self.uses.capacity()
            + self.fingerprints.capacity() * size_of::<Fingerprint>()
    }
}

const SMALL: usize = 0;
const MAIN: usize = 1;

/// Uses that are counted, as in the paper (two bits).
const USES_MAX: u8 = 3;
