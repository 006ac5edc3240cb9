//! Values that travel in one request.

use std::sync::Arc;
use std::time::Instant;

use kvcache_core::remote::{RemoteEnd, RemoteKey, RemoteOp, RemoteOutcome};

use crate::verbs::Region;

/// One value.
#[derive(Clone, Copy, Debug)]
pub(super) struct Item {
    pub(super) ticket: u64,
    pub(super) key: RemoteKey,
    pub(super) address: usize,
}

/// Values of one length in one region, that go the same way; or names to be deleted, with neither.
#[derive(Debug)]
pub(super) struct Unit {
    pub(super) op: RemoteOp,
    pub(super) items: Vec<Item>,
    pub(super) value_bytes: u32,
    pub(super) region: Option<Arc<Region>>,
    pub(super) deadline: Instant,
    /// Whether it was in flight when a connection broke.
    pub(super) retried: bool,
    /// Whether nothing else may be in flight beside it: its answer was in doubt.
    pub(super) alone: bool,
}

impl Unit {
    /// Ends all of its values in the same way.
    pub(super) fn end(self, outcome: RemoteOutcome, ends: &mut Vec<RemoteEnd>) {
        ends.extend(self.items.into_iter().map(|Item { ticket, .. }| RemoteEnd { ticket, outcome }));
    }

    /// Two units with a half of the values each, at least one.
    pub(super) fn halves(mut self) -> [Unit; 2] {
        let items = self.items.split_off(self.items.len() / 2);
        let second = Unit { items, region: self.region.clone(), ..self };
        [self, second]
    }
}
