//! Bounds and times of a ring client.

use std::time::Duration;

/// Most servers that may hold the same value.
pub const REPLICAS_MAX: usize = 4;

/// The settings of a [`RingClient`](super::RingClient).
#[derive(Clone, PartialEq, Debug)]
pub struct RingClientConfig {
    /// Servers that hold each value, 1 to [`REPLICAS_MAX`].
    pub replicas: usize,
    /// Items of a request that moves values.
    pub batch_items_max: usize,
    /// Bytes of such a request, unless it has one item.
    pub batch_bytes_max: usize,
    /// Names of a request that asks for presence.
    pub batch_names_max: usize,
    /// Values in flight at one server. Puts have half of it, and of each bound below, so that gets find room.
    pub server_items_max: usize,
    /// Bytes in flight at one server.
    pub server_bytes_max: u64,
    /// Values in flight in all.
    pub items_max: usize,
    /// Bytes in flight in all.
    pub bytes_max: u64,
    /// Names that one server has been asked for.
    pub server_names_max: usize,
    /// A server that owes answers and is not heard of for so long is taken for dead.
    pub silence_max: Duration,
    /// So many failures without an answer between them as well.
    pub failures_max: u32,
    /// How long a dead server is left alone before it is probed for the first time.
    pub backoff_min: Duration,
    /// The same after many probes: it doubles from one to the next.
    pub backoff_max: Duration,
    /// Whatever is random: the jitter of the above.
    pub seed: u64,
}

impl Default for RingClientConfig {
    fn default() -> Self {
        Self {
            replicas: 1,
            batch_items_max: 256,
            batch_bytes_max: 4 << 20,
            batch_names_max: 4096,
            server_items_max: 8192,
            server_bytes_max: 2 << 30,
            items_max: 32_768,
            bytes_max: 8 << 30,
            server_names_max: 1 << 17,
            silence_max: Duration::from_secs(1),
            failures_max: 3,
            backoff_min: Duration::from_millis(100),
            backoff_max: Duration::from_secs(10),
            seed: 0,
        }
    }
}
