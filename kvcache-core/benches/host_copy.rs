//! Streaming copies of random slots against `memcpy` of the same pieces, in the same run.
//!
//! `cargo bench -p kvcache-core --bench host_copy` (`-- submit` for the cost of a submit alone)
//!
//! Put-like copies go from a contiguous buffer to random slots of a 1 GiB pool, get-like ones back. Each round times every
//! contender on the same slots, in turn, so that drift of the machine touches all alike; a ratio is formed within its
//! round, and the median, smallest and largest of the rounds are printed. The ceilings (reading only, streaming
//! writes only) tell how far a copy, which does both, could get: about 1 / (1 / read + 1 / write) if they did not overlap.

use std::hint::black_box;
use std::time::{Duration, Instant};

use kvcache_core::copy_engine::stream_copy::{Variant, fence};
use kvcache_core::copy_engine::{CopyBatch, CopyEngine, Direction, HostCopyConfig, HostCopyEngine, Piece};

const POOL_BYTES: usize = 1 << 30;
const BUFFER_BYTES: usize = 256 << 20;
const ROUND_BYTES: usize = 512 << 20;
const ROUNDS: usize = 9;

fn main() {
    submit_cost();
    if std::env::args().any(|argument| argument == "submit") {
        return;
    }
    for huge in [true, false] {
        let (pool, buffer) = (Region::new(POOL_BYTES, huge), Region::new(BUFFER_BYTES, huge));
        println!("huge pages {huge}: pool {} MiB, buffer {} MiB", POOL_BYTES >> 20, BUFFER_BYTES >> 20);
        for block_bytes in [2 << 20, 32 << 10] {
            ceilings(&pool, &buffer, block_bytes);
            for put in [true, false] {
                single_thread(&pool, &buffer, block_bytes, put);
            }
        }
        two_threads(&pool, &buffer);
    }
}

/// Copies per variant, one thread.
fn single_thread(pool: &Region, buffer: &Region, block_bytes: usize, put: bool) {
    let variants = Variant::available();
    let mut rates = vec![Vec::new(); variants.len()];
    for round in 0..ROUNDS {
        let pieces = pieces(pool, buffer, block_bytes, put, round);
        for (variant, rates) in variants.iter().zip(&mut rates) {
            rates.push(gigabytes_per_second(|| {
                for piece in &pieces {
                    // SAFETY: pieces lie within the two regions, which do not overlap and are this thread's alone.
                    unsafe { variant.copy(piece.src as *const u8, piece.dst as *mut u8, piece.bytes) };
                }
                fence();
            }));
        }
    }
    let way = if put { "put" } else { "get" };
    for (variant, rate) in variants.iter().zip(&rates) {
        let ratios = rate.iter().zip(&rates[0]).map(|(rate, plain)| rate / plain).collect();
        println!(
            "  {way} {:>4} KiB {:8} {}  GB/s, to memcpy {}",
            block_bytes >> 10,
            format!("{variant:?}"),
            Spread(rate.clone()),
            Spread(ratios)
        );
    }
}

/// The host engine with one caller and no pool, and with a pool thread beside the caller.
fn two_threads(pool: &Region, buffer: &Region) {
    for block_bytes in [2 << 20, 32 << 10] {
        let (mut one, mut two, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            let pieces = pieces(pool, buffer, block_bytes, true, round);
            one.push(engine_rate(0, &pieces));
            two.push(engine_rate(1, &pieces));
            ratios.push(two[round] / one[round]);
        }
        let (one, two) = (Spread(one), Spread(two));
        println!(
            "  engine {:>4} KiB put, caller alone {one}, with a pool thread {two}  GB/s",
            block_bytes >> 10
        );
        println!("    two threads to one: {}", Spread(ratios));
    }
    let half = BUFFER_BYTES / 2;
    let rates = (0..ROUNDS).map(|_| {
        gigabytes_per_second(|| {
            std::thread::scope(|scope| {
                for thread in 0..2 {
                    let (src, dst) = (buffer.at(thread * half) as usize, pool.at(thread * half * 2) as usize);
                    // SAFETY: each thread copies its own half of the buffer to its own part of the pool.
                    scope.spawn(move || unsafe {
                        for _ in 0..2 {
                            Variant::best().copy(src as *const u8, dst as *mut u8, half);
                        }
                        fence();
                    });
                }
            });
        })
    });
    println!("  two-thread ceiling, sequential streaming copy: {}  GB/s", Spread(rates.collect()));
}

fn engine_rate(threads: usize, pieces: &[Piece]) -> f64 {
    let engine =
        HostCopyEngine::new(HostCopyConfig { threads, ..HostCopyConfig::default() }).expect("threads");
    std::thread::sleep(Duration::from_millis(2));
    let (pieces, direction) = (pieces.to_vec(), Direction::Offload);
    let batch = CopyBatch { pieces, direction, fence: None, streaming: true, urgent: false };
    gigabytes_per_second(|| {
        // SAFETY: as for the pieces of `single_thread`; the wait sees the end.
        let ticket = unsafe { engine.submit(batch) }.expect("an empty engine has room");
        assert!(engine.wait(ticket, Duration::from_secs(60)).is_finished());
    })
}

/// What a caller pays for handing over a tiny batch while the pool's thread is asleep, and while it is busy.
fn submit_cost() {
    let (mut src, mut dst) = (vec![1_u8; 4096], vec![0_u8; 4096]);
    let piece = Piece { src: src.as_mut_ptr() as usize, dst: dst.as_mut_ptr() as usize, bytes: 4096 };
    for threads in [0, 1] {
        let engine =
            HostCopyEngine::new(HostCopyConfig { threads, ..HostCopyConfig::default() }).expect("threads");
        let (mut submits, mut polls) = (Vec::new(), Vec::new());
        for _ in 0..2000 {
            std::thread::sleep(Duration::from_micros(100));
            let batch = CopyBatch {
                pieces: vec![piece],
                direction: Direction::Load,
                fence: None,
                streaming: false,
                urgent: false,
            };
            let started = Instant::now();
            // SAFETY: one batch at a time, over buffers that outlive the engine.
            let ticket = unsafe { engine.submit(batch) }.expect("an empty engine has room");
            submits.push(started.elapsed().as_secs_f64() * 1e6);
            let started = Instant::now();
            if !engine.poll(ticket).is_finished() {
                polls.push(started.elapsed().as_secs_f64() * 1e6);
                assert!(engine.wait(ticket, Duration::from_secs(60)).is_finished());
            }
        }
        println!(
            "submit 4 KiB, {threads} pool threads asleep: {} us; poll {} us",
            Spread(submits),
            Spread(polls)
        );
    }
}

fn ceilings(pool: &Region, buffer: &Region, block_bytes: usize) {
    let (mut reads, mut writes) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let pieces = pieces(pool, buffer, block_bytes, true, round);
        writes.push(gigabytes_per_second(|| {
            let line = vec![7_u8; block_bytes];
            for piece in &pieces {
                for at in (0..block_bytes).step_by(16 << 10) {
                    // SAFETY: `line` and the slot both hold `block_bytes`; a 16 KiB source stays in the L1 cache.
                    unsafe {
                        Variant::best().copy(line.as_ptr(), (piece.dst + at) as *mut u8, 16 << 10);
                    }
                }
            }
            fence();
        }));
        reads.push(gigabytes_per_second(|| {
            for piece in &pieces {
                // SAFETY: the slot holds `block_bytes` initialised bytes, aligned for `u64`.
                let words =
                    unsafe { std::slice::from_raw_parts(piece.dst as *const [u64; 8], block_bytes / 64) };
                let sum = words.iter().fold([0_u64; 8], |mut sum, line| {
                    for (sum, word) in sum.iter_mut().zip(line) {
                        *sum ^= word;
                    }
                    sum
                });
                black_box(sum);
            }
        }));
    }
    let (reads, writes) = (Spread(reads), Spread(writes));
    println!(
        "  ceilings {:>4} KiB: read only {reads}, streaming write only {writes}  GB/s",
        block_bytes >> 10
    );
}

fn pieces(pool: &Region, buffer: &Region, block_bytes: usize, put: bool, round: usize) -> Vec<Piece> {
    let slots = POOL_BYTES / block_bytes;
    // A full-period affine sequence over a power of two of slots: random to the hardware, no slot twice in a round.
    let mut slot = round * 7919 % slots;
    (0..ROUND_BYTES / block_bytes)
        .map(|index| {
            slot = (slot * 1_664_525 + 1_013_904_223) % slots;
            let place = pool.at(slot * block_bytes) as usize;
            let here = buffer.at(index * block_bytes % BUFFER_BYTES) as usize;
            let (src, dst) = if put { (here, place) } else { (place, here) };
            Piece { src, dst, bytes: block_bytes }
        })
        .collect()
}

fn gigabytes_per_second(copy: impl FnOnce()) -> f64 {
    let started = Instant::now();
    copy();
    ROUND_BYTES as f64 / started.elapsed().as_secs_f64() / 1e9
}

/// Median, smallest and largest.
struct Spread(Vec<f64>);

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut values = self.0.clone();
        values.sort_by(f64::total_cmp);
        let (Some(least), Some(most)) = (values.first(), values.last()) else { return write!(f, "-") };
        write!(f, "{:.2} ({least:.2}..{most:.2})", values[values.len() / 2])
    }
}

/// Touched anonymous memory, with or without huge pages; never unmapped, since the process ends with the bench.
struct Region {
    base: *mut u8,
    bytes: usize,
}

impl Region {
    fn new(bytes: usize, huge: bool) -> Self {
        let alignment = 2 << 20;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new anonymous mapping touches no existing memory; the aligned part lies within it.
        unsafe {
            let base = libc::mmap(std::ptr::null_mut(), bytes + alignment, protection, flags, -1, 0);
            assert_ne!(base, libc::MAP_FAILED, "no memory for the bench");
            let base = base.cast::<u8>();
            let base = base.add(base.align_offset(alignment));
            libc::madvise(base.cast(), bytes, if huge { libc::MADV_HUGEPAGE } else { libc::MADV_NOHUGEPAGE });
            base.write_bytes(1, bytes);
            Region { base, bytes }
        }
    }

    fn at(&self, offset: usize) -> *mut u8 {
        assert!(offset < self.bytes);
        // SAFETY: within the mapping by the assertion.
        unsafe { self.base.add(offset) }
    }
}
