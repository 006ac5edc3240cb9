//! What is sent for, what is sent away, and who waits how long.

mod room;

use std::sync::Arc;

use parking_lot::Mutex;

use super::super::tier::{Ingestion, RemoteTierConfig};
use super::*;
use crate::fingerprint::ShardFingerprint;
use crate::remote::{Presence, PresenceAnswer, RemoteSpace};
use crate::report::RemoteShard;

/// What the planner has asked and what it will hear.
#[derive(Default)]
struct Script {
    spaces: Vec<RemoteSpace>,
    asked: Vec<(u64, Vec<BlockKey>)>,
    answers: Vec<PresenceAnswer>,
    patience: Duration,
}

struct Scripted(Arc<Mutex<Script>>);

impl Presence for Scripted {
    fn set_spaces(&mut self, spaces: &[RemoteSpace]) {
        self.0.lock().spaces = spaces.to_vec();
    }
    fn ask(&mut self, question: u64, keys: &[BlockKey], patience: Duration) {
        let mut script = self.0.lock();
        script.patience = patience;
        script.asked.push((question, keys.to_vec()));
    }
    fn poll(&mut self, answers: &mut Vec<PresenceAnswer>) {
        answers.append(&mut self.0.lock().answers);
    }
}

struct Rig {
    planner: Planner,
    script: Arc<Mutex<Script>>,
}

fn tier() -> RemoteTierConfig {
    let (presence_wait, fetch_wait) = (ms(5), ms(50));
    RemoteTierConfig {
        presence_wait,
        fetch_wait,
        fetch_job_slots: 2,
        demoting_max: 4,
        nonce: 7,
        ..RemoteTierConfig::default()
    }
}

fn remote_hello(rank: u32, slots: u32, shard: u8, epoch: u64) -> Report {
    let mut report = hello(rank, slots);
    if let Some(hello) = &mut report.hello {
        hello.remote = Some(RemoteShard { shard: ShardFingerprint([shard; 16]), value_bytes: 64 });
        hello.epoch = epoch;
    }
    report
}

impl Rig {
    fn new(tier: RemoteTierConfig, slots: u32) -> Self {
        Self::of(config(), tier, slots)
    }

    fn of(config: PlannerConfig, tier: RemoteTierConfig, slots: u32) -> Self {
        let script = Arc::new(Mutex::new(Script::default()));
        let mut planner = new(config).with_remote(tier, Box::new(Scripted(Arc::clone(&script))));
        planner.absorb(&remote_hello(0, slots, 1, 0));
        Self { planner, script }
    }

    /// Answers the oldest question: which of its keys are there.
    fn answer(&mut self, is_there: impl Fn(usize) -> bool) -> Vec<BlockKey> {
        let mut script = self.script.lock();
        let (question, keys) = script.asked.remove(0);
        let present = (0..keys.len()).map(is_there).collect();
        script.answers.push(PresenceAnswer { question, present });
        keys
    }

    fn asked(&self) -> usize {
        self.script.lock().asked.len()
    }

    /// The jobs of the next plan.
    fn jobs(&mut self, now: u64) -> Vec<Job> {
        self.planner.take_plan(0, ms(now)).map(|plan| plan.jobs).unwrap_or_default()
    }

    /// Ends a job with the transfers at these positions failed.
    fn end(&mut self, job: &Job, failed: &[u32]) -> Vec<Ended> {
        let end = JobEnd { id: job.id, ok: true, failed: failed.to_vec() };
        self.planner.absorb(&Report { usable_slots: 1000, ended: vec![end], ..Report::default() })
    }
}

fn kinds(jobs: &[Job]) -> Vec<(JobKind, usize)> {
    jobs.iter().map(|job| (job.kind, job.transfers.len())).collect()
}

/// Asked for once, at the first question; what comes is offered as it comes.
#[test]
fn what_l2_has_is_fetched_and_then_a_hit() {
    let mut rig = Rig::new(tier(), 16);
    add(&mut rig.planner, "a", 1, 6);
    assert_eq!(rig.planner.lookup("a", 0, 24, ms(0)), Lookup::Wait);
    assert_eq!(rig.planner.lookup("a", 0, 24, ms(1)), Lookup::Wait);
    assert_eq!(rig.asked(), 1);
    let keys = rig.answer(|block| block < 3);
    assert_eq!(keys.len(), 5, "a token is left to compute");
    assert_eq!(rig.planner.lookup("a", 0, 24, ms(2)), Lookup::Wait);
    let jobs = rig.jobs(2);
    assert_eq!(kinds(&jobs), [(JobKind::Fetch, 2), (JobKind::Fetch, 1)]);
    assert_eq!(jobs[0].transfers[1].parent, jobs[0].transfers[0].key);
    assert_eq!(rig.planner.lookup("a", 0, 24, ms(3)), Lookup::Wait);
    rig.end(&jobs[1], &[]);
    rig.end(&jobs[0], &[]);
    assert_eq!(rig.planner.lookup("a", 0, 24, ms(4)), hit(12));
    rig.planner.commit_load("a", 12, &table(1..7));
    assert_eq!(rig.planner.remote_tokens("a"), 12);
    add(&mut rig.planner, "b", 1, 4);
    assert_eq!(rig.planner.lookup("b", 0, 13, ms(5)), hit(12), "all that it needs is here: nothing is asked");
    rig.planner.commit_load("b", 12, &table(11..15));
    let stats = rig.planner.stats().remote.unwrap();
    assert_eq!((stats.asked_blocks, stats.present_blocks, stats.fetched_blocks), (5, 3, 3));
    assert_eq!(stats.hit_tokens, 12, "the second use is of L1");
}

#[test]
fn a_request_may_be_announced_before_it_is_considered() {
    let mut rig = Rig::new(tier(), 16);
    add(&mut rig.planner, "a", 1, 6);
    rig.planner.prefetch("a", 24, ms(0));
    rig.planner.prefetch("a", 24, ms(0));
    assert_eq!(rig.asked(), 1);
    rig.answer(|_| true);
    let jobs = rig.jobs(0);
    assert_eq!(jobs.len(), 2, "a quarter of the slots");
    jobs.iter().for_each(|job| drop(rig.end(job, &[])));
    assert_eq!(rig.planner.lookup("a", 0, 24, ms(1)), hit(16));
}

#[test]
fn nobody_waits_longer_than_its_deadline() {
    // For an answer,
    let mut rig = Rig::new(tier(), 16);
    add(&mut rig.planner, "a", 1, 6);
    assert_eq!(rig.planner.lookup("a", 0, 24, ms(0)), Lookup::Wait);
    assert_eq!(rig.planner.lookup("a", 0, 24, ms(4)), Lookup::Wait);
    assert_eq!(rig.planner.lookup("a", 0, 24, ms(5)), Lookup::Miss(MissReason::Absent));
    // nor for the blocks, if the answer came: the clock has been running since the first question.
    rig.answer(|_| true);
    assert_eq!(rig.planner.lookup("a", 0, 24, ms(6)), Lookup::Wait);
    assert_eq!(rig.planner.lookup("a", 0, 24, ms(49)), Lookup::Wait);
    assert_eq!(rig.planner.lookup("a", 0, 24, ms(50)), Lookup::Miss(MissReason::Late));
    assert_eq!(rig.planner.lookup("a", 0, 24, ms(51)), Lookup::Miss(MissReason::Late));
}

#[test]
fn a_value_that_does_not_come_shortens_the_match() {
    let mut rig = Rig::new(RemoteTierConfig { fetch_job_slots: 16, ..tier() }, 32);
    add(&mut rig.planner, "a", 1, 6);
    rig.planner.lookup("a", 0, 24, ms(0));
    rig.answer(|_| true);
    let jobs = rig.jobs(1);
    assert_eq!(kinds(&jobs), [(JobKind::Fetch, 5)]);
    rig.end(&jobs[0], &[2]);
    assert_eq!(rig.planner.lookup("a", 0, 24, ms(2)), hit(8));
    let stats = rig.planner.stats().remote.unwrap();
    assert_eq!((stats.fetched_blocks, stats.failed_fetches), (4, 1));
    assert_eq!(ready(&rig.planner), 4);
    // A rank that failed altogether has none of them.
    add(&mut rig.planner, "b", 2, 3);
    rig.planner.lookup("b", 0, 12, ms(3));
    rig.answer(|_| true);
    let jobs = rig.jobs(3);
    end(&mut rig.planner, jobs[0].id, false);
    assert_eq!(rig.planner.lookup("b", 0, 12, ms(4)), Lookup::Miss(MissReason::Absent));
}

/// What lies behind a hole is of no use, and a prefix that is here is not fetched again.
#[test]
fn only_what_lengthens_the_match_is_fetched() {
    let mut rig = Rig::new(RemoteTierConfig { ingestion: Ingestion::Evicted, ..tier() }, 32);
    store(&mut rig.planner, 1, 2);
    add(&mut rig.planner, "a", 1, 8);
    rig.planner.lookup("a", 0, 32, ms(0));
    assert_eq!(rig.answer(|block| block != 2).len(), 5);
    assert_eq!(kinds(&rig.jobs(0)), [(JobKind::Fetch, 2)]);
    add(&mut rig.planner, "b", 2, 4);
    rig.planner.lookup("b", 0, 16, ms(0));
    rig.answer(|block| block > 0);
    assert_eq!(kinds(&rig.jobs(0)), []);
}

#[test]
fn a_fetch_that_nobody_wants_is_cancelled() {
    let mut rig = Rig::new(RemoteTierConfig { fetch_job_slots: 16, ..tier() }, 32);
    for id in ["a", "b"] {
        add(&mut rig.planner, id, 1, 4);
    }
    rig.planner.lookup("a", 0, 16, ms(0));
    rig.answer(|_| true);
    let jobs = rig.jobs(0);
    // Another request waits for the same blocks. It asks for nothing that is on its way.
    assert_eq!(rig.planner.lookup("b", 0, 16, ms(1)), Lookup::Wait);
    assert_eq!(rig.asked(), 0);
    rig.planner.finish("a");
    assert_eq!(rig.planner.take_plan(0, ms(1)), None);
    rig.planner.finish("b");
    let plan = rig.planner.take_plan(0, ms(2)).unwrap();
    assert_eq!(plan.cancelled, [jobs[0].id]);
    assert!(rig.planner.has_pending_work(), "the ranks have not let go of the slots");
    rig.end(&jobs[0], &[0, 1, 2]);
    assert!(!rig.planner.has_pending_work());
    rig.planner.directory().unwrap().check().unwrap();
}

#[test]
fn all_that_was_stored_goes_to_l2_once() {
    let mut rig = Rig::new(tier(), 16);
    store(&mut rig.planner, 1, 6);
    assert_eq!(kinds(&rig.jobs(0)), []);
    let keys = rig.answer(|block| block == 1);
    assert_eq!(keys.len(), 4, "as many as may be under way");
    let jobs = rig.jobs(1);
    assert_eq!(kinds(&jobs), [(JobKind::Demote, 3)]);
    assert_eq!(rig.planner.directory().unwrap().stats().pinned, 3);
    rig.end(&jobs[0], &[2]);
    assert_eq!(rig.planner.directory().unwrap().stats().pinned, 0);
    rig.jobs(2);
    assert_eq!(rig.answer(|_| false).len(), 1, "one was asked about as soon as there was room");
    let stats = rig.planner.stats().remote.unwrap();
    assert_eq!((stats.demoted_blocks, stats.already_demoted, stats.failed_demotions), (2, 1, 1));
}

#[test]
fn hot_is_what_is_used_again() {
    let mut rig = Rig::new(RemoteTierConfig { ingestion: Ingestion::Hot, ..tier() }, 16);
    store(&mut rig.planner, 1, 3);
    rig.jobs(0);
    assert_eq!(rig.asked(), 0);
    add(&mut rig.planner, "a", 1, 3);
    assert_eq!(rig.planner.lookup("a", 0, 12, ms(0)), hit(8));
    rig.planner.commit_load("a", 8, &table(1..4));
    rig.planner.finish("a");
    rig.jobs(1);
    assert_eq!(rig.answer(|_| false).len(), 2);
}

/// In a full cache a few slots are kept free by sending away what would be evicted next.
#[test]
fn what_is_evicted_goes_to_l2_first() {
    let mut rig = Rig::new(RemoteTierConfig { ingestion: Ingestion::Evicted, ..tier() }, 16);
    store(&mut rig.planner, 1, 16);
    let jobs = rig.jobs(0);
    assert_eq!(kinds(&jobs), [(JobKind::Demote, 1)]);
    let directory = rig.planner.directory().unwrap();
    assert_eq!((directory.stats().ready, directory.stats().draining, directory.free_slots()), (15, 1, 0));
    assert_eq!(kinds(&rig.jobs(1)), [], "one is on its way");
    rig.end(&jobs[0], &[]);
    assert_eq!(rig.planner.directory().unwrap().free_slots(), 1);
    assert_eq!(kinds(&rig.jobs(2)), []);
    rig.planner.directory().unwrap().check().unwrap();
    let dropped = |rig: &Rig| rig.planner.stats().remote.unwrap().dropped_demotions;
    assert_eq!(dropped(&rig), 0);
    // A request that needs more at once than is kept free evicts what has not been sent.
    store(&mut rig.planner, 2, 4);
    assert_eq!(dropped(&rig), 3);
}

/// What a failed load voids is over when the load is, however long L2 takes.
#[test]
fn jobs_with_l2_do_not_keep_steps_from_being_settled() {
    let mut rig = Rig::new(tier(), 16);
    store(&mut rig.planner, 1, 1);
    let demoting = rig.jobs(0);
    rig.answer(|_| false);
    let jobs = [demoting, rig.jobs(1)].concat();
    assert_eq!(kinds(&jobs), [(JobKind::Demote, 1)]);
    add(&mut rig.planner, "z", 9, 1);
    rig.planner.offload("z", 4, &table(1..2));
    let plan = rig.planner.take_plan(4, ms(2)).unwrap();
    assert!(plan.settled > jobs[0].id.number, "{} is not above {:?}", plan.settled, jobs[0].id);
}

/// Who waits for no answer gets one all the same, if it comes before his turn.
#[test]
fn servers_have_time_to_answer_although_nobody_waits() {
    let mut rig = Rig::new(RemoteTierConfig { presence_wait: ms(0), ..tier() }, 16);
    add(&mut rig.planner, "a", 1, 4);
    rig.planner.prefetch("a", 16, ms(0));
    assert!(rig.script.lock().patience >= ms(10));
    rig.answer(|_| true);
    assert_eq!(rig.planner.lookup("a", 0, 16, ms(1)), Lookup::Wait);
    assert_eq!(kinds(&rig.jobs(1)), [(JobKind::Fetch, 2), (JobKind::Fetch, 1)]);
}

#[test]
fn after_a_reset_nobody_else_s_values_are_found() {
    let mut rig = Rig::new(tier(), 16);
    let before = rig.script.lock().spaces.clone();
    add(&mut rig.planner, "a", 1, 4);
    rig.planner.lookup("a", 0, 16, ms(0));
    rig.planner.reset();
    let after = rig.script.lock().spaces.clone();
    assert_eq!((before.len(), after.len()), (1, 1));
    assert_ne!(before, after);
    rig.answer(|_| true);
    assert_eq!(kinds(&rig.jobs(1)), [], "an answer about values of before");
    assert_ne!(rig.planner.remote.as_ref().unwrap().generation, 0);
    // And so does the next process over the same slabs.
    let script = Arc::new(Mutex::new(Script::default()));
    let mut next = new(config()).with_remote(tier(), Box::new(Scripted(Arc::clone(&script))));
    next.absorb(&remote_hello(0, 16, 1, 3));
    assert_ne!(script.lock().spaces, before);
}

#[test]
fn without_a_way_on_every_rank_there_is_no_l2() {
    let script = Arc::new(Mutex::new(Script::default()));
    let mut planner = new(PlannerConfig { ranks: 3, ..config() })
        .with_remote(tier(), Box::new(Scripted(Arc::clone(&script))));
    planner.absorb(&remote_hello(0, 16, 1, 0));
    planner.absorb(&remote_hello(1, 16, 1, 0));
    planner.absorb(&hello(2, 16));
    add(&mut planner, "a", 1, 4);
    assert_eq!(planner.lookup("a", 0, 16, ms(0)), Lookup::Miss(MissReason::Absent));
    assert!(script.lock().asked.is_empty() && script.lock().spaces.is_empty());
    // Ranks that hold the same are one shard.
    let mut planner = new(PlannerConfig { ranks: 3, ..config() })
        .with_remote(tier(), Box::new(Scripted(Arc::clone(&script))));
    for (rank, shard) in [(0, 1), (1, 2), (2, 1)] {
        planner.absorb(&remote_hello(rank, 16, shard, 0));
    }
    assert_eq!(script.lock().spaces.len(), 2);
}

#[test]
fn who_may_not_load_asks_for_nothing() {
    let mut rig = Rig::new(tier(), 16);
    add_with(&mut rig.planner, "a", 1, 6, RequestOptions { skip_load: true, ..RequestOptions::default() });
    assert_eq!(rig.planner.lookup("a", 0, 24, ms(0)), Lookup::Miss(MissReason::OptOut));
    add_with(&mut rig.planner, "b", 1, 6, RequestOptions { max_load_tokens: 9, ..RequestOptions::default() });
    rig.planner.lookup("b", 0, 24, ms(0));
    assert_eq!(rig.answer(|_| false).len(), 2);
    assert_eq!(rig.asked(), 0);
}

/// Fetching that is known to be slower than computing is not begun.
#[test]
fn a_slow_l2_is_left_alone() {
    let mut rig = Rig::new(tier(), 16);
    for step in 0..9 {
        // A token in 0.1 ms, a byte in 1 ms.
        rig.planner.take_plan(100, ms(10 * step));
        rig.planner.absorb(&Report {
            usable_slots: 16,
            fetched_bytes: 1,
            fetch_ns: 1_000_000,
            ..Report::default()
        });
    }
    add(&mut rig.planner, "a", 1, 4);
    rig.planner.lookup("a", 0, 16, ms(100));
    rig.answer(|_| true);
    assert_eq!(rig.planner.lookup("a", 0, 16, ms(101)), Lookup::Miss(MissReason::Absent));
    assert_eq!(rig.planner.stats().remote.unwrap().break_even, 1);
    // Not for ever: what was slow is measured again after a while.
    add(&mut rig.planner, "b", 2, 4);
    rig.planner.lookup("b", 0, 16, ms(5200));
    rig.answer(|_| true);
    assert_eq!(rig.planner.lookup("b", 0, 16, ms(5201)), Lookup::Wait);
    assert_eq!(kinds(&rig.jobs(5201)), [(JobKind::Fetch, 2), (JobKind::Fetch, 1)]);
}

/// What lies behind a hole is not what a fetch costs.
#[test]
fn break_even_is_of_what_would_be_fetched() {
    let mut rig = Rig::new(tier(), 64);
    for step in 0..9 {
        // A token in 0.1 ms, a byte in 5 µs: a slot of 64 bytes takes 0.3 ms, and its tokens 0.4.
        rig.planner.take_plan(100, ms(10 * step));
        let report =
            Report { usable_slots: 64, fetched_bytes: 1000, fetch_ns: 5_000_000, ..Report::default() };
        rig.planner.absorb(&report);
    }
    add(&mut rig.planner, "a", 1, 40);
    rig.planner.lookup("a", 0, 160, ms(100));
    rig.answer(|block| block != 2);
    assert_eq!(kinds(&rig.jobs(101)), [(JobKind::Fetch, 2)]);
}

/// An answer that comes when the engine has begun to compute starts nothing: the blocks are being computed.
#[test]
fn an_answer_that_comes_too_late_fetches_nothing() {
    let mut rig = Rig::new(tier(), 16);
    add(&mut rig.planner, "a", 1, 4);
    rig.planner.lookup("a", 0, 16, ms(0));
    assert_eq!(rig.planner.lookup("a", 0, 16, ms(5)), Lookup::Miss(MissReason::Absent));
    rig.planner.commit_load("a", 0, &[]);
    rig.answer(|_| true);
    assert_eq!(kinds(&rig.jobs(6)), []);
}

/// A planner that knows: a token is computed in 1 ms, and `slot_ms` bring a slot.
fn informed(slots: u32, slot_ms: u64) -> Rig {
    let mut rig = Rig::new(RemoteTierConfig { fetch_wait: ms(1000), fetch_job_slots: 16, ..tier() }, slots);
    for step in 0..9 {
        rig.planner.take_plan(100, ms(100 * step));
        let report = Report {
            usable_slots: slots,
            fetched_bytes: 64,
            fetch_ns: slot_ms * 1_000_000,
            ..Report::default()
        };
        rig.planner.absorb(&report);
    }
    rig.planner.take_plan(0, ms(900));
    rig
}

/// Requests of four slots in L2 and one to compute, which all come at this time. Returns their fetches.
fn together(rig: &mut Rig, count: u64, now: u64) -> Vec<Job> {
    for document in 0..count {
        let id = document.to_string();
        add(&mut rig.planner, &id, document, 5);
        assert_eq!(rig.planner.lookup(&id, 0, 20, ms(now)), Lookup::Wait);
        rig.answer(|_| true);
    }
    let jobs = rig.jobs(now);
    assert_eq!(kinds(&jobs), vec![(JobKind::Fetch, 4); count as usize]);
    jobs
}

/// The last of them waits longer than it would take to compute, because it knows that its turn will come sooner.
#[test]
fn requests_that_come_together_wait_for_their_turn() {
    // A fetch takes 4 ms, computing instead 16.
    let mut rig = informed(256, 1);
    let jobs = together(&mut rig, 8, 1000);
    for (turn, job) in (1_u64..).zip(&jobs) {
        let now = ms(1000 + 4 * turn);
        for later in turn - 1..8 {
            assert_eq!(
                rig.planner.lookup(&later.to_string(), 0, 20, now),
                Lookup::Wait,
                "{later} at {now:?}"
            );
        }
        rig.end(job, &[]);
        let id = (turn - 1).to_string();
        assert_eq!(rig.planner.lookup(&id, 0, 20, now + ms(1)), hit(16));
        rig.planner.commit_load(&id, 16, &table(1..6));
        // Its tail is computed at once.
        rig.planner.take_plan(4, now + ms(1));
    }
}

/// What is known to be slower is waited for as long as it would take to compute, and no longer.
#[test]
fn who_would_wait_too_long_computes() {
    // A fetch takes 8 ms: half of what computing takes. The fifth would wait for 40.
    let mut rig = informed(256, 2);
    let jobs = together(&mut rig, 5, 1000);
    rig.end(&jobs[0], &[]);
    assert_eq!(rig.planner.lookup("4", 0, 20, ms(1015)), Lookup::Wait);
    assert_eq!(
        rig.planner.lookup("3", 0, 20, ms(1016)),
        Lookup::Miss(MissReason::Late),
        "24 ms to wait, 16 to compute"
    );
    // What it computes is before the next, which gains nothing by doing the same.
    rig.planner.commit_load("3", 0, &[]);
    assert_eq!(rig.planner.lookup("4", 0, 20, ms(1016)), Lookup::Wait);
}

/// Whatever was known, nobody waits for servers that have fallen silent.
#[test]
fn silence_ends_waiting() {
    let mut rig = informed(256, 1);
    let jobs = together(&mut rig, 6, 1000);
    for job in &jobs[..2] {
        rig.end(job, &[]);
    }
    assert_eq!(rig.planner.lookup("3", 0, 20, ms(1010)), Lookup::Wait);
    assert_eq!(
        rig.planner.lookup("3", 0, 20, ms(1025)),
        Lookup::Wait,
        "8 ms to wait, and something has come"
    );
    assert_eq!(rig.planner.lookup("3", 0, 20, ms(1026)), Lookup::Miss(MissReason::Late));
    // Not even if it keeps coming: there is a deadline.
    let mut rig = informed(256, 1);
    let jobs = together(&mut rig, 6, 1000);
    assert_eq!(rig.planner.lookup("5", 0, 20, ms(1998)), Lookup::Miss(MissReason::Late));
    rig.end(&jobs[0], &[]);
    assert_eq!(rig.planner.lookup("4", 0, 20, ms(1999)), Lookup::Wait);
    assert_eq!(rig.planner.lookup("4", 0, 20, ms(2000)), Lookup::Miss(MissReason::Late));
}

/// Who begins without what is on its way computes it, and stores it.
#[test]
fn a_request_that_begins_without_its_blocks_cancels_them() {
    let mut rig = informed(256, 1);
    let jobs = together(&mut rig, 2, 1000);
    assert_eq!(rig.planner.lookup("0", 0, 20, ms(1500)), Lookup::Miss(MissReason::Late));
    rig.planner.commit_load("0", 0, &[]);
    let offloading = rig.planner.offload("0", 20, &table(1..6));
    assert_eq!(offloading.slots, [(0, 4)], "the others are still being filled");
    let plan = rig.planner.take_plan(20, ms(1500)).unwrap();
    assert_eq!(plan.cancelled, [jobs[0].id]);
    rig.end(&jobs[0], &[1, 2, 3]);
    let offloading = rig.planner.offload("0", 20, &table(1..6));
    assert_eq!(offloading.slots, [(0, 1), (0, 2), (0, 3)]);
    // The same blocks for two: the other one still wants them.
    let mut rig = informed(256, 1);
    let jobs = together(&mut rig, 1, 1000);
    add(&mut rig.planner, "b", 0, 5);
    assert_eq!(rig.planner.lookup("b", 0, 20, ms(1001)), Lookup::Wait);
    rig.planner.commit_load("0", 0, &[]);
    assert_eq!(rig.planner.take_plan(20, ms(1001)).map(|plan| plan.cancelled).unwrap_or_default(), []);
    rig.end(&jobs[0], &[]);
    assert_eq!(rig.planner.lookup("b", 0, 20, ms(1002)), hit(16));
}

/// Who comes while a fetch is being cancelled, since nobody wanted it any more, asks for its blocks again.
#[test]
fn what_was_cancelled_for_others_is_fetched_again() {
    let mut rig = informed(256, 1);
    let jobs = together(&mut rig, 1, 1000);
    rig.planner.finish("0");
    assert_eq!(rig.planner.take_plan(0, ms(1000)).unwrap().cancelled, [jobs[0].id]);
    // Its head is on its way, as far as it knows, and of its tail there is nothing.
    add(&mut rig.planner, "b", 0, 7);
    assert_eq!(rig.planner.lookup("b", 0, 28, ms(1001)), Lookup::Wait);
    assert_eq!(rig.answer(|_| false).len(), 2);
    assert_eq!(rig.planner.lookup("b", 0, 28, ms(1002)), Lookup::Wait);
    rig.end(&jobs[0], &[0, 1, 2, 3]);
    assert_eq!(
        rig.planner.lookup("b", 0, 28, ms(1010)),
        Lookup::Wait,
        "asked again, and there is time to answer"
    );
    assert_eq!(rig.answer(|block| block < 4).len(), 6);
    assert_eq!(kinds(&rig.jobs(1011)), [(JobKind::Fetch, 4)]);
}

/// Servers that say what they have and never bring it do not cost L1's slots for ever.
#[test]
fn an_l2_that_brings_nothing_is_left_alone() {
    let mut rig = informed(256, 1);
    for round in 0..8 {
        let jobs: Vec<Job> = together(&mut rig, 2, 1000 + round);
        for (request, job) in jobs.iter().enumerate() {
            rig.end(job, &[0, 1, 2, 3]);
            rig.planner.finish(&request.to_string());
        }
        rig.jobs(1000 + round);
    }
    let asks = |rig: &mut Rig, id: &str, now: u64| {
        add(&mut rig.planner, id, 50, 5);
        rig.planner.lookup(id, 0, 20, ms(now));
        rig.answer(|_| true);
        kinds(&rig.jobs(now))
    };
    assert_eq!(asks(&mut rig, "a", 1100), []);
    assert_eq!(rig.planner.stats().remote.unwrap().break_even, 1);
    // It is tried again after a while, and what it brings ends that.
    assert_eq!(asks(&mut rig, "b", 7000), [(JobKind::Fetch, 4)]);
}
