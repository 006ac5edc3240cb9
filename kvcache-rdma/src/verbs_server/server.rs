//! The server: a port, a registered pool, and threads that serve connections.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use kvcache_wire::stock::{Caps, ConnectionInfo};

use super::admission::{Admission, AdmissionLimits, Refusal};
use super::connection::Link;
use super::counters::{Counters, VerbsServerStats};
use super::driver::{Closer, Driver};
use super::job::Pool;
use super::storage::Storage;
use crate::verbs::{Access, Error, Memory, Mtu, PeerAddress, Port, QueuePairConfig};

/// Settings of a [`VerbsServer`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VerbsServerConfig {
    /// Bytes of the longest request. A longer one ends its connection: there is no way to answer it. 512 KiB are some
    /// 5,000 keys of 65 bytes.
    pub request_bytes_max: u32,
    /// Requests that a connection can receive before the first is read. The client's device waits for more.
    pub receive_depth: u32,
    /// Transfers and answers of a connection that the device works on at a time.
    pub send_depth: u32,
    /// What is accepted of one request.
    pub caps: Caps,
    /// Threads that serve connections.
    pub threads: usize,
    /// How many connections there may be.
    pub limits: AdmissionLimits,
    /// Packets and timers.
    pub queue_pair: QueuePairConfig,
}

impl Default for VerbsServerConfig {
    /// 6 MiB a connection, one thread.
    fn default() -> Self {
        Self {
            request_bytes_max: 512 << 10,
            receive_depth: 12,
            send_depth: 512,
            caps: Caps::default(),
            threads: 1,
            limits: AdmissionLimits::default(),
            queue_pair: QueuePairConfig::default(),
        }
    }
}

/// Why a client could not be connected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// What the client sent makes no sense.
    #[error("the client's connection info: {0}")]
    Info(kvcache_wire::DecodeError),
    /// There are too many.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// A device did not do it.
    #[error(transparent)]
    Verbs(#[from] Error),
}

/// Serves a storage over RDMA. Dropping it ends all connections.
pub struct VerbsServer<S: Storage> {
    port: Port,
    storage: Arc<S>,
    config: VerbsServerConfig,
    drivers: Vec<Driver<S>>,
    next: AtomicU64,
    admission: Arc<Admission>,
    counters: Arc<Counters>,
    pool_bytes: u64,
}

impl<S: Storage> VerbsServer<S> {
    /// Registers the pool, all memory that the storage's values lie in, and starts the threads.
    ///
    /// # Errors
    /// The pool cannot be registered, or a thread not started.
    pub fn start(
        port: Port,
        storage: Arc<S>,
        pool: Vec<Memory>,
        config: VerbsServerConfig,
    ) -> Result<Self, Error> {
        let pool_bytes = pool.iter().map(|memory| memory.bytes() as u64).sum();
        let regions: Result<Vec<_>, Error> =
            pool.into_iter().map(|memory| Ok(Arc::new(port.register(memory, Access::Local)?))).collect();
        let pool = Arc::new(Pool::new(regions?));
        let counters: Arc<Counters> = Arc::default();
        let thread_error =
            |source: io::Error| Error::Verb { verb: "thread", subject: "serving".to_owned(), source };
        let drivers: Result<Vec<_>, Error> = (0..config.threads.max(1))
            .map(|_| Driver::start(Arc::clone(&storage), Arc::clone(&pool)).map_err(thread_error))
            .collect();
        let admission = Admission::new(config.limits);
        let (drivers, next) = (drivers?, AtomicU64::new(0));
        Ok(Self { port, storage, config, drivers, next, admission, counters, pool_bytes })
    }

    /// The port that it serves.
    pub fn port(&self) -> &Port {
        &self.port
    }

    /// The storage that it serves.
    pub fn storage(&self) -> &S {
        &self.storage
    }

    /// What was done so far.
    pub fn stats(&self) -> VerbsServerStats {
        let connections = self.admission.connections() as u64;
        let buffers = u64::from(self.config.request_bytes_max) * u64::from(self.config.receive_depth);
        let counters = &self.counters;
        VerbsServerStats {
            connections,
            connections_total: counters.connections_total.get(),
            exchanges_refused: counters.exchanges_refused.get(),
            stored_values: counters.stored_values.get(),
            received_bytes: counters.received_bytes.get(),
            loaded_values: counters.loaded_values.get(),
            sent_bytes: counters.sent_bytes.get(),
            requests_refused: counters.requests_refused.get(),
            pinned_bytes: self.pool_bytes + connections * buffers,
        }
    }

    /// Connects a client at `peer`: `info` is the body of its exchange. Answer it with [`Connection::info`], and drop the connection
    /// when the client's TCP connection ends. Takes about a millisecond.
    ///
    /// # Errors
    /// The info is malformed, there are too many, or the device refuses (no route to the client, out of queue pairs or
    /// locked memory).
    pub fn connect(&self, info: &[u8], peer: IpAddr) -> Result<Connection, ConnectError> {
        let connected = self.connect_peer(info, peer);
        let counters = &self.counters;
        let counter =
            if connected.is_ok() { &counters.connections_total } else { &counters.exchanges_refused };
        counter.add(1);
        connected
    }

    fn connect_peer(&self, info: &[u8], peer: IpAddr) -> Result<Connection, ConnectError> {
        let permit = Arc::new(self.admission.admit(peer)?);
        let peer = peer_of_info(&ConnectionInfo::decode(info).map_err(ConnectError::Info)?);
        let config = QueuePairConfig {
            send_depth: self.config.send_depth,
            receive_depth: self.config.receive_depth,
            segments_max: 1,
            // Clients have nothing to read or write here.
            remote_access: false,
            ..self.config.queue_pair.clone()
        };
        let mut pair = self.port.queue_pair(&config)?;
        let depth = pair.config().receive_depth as usize;
        let requests = Memory::allocate(self.config.request_bytes_max as usize * depth);
        let buffers =
            self.port.register(requests, Access::Local)?.into_buffers(self.config.request_bytes_max);
        pair.connect(&peer)?;
        for buffer in buffers.into_iter().take(depth) {
            pair.post_receive(0, Some(buffer))?;
        }
        let info = info_of_address(&pair.address());
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let driver = &self.drivers[id as usize % self.drivers.len()];
        let alive = Arc::new(AtomicBool::new(true));
        let link = Link::new(pair, self.config.caps, permit, Arc::clone(&self.counters));
        driver.add(id, link, Arc::clone(&alive));
        Ok(Connection { id, info, alive, closer: driver.closer() })
    }
}

impl<S: Storage> std::fmt::Debug for VerbsServer<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "VerbsServer {{ {} }}", self.port.name())
    }
}

/// A client's connection. Dropping it ends the connection.
pub struct Connection {
    id: u64,
    info: ConnectionInfo,
    alive: Arc<AtomicBool>,
    closer: Arc<dyn Closer>,
}

impl Connection {
    /// The answer to the client's exchange.
    pub fn info(&self) -> ConnectionInfo {
        self.info
    }

    /// Whether it still works. One that does not never does again; the client makes another.
    pub fn is_alive(&self) -> bool {
        self.alive.load(Ordering::Acquire)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.closer.close(self.id);
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Connection {{ queue pair {}, alive: {} }}", self.info.queue_pair, self.is_alive())
    }
}

/// What verbs need of a connection info.
pub(crate) fn peer_of_info(info: &ConnectionInfo) -> PeerAddress {
    PeerAddress {
        queue_pair: info.queue_pair,
        packet_sequence: info.packet_sequence,
        gid: info.gid,
        lid: info.lid,
        // The decoder has checked the number.
        mtu: Mtu::of_number(info.mtu_code).unwrap_or(Mtu::Bytes1024),
    }
}

/// An address as the peer's connection info.
pub(crate) fn info_of_address(address: &PeerAddress) -> ConnectionInfo {
    ConnectionInfo {
        queue_pair: address.queue_pair,
        packet_sequence: address.packet_sequence,
        gid: address.gid,
        lid: address.lid,
        mtu_code: address.mtu.number(),
    }
}
