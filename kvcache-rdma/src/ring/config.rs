//! How a client of the ring is opened.

use std::sync::Arc;
use std::time::Duration;

use kvcache_core::ring_client::{REPLICAS_MAX, RingClientConfig};
use kvcache_wire::extension::Hello;

use crate::members::Members;
use crate::rdma::{Device, RdmaPort};
use crate::tcp::{IoThread, IoThreadConfig, TlsError, TlsSettings};

/// The settings of a [`RingStore`](super::RingStore) or a [`RingPresence`](super::RingPresence).
#[derive(Clone)]
pub struct RingConfig {
    /// Who the members are.
    pub members: Members,
    /// What the servers ask for before they serve; empty for none.
    pub token: String,
    /// TLS to all servers, or none.
    pub tls: Option<TlsSettings>,
    /// How long a connection may take, its hello included.
    pub connect_timeout: Duration,
    /// Connections to each server for values; one more is for small requests.
    pub connections: usize,
    /// Whether values of servers on this host are copied from and to their memory instead of being sent.
    pub shared_memory: bool,
    /// Where the client's I/O thread runs; `None` for wherever, and with the priority that, the thread that opens it does.
    pub background: Option<BackgroundThread>,
    /// Moves values over RDMA through this port, and asks over TCP what is present. `None` for TCP alone.
    pub rdma: Option<RdmaPort>,
    /// Bounds, times and replicas.
    pub client: RingClientConfig,
}

/// An I/O thread that stays out of the way of its creator: of an engine that is bound to cores, say.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct BackgroundThread {
    /// CPUs that it may run on; empty for those of its creator. Best effort.
    pub cpus: Vec<usize>,
    /// Niceness, 0 to 19. Best effort.
    pub nice: i32,
}

impl RingConfig {
    /// No token, no TLS, one replica, two connections to each server, one second to connect, memory shared with servers on
    /// this host, and a thread like its creator's.
    pub fn new(members: Members) -> Self {
        Self {
            members,
            token: String::new(),
            tls: None,
            connect_timeout: Duration::from_secs(1),
            connections: 2,
            shared_memory: true,
            background: None,
            rdma: None,
            client: RingClientConfig::default(),
        }
    }

    /// `rdma` is the device for values, of a client that moves any.
    pub(super) fn start(
        &self,
        name: &'static str,
        rdma: Option<Arc<Device>>,
    ) -> Result<IoThread, RingOpenError> {
        let RingClientConfig { replicas, .. } = self.client;
        if !(1..=REPLICAS_MAX).contains(&replicas) {
            return Err(RingOpenError::Replicas { replicas });
        }
        if !(1..=CONNECTIONS_MAX).contains(&self.connections) {
            return Err(RingOpenError::Connections { connections: self.connections });
        }
        if self.token.len() > Hello::TOKEN_BYTES_MAX {
            return Err(RingOpenError::Token { bytes: self.token.len() });
        }
        for (what, time) in
            [("connect_timeout", self.connect_timeout), ("silence_max", self.client.silence_max)]
        {
            if time.is_zero() {
                return Err(RingOpenError::Zero { what });
            }
        }
        // Clients that were opened together must not probe together.
        let seed = u64::from(std::process::id()) << 32
            | u64::from(
                std::time::SystemTime::now()
                    .duration_since(std::time::UNIX_EPOCH)
                    .map_or(0, |now| now.subsec_nanos()),
            );
        IoThread::start(IoThreadConfig {
            name,
            client: RingClientConfig { seed: self.client.seed ^ seed, ..self.client.clone() },
            token: self.token.clone().into_bytes(),
            tls: self.tls.clone(),
            connect_timeout: self.connect_timeout,
            connections: self.connections,
            // Values that were put over RDMA are no hits for a client that copies, nor the other way round.
            shared_memory: self.shared_memory && self.rdma.is_none(),
            rdma,
            background: self.background.clone(),
            members: self.members.clone(),
        })
        .map_err(RingOpenError::from)
    }
}

const CONNECTIONS_MAX: usize = 31;

/// Why a client cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RingOpenError {
    /// No server would hold a value, or too many.
    #[error("replicas is {replicas}: use 1 to {REPLICAS_MAX}")]
    Replicas {
        /// As given.
        replicas: usize,
    },
    /// No connection, or too many.
    #[error("connections is {connections}: use 1 to {CONNECTIONS_MAX} for each server")]
    Connections {
        /// As given.
        connections: usize,
    },
    /// A token that the protocol cannot carry.
    #[error("the token has {bytes} bytes: use one of at most {}", Hello::TOKEN_BYTES_MAX)]
    Token {
        /// Its length.
        bytes: usize,
    },
    /// A time of nothing.
    #[error("{what} is 0: nothing would ever arrive in time; use 1 s or so")]
    Zero {
        /// The setting.
        what: &'static str,
    },
    /// TLS cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The system refuses a thread or a descriptor.
    #[error("cannot start the client's thread: {0}; raise the limits of threads and open files")]
    System(#[source] std::io::Error),
}

impl From<crate::tcp::StartError> for RingOpenError {
    fn from(error: crate::tcp::StartError) -> Self {
        match error {
            crate::tcp::StartError::Tls(error) => Self::Tls(error),
            crate::tcp::StartError::System(error) => Self::System(error),
        }
    }
}
