//! A ring of servers in memory behind the real [`RingClient`]: what is sent and answered is late, lost, repeated, overtaken or
//! damaged; servers stall, refuse, lose values and die, and members come and go.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use kvcache_core::BlockKey;
use kvcache_core::remote::{
    Presence, PresenceAnswer, RemoteEnd, RemoteFailure, RemoteKey, RemoteSpace, RemoteStore, RemoteTransfer,
    value_checksum,
};
use kvcache_core::ring::{RingSlot, SlotTable};
use kvcache_core::ring_client::{
    Action, ConnectionFault, Item, ItemEnd, ItemResult, Placement, RequestId, RequestOp, RingClient,
    RingClientConfig, ServerId,
};
use parking_lot::Mutex;

use super::random::Random;

/// How the ring misbehaves. Chances are per thousand.
#[derive(Clone, Debug)]
pub(crate) struct RingBehaviour {
    /// Milliseconds that an answer takes at most.
    pub(crate) delay_max: usize,
    /// Requests or answers that get lost.
    pub(crate) lose: u32,
    /// Connections that break with what they carry.
    pub(crate) break_off: u32,
    /// Answers that come twice.
    pub(crate) repeat: u32,
    /// Values that arrive damaged.
    pub(crate) corrupt: u32,
    /// Values that are gone when they are sent for.
    pub(crate) forget: u32,
    /// Values for which a server has no room.
    pub(crate) refuse: u32,
    /// Servers that hold each value.
    pub(crate) replicas: usize,
    /// Planted: damaged values are handed out as if they were not.
    pub(crate) trust_bytes: bool,
    /// Planted: names are those of the blocks alone.
    pub(crate) ignore_space: bool,
    /// Planted: ends that nobody hears of.
    pub(crate) lose_ends: u32,
    /// Planted: what was abandoned is written into its memory after that was given back.
    pub(crate) write_late: bool,
}

impl Default for RingBehaviour {
    fn default() -> Self {
        Self {
            delay_max: 0,
            lose: 0,
            break_off: 0,
            repeat: 0,
            corrupt: 0,
            forget: 0,
            refuse: 0,
            replicas: 1,
            trust_bytes: false,
            ignore_space: false,
            lose_ends: 0,
            write_late: false,
        }
    }
}

/// What a server does when it is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mode {
    Healthy,
    /// Takes twenty times as long.
    Slow,
    /// Stopped: takes everything and answers nothing.
    Silent,
    /// Gone: refuses connections.
    Dead,
}

#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct RingCounts {
    pub(crate) gets: u64,
    pub(crate) puts: u64,
    pub(crate) missing: u64,
    pub(crate) corrupt: u64,
    pub(crate) lost: u64,
    pub(crate) repeated: u64,
    pub(crate) broken: u64,
    pub(crate) refused: u64,
    pub(crate) abandoned: u64,
}

type Values = HashMap<[u8; RemoteKey::NAME_BYTES], (Vec<u8>, u64)>;

struct State {
    servers: Vec<(Mode, Values)>,
    members: Vec<usize>,
    generation: u64,
    now: Duration,
    random: Random,
    behaviour: RingBehaviour,
    counts: RingCounts,
}

/// The servers. They outlive the engines.
pub(crate) struct FakeServers(Mutex<State>);

/// Servers that there are; fewer are members at a time.
const SERVERS: usize = 4;

impl FakeServers {
    pub(crate) fn new(seed: u64, behaviour: RingBehaviour) -> Arc<Self> {
        let servers = (0..SERVERS).map(|_| (Mode::Healthy, Values::new())).collect();
        Arc::new(Self(Mutex::new(State {
            servers,
            members: (0..SERVERS - 1).collect(),
            generation: 1,
            now: Duration::ZERO,
            random: Random::new(seed),
            behaviour,
            counts: RingCounts::default(),
        })))
    }

    pub(crate) fn behave(&self, change: impl FnOnce(&mut RingBehaviour)) {
        change(&mut self.0.lock().behaviour);
    }

    pub(crate) fn counts(&self) -> RingCounts {
        self.0.lock().counts
    }

    pub(crate) fn advance(&self, milliseconds: u64) {
        self.0.lock().now += Duration::from_millis(milliseconds);
    }

    /// Something happens to one of the servers.
    pub(crate) fn accident(&self) {
        let state = &mut *self.0.lock();
        let server = state.random.below(SERVERS);
        let (mode, values) = &mut state.servers[server];
        *mode = [Mode::Healthy, Mode::Slow, Mode::Silent, Mode::Dead][state.random.below(4)];
        if *mode == Mode::Dead {
            values.clear();
        }
    }

    /// Others are members now: one more, one fewer, or any of them.
    pub(crate) fn change_members(&self) {
        let state = &mut *self.0.lock();
        let chosen = 1 + state.random.below((1 << SERVERS) - 1);
        state.members = (0..SERVERS).filter(|server| chosen & (1 << server) != 0).collect();
        state.generation += 1;
    }

    /// No accident any more.
    pub(crate) fn heal(&self) {
        let state = &mut *self.0.lock();
        state.servers.iter_mut().for_each(|(mode, _)| *mode = Mode::Healthy);
        let (replicas, lose_ends) = (state.behaviour.replicas, state.behaviour.lose_ends);
        state.behaviour = RingBehaviour { replicas, lose_ends, ..RingBehaviour::default() };
    }

    /// A server makes room: some values are gone.
    pub(crate) fn lose_values(&self) {
        let state = &mut *self.0.lock();
        let server = state.random.below(SERVERS);
        let mut names: Vec<_> = state.servers[server].1.keys().copied().collect();
        names.sort_unstable();
        for name in names {
            if state.random.chance(300) {
                state.servers[server].1.remove(&name);
            }
        }
    }
}

struct Placed {
    table: SlotTable,
    servers: Vec<ServerId>,
}

impl Placement for Placed {
    fn holders(&self, block: &BlockKey, replicas: usize, holder: &mut dyn FnMut(ServerId)) {
        self.table.holders(RingSlot::of(block), replicas).for_each(|member| holder(self.servers[member]));
    }
}

/// A request's item that the I/O still has.
#[derive(Clone, Copy)]
struct Running {
    op: RequestOp,
    server: ServerId,
    item: Item,
}

enum Coming {
    /// The answer to an item.
    Answer(RequestId, u32),
    /// The connection of a request breaks.
    Break(RequestId),
    /// Planted: bytes that should not come any more.
    Late(Item),
}

/// A client and its connections.
struct Io {
    client: RingClient,
    running: BTreeMap<(RequestId, u32), Running>,
    coming: BTreeMap<(Duration, u64), Coming>,
    sequence: u64,
    generation: u64,
    ends: Vec<RemoteEnd>,
    lost_ends: Vec<RemoteEnd>,
    actions: Vec<Action>,
}

impl Io {
    fn new(servers: &FakeServers) -> Self {
        let mut state = servers.0.lock();
        let config = RingClientConfig {
            replicas: state.behaviour.replicas,
            silence_max: Duration::from_millis(20),
            backoff_min: Duration::from_millis(5),
            backoff_max: Duration::from_millis(40),
            seed: state.random.next(),
            ..RingClientConfig::default()
        };
        Self {
            client: RingClient::new(config),
            running: BTreeMap::new(),
            coming: BTreeMap::new(),
            sequence: 0,
            generation: 0,
            ends: Vec::new(),
            lost_ends: Vec::new(),
            actions: Vec::new(),
        }
    }

    /// Hears who is a member.
    fn learn_members(&mut self, state: &State) {
        if self.generation != state.generation {
            self.generation = state.generation;
            let names: Vec<String> = state.members.iter().map(|server| format!("server-{server}")).collect();
            let table = SlotTable::new(&names).expect("distinct names");
            let servers: Vec<ServerId> =
                state.members.iter().map(|server| ServerId(*server as u32)).collect();
            self.client.set_members(Box::new(Placed { table, servers: servers.clone() }), &servers);
        }
    }

    /// Delivers what has arrived and sends what is to be sent.
    fn work(&mut self, state: &mut State) {
        self.learn_members(state);
        // What is sent may end at once, and its end may cause another request.
        for _ in 0..100 {
            self.send(state);
            let arrived = self.arrive(state);
            self.client.tick(state.now);
            if !arrived && !self.has_actions() {
                break;
            }
        }
        let mut ends = Vec::new();
        self.client.take_ends(&mut ends);
        for end in ends {
            let is_lost = state.behaviour.lose_ends > 0 && state.random.chance(state.behaviour.lose_ends);
            if is_lost { self.lost_ends.push(end) } else { self.ends.push(end) }
        }
    }

    fn has_actions(&mut self) -> bool {
        self.client.take_actions(&mut self.actions);
        !self.actions.is_empty()
    }

    fn come(&mut self, at: Duration, what: Coming) {
        self.sequence += 1;
        self.coming.insert((at, self.sequence), what);
    }

    fn send(&mut self, state: &mut State) {
        self.client.take_actions(&mut self.actions);
        let mut refused = Vec::new();
        for action in std::mem::take(&mut self.actions) {
            match action {
                Action::Send { server, request, op, items, .. } => {
                    for (position, item) in (0..).zip(&items) {
                        self.running.insert((request, position), Running { op, server, item: *item });
                    }
                    let (mode, now) = (state.servers[server.0 as usize].0, state.now);
                    let chance = |state: &mut State, per_mille| state.random.chance(per_mille);
                    match mode {
                        Mode::Dead => {
                            self.come(now, Coming::Break(request));
                            refused.push(server);
                        }
                        Mode::Silent => {}
                        _ if chance(state, state.behaviour.break_off) => {
                            let after = state.random.below(state.behaviour.delay_max + 1) as u64;
                            self.come(now + Duration::from_millis(after), Coming::Break(request));
                        }
                        _ => {
                            let slow = if mode == Mode::Slow { 20 } else { 1 };
                            for position in 0..items.len() as u32 {
                                let after = slow * state.random.below(state.behaviour.delay_max + 1) as u64;
                                let at = now + Duration::from_millis(after);
                                if chance(state, state.behaviour.lose) {
                                    state.counts.lost += 1;
                                    continue;
                                }
                                self.come(at, Coming::Answer(request, position));
                                if chance(state, state.behaviour.repeat) {
                                    state.counts.repeated += 1;
                                    self.come(
                                        at + Duration::from_millis(2),
                                        Coming::Answer(request, position),
                                    );
                                }
                            }
                        }
                    }
                }
                Action::Abandon { request, item, .. } => self.abandon(request, item, state),
                Action::Retire { server } => {
                    assert!(self.running.values().all(|running| running.server != server));
                }
            }
        }
        for server in refused {
            state.counts.refused += 1;
            self.client.connection_fault(server, ConnectionFault::Refused, state.now);
        }
    }

    /// The connection is closed, after which nothing of it is written any more.
    fn abandon(&mut self, request: RequestId, item: Option<u32>, state: &mut State) {
        let is_meant = |of: &(RequestId, u32)| of.0 == request && item.is_none_or(|item| item == of.1);
        let places: Vec<(RequestId, u32)> = self.running.keys().copied().filter(is_meant).collect();
        for place in places {
            let Some(running) = self.running.remove(&place) else { continue };
            state.counts.abandoned += 1;
            if running.op == RequestOp::Get && state.random.chance(500) {
                // A part of it had come before.
                scribble(&running.item);
            }
            if running.op == RequestOp::Get && state.behaviour.write_late {
                self.come(state.now + Duration::from_millis(3), Coming::Late(running.item));
            }
            let result = ItemResult::Failed(RemoteFailure::Cancelled);
            self.client.ended(&[ItemEnd { request, item: place.1, result }], state.now);
        }
    }

    /// Whether anything came.
    fn arrive(&mut self, state: &mut State) -> bool {
        let mut arrived = false;
        while let Some(entry) = self.coming.first_entry() {
            if entry.key().0 > state.now {
                break;
            }
            arrived = true;
            match entry.remove() {
                Coming::Late(item) => scribble(&item),
                Coming::Break(request) => {
                    let before = self.running.len();
                    self.running.retain(|(of, _), _| *of != request);
                    if self.running.len() < before {
                        state.counts.broken += 1;
                        self.client.request_failed(request, RemoteFailure::Unreachable, state.now);
                    }
                }
                Coming::Answer(request, position) => {
                    let result = match self.running.remove(&(request, position)) {
                        Some(running) => state.serve(&running),
                        // It says so twice.
                        None => ItemResult::Done,
                    };
                    self.client.ended(&[ItemEnd { request, item: position, result }], state.now);
                }
            }
        }
        arrived
    }
}

impl State {
    fn serve(&mut self, running: &Running) -> ItemResult {
        let space = if self.behaviour.ignore_space { RemoteSpace([0; 16]) } else { running.item.key.space };
        let name = RemoteKey { space, block: running.item.key.block }.name();
        let Item { address, bytes, .. } = running.item;
        let values = &mut self.servers[running.server.0 as usize].1;
        if self.random.chance(self.behaviour.forget) {
            values.remove(&name);
        }
        match running.op {
            RequestOp::Probe => ItemResult::Missing,
            RequestOp::Exists if values.contains_key(&name) => ItemResult::Done,
            RequestOp::Exists => ItemResult::Missing,
            RequestOp::Delete => match values.remove(&name) {
                Some(_) => ItemResult::Done,
                None => ItemResult::Missing,
            },
            RequestOp::Put if self.random.chance(self.behaviour.refuse) => {
                ItemResult::Failed(RemoteFailure::Refused)
            }
            RequestOp::Put => {
                // SAFETY: by the contract of `submit` nobody writes this memory before the end is polled.
                let value = unsafe { std::slice::from_raw_parts(address as *const u8, bytes) };
                values.insert(name, (value.to_vec(), value_checksum(&name, value)));
                self.counts.puts += 1;
                ItemResult::Done
            }
            RequestOp::Get => {
                let Some((value, checksum)) = values.get(&name) else {
                    self.counts.missing += 1;
                    return ItemResult::Missing;
                };
                if value.len() != bytes {
                    return ItemResult::Failed(RemoteFailure::Corrupt);
                }
                // SAFETY: by the contract of `submit` this memory is ours alone until the end is polled.
                let target = unsafe { std::slice::from_raw_parts_mut(address as *mut u8, bytes) };
                target.copy_from_slice(value);
                if self.random.chance(self.behaviour.corrupt) {
                    target[self.random.below(bytes)] ^= 1 << self.random.below(8);
                }
                if value_checksum(&name, target) != *checksum && !self.behaviour.trust_bytes {
                    self.counts.corrupt += 1;
                    return ItemResult::Failed(RemoteFailure::Corrupt);
                }
                self.counts.gets += 1;
                ItemResult::Done
            }
        }
    }
}

fn scribble(item: &Item) {
    // SAFETY: as for the target of any get; what is planted on purpose writes into slots, which are plain memory.
    let target = unsafe { std::slice::from_raw_parts_mut(item.address as *mut u8, item.bytes) };
    target[..item.bytes.div_ceil(2)].fill(0x5c);
}

/// One process's way to the servers.
pub(crate) struct FakeRemote {
    servers: Arc<FakeServers>,
    io: Mutex<Io>,
}

impl FakeRemote {
    pub(crate) fn new(servers: &Arc<FakeServers>) -> Arc<Self> {
        Arc::new(Self { io: Mutex::new(Io::new(servers)), servers: Arc::clone(servers) })
    }

    /// Whether a transfer still touches one of these addresses.
    pub(crate) fn touches(&self, from: usize, until: usize) -> bool {
        let overlaps = |of: &Running| of.item.address < until && from < of.item.address + of.item.bytes;
        self.io.lock().running.values().any(overlaps)
    }

    /// Does what is due.
    pub(crate) fn work(&self) {
        self.io.lock().work(&mut self.servers.0.lock());
    }

    /// The process is dead: nothing of it is written or read any more.
    pub(crate) fn kill(&self) {
        let mut io = self.io.lock();
        io.coming.clear();
        let state = &mut *self.servers.0.lock();
        let requests: Vec<RequestId> = io.running.keys().map(|(request, _)| *request).collect();
        io.running.clear();
        for request in requests {
            io.client.request_failed(request, RemoteFailure::Unreachable, state.now);
        }
    }
}

impl RemoteStore for FakeRemote {
    unsafe fn submit(&self, batch: &[RemoteTransfer], patience: Duration) {
        let mut io = self.io.lock();
        let state = &mut *self.servers.0.lock();
        io.learn_members(state);
        io.client.submit(batch, state.now + patience, state.now);
        io.send(state);
    }

    fn poll(&self, ended: &mut Vec<RemoteEnd>) {
        ended.append(&mut self.io.lock().ends);
    }

    fn wait(&self, timeout: Duration) -> bool {
        let mut io = self.io.lock();
        let state = &mut *self.servers.0.lock();
        // Nothing else happens while somebody waits: time may go by.
        let before = state.now;
        state.now += timeout;
        io.work(state);
        state.now = before;
        let Io { ends, lost_ends, .. } = &mut *io;
        ends.append(lost_ends);
        !ends.is_empty()
    }

    fn cancel(&self, tickets: &[u64]) {
        let mut io = self.io.lock();
        let state = &mut *self.servers.0.lock();
        io.client.cancel(tickets);
        io.send(state);
    }
}

/// The scheduler side's questions.
pub(crate) struct FakePresence {
    servers: Arc<FakeServers>,
    spaces: Vec<RemoteSpace>,
    io: Io,
}

impl FakePresence {
    pub(crate) fn new(servers: &Arc<FakeServers>) -> Box<Self> {
        Box::new(Self { spaces: Vec::new(), io: Io::new(servers), servers: Arc::clone(servers) })
    }
}

impl Presence for FakePresence {
    fn set_spaces(&mut self, spaces: &[RemoteSpace]) {
        self.spaces = spaces.to_vec();
    }

    fn ask(&mut self, question: u64, keys: &[BlockKey], patience: Duration) {
        let state = &mut *self.servers.0.lock();
        self.io.learn_members(state);
        self.io.client.ask(question, &self.spaces, keys, state.now + patience, state.now);
        self.io.send(state);
    }

    fn poll(&mut self, answers: &mut Vec<PresenceAnswer>) {
        self.io.work(&mut self.servers.0.lock());
        self.io.client.take_answers(answers);
    }
}
