//! What a server is told at its start.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use kvcache_core::eviction::PolicyRegistry;
use kvcache_wire::extension::Limits;
use kvcache_wire::stock::Caps;

use crate::{RdmaConfig, TlsFiles, Token};

/// A server's settings; the defaults are those of `kvcache serve`.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Where clients connect. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where the management HTTP listens; `None`: nowhere.
    pub manage: Option<SocketAddr>,
    /// Bytes of all values together.
    pub capacity_bytes: u64,
    /// The eviction policy's name.
    pub eviction: String,
    /// Values at most; `None`: see [`StoreConfig`](crate::store::StoreConfig).
    pub values_max: Option<u32>,
    /// Longest value; `None`: as long as the pool. Values of stock clients are below 2 GiB in any case.
    pub value_bytes_max: Option<u64>,
    /// Payload of one frame at most; the longest value fits in any case.
    pub payload_bytes_max: u64,
    /// What clients must know. Stock clients cannot say it, so they are refused unless `allow_stock`.
    pub token: Option<Token>,
    /// Whether clients that cannot authenticate are served although there is a token.
    pub allow_stock: bool,
    /// Certificate and key; every connection is then TLS.
    pub tls: Option<TlsFiles>,
    /// Connections at a time; one more is closed at once.
    pub connections_max: usize,
    /// Threads that serve; `None`: as many as there are cores, 8 at most.
    pub threads: Option<usize>,
    /// Back the pool with memory from the start on, in the background, instead of when it is first used.
    pub populate: bool,
    /// Whether clients on this host may map the pool and copy values themselves.
    pub shared_memory: bool,
    /// How long peers may take.
    pub timeouts: Timeouts,
    /// Whether clients are served over RDMA as well. With a token they are not, unless `allow_stock`: that protocol cannot
    /// say it.
    pub rdma: RdmaConfig,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            manage: None,
            capacity_bytes: 1 << 30,
            eviction: PolicyRegistry::DEFAULT.to_owned(),
            values_max: None,
            value_bytes_max: None,
            payload_bytes_max: 256 << 20,
            token: None,
            allow_stock: false,
            tls: None,
            connections_max: 4096,
            threads: None,
            populate: false,
            shared_memory: true,
            timeouts: Timeouts::default(),
            rdma: RdmaConfig::default(),
        }
    }
}

impl ServerConfig {
    pub(crate) fn threads(&self) -> usize {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        self.threads.unwrap_or(cores.min(8)).max(1)
    }

    /// What one connection may ask for. The server's memory for it, the pool apart, stays below 8 MiB: a body and the keys
    /// taken from it (1 MiB each), and 32 answers of 4,096 outcomes and values (28 bytes each, 3.6 MiB).
    pub(crate) fn limits(&self) -> Limits {
        let value_bytes_max =
            self.value_bytes_max.unwrap_or(self.capacity_bytes).clamp(1, self.capacity_bytes.max(1));
        Limits {
            keys_max: 4096,
            key_bytes_max: KEY_BYTES_MAX,
            value_bytes_max,
            payload_bytes_max: value_bytes_max.max(self.payload_bytes_max),
            bytes_in_flight_max: value_bytes_max.max(self.payload_bytes_max).saturating_mul(2),
            requests_in_flight_max: 32,
            body_bytes_max: 1 << 20,
        }
    }
}

/// Longest key. Ours have less than 100 bytes.
pub(crate) const KEY_BYTES_MAX: u32 = 1024;
/// Longest body of a stock request: what the stock client's buffers hold.
pub(crate) const STOCK_BODY_BYTES_MAX: u32 = 4 << 20;
/// Keys of a stock request.
pub(crate) const STOCK_CAPS: Caps = Caps { keys_max: 65_536, key_bytes_max: KEY_BYTES_MAX };

/// How long peers may take. Who takes longer is disconnected.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timeouts {
    /// From the first byte of a request to its last, payload not counted; also a TLS handshake, and for an answer
    /// to leave.
    pub request: Duration,
    /// Payload gets as much more time as it takes at this rate.
    pub payload_bytes_per_second_min: u64,
    /// Between requests; `None`: for ever.
    pub idle: Option<Duration>,
    /// How long a client with shared memory may take to copy values: then they can go although it has not given them back.
    pub lease: Duration,
    /// What runs when the server is stopped may take so long to end.
    pub grace: Duration,
}

impl Timeouts {
    /// How long `bytes` bytes may take.
    pub(crate) fn transfer(&self, bytes: u64) -> Duration {
        let rate = self.payload_bytes_per_second_min.max(1);
        // An hour is long enough for anything, and keeps sums of times far from their limits.
        (self.request + Duration::from_millis(bytes.saturating_mul(1000) / rate))
            .min(Duration::from_secs(3600))
    }
}

impl Default for Timeouts {
    /// 10 s a request, 1 MiB/s, no limit between requests, 10 s a lease, 5 s to end.
    fn default() -> Self {
        Self {
            request: Duration::from_secs(10),
            payload_bytes_per_second_min: 1 << 20,
            idle: None,
            lease: Duration::from_secs(10),
            grace: Duration::from_secs(5),
        }
    }
}
