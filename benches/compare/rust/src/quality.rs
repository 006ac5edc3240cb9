//! Hit ratios of all caches on a trace, by the rule of [`kvcache_core::replay`].
//!
//! A hit is the leading run of a request's blocks that are there. Every block that is missing is then stored and every
//! other one is used, block by block: a plain cache has no other way. In which order is its caller's choice, so both are tried.

use std::collections::BTreeMap;
use std::error::Error;
use std::num::NonZeroU64;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use kvcache_core::BlockKey;
use kvcache_core::eviction::PolicyRegistry;
use kvcache_core::replay::{Replay, ReplayCounts, Trace};
use kvcache_workload::{Blocks, ReadOptions, Reader};
use serde::Serialize;

use crate::key::key;
use crate::plain_cache::{Peer, PlainCache};

/// The hit ratios of a trace.
#[derive(Serialize)]
pub(crate) struct Quality {
    accesses: usize,
    distinct_blocks: usize,
    /// In the order of the capacities asked for.
    capacities: Vec<AtCapacity>,
}

/// Block hit ratios with one capacity.
#[derive(Default, Serialize)]
struct AtCapacity {
    capacity: u32,
    optimum: f64,
    /// By policy.
    ours: BTreeMap<&'static str, f64>,
    /// By cache and order.
    peers: BTreeMap<&'static str, BTreeMap<&'static str, f64>>,
}

/// Reads a workload file of blocks of `block_tokens`.
pub(crate) fn read(path: &Path, block_tokens: NonZeroU64) -> Result<Trace, Box<dyn Error>> {
    let options = ReadOptions { hash_block_tokens: block_tokens, ..ReadOptions::default() };
    let blocks = Blocks::new(block_tokens);
    let mut trace = Trace::new(block_tokens.get());
    for request in Reader::open(path, options)? {
        let request = request?;
        trace.push(blocks.input_tokens(&request), &blocks.ids(&request));
    }
    Ok(trace)
}

impl Quality {
    /// All caches at all capacities, as many at a time as there are processors.
    pub(crate) fn of(trace: &Trace, capacities: &[u32]) -> Result<Self, Box<dyn Error>> {
        if let Some(capacity) = capacities.iter().find(|capacity| !CAPACITIES.contains(*capacity)) {
            let (least, most) = (CAPACITIES.start(), CAPACITIES.end());
            return Err(format!(
                "a capacity of {capacity} blocks cannot be replayed, give {least} to {most}"
            )
            .into());
        }
        let requests: Vec<Vec<BlockKey>> = trace
            .requests_blocks()
            .map(|blocks| blocks.iter().map(|block| key(u64::from(*block))).collect())
            .collect();
        let jobs: Vec<(usize, Job)> =
            (0..capacities.len()).flat_map(|index| Job::all().map(move |job| (index, job))).collect();
        let next = AtomicUsize::new(0);
        let done = Mutex::new(Vec::with_capacity(jobs.len()));
        std::thread::scope(|scope| {
            for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
                scope.spawn(|| {
                    while let Some(&(index, job)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let ratio = job.hit_ratio(trace, &requests, capacities[index]);
                        done.lock().expect("no thread panics with the lock").push((index, job, ratio));
                    }
                });
            }
        });
        let mut at: Vec<AtCapacity> = capacities
            .iter()
            .map(|capacity| AtCapacity { capacity: *capacity, ..AtCapacity::default() })
            .collect();
        for (index, job, ratio) in done.into_inner()? {
            let (at, ratio) = (&mut at[index], ratio?);
            match job {
                Job::Optimum => at.optimum = ratio,
                Job::Ours(policy) => drop(at.ours.insert(policy, ratio)),
                Job::Peer(peer, order) => {
                    at.peers.entry(peer.name()).or_default().insert(order.name(), ratio);
                }
            }
        }
        Ok(Self { accesses: trace.access_count(), distinct_blocks: trace.block_count(), capacities: at })
    }
}

/// One replay.
#[derive(Clone, Copy)]
enum Job {
    Optimum,
    Ours(&'static str),
    Peer(Peer, Order),
}

impl Job {
    fn all() -> impl Iterator<Item = Self> {
        let peers = Peer::ALL.into_iter().flat_map(|peer| Order::ALL.map(|order| Self::Peer(peer, order)));
        peers.chain(POLICIES.map(Self::Ours)).chain([Self::Optimum])
    }

    fn hit_ratio(self, trace: &Trace, requests: &[Vec<BlockKey>], capacity: u32) -> Result<f64, String> {
        let ratio = |counts: ReplayCounts| counts.block_hit_ratio();
        match self {
            Self::Optimum => Ok(ratio(trace.optimum(capacity))),
            Self::Ours(name) => {
                let policy = PolicyRegistry::with_builtin().build(name, capacity);
                let policy = policy.map_err(|error| error.to_string())?;
                Ok(ratio(Replay::new(trace, capacity, policy).run()))
            }
            Self::Peer(peer, order) => {
                let hits = hit_blocks(&*peer.build(capacity), requests, capacity, order)
                    .map_err(|error| format!("{}: {error}", peer.name()))?;
                Ok(hits as f64 / trace.access_count().max(1) as f64)
            }
        }
    }
}

/// The order in which a plain cache is told of a request's blocks.
#[derive(Clone, Copy, Debug)]
enum Order {
    HeadFirst,
    TailFirst,
}

impl Order {
    const ALL: [Self; 2] = [Self::HeadFirst, Self::TailFirst];

    fn name(self) -> &'static str {
        match self {
            Self::HeadFirst => "head first",
            Self::TailFirst => "tail first",
        }
    }
}

/// Serves all requests with a cache; returns how many blocks hit.
fn hit_blocks(
    cache: &dyn PlainCache,
    requests: &[Vec<BlockKey>],
    capacity: u32,
    order: Order,
) -> Result<u64, String> {
    let mut hits = 0;
    for blocks in requests {
        hits += blocks.iter().take_while(|block| cache.contains(block)).count() as u64;
        match order {
            Order::HeadFirst => blocks.iter().for_each(|block| cache.use_or_insert(*block)),
            Order::TailFirst => blocks.iter().rev().for_each(|block| cache.use_or_insert(*block)),
        }
        let entries = cache.entries();
        if entries > u64::from(capacity) {
            return Err(format!("holds {entries} blocks with room for {capacity}"));
        }
    }
    Ok(hits)
}

/// Ours: the default of engines' caches, the one of block caches and servers, and the baseline.
const POLICIES: [&str; 3] = ["hit-density", "s3fifo", "lru"];

/// Below, no queue of S3-FIFO has room; above, nobody has a trace.
const CAPACITIES: std::ops::RangeInclusive<u32> = 10..=1 << 24;

#[cfg(test)]
mod tests {
    use super::*;

    /// A trace of requests with the lengths of `lengths`, of blocks that come back more or less often.
    fn trace(lengths: impl Iterator<Item = usize>) -> Trace {
        let mut trace = Trace::new(16);
        let mut random = 1_u64;
        for length in lengths {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            // Small numbers more often than large ones.
            let document = (random >> 33) % 400 * ((random >> 20) % 400) / 400;
            let blocks: Vec<u64> = (0..length as u64).map(|index| document * 100 + index).collect();
            trace.push(16 * length as u64, &blocks);
        }
        trace
    }

    fn ratio(job: Job, trace: &Trace, capacity: u32) -> f64 {
        let requests: Vec<Vec<BlockKey>> = trace
            .requests_blocks()
            .map(|blocks| blocks.iter().map(|block| key(u64::from(*block))).collect())
            .collect();
        job.hit_ratio(trace, &requests, capacity).expect("replayed")
    }

    /// With requests of one block nothing is left of prompts: an LRU is an LRU, whoever wrote it.
    #[test]
    fn three_lrus_agree_where_requests_have_one_block() {
        let trace = trace((0..20_000).map(|_| 1));
        for capacity in [10, 37, 100, 250] {
            let ours = ratio(Job::Ours("lru"), &trace, capacity);
            assert!(ours > 0.05 && ours < 0.95, "{ours} says nothing");
            for peer in [Peer::FoyerLruOnePool, Peer::MokaLru] {
                for order in Order::ALL {
                    let theirs = ratio(Job::Peer(peer, order), &trace, capacity);
                    assert!(ours == theirs, "{} at {capacity}: {theirs} instead of {ours}", peer.name());
                }
            }
        }
    }

    #[test]
    fn with_room_for_everything_all_caches_hit_the_same() {
        let trace = trace((0..3000).map(|index| index % 20 + 1));
        let optimum = ratio(Job::Optimum, &trace, 1 << 16);
        for job in Job::all() {
            assert!(ratio(job, &trace, 1 << 16) == optimum);
        }
    }

    #[test]
    fn no_cache_passes_the_optimum() {
        let trace = trace((0..3000).map(|index| index % 20 + 1));
        let optimum = ratio(Job::Optimum, &trace, 200);
        for job in Job::all() {
            let ratio = ratio(job, &trace, 200);
            assert!(ratio > 0.0 && ratio <= optimum, "{ratio} beside {optimum}");
        }
    }

    /// Told from the tail, a cache of three keeps the head of 1 2 3 4; told from the head, it keeps the tail.
    #[test]
    fn heads_outlive_tails_where_tails_are_told_first() {
        let requests = vec![[1, 2, 3, 4].map(key).to_vec(); 2];
        for peer in [Peer::FoyerLruOnePool, Peer::MokaLru] {
            let hits = |order| hit_blocks(&*peer.build(3), &requests, 3, order).expect("served");
            assert_eq!((hits(Order::HeadFirst), hits(Order::TailFirst)), (0, 3), "{}", peer.name());
        }
    }

    #[test]
    fn a_capacity_that_cannot_be_replayed_is_named() {
        let error = Quality::of(&trace([1].into_iter()), &[3]).err().expect("refused").to_string();
        assert_eq!(error, "a capacity of 3 blocks cannot be replayed, give 10 to 16777216");
    }

    #[test]
    fn every_replay_is_in_the_answer() {
        let trace = trace((0..500).map(|index| index % 9 + 1));
        let quality = Quality::of(&trace, &[20, 60]).expect("replayed");
        for (at, capacity) in quality.capacities.iter().zip([20, 60]) {
            assert_eq!(at.capacity, capacity);
            assert_eq!(at.ours.len(), POLICIES.len());
            assert_eq!(at.peers.len(), Peer::ALL.len());
            assert!(at.peers.values().all(|orders| orders.len() == 2));
            assert!(at.optimum >= at.ours["lru"]);
        }
    }
}
