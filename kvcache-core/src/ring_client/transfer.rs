//! One transfer on its way through the servers that may hold its value.

use std::time::Duration;

use super::action::{ItemResult, RequestId, ServerId};
use super::config::REPLICAS_MAX;
use crate::remote::{RemoteFailure, RemoteOp, RemoteOutcome, RemoteTransfer};

/// The servers that may hold a value, in the order in which they are asked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Holders {
    servers: [ServerId; REPLICAS_MAX],
    count: u8,
    next: u8,
}

impl Holders {
    pub(super) fn none() -> Self {
        Self { servers: [ServerId(u32::MAX); REPLICAS_MAX], count: 0, next: 0 }
    }

    /// Takes one more, up to [`REPLICAS_MAX`].
    pub(super) fn push(&mut self, server: ServerId) {
        if let Some(place) = self.servers.get_mut(usize::from(self.count)) {
            *place = server;
            self.count += 1;
        }
    }

    pub(super) fn left(&self) -> u32 {
        u32::from(self.count - self.next)
    }
}

impl Iterator for Holders {
    type Item = ServerId;

    fn next(&mut self) -> Option<ServerId> {
        let server = self.servers[..usize::from(self.count)].get(usize::from(self.next))?;
        self.next += 1;
        Some(*server)
    }
}

/// A transfer that has not ended.
#[derive(Debug)]
pub(super) struct Transfer {
    pub(super) wanted: RemoteTransfer,
    pub(super) deadline: Duration,
    /// Those not asked yet.
    pub(super) holders: Holders,
    /// Items in flight for it: at most one of a get, one a holder of the others.
    pub(super) running: u32,
    pub(super) cancelled: bool,
    /// Where these are: request and position in it.
    at: [Option<(RequestId, u32)>; REPLICAS_MAX],
    done: bool,
    failure: Option<RemoteFailure>,
}

impl Transfer {
    pub(super) fn new(wanted: RemoteTransfer, deadline: Duration, holders: Holders) -> Self {
        Self {
            wanted,
            deadline,
            holders,
            running: 0,
            cancelled: false,
            at: [None; REPLICAS_MAX],
            done: false,
            failure: None,
        }
    }

    /// An item of it was sent.
    pub(super) fn sent_as(&mut self, request: RequestId, item: u32) {
        if let Some(place) = self.at.iter_mut().find(|place| place.is_none()) {
            *place = Some((request, item));
        }
    }

    /// An item of it ended.
    pub(super) fn item_ended(&mut self, request: RequestId, item: u32) {
        self.running -= 1;
        self.at.iter_mut().filter(|place| **place == Some((request, item))).for_each(|place| *place = None);
    }

    /// Where its items are.
    pub(super) fn at(&self) -> impl Iterator<Item = (RequestId, u32)> + use<> {
        self.at.into_iter().flatten()
    }

    /// Takes note of how an item of it ended, or why none was begun.
    pub(super) fn note(&mut self, result: ItemResult) {
        match result {
            ItemResult::Done => self.done = true,
            ItemResult::Missing => {}
            // What a server said tells more than that another could not be asked.
            ItemResult::Failed(RemoteFailure::Unreachable) if self.failure.is_some() => {}
            ItemResult::Failed(failure) => self.failure = Some(failure),
        }
    }

    /// Whether the next holder should be asked.
    pub(super) fn goes_on(&self, now: Duration) -> bool {
        let unsettled = self.wanted.op != RemoteOp::Get || !self.done;
        unsettled && !self.cancelled && self.holders.left() > 0 && now < self.deadline
    }

    /// Takes note of holders that were not asked, of a transfer that ends without them.
    pub(super) fn note_the_unasked(&mut self) {
        if !self.done && self.holders.left() > 0 {
            let why = if self.cancelled { RemoteFailure::Cancelled } else { RemoteFailure::TimedOut };
            self.note(ItemResult::Failed(why));
        }
    }

    pub(super) fn outcome(&self) -> RemoteOutcome {
        match self.failure {
            _ if self.done => RemoteOutcome::Done,
            Some(failure) => RemoteOutcome::Failed(failure),
            None => RemoteOutcome::Missing,
        }
    }
}

/// Transfers that have not ended, by small numbers that are used again.
#[derive(Debug, Default)]
pub(super) struct Transfers {
    places: Vec<Option<Transfer>>,
    free: Vec<u32>,
}

impl Transfers {
    pub(super) fn insert(&mut self, transfer: Transfer) -> u32 {
        if let Some(place) = self.free.pop() {
            self.places[place as usize] = Some(transfer);
            return place;
        }
        self.places.push(Some(transfer));
        self.places.len() as u32 - 1
    }

    pub(super) fn get_mut(&mut self, place: u32) -> Option<&mut Transfer> {
        self.places.get_mut(place as usize)?.as_mut()
    }

    pub(super) fn remove(&mut self, place: u32) -> Option<Transfer> {
        let transfer = self.places.get_mut(place as usize)?.take()?;
        self.free.push(place);
        Some(transfer)
    }

    pub(super) fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }
}
