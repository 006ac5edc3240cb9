//! The twelve defects found in AIBrix's KV cache, and where this library is shown not to have them.
//!
//! | number | defect | here |
//! |---|---|---|
//! | 1 | a hole in the middle is handed out as data | `aibrix_defect_01_only_the_leading_run_is_handed_out` |
//! | 2 | the memory of evicted keys has no bound | `aibrix_defect_02_metadata_is_bounded` |
//! | 3 | validating tokens breaks hits beyond the first block | `aibrix_defect_03_every_block_of_a_prompt_is_found_again`: keys cover the tokens, nothing is unpacked |
//! | 4 | a put larger than the free space is cut | `aibrix_defect_04_a_put_evicts_to_make_room` |
//! | 5 | altered bytes are a hit | `aibrix_defect_05_a_slot_that_does_not_verify_is_a_miss`; files and servers: L2 |
//! | 6 | identity lacks model, dtype, LoRA and salt | `aibrix_defect_06_namespaces_and_extras_separate_keys` |
//! | 7 | quadratic keys of 32 bits | `aibrix_defect_07_keys_are_linear_and_have_sixteen_bytes` |
//! | 8 | the ring's wrap-around loses a node's slots | L2: the hash ring |
//! | 9 | writers of one key tear a file; no bound on files | L2: there are no files of blocks here; one slot has one fill, see the simulation |
//! | 10 | storing is synchronous in the hit path | `aibrix_defect_10_an_offload_is_planned_and_never_waits` |
//! | 11 | ranks may disagree on a hit | `aibrix_defect_11_one_rank_that_failed_makes_it_a_miss_for_all` |
//! | 12 | options that do nothing | does not apply to the core: unknown settings are refused by the connector |

use std::sync::Arc;
use std::time::Duration;

use kvcache_core::BlockKey;
use kvcache_core::block_cache::BlockCache;
use kvcache_core::block_key::{HashAlgorithm, TokenHasher};
use kvcache_core::directory::{Directory, FillId, GroupKind};
use kvcache_core::eviction::{EvictionPolicy, Lru, S3Fifo, S3FifoFixed, SlotId};
use kvcache_core::fingerprint::Namespace;
use kvcache_core::plan::JobId;
use kvcache_core::planner::{
    GroupConfig, KeySource, LoadMode, Lookup, MissReason, Planner, PlannerConfig, RequestOptions,
};
use kvcache_core::report::{Hello, JobEnd, Report};

use fakes::fake_memory::{FakeMemory, MemoryBugs, Slab};

#[path = "simulation/fakes.rs"]
mod fakes;

const BLOCK_BYTES: usize = 64;

fn keys_of(namespace: &str, extra: &[u8], tokens: impl Iterator<Item = u32>) -> Vec<BlockKey> {
    let mut hasher = TokenHasher::new(HashAlgorithm::Blake3, &Namespace::of_text(namespace), extra, 16);
    let (root, mut keys) = (hasher.root(), Vec::new());
    hasher.chain(root, tokens, &mut keys);
    keys
}

fn cache(slots: u32) -> (Arc<Slab>, BlockCache) {
    let slab = Slab::new(slots, BLOCK_BYTES);
    let memory = FakeMemory::new(&slab, slots, MemoryBugs::default());
    (slab, BlockCache::new(memory, Box::new(S3Fifo::new(slots)), None, BLOCK_BYTES))
}

fn data(blocks: usize) -> Vec<u8> {
    (0..blocks * BLOCK_BYTES).map(|byte| (byte / BLOCK_BYTES + 1) as u8).collect()
}

#[test]
fn aibrix_defect_01_only_the_leading_run_is_handed_out() {
    let (_, cache) = cache(8);
    let keys = keys_of("a", b"", 0..64);
    assert_eq!(cache.put(&keys, &data(4)).unwrap(), 4);
    assert_eq!(cache.delete(&keys[1..2]), 1);
    let mut out = vec![0xaa; 4 * BLOCK_BYTES];
    assert_eq!((cache.match_prefix(&keys), cache.get(&keys, &mut out).unwrap()), (1, 1));
    assert_eq!(out[..BLOCK_BYTES], data(1));
    assert!(out[BLOCK_BYTES..].iter().all(|byte| *byte == 0xaa), "nothing behind the hole is touched");
    cache.delete(&keys[..1]);
    assert_eq!(cache.get(&keys, &mut out).unwrap(), 0);
}

#[test]
fn aibrix_defect_02_metadata_is_bounded() {
    let policies: [Box<dyn EvictionPolicy>; 3] =
        [Box::new(Lru::new(256)), Box::new(S3Fifo::new(256)), Box::new(S3FifoFixed::new(256, 0.1))];
    for policy in policies {
        let directory = Directory::new(256, policy);
        let before = directory.stats().metadata_bytes;
        for put in 0..20_000u32 {
            let reservation =
                directory.begin_offload(&keys_of("a", &put.to_le_bytes(), 0..16), 0, usize::MAX);
            let fills: Vec<(SlotId, FillId)> =
                reservation.reserved.iter().map(|r| (r.slot, r.fill)).collect();
            assert_eq!(directory.complete_fills(&fills, true).len(), 1);
        }
        let stats = directory.stats();
        assert_eq!((stats.ready, stats.evicted), (256, 20_000 - 256));
        assert!(
            stats.metadata_bytes <= 128 * 256 + 1024,
            "{} bytes in {}",
            stats.metadata_bytes,
            stats.policy
        );
        assert!(stats.metadata_bytes <= before * 2, "{before} bytes grew to {}", stats.metadata_bytes);
    }
}

#[test]
fn aibrix_defect_03_every_block_of_a_prompt_is_found_again() {
    let (_, cache) = cache(64);
    assert_eq!(cache.put(&keys_of("a", b"", 0..1024), &data(64)).unwrap(), 64);
    let mut out = vec![0; 64 * BLOCK_BYTES];
    // Keys derived anew, as another process would, and not the objects that were put.
    assert_eq!(cache.get(&keys_of("a", b"", 0..1024), &mut out).unwrap(), 64);
    assert_eq!(out, data(64));
}

#[test]
fn aibrix_defect_04_a_put_evicts_to_make_room() {
    let (_, cache) = cache(64);
    assert_eq!(cache.put(&keys_of("old", b"", 0..960), &data(60)).unwrap(), 60);
    assert_eq!(cache.stats().directory.free, 4);
    assert_eq!(cache.put(&keys_of("new", b"", 0..1024), &data(64)).unwrap(), 64);
    assert_eq!(cache.match_prefix(&keys_of("new", b"", 0..1024)), 64);
}

#[test]
fn aibrix_defect_05_a_slot_that_does_not_verify_is_a_miss() {
    let (slab, cache) = cache(4);
    let keys = keys_of("a", b"", 0..64);
    cache.put(&keys, &data(4)).unwrap();
    assert!((0..4).all(|slot| slab.damage(SlotId(slot))));
    let mut out = vec![0xaa; 4 * BLOCK_BYTES];
    assert_eq!(cache.get(&keys, &mut out).unwrap(), 0);
    assert!(out.iter().all(|byte| *byte == 0xaa));
}

#[test]
fn aibrix_defect_06_namespaces_and_extras_separate_keys() {
    let of = |model: &str, dtype: &str| {
        Namespace::of_fields([("model", model.as_bytes()), ("dtype", dtype.as_bytes())])
    };
    let mut seen = std::collections::HashSet::new();
    for namespace in [of("m1", "bf16"), of("m2", "bf16"), of("m1", "fp8"), of("m1b", "f16")] {
        for extra in [&b""[..], b"lora", b"salt"] {
            let mut hasher = TokenHasher::new(HashAlgorithm::Blake3, &namespace, extra, 16);
            let (root, mut keys) = (hasher.root(), Vec::new());
            hasher.chain(root, 0..64, &mut keys);
            assert!(keys.into_iter().all(|key| seen.insert(key)), "two identities share a key");
        }
        assert!(seen.insert(BlockKey::from_engine_hash(&namespace, 0, b"hash", b"")));
    }
}

/// Twice the tokens cost twice the hashing: every token is taken in once, whatever the length of the prompt.
#[test]
fn aibrix_defect_07_keys_are_linear_and_have_sixteen_bytes() {
    assert_eq!(size_of::<BlockKey>(), 16);
    for length in [1_000u32, 32_000] {
        let mut taken = 0u32;
        let keys = keys_of("a", b"", (0..length).inspect(|_| taken += 1));
        assert_eq!((keys.len(), taken), (length as usize / 16, length));
    }
}

fn planner(ranks: u32) -> Planner {
    let config = PlannerConfig {
        namespace: Namespace::of_text("defects"),
        groups: vec![GroupConfig { kind: GroupKind::Full, block_tokens: 16 }],
        slot_blocks: 1,
        hash_tokens: 16,
        key_source: KeySource::Tokens(HashAlgorithm::Blake3),
        ranks,
        null_block: 0,
        load_mode: LoadMode::Layerwise,
        min_load_tokens: 0,
        fill_wait: Duration::ZERO,
        startup_wait: Duration::ZERO,
        store_on_sight: 1,
        prompt_only: false,
        keep_hashes: false,
    };
    let mut planner = Planner::new(config, Box::new(|slots| Box::new(Lru::new(slots))));
    for rank in 0..ranks {
        let hello = Hello {
            slot_count: 8,
            slot_bytes: 64,
            copy_threads: 0,
            warm: Vec::new(),
            highest_fill: FillId(0),
            epoch: 0,
            remote: None,
        };
        planner.absorb(&Report { rank, usable_slots: 8, hello: Some(hello), ..Report::default() });
    }
    planner
}

fn request(planner: &mut Planner, id: &str) {
    planner.add_request(id, RequestOptions::default());
    planner.extend_tokens(id, 0..64);
}

fn end(planner: &mut Planner, rank: u32, id: JobId, ok: bool) {
    planner.absorb(&Report {
        rank,
        usable_slots: 8,
        ended: vec![JobEnd::whole(id, ok)],
        ..Report::default()
    });
}

/// Nothing has been copied when the offload returns; it is a value in the plan, and hits go on beside it.
#[test]
fn aibrix_defect_10_an_offload_is_planned_and_never_waits() {
    let mut planner = planner(1);
    request(&mut planner, "a");
    let offloading = planner.offload("a", 64, &[vec![1, 2, 3, 4]]);
    assert_eq!(offloading.held, [1, 2, 3, 4]);
    request(&mut planner, "b");
    assert_eq!(
        planner.lookup("b", 0, 65, Duration::ZERO),
        Lookup::Miss(MissReason::Late),
        "not there, not waited for"
    );
    let plan = planner.take_plan(64, Duration::ZERO).expect("the offload");
    assert_eq!(plan.jobs[0].transfers.len(), 4);
    end(&mut planner, 0, plan.jobs[0].id, true);
    let hit = Lookup::Hit { tokens: 64, asynchronous: false };
    assert_eq!(planner.lookup("b", 0, 65, Duration::ZERO), hit);
}

#[test]
fn aibrix_defect_11_one_rank_that_failed_makes_it_a_miss_for_all() {
    for failed in [None, Some(0), Some(1), Some(2)] {
        let mut planner = planner(3);
        request(&mut planner, "a");
        let job = planner.offload("a", 64, &[vec![1, 2, 3, 4]]).job.expect("a job");
        request(&mut planner, "b");
        for rank in 0..3 {
            assert!(
                matches!(planner.lookup("b", 0, 65, Duration::ZERO), Lookup::Miss(_)),
                "not all ranks have it"
            );
            end(&mut planner, rank, job, failed != Some(rank));
        }
        let hit = matches!(planner.lookup("b", 0, 65, Duration::ZERO), Lookup::Hit { tokens: 64, .. });
        assert_eq!(hit, failed.is_none());
    }
}
