//! Everything that goes to one server: its connections, and what waits for them.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use kvcache_core::remote::RemoteFailure;
use kvcache_core::ring_client::{ConnectionFault, ItemEnd, RequestId, RequestOp, ServerId};
use mio::{Interest, Registry, Token};

use super::connection::{Connection, Greeting};
use super::fault::{Fault, FaultReason};
use super::local_lane::LocalLane;
use super::rdma_lanes::{self, RdmaLanes};
use super::work::Batch;
use crate::local::is_this_host;
use crate::members::ServerAddress;
use crate::rdma::ReadyLane;

/// Connections of one server, at most: their tokens are made of the server's number and theirs.
pub(super) const CONNECTIONS_MAX: usize = 64;

/// The place of the connection over a Unix socket.
const LOCAL_PLACE: usize = CONNECTIONS_MAX - 1;

/// After a connection ended badly the next one waits so long, and twice as long after each further one.
const RECONNECT_MIN: Duration = Duration::from_millis(20);
const RECONNECT_MAX: Duration = Duration::from_secs(2);

/// How many connections ended for each reason, and other facts for people.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ConnectionStats {
    /// Open now.
    pub open: usize,
    /// Opened since the start.
    pub opened: u64,
    /// Whether values are copied from and to the memory of a server on this host.
    pub shared_memory: bool,
    /// Queue pairs that work; `None` where values travel over TCP.
    pub queue_pairs: Option<usize>,
    /// Why there is none.
    pub rdma_fault: Option<String>,
    /// Whether the server speaks our extension; `None` before the first connection.
    pub extension: Option<bool>,
    /// Connections that ended, or could not be made, by reason in the order of [`FaultReason::ALL`].
    pub faults: [u64; FaultReason::ALL.len()],
    /// What was wrong with the last of these.
    pub last_fault: Option<String>,
}

impl ConnectionStats {
    /// What is wrong now. A fault of the past is nothing while there are connections, or queue pairs where values need
    /// these.
    pub fn problem(&self) -> Option<&str> {
        let fault = if self.open == 0 { self.last_fault.as_deref() } else { None };
        self.rdma_fault.as_deref().or(fault)
    }
}

/// What came of a turn, beside ends.
#[derive(Default)]
pub(super) struct News {
    pub(super) ends: Vec<ItemEnd>,
    pub(super) heard: bool,
    pub(super) faults: Vec<ConnectionFault>,
    /// Connections that have more to do.
    pub(super) again: Vec<Token>,
    /// Whether the server's name must be resolved.
    pub(super) resolve: bool,
    /// Lanes over RDMA to be set up, by their place, and where to.
    pub(super) set_up: Vec<(usize, SocketAddr)>,
}

/// Connections for one kind of request. Small ones have their own, so that they do not wait behind values.
struct Lane {
    first: usize,
    places: Vec<Option<Connection>>,
    queue: VecDeque<Batch>,
    /// When the next connection may be made.
    open_after: Duration,
    backoff: Duration,
}

pub(super) struct Server {
    id: ServerId,
    address: ServerAddress,
    /// Where it was found; asked again after a failure.
    found: Vec<SocketAddr>,
    /// Which of these is next.
    next_found: usize,
    resolving: bool,
    small: Lane,
    bulk: Lane,
    /// Over a Unix socket, if the server is on this host. Its connection's place is the last.
    local: LocalLane,
    shares_memory: bool,
    /// For values, instead of `bulk`.
    rdma: Option<RdmaLanes>,
    pub(super) stats: ConnectionStats,
}

impl Server {
    pub(super) fn new(
        id: ServerId,
        address: ServerAddress,
        bulk_connections: usize,
        shares_memory: bool,
        rdma: Option<RdmaLanes>,
    ) -> Self {
        let bulk_connections = bulk_connections.clamp(1, rdma_lanes::FIRST_PLACE - 1);
        let literal: Option<std::net::IpAddr> = address.host().parse().ok();
        Self {
            id,
            found: literal.map(|ip| SocketAddr::new(ip, address.port())).into_iter().collect(),
            address,
            next_found: 0,
            resolving: false,
            small: Lane::new(0, 1),
            bulk: Lane::new(1, bulk_connections),
            local: LocalLane::default(),
            shares_memory,
            rdma,
            stats: ConnectionStats::default(),
        }
    }

    pub(super) fn address(&self) -> &ServerAddress {
        &self.address
    }

    pub(super) fn of_token(token: Token) -> (ServerId, usize) {
        (ServerId((token.0 / CONNECTIONS_MAX) as u32), token.0 % CONNECTIONS_MAX)
    }

    /// Puts requests in line.
    pub(super) fn push(&mut self, batch: Batch, now: Duration, news: &mut News) {
        if batch.op == RequestOp::Probe && self.rdma.as_ref().is_some_and(|rdma| rdma.is_unusable(now)) {
            return batch.fail(RemoteFailure::Unreachable, &mut news.ends);
        }
        self.queue_of(&batch).push_back(batch);
    }

    fn queue_of(&mut self, batch: &Batch) -> &mut VecDeque<Batch> {
        match &mut self.rdma {
            _ if self.local.is_open() => &mut self.local.queue,
            _ if batch.is_small() => &mut self.small.queue,
            Some(rdma) => &mut rdma.queue,
            None => &mut self.bulk.queue,
        }
    }

    /// Begins what can be begun, and makes connections for what cannot.
    pub(super) fn dispatch(
        &mut self,
        registry: &Registry,
        greeting: &Greeting,
        now: Duration,
        news: &mut News,
    ) {
        self.local.open(registry, token(self.id, LOCAL_PLACE), greeting, now);
        if self.local.begin(now, news) {
            news.again.push(token(self.id, LOCAL_PLACE));
        }
        self.dispatch_rdma(now, news);
        for bulk in [false, true] {
            let id = self.id;
            self.lane(bulk).begin(id, now, news);
            while self.lane(bulk).wants_connection(now) {
                if self.found.is_empty() {
                    news.resolve |= !std::mem::replace(&mut self.resolving, true);
                    break;
                }
                let address = self.found[self.next_found % self.found.len()];
                let lane = if bulk { &mut self.bulk } else { &mut self.small };
                match lane.open(id, address, self.address.host(), registry, greeting, now) {
                    Ok(()) => self.stats.opened += 1,
                    Err(fault) => self.fault(fault, bulk, now, news),
                }
            }
        }
    }

    fn dispatch_rdma(&mut self, now: Duration, news: &mut News) {
        let Some(rdma) = &mut self.rdma else { return };
        for (index, fault) in rdma.begin(now, &mut news.ends) {
            self.drop_rdma(index, fault, now, news);
        }
        let Some(rdma) = &mut self.rdma else { return };
        // A stock server has one thread, and pins much for each.
        let count = if self.stats.extension == Some(true) { rdma_lanes::LANES_MAX } else { 1 };
        if self.found.is_empty() {
            if rdma.is_waiting() {
                news.resolve |= !std::mem::replace(&mut self.resolving, true);
            }
            return;
        }
        while let Some(index) = rdma.wanted_place(count, now) {
            news.set_up.push((index, self.found[self.next_found % self.found.len()]));
        }
    }

    /// A lane was set up, or why not.
    pub(super) fn lane_ready(
        &mut self,
        index: usize,
        ready: Result<ReadyLane, Fault>,
        registry: &Registry,
        now: Duration,
        news: &mut News,
    ) {
        let Some(rdma) = &mut self.rdma else { return };
        match ready.and_then(|ready| rdma.opened(index, ready, registry, now)) {
            Ok(()) => {
                self.stats.opened += 1;
                news.heard = true;
            }
            Err(fault) => {
                rdma.not_opened(index);
                self.rdma_fault(fault, now, news);
            }
        }
    }

    fn drop_rdma(&mut self, index: usize, fault: Fault, now: Duration, news: &mut News) {
        let Some(lane) = self.rdma.as_mut().and_then(|rdma| rdma.take(index, now)) else { return };
        let owed = lane.owes();
        lane.close(failure_of(fault.reason), &mut news.ends);
        if owed {
            self.rdma_fault(fault, now, news);
        } else {
            // As of connections: whether the server is well shows with the next request.
            self.count(&fault);
        }
    }

    fn rdma_fault(&mut self, fault: Fault, now: Duration, news: &mut News) {
        self.count(&fault);
        self.try_another_address();
        let Some(rdma) = &mut self.rdma else { return };
        rdma.failed(&fault, now);
        // A lane less is no fault of a server that has others.
        if rdma.is_empty() {
            news.faults.push(connection_fault(fault.reason));
            for batch in rdma.queue.drain(..) {
                batch.fail(failure_of(fault.reason), &mut news.ends);
            }
        }
    }

    /// Another of its addresses may work, and a name may have moved.
    fn try_another_address(&mut self) {
        self.next_found = self.next_found.wrapping_add(1);
        if self.next_found.is_multiple_of(self.found.len().max(1))
            && self.address.host().parse::<std::net::IpAddr>().is_err()
        {
            self.found.clear();
        }
    }

    fn lane(&mut self, bulk: bool) -> &mut Lane {
        if bulk { &mut self.bulk } else { &mut self.small }
    }

    /// The name's addresses, or why there are none.
    pub(super) fn resolved(
        &mut self,
        found: Result<Vec<SocketAddr>, String>,
        now: Duration,
        news: &mut News,
    ) {
        self.resolving = false;
        match found {
            Ok(found) if !found.is_empty() => {
                self.next_found = 0;
                self.found = found;
            }
            other => {
                let text = other.err().unwrap_or_else(|| "its name has no address".to_owned());
                let fault = Fault::new(FaultReason::Unreachable, text);
                for bulk in [false, true] {
                    self.fault(fault.clone(), bulk, now, news);
                }
                if self.rdma.is_some() {
                    self.rdma_fault(fault, now, news);
                }
            }
        }
    }

    /// A connection's socket is ready, or it has more to do.
    pub(super) fn turn(
        &mut self,
        place: usize,
        ready: Option<(bool, bool)>,
        greeting: &Greeting,
        sink: &mut [u8],
        now: Duration,
        news: &mut News,
    ) {
        let id = self.id;
        let lane_place = place.checked_sub(rdma_lanes::FIRST_PLACE).filter(|_| place != LOCAL_PLACE);
        if let (Some(lane_place), Some(rdma)) = (lane_place, &mut self.rdma) {
            match rdma.turn(lane_place / 2, lane_place % 2, now, &mut news.ends) {
                Ok(turn) => {
                    news.heard |= turn.heard;
                    if turn.again {
                        news.again.push(token(id, place));
                    }
                }
                Err(fault) => self.drop_rdma(lane_place / 2, fault, now, news),
            }
            return;
        }
        let connection = self.connection_at(place);
        // An event may be of a connection that is gone.
        let Some(connection) = connection.and_then(Option::as_mut) else { return };
        if let Some((readable, writable)) = ready {
            connection.wake(readable, writable);
        }
        let was_open = connection.is_open();
        match connection.turn(greeting, sink, now, &mut news.ends) {
            Ok(turn) => {
                news.heard |= turn.heard;
                let answered = turn.heard && connection.has_answered();
                if turn.again {
                    news.again.push(token(id, place));
                }
                if !was_open && connection.is_open() {
                    let (extension, server_id) = (connection.speaks_extension(), connection.server_id());
                    self.opened(place, extension, server_id);
                }
                if answered && place != LOCAL_PLACE {
                    self.lane(place > 0).backoff = Duration::ZERO;
                }
            }
            Err(fault) => self.drop_connection(place, fault, now, news),
        }
    }

    /// Drops connections on which nothing moves.
    pub(super) fn check(
        &mut self,
        greeting: &Greeting,
        silence_max: Duration,
        now: Duration,
        news: &mut News,
    ) {
        if self.local.connection.as_mut().is_some_and(|connection| connection.rest(now)) {
            news.again.push(token(self.id, LOCAL_PLACE));
        }
        for place in (0..=self.bulk.places.len()).chain([LOCAL_PLACE]) {
            let connection = self.connection_at(place).and_then(|connection| connection.as_ref());
            if let Some(Err(fault)) =
                connection.map(|connection| connection.check(greeting, silence_max, now))
            {
                self.drop_connection(place, fault, now, news);
            }
        }
        let stalled = self.rdma.as_ref().map_or_else(Vec::new, |rdma| rdma.check(silence_max, now));
        for (index, fault) in stalled {
            self.drop_rdma(index, fault, now, news);
        }
    }

    /// Nobody waits for these any more. Their memory is out of use when this returns, but for those at the positions that
    /// it returns: these end later.
    pub(super) fn forget(
        &mut self,
        request: RequestId,
        item: Option<u32>,
        now: Duration,
        news: &mut News,
    ) -> Vec<u32> {
        let in_use = self.rdma.as_mut().map_or_else(Vec::new, |rdma| rdma.forget(request, item, now));
        self.local.queue.iter_mut().for_each(|batch| batch.forget(request, item));
        self.local.queue.retain(|batch| !batch.items.is_empty());
        if let Some(connection) = &mut self.local.connection {
            // Copies are ours, so that there is never a reason to end it.
            connection.forget(request, item);
        }
        let mut ended = Vec::new();
        for lane in [&mut self.small, &mut self.bulk] {
            lane.queue.iter_mut().for_each(|batch| batch.forget(request, item));
            lane.queue.retain(|batch| !batch.items.is_empty());
            for (index, connection) in lane.places.iter_mut().enumerate() {
                if connection.as_mut().is_some_and(|connection| !connection.forget(request, item)) {
                    ended.push(lane.first + index);
                }
            }
        }
        for place in ended {
            let fault = Fault::new(FaultReason::Abandoned, "a value was abandoned while it was being sent");
            self.drop_connection(place, fault, now, news);
        }
        in_use
    }

    /// Whether a server of this host is about to answer: within microseconds, if it is awake.
    pub(super) fn answers_soon(&self) -> bool {
        self.local.is_open() && self.local.connection.as_ref().is_some_and(Connection::owes)
    }

    /// When to look again although nothing happens.
    pub(super) fn is_waiting(&self) -> bool {
        let busy = |lane: &Lane| !lane.queue.is_empty() || lane.places.iter().flatten().any(Connection::owes);
        let local = self.local.connection.as_ref().is_some_and(|it| it.owes() || it.holds_spare());
        let rdma = self.rdma.as_ref().is_some_and(RdmaLanes::is_waiting);
        busy(&self.small) || busy(&self.bulk) || local || rdma || !self.local.queue.is_empty()
    }

    pub(super) fn stats(&self) -> ConnectionStats {
        let connections = self.small.places.iter().chain(&self.bulk.places).chain([&self.local.connection]);
        let open = connections.flatten().filter(|it| it.is_open()).count();
        let rdma = self.rdma.as_ref().map(RdmaLanes::state);
        let shared_memory = self.local.is_open();
        ConnectionStats {
            open,
            shared_memory,
            queue_pairs: rdma.as_ref().map(|(open, _)| *open),
            // Values need none while they are copied.
            rdma_fault: rdma.and_then(|(_, fault)| fault).filter(|_| !shared_memory),
            ..self.stats.clone()
        }
    }

    fn connection_at(&mut self, place: usize) -> Option<&mut Option<Connection>> {
        match place {
            LOCAL_PLACE => Some(&mut self.local.connection),
            0 => self.small.places.get_mut(0),
            _ => self.bulk.places.get_mut(place - self.bulk.first),
        }
    }

    fn opened(&mut self, place: usize, extension: Option<bool>, server_id: Option<u64>) {
        self.stats.extension = extension;
        match place {
            LOCAL_PLACE => {
                self.stats.opened += 1;
                self.local.opened();
                // What waits for TCP need not.
                self.local.queue.append(&mut self.small.queue);
                self.local.queue.append(&mut self.bulk.queue);
                if let Some(rdma) = &mut self.rdma {
                    self.local.queue.append(&mut rdma.queue);
                }
            }
            _ => {
                let found = self.found.get(self.next_found % self.found.len().max(1));
                let is_here = self.shares_memory && found.is_some_and(|address| is_this_host(address.ip()));
                self.local.welcomed(is_here.then(|| self.address.port()), server_id);
            }
        }
    }

    /// Goes on over TCP; what was under way has failed.
    fn drop_local(&mut self, fault: Fault, now: Duration, news: &mut News) {
        let Some(connection) = self.local.connection.take() else { return };
        let (was_open, owed, ended) = (connection.is_open(), connection.owes(), news.ends.len());
        connection.close(failure_of(fault.reason), &mut news.ends);
        for batch in std::mem::take(&mut self.local.queue) {
            self.queue_of(&batch).push_back(batch);
        }
        self.local.wait_longer(now);
        self.stats.last_fault = Some(format!("{}: {}", fault.reason.name(), fault.text));
        if was_open {
            self.stats.faults[fault.reason as usize] += 1;
        }
        // As over TCP: that a server closes what nobody uses says nothing about it.
        if was_open && (owed || news.ends.len() > ended) {
            news.faults.push(ConnectionFault::Lost);
        }
    }

    fn drop_connection(&mut self, place: usize, fault: Fault, now: Duration, news: &mut News) {
        if place == LOCAL_PLACE {
            return self.drop_local(fault, now, news);
        }
        let bulk = place > 0;
        let lane = if bulk { &mut self.bulk } else { &mut self.small };
        let first = lane.first;
        let Some(connection) = lane.places.get_mut(place - first).and_then(Option::take) else { return };
        // Servers close what nobody uses, and restart: whether this one is well shows with the next request. One that
        // welcomes and leaves before it has answered anything is not well, if somebody waits.
        let missed = connection.owes() || (!connection.has_answered() && !lane.queue.is_empty());
        connection.close(failure_of(fault.reason), &mut news.ends);
        if missed {
            self.fault(fault, bulk, now, news);
        } else {
            self.count(&fault);
        }
    }

    fn count(&mut self, fault: &Fault) {
        self.stats.faults[fault.reason as usize] += 1;
        self.stats.last_fault = Some(format!("{}: {}", fault.reason.name(), fault.text));
    }

    fn fault(&mut self, fault: Fault, bulk: bool, now: Duration, news: &mut News) {
        self.count(&fault);
        let reason = fault.reason;
        let lane = if bulk { &mut self.bulk } else { &mut self.small };
        if reason.is_ours() {
            return;
        }
        lane.backoff = (lane.backoff * 2).clamp(RECONNECT_MIN, RECONNECT_MAX);
        lane.open_after = now + lane.backoff;
        self.try_another_address();
        news.faults.push(connection_fault(reason));
        let lane = if bulk { &mut self.bulk } else { &mut self.small };
        if lane.places.iter().flatten().next().is_none() {
            for batch in lane.queue.drain(..) {
                batch.fail(failure_of(reason), &mut news.ends);
            }
        }
    }
}

impl Lane {
    fn new(first: usize, connections: usize) -> Self {
        Self {
            first,
            places: (0..connections).map(|_| None).collect(),
            queue: VecDeque::new(),
            open_after: Duration::ZERO,
            backoff: Duration::ZERO,
        }
    }

    /// Gives requests to the connections that have the least to do.
    fn begin(&mut self, id: ServerId, now: Duration, news: &mut News) {
        while let Some(batch) = self.queue.front_mut() {
            let ready = self.places.iter_mut().enumerate().filter_map(|(index, connection)| {
                let connection = connection.as_mut()?;
                Some((connection.load()?, index, connection))
            });
            let Some((_, index, connection)) = ready.min_by_key(|(load, index, _)| (*load, *index)) else {
                return;
            };
            connection.begin(batch, now, &mut news.ends);
            news.again.push(token(id, self.first + index));
            if batch.items.is_empty() {
                self.queue.pop_front();
            }
        }
    }

    /// Whether there is more to do than connections at it.
    fn wants_connection(&self, now: Duration) -> bool {
        let coming = self.places.iter().flatten().filter(|connection| !connection.is_open()).count();
        self.queue.len() > coming && self.places.iter().any(Option::is_none) && self.open_after <= now
    }

    fn open(
        &mut self,
        id: ServerId,
        address: SocketAddr,
        host: &str,
        registry: &Registry,
        greeting: &Greeting,
        now: Duration,
    ) -> Result<(), Fault> {
        let Some(index) = self.places.iter().position(Option::is_none) else { return Ok(()) };
        let mut connection = Connection::open(address, host, greeting, now)?;
        let interest = Interest::READABLE | Interest::WRITABLE;
        let registered = registry.register(connection.source(), token(id, self.first + index), interest);
        registered.map_err(|error| Fault::new(FaultReason::Unreachable, error.to_string()))?;
        self.places[index] = Some(connection);
        Ok(())
    }
}

pub(super) fn token(id: ServerId, place: usize) -> Token {
    Token(id.0 as usize * CONNECTIONS_MAX + place)
}

fn connection_fault(reason: FaultReason) -> ConnectionFault {
    match reason {
        FaultReason::Lost | FaultReason::Malformed | FaultReason::Stalled => ConnectionFault::Lost,
        _ => ConnectionFault::Refused,
    }
}

fn failure_of(reason: FaultReason) -> RemoteFailure {
    match reason {
        FaultReason::Unauthorized | FaultReason::StockRefusal => RemoteFailure::Refused,
        FaultReason::Timeout | FaultReason::Stalled => RemoteFailure::TimedOut,
        FaultReason::Abandoned => RemoteFailure::Cancelled,
        _ => RemoteFailure::Unreachable,
    }
}
