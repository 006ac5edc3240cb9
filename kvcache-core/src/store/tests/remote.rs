//! Jobs between L1 and L2 on one rank.

use super::*;
use crate::fakes::fake_ring::{FakeRemote, FakeServers, RingBehaviour};
use crate::fingerprint::{Namespace, ShardFingerprint};
use crate::remote::{RemoteEnd, RemoteStore, RemoteTransfer};

struct Rig {
    rank: Rank,
    remote: Arc<FakeRemote>,
    servers: Arc<FakeServers>,
}

fn rig(in_flight_max: usize) -> Rig {
    let servers = FakeServers::new(3, RingBehaviour::default());
    let (rank, remote) = rank_of(&servers, in_flight_max);
    Rig { rank, remote, servers }
}

fn rank_of(servers: &Arc<FakeServers>, in_flight_max: usize) -> (Rank, Arc<FakeRemote>) {
    let mut rank = rank();
    let remote = FakeRemote::new(servers);
    let link = RemoteLink {
        store: Arc::clone(&remote) as _,
        namespace: Namespace::of_text("test"),
        shard: ShardFingerprint([1; 16]),
        patience: Duration::from_secs(5),
        in_flight_max,
    };
    let layout = rank.store.layout().clone();
    rank.store =
        Store::new(rank.store.config, layout, Arc::clone(&rank.memory) as _, Arc::clone(&rank.copies) as _)
            .with_remote(link);
    (rank, remote)
}

impl Rig {
    fn demote(&mut self, slots: &[u32]) -> Vec<JobEnd> {
        let moves: Vec<(u32, u32)> = slots.iter().map(|slot| (*slot, 0)).collect();
        let job = remote_job(&mut self.rank, JobKind::Demote, &moves);
        self.rank.begin(vec![job]);
        self.work()
    }

    fn work(&mut self) -> Vec<JobEnd> {
        let mut ended = Vec::new();
        for _ in 0..20 {
            self.servers.advance(1);
            self.remote.work();
            self.rank.store.collect();
            ended.extend(self.rank.ended());
        }
        ended
    }
}

fn remote_job(rank: &mut Rank, kind: JobKind, moves: &[(u32, u32)]) -> Job {
    let mut job = rank.job(kind, moves);
    for transfer in &mut job.transfers {
        transfer.blocks.clear();
    }
    job
}

fn is_ready(rank: &Rank, slot: u32) -> bool {
    rank.memory.holds(SlotId(slot), &key(slot))
}

#[test]
fn what_one_rank_demotes_another_fetches() {
    let mut a = rig(8);
    let hello = a.rank.store.take_report().unwrap().hello.unwrap();
    assert_eq!(hello.remote.unwrap().value_bytes as usize, a.rank.store.layout().slot_bytes());
    a.rank.fill(1, 100);
    a.rank.fill(2, 200);
    // Slot 5 holds nothing that could go anywhere.
    let ended = a.demote(&[1, 5, 2]);
    assert_eq!((ended.len(), &ended[0].failed[..], ended[0].ok), (1, &[1][..], true));
    assert_eq!(a.rank.store.remote_stats().unwrap().unfit, 1);

    let (mut b, remote) = rank_of(&a.servers, 8);
    let fetch = remote_job(&mut b, JobKind::Fetch, &[(1, 0), (3, 0), (2, 0)]);
    b.begin(vec![fetch]);
    assert!(!is_ready(&b, 1) && b.store.is_busy());
    remote.work();
    b.store.collect();
    let report = b.store.take_report().unwrap();
    assert_eq!(report.ended[0].failed, [1], "nobody has brought block 3 there");
    assert_eq!(report.fetched_bytes as usize, 2 * b.store.layout().slot_bytes());
    assert!(is_ready(&b, 1) && !is_ready(&b, 3) && is_ready(&b, 2));
    assert_eq!((b.slab.half_filled(), b.store.is_busy()), (0, false));
    let load = b.job(JobKind::LoadLayerwise, &[(2, 7)]);
    b.begin(vec![load]);
    b.copies.behave(|behaviour| behaviour.lazy = 0);
    b.store.start_loads();
    b.store.wait_layer(LAYERS - 1, None);
    assert!((0..LAYERS).all(|layer| b.holds(layer, 7, 200)));
}

#[test]
fn few_are_on_their_way_at_once_and_fetches_do_not_wait_for_demotions() {
    let mut rig = rig(2);
    rig.servers.behave(|servers| servers.delay_max = 3);
    (0..4).for_each(|slot| rig.rank.fill(slot, 10));
    let demotion = remote_job(&mut rig.rank, JobKind::Demote, &[(0, 0), (1, 0), (2, 0), (3, 0)]);
    let fetch = remote_job(&mut rig.rank, JobKind::Fetch, &[(4, 0), (5, 0), (6, 0)]);
    rig.rank.begin(vec![demotion, fetch]);
    let bytes = rig.rank.store.layout().slot_bytes();
    let on_the_way = |rig: &Rig, slot| {
        let address = rig.rank.memory.slot_address(SlotId(slot)).unwrap();
        rig.remote.touches(address, address + bytes)
    };
    assert_eq!((0..7).filter(|slot| on_the_way(&rig, *slot)).collect::<Vec<_>>(), [0, 1, 4, 5]);
    assert_eq!(rig.work().len(), 2);
    assert_eq!(rig.rank.store.remote_stats().unwrap().missing, 3);
}

#[test]
fn what_is_cancelled_ends_and_leaves_nothing_behind() {
    let mut rig = rig(2);
    rig.servers.behave(|servers| servers.delay_max = 1_000_000);
    let job = remote_job(&mut rig.rank, JobKind::Fetch, &[(0, 0), (1, 0), (2, 0)]);
    let id = job.id;
    rig.rank.begin(vec![job]);
    rig.rank.ended();
    rig.rank.store.begin_step(StepPlan { epoch: 1, cancelled: vec![id], ..StepPlan::default() }, None);
    assert!(rig.rank.ended().is_empty(), "its memory is in use until the transfers have ended");
    rig.remote.wait(Duration::ZERO);
    rig.rank.store.collect();
    rig.rank.store.collect();
    let ended = rig.rank.ended();
    assert_eq!(ended[0].failed, [0, 1, 2]);
    assert_eq!(rig.rank.slab.half_filled(), 0);
}

#[test]
fn a_step_that_finishes_its_copies_leaves_l2_alone() {
    let mut rig = rig(2);
    rig.rank.fill(0, 100);
    assert!(rig.demote(&[0]).iter().all(|end| end.failed.is_empty()));
    rig.servers.behave(|servers| servers.delay_max = 3);
    let job = remote_job(&mut rig.rank, JobKind::Fetch, &[(0, 0)]);
    rig.rank.begin(vec![job]);
    rig.rank.store.finish_copies(None);
    assert!(rig.rank.ended().is_empty() && rig.rank.store.is_busy(), "it is on its way");
    let ended = rig.work();
    assert!(ended.len() == 1 && ended[0].failed.is_empty(), "{ended:?}");
}

#[test]
fn a_store_that_is_dropped_waits_for_its_memory() {
    let mut rig = rig(8);
    rig.servers.behave(|servers| servers.delay_max = 1_000_000);
    let job = remote_job(&mut rig.rank, JobKind::Fetch, &[(0, 0), (1, 0)]);
    rig.rank.begin(vec![job]);
    drop(rig.rank);
    assert!(!rig.remote.touches(0, usize::MAX));
}

#[test]
fn a_rank_without_l2_says_so_at_once() {
    let mut rank = rank();
    let job = remote_job(&mut rank, JobKind::Fetch, &[(0, 0)]);
    let id = job.id;
    rank.begin(vec![job]);
    assert_eq!(rank.ended(), [JobEnd::whole(id, false)]);
    assert_eq!(rank.slab.half_filled(), 0);
}

/// Counts rests; ends nothing.
struct Sleepy(std::sync::atomic::AtomicU32);

impl RemoteStore for Sleepy {
    unsafe fn submit(&self, _: &[RemoteTransfer], _: Duration) {}
    fn poll(&self, ended: &mut Vec<RemoteEnd>) {
        if self.0.load(std::sync::atomic::Ordering::Relaxed) > 0 {
            let outcome = crate::remote::RemoteOutcome::Missing;
            ended.push(RemoteEnd { ticket: 0, outcome });
        }
    }
    fn wait(&self, _: Duration) -> bool {
        self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        true
    }
    fn cancel(&self, _: &[u64]) {}
}

/// An engine that has nothing to compute does not turn as fast as it can while values are on their way.
#[test]
fn a_step_without_work_rests_while_values_are_on_their_way() {
    let mut rank = rank();
    let sleepy = Arc::new(Sleepy(0.into()));
    let link = RemoteLink {
        store: Arc::clone(&sleepy) as _,
        namespace: Namespace::of_text("test"),
        shard: ShardFingerprint([1; 16]),
        patience: Duration::from_secs(5),
        in_flight_max: 4,
    };
    let layout = rank.store.layout().clone();
    rank.store =
        Store::new(rank.store.config, layout, Arc::clone(&rank.memory) as _, Arc::clone(&rank.copies) as _)
            .with_remote(link);
    rank.store.rest(Duration::from_millis(1));
    assert_eq!(sleepy.0.load(std::sync::atomic::Ordering::Relaxed), 0, "nothing is on its way");
    let job = remote_job(&mut rank, JobKind::Fetch, &[(0, 0)]);
    rank.begin(vec![job]);
    rank.store.rest(Duration::from_millis(1));
    assert_eq!(sleepy.0.load(std::sync::atomic::Ordering::Relaxed), 1);
    assert_eq!(rank.ended().len(), 1);
}

/// Where all that was on its way has come before the next look, as during a long step, more is sent for at once.
#[test]
fn fetches_fill_the_time_from_one_look_to_the_next() {
    let mut rig = rig(1);
    let window = |rig: &Rig| rig.rank.store.remote.as_ref().unwrap().fetch_window;
    let bytes = rig.rank.store.layout().slot_bytes();
    let on_the_way = |rig: &Rig| {
        let address = |slot| rig.rank.memory.slot_address(SlotId(slot)).unwrap();
        (0..8).filter(|slot| rig.remote.touches(address(*slot), address(*slot) + bytes)).count()
    };
    let look = |rig: &mut Rig, milliseconds| {
        rig.servers.advance(milliseconds);
        rig.remote.work();
        rig.rank.store.collect();
    };
    let moves: Vec<(u32, u32)> = (0..8).map(|slot| (slot, 0)).collect();
    let fetch = remote_job(&mut rig.rank, JobKind::Fetch, &moves);
    rig.rank.begin(vec![fetch]);
    let mut seen = vec![on_the_way(&rig)];
    for _ in 0..3 {
        look(&mut rig, 1);
        seen.push(on_the_way(&rig));
    }
    assert_eq!(seen, [1, 2, 4, 1]);
    look(&mut rig, 1);
    assert_eq!((rig.rank.ended().len(), window(&rig)), (1, 8), "the last was no reason for more");
    // What takes too long was too much at once.
    rig.servers.behave(|servers| servers.lose = 1000);
    let fetch = remote_job(&mut rig.rank, JobKind::Fetch, &moves);
    rig.rank.begin(vec![fetch]);
    assert_eq!(on_the_way(&rig), 8);
    (0..20).for_each(|_| look(&mut rig, 1000));
    assert_eq!((rig.rank.ended().len(), window(&rig)), (1, 1));
    let stats = rig.rank.store.remote_stats().unwrap();
    assert!(stats.failures[1] > 0, "{:?}", stats.failures);
}

/// Values arrive when the test says so.
#[derive(Default)]
struct Timed(parking_lot::Mutex<(Vec<u64>, Vec<RemoteEnd>, Option<Instant>)>);

impl Timed {
    fn arrive(&self, count: usize, at: Instant) {
        let mut state = self.0.lock();
        let done: Vec<u64> = state.0.drain(..count).collect();
        let ends =
            done.into_iter().map(|ticket| RemoteEnd { ticket, outcome: crate::remote::RemoteOutcome::Done });
        state.1.extend(ends);
        state.2 = Some(at);
    }
}

impl RemoteStore for Timed {
    unsafe fn submit(&self, batch: &[RemoteTransfer], _: Duration) {
        self.0.lock().0.extend(batch.iter().map(|transfer| transfer.ticket));
    }
    fn poll(&self, ended: &mut Vec<RemoteEnd>) {
        ended.append(&mut self.0.lock().1);
    }
    fn wait(&self, _: Duration) -> bool {
        true
    }
    fn last_arrival(&self) -> Option<Instant> {
        self.0.lock().2
    }
    fn cancel(&self, _: &[u64]) {
        let left = self.0.lock().0.len();
        self.arrive(left, Instant::now());
    }
}

/// An engine that is never idle learns how fast L2 is all the same.
#[test]
fn bandwidth_is_measured_while_values_keep_coming() {
    let mut rank = rank();
    let timed = Arc::new(Timed::default());
    let link = RemoteLink {
        store: Arc::clone(&timed) as _,
        namespace: Namespace::of_text("test"),
        shard: ShardFingerprint([1; 16]),
        patience: Duration::from_secs(5),
        in_flight_max: 8,
    };
    let layout = rank.store.layout().clone();
    let bytes = layout.slot_bytes() as u64;
    rank.store =
        Store::new(rank.store.config, layout, Arc::clone(&rank.memory) as _, Arc::clone(&rank.copies) as _)
            .with_remote(link);
    rank.store.take_report();
    let jobs = (0..4).map(|job| remote_job(&mut rank, JobKind::Fetch, &[(2 * job, 0), (2 * job + 1, 0)]));
    let jobs: Vec<Job> = jobs.collect();
    rank.begin(jobs);
    let began = Instant::now();
    let mut arrive = |count, milliseconds| {
        timed.arrive(count, began + Duration::from_millis(milliseconds));
        rank.store.collect();
        rank.store.take_report().map(|report| (report.fetched_bytes, report.fetch_ns))
    };
    assert_eq!(arrive(2, 10), Some((0, 0)), "too short to tell");
    let (first, first_ns) = arrive(2, 150).unwrap();
    assert!(first == 4 * bytes && first_ns >= 150_000_000, "{first} bytes in {first_ns} ns");
    assert_eq!(arrive(2, 350), Some((2 * bytes, 200_000_000)));
    assert_eq!(arrive(2, 360), Some((2 * bytes, 10_000_000)), "nothing is left");
}
