//! The I/O thread: takes what users want to the ring client, does what that says, and brings back what came of it.

use std::collections::{BTreeMap, HashMap};
use std::net::ToSocketAddrs;
use std::sync::Arc;
use std::time::Duration;

use kvcache_core::remote::RemoteFailure;
use kvcache_core::ring_client::{Action, RingClient, RingClientConfig, ServerId};
use mio::{Events, Poll, Token};

use super::connection::Greeting;
use super::placement::SnapshotPlacement;
use super::server::{CONNECTIONS_MAX, News, Server};
use super::shared::{Command, RingStats, Shared};
use super::work::Batch;
use crate::members::{Members, ServerAddress};

/// Wakes the thread; above every connection's.
pub(super) const WAKER: Token = Token(usize::MAX);

/// How often connections are looked after while something is under way.
const CHECK_INTERVAL: Duration = Duration::from_millis(20);

/// How soon a change of members is noticed when nothing else happens.
const MEMBERS_INTERVAL: Duration = Duration::from_millis(250);

/// Bytes of values that nobody waits for, read at a time.
const SINK_BYTES: usize = 64 << 10;

/// What the thread needs to know.
pub(super) struct DriverConfig {
    pub(super) client: RingClientConfig,
    pub(super) greeting: Greeting,
    pub(super) connections: usize,
    pub(super) shared_memory: bool,
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
            next_check: Duration::ZERO,
            commands: Vec::new().into_iter(),
        }
    }

    /// Works until the client is closed. All memory is out of use once this is dropped.
    pub(super) fn run(&mut self) {
        let mut events = Events::with_capacity(256);
        let (mut ends, mut answers) = (Vec::new(), Vec::new());
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
            self.client.take_ends(&mut ends);
            self.client.take_answers(&mut answers);
            self.shared.deliver(&mut ends, &mut answers);
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
        let mut servers = Vec::new();
        for member in snapshot.list().members() {
            let next = ServerId(self.ids.len() as u32);
            let id = *self.ids.entry(member.address.clone()).or_insert(next);
            let (connections, shared_memory) = (self.config.connections, self.config.shared_memory);
            let server = || Server::new(id, member.address.clone(), connections, shared_memory);
            self.servers.entry(id).or_insert_with(server);
            servers.push(id);
        }
        let placement = SnapshotPlacement { snapshot, servers: servers.clone() };
        self.client.set_members(Box::new(placement), &servers);
        self.act(now);
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
                self.with_server(server, now, |server, _, _, _| server.push(batch));
            }
            Action::Abandon { server, request, item } => {
                self.with_server(server, now, |server, _, _, news| server.forget(request, item, now, news));
                let result = kvcache_core::ring_client::ItemResult::Failed(RemoteFailure::Cancelled);
                match item {
                    Some(item) => {
                        let end = kvcache_core::ring_client::ItemEnd { request, item, result };
                        self.client.ended(&[end], now);
                    }
                    None => self.client.request_failed(request, RemoteFailure::Cancelled, now),
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

const _: () = assert!(CONNECTIONS_MAX.is_power_of_two());
