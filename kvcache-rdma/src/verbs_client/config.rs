//! Settings of a client.

use std::time::Duration;

use crate::verbs::QueuePairConfig;

/// Settings of a [`VerbsClient`](super::VerbsClient).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VerbsClientConfig {
    /// Connections to the server, at least 1. A stock server pins 512 MiB for each.
    pub lanes: usize,
    /// Requests in flight on a connection.
    pub requests_in_flight: usize,
    /// Keys of one request.
    pub request_keys_max: usize,
    /// Bytes that one request moves, unless it is of one key.
    pub request_bytes_max: usize,
    /// Values that have not ended; more are refused as overloaded.
    pub items_max: usize,
    /// Whether a checksum is stored with every value and verified after every load. Without it the bytes are as good as
    /// the network's own checks.
    pub checksums: bool,
    /// Time for a connection to be made. A stock server takes seconds to pin its memory.
    pub connect_timeout: Duration,
    /// How long a server that could not be reached is left alone; doubled with every failure up to `backoff_max`, with a
    /// jitter of a half.
    pub backoff_min: Duration,
    /// See `backoff_min`.
    pub backoff_max: Duration,
    /// Packets and timers.
    pub queue_pair: QueuePairConfig,
}

impl Default for VerbsClientConfig {
    fn default() -> Self {
        Self {
            lanes: 2,
            requests_in_flight: 8,
            request_keys_max: 256,
            request_bytes_max: 16 << 20,
            items_max: 65_536,
            checksums: true,
            connect_timeout: Duration::from_secs(10),
            backoff_min: Duration::from_millis(100),
            backoff_max: Duration::from_secs(10),
            queue_pair: QueuePairConfig::default(),
        }
    }
}

impl VerbsClientConfig {
    /// Bytes of the longest message: names of 65 to 70 bytes, with length, terminator, padding, offset and address.
    pub(super) fn message_bytes_max(&self) -> u32 {
        (self.request_keys_max * MESSAGE_BYTES_PER_KEY + MESSAGE_BYTES_FIXED) as u32
    }
}

const MESSAGE_BYTES_PER_KEY: usize = 96;
const MESSAGE_BYTES_FIXED: usize = 128;
