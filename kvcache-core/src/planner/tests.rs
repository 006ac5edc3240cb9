mod remote;

use std::collections::BTreeSet;
use std::sync::Arc;

use parking_lot::Mutex;

use super::*;
use crate::BlockKey;
use crate::block_key::HashAlgorithm;
use crate::directory::{FillId, Resident};
use crate::eviction::{Candidate, Lru, Place};
use crate::plan::Job;
use crate::report::{Hello, JobEnd};

/// Tokens of a block; slots hold one block unless a test says otherwise.
const BLOCK: usize = 4;

fn config() -> PlannerConfig {
    PlannerConfig {
        namespace: Namespace::of_text("test"),
        groups: vec![GroupConfig { kind: GroupKind::Full, block_tokens: BLOCK }],
        slot_blocks: 1,
        hash_tokens: BLOCK,
        key_source: KeySource::Engine,
        ranks: 1,
        null_block: 0,
        load_mode: LoadMode::Auto,
        min_load_tokens: 0,
        fill_wait: ms(10),
        startup_wait: ms(100),
        store_on_sight: 1,
        prompt_only: false,
        keep_hashes: false,
    }
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn new(config: PlannerConfig) -> Planner {
    Planner::new(config, Box::new(|slots| Box::new(Lru::new(slots))))
}

fn hello(rank: u32, slots: u32) -> Report {
    let hello = Hello {
        slot_count: slots,
        slot_bytes: 64,
        copy_threads: 0,
        warm: Vec::new(),
        highest_fill: FillId(0),
        epoch: 1,
        remote: None,
    };
    Report { rank, usable_slots: slots, hello: Some(hello), ..Report::default() }
}

/// A planner whose ranks have all said hello.
fn started(config: PlannerConfig, slots: u32) -> Planner {
    let ranks = config.ranks;
    let mut planner = new(config);
    for rank in 0..ranks {
        assert_eq!(planner.absorb(&hello(rank, slots)), []);
    }
    planner
}

fn hash(document: u64, block: usize) -> Vec<u8> {
    [document.to_le_bytes(), (block as u64).to_le_bytes()].concat()
}

/// Announces a request with `blocks` blocks of a document.
fn add(planner: &mut Planner, id: &str, document: u64, blocks: usize) {
    add_with(planner, id, document, blocks, RequestOptions::default());
}

fn add_with(planner: &mut Planner, id: &str, document: u64, blocks: usize, options: RequestOptions) {
    planner.add_request(id, options);
    extend(planner, id, document, blocks);
}

fn extend(planner: &mut Planner, id: &str, document: u64, blocks: usize) {
    let hashes: Vec<Vec<u8>> =
        (planner.known_hashes(id)..blocks).map(|block| hash(document, block)).collect();
    planner.extend_hashes(id, hashes.iter().map(|hash| &hash[..]));
}

fn table(blocks: std::ops::Range<u32>) -> Vec<Vec<u32>> {
    vec![blocks.collect()]
}

fn report(rank: u32, job: JobId, ok: bool) -> Report {
    Report { rank, usable_slots: 1000, ended: vec![JobEnd::whole(job, ok)], ..Report::default() }
}

fn end(planner: &mut Planner, job: JobId, ok: bool) -> Vec<Ended> {
    (0..planner.config.ranks).flat_map(|rank| planner.absorb(&report(rank, job, ok))).collect()
}

/// Stores the first blocks of a document, through a request of its own.
fn store(planner: &mut Planner, document: u64, blocks: usize) -> Vec<Ended> {
    let id = format!("store {document} {blocks}");
    add(planner, &id, document, blocks);
    let offloading = planner.offload(&id, blocks * BLOCK, &table(1..blocks as u32 + 1));
    planner.finish(&id);
    planner.take_plan(0, ms(0));
    offloading.job.map(|job| end(planner, job, true)).unwrap_or_default()
}

fn hit(tokens: usize) -> Lookup {
    Lookup::Hit { tokens, asynchronous: false }
}

fn ready(planner: &Planner) -> usize {
    planner.directory().map_or(0, |directory| directory.stats().ready)
}

#[test]
fn waits_for_every_rank_and_then_goes_cold() {
    let mut planner = new(PlannerConfig { ranks: 2, ..config() });
    add(&mut planner, "a", 1, 4);
    assert_eq!(planner.lookup("a", 0, 16, ms(500)), Lookup::Wait, "the clock starts at the first question");
    planner.absorb(&hello(1, 8));
    assert_eq!(planner.lookup("a", 0, 16, ms(599)), Lookup::Wait);
    assert_eq!(planner.lookup("a", 0, 16, ms(600)), Lookup::Miss(MissReason::NotReady));
    assert_eq!(planner.offload("a", 16, &table(1..5)).job, None);
    planner.absorb(&hello(0, 6));
    assert_eq!(planner.lookup("a", 0, 16, ms(601)), Lookup::Miss(MissReason::Absent));
    assert_eq!(planner.directory().unwrap().stats().slot_count, 6, "the smallest slab decides");
}

#[test]
fn what_was_stored_is_a_hit_beyond_the_engines_own() {
    let mut planner = started(config(), 16);
    store(&mut planner, 1, 4);
    add(&mut planner, "a", 1, 6);
    assert_eq!(planner.lookup("a", 0, 24, ms(0)), hit(16));
    assert_eq!(planner.lookup("a", 8, 24, ms(0)), hit(8));
    assert_eq!(planner.lookup("a", 16, 24, ms(0)), Lookup::Miss(MissReason::Absent));
    assert_eq!(planner.lookup("a", 0, 16, ms(0)), hit(12), "one token is left to compute");
    assert_eq!(planner.lookup("a", 0, 3, ms(0)), Lookup::Miss(MissReason::TooShort));
    assert_eq!(planner.lookup("nobody", 0, 24, ms(0)), Lookup::Miss(MissReason::Unknown));
    planner.lookup("a", 8, 24, ms(0));
    planner.commit_load("a", 8, &table(20..26));
    let plan = planner.take_plan(1, ms(0)).unwrap();
    let job = &plan.jobs[0];
    assert_eq!((job.kind, job.lost_blocks.len()), (JobKind::LoadLayerwise, 0));
    let blocks: Vec<u32> = job.transfers.iter().flat_map(|transfer| transfer.blocks.clone()).collect();
    assert_eq!(blocks, [22, 23]);
    assert_eq!(planner.take_plan(1, ms(1)), None, "a step without work has no plan");
    let stats = planner.stats();
    assert_eq!((stats.hits, stats.hit_tokens, stats.queried_tokens), (1, 8, 16));
}

#[test]
fn options_limit_loading_and_storing() {
    let mut planner = started(PlannerConfig { min_load_tokens: 8, ..config() }, 16);
    store(&mut planner, 1, 4);
    let options = RequestOptions::default;
    add_with(&mut planner, "skip", 1, 6, RequestOptions { skip_load: true, ..options() });
    add_with(&mut planner, "cap", 1, 6, RequestOptions { max_load_tokens: 10, ..options() });
    add(&mut planner, "min", 1, 6);
    assert_eq!(planner.lookup("skip", 0, 24, ms(0)), Lookup::Miss(MissReason::OptOut));
    assert_eq!(planner.lookup("cap", 0, 24, ms(0)), hit(8));
    assert_eq!(planner.lookup("min", 12, 24, ms(0)), Lookup::Miss(MissReason::TooShort));
    add_with(&mut planner, "no store", 2, 4, RequestOptions { skip_store: true, ..options() });
    let offloading = planner.offload("no store", 16, &table(1..5));
    assert_eq!((offloading.job, offloading.next_tokens), (None, usize::MAX));
    add_with(&mut planner, "few", 3, 4, RequestOptions { max_store_tokens: 11, ..options() });
    let offloading = planner.offload("few", 16, &table(1..5));
    assert_eq!((offloading.held, offloading.next_tokens), (vec![1, 2], usize::MAX));
}

/// The limit is a place in the prompt: what the engine holds in front of it counts.
#[test]
fn a_limit_of_loading_counts_from_the_first_token() {
    for (local_tokens, limit, expected) in [
        (0, 11, hit(8)),
        (4, 11, hit(4)),
        (4, 12, hit(8)),
        (8, 11, Lookup::Miss(MissReason::TooShort)),
        (12, 8, Lookup::Miss(MissReason::TooShort)),
        (0, 0, Lookup::Miss(MissReason::TooShort)),
    ] {
        let mut planner = started(config(), 16);
        store(&mut planner, 1, 4);
        let options = RequestOptions { max_load_tokens: limit, ..RequestOptions::default() };
        add_with(&mut planner, "a", 1, 6, options);
        assert_eq!(planner.lookup("a", local_tokens, 24, ms(0)), expected, "{local_tokens} of {limit}");
    }
}

#[test]
fn a_configuration_that_no_engine_has_is_refused() {
    assert_eq!(config().check(), Ok(()));
    let two = |block_tokens| GroupConfig { kind: GroupKind::Full, block_tokens };
    for (wrong, error) in [
        (PlannerConfig { groups: vec![], ..config() }, PlannerConfigError::NoGroup),
        (PlannerConfig { groups: vec![two(4); 65537], ..config() }, PlannerConfigError::Groups(65537)),
        (PlannerConfig { groups: vec![two(4), two(0)], ..config() }, PlannerConfigError::NoBlockTokens(1)),
        (PlannerConfig { slot_blocks: 0, ..config() }, PlannerConfigError::NoSlotBlocks),
        (PlannerConfig { hash_tokens: 0, ..config() }, PlannerConfigError::NoHashTokens),
        (PlannerConfig { ranks: 0, ..config() }, PlannerConfigError::NoRanks),
        (
            PlannerConfig { groups: vec![two(8), two(4)], hash_tokens: 8, ..config() },
            PlannerConfigError::HashTokens { group: 1, slot_tokens: 4, hash_tokens: 8 },
        ),
        (
            PlannerConfig { slot_blocks: usize::MAX, ..config() },
            PlannerConfigError::SlotTokens { group: 0, block_tokens: 4, slot_blocks: usize::MAX },
        ),
    ] {
        assert_eq!(wrong.check(), Err(error));
    }
    // Hashes of tokens that end elsewhere are of no use, but then keys may come from tokens.
    let key_source = KeySource::Tokens(HashAlgorithm::Blake3);
    assert_eq!(PlannerConfig { hash_tokens: 8, key_source, ..config() }.check(), Ok(()));
}

#[test]
fn prompt_only_leaves_the_answer_out() {
    let mut planner = started(PlannerConfig { prompt_only: true, ..config() }, 16);
    add_with(&mut planner, "a", 1, 6, RequestOptions { prompt_tokens: 14, ..RequestOptions::default() });
    assert_eq!(planner.offload("a", 8, &table(1..7)).next_tokens, 12);
    assert_eq!(planner.offload("a", 24, &table(1..7)).held, [3]);
}

/// The gate counts requests, not calls, and counts every block of each.
#[test]
fn a_block_is_stored_when_its_prefix_is_seen_for_the_second_time() {
    let mut planner = started(PlannerConfig { store_on_sight: 2, ..config() }, 64);
    add(&mut planner, "a", 1, 4);
    for computed in [8, 8, 16, 16] {
        assert_eq!(planner.offload("a", computed, &table(1..5)).job, None, "one request is one sight");
    }
    // Turn two repeats the four blocks and adds four; turn three repeats eight.
    add(&mut planner, "b", 1, 8);
    assert_eq!(planner.offload("b", 32, &table(1..9)).held, [1, 2, 3, 4]);
    assert!(planner.offload("b", 32, &table(1..9)).held.is_empty());
    add(&mut planner, "c", 1, 8);
    assert_eq!(planner.offload("c", 32, &table(1..9)).held, [5, 6, 7, 8]);
}

#[test]
fn the_gate_remembers_a_bounded_number_of_prefixes() {
    let mut gate = request::SightGate::new(16);
    for number in 0..20_000u64 {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&number.to_le_bytes());
        assert!(!gate.passes(&BlockKey(bytes), 2));
    }
    assert!(gate.remembered() <= 2048, "{}", gate.remembered());
}

#[test]
fn a_fill_is_waited_for_until_the_deadline_and_never_again() {
    let mut planner = started(config(), 16);
    add(&mut planner, "a", 1, 4);
    let job = planner.offload("a", 16, &table(1..5)).job.unwrap();
    add(&mut planner, "b", 1, 6);
    assert_eq!(planner.lookup("b", 0, 24, ms(1000)), Lookup::Wait);
    assert_eq!(planner.lookup("b", 0, 24, ms(1009)), Lookup::Wait);
    assert_eq!(planner.lookup("b", 0, 24, ms(1010)), Lookup::Miss(MissReason::Late));
    assert_eq!(planner.lookup("b", 0, 24, ms(1011)), Lookup::Miss(MissReason::Late));
    add(&mut planner, "c", 1, 6);
    assert_eq!(planner.lookup("c", 0, 24, ms(1011)), Lookup::Wait, "its own clock");
    end(&mut planner, job, true);
    assert_eq!(planner.lookup("b", 0, 24, ms(1012)), hit(16));
}

#[test]
fn the_load_mode_decides_unless_there_are_several_groups() {
    let modes = [(LoadMode::Auto, false), (LoadMode::Layerwise, false), (LoadMode::Async, true)];
    for (load_mode, expected) in modes {
        let mut planner = started(PlannerConfig { load_mode, ..config() }, 16);
        store(&mut planner, 1, 4);
        add(&mut planner, "a", 1, 6);
        assert_eq!(planner.lookup("a", 0, 24, ms(0)), Lookup::Hit { tokens: 16, asynchronous: expected });
    }
}

/// Full attention beside a window of 9 tokens: after 24 tokens it needs the two blocks before them.
/// What is not loaded is not measured: without trying, one bad time would end all loads.
#[test]
fn loads_that_were_slow_are_tried_again_one_at_a_time() {
    let mut planner = started(config(), 16);
    store(&mut planner, 1, 4);
    let ask = |planner: &mut Planner, id: &str, now| {
        add(planner, id, 1, 6);
        planner.lookup(id, 0, 24, ms(now))
    };
    let load = |planner: &mut Planner, id: &str| {
        planner.commit_load(id, 16, &table(20..26));
        planner.take_plan(0, ms(0)).unwrap().jobs[0].id
    };
    let measure = |planner: &mut Planner, byte_us: u64| {
        let load_ns = 256 * byte_us * 1000;
        planner.absorb(&Report { usable_slots: 16, loaded_bytes: 256, load_ns, ..Report::default() });
    };
    let refused = Lookup::Miss(MissReason::BreakEven);
    assert_eq!(ask(&mut planner, "a", 0), hit(16));
    let job = load(&mut planner, "a");
    end(&mut planner, job, true);
    for step in 0..9 {
        // A token in 0.1 ms, a byte as well: 16 tokens take 1.6 ms, and their 256 bytes 25.6. 32 of these are 819.
        planner.take_plan(100, ms(10 * step));
        measure(&mut planner, 100);
    }
    assert_eq!(ask(&mut planner, "b", 100), refused);
    assert_eq!(ask(&mut planner, "b", 819), refused);
    assert_eq!(ask(&mut planner, "b", 820), hit(16));
    assert_eq!(ask(&mut planner, "b", 821), hit(16), "asking is not loading");
    load(&mut planner, "b");
    assert_eq!(ask(&mut planner, "c", 822), refused, "the one that is tried has not been measured");
    // It is as slow, and slower: 51.2 ms, and 1638 until the next.
    measure(&mut planner, 200);
    assert_eq!(ask(&mut planner, "c", 821 + 1638), refused);
    assert_eq!(ask(&mut planner, "c", 821 + 1639), hit(16));
    load(&mut planner, "c");
    measure(&mut planner, 1);
    for now in [2461, 2462] {
        let id = now.to_string();
        assert_eq!(ask(&mut planner, &id, now), hit(16), "what was measured last counts");
        load(&mut planner, &id);
    }
}

fn two_groups() -> PlannerConfig {
    let full = GroupConfig { kind: GroupKind::Full, block_tokens: BLOCK };
    let sliding = GroupConfig { kind: GroupKind::Sliding { window_tokens: 9 }, ..full };
    PlannerConfig { groups: vec![full, sliding], ..config() }
}

#[test]
fn blocks_that_have_left_a_window_are_neither_stored_nor_loaded() {
    let mut planner = started(two_groups(), 32);
    add(&mut planner, "a", 1, 6);
    let tables = vec![(1..7).collect(), vec![0, 0, 0, 10, 11, 12]];
    let offloading = planner.offload("a", 24, &tables);
    assert_eq!(offloading.held, [1, 2, 3, 4, 5, 6, 10, 11, 12]);
    assert_eq!(offloading.slots[6..], [(1, 3), (1, 4), (1, 5)]);
    planner.take_plan(0, ms(0));
    end(&mut planner, offloading.job.unwrap(), true);
    add(&mut planner, "b", 1, 7);
    assert_eq!(planner.lookup("b", 0, 28, ms(0)), Lookup::Hit { tokens: 24, asynchronous: true });
    planner.commit_load("b", 24, &[(20..26).collect(), vec![0, 0, 0, 0, 31, 32]]);
    let plan = planner.take_plan(1, ms(0)).unwrap();
    let loaded: Vec<(u16, Vec<u32>)> =
        plan.jobs[0].transfers.iter().map(|transfer| (transfer.group, transfer.blocks.clone())).collect();
    assert_eq!(loaded.iter().filter(|(group, _)| *group == 0).count(), 6);
    assert_eq!(loaded[6..], [(1, vec![31]), (1, vec![32])]);
    assert_eq!((plan.jobs[0].kind, plan.jobs[0].lost_blocks.len()), (JobKind::LoadAsync, 0));
    add(&mut planner, "c", 1, 4);
    assert_eq!(
        planner.lookup("c", 0, 16, ms(0)),
        Lookup::Miss(MissReason::Absent),
        "the window before 12 is not there"
    );
}

#[test]
fn keys_come_from_tokens_or_from_the_engine() {
    let mut planner =
        started(PlannerConfig { key_source: KeySource::Tokens(HashAlgorithm::Blake3), ..config() }, 32);
    planner.add_request("a", RequestOptions::default());
    planner.extend_hashes("a", [&b"ignored"[..]].into_iter());
    planner.extend_tokens("a", 0..10);
    planner.extend_tokens("a", 10..16);
    assert_eq!(planner.known_hashes("a"), 16);
    let job = planner.offload("a", 16, &table(1..5)).job.unwrap();
    end(&mut planner, job, true);
    planner.add_request("b", RequestOptions::default());
    planner.extend_tokens("b", (0..11).chain(90..99));
    assert_eq!(planner.lookup("b", 0, 20, ms(0)), hit(8), "the third block differs in its last token");
    planner.add_request("salted", RequestOptions { extra: b"tenant".to_vec(), ..RequestOptions::default() });
    planner.extend_tokens("salted", 0..20);
    assert_eq!(planner.lookup("salted", 0, 20, ms(0)), Lookup::Miss(MissReason::Absent));
}

#[test]
fn a_job_ends_when_every_rank_has_said_so_once_and_one_failure_counts_for_all() {
    let mut planner = started(PlannerConfig { ranks: 3, ..config() }, 16);
    add(&mut planner, "a", 1, 4);
    let job = planner.offload("a", 16, &table(1..5)).job.unwrap();
    assert_eq!(planner.absorb(&report(0, job, true)), []);
    assert_eq!(planner.absorb(&report(0, job, true)), [], "a repeated report");
    assert_eq!(planner.absorb(&report(3, job, true)), [], "there is no such rank");
    assert_eq!(planner.absorb(&report(66, job, true)), [], "nor this one");
    assert_eq!(planner.absorb(&report(1, JobId { epoch: 7, ..job }, true)), [], "an unknown job");
    assert_eq!(planner.absorb(&report(1, job, false)), []);
    let ended = planner.absorb(&report(2, job, true));
    assert_eq!(ended, [Ended { id: job, released: vec![1, 2, 3, 4], stored: Vec::new() }]);
    assert_eq!((ready(&planner), planner.jobs_in_flight()), (0, 0));
    assert_eq!(planner.absorb(&report(2, job, true)), [], "held blocks are released exactly once");
    assert_eq!(planner.stats().failed_stores, 4);
}

#[test]
fn more_ranks_than_bits_in_a_word_are_counted_once_each() {
    let mut planner = started(PlannerConfig { ranks: 70, ..config() }, 16);
    add(&mut planner, "a", 1, 1);
    let job = planner.offload("a", 4, &table(1..2)).job.unwrap();
    for rank in 0..69 {
        assert_eq!(planner.absorb(&report(rank, job, true)), []);
        assert_eq!(planner.absorb(&report(rank, job, true)), []);
    }
    assert_eq!(planner.absorb(&report(69, job, true)).len(), 1);
}

#[test]
fn what_could_not_be_loaded_is_dropped_forgotten_and_stored_again() {
    let mut planner = started(PlannerConfig { keep_hashes: true, ..config() }, 16);
    store(&mut planner, 1, 4);
    add(&mut planner, "a", 1, 5);
    assert_eq!(planner.lookup("a", 0, 20, ms(0)), hit(16));
    planner.commit_load("a", 16, &table(1..6));
    assert_eq!(planner.offload("a", 20, &table(1..6)).held, [5], "the rest is here");
    let jobs = planner.take_plan(20, ms(0)).unwrap().jobs;
    end(&mut planner, jobs[1].id, false);
    end(&mut planner, jobs[0].id, false);
    assert_eq!(ready(&planner), 0);
    assert_eq!(planner.take_removed().len(), 4, "stored blocks left; the one that was never stored did not");
    assert_eq!(planner.offload("a", 20, &table(1..6)).held, [1, 2, 3, 4, 5]);
    let plan = planner.take_plan(0, ms(1)).unwrap();
    assert_eq!(plan.forgotten.len(), 4);
    assert!(plan.settled > jobs[1].id.number);
}

#[test]
fn a_block_evicted_between_the_question_and_the_load_is_lost_alone() {
    let mut planner = started(config(), 4);
    store(&mut planner, 1, 4);
    add(&mut planner, "a", 1, 5);
    assert_eq!(planner.lookup("a", 0, 20, ms(0)), hit(16));
    store(&mut planner, 2, 1);
    planner.commit_load("a", 16, &table(1..6));
    let job = planner.take_plan(1, ms(0)).unwrap().jobs.remove(0);
    assert_eq!((job.transfers.len(), &job.lost_blocks[..]), (3, &[4][..]));
    end(&mut planner, job.id, false);
    assert_eq!(ready(&planner), 4, "the healthy ones stay");
}

#[test]
fn a_reset_overtakes_jobs_in_flight() {
    let mut planner = started(config(), 8);
    store(&mut planner, 1, 4);
    add(&mut planner, "a", 1, 5);
    planner.lookup("a", 0, 20, ms(0));
    planner.commit_load("a", 16, &table(1..6));
    let offload = planner.offload("a", 20, &table(1..6)).job.unwrap();
    let load = planner.take_plan(1, ms(0)).unwrap().jobs[0].id;
    let epoch = planner.reset();
    assert_eq!(planner.lookup("a", 0, 20, ms(0)), Lookup::Miss(MissReason::Absent));
    assert!(planner.has_pending_work());
    assert_eq!(
        end(&mut planner, offload, true),
        [Ended { id: offload, released: vec![5], stored: Vec::new() }]
    );
    end(&mut planner, load, true);
    let stats = planner.directory().unwrap().stats();
    assert_eq!((stats.free, stats.ready, stats.draining), (8, 0, 0));
    let plan = planner.take_plan(0, ms(1)).unwrap();
    assert_eq!(
        (plan.epoch, plan.jobs.len()),
        (epoch, 0),
        "the ranks hear of it though there is nothing to copy"
    );
    assert_eq!(planner.take_plan(0, ms(2)), None);
}

#[test]
fn a_request_that_runs_through_a_reset_stores_nothing_until_it_begins_anew() {
    let mut planner = started(config(), 8);
    add(&mut planner, "a", 1, 6);
    planner.lookup("a", 0, 24, ms(0));
    let unsent = planner.offload("a", 8, &table(1..3)).job.unwrap();
    planner.reset();
    let plan = planner.take_plan(0, ms(0)).unwrap();
    assert_eq!((plan.jobs[0].id, plan.jobs[0].transfers.len()), (unsent, 0), "planned before, sent after");
    assert_eq!(planner.offload("a", 24, &table(1..7)).job, None, "its KV was computed before");
    planner.lookup("a", 0, 24, ms(1));
    assert_eq!(planner.offload("a", 24, &table(1..7)).held.len(), 6);
}

fn warm(rank: u32, epoch: u64, blocks: &[(u32, u64)]) -> Report {
    let mut report = hello(rank, 8);
    let hello = report.hello.as_mut().unwrap();
    hello.epoch = epoch;
    hello.highest_fill = FillId(50);
    hello.warm = blocks
        .iter()
        .map(|(slot, block)| Resident {
            slot: SlotId(*slot),
            key: BlockKey::from_engine_hash(&config().namespace, 0, &hash(1, *block as usize), b""),
            parent: BlockKey::default(),
            fill: FillId(*block + 1),
        })
        .collect();
    report
}

#[test]
fn a_warm_start_serves_what_all_ranks_hold() {
    let mut planner = new(PlannerConfig { ranks: 3, ..config() });
    planner.absorb(&warm(0, 4, &[(0, 0), (1, 1), (2, 2), (3, 3)]));
    // Rank 1 lost slot 2; rank 2 has something else in slot 3, and says slot 2 twice.
    planner.absorb(&warm(1, 4, &[(0, 0), (1, 1), (3, 3)]));
    planner.absorb(&warm(2, 4, &[(0, 0), (1, 1), (2, 2), (2, 2), (3, 9)]));
    add(&mut planner, "a", 1, 5);
    assert_eq!(planner.lookup("a", 0, 20, ms(0)), hit(8));
    assert_eq!(planner.stats().adopted_blocks, 2);
    let job = planner.offload("a", 20, &table(1..6)).job.unwrap();
    let plan = planner.take_plan(0, ms(0)).unwrap();
    assert_eq!((plan.epoch, &plan.forgotten[..]), (4, &[SlotId(2), SlotId(3)][..]));
    assert!(plan.jobs[0].transfers.iter().all(|transfer| transfer.fill > FillId(50)));
    end(&mut planner, job, true);
}

#[test]
fn a_rank_that_missed_a_reset_leaves_nothing_to_serve_and_fills_are_new_all_the_same() {
    let mut planner = new(PlannerConfig { ranks: 2, ..config() });
    planner.absorb(&warm(0, 4, &[(0, 0)]));
    planner.absorb(&warm(1, 3, &[(0, 0)]));
    add(&mut planner, "a", 1, 2);
    assert_eq!(planner.lookup("a", 0, 8, ms(0)), Lookup::Miss(MissReason::Absent));
    planner.offload("a", 8, &table(1..3));
    let plan = planner.take_plan(0, ms(0)).unwrap();
    assert!(plan.epoch == 4 && plan.jobs[0].transfers.iter().all(|transfer| transfer.fill > FillId(50)));
}

#[test]
fn a_reset_before_the_first_reports_is_not_lost() {
    let mut planner = new(config());
    planner.reset();
    assert_eq!(planner.take_plan(0, ms(0)), None, "nobody knows the epoch yet");
    assert!(!planner.has_pending_work());
    planner.absorb(&warm(0, 4, &[(0, 0)]));
    add(&mut planner, "a", 1, 2);
    assert_eq!(planner.lookup("a", 0, 8, ms(0)), Lookup::Miss(MissReason::Absent));
    assert_eq!(planner.take_plan(0, ms(1)).unwrap().epoch, 5);
}

#[test]
fn a_refused_offload_is_tried_again_when_the_request_has_grown() {
    let mut planner = started(config(), 12);
    store(&mut planner, 1, 12);
    add(&mut planner, "pin", 1, 13);
    planner.lookup("pin", 0, 52, ms(0));
    planner.commit_load("pin", 48, &table(1..14));
    let load = planner.take_plan(1, ms(0)).unwrap().jobs[0].id;
    add(&mut planner, "a", 2, 3);
    let refused = planner.offload("a", 8, &table(11..14));
    assert_eq!((refused.job, refused.next_tokens), (None, 12));
    end(&mut planner, load, true);
    let offloading = planner.offload("a", 12, &table(11..14));
    assert_eq!(offloading.held, [11, 12, 13]);
}

/// A quarter of the slots, however many chunks it comes in; and a share of its own for everybody else.
#[test]
fn a_request_evicts_its_share_over_its_life_and_the_rest_is_counted() {
    let mut planner = started(config(), 8);
    store(&mut planner, 1, 8);
    add(&mut planner, "a", 2, 5);
    for (computed, held) in [(4, vec![11]), (8, vec![12]), (16, vec![]), (20, vec![])] {
        let offloading = planner.offload("a", computed, &table(11..16));
        assert_eq!(offloading.held, held, "after {computed} tokens");
        assert_eq!(offloading.next_tokens, computed + BLOCK, "the connector goes on as ever");
        offloading.job.map(|job| end(&mut planner, job, true));
    }
    let stats = planner.directory().unwrap().stats();
    assert_eq!((stats.evicted, stats.over_share, stats.refused), (2, 3, 0));
    assert_eq!(store(&mut planner, 3, 2)[0].stored, [0, 1]);
}

/// Free slots are taken; where a victim is worth more, the rest of the request is left out, its later chunks too, and
/// the policy learns of all that was missing. Another request is judged for itself.
#[test]
fn what_is_not_worth_its_room_is_not_stored_and_counted() {
    let (mut planner, told) = witnessed_with(3);
    add(&mut planner, "a", 2, 4);
    for (computed, held) in [(8, vec![11]), (12, vec![]), (16, vec![])] {
        let offloading = planner.offload("a", computed, &table(11..15));
        assert_eq!(offloading.held, held, "after {computed} tokens");
        assert_eq!(offloading.next_tokens, computed + BLOCK, "the connector goes on as ever");
        offloading.job.map(|job| end(&mut planner, job, true));
    }
    assert_eq!(told(), ["missed 2.1", "+2.0", "missed 2.2", "missed 2.3"]);
    let stats = planner.directory().unwrap().stats();
    assert_eq!((stats.not_worth, stats.evicted, stats.refused, stats.ready), (3, 0, 0, 3));
    add(&mut planner, "b", 3, 1);
    assert!(planner.offload("b", 4, &table(21..22)).held.is_empty());
    assert_eq!(told(), ["missed 3.0"]);
}

/// The blocks of a load that failed leave free slots, which cost nobody anything.
#[test]
fn after_a_failed_load_a_request_stores_again_though_its_share_is_used() {
    let mut planner = started(config(), 4);
    store(&mut planner, 1, 3);
    store(&mut planner, 9, 1);
    add(&mut planner, "a", 1, 6);
    planner.lookup("a", 0, 25, ms(0));
    planner.commit_load("a", 12, &table(1..7));
    let load = planner.take_plan(1, ms(0)).unwrap().jobs[0].id;
    let offloading = planner.offload("a", 24, &table(1..7));
    assert_eq!((offloading.held, planner.directory().unwrap().stats().over_share), (vec![4], 2));
    end(&mut planner, load, false);
    assert_eq!(planner.offload("a", 24, &table(1..7)).held, [1, 2, 3]);
}

/// A policy that writes down what it is told, as `+document.block`, `touch document.block` and `missed document.block`.
/// It deems no block worth a victim.
struct Witness {
    lru: Lru,
    names: HashMap<SlotId, String>,
    told: Arc<Mutex<Vec<String>>>,
}

impl Witness {
    fn new(slots: u32) -> Self {
        Self { lru: Lru::new(slots), names: HashMap::new(), told: Arc::default() }
    }
}

impl EvictionPolicy for Witness {
    fn name(&self) -> &'static str {
        "witness"
    }

    fn insert(&mut self, slot: SlotId, key: BlockKey) {
        let name = name(&key);
        self.told.lock().push(format!("+{name}"));
        self.names.insert(slot, name);
        self.lru.insert(slot, key);
    }

    fn pass_by(&mut self, key: &BlockKey) {
        self.told.lock().push(format!("missed {}", name(key)));
    }

    fn evict_for(&mut self, _: &BlockKey, _: &mut dyn FnMut(SlotId) -> Candidate) -> Place {
        Place::NotWorth
    }

    fn touch(&mut self, slot: SlotId) {
        self.told.lock().push(format!("touch {}", self.names[&slot]));
        self.lru.touch(slot);
    }

    fn remove(&mut self, slot: SlotId) {
        self.lru.remove(slot);
    }

    fn evict(&mut self, candidate: &mut dyn FnMut(SlotId) -> Candidate) -> Option<SlotId> {
        self.lru.evict(candidate)
    }

    fn clear(&mut self) {
        self.lru.clear();
    }

    fn len(&self) -> usize {
        self.lru.len()
    }

    fn metadata_bytes(&self) -> usize {
        self.lru.metadata_bytes()
    }
}

/// `document.block` of one of the first ten blocks of the first ten documents.
fn name(key: &BlockKey) -> String {
    let namespace = Namespace::of_text("test");
    let (document, block) = (0..10)
        .flat_map(|document| (0..10).map(move |block| (document, block)))
        .find(|(document, block)| {
            BlockKey::from_engine_hash(&namespace, 0, &hash(*document, *block), &[]) == *key
        })
        .unwrap();
    format!("{document}.{block}")
}

/// A planner that holds the first two blocks of document 1, and takes what the policy was told since the last call.
fn witnessed() -> (Planner, impl Fn() -> Vec<String>) {
    witnessed_with(16)
}

/// The same of so many slots.
fn witnessed_with(slots: u32) -> (Planner, impl Fn() -> Vec<String>) {
    let told = Arc::new(Mutex::new(Vec::new()));
    let witness = Arc::clone(&told);
    let mut planner = Planner::new(
        config(),
        Box::new(move |slots| Box::new(Witness { told: Arc::clone(&witness), ..Witness::new(slots) })),
    );
    planner.absorb(&hello(0, slots));
    store(&mut planner, 1, 2);
    told.lock().clear();
    (planner, move || std::mem::take(&mut *told.lock()))
}

/// Loads the two blocks for a prompt of 17 tokens and returns the job.
fn load_two(planner: &mut Planner, options: RequestOptions) -> JobId {
    add_with(planner, "a", 1, 4, options);
    assert_eq!(planner.lookup("a", 0, 17, ms(0)), hit(8));
    planner.commit_load("a", 8, &table(1..6));
    planner.take_plan(1, ms(0)).unwrap().jobs[0].id
}

const TOUCHES: [&str; 2] = ["touch 1.1", "touch 1.0"];

#[test]
fn hits_are_touched_once_after_the_last_chunk_of_the_prompt_is_stored() {
    for (ok, finished_early) in [(true, false), (true, true), (false, false)] {
        let (mut planner, told) = witnessed();
        let load = load_two(&mut planner, RequestOptions::default());
        end(&mut planner, load, true);
        let first = planner.offload("a", 12, &table(1..6)).job.unwrap();
        end(&mut planner, first, ok);
        let last = planner.offload("a", 17, &table(1..6)).job.unwrap();
        if finished_early {
            planner.finish("a");
        }
        assert_eq!(told(), if ok { vec!["+1.2"] } else { vec![] }, "not before the last chunk");
        end(&mut planner, last, ok);
        let stored = if ok { vec!["+1.3"] } else { vec![] };
        assert_eq!(told(), [stored, TOUCHES.to_vec()].concat());
        planner.finish("a");
        assert_eq!(told(), Vec::<String>::new(), "one use, one touch");
    }
}

#[test]
fn hits_of_the_engines_own_cache_are_touched_after_the_stored_blocks_too() {
    let (mut planner, told) = witnessed();
    add(&mut planner, "a", 1, 4);
    assert_eq!(planner.lookup("a", 8, 17, ms(0)), Lookup::Miss(MissReason::Absent));
    planner.commit_load("a", 0, &table(1..6));
    let job = planner.offload("a", 17, &table(1..6)).job.unwrap();
    end(&mut planner, job, true);
    assert_eq!(told(), ["+1.3", "+1.2", "touch 1.1", "touch 1.0"]);
}

/// Aborted before anything was stored, with nothing to store, and where storing is not wanted.
#[test]
fn hits_are_touched_once_though_nothing_is_stored() {
    let (mut planner, told) = witnessed();
    let load = load_two(&mut planner, RequestOptions::default());
    assert_eq!(told(), Vec::<String>::new());
    planner.finish("a");
    assert_eq!(told(), TOUCHES);
    end(&mut planner, load, true);
    assert_eq!(told(), Vec::<String>::new());
    add(&mut planner, "present", 1, 2);
    planner.lookup("present", 0, 9, ms(0));
    assert_eq!(planner.offload("present", 9, &table(1..4)).job, None);
    assert_eq!(told(), TOUCHES);
    let skip = RequestOptions { skip_store: true, ..RequestOptions::default() };
    let load = load_two(&mut planner, skip);
    end(&mut planner, load, true);
    planner.offload("a", 17, &table(1..6));
    assert_eq!(told(), TOUCHES);
    planner.finish("a");
    assert_eq!(told(), Vec::<String>::new());
}

#[test]
fn requests_may_leave_while_their_jobs_run() {
    let mut planner = started(config(), 8);
    store(&mut planner, 1, 2);
    add(&mut planner, "a", 1, 4);
    planner.lookup("a", 0, 16, ms(0));
    planner.commit_load("a", 8, &table(1..5));
    let offload = planner.offload("a", 16, &table(1..5)).job.unwrap();
    planner.finish("a");
    planner.finish("a");
    assert_eq!(planner.stats().requests, 0);
    let load = planner.take_plan(1, ms(0)).unwrap().jobs[0].id;
    assert_eq!(end(&mut planner, load, false).len(), 1);
    assert_eq!(end(&mut planner, offload, true)[0].released, [3, 4]);
    assert!(planner.directory().unwrap().check().is_ok());
    assert_eq!(planner.directory().unwrap().stats().pinned, 0);
}

/// Calling for every token stores the same as calling only when `next_tokens` is reached, and fewer calls do it.
#[test]
fn next_tokens_never_skips_a_block() {
    let mut r = crate::fakes::random::Random::new(3);
    for round in 0..300 {
        let slot_blocks = r.between(1, 3);
        let base = if r.chance(500) { two_groups() } else { config() };
        let store_on_sight = r.between(1, 2) as u8;
        let config = PlannerConfig { slot_blocks, store_on_sight, prompt_only: r.chance(300), ..base };
        let groups = config.groups.len();
        let (mut each, mut few) = (started(config.clone(), 200), started(config, 200));
        for request in 0..4 {
            let blocks = r.between(1, 20);
            let prompt_tokens = r.between(1, blocks * BLOCK);
            let (document, cap) = (r.below(2) as u64, if r.chance(300) { r.below(80) } else { usize::MAX });
            let (mut next, mut computed) = (0, 0);
            let (mut stored, mut calls) = ([BTreeSet::new(), BTreeSet::new()], [0, 0]);
            let lag = r.below(2);
            let id = format!("{request}");
            for planner in [&mut each, &mut few] {
                let options =
                    RequestOptions { prompt_tokens, max_store_tokens: cap, ..RequestOptions::default() };
                planner.add_request(&id, options);
            }
            while computed < blocks * BLOCK {
                computed = (computed + r.between(1, 9)).min(blocks * BLOCK);
                let tables = vec![(1..=blocks as u32).collect::<Vec<u32>>(); groups];
                for (index, planner) in [&mut each, &mut few].into_iter().enumerate() {
                    if index == 1 && computed < next {
                        continue;
                    }
                    calls[index] += 1;
                    extend(planner, &id, document, (computed / BLOCK).saturating_sub(lag));
                    let offloading = planner.offload(&id, computed, &tables);
                    stored[index].extend(offloading.slots);
                    if index == 1 {
                        next = offloading.next_tokens;
                    }
                }
            }
            assert_eq!(stored[0], stored[1], "round {round}, request {request}");
            assert!(calls[1] <= calls[0]);
        }
    }
}
