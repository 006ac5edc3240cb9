//! `kvcache bench`: what the block cache does on this machine, against `memcpy` of the same pieces.
//!
//! Absolute rates say more of the machine and its moment than of the cache. So every round times each contender once, in
//! turn, on the same number of pieces; a ratio is formed within its round, and the median and the quartiles of the
//! rounds are shown. The pieces of the baseline go to and from random places of a pool as large as the cache, with huge pages
//! where the cache has them.

use std::fmt::Write as _;
use std::hint::black_box;
use std::num::{NonZeroU32, NonZeroUsize};
use std::time::{Duration, Instant};

use kvcache_core::BlockKey;
use kvcache_core::block_cache::{BlockCache, BlockCacheConfig, OpenError, WrongBuffer};
use kvcache_core::block_key::{HashAlgorithm, TokenHasher};
use kvcache_core::copy_engine::stream_copy::Variant;
use kvcache_core::fingerprint::Namespace;
use memmap2::{Advice, MmapMut};
use serde::Serialize;

use kvcache_core::byte_size::ByteSize;

/// Measures put, get, match and eviction against memcpy of the same pieces.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Bytes of a block; can be given more than once.
    #[arg(long, value_name = "SIZE", default_values = ["2MiB", "32KiB"])]
    block_bytes: Vec<ByteSize>,
    /// Memory of a cache. Four times as much is needed in all.
    #[arg(long, value_name = "SIZE", default_value = "512MiB")]
    capacity: ByteSize,
    /// Copy threads of the second contender, the caller's included; the first has one.
    #[arg(long, default_value = "2")]
    threads: NonZeroUsize,
    /// Time for each block size.
    #[arg(long, value_name = "SECONDS", default_value = "4")]
    seconds: NonZeroU32,
    /// The eviction policy.
    #[arg(long, default_value = "default")]
    eviction: String,
    /// One JSON object instead of a table.
    #[arg(long)]
    json: bool,
}

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BenchError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(
        "a block of {block} does not fit a capacity of {capacity} {} times: raise --capacity or lower --block-bytes",
        BLOCKS_MIN
    )]
    TooFewBlocks { block: ByteSize, capacity: ByteSize },
    #[error("{threads} threads are more than a bench of one machine needs: use at most {THREADS_MAX}")]
    Threads { threads: usize },
    #[error("cannot take {bytes} for the baseline: {source}; lower --capacity")]
    Memory { bytes: ByteSize, source: std::io::Error },
    #[error("the cache refused a buffer of its own size: {0}")]
    Buffer(#[from] WrongBuffer),
    #[error("the cache held {held} of {blocks} blocks that it should have held")]
    Incomplete { held: usize, blocks: usize },
    #[error("cannot write JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// Median and quartiles over the rounds.
#[derive(Clone, Copy, Debug, Serialize)]
struct Spread {
    median: f64,
    low: f64,
    high: f64,
    rounds: usize,
}

#[derive(Debug, Serialize)]
struct Outcome {
    block_bytes: u64,
    capacity_bytes: u64,
    threads: usize,
    /// Blocks of one call.
    call_blocks: usize,
    streaming: String,
    memcpy_gb_s: Spread,
    put_gb_s: Spread,
    get_gb_s: Spread,
    /// Rates to that of memcpy in the same round.
    put_to_memcpy: Spread,
    get_to_memcpy: Spread,
    threads_put_gb_s: Spread,
    threads_get_gb_s: Spread,
    /// All threads copy sequentially with streaming stores: the memory's limit.
    ceiling_gb_s: Spread,
    /// Rates to the lesser of `threads` times one thread and the ceiling, in the same round.
    threads_put_to_best: Spread,
    threads_get_to_best: Spread,
    one_block_put_us: Spread,
    one_block_get_us: Spread,
    one_block_miss_us: Spread,
    match_2048_us: Spread,
    hash_2048_xxh3_us: Spread,
    hash_2048_blake3_us: Spread,
    /// What a put costs more where each block evicts another, for one block.
    evict_us: Spread,
    metadata_bytes_per_slot: f64,
}

pub(crate) fn run(args: &Args) -> Result<String, BenchError> {
    if args.threads.get() > THREADS_MAX {
        return Err(BenchError::Threads { threads: args.threads.get() });
    }
    for block in &args.block_bytes {
        if block.0 == 0 || args.capacity.0 / block.0 < BLOCKS_MIN {
            return Err(BenchError::TooFewBlocks { block: *block, capacity: args.capacity });
        }
    }
    let outcomes: Vec<Outcome> =
        args.block_bytes.iter().map(|block| Bench::new(args, *block)?.run()).collect::<Result<_, _>>()?;
    if args.json { Ok(serde_json::to_string_pretty(&outcomes)? + "\n") } else { Ok(table(&outcomes)) }
}

struct Bench<'a> {
    args: &'a Args,
    block_bytes: usize,
    call_blocks: usize,
    one: Contender,
    many: Contender,
    pool: MmapMut,
    buffer: MmapMut,
    random: Random,
}

/// A full cache and what is in it.
struct Contender {
    cache: BlockCache,
    resident: Vec<BlockKey>,
    next_key: u64,
}

impl<'a> Bench<'a> {
    fn new(args: &'a Args, block: ByteSize) -> Result<Self, BenchError> {
        let block_bytes = block.0 as usize;
        let slots = args.capacity.0 as usize / block_bytes;
        // A long prompt: 2,048 blocks of 32 KiB, 32 of 2 MiB; no more than a quarter of the cache.
        let call_blocks = (CALL_BYTES / block_bytes).clamp(1, slots / 4);
        Ok(Self {
            args,
            block_bytes,
            call_blocks,
            one: Contender::new(args, block_bytes, 1)?,
            many: Contender::new(args, block_bytes, args.threads.get())?,
            pool: memory(slots * block_bytes)?,
            buffer: memory((slots / 2).max(call_blocks) * block_bytes)?,
            random: Random(0x9E37_79B9_7F4A_7C15),
        })
    }

    fn run(&mut self) -> Result<Outcome, BenchError> {
        let mut rates: [Vec<f64>; 7] = Default::default();
        let mut single: [Vec<f64>; 3] = Default::default();
        let until = Instant::now() + Duration::from_secs(u64::from(self.args.seconds.get()));
        for warm_up in [true, false] {
            loop {
                let round = self.round()?;
                let latencies = self.one_block()?;
                if warm_up {
                    break;
                }
                rates.iter_mut().zip(round).for_each(|(all, rate)| all.push(rate));
                single.iter_mut().zip(latencies).for_each(|(all, time)| all.push(time));
                if Instant::now() >= until && rates[0].len() >= ROUNDS_MIN {
                    break;
                }
            }
        }
        let [memcpy_put, memcpy_get, put, get, many_put, many_get, ceiling] = &rates;
        let [one_block_put, one_block_get, one_block_miss] = &single;
        let threads = self.args.threads.get() as f64;
        let best = |one: &[f64]| -> Vec<f64> {
            one.iter().zip(ceiling).map(|(one, ceiling)| (one * threads).min(*ceiling)).collect()
        };
        let memcpy: Vec<f64> = memcpy_put.iter().chain(memcpy_get).copied().collect();
        let stats = self.one.cache.stats().directory;
        Ok(Outcome {
            block_bytes: self.block_bytes as u64,
            capacity_bytes: self.args.capacity.0,
            threads: self.args.threads.get(),
            call_blocks: self.call_blocks,
            streaming: format!("{:?}", Variant::best()),
            memcpy_gb_s: spread(&memcpy),
            put_gb_s: spread(put),
            get_gb_s: spread(get),
            put_to_memcpy: ratio(put, memcpy_put),
            get_to_memcpy: ratio(get, memcpy_get),
            threads_put_gb_s: spread(many_put),
            threads_get_gb_s: spread(many_get),
            ceiling_gb_s: spread(ceiling),
            threads_put_to_best: ratio(many_put, &best(put)),
            threads_get_to_best: ratio(many_get, &best(get)),
            one_block_put_us: spread(one_block_put),
            one_block_get_us: spread(one_block_get),
            one_block_miss_us: spread(one_block_miss),
            match_2048_us: self.match_time()?,
            hash_2048_xxh3_us: hash_time(HashAlgorithm::Xxh3),
            hash_2048_blake3_us: hash_time(HashAlgorithm::Blake3),
            evict_us: self.evict_time()?,
            metadata_bytes_per_slot: stats.metadata_bytes as f64 / stats.slot_count as f64,
        })
    }

    /// Each contender once: memcpy put and get, one thread put and get, all threads put and get, the ceiling; GB/s.
    fn round(&mut self) -> Result<[f64; 7], BenchError> {
        let (blocks, bytes) = (self.call_blocks, self.call_blocks * self.block_bytes);
        let block_bytes = self.block_bytes;
        // Each contender has places of its own, so that none finds in the processor's caches what another has left there.
        let mut places = self.places();
        let data = part(&mut self.buffer, &mut self.random, bytes);
        let memcpy_put = rate(bytes, || {
            for (block, place) in data.chunks_exact(block_bytes).zip(&places) {
                self.pool[*place..place + block_bytes].copy_from_slice(block);
            }
        });
        let data = part(&mut self.buffer, &mut self.random, bytes);
        let put = self.one.put(&mut self.random, data, blocks)?;
        let data = part(&mut self.buffer, &mut self.random, bytes);
        let many_put = self.many.put(&mut self.random, data, blocks)?;
        places = self.places();
        let data = part(&mut self.buffer, &mut self.random, bytes);
        let memcpy_get = rate(bytes, || {
            for (block, place) in data.chunks_exact_mut(block_bytes).zip(&places) {
                block.copy_from_slice(&self.pool[*place..place + block_bytes]);
            }
        });
        let data = part(&mut self.buffer, &mut self.random, bytes);
        let get = self.one.get(&mut self.random, data, blocks)?;
        let data = part(&mut self.buffer, &mut self.random, bytes);
        let many_get = self.many.get(&mut self.random, data, blocks)?;
        let ceiling = self.ceiling(bytes);
        let rates = [put, get, many_put, many_get].map(|time| bytes as f64 / time / 1e9);
        Ok([memcpy_put, memcpy_get, rates[0], rates[1], rates[2], rates[3], ceiling])
    }

    fn places(&mut self) -> Vec<usize> {
        let slots = self.pool.len() / self.block_bytes;
        let mut places = self.random.distinct(slots, self.call_blocks);
        places.iter_mut().for_each(|place| *place *= self.block_bytes);
        places
    }

    /// All threads copy their share of the buffer to their share of the pool, sequentially, with streaming stores.
    fn ceiling(&mut self, bytes: usize) -> f64 {
        let share = bytes / self.args.threads.get();
        let (source, pool) = (&*part(&mut self.buffer, &mut self.random, bytes), &mut self.pool[..]);
        let far = pool.len() / self.args.threads.get();
        let jobs: Vec<_> = source.chunks_exact(share).zip(pool.chunks_exact_mut(far)).collect();
        // From the first thread's first byte to the last thread's last: starting threads is not counted, but a thread that
        // has no processor to run on is.
        let barrier = std::sync::Barrier::new(jobs.len());
        let times: Vec<(Instant, Instant)> = std::thread::scope(|scope| {
            let running: Vec<_> = jobs
                .into_iter()
                .map(|(from, to)| {
                    let barrier = &barrier;
                    scope.spawn(move || {
                        barrier.wait();
                        let began = Instant::now();
                        Variant::best().copy_slice(from, &mut to[..share]);
                        (began, Instant::now())
                    })
                })
                .collect();
            running.into_iter().filter_map(|thread| thread.join().ok()).collect()
        });
        let began = times.iter().map(|(began, _)| *began).min();
        let ended = times.iter().map(|(_, ended)| *ended).max();
        let seconds = began.zip(ended).map_or(0.0, |(began, ended)| (ended - began).as_secs_f64());
        (share * self.args.threads.get()) as f64 / seconds.max(1e-9) / 1e9
    }

    /// One block: put over an eviction-free slot, get, and a get of what is not there; microseconds.
    fn one_block(&mut self) -> Result<[f64; 3], BenchError> {
        let mut times: [Vec<f64>; 3] = Default::default();
        for _ in 0..16 {
            let data = part(&mut self.buffer, &mut self.random, self.block_bytes);
            times[0].push(self.one.put(&mut self.random, data, 1)? * 1e6);
            times[1].push(self.one.get(&mut self.random, data, 1)? * 1e6);
            let absent = [self.one.fresh_key()];
            let began = Instant::now();
            let held = self.one.cache.get(&absent, data)?;
            times[2].push(began.elapsed().as_secs_f64() * 1e6);
            assert_eq!(held, 0, "a fresh key is nowhere");
        }
        Ok(times.map(|times| spread(&times).median))
    }

    fn match_time(&mut self) -> Result<Spread, BenchError> {
        // Tiny blocks, so that 2,048 fit whatever the size asked for.
        let cache = BlockCache::open(&BlockCacheConfig {
            eviction: self.args.eviction.clone(),
            ..BlockCacheConfig::new(64, 4096 * 64)
        })?;
        let mut next = 0;
        let keys: Vec<BlockKey> = (0..2048).map(|_| key(&mut next)).collect();
        fill(&cache, &keys, 64)?;
        let times: Vec<f64> = (0..201)
            .map(|_| {
                let began = Instant::now();
                let found = black_box(cache.match_prefix(black_box(&keys)));
                assert_eq!(found, keys.len());
                began.elapsed().as_secs_f64() * 1e6
            })
            .collect();
        Ok(spread(&times))
    }

    /// Puts of one tiny block into a full cache against puts into a cache with room, the same number of each.
    fn evict_time(&mut self) -> Result<Spread, BenchError> {
        let slots = 65_536;
        let open = || {
            let config = BlockCacheConfig {
                eviction: self.args.eviction.clone(),
                ..BlockCacheConfig::new(64, slots * 64)
            };
            BlockCache::open(&config)
        };
        let (full, roomy) = (open()?, open()?);
        let mut next = 0;
        let resident: Vec<BlockKey> = (0..slots).map(|_| key(&mut next)).collect();
        fill(&full, &resident, 64)?;
        let data = [7; 64];
        let mut times = Vec::new();
        for _ in 0..31 {
            let mut keys = (0..2).map(|_| (0..1024).map(|_| key(&mut next)).collect::<Vec<_>>());
            let mut per_put = |cache: &BlockCache| -> Result<f64, BenchError> {
                let keys = keys.next().unwrap_or_default();
                let began = Instant::now();
                for key in &keys {
                    cache.put(std::slice::from_ref(key), &data)?;
                }
                Ok(began.elapsed().as_secs_f64() * 1e6 / keys.len() as f64)
            };
            times.push(per_put(&full)? - per_put(&roomy)?);
        }
        Ok(spread(&times))
    }
}

impl Contender {
    /// A cache that is full, so that all its memory has been touched.
    fn new(args: &Args, block_bytes: usize, copy_threads: usize) -> Result<Self, BenchError> {
        let cache = BlockCache::open(&BlockCacheConfig {
            eviction: args.eviction.clone(),
            copy_threads,
            ..BlockCacheConfig::new(block_bytes, args.capacity.0)
        })?;
        let mut next_key = 0;
        let slots = args.capacity.0 as usize / block_bytes;
        let resident: Vec<BlockKey> = (0..slots).map(|_| key(&mut next_key)).collect();
        fill(&cache, &resident, block_bytes)?;
        Ok(Self { cache, resident, next_key })
    }

    fn fresh_key(&mut self) -> BlockKey {
        key(&mut self.next_key)
    }

    /// Replaces random blocks by new ones, in one call; the seconds of the call. What leaves is deleted before, since
    /// eviction has a measurement of its own.
    fn put(&mut self, random: &mut Random, data: &[u8], blocks: usize) -> Result<f64, BenchError> {
        let leaving = random.distinct(self.resident.len(), blocks);
        let old: Vec<BlockKey> = leaving.iter().map(|index| self.resident[*index]).collect();
        let new: Vec<BlockKey> = (0..blocks).map(|_| self.fresh_key()).collect();
        self.cache.delete(&old);
        let began = Instant::now();
        let held = self.cache.put(&new, data)?;
        let seconds = began.elapsed().as_secs_f64();
        for (index, key) in leaving.into_iter().zip(&new) {
            self.resident[index] = *key;
        }
        if held == blocks { Ok(seconds) } else { Err(BenchError::Incomplete { held, blocks }) }
    }

    /// Reads random blocks in one call; the seconds of the call.
    fn get(&mut self, random: &mut Random, out: &mut [u8], blocks: usize) -> Result<f64, BenchError> {
        let wanted = random.distinct(self.resident.len(), blocks);
        let keys: Vec<BlockKey> = wanted.into_iter().map(|index| self.resident[index]).collect();
        let began = Instant::now();
        let held = self.cache.get(&keys, out)?;
        let seconds = began.elapsed().as_secs_f64();
        if held == blocks { Ok(seconds) } else { Err(BenchError::Incomplete { held, blocks }) }
    }
}

/// Puts every key, once all memory is there.
fn fill(cache: &BlockCache, keys: &[BlockKey], block_bytes: usize) -> Result<(), BenchError> {
    let data = vec![1; block_bytes];
    let until = Instant::now() + RESERVATION_PATIENCE;
    loop {
        // Memory is reserved in the background, and a put looks how far that is.
        cache.put(&keys[..1], &data)?;
        let stats = cache.stats().directory;
        if stats.unusable == 0 {
            break;
        }
        if Instant::now() > until {
            return Err(BenchError::Incomplete {
                held: stats.slot_count - stats.unusable,
                blocks: keys.len(),
            });
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    for key in &keys[1..] {
        cache.put(std::slice::from_ref(key), &data)?;
    }
    let held = cache.stats().directory.ready;
    if held == keys.len() { Ok(()) } else { Err(BenchError::Incomplete { held, blocks: keys.len() }) }
}

fn hash_time(algorithm: HashAlgorithm) -> Spread {
    let tokens: Vec<u32> = (0..32_768).map(|token| token * 7 % 50_000).collect();
    let mut hasher = TokenHasher::new(algorithm, &Namespace::of_text("bench"), b"", 16);
    let times: Vec<f64> = (0..201)
        .map(|_| {
            let mut keys = Vec::with_capacity(2048);
            let began = Instant::now();
            hasher.chain(hasher.root(), black_box(&tokens).iter().copied(), &mut keys);
            black_box(&keys);
            began.elapsed().as_secs_f64() * 1e6
        })
        .collect();
    spread(&times)
}

/// Touched memory with huge pages where the system gives them, as slabs have.
fn memory(bytes: usize) -> Result<MmapMut, BenchError> {
    let failed = |source| BenchError::Memory { bytes: ByteSize(bytes as u64), source };
    let mut memory = MmapMut::map_anon(bytes).map_err(failed)?;
    // Without huge pages the baseline is what it is on such a system, for the cache too.
    let _ = memory.advise(Advice::HugePage);
    memory.fill(1);
    Ok(memory)
}

/// A random part of the buffer.
fn part<'a>(buffer: &'a mut [u8], random: &mut Random, bytes: usize) -> &'a mut [u8] {
    let at = random.below(buffer.len() / bytes) * bytes;
    &mut buffer[at..at + bytes]
}

fn key(next: &mut u64) -> BlockKey {
    *next += 1;
    let mut bytes = [0; 16];
    // Spread over the table as hashes are: an odd factor permutes the 64-bit integers.
    bytes[..8].copy_from_slice(&next.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes());
    bytes[8..].copy_from_slice(&next.to_le_bytes());
    BlockKey(bytes)
}

fn rate(bytes: usize, copy: impl FnOnce()) -> f64 {
    let began = Instant::now();
    copy();
    bytes as f64 / began.elapsed().as_secs_f64() / 1e9
}

fn ratio(values: &[f64], baseline: &[f64]) -> Spread {
    let ratios: Vec<f64> = values.iter().zip(baseline).map(|(value, base)| value / base).collect();
    spread(&ratios)
}

fn spread(values: &[f64]) -> Spread {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |share: f64| {
        sorted.get(((sorted.len().saturating_sub(1)) as f64 * share).round() as usize).copied().unwrap_or(0.0)
    };
    Spread { median: at(0.5), low: at(0.25), high: at(0.75), rounds: sorted.len() }
}

/// SplitMix64: the same places in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }

    /// `count` different numbers below `limit`, which is at least as large.
    fn distinct(&mut self, limit: usize, count: usize) -> Vec<usize> {
        let mut chosen = Vec::with_capacity(count);
        let mut seen = std::collections::HashSet::with_capacity(count);
        while chosen.len() < count.min(limit) {
            let number = self.below(limit);
            if seen.insert(number) {
                chosen.push(number);
            }
        }
        chosen
    }
}

fn table(outcomes: &[Outcome]) -> String {
    let mut text = String::new();
    for outcome in outcomes {
        let n = outcome.threads;
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "blocks of {} in {}, {} a call, {} stores; median [quartiles] of {} rounds",
            ByteSize(outcome.block_bytes),
            ByteSize(outcome.capacity_bytes),
            outcome.call_blocks,
            outcome.streaming,
            outcome.put_gb_s.rounds
        );
        for (name, value, unit) in [
            ("memcpy of the same pieces", outcome.memcpy_gb_s, "GB/s"),
            ("put, 1 thread", outcome.put_gb_s, "GB/s"),
            ("  to memcpy", outcome.put_to_memcpy, "x"),
            ("get, 1 thread", outcome.get_gb_s, "GB/s"),
            ("  to memcpy", outcome.get_to_memcpy, "x"),
            (&format!("put, {n} threads"), outcome.threads_put_gb_s, "GB/s"),
            ("  to the best possible", outcome.threads_put_to_best, "x"),
            (&format!("get, {n} threads"), outcome.threads_get_gb_s, "GB/s"),
            ("  to the best possible", outcome.threads_get_to_best, "x"),
            (&format!("{n} threads, streaming ceiling"), outcome.ceiling_gb_s, "GB/s"),
            ("put of one block", outcome.one_block_put_us, "us"),
            ("get of one block", outcome.one_block_get_us, "us"),
            ("get of one absent block", outcome.one_block_miss_us, "us"),
            ("match of 2,048 resident keys", outcome.match_2048_us, "us"),
            ("hash of 32,768 tokens, xxh3", outcome.hash_2048_xxh3_us, "us"),
            ("hash of 32,768 tokens, blake3", outcome.hash_2048_blake3_us, "us"),
            ("an eviction, beyond its put", outcome.evict_us, "us"),
        ] {
            let Spread { median, low, high, .. } = value;
            let _ = writeln!(text, "  {name:<34} {median:>9.2} {unit:<4}  [{low:.2}, {high:.2}]");
        }
        let _ =
            writeln!(text, "  {:<34} {:>9.1} bytes\n", "metadata of a slot", outcome.metadata_bytes_per_slot);
    }
    text
}

/// Fewer blocks than this show the processor's caches and not memory.
const BLOCKS_MIN: u64 = 8;

/// A bound on what is spawned: memory channels are full long before.
const THREADS_MAX: usize = 256;

/// Bytes of one call: longer than the processor's caches are large, short against a second.
const CALL_BYTES: usize = 64 << 20;

const ROUNDS_MIN: usize = 9;

/// Memory is reserved in the background at a gigabyte a second or so.
const RESERVATION_PATIENCE: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn args(line: &str) -> Args {
        use clap::Parser;
        Cli::try_parse_from(std::iter::once("bench").chain(line.split_whitespace())).unwrap().args
    }

    /// A real run, tiny: every number is there and finite.
    #[test]
    fn a_tiny_bench_fills_every_field() {
        let text = run(&args("--block-bytes 32KiB --capacity 1MiB --seconds 1 --json")).unwrap();
        let outcomes: serde_json::Value = serde_json::from_str(&text).unwrap();
        let outcome = outcomes[0].as_object().unwrap();
        assert_eq!(outcome["call_blocks"], 8);
        for (name, value) in outcome {
            if let Some(median) = value.get("median") {
                assert!(median.as_f64().is_some_and(f64::is_finite), "{name}: {value}");
                assert!(value["low"].as_f64() <= value["high"].as_f64(), "{name}: {value}");
            }
        }
        assert!(outcome["metadata_bytes_per_slot"].as_f64().is_some_and(|bytes| bytes > 0.0));
    }

    #[test]
    fn what_cannot_be_measured_is_refused_with_the_remedy() {
        for (line, remedy) in [
            ("--block-bytes 2MiB --capacity 4MiB", "raise --capacity"),
            ("--block-bytes 0", "lower --block-bytes"),
            ("--threads 1000", "use at most 256"),
            ("--eviction nonsense --capacity 16MiB --block-bytes 1MiB", "unknown eviction policy `nonsense`"),
        ] {
            let error = run(&args(line)).unwrap_err().to_string();
            assert!(error.contains(remedy), "{line}: {error}");
        }
    }

    #[test]
    fn quartiles_are_those_of_the_sorted_values() {
        let Spread { median, low, high, rounds } = spread(&[5.0, 1.0, 4.0, 2.0, 3.0]);
        assert_eq!((median, low, high, rounds), (3.0, 2.0, 4.0, 5));
    }
}
