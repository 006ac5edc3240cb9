//! The time of an operation with each cache, in turn, as samples that others make ratios of.
//!
//! Before the first sample each cache is filled. A get is of blocks that are there, asked for in an order that looks random; a miss
//! is of blocks that never were; a put is of new blocks into a full cache, so that each evicts. What a call did
//! is checked: one that found or stored less is an error and no sample.

use std::collections::BTreeMap;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kvcache_core::BlockKey;
use serde::Deserialize;

use crate::contender::{Buffer, Contender, Side};
use crate::key::key;

/// What is measured.
#[derive(Deserialize, Debug)]
pub(crate) struct Case {
    verb: Verb,
    /// Bytes of a value; 0 for none, where a block's slot is all that is kept.
    value_bytes: usize,
    /// Blocks of one call, which are a prompt.
    blocks: usize,
    threads: usize,
    /// Samples of each cache.
    rounds: usize,
    /// Blocks that the caches have room for.
    capacity: u32,
    /// Blocks of one sample, of each thread.
    sample_blocks: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize, Debug)]
#[serde(rename_all = "lowercase")]
enum Verb {
    Get,
    Miss,
    Put,
}

/// Microseconds a block in each round, by cache.
pub(crate) fn samples(case: &Case) -> Result<BTreeMap<&'static str, Vec<f64>>, String> {
    case.check()?;
    let sides = Side::ALL.map(|side| side.build(case.capacity, case.value_bytes));
    let mut run = Run { case, buffers: Vec::new(), next_key: AtomicU64::new(0), resident: Vec::new() };
    run.buffers = (0..case.threads).map(|_| Buffer::new(case.blocks, case.value_bytes)).collect();
    for side in &sides {
        run.fill(&**side)?;
    }
    let mut samples: BTreeMap<&'static str, Vec<f64>> = BTreeMap::new();
    for round in 0..=case.rounds {
        for turn in 0..sides.len() {
            let index = (round + turn) % sides.len();
            let us = run.sample(&*sides[index], round)?;
            // The first round warms up.
            if round > 0 {
                samples.entry(Side::ALL[index].name()).or_default().push(us);
            }
        }
    }
    Ok(samples)
}

impl Case {
    fn check(&self) -> Result<(), String> {
        let bytes = u64::from(self.capacity) * self.value_bytes as u64;
        if bytes > CAPACITY_BYTES_MAX || self.capacity as usize > CAPACITY_MAX {
            return Err(format!(
                "{} blocks of {} bytes are too many, give {CAPACITY_MAX} blocks and {CAPACITY_BYTES_MAX} bytes at most",
                self.capacity, self.value_bytes
            ));
        }
        if !self.value_bytes.is_multiple_of(8) {
            return Err(format!("value_bytes is {}: give a multiple of 8", self.value_bytes));
        }
        let is_whole = self.blocks > 0 && self.sample_blocks.is_multiple_of(self.blocks);
        if !is_whole || self.sample_blocks == 0 || self.sample_blocks > CAPACITY_MAX {
            let (blocks, sample) = (self.blocks, self.sample_blocks);
            return Err(format!(
                "a sample of {sample} blocks is no whole number of calls of {blocks} blocks"
            ));
        }
        if self.blocks > self.capacity as usize / 8 {
            return Err(format!(
                "a call of {} blocks would need a quarter of a cache of {}",
                self.blocks, self.capacity
            ));
        }
        if !(1..=THREADS_MAX).contains(&self.threads) || !(1..=ROUNDS_MAX).contains(&self.rounds) {
            return Err(format!(
                "{} threads and {} rounds: give 1 to {THREADS_MAX} and 1 to {ROUNDS_MAX}",
                self.threads, self.rounds
            ));
        }
        Ok(())
    }
}

/// What the samples of one case share.
struct Run<'a> {
    case: &'a Case,
    /// Of each thread.
    buffers: Vec<Buffer>,
    /// Numbers below have been keys.
    next_key: AtomicU64,
    /// Numbers of the blocks that gets ask for, a call's after another's.
    resident: Vec<u64>,
}

impl Run<'_> {
    /// For puts to the brim; for gets to three quarters, so that a cache of shards, which fill unevenly, keeps all.
    fn fill(&mut self, side: &dyn Contender) -> Result<(), String> {
        let capacity = self.case.capacity as u64;
        let count = if self.case.verb == Verb::Put { capacity * 2 } else { capacity * 3 / 4 };
        let calls = count / self.case.blocks as u64;
        let buffer = &mut self.buffers[0];
        side.settle();
        for call in 0..calls {
            let keys = self.case.keys(call * self.case.blocks as u64);
            buffer.stamp(&keys);
            side.put(&keys, buffer).map_err(|error| format!("{}: {error}", side.name()))?;
            side.settle();
        }
        let numbers = calls * self.case.blocks as u64;
        self.next_key.fetch_max(numbers, Ordering::Relaxed);
        self.resident = shuffled(calls).into_iter().map(|call| call * self.case.blocks as u64).collect();
        Ok(())
    }

    /// Microseconds a block, all threads together.
    fn sample(&mut self, side: &dyn Contender, round: usize) -> Result<f64, String> {
        let case = self.case;
        let calls = case.sample_blocks / case.blocks;
        let starts: Vec<Vec<u64>> = (0..case.threads)
            .map(|thread| match case.verb {
                Verb::Get => {
                    let first = (round * case.threads + thread) * calls;
                    (first..first + calls).map(|call| self.resident[call % self.resident.len()]).collect()
                }
                Verb::Miss | Verb::Put => (0..calls)
                    .map(|_| self.next_key.fetch_add(case.blocks as u64, Ordering::Relaxed))
                    .collect(),
            })
            .collect();
        let barrier = Barrier::new(case.threads);
        let results: Vec<Result<(Instant, Instant), String>> = std::thread::scope(|scope| {
            let threads: Vec<_> = self
                .buffers
                .iter_mut()
                .zip(&starts)
                .map(|(buffer, starts)| scope.spawn(|| case.work(side, buffer, starts, &barrier)))
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|_| Err("a thread panicked".to_owned())))
                .collect()
        });
        let times = results
            .into_iter()
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| format!("{}: {error}", side.name()))?;
        let began = times.iter().map(|(began, _)| *began).min().ok_or("no thread")?;
        let ended = times.iter().map(|(_, ended)| *ended).max().ok_or("no thread")?;
        let blocks = case.threads * case.sample_blocks;
        Ok(microseconds(ended - began) / blocks as f64)
    }
}

impl Case {
    fn keys(&self, first: u64) -> Vec<BlockKey> {
        (first..first + self.blocks as u64).map(key).collect()
    }

    /// One thread's calls; when they began and ended.
    fn work(
        &self,
        side: &dyn Contender,
        buffer: &mut Buffer,
        starts: &[u64],
        barrier: &Barrier,
    ) -> Result<(Instant, Instant), String> {
        let calls: Vec<Vec<BlockKey>> = starts.iter().map(|first| self.keys(*first)).collect();
        let wanted = if self.verb == Verb::Miss { 0 } else { self.blocks };
        let mut done = Ok(());
        barrier.wait();
        let began = Instant::now();
        for keys in &calls {
            let count = match self.verb {
                Verb::Get | Verb::Miss => side.get(keys, buffer),
                Verb::Put => side.put(keys, buffer),
            };
            match count {
                Ok(count) if count == wanted => {}
                Ok(count) => done = Err(format!("{:?} did {count} of {wanted} blocks", self.verb)),
                Err(error) => done = Err(error),
            }
        }
        let ended = Instant::now();
        done?;
        if let (Verb::Get, Some(keys)) = (self.verb, calls.last()) {
            buffer.check(keys)?;
        }
        Ok((began, ended))
    }
}

fn microseconds(time: Duration) -> f64 {
    time.as_nanos() as f64 / 1e3
}

/// The numbers below `count` in an order that looks random.
fn shuffled(count: u64) -> Vec<u64> {
    let mut numbers: Vec<u64> = (0..count).collect();
    numbers.sort_by_key(|number| key(*number));
    numbers
}

const CAPACITY_MAX: usize = 1 << 22;
/// Three caches of that size at a time.
const CAPACITY_BYTES_MAX: u64 = 1 << 30;
const THREADS_MAX: usize = 64;
const ROUNDS_MAX: usize = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn case(verb: Verb, value_bytes: usize, blocks: usize, threads: usize) -> Case {
        Case { verb, value_bytes, blocks, threads, rounds: 3, capacity: 4096, sample_blocks: 512 }
    }

    #[test]
    fn every_cache_has_a_sample_of_every_round() {
        for verb in [Verb::Get, Verb::Miss, Verb::Put] {
            for value_bytes in [0, 64] {
                for (blocks, threads) in [(1, 1), (64, 2)] {
                    let case = case(verb, value_bytes, blocks, threads);
                    let samples = samples(&case).unwrap_or_else(|error| panic!("{case:?}: {error}"));
                    assert_eq!(samples.keys().copied().collect::<Vec<_>>(), ["foyer", "moka", "ours"]);
                    assert!(samples.values().all(|us| us.len() == 3 && us.iter().all(|us| *us > 0.0)));
                }
            }
        }
    }

    #[test]
    fn a_case_that_cannot_be_measured_is_named() {
        let good = || case(Verb::Get, 64, 1, 1);
        for (case, expected) in [
            (Case { capacity: 1 << 30, ..good() }, "1073741824 blocks of 64 bytes are too many"),
            (Case { value_bytes: 12, ..good() }, "value_bytes is 12"),
            (Case { blocks: 0, ..good() }, "no whole number of calls of 0 blocks"),
            (Case { blocks: 100, ..good() }, "a sample of 512 blocks is no whole number of calls of 100"),
            (Case { blocks: 4096, sample_blocks: 4096, ..good() }, "a call of 4096 blocks"),
            (Case { threads: 0, ..good() }, "0 threads"),
            (Case { rounds: 0, ..good() }, "0 rounds"),
        ] {
            let error = samples(&case).expect_err("is refused");
            assert!(error.contains(expected), "{error}");
        }
    }
}
