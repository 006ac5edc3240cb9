//! Replays a trace of requests against an eviction policy and counts hits.
//!
//! The question is how much of the traffic of yesterday a cache of a given capacity would have answered. A [`Trace`]
//! holds the block ids of each request in arrival order; [`Replay`] runs it through a policy by the rules of the
//! Directory, one request after the other and without the bytes:
//!
//! 1. A hit is the leading run of resident blocks; after the first hole nothing can be loaded.
//! 2. All blocks of the request are pinned while it is served.
//! 3. Every missing block is stored, head first, each in a free slot or that of a victim. Where there is no victim,
//!    the rest of the request is not stored.
//! 4. The policy hears of the stored blocks, then of the used ones, tail first.
//!
//! ```
//! use kvcache_core::eviction::Lru;
//! use kvcache_core::replay::{Replay, Trace};
//!
//! let mut trace = Trace::new(512);
//! trace.push(1024, &[1, 2]);
//! trace.push(1200, &[1, 2, 3]);
//! let counts = Replay::new(&trace, 100, Box::new(Lru::new(100))).run();
//! assert_eq!((counts.accesses, counts.hit_blocks), (5, 2));
//! assert_eq!((counts.input_tokens, counts.hit_tokens), (2224, 1024));
//! ```

use std::collections::HashMap;

use crate::BlockKey;
use crate::eviction::{Candidate, EvictionPolicy, SlotId};

/// Requests in arrival order. Equal block ids mean equal tokens and an equal prefix.
#[derive(Clone, Debug)]
pub struct Trace {
    block_tokens: u64,
    requests: Vec<Request>,
    /// The blocks of all requests, one after the other, numbered by first appearance.
    accesses: Vec<u32>,
    /// Per block: the block before it, or [`NOTHING`].
    parents: Vec<u32>,
    blocks: HashMap<u64, u32>,
}

#[derive(Clone, Debug)]
struct Request {
    input_tokens: u64,
    accesses_end: usize,
}

impl Trace {
    /// A trace without requests, of blocks of `block_tokens` tokens.
    pub fn new(block_tokens: u64) -> Self {
        Self {
            block_tokens,
            requests: Vec::new(),
            accesses: Vec::new(),
            parents: Vec::new(),
            blocks: HashMap::new(),
        }
    }

    /// Adds a request of `input_tokens` tokens in the blocks `block_ids`, from first to last. The last block may be
    /// partly filled. An id that comes again keeps the predecessor that it had first.
    ///
    /// # Panics
    ///
    /// Above 2^32 - 2 distinct blocks.
    pub fn push(&mut self, input_tokens: u64, block_ids: &[u64]) {
        let mut parent = NOTHING;
        for &id in block_ids {
            let next = u32::try_from(self.parents.len()).ok().filter(|&next| next != NOTHING);
            let block = *self.blocks.entry(id).or_insert_with(|| {
                self.parents.push(parent);
                next.expect("blocks are numbered in 32 bits")
            });
            self.accesses.push(block);
            parent = block;
        }
        self.requests.push(Request { input_tokens, accesses_end: self.accesses.len() });
    }

    /// Number of requests.
    pub fn request_count(&self) -> usize {
        self.requests.len()
    }

    /// Number of blocks of all requests together.
    pub fn access_count(&self) -> usize {
        self.accesses.len()
    }

    /// Number of distinct blocks: a cache of so many slots never evicts.
    pub fn block_count(&self) -> usize {
        self.parents.len()
    }

    fn requests(&self) -> impl Iterator<Item = (&Request, &[u32])> {
        let starts = std::iter::once(0).chain(self.requests.iter().map(|request| request.accesses_end));
        self.requests
            .iter()
            .zip(starts)
            .map(|(request, start)| (request, &self.accesses[start..request.accesses_end]))
    }
}

/// What a replay counted.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct ReplayCounts {
    /// Requests served.
    pub requests: u64,
    /// Blocks that they asked for.
    pub accesses: u64,
    /// Of these, blocks that could have been loaded.
    pub hit_blocks: u64,
    /// Input tokens of all requests.
    pub input_tokens: u64,
    /// Of these, tokens in blocks that could have been loaded.
    pub hit_tokens: u64,
    /// Blocks that left to make room.
    pub evictions: u64,
    /// Blocks that were not stored since every slot was pinned.
    pub refused: u64,
}

impl ReplayCounts {
    /// Blocks that could have been loaded, of those asked for; 0 if none was asked for.
    pub fn block_hit_ratio(&self) -> f64 {
        self.hit_blocks as f64 / self.accesses.max(1) as f64
    }

    /// Tokens that need not have been computed, of all input tokens; 0 if there were none.
    pub fn token_hit_ratio(&self) -> f64 {
        self.hit_tokens as f64 / self.input_tokens.max(1) as f64
    }
}

/// A cache of slots without bytes, over one trace and one policy.
pub struct Replay<'a> {
    trace: &'a Trace,
    policy: Box<dyn EvictionPolicy>,
    residency: Residency,
    /// Slots that the running request has filled, head first.
    stored: Vec<(SlotId, u32)>,
    counts: ReplayCounts,
}

impl<'a> Replay<'a> {
    /// An empty cache of `slot_count` slots; `policy` is made for as many.
    pub fn new(trace: &'a Trace, slot_count: u32, policy: Box<dyn EvictionPolicy>) -> Self {
        Self {
            trace,
            policy,
            residency: Residency::new(trace.block_count(), slot_count),
            stored: Vec::new(),
            counts: ReplayCounts::default(),
        }
    }

    /// Serves the whole trace: about ten million blocks a second.
    pub fn run(mut self) -> ReplayCounts {
        let trace = self.trace;
        for (request, blocks) in trace.requests() {
            let hit_blocks = self.serve(blocks);
            self.counts.requests += 1;
            self.counts.accesses += blocks.len() as u64;
            self.counts.hit_blocks += hit_blocks as u64;
            self.counts.input_tokens += request.input_tokens;
            self.counts.hit_tokens += (hit_blocks as u64 * trace.block_tokens).min(request.input_tokens);
        }
        self.counts
    }

    /// Serves one request; returns the length of its leading run of resident blocks.
    fn serve(&mut self, blocks: &[u32]) -> usize {
        let hit_blocks = blocks.iter().take_while(|&&block| self.residency.slot(block).is_some()).count();
        self.residency.unpin_all();
        blocks.iter().for_each(|&block| self.residency.pin(block));
        self.stored.clear();
        for &block in blocks {
            if self.residency.slot(block).is_some() {
                continue;
            }
            let Some(slot) = self.room() else {
                self.counts.refused += 1;
                continue;
            };
            self.residency.store(self.trace, block, slot);
            self.stored.push((slot, block));
        }
        for &(slot, block) in self.stored.iter().rev() {
            self.policy.insert(slot, key(block));
        }
        for &block in blocks.iter().rev() {
            if let Some(slot) = self.residency.slot(block)
                && !self.residency.is_new(slot)
            {
                self.policy.touch(slot);
            }
        }
        hit_blocks
    }

    fn room(&mut self) -> Option<SlotId> {
        if let Some(free) = self.residency.free.pop() {
            return Some(free);
        }
        let residency = &self.residency;
        let victim = self.policy.evict(&mut |slot| residency.candidate(slot))?;
        self.residency.vacate(self.trace, victim);
        self.counts.evictions += 1;
        Some(victim)
    }
}

/// Which block is where.
struct Residency {
    /// Per block: its slot, or [`NOTHING`].
    slot_of: Vec<u32>,
    /// Per block: resident blocks that come directly after it.
    children: Vec<u32>,
    /// Per slot: its block, and the request that pinned and stored it last.
    slots: Vec<Slot>,
    free: Vec<SlotId>,
    request: u64,
}

#[derive(Clone)]
struct Slot {
    block: u32,
    pinned_by: u64,
    stored_by: u64,
}

impl Residency {
    fn new(block_count: usize, slot_count: u32) -> Self {
        Self {
            slot_of: vec![NOTHING; block_count],
            children: vec![0; block_count],
            slots: vec![Slot { block: NOTHING, pinned_by: 0, stored_by: 0 }; slot_count as usize],
            free: (0..slot_count).rev().map(SlotId).collect(),
            request: 0,
        }
    }

    fn slot(&self, block: u32) -> Option<SlotId> {
        Some(self.slot_of[block as usize]).filter(|&slot| slot != NOTHING).map(SlotId)
    }

    fn unpin_all(&mut self) {
        self.request += 1;
    }

    fn pin(&mut self, block: u32) {
        if let Some(slot) = self.slot(block) {
            self.slots[slot.index()].pinned_by = self.request;
        }
    }

    /// Whether the running request stored what is in `slot`.
    fn is_new(&self, slot: SlotId) -> bool {
        self.slots[slot.index()].stored_by == self.request
    }

    fn candidate(&self, slot: SlotId) -> Candidate {
        let held = &self.slots[slot.index()];
        if held.pinned_by == self.request {
            Candidate::Pinned
        } else if self.children[held.block as usize] > 0 {
            Candidate::HasChildren
        } else {
            Candidate::Leaf
        }
    }

    fn store(&mut self, trace: &Trace, block: u32, slot: SlotId) {
        self.slot_of[block as usize] = slot.0;
        self.slots[slot.index()] = Slot { block, pinned_by: self.request, stored_by: self.request };
        if let Some(children) = self.children.get_mut(trace.parents[block as usize] as usize) {
            *children += 1;
        }
    }

    fn vacate(&mut self, trace: &Trace, slot: SlotId) {
        let block = self.slots[slot.index()].block;
        self.slot_of[block as usize] = NOTHING;
        if let Some(children) = self.children.get_mut(trace.parents[block as usize] as usize) {
            *children -= 1;
        }
    }
}

/// A key for a numbered block, spread like the hash that it would be.
fn key(block: u32) -> BlockKey {
    let mut key = [0; BlockKey::BYTES];
    let hash = xxhash_rust::xxh3::xxh3_64(&block.to_le_bytes());
    key[..8].copy_from_slice(&hash.to_le_bytes());
    key[8..12].copy_from_slice(&block.to_le_bytes());
    BlockKey(key)
}

const NOTHING: u32 = u32::MAX;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eviction::{Lru, PolicyRegistry};

    fn counts(requests: &[&[u64]], slot_count: u32) -> ReplayCounts {
        let mut trace = Trace::new(16);
        requests.iter().for_each(|blocks| trace.push(16 * blocks.len() as u64 - 4, blocks));
        Replay::new(&trace, slot_count, Box::new(Lru::new(slot_count))).run()
    }

    #[test]
    fn a_roomy_cache_hits_whatever_came_before() {
        let counts = counts(&[&[1, 2, 3], &[1, 2, 4], &[1, 2, 3]], 100);
        assert_eq!((counts.requests, counts.accesses, counts.hit_blocks), (3, 9, 5));
        assert_eq!((counts.evictions, counts.refused), (0, 0));
    }

    #[test]
    fn the_last_block_counts_the_tokens_in_it() {
        let counts = counts(&[&[1, 2], &[1, 2]], 100);
        assert_eq!((counts.input_tokens, counts.hit_tokens), (56, 28));
        assert_eq!(counts.token_hit_ratio(), 0.5);
    }

    #[test]
    fn the_tail_of_an_old_request_leaves_first() {
        // Room for four: the second request takes the place of 3, so the third hits 1 and 2 only.
        let counts = counts(&[&[1, 2, 3], &[7, 8], &[1, 2, 3]], 4);
        assert_eq!(counts.hit_blocks, 2);
    }

    #[test]
    fn nothing_hits_behind_a_hole() {
        // Two requests of other blocks leave of the first one its head at most.
        let mut trace = Trace::new(16);
        trace.push(48, &[1, 2, 3]);
        trace.push(16, &[4]);
        trace.push(48, &[1, 2, 3]);
        let mut replay = Replay::new(&trace, 8, Box::new(Lru::new(8)));
        replay.serve(&[0, 1, 2]);
        let hole = replay.residency.slot(1).expect("stored");
        replay.policy.remove(hole);
        replay.residency.vacate(&trace, hole);
        replay.residency.free.push(hole);
        assert_eq!(replay.serve(&[0, 1, 2]), 1, "block 2 is resident, but behind the hole");
        assert_eq!(replay.serve(&[0, 1, 2]), 3, "the hole was filled again");
    }

    #[test]
    fn a_request_larger_than_the_cache_keeps_its_head() {
        let counts = counts(&[&[1, 2, 3, 4, 5], &[1, 2, 3, 4, 5]], 3);
        assert_eq!((counts.hit_blocks, counts.refused, counts.evictions), (3, 4, 0));
    }

    #[test]
    fn a_block_that_comes_twice_in_a_request_is_stored_once() {
        let counts = counts(&[&[1, 2, 1, 2], &[1, 2]], 8);
        assert_eq!((counts.accesses, counts.hit_blocks), (6, 2));
    }

    #[test]
    fn every_policy_survives_a_cache_without_slots() {
        let registry = PolicyRegistry::with_builtin();
        let mut trace = Trace::new(16);
        trace.push(32, &[1, 2]);
        for name in registry.names() {
            let counts = Replay::new(&trace, 0, registry.build(name, 0).expect("known")).run();
            assert_eq!((counts.hit_blocks, counts.refused), (0, 2), "{name}");
        }
    }
}
