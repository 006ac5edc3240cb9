//! What a ring client has done: every transfer and every failure, by reason.

use std::time::Duration;

use super::action::{ItemResult, ServerId};
use super::breaker::BreakerState;
use crate::remote::{RemoteFailure, RemoteOutcome};

/// Values of one operation, counted when they end.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct OpCounts {
    /// Moved, or forgotten.
    pub done: u64,
    /// Bytes of those.
    pub done_bytes: u64,
    /// Not there.
    pub missing: u64,
    /// By reason, in the order of [`RemoteFailure::ALL`].
    pub failed: [u64; RemoteFailure::ALL.len()],
}

impl OpCounts {
    /// All that ended.
    pub fn ended(&self) -> u64 {
        self.done + self.missing + self.failed.iter().sum::<u64>()
    }

    /// Those that failed for `reason`.
    pub fn failed_for(&self, reason: RemoteFailure) -> u64 {
        self.failed[reason as usize]
    }

    pub(super) fn count(&mut self, result: ItemResult, bytes: usize) {
        match result {
            ItemResult::Done => {
                self.done += 1;
                self.done_bytes += bytes as u64;
            }
            ItemResult::Missing => self.missing += 1,
            ItemResult::Failed(reason) => self.failed[reason as usize] += 1,
        }
    }

    pub(super) fn count_outcome(&mut self, outcome: RemoteOutcome, bytes: usize) {
        let result = match outcome {
            RemoteOutcome::Done => ItemResult::Done,
            RemoteOutcome::Missing => ItemResult::Missing,
            RemoteOutcome::Failed(reason) => ItemResult::Failed(reason),
        };
        self.count(result, bytes);
    }
}

/// What happened at one server. A value that several servers were asked for counts at each.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServerStats {
    /// The server.
    pub server: ServerId,
    /// Its circuit breaker now.
    pub breaker: BreakerState,
    /// Times the breaker opened.
    pub opened: u64,
    /// Probes sent.
    pub probes: u64,
    /// Requests sent, probes included.
    pub requests: u64,
    /// Requests abandoned because their time was up or the server silent.
    pub abandoned: u64,
    /// Moving average of the time from a request without values to its answer; zero before the first.
    pub round_trip: Duration,
    /// Values in flight.
    pub items_in_flight: usize,
    /// Their bytes.
    pub bytes_in_flight: u64,
    /// Values asked for.
    pub get: OpCounts,
    /// Values sent.
    pub put: OpCounts,
    /// Values to be forgotten.
    pub delete: OpCounts,
    /// Names asked for.
    pub exists: OpCounts,
}

impl ServerStats {
    pub(super) fn new(server: ServerId) -> Self {
        Self {
            server,
            breaker: BreakerState::Closed,
            opened: 0,
            probes: 0,
            requests: 0,
            abandoned: 0,
            round_trip: Duration::ZERO,
            items_in_flight: 0,
            bytes_in_flight: 0,
            get: OpCounts::default(),
            put: OpCounts::default(),
            delete: OpCounts::default(),
            exists: OpCounts::default(),
        }
    }
}

/// What a client has done since it was opened.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RingClientStats {
    /// Transfers into memory here.
    pub get: OpCounts,
    /// Transfers to servers.
    pub put: OpCounts,
    /// Values to be forgotten.
    pub delete: OpCounts,
    /// Questions answered.
    pub questions: u64,
    /// Blocks in them that were present.
    pub blocks_present: u64,
    /// Blocks in them that were not, or not known to be.
    pub blocks_absent: u64,
    /// Transfers that have not ended.
    pub transfers_open: usize,
    /// Questions that have not been answered.
    pub questions_open: usize,
    /// Ends of items that had ended, or never were.
    pub stale_ends: u64,
    /// The members, in the order of their numbers.
    pub servers: Vec<ServerStats>,
}
