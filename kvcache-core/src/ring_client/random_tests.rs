//! Random schedules over a network of servers that answer, delay, lose, lie silent, refuse, break and repeat themselves.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::tests::{InTurn, client_of};
use super::*;
use crate::fakes::random::Random;
use crate::remote::{RemoteKey, RemoteOp, RemoteOutcome};

const MS: Duration = Duration::from_millis(1);

/// The longest that the I/O takes to get memory out of use.
const RELEASE_MAX: Duration = Duration::from_millis(7);

#[derive(Clone, Copy, PartialEq, Debug)]
enum Mode {
    Healthy,
    Slow,
    Silent,
    Refusing,
}

/// One item that the I/O still has: it may touch its memory at any time until it says that it is out of use.
struct Running {
    op: RequestOp,
    server: ServerId,
    item: Item,
}

struct World {
    r: Random,
    seed: u64,
    now: Duration,
    client: RingClient,
    config: RingClientConfig,
    modes: BTreeMap<ServerId, Mode>,
    members: Vec<ServerId>,
    stored: HashSet<(ServerId, RemoteKey)>,
    ever_stored: HashSet<RemoteKey>,
    running: BTreeMap<(RequestId, u32), Running>,
    /// Answers and releases on their way.
    coming: BTreeMap<(Duration, u64), (RequestId, Option<u32>, bool)>,
    sequence: u64,
    /// What users wait for, with their deadlines.
    open: HashMap<u64, (RemoteTransfer, Duration)>,
    questions: HashMap<u64, (Vec<BlockKey>, Duration)>,
    /// Whose each address is.
    memory: HashMap<usize, u64>,
    /// Servers that refused a connection and have not answered a probe since.
    down: HashSet<ServerId>,
    ended: usize,
    answered: usize,
}

const SPACES: [RemoteSpace; 2] = [RemoteSpace([1; 16]), RemoteSpace([2; 16])];

impl World {
    fn new(seed: u64) -> Self {
        let mut r = Random::new(seed);
        let config = RingClientConfig {
            replicas: r.between(1, 3),
            batch_items_max: r.between(1, 8),
            batch_bytes_max: r.between(50, 1000),
            batch_names_max: r.between(1, 20),
            server_items_max: r.between(2, 120),
            server_bytes_max: r.between(300, 20_000) as u64,
            items_max: r.between(4, 300),
            bytes_max: r.between(400, 40_000) as u64,
            server_names_max: r.between(10, 200),
            silence_max: MS * r.between(20, 200) as u32,
            failures_max: r.between(1, 4) as u32,
            backoff_min: MS * r.between(1, 20) as u32,
            backoff_max: MS * r.between(20, 100) as u32,
            seed,
        };
        let servers = r.between(1, 5) as u32;
        let client = client_of(servers, config.clone());
        let members: Vec<ServerId> = (0..servers).map(ServerId).collect();
        Self {
            r,
            seed,
            now: MS * 1000,
            client,
            config,
            modes: members.iter().map(|id| (*id, Mode::Healthy)).collect(),
            members,
            stored: HashSet::new(),
            ever_stored: HashSet::new(),
            running: BTreeMap::new(),
            coming: BTreeMap::new(),
            sequence: 0,
            open: HashMap::new(),
            questions: HashMap::new(),
            memory: HashMap::new(),
            down: HashSet::new(),
            ended: 0,
            answered: 0,
        }
    }

    fn key(&mut self) -> RemoteKey {
        RemoteKey { space: SPACES[self.r.below(2)], block: BlockKey([self.r.below(24) as u8; 16]) }
    }

    fn come(&mut self, after: Duration, what: (RequestId, Option<u32>, bool)) {
        self.sequence += 1;
        self.coming.insert((self.now + after, self.sequence), what);
    }

    fn users(&mut self) {
        match self.r.below(12) {
            0..=6 => {
                let deadline = self.now + MS * self.r.between(0, 300) as u32;
                let batch: Vec<RemoteTransfer> = (0..self.r.between(1, 12))
                    .filter_map(|_| {
                        self.sequence += 1;
                        let op =
                            [RemoteOp::Get, RemoteOp::Put, RemoteOp::Get, RemoteOp::Delete][self.r.below(4)];
                        // Few places, so that memory is used again and again: only what is free.
                        let address = 1 + self.r.below(60);
                        if op != RemoteOp::Delete && self.memory.contains_key(&address) {
                            return None;
                        }
                        let bytes = self.r.between(1, 200);
                        let wanted =
                            RemoteTransfer { ticket: self.sequence, op, key: self.key(), address, bytes };
                        if op != RemoteOp::Delete {
                            self.memory.insert(address, wanted.ticket);
                        }
                        self.open.insert(wanted.ticket, (wanted, deadline));
                        Some(wanted)
                    })
                    .collect();
                self.client.submit(&batch, deadline, self.now);
            }
            7..=8 => {
                self.sequence += 1;
                let blocks: Vec<BlockKey> = (0..self.r.below(20)).map(|_| self.key().block).collect();
                let deadline = self.now + MS * self.r.between(0, 100) as u32;
                self.questions.insert(self.sequence, (blocks.clone(), deadline));
                self.client.ask(self.sequence, &SPACES, &blocks, deadline, self.now);
            }
            9 => {
                let mut tickets: Vec<u64> = self.open.keys().copied().collect();
                tickets.sort_unstable();
                let r = &mut self.r;
                tickets.retain(|_| r.chance(300));
                self.client.cancel(&tickets);
            }
            10 => {
                let server = ServerId(self.r.below(5) as u32);
                let mode =
                    [Mode::Healthy, Mode::Healthy, Mode::Slow, Mode::Silent, Mode::Refusing][self.r.below(5)];
                self.modes.insert(server, mode);
            }
            _ if self.r.chance(150) => {
                self.members = (0..5).map(ServerId).filter(|_| self.r.chance(600)).collect();
                self.client.set_members(Box::new(InTurn(self.members.clone())), &self.members.clone());
                // Whoever was let go may be asked again when it returns.
                self.down.clear();
            }
            _ => {}
        }
    }

    /// The I/O: does what the client wants, badly.
    fn io(&mut self) {
        let mut actions = Vec::new();
        let mut refused = Vec::new();
        self.client.take_actions(&mut actions);
        for action in actions {
            match action {
                Action::Send { server, request, op, items, .. } => {
                    assert!(!items.is_empty());
                    assert!(
                        op == RequestOp::Probe || !self.down.contains(&server),
                        "seed {}: {op:?} sent to an open breaker",
                        self.seed
                    );
                    for (position, item) in (0..).zip(&items) {
                        self.running.insert((request, position), Running { op, server, item: *item });
                    }
                    self.check_bounds();
                    match self.modes.get(&server).copied().unwrap_or(Mode::Healthy) {
                        Mode::Healthy | Mode::Slow if self.r.chance(30) => {
                            let after = MS * self.r.below(20) as u32;
                            self.come(after, (request, None, true));
                        }
                        mode @ (Mode::Healthy | Mode::Slow) => {
                            let slow = if mode == Mode::Slow { 400 } else { 4 };
                            for position in 0..items.len() as u32 {
                                let after = MS * self.r.below(slow) as u32;
                                if !self.r.chance(10) {
                                    self.come(after, (request, Some(position), false));
                                }
                                if self.r.chance(20) {
                                    self.come(after + MS, (request, Some(position), false));
                                }
                            }
                        }
                        Mode::Silent => {}
                        Mode::Refusing => {
                            refused.push(server);
                            self.come(Duration::ZERO, (request, None, true));
                        }
                    }
                }
                Action::Abandon { request, item, .. } => {
                    let after = RELEASE_MAX * self.r.below(1000) as u32 / 1000;
                    match item {
                        // An item may also complete after all, in its own time.
                        Some(_) if self.r.chance(500) => {}
                        item => self.come(after, (request, item, true)),
                    }
                }
                Action::Retire { server } => {
                    assert!(self.running.values().all(|running| running.server != server));
                    self.down.remove(&server);
                }
            }
        }
        // After the others that were sent in the same moment.
        for server in refused {
            self.client.connection_fault(server, ConnectionFault::Refused, self.now);
            self.down.insert(server);
        }
    }

    fn check_bounds(&self) {
        let of = |server: Option<ServerId>| {
            let values = self.running.values().filter(|running| {
                server.is_none_or(|server| server == running.server)
                    && matches!(running.op, RequestOp::Get | RequestOp::Put | RequestOp::Delete)
            });
            values.fold((0, 0), |(items, bytes), running| (items + 1, bytes + running.item.bytes as u64))
        };
        let (items, bytes) = of(None);
        assert!(items <= self.config.items_max && bytes <= self.config.bytes_max, "seed {}", self.seed);
        for server in 0..5 {
            let (items, bytes) = of(Some(ServerId(server)));
            assert!(items <= self.config.server_items_max, "seed {}", self.seed);
            assert!(bytes <= self.config.server_bytes_max, "seed {}", self.seed);
        }
    }

    /// The I/O touches the memory of an item: it must still be that transfer's.
    fn touch(&self, running: &Running) {
        if matches!(running.op, RequestOp::Get | RequestOp::Put) {
            let owner = self.memory.get(&running.item.address).and_then(|ticket| self.open.get(ticket));
            let key = owner.map(|(wanted, _)| wanted.key);
            assert_eq!(key, Some(running.item.key), "seed {}: memory of another is touched", self.seed);
        }
    }

    fn arrive(&mut self) {
        while let Some((&(at, sequence), _)) = self.coming.first_key_value() {
            if at > self.now {
                break;
            }
            let Some((request, item, release)) = self.coming.remove(&(at, sequence)) else { break };
            // Whatever the I/O has it may be touching right now.
            self.running.values().for_each(|running| self.touch(running));
            match item {
                Some(position) if !release => {
                    let Some(running) = self.running.remove(&(request, position)) else {
                        // It says so twice.
                        self.client.ended(
                            &[ItemEnd { request, item: position, result: ItemResult::Done }],
                            self.now,
                        );
                        continue;
                    };
                    let result = self.answer(&running);
                    self.client.ended(&[ItemEnd { request, item: position, result }], self.now);
                }
                Some(position) => {
                    if self.running.remove(&(request, position)).is_some() {
                        let result = ItemResult::Failed(RemoteFailure::Cancelled);
                        self.client.ended(&[ItemEnd { request, item: position, result }], self.now);
                    }
                }
                None => {
                    let before = self.running.len();
                    self.running.retain(|(of, _), _| *of != request);
                    if self.running.len() < before {
                        self.client.request_failed(request, RemoteFailure::Unreachable, self.now);
                    }
                }
            }
        }
    }

    fn answer(&mut self, running: &Running) -> ItemResult {
        let place = (running.server, running.item.key);
        if running.op == RequestOp::Probe {
            self.down.remove(&running.server);
        }
        if self.r.chance(20) {
            return ItemResult::Failed([RemoteFailure::Corrupt, RemoteFailure::Refused][self.r.below(2)]);
        }
        let there = match running.op {
            RequestOp::Get | RequestOp::Exists => self.stored.contains(&place),
            RequestOp::Delete => self.stored.remove(&place),
            RequestOp::Put => {
                self.stored.insert(place);
                self.ever_stored.insert(running.item.key);
                true
            }
            RequestOp::Probe => false,
        };
        if there { ItemResult::Done } else { ItemResult::Missing }
    }

    fn outputs(&mut self) {
        let mut ends = Vec::new();
        self.client.take_ends(&mut ends);
        for end in ends {
            let (wanted, _) = self.open.remove(&end.ticket).expect("ends once, and nothing else does");
            if wanted.op != RemoteOp::Delete {
                assert_eq!(self.memory.remove(&wanted.address), Some(end.ticket));
            }
            if end.outcome == RemoteOutcome::Done {
                assert!(self.ever_stored.contains(&wanted.key), "seed {}", self.seed);
            }
            self.ended += 1;
        }
        let mut answers = Vec::new();
        self.client.take_answers(&mut answers);
        for answer in answers {
            let (blocks, _) = self.questions.remove(&answer.question).expect("answered once");
            assert_eq!(answer.present.len(), blocks.len());
            for (block, _) in blocks.iter().zip(&answer.present).filter(|(_, present)| **present) {
                let stored = |space| self.ever_stored.contains(&RemoteKey { space, block: *block });
                assert!(SPACES.into_iter().all(stored), "seed {}", self.seed);
            }
            self.answered += 1;
        }
        // Nothing is late.
        for (wanted, deadline) in self.open.values() {
            assert!(self.now <= *deadline + RELEASE_MAX, "seed {}: {wanted:?} is late", self.seed);
        }
        for (_, deadline) in self.questions.values() {
            assert!(self.now <= *deadline, "seed {}: an answer is late", self.seed);
        }
    }

    fn step(&mut self, load: bool) {
        if load {
            self.users();
        }
        self.io();
        self.outputs();
        // To the next moment at which anything happens, or less far if users come first.
        let mut next = self.now + MS * 50;
        for moment in [self.client.next_tick(), self.coming.first_key_value().map(|((at, _), _)| *at)] {
            next = next.min(moment.unwrap_or(next));
        }
        if load {
            next = next.min(self.now + MS * self.r.below(6) as u32);
        }
        self.now = self.now.max(next);
        self.arrive();
        self.client.tick(self.now);
        self.io();
        self.outputs();
    }
}

#[test]
fn any_schedule_ends_everything_once_in_time_and_within_bounds() {
    let (mut done, mut missing, mut failed, mut answered) = (0, 0, [0; 6], 0);
    for seed in 0..400 {
        let mut world = World::new(seed);
        for _ in 0..250 {
            world.step(true);
        }
        let mut steps = 0;
        while !(world.open.is_empty() && world.questions.is_empty()) {
            world.step(false);
            steps += 1;
            assert!(steps < 3000, "seed {seed}: {:?} never end", world.open);
        }
        let stats = world.client.stats();
        let ops = [stats.get, stats.put, stats.delete];
        assert_eq!(ops.iter().map(OpCounts::ended).sum::<u64>(), world.ended as u64);
        assert_eq!((stats.questions, stats.transfers_open), (world.answered as u64, 0));
        done += ops.iter().map(|op| op.done).sum::<u64>();
        missing += ops.iter().map(|op| op.missing).sum::<u64>();
        for op in ops {
            failed.iter_mut().zip(op.failed).for_each(|(sum, count)| *sum += count);
        }
        answered += world.answered;
        // The same seed is the same run.
        if seed % 300 == 0 {
            let mut again = World::new(seed);
            (0..250).for_each(|_| again.step(true));
            (0..steps).for_each(|_| again.step(false));
            assert_eq!(again.client.stats(), stats);
        }
    }
    println!("{done} done, {missing} missing, {failed:?} failed, {answered} answers");
    assert!(done > 5_000 && missing > 5_000 && answered > 3_000, "the schedules say little");
    assert!(failed.iter().all(|count| *count > 100), "{failed:?}: the schedules say little");
}

/// Where nothing goes wrong the answers are the truth.
#[test]
fn a_healthy_ring_is_a_hash_map() {
    for seed in 0..200 {
        let mut world = World::new(seed);
        world.config = RingClientConfig { replicas: world.config.replicas, ..Default::default() };
        world.client = client_of(world.members.len() as u32, world.config.clone());
        let mut oracle = HashSet::new();
        for ticket in 0..200 {
            let key = world.key();
            let op = [RemoteOp::Get, RemoteOp::Put, RemoteOp::Delete][world.r.below(3)];
            let wanted = RemoteTransfer { ticket, op, key, address: 1, bytes: 10 };
            world.client.submit(&[wanted], world.now + MS * 10, world.now);
            let mut actions = Vec::new();
            let mut ends = Vec::new();
            while ends.is_empty() {
                world.client.take_actions(&mut actions);
                assert!(!actions.is_empty(), "stuck");
                for action in actions.drain(..) {
                    let Action::Send { server, request, op, items, .. } = action else {
                        panic!("{action:?}")
                    };
                    let place = (server, items[0].key);
                    let there = match op {
                        RequestOp::Get => world.stored.contains(&place),
                        RequestOp::Put => {
                            world.stored.insert(place);
                            true
                        }
                        _ => world.stored.remove(&place),
                    };
                    let result = if there { ItemResult::Done } else { ItemResult::Missing };
                    world.client.ended(&[ItemEnd { request, item: 0, result }], world.now);
                }
                world.client.take_ends(&mut ends);
            }
            let expected = match op {
                RemoteOp::Get => oracle.contains(&key),
                RemoteOp::Put => {
                    oracle.insert(key);
                    true
                }
                RemoteOp::Delete => oracle.remove(&key),
            };
            assert_eq!(ends[0].outcome == RemoteOutcome::Done, expected, "seed {seed}, {op:?}");
        }
    }
}
