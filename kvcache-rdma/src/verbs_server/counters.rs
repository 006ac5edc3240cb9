//! What a server has done over RDMA.

use std::sync::atomic::{AtomicU64, Ordering};

/// A snapshot of the counters.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct VerbsServerStats {
    /// Queue pairs now.
    pub connections: u64,
    /// Queue pairs that were connected so far.
    pub connections_total: u64,
    /// Exchanges that were refused: malformed, beyond a limit, or by the device.
    pub exchanges_refused: u64,
    /// Values stored.
    pub stored_values: u64,
    /// Bytes of those, read from clients' memory.
    pub received_bytes: u64,
    /// Values loaded.
    pub loaded_values: u64,
    /// Bytes of those, written to clients' memory.
    pub sent_bytes: u64,
    /// Requests that were refused: a key is missing, no room, malformed.
    pub requests_refused: u64,
    /// Memory that is pinned: the pool, and the buffers of connections.
    pub pinned_bytes: u64,
}

/// Counters. All loads and stores are relaxed: each number stands for itself.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) connections_total: Counter,
    pub(super) exchanges_refused: Counter,
    pub(super) stored_values: Counter,
    pub(super) received_bytes: Counter,
    pub(super) loaded_values: Counter,
    pub(super) sent_bytes: Counter,
    pub(super) requests_refused: Counter,
}

#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self, number: u64) {
        self.0.fetch_add(number, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
