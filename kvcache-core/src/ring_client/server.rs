//! What the client knows of one server.

use std::collections::BTreeSet;
use std::time::Duration;

use super::action::{ItemResult, RequestId, RequestOp, ServerId};
use super::breaker::Breaker;
use super::config::RingClientConfig;
use super::stats::{OpCounts, ServerStats};

/// Values in flight, which are bounded.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Load {
    items: usize,
    bytes: u64,
    put_items: usize,
    put_bytes: u64,
}

impl Load {
    pub(super) fn has_room(&self, op: RequestOp, bytes: usize, items_max: usize, bytes_max: u64) -> bool {
        let bytes = bytes as u64;
        let room = self.items < items_max && self.bytes.saturating_add(bytes) <= bytes_max;
        // Half of it for puts, and always one, or a value above half of the bound could never be put.
        let puts = self.put_items == 0
            || (self.put_items < items_max / 2 && self.put_bytes.saturating_add(bytes) <= bytes_max / 2);
        room && (op != RequestOp::Put || puts)
    }

    pub(super) fn add(&mut self, op: RequestOp, bytes: usize) {
        self.items += 1;
        self.bytes += bytes as u64;
        if op == RequestOp::Put {
            self.put_items += 1;
            self.put_bytes += bytes as u64;
        }
    }

    pub(super) fn subtract(&mut self, op: RequestOp, bytes: usize) {
        self.items -= 1;
        self.bytes -= bytes as u64;
        if op == RequestOp::Put {
            self.put_items -= 1;
            self.put_bytes -= bytes as u64;
        }
    }

    pub(super) fn items(&self) -> usize {
        self.items
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }
}

#[derive(Debug)]
pub(super) struct Server {
    /// False from its removal until nothing is in flight there.
    pub(super) member: bool,
    pub(super) breaker: Breaker,
    pub(super) load: Load,
    /// Names that it was asked for.
    pub(super) names: usize,
    /// In flight, those abandoned included.
    pub(super) requests: BTreeSet<RequestId>,
    /// Of these, how many are not abandoned: answers that it owes.
    pub(super) owed: usize,
    /// Since when it owes answers without having been heard of. Meaningful while it owes any.
    pub(super) silent_since: Duration,
    /// When a request last timed out without a word from it.
    pub(super) last_failure: Duration,
    /// Whether a timer for its silence is set.
    pub(super) watched: bool,
    pub(super) stats: ServerStats,
}

impl Server {
    pub(super) fn new(id: ServerId) -> Self {
        Self {
            member: true,
            breaker: Breaker::new(),
            load: Load::default(),
            names: 0,
            requests: BTreeSet::new(),
            owed: 0,
            silent_since: Duration::ZERO,
            last_failure: Duration::ZERO,
            watched: false,
            stats: ServerStats::new(id),
        }
    }

    pub(super) fn admits(&self) -> bool {
        self.member && self.breaker.admits()
    }

    pub(super) fn has_room(&self, op: RequestOp, bytes: usize, config: &RingClientConfig) -> bool {
        match op {
            RequestOp::Exists | RequestOp::Probe => self.names < config.server_names_max,
            _ => self.load.has_room(op, bytes, config.server_items_max, config.server_bytes_max),
        }
    }

    pub(super) fn counts(&mut self, op: RequestOp) -> Option<&mut OpCounts> {
        match op {
            RequestOp::Get => Some(&mut self.stats.get),
            RequestOp::Put => Some(&mut self.stats.put),
            RequestOp::Delete => Some(&mut self.stats.delete),
            RequestOp::Exists => Some(&mut self.stats.exists),
            RequestOp::Probe => None,
        }
    }

    pub(super) fn count(&mut self, op: RequestOp, result: ItemResult, bytes: usize) {
        if let Some(counts) = self.counts(op) {
            counts.count(result, bytes);
        }
    }

    /// An answer to a request without values, which says how far away the server is.
    pub(super) fn observe_round_trip(&mut self, time: Duration) {
        let average = &mut self.stats.round_trip;
        *average = if average.is_zero() { time } else { (*average * 7 + time) / 8 };
    }

    pub(super) fn snapshot(&self) -> ServerStats {
        ServerStats {
            breaker: self.breaker.state(),
            items_in_flight: self.load.items(),
            bytes_in_flight: self.load.bytes(),
            ..self.stats.clone()
        }
    }
}
