//! The parts that decide: no bytes are copied here. `cargo bench -p kvcache-benches --bench parts`
//!
//! The baseline of each group is named `plain_...`: what the same number of keys costs without the part.

use std::collections::{BTreeMap, HashMap};
use std::hint::black_box;
use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use kvcache_core::BlockKey;
use kvcache_core::block_key::{HashAlgorithm, TokenHasher};
use kvcache_core::directory::{Directory, FillId, GroupKind};
use kvcache_core::eviction::{Candidate, Lru, PolicyRegistry, SlotId};
use kvcache_core::fingerprint::Namespace;
use kvcache_core::planner::{GroupConfig, KeySource, LoadMode, Planner, PlannerConfig, RequestOptions};
use kvcache_core::report::{Hello, Report};
use kvcache_core::ring::{RingDocument, ServerAddress, SlotTable};

/// The blocks of a prompt of 32,768 tokens.
const PROMPT_BLOCKS: usize = 2048;

const SLOTS: u32 = 65_536;

criterion_group! {
    name = parts;
    config = Criterion::default().sample_size(30).warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = hashing, matching, offloading, evicting, planning, ring
}
criterion_main!(parts);

fn hashing(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("hash_32768_tokens");
    let tokens: Vec<u32> = (0..32_768).map(|token| token * 7 % 50_000).collect();
    group.throughput(Throughput::Bytes(4 * tokens.len() as u64));
    for (name, algorithm) in [("xxh3", HashAlgorithm::Xxh3), ("blake3", HashAlgorithm::Blake3)] {
        let mut hasher = TokenHasher::new(algorithm, &Namespace::of_text("bench"), b"", 16);
        group.bench_function(name, |bench| {
            bench.iter(|| {
                let mut keys = Vec::with_capacity(PROMPT_BLOCKS);
                hasher.chain(hasher.root(), black_box(&tokens).iter().copied(), &mut keys);
                keys
            });
        });
    }
    group.bench_function("plain_copy_of_the_tokens", |bench| bench.iter(|| black_box(&tokens).clone()));
    group.finish();
}

fn matching(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("match_2048_keys");
    group.throughput(Throughput::Elements(PROMPT_BLOCKS as u64));
    let directory = full(SLOTS, "default");
    let resident = keys(0, PROMPT_BLOCKS);
    assert_eq!(directory.match_prefix(&resident).ready, PROMPT_BLOCKS);
    group.bench_function("resident", |bench| bench.iter(|| directory.match_prefix(black_box(&resident))));
    let absent = keys(1 << 40, PROMPT_BLOCKS);
    group.bench_function("absent", |bench| bench.iter(|| directory.match_prefix(black_box(&absent))));
    let map: HashMap<BlockKey, u32> = keys(0, SLOTS as usize).into_iter().zip(0..).collect();
    group.bench_function("plain_hash_map", |bench| {
        bench.iter(|| black_box(&resident).iter().take_while(|key| map.contains_key(*key)).count());
    });
    group.finish();
}

fn offloading(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("offload_128_keys");
    group.throughput(Throughput::Elements(128));
    for (name, resident) in [("into_free_slots", false), ("evicting", true)] {
        let directory = if resident { full(SLOTS, "default") } else { empty(SLOTS, "default") };
        let mut next = 1 << 40;
        group.bench_function(name, |bench| {
            bench.iter_batched(
                || {
                    next += 128;
                    keys(next, 128)
                },
                |chain| {
                    let reservation = directory.begin_offload(&chain, 0, usize::MAX);
                    let fills: Vec<(SlotId, FillId)> =
                        reservation.reserved.iter().map(|reserved| (reserved.slot, reserved.fill)).collect();
                    let ready = directory.complete_fills(&fills, true);
                    assert_eq!(ready.len(), 128);
                    if !resident {
                        directory.delete(&chain);
                    }
                },
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

/// One insertion and one eviction of a full policy, without the Directory around it.
fn evicting(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("evict_and_insert");
    group.throughput(Throughput::Elements(1));
    let mut registry = PolicyRegistry::with_builtin();
    policy_sieve::register(&mut registry).expect("its name is free");
    for name in ["lru", "default", "sieve"] {
        let mut policy = registry.build(name, SLOTS).expect("a known policy");
        let mut next = 0;
        for slot in 0..SLOTS {
            policy.insert(SlotId(slot), key(next));
            next += 1;
        }
        group.bench_function(if name == "lru" { "plain_lru" } else { name }, |bench| {
            bench.iter(|| {
                let slot = policy.evict(&mut |_| Candidate::Leaf).expect("nothing is pinned");
                policy.insert(slot, key(next));
                // Every fourth block is used again.
                if next % 4 == 0 {
                    policy.touch(slot);
                }
                next += 1;
            });
        });
    }
    group.finish();
}

/// What the planner costs in a step without work, and for a request that finds nothing.
fn planning(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("planner");
    let mut planner = Planner::new(planner_config(), Box::new(|slots| Box::new(Lru::new(slots))));
    let hello = Hello {
        slot_count: 4096,
        slot_bytes: 64,
        copy_threads: 0,
        warm: Vec::new(),
        highest_fill: FillId(0),
        epoch: 0,
        remote: None,
    };
    planner.absorb(&Report { usable_slots: 4096, hello: Some(hello), ..Report::default() });
    let mut now = Duration::ZERO;
    planner.take_plan(0, now);
    group.bench_function("step_with_nothing_to_do", |bench| {
        bench.iter(|| {
            now += Duration::from_millis(10);
            assert!(planner.take_plan(1, now).is_none());
            black_box((planner.has_pending_work(), planner.activity()))
        });
    });
    let hashes: Vec<[u8; 32]> = (0..94_u8).map(|block| [block; 32]).collect();
    group.bench_function("lookup_of_a_new_request_of_1500_tokens", |bench| {
        bench.iter(|| {
            planner.add_request("r", RequestOptions::default());
            planner.extend_hashes("r", hashes.iter().map(|hash| &hash[..]));
            let answer = planner.lookup("r", 0, 1500, now);
            planner.finish("r");
            answer
        });
    });
    group.bench_function("plain_time_of_the_clock", |bench| bench.iter(std::time::Instant::now));
    group.finish();
}

/// The slot tables of rings, and a ring's document. The target of 500 members is 50 ms.
fn ring(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("ring");
    for members in [3, 64, 500] {
        let names: Vec<String> = (0..members).map(|number| format!("kvcache-{number}")).collect();
        group.bench_function(format!("table_of_{members}"), |bench| {
            bench.iter(|| SlotTable::new(black_box(&names)).expect("a ring"));
        });
    }
    let servers: BTreeMap<String, ServerAddress> = (0..500)
        .map(|number| {
            let host = format!("10.0.{}.{}", number / 256, number % 256);
            (format!("kvcache-{number}"), ServerAddress::new(&host, 12_345).expect("an address"))
        })
        .collect();
    let document = RingDocument::of(&servers, 1, BTreeMap::new()).expect("a ring");
    let text = document.to_json();
    group.throughput(Throughput::Bytes(text.len() as u64));
    group.bench_function("write_document_of_500", |bench| bench.iter(|| black_box(&document).to_json()));
    group.bench_function("read_document_of_500", |bench| {
        bench.iter(|| RingDocument::from_json(black_box(text.as_bytes())).expect("a document"));
    });
    group.bench_function("plain_copy_of_the_document", |bench| bench.iter(|| black_box(&text).clone()));
    group.finish();
}

fn planner_config() -> PlannerConfig {
    PlannerConfig {
        namespace: Namespace::of_text("bench"),
        groups: vec![GroupConfig { kind: GroupKind::Full, block_tokens: 16 }],
        slot_blocks: 1,
        hash_tokens: 16,
        key_source: KeySource::Engine,
        ranks: 1,
        null_block: 0,
        load_mode: LoadMode::Auto,
        min_load_tokens: 0,
        fill_wait: Duration::from_millis(200),
        startup_wait: Duration::from_secs(2),
        store_on_sight: 1,
        prompt_only: false,
        keep_hashes: false,
    }
}

fn empty(slots: u32, policy: &str) -> Directory {
    Directory::new(slots, PolicyRegistry::with_builtin().build(policy, slots).expect("a known policy"))
}

/// Every slot holds a block: prompts of 2,048 blocks.
fn full(slots: u32, policy: &str) -> Directory {
    let directory = empty(slots, policy);
    for prompt in 0..slots as usize / PROMPT_BLOCKS {
        let reservation =
            directory.begin_offload(&keys((prompt * PROMPT_BLOCKS) as u64, PROMPT_BLOCKS), 0, usize::MAX);
        let fills: Vec<(SlotId, FillId)> =
            reservation.reserved.iter().map(|reserved| (reserved.slot, reserved.fill)).collect();
        directory.complete_fills(&fills, true);
    }
    directory
}

fn keys(first: u64, count: usize) -> Vec<BlockKey> {
    (first..first + count as u64).map(key).collect()
}

/// Spread over the table as hashes are: an odd factor permutes the 64-bit integers.
fn key(number: u64) -> BlockKey {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&number.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes());
    bytes[8..].copy_from_slice(&number.to_le_bytes());
    BlockKey(bytes)
}
