//! Block accesses that a replay serves in a second of processor time, beside the least that an LRU can cost.
//!
//! `cargo bench -p kvcache-benches --bench replay` (`-- --quick` for one small cache)
//!
//! Replayed are all traces at all capacities of docs/eviction.md. The baseline is a bare LRU list on the same requests:
//! indexed by the numbers of the blocks, so that it hashes nothing, and without a Directory. Each round runs every
//! contender once, in turn; printed is the median of the rounds with the least and the most.

use std::hint::black_box;
use std::num::NonZeroU64;
use std::path::Path;

use kvcache_core::eviction::PolicyRegistry;
use kvcache_core::replay::{Replay, Trace};
use kvcache_workload::{Blocks, ReadOptions, Reader};
use rustix::time::{ClockId, clock_gettime};

const BLOCK_TOKENS: NonZeroU64 = NonZeroU64::new(512).expect("512 is not 0");

const TRACES: [(&str, &[u32]); 3] = [
    ("conversation", &[913, 1_827, 3_655, 9_139, 18_279, 36_558, 91_395]),
    ("synthetic", &[439, 2_196, 4_392, 8_784, 21_962]),
    ("agentic_coding", &[359, 719, 1_439, 3_598, 7_196, 14_392]),
];
const POLICIES: [&str; 3] = ["lru", "s3fifo", "hit-density"];
const ROUNDS: usize = 9;

fn main() {
    let quick = std::env::args().any(|argument| argument == "--quick");
    let rounds = if quick { 1 } else { ROUNDS };
    let mut read_s = 0.0;
    let traces: Vec<(Trace, &[u32])> = TRACES
        .iter()
        .map(|(name, capacities)| {
            let (trace, seconds) = timed(|| read(name));
            read_s += seconds;
            (trace, if quick { &capacities[..1] } else { *capacities })
        })
        .collect();
    let accesses: usize =
        traces.iter().map(|(trace, capacities)| trace.access_count() * capacities.len()).sum();
    println!("{accesses} block accesses a round, {rounds} rounds; reading the traces takes {read_s:.2} s");

    // In each round, of the bare list first and then of the policies.
    let mut seconds = vec![Vec::new(); 1 + POLICIES.len()];
    for round in 0..rounds {
        for turn in 0..seconds.len() {
            let contender = (round + turn) % seconds.len();
            let ((), took) = timed(|| {
                for (trace, capacities) in &traces {
                    capacities.iter().for_each(|capacity| serve(contender, trace, *capacity));
                }
            });
            seconds[contender].push(took);
        }
    }
    let rates = |index: usize| seconds[index].iter().map(|took| accesses as f64 / took / 1e6).collect();
    println!("bare list     {} million accesses a second", spread(rates(0)));
    for (index, policy) in POLICIES.iter().enumerate() {
        let ratios = seconds[index + 1].iter().zip(&seconds[0]).map(|(took, bare)| took / bare).collect();
        println!(
            "{policy:13} {}, time to that of the bare list {}",
            spread(rates(index + 1)),
            spread(ratios)
        );
    }
}

/// One replay; 0 is the bare list.
fn serve(contender: usize, trace: &Trace, capacity: u32) {
    let Some(policy) = contender.checked_sub(1) else {
        black_box(bare_lru_hits(trace, capacity as usize));
        return;
    };
    let policy = PolicyRegistry::with_builtin().build(POLICIES[policy], capacity).expect("a known policy");
    black_box(Replay::new(trace, capacity, policy).run());
}

/// Blocks that hit in an LRU that is told of a request's tail first.
fn bare_lru_hits(trace: &Trace, capacity: usize) -> u64 {
    let sentinel = trace.block_count();
    // The neighbours of each block, newer and older, in a ring that the sentinel closes; its own index is "not there".
    let mut links: Vec<[usize; 2]> = (0..=sentinel).map(|index| [index, index]).collect();
    let (mut count, mut hits) = (0, 0);
    for blocks in trace.requests_blocks() {
        let is_here = |links: &[[usize; 2]], block: &u32| links[*block as usize][0] != *block as usize;
        hits += blocks.iter().take_while(|block| is_here(&links, block)).count() as u64;
        for block in blocks.iter().rev() {
            if is_here(&links, block) {
                unlink(&mut links, *block as usize);
            } else if count == capacity {
                let oldest = links[sentinel][0];
                unlink(&mut links, oldest);
            } else {
                count += 1;
            }
            let newest = links[sentinel][1];
            links[*block as usize] = [sentinel, newest];
            links[newest][0] = *block as usize;
            links[sentinel][1] = *block as usize;
        }
    }
    hits
}

fn unlink(links: &mut [[usize; 2]], block: usize) {
    let [newer, older] = links[block];
    links[newer][1] = older;
    links[older][0] = newer;
    links[block] = [block, block];
}

fn read(name: &str) -> Trace {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("traces/{name}_trace.jsonl.zst"));
    let options = ReadOptions { hash_block_tokens: BLOCK_TOKENS, ..ReadOptions::default() };
    let blocks = Blocks::new(BLOCK_TOKENS);
    let mut trace = Trace::new(BLOCK_TOKENS.get());
    for request in Reader::open(&path, options).expect("a committed trace") {
        let request = request.expect("a committed trace");
        trace.push(blocks.input_tokens(&request), &blocks.ids(&request));
    }
    trace
}

/// What `work` returns, and the processor time of this thread that it takes.
fn timed<R>(work: impl FnOnce() -> R) -> (R, f64) {
    let now = || {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
    };
    let began = now();
    let result = work();
    (result, now() - began)
}

fn spread(mut values: Vec<f64>) -> String {
    values.sort_by(f64::total_cmp);
    let (least, most) = (values[0], values[values.len() - 1]);
    format!("{:.3} ({least:.3} to {most:.3})", values[values.len() / 2])
}
