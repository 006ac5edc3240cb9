//! The I/O thread: takes what users want to the ring client, does what that says, and brings back what came of it.

use std::collections::{BTreeMap, HashMap};
use std::net::{SocketAddr, ToSocketAddrs};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use kvcache_core::remote::RemoteFailure;
use kvcache_core::ring_client::{Action, ItemEnd, ItemResult, RingClient, RingClientConfig, ServerId};
use mio::{Events, Poll, Token};

use super::connection::Greeting;
use super::fault::{Fault, FaultReason};
use super::placement::SnapshotPlacement;
use super::rdma_lanes::RdmaLanes;
use super::server::{CONNECTIONS_MAX, News, Server};
use super::shared::{Command, RingStats, Shared};
use super::spin::Spin;
use super::work::Batch;
use crate::members::{Members, ServerAddress};
use crate::rdma::{LaneSettings, set_up};

/// Wakes the thread; above every connection's.
pub(super) const WAKER: Token = Token(usize::MAX);

/// How often connections are looked after while something is under way.
const CHECK_INTERVAL: Duration = Duration::from_millis(20);

/// How soon a change of members is noticed when nothing else happens.
const MEMBERS_INTERVAL: Duration = Duration::from_millis(250);

/// How long ends may wait for each other while the thread is busy.
const DELIVERY_INTERVAL: Duration = Duration::from_micros(500);

/// Bytes of values that nobody waits for, read at a time.
const SINK_BYTES: usize = 64 << 10;

/// What the thread needs to know.
pub(super) struct DriverConfig {
    pub(super) client: RingClientConfig,
    pub(super) greeting: Greeting,
    pub(super) connections: usize,
    pub(super) shared_memory: bool,
    /// If values travel over RDMA.
    pub(super) rdma: Option<Arc<LaneSettings>>,
    pub(super) members: Members,
}

pub(super) struct Driver {
    shared: Arc<Shared>,
    poll: Poll,
    config: DriverConfig,
    client: RingClient,
    servers: BTreeMap<ServerId, Server>,
    /// The numbers that members were given, for ever: a member that returns gets its own.
    ids: HashMap<ServerAddress, ServerId>,
    generation: Option<u64>,
    member_changes: u64,
    /// Connections that have more to do.
    again: Vec<Token>,
    sink: Vec<u8>,
    spin: Spin,
    next_check: Duration,
    /// Taken from the inbox and not looked at.
    commands: std::vec::IntoIter<Command>,
}

impl Driver {
    pub(super) fn new(shared: Arc<Shared>, poll: Poll, config: DriverConfig) -> Self {
        Self {
            shared,
            poll,
            client: RingClient::new(config.client.clone()),
            config,
            servers: BTreeMap::new(),
            ids: HashMap::new(),
            generation: None,
            member_changes: 0,
            again: Vec::new(),
            sink: vec![0; SINK_BYTES],
            spin: Spin::default(),
            next_check: Duration::ZERO,
            commands: Vec::new().into_iter(),
        }
    }

    /// Works until the client is closed. All memory is out of use once this is dropped.
    pub(super) fn run(&mut self) {
        let mut events = Events::with_capacity(256);
        let (mut ends, mut answers) = (Vec::new(), Vec::new());
        let mut next_delivery = Duration::ZERO;
        loop {
            let now = self.shared.now();
            self.look_at_members(now);
            let Some(commands) = self.shared.take() else { return };
            let mut stats_wanted = false;
            self.commands = commands.into_iter();
            while let Some(command) = self.commands.next() {
                stats_wanted |= matches!(command, Command::Stats);
                self.command(command, now);
            }
            self.act(now);
            self.socket_turns(&events, now);
            self.client.tick(now);
            self.act(now);
            self.check(now);
            self.act(now);
            // To wake whoever waits costs about as much as to copy 64 KiB: while more is at hand, now and then is enough.
            if self.again.is_empty() || now >= next_delivery {
                next_delivery = now + DELIVERY_INTERVAL;
                self.client.take_ends(&mut ends);
                self.client.take_answers(&mut answers);
                self.shared.deliver(&mut ends, &mut answers);
            }
            if stats_wanted {
                self.shared.deliver_stats(self.stats());
            }
            self.wait(&mut events);
        }
    }

    /// After a panic: lets go of all memory, and ends whatever anybody waits for.
    pub(super) fn give_up(&mut self) {
        self.servers.clear();
        self.client.give_up();
        let (mut ends, mut answers) = (Vec::new(), Vec::new());
        self.client.take_ends(&mut ends);
        self.client.take_answers(&mut answers);
        self.shared.deliver(&mut ends, &mut answers);
        let unseen = std::mem::take(&mut self.commands);
        self.shared.die(unseen);
    }

    fn wait(&mut self, events: &mut Events) {
        events.clear();
        let now = self.shared.now();
        let mut timeout = if self.again.is_empty() { MEMBERS_INTERVAL } else { Duration::ZERO };
        if let Some(tick) = self.client.next_tick() {
            timeout = timeout.min(tick.saturating_sub(now));
        }
        if self.servers.values().any(Server::is_waiting) {
            timeout = timeout.min(CHECK_INTERVAL);
        }
        if !self.shared.fall_asleep() {
            timeout = Duration::ZERO;
        }
        let (poll, spin) = (&mut self.poll, &mut self.spin);
        if !timeout.is_zero()
            && self.servers.values().any(Server::answers_soon)
            && spin.until(|| poll.poll(events, Some(Duration::ZERO)).is_err() || !events.is_empty())
        {
            self.shared.awake();
            return;
        }
        // What can go wrong is a signal, after which the loop goes round.
        let _ = self.poll.poll(events, Some(timeout));
        self.shared.awake();
    }

    fn look_at_members(&mut self, now: Duration) {
        let snapshot = self.config.members.current();
        let generation = snapshot.generation();
        if self.generation == Some(generation) {
            return;
        }
        // The list before the first is empty, and no change.
        self.member_changes += u64::from(self.generation.is_some_and(|before| before > 0));
        self.generation = Some(generation);
        let (mut servers, mut newcomers) = (Vec::new(), Vec::new());
        for member in snapshot.list().members() {
            let next = ServerId(self.ids.len() as u32);
            let id = *self.ids.entry(member.address.clone()).or_insert(next);
            servers.push(id);
            if self.servers.contains_key(&id) {
                continue;
            }
            let (connections, shared_memory) = (self.config.connections, self.config.shared_memory);
            let lanes = |settings: &Arc<_>| RdmaLanes::new(id, Arc::clone(settings), connections);
            let rdma = self.config.rdma.as_ref().map(lanes);
            let begins = rdma.is_some();
            let server = Server::new(id, member.address.clone(), connections, shared_memory, rdma);
            self.servers.insert(id, server);
            if begins {
                // Its first lane is begun at once.
                newcomers.push(id);
            }
        }
        let placement = SnapshotPlacement { snapshot, servers: servers.clone() };
        self.client.set_members(Box::new(placement), &servers);
        self.act(now);
        for id in newcomers {
            self.with_server(id, now, |_, _, _, _| {});
        }
    }

    fn command(&mut self, command: Command, now: Duration) {
        match command {
            Command::Submit { batch, deadline } => self.client.submit(&batch, deadline, now),
            Command::Ask { question, spaces, blocks, deadline } => {
                self.client.ask(question, &spaces, &blocks, deadline, now);
            }
            Command::Cancel(tickets) => self.client.cancel(&tickets),
            Command::Resolved { server, found } => {
                self.with_server(server, now, |server, _, _, news| server.resolved(found, now, news));
            }
            Command::LaneReady { server, place, ready } => {
                let Ok(registry) = self.poll.registry().try_clone() else { return };
                self.with_server(server, now, |server, _, _, news| {
                    server.lane_ready(place, *ready, &registry, now, news);
                });
            }
            Command::Stats => {}
            #[cfg(test)]
            Command::Panic => panic!("a test asked for it"),
        }
    }

    /// Does what the client wants, and what follows from that.
    fn act(&mut self, now: Duration) {
        let mut actions = Vec::new();
        loop {
            self.client.take_actions(&mut actions);
            if actions.is_empty() {
                return;
            }
            for action in actions.drain(..) {
                self.do_action(action, now);
            }
        }
    }

    fn do_action(&mut self, action: Action, now: Duration) {
        match action {
            Action::Send { server, request, op, items, .. } => {
                if !self.servers.contains_key(&server) {
                    self.client.request_failed(request, RemoteFailure::Unreachable, now);
                    return;
                }
                // SAFETY: the addresses come from `RemoteStore::submit`, whose caller keeps the memory valid and to us until
                // the transfer's end is polled; ends are delivered after the batch has let go of it.
                let batch = unsafe { Batch::new(request, op, &items) };
                self.with_server(server, now, |server, _, _, news| server.push(batch, now, news));
            }
            Action::Abandon { server, request, item } => {
                let mut in_use = Vec::new();
                self.with_server(server, now, |server, _, _, news| {
                    in_use = server.forget(request, item, now, news);
                });
                let result = ItemResult::Failed(RemoteFailure::Cancelled);
                match item {
                    Some(item) if in_use.contains(&item) => {}
                    Some(item) => self.client.ended(&[ItemEnd { request, item, result }], now),
                    None => {
                        self.client.request_failed_but(request, RemoteFailure::Cancelled, &in_use, now);
                    }
                }
            }
            Action::Retire { server } => {
                self.servers.remove(&server);
            }
        }
    }

    fn socket_turns(&mut self, events: &Events, now: Duration) {
        for token in std::mem::take(&mut self.again) {
            self.socket_turn(token, None, now);
        }
        for event in events {
            if event.token() == WAKER {
                continue;
            }
            let readable = event.is_readable() || event.is_read_closed() || event.is_error();
            let writable = event.is_writable() || event.is_write_closed() || event.is_error();
            self.socket_turn(event.token(), Some((readable, writable)), now);
        }
    }

    fn socket_turn(&mut self, token: Token, ready: Option<(bool, bool)>, now: Duration) {
        let (id, place) = Server::of_token(token);
        self.with_server(id, now, |server, greeting, sink, news| {
            server.turn(place, ready, greeting, sink, now, news);
        });
    }

    fn check(&mut self, now: Duration) {
        if now < self.next_check {
            return;
        }
        self.next_check = now + CHECK_INTERVAL;
        // A little later than the client, which sees all connections of a server and gives up on it as a whole.
        let silence_max = self.config.client.silence_max * 5 / 4 + CHECK_INTERVAL;
        let busy: Vec<ServerId> =
            self.servers.iter().filter(|(_, server)| server.is_waiting()).map(|(id, _)| *id).collect();
        for id in busy {
            self.with_server(id, now, |server, greeting, _, news| {
                server.check(greeting, silence_max, now, news);
            });
        }
    }

    /// Does something to a server, then lets it begin what it can, and tells the client what came of it.
    fn with_server(
        &mut self,
        id: ServerId,
        now: Duration,
        something: impl FnOnce(&mut Server, &Greeting, &mut [u8], &mut News),
    ) {
        let Some(server) = self.servers.get_mut(&id) else { return };
        let mut news = News::default();
        something(server, &self.config.greeting, &mut self.sink, &mut news);
        server.dispatch(self.poll.registry(), &self.config.greeting, now, &mut news);
        if news.resolve {
            resolve(&self.shared, id, server.address());
        }
        for (place, address) in news.set_up {
            if let Some(settings) = &self.config.rdma {
                begin_set_up(&self.shared, settings, id, place, address);
            }
        }
        self.again.append(&mut news.again);
        if news.heard {
            self.client.heard(id, now);
        }
        // Faults first: what they abandon is not asked for again at the same server.
        for fault in news.faults {
            self.client.connection_fault(id, fault, now);
        }
        self.client.ended(&news.ends, now);
    }

    fn stats(&self) -> RingStats {
        let connections = self
            .servers
            .iter()
            .map(|(id, server)| (*id, (server.address().to_string(), server.stats())))
            .collect();
        RingStats {
            client: self.client.stats(),
            connections,
            rdma_problem: self.config.rdma.as_ref().and_then(|settings| settings.device.problem()),
            member_changes: self.member_changes,
            died: false,
        }
    }
}

/// Looks a name up on a thread of its own: it may take seconds, and nothing can interrupt it.
fn resolve(shared: &Arc<Shared>, server: ServerId, address: &ServerAddress) {
    let name = (address.host().to_owned(), address.port());
    let sender = shared.clone();
    let look_up = move || {
        let found = name.to_socket_addrs().map(Iterator::collect).map_err(|error| error.to_string());
        sender.push(Command::Resolved { server, found });
    };
    let thread = std::thread::Builder::new().name("kvcache-resolve".to_owned()).spawn(look_up);
    if let Err(error) = thread {
        shared.push(Command::Resolved { server, found: Err(error.to_string()) });
    }
}

/// Sets a lane up on a thread of its own: neither devices nor servers are quick.
fn begin_set_up(
    shared: &Arc<Shared>,
    settings: &Arc<LaneSettings>,
    server: ServerId,
    place: usize,
    address: SocketAddr,
) {
    let (sender, settings) = (Arc::clone(shared), Arc::clone(settings));
    let work = move || {
        let ready = catch_unwind(AssertUnwindSafe(|| set_up(&settings, address)));
        let ready =
            ready.unwrap_or_else(|_| Err(Fault::new(FaultReason::Rdma, "an error of ours: see the log")));
        let ready = Box::new(ready);
        sender.push(Command::LaneReady { server, place, ready });
    };
    let thread = std::thread::Builder::new().name("kvcache-lane".to_owned()).spawn(work);
    if let Err(error) = thread {
        let ready = Box::new(Err(Fault::new(FaultReason::Rdma, error.to_string())));
        shared.push(Command::LaneReady { server, place, ready });
    }
}

const _: () = assert!(CONNECTIONS_MAX.is_power_of_two());
