//! Values that travel in one request.

use std::sync::Arc;
use std::time::Instant;

use kvcache_core::remote::{RemoteEnd, RemoteKey, RemoteOp, RemoteOutcome};

use crate::verbs::Region;

/// One value.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Item {
    pub(crate) ticket: u64,
    pub(crate) key: RemoteKey,
    pub(crate) address: usize,
}

/// Values of one length in one region, that go the same way; or names to be deleted, with neither.
#[derive(Debug)]
pub(crate) struct Unit {
    pub(crate) op: RemoteOp,
    pub(crate) items: Vec<Item>,
    pub(crate) value_bytes: u32,
    pub(crate) region: Option<Arc<Region>>,
    pub(crate) deadline: Instant,
    /// Whether it was in flight when a connection broke.
    pub(crate) retried: bool,
    /// Whether nothing else may be in flight beside it: its answer was in doubt.
    pub(crate) alone: bool,
}

impl Unit {
    /// Ends all of its values in the same way.
    pub(crate) fn end(self, outcome: RemoteOutcome, ends: &mut Vec<RemoteEnd>) {
        ends.extend(self.items.into_iter().map(|Item { ticket, .. }| RemoteEnd { ticket, outcome }));
    }

    /// Two units with a half of the values each, at least one.
    pub(crate) fn halves(mut self) -> [Unit; 2] {
        let items = self.items.split_off(self.items.len() / 2);
        let second = Unit { items, region: self.region.clone(), ..self };
        [self, second]
    }
}
