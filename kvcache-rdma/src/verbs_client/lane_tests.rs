//! A lane against servers that let refusals overtake running transfers, as the stock server does.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use kvcache_core::remote::{RemoteEnd, RemoteFailure, RemoteOp, RemoteOutcome};
use kvcache_wire::stock::{Caps, RemoteMetaRequest, RemoteOp as WireOp};

use super::config::VerbsClientConfig;
use super::lane::Lane;
use super::tests::{Slab, VALUE, key};
use super::unit::{Item, Unit};
use crate::verbs::{
    Access, Completion, Error, FakeNetwork, Memory, Queue, QueuePair, QueuePairConfig, Region, Request, Work,
};

const DONE: RemoteOutcome = RemoteOutcome::Done;
const MISSING: RemoteOutcome = RemoteOutcome::Missing;
const REFUSED: RemoteOutcome = RemoteOutcome::Failed(RemoteFailure::Refused);

/// A lane, and the server's end of its connection, played by the test.
struct Rig {
    lane: Lane,
    peer: QueuePair,
    region: std::sync::Arc<Region>,
    slab: Slab,
    ends: Vec<RemoteEnd>,
}

impl Rig {
    fn new() -> Self {
        let network = FakeNetwork::new();
        let (ours, theirs) = (network.port(), network.port());
        let config = VerbsClientConfig { checksums: false, request_keys_max: 4, ..Default::default() };
        let mut lane = Lane::new(&ours, &config).unwrap();
        let mut peer = theirs.queue_pair(&QueuePairConfig::default()).unwrap();
        lane.pair().connect(&peer.address()).unwrap();
        peer.connect(&lane.pair().address()).unwrap();
        let buffers = theirs.register(Memory::allocate(32 * 1024), Access::Local).unwrap().into_buffers(1024);
        for buffer in buffers {
            peer.post_receive(0, Some(buffer)).unwrap();
        }
        let mut slab = Slab::new(1);
        let region = std::sync::Arc::new(ours.register(slab.memory(), Access::Remote).unwrap());
        Self { lane, peer, region, slab, ends: Vec::new() }
    }

    fn unit(&self, op: RemoteOp, keys: &[u8]) -> Unit {
        let address = self.slab.address(0);
        let items = keys.iter().map(|number| Item { ticket: u64::from(*number), key: key(*number), address });
        Unit {
            op,
            items: items.collect(),
            value_bytes: VALUE as u32,
            region: Some(std::sync::Arc::clone(&self.region)),
            deadline: Instant::now() + Duration::from_secs(60),
            retried: false,
            alone: false,
        }
    }

    fn begin(&mut self, op: RemoteOp, keys: &[u8]) {
        let unit = self.unit(op, keys);
        self.lane.begin(unit).unwrap();
    }

    /// The requests that have arrived: direction and key numbers.
    fn requests(&mut self) -> Vec<(WireOp, Vec<u8>)> {
        let mut completions: Vec<Completion> = Vec::new();
        self.peer.poll(&mut completions).unwrap();
        let mut requests = Vec::new();
        for completion in completions {
            if completion.queue == Queue::Send {
                continue;
            }
            let buffer = completion.buffer.unwrap();
            let request = RemoteMetaRequest::decode(buffer.message(), Caps::default()).unwrap();
            let number =
                |name: &[u8]| u8::from_str_radix(std::str::from_utf8(&name[33..35]).unwrap(), 16).unwrap();
            requests.push((request.op, request.keys.iter().map(number).collect()));
            self.peer.post_receive(0, Some(buffer)).unwrap();
        }
        requests
    }

    fn answer(&mut self, statuses: &[i32]) {
        for status in statuses {
            let work = Work::Send { message: None, immediate: Some(*status as u32) };
            self.peer.post(vec![Request { id: 0, work, signaled: true }]).unwrap();
        }
        self.lane.poll(&mut self.ends).unwrap();
    }

    /// What has ended so far, by key number.
    fn outcomes(&self) -> Vec<(u64, RemoteOutcome)> {
        let mut outcomes: Vec<_> = self.ends.iter().map(|end| (end.ticket, end.outcome)).collect();
        outcomes.sort_by_key(|(ticket, _)| *ticket);
        outcomes
    }
}

#[test]
fn a_refusal_that_could_be_of_two_loads_has_both_asked_again_alone() {
    let mut rig = Rig::new();
    rig.begin(RemoteOp::Get, &[1]);
    rig.begin(RemoteOp::Get, &[2]);
    assert_eq!(rig.requests().len(), 2);
    // The second is missing, and its refusal comes first.
    rig.answer(&[404]);
    assert_eq!((rig.outcomes(), rig.lane.has_room()), (vec![], false), "nothing is known");
    rig.answer(&[200]);
    assert_eq!(rig.outcomes(), []);
    assert_eq!(rig.requests(), [(WireOp::Load, vec![1])], "one at a time");
    rig.answer(&[200]);
    assert_eq!(rig.outcomes(), [(1, DONE)]);
    assert_eq!(rig.requests(), [(WireOp::Load, vec![2])]);
    rig.answer(&[404]);
    assert_eq!(rig.outcomes(), [(1, DONE), (2, MISSING)]);
    assert!(rig.lane.has_room());
}

#[test]
fn a_refusal_that_only_one_request_can_have_is_its_own() {
    let mut rig = Rig::new();
    rig.begin(RemoteOp::Put, &[1]);
    rig.begin(RemoteOp::Get, &[2]);
    rig.begin(RemoteOp::Put, &[3]);
    assert_eq!(rig.requests().len(), 3);
    rig.answer(&[404]);
    assert_eq!(rig.outcomes(), [(2, MISSING)]);
    rig.answer(&[200, 200]);
    assert_eq!(rig.outcomes(), [(1, DONE), (2, MISSING), (3, DONE)]);
    assert!(rig.requests().is_empty());
}

#[test]
fn what_cannot_have_been_refused_so_has_succeeded() {
    let mut rig = Rig::new();
    rig.begin(RemoteOp::Put, &[1]);
    rig.begin(RemoteOp::Put, &[2]);
    rig.begin(RemoteOp::Get, &[3]);
    assert_eq!(rig.requests().len(), 3);
    rig.answer(&[507, 200, 200]);
    assert_eq!(rig.outcomes(), [(3, DONE)], "loads have no 507");
    assert_eq!(rig.requests(), [(WireOp::Store, vec![1])]);
    rig.answer(&[200]);
    assert_eq!(rig.requests(), [(WireOp::Store, vec![2])]);
    rig.answer(&[507]);
    assert_eq!(rig.outcomes(), [(1, DONE), (2, REFUSED), (3, DONE)]);
}

#[test]
fn a_refused_request_is_halved() {
    let mut rig = Rig::new();
    rig.begin(RemoteOp::Get, &[1, 2, 3]);
    rig.requests();
    rig.answer(&[404]);
    assert_eq!(rig.requests(), [(WireOp::Load, vec![1]), (WireOp::Load, vec![2, 3])]);
    rig.answer(&[200, 200]);
    assert_eq!(rig.outcomes(), [(1, DONE), (2, DONE), (3, DONE)]);
}

#[test]
fn an_answer_that_nobody_asked_for_breaks_the_lane() {
    let mut rig = Rig::new();
    rig.begin(RemoteOp::Get, &[1]);
    rig.requests();
    // There is a receive for one answer; the second would wait for the next request's.
    rig.answer(&[200]);
    let work = Work::Send { message: None, immediate: Some(200) };
    rig.peer.post(vec![Request { id: 0, work, signaled: true }]).unwrap();
    rig.lane.begin(rig.unit(RemoteOp::Get, &[2])).unwrap();
    rig.lane.poll(&mut rig.ends).unwrap();
    // It is taken for the answer: that is what the protocol allows a broken server. One more is too many.
    let work = Work::Send { message: None, immediate: None };
    rig.peer.post(vec![Request { id: 0, work, signaled: true }]).unwrap();
    rig.lane.begin(rig.unit(RemoteOp::Get, &[3])).unwrap();
    assert!(matches!(rig.lane.poll(&mut rig.ends), Err(Error::Broken)), "a message without a number");
}

#[test]
fn units_that_have_not_ended_come_back() {
    let mut rig = Rig::new();
    for number in 0..12 {
        rig.begin(RemoteOp::Get, &[number]);
    }
    rig.requests();
    rig.answer(&[200, 200]);
    let mut tickets: Vec<u64> =
        rig.lane.into_units().into_iter().flat_map(|unit| unit.items).map(|item| item.ticket).collect();
    tickets.sort_unstable();
    assert_eq!(tickets, (2..12).collect::<Vec<u64>>());
}

/// A stock server at random moments: it reads a request and refuses it at once, or finishes it some time later, in order.
#[test]
fn no_answer_is_ever_taken_for_anothers() {
    for seed in 0..2_000 {
        let mut random = Random(seed);
        let mut rig = Rig::new();
        let count = 1 + random.below(20) as u8;
        let ops: Vec<RemoteOp> =
            (0..count).map(|_| if random.below(2) == 0 { RemoteOp::Get } else { RemoteOp::Put }).collect();
        let good: Vec<bool> = (0..count).map(|_| random.below(3) > 0).collect();
        let mut next = 0;
        let mut unread: VecDeque<(WireOp, Vec<u8>)> = VecDeque::new();
        let mut running = 0;
        for _ in 0..100_000 {
            if rig.ends.len() >= usize::from(count) {
                break;
            }
            unread.extend(rig.requests());
            match random.below(3) {
                0 if next < count && rig.lane.has_room() => {
                    rig.begin(ops[usize::from(next)], &[next]);
                    next += 1;
                }
                1 => {
                    let Some((op, keys)) = unread.pop_front() else { continue };
                    if keys.iter().all(|number| good[usize::from(*number)]) {
                        running += 1;
                    } else {
                        rig.answer(&[if op == WireOp::Load { 404 } else { 507 }]);
                    }
                }
                2 if running > 0 => {
                    running -= 1;
                    rig.answer(&[200]);
                }
                _ => {}
            }
        }
        let found: HashMap<u64, RemoteOutcome> = rig.outcomes().into_iter().collect();
        assert_eq!((rig.ends.len(), found.len()), (usize::from(count), usize::from(count)), "seed {seed}");
        for number in 0..count {
            let wanted = match (good[usize::from(number)], ops[usize::from(number)]) {
                (true, _) => DONE,
                (false, RemoteOp::Get) => MISSING,
                (false, _) => REFUSED,
            };
            assert_eq!(found[&u64::from(number)], wanted, "seed {seed}, key {number}");
        }
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ (x >> 31)) % bound
    }
}
