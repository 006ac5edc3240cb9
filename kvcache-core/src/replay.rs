//! Replays a trace of requests against the [`Directory`] and counts hits.
//!
//! The question is how much of the traffic of yesterday a cache of a given capacity would have answered. A [`Trace`]
//! holds the block ids of each request in arrival order; [`Replay`] asks the Directory about them as the
//! [planner](crate::planner) does, one request after the other and without the bytes:
//!
//! 1. A hit is the leading run of resident blocks; after the first hole nothing can be loaded.
//! 2. The request's missing blocks are offloaded. It evicts none of its own blocks, and at most a quarter of the slots
//!    ([`evictions_per_request_max`]); where that is used up, or the policy deems a victim worth more,
//!    the rest of the request is not stored.
//! 3. When they are stored, its resident blocks are touched.
//!
//! With [an L2](Replay::with_remote) the run goes on through what that holds, and blocks go there as the planner's
//! [`Ingestion`] says.
//!
//! What a replay leaves out is time: copies end at once, and no request is served beside another.
//!
//! [`Trace::optimum`] counts what the best of all choices would have hit.
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

mod optimum;

use std::collections::HashMap;

use crate::BlockKey;
use crate::directory::{Directory, FillId, evictions_per_request_max};
use crate::eviction::{EvictionPolicy, SlotId};
use crate::planner::Ingestion;

/// Requests in arrival order. Equal block ids mean equal tokens and an equal prefix.
#[derive(Clone, Debug)]
pub struct Trace {
    block_tokens: u64,
    requests: Vec<Request>,
    /// The blocks of all requests, one after the other, numbered by first appearance.
    accesses: Vec<u32>,
    /// Numbers of the block ids.
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
        Self { block_tokens, requests: Vec::new(), accesses: Vec::new(), blocks: HashMap::new() }
    }

    /// Adds a request of `input_tokens` tokens in the blocks `block_ids`, from first to last. The last block may be
    /// partly filled.
    ///
    /// # Panics
    ///
    /// Above 2^32 - 1 distinct blocks.
    pub fn push(&mut self, input_tokens: u64, block_ids: &[u64]) {
        for &id in block_ids {
            let next = u32::try_from(self.blocks.len());
            let block =
                self.blocks.entry(id).or_insert_with(|| next.expect("blocks are numbered in 32 bits"));
            self.accesses.push(*block);
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
        self.blocks.len()
    }

    /// The blocks of each request, numbered by first appearance in the trace.
    pub fn requests_blocks(&self) -> impl Iterator<Item = &[u32]> {
        self.requests().map(|(_, blocks)| blocks)
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
    /// Blocks that were not stored, since the request had evicted its share or every slot was pinned.
    pub refused: u64,
    /// Of the hit blocks, those that came from L2.
    pub remote_hit_blocks: u64,
    /// Blocks that went to L2.
    pub demoted: u64,
}

impl ReplayCounts {
    /// Counts a request of which `hit_blocks` could have been loaded.
    fn count(&mut self, request: &Request, blocks: usize, hit_blocks: u64, block_tokens: u64) {
        self.requests += 1;
        self.accesses += blocks as u64;
        self.hit_blocks += hit_blocks;
        self.input_tokens += request.input_tokens;
        self.hit_tokens += (hit_blocks * block_tokens).min(request.input_tokens);
    }

    /// Blocks that could have been loaded, of those asked for; 0 if none was asked for.
    pub fn block_hit_ratio(&self) -> f64 {
        self.hit_blocks as f64 / self.accesses.max(1) as f64
    }

    /// Tokens that need not have been computed, of all input tokens; 0 if there were none.
    pub fn token_hit_ratio(&self) -> f64 {
        self.hit_tokens as f64 / self.input_tokens.max(1) as f64
    }
}

/// A [`Directory`] without a slab, over one trace and one policy.
pub struct Replay<'a> {
    trace: &'a Trace,
    directory: Directory,
    evictions_per_request_max: usize,
    counts: ReplayCounts,
    remote: Option<Remote>,
}

/// An L2: a cache of its own, whose blocks are independent of each other.
struct Remote {
    directory: Directory,
    ingestion: Ingestion,
}

impl Remote {
    fn has(&self, key: &BlockKey) -> bool {
        self.directory.slot_of(key).is_some()
    }

    /// Stores what is not there yet; how many blocks that were.
    fn store(&self, keys: impl Iterator<Item = BlockKey>) -> u64 {
        let mut stored = 0;
        for key in keys.filter(|key| !self.has(key)) {
            let reservation = self.directory.begin_offload(&[key], 0, 1);
            let fills: Vec<(SlotId, FillId)> =
                reservation.reserved.iter().map(|of| (of.slot, of.fill)).collect();
            stored += self.directory.complete_fills(&fills, true).len() as u64;
        }
        stored
    }
}

impl<'a> Replay<'a> {
    /// An empty cache of `slot_count` slots; `policy` is made for as many.
    pub fn new(trace: &'a Trace, slot_count: u32, policy: Box<dyn EvictionPolicy>) -> Self {
        Self {
            trace,
            directory: Directory::new(slot_count, policy),
            evictions_per_request_max: evictions_per_request_max(slot_count),
            counts: ReplayCounts::default(),
            remote: None,
        }
    }

    /// The same with an L2 of `slot_count` blocks behind it; `policy` is made for as many.
    #[must_use]
    pub fn with_remote(
        mut self,
        slot_count: u32,
        policy: Box<dyn EvictionPolicy>,
        ingestion: Ingestion,
    ) -> Self {
        self.remote = Some(Remote { directory: Directory::new(slot_count, policy), ingestion });
        self
    }

    /// Serves the whole trace: a few million blocks a second.
    pub fn run(mut self) -> ReplayCounts {
        let trace = self.trace;
        let mut keys = Vec::new();
        for (request, blocks) in trace.requests() {
            keys.clear();
            keys.extend(blocks.iter().map(|block| key(*block)));
            let hit_blocks = self.serve(&keys);
            self.counts.count(request, blocks.len(), hit_blocks as u64, trace.block_tokens);
        }
        let stats = self.directory.stats();
        self.counts.evictions = stats.evicted;
        self.counts.refused = stats.refused + stats.over_share + stats.not_worth;
        self.counts
    }

    /// Serves one request; returns the length of its leading run of resident blocks.
    fn serve(&mut self, keys: &[BlockKey]) -> usize {
        let mut hit_blocks = self.directory.match_prefix(keys).ready;
        if let Some(remote) = &self.remote {
            let is_here = |key: &&BlockKey| self.directory.slot_of(key).is_some();
            let rest = &keys[hit_blocks..];
            let run = rest.iter().take_while(|key| is_here(key) || remote.has(key)).count();
            let fetched: Vec<BlockKey> = rest[..run].iter().filter(|key| !is_here(key)).copied().collect();
            remote.directory.touch(&fetched);
            self.counts.remote_hit_blocks += fetched.len() as u64;
            hit_blocks += run;
        }
        let share = self.evictions_per_request_max;
        let reservation = match &self.remote {
            None => self.directory.begin_offload_if_worth(keys, 0, share),
            // As planners do: what L1 does not store never reaches L2.
            Some(_) => self.directory.begin_offload(keys, 0, share),
        };
        let fills: Vec<(SlotId, FillId)> =
            reservation.reserved.iter().map(|reserved| (reserved.slot, reserved.fill)).collect();
        self.directory.complete_fills(&fills, true);
        let hits: Vec<BlockKey> = reservation.hits.iter().map(|index| keys[*index]).collect();
        self.directory.touch(&hits);
        if let Some(remote) = &self.remote {
            self.counts.demoted += match remote.ingestion {
                Ingestion::All => {
                    remote.store(reservation.reserved.iter().map(|reserved| keys[reserved.index]))
                }
                Ingestion::Hot => remote.store(hits.iter().copied()),
                Ingestion::Evicted => remote.store(reservation.evicted.iter().map(|(_, key)| *key)),
            };
        }
        hit_blocks
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
    fn the_blocks_of_requests_are_numbered_by_first_appearance() {
        let mut trace = Trace::new(16);
        trace.push(32, &[70, 50]);
        trace.push(48, &[70, 90, 50]);
        assert_eq!(trace.requests_blocks().collect::<Vec<_>>(), [&[0, 1][..], &[0, 2, 1]]);
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
        let trace = Trace::new(16);
        let mut replay = Replay::new(&trace, 8, Box::new(Lru::new(8)));
        let keys = [0, 1, 2].map(key);
        assert_eq!(replay.serve(&keys), 0);
        replay.directory.delete(&keys[1..2]);
        assert_eq!(replay.serve(&keys), 1, "block 2 is resident, but behind the hole");
        assert_eq!(replay.serve(&keys), 3, "the hole was filled again");
    }

    #[test]
    fn a_request_larger_than_the_cache_keeps_its_head() {
        let counts = counts(&[&[1, 2, 3, 4, 5], &[1, 2, 3, 4, 5]], 3);
        assert_eq!((counts.hit_blocks, counts.refused, counts.evictions), (3, 4, 0));
    }

    #[test]
    fn one_request_evicts_a_quarter_of_the_slots_at_most() {
        let counts = counts(&[&[1, 2, 3, 4, 5, 6, 7, 8], &[11, 12, 13, 14], &[1, 2, 3, 4, 5, 6, 7, 8]], 8);
        assert_eq!(counts.hit_blocks, 6, "the second request took the place of 7 and 8");
        assert_eq!((counts.evictions, counts.refused), (4, 2));
    }

    #[test]
    fn a_block_that_comes_twice_in_a_request_is_stored_once() {
        let counts = counts(&[&[1, 2, 1, 2], &[1, 2]], 8);
        assert_eq!((counts.accesses, counts.hit_blocks), (6, 2));
    }

    fn with_remote(ingestion: Ingestion, requests: &[&[u64]]) -> ReplayCounts {
        let mut trace = Trace::new(16);
        requests.iter().for_each(|blocks| trace.push(16 * blocks.len() as u64, blocks));
        Replay::new(&trace, 4, Box::new(Lru::new(4))).with_remote(16, Box::new(Lru::new(16)), ingestion).run()
    }

    /// Two blocks of the first request are evicted for the second one, and come back.
    #[test]
    fn what_l1_evicts_l2_has() {
        let requests: &[&[u64]] = &[&[1, 2, 3, 4], &[7], &[1, 2, 3, 4]];
        let all = with_remote(Ingestion::All, requests);
        assert_eq!((all.hit_blocks, all.remote_hit_blocks, all.demoted), (4, 1, 5));
        let evicted = with_remote(Ingestion::Evicted, requests);
        assert_eq!((evicted.hit_blocks, evicted.remote_hit_blocks, evicted.demoted), (4, 1, 2));
        let hot = with_remote(Ingestion::Hot, requests);
        assert_eq!((hot.hit_blocks, hot.remote_hit_blocks, hot.demoted), (3, 0, 3));
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
