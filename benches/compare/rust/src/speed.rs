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
    let run = &Run::new(case);
    // The same threads from the first block to the last sample: an allocator keeps memory for each of its threads.
    let times: Vec<Vec<Time>> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..case.threads).map(|thread| scope.spawn(move || Worker::new(run, thread).times())).collect();
        let times = threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| Err("a thread panicked".to_owned())));
        times.collect::<Result<_, _>>()
    })?;
    let mut samples: BTreeMap<&'static str, Vec<f64>> = BTreeMap::new();
    for (index, first) in times[0].iter().enumerate() {
        let began = times.iter().map(|of| of[index].began).min().unwrap_or(first.began);
        let ended = times.iter().map(|of| of[index].ended).max().unwrap_or(first.ended);
        let blocks = case.threads * case.sample_blocks;
        samples
            .entry(run.sides[first.side].name())
            .or_default()
            .push(microseconds(ended - began) / blocks as f64);
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

/// What the threads of one case share.
struct Run<'a> {
    case: &'a Case,
    sides: [Box<dyn Contender>; 3],
    barrier: Barrier,
    /// First numbers of the calls that fill a cache, in an order that looks random.
    resident: Vec<u64>,
    /// Numbers below have been keys.
    next_key: AtomicU64,
}

impl<'a> Run<'a> {
    /// Fills for puts to the brim; for gets to three quarters, so that a cache of shards, which fill unevenly, keeps all.
    fn new(case: &'a Case) -> Self {
        let capacity = u64::from(case.capacity);
        let blocks = case.blocks as u64;
        let calls = if case.verb == Verb::Put { capacity * 2 } else { capacity * 3 / 4 } / blocks;
        Self {
            case,
            sides: Side::ALL.map(|side| side.build(case.capacity, case.value_bytes)),
            barrier: Barrier::new(case.threads),
            resident: shuffled(calls).into_iter().map(|call| call * blocks).collect(),
            next_key: AtomicU64::new(calls * blocks),
        }
    }
}

/// When a thread's part of a sample began and ended.
struct Time {
    side: usize,
    began: Instant,
    ended: Instant,
}

struct Worker<'a> {
    run: &'a Run<'a>,
    thread: usize,
    buffer: Buffer,
    /// What went wrong first. The thread goes on nevertheless, since the others wait for it.
    error: Option<String>,
}

impl<'a> Worker<'a> {
    fn new(run: &'a Run<'a>, thread: usize) -> Self {
        let buffer = Buffer::new(run.case.blocks, run.case.value_bytes);
        Self { run, thread, buffer, error: None }
    }

    /// Of all samples but those of the first round, which warms up.
    fn times(mut self) -> Result<Vec<Time>, String> {
        let mut times = Vec::new();
        for side in &self.run.sides {
            self.fill(&**side);
        }
        for round in 0..=self.run.case.rounds {
            for turn in 0..self.run.sides.len() {
                let time = self.sample((round + turn) % self.run.sides.len(), round);
                if round > 0 {
                    times.push(time);
                }
            }
        }
        self.error.map_or(Ok(times), Err)
    }

    /// This thread's share of the calls that fill a cache.
    fn fill(&mut self, side: &dyn Contender) {
        side.settle();
        for first in self.run.resident.iter().skip(self.thread).step_by(self.run.case.threads) {
            let keys = self.keys(*first);
            self.buffer.stamp(&keys);
            if let Err(error) = side.put(&keys, &self.buffer) {
                self.note(side, error);
            }
            side.settle();
        }
    }

    fn sample(&mut self, index: usize, round: usize) -> Time {
        let (run, case, side) = (self.run, self.run.case, &*self.run.sides[index]);
        let calls = case.sample_blocks / case.blocks;
        let first = (round * case.threads + self.thread) * calls;
        let calls: Vec<Vec<BlockKey>> = (first..first + calls)
            .map(|call| match case.verb {
                Verb::Get => run.resident[call % run.resident.len()],
                Verb::Miss | Verb::Put => run.next_key.fetch_add(case.blocks as u64, Ordering::Relaxed),
            })
            .map(|first| self.keys(first))
            .collect();
        let wanted = if case.verb == Verb::Miss { 0 } else { case.blocks };
        let mut done = Ok(());
        run.barrier.wait();
        let began = Instant::now();
        for keys in &calls {
            let count = match case.verb {
                Verb::Get | Verb::Miss => side.get(keys, &mut self.buffer),
                Verb::Put => side.put(keys, &self.buffer),
            };
            match count {
                Ok(count) if count == wanted => {}
                Ok(count) => done = Err(format!("{:?} did {count} of {wanted} blocks", case.verb)),
                Err(error) => done = Err(error),
            }
        }
        let ended = Instant::now();
        if let (Verb::Get, Ok(()), Some(keys)) = (case.verb, &done, calls.last()) {
            done = self.buffer.check(keys);
        }
        if let Err(error) = done {
            self.note(side, error);
        }
        // The next sample's keys are made when nobody is measured any more.
        run.barrier.wait();
        Time { side: index, began, ended }
    }

    fn keys(&self, first: u64) -> Vec<BlockKey> {
        (first..first + self.run.case.blocks as u64).map(key).collect()
    }

    fn note(&mut self, side: &dyn Contender, error: String) {
        self.error.get_or_insert_with(|| format!("{}: {error}", side.name()));
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

    /// The Directory gives one request a quarter of its slots at most, which is not what the others do.
    #[test]
    fn a_call_that_does_less_is_an_error() {
        let case = Case { capacity: 4096, blocks: 512, sample_blocks: 512, ..case(Verb::Put, 0, 1, 1) };
        let run = Run::new(&case);
        let mut worker = Worker::new(&run, 0);
        worker.sample(0, 0);
        assert_eq!(worker.error, None);
        let case = Case { capacity: 256, ..case };
        let run = Run::new(&case);
        let mut worker = Worker::new(&run, 0);
        worker.sample(0, 0);
        assert_eq!(worker.error.as_deref(), Some("ours: Put did 256 of 512 blocks"));
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
