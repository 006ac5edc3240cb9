//! Requests in flight, and everything that waits for a moment.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use super::action::{RequestId, RequestOp, ServerId};
use crate::remote::RemoteFailure;

/// Whose an item of a request is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Owner {
    /// The transfer at this place.
    Transfer(u32),
    /// A name of a question, by position.
    Name {
        /// The question.
        question: u64,
        /// The block's index times the number of spaces, plus the index of the space.
        position: u32,
    },
    /// Nobody's any more, or a probe's.
    Nobody,
}

#[derive(Debug)]
pub(super) struct Request {
    pub(super) server: ServerId,
    pub(super) op: RequestOp,
    /// Owner and bytes of each item that has not ended.
    pub(super) items: Vec<Option<(Owner, usize)>>,
    /// How many have not.
    pub(super) left: usize,
    pub(super) sent: Duration,
    pub(super) deadline: Duration,
    /// Why nobody waits for it any more.
    pub(super) abandoned: Option<RemoteFailure>,
    /// Whether any answer has come.
    pub(super) answered: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Timer {
    /// The request's time is up.
    Request(RequestId),
    /// The server may have been silent for too long.
    Silence(ServerId),
    /// The server is to be probed.
    Probe(ServerId),
}

#[derive(Debug, Default)]
pub(super) struct Requests {
    open: HashMap<RequestId, Request>,
    next: u64,
    timers: BTreeSet<(Duration, Timer)>,
}

impl Requests {
    pub(super) fn begin(&mut self, request: Request) -> RequestId {
        self.next += 1;
        let id = RequestId(self.next);
        self.timers.insert((request.deadline, Timer::Request(id)));
        self.open.insert(id, request);
        id
    }

    pub(super) fn get_mut(&mut self, id: RequestId) -> Option<&mut Request> {
        self.open.get_mut(&id)
    }

    pub(super) fn server_unless_abandoned(&self, id: RequestId) -> Option<ServerId> {
        self.open.get(&id).filter(|request| request.abandoned.is_none()).map(|request| request.server)
    }

    pub(super) fn remove(&mut self, id: RequestId) -> Option<Request> {
        let request = self.open.remove(&id)?;
        self.timers.remove(&(request.deadline, Timer::Request(id)));
        Some(request)
    }

    pub(super) fn set_timer(&mut self, at: Duration, timer: Timer) {
        self.timers.insert((at, timer));
    }

    pub(super) fn next_timer(&self) -> Option<Duration> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Takes one timer whose moment has come.
    pub(super) fn take_due(&mut self, now: Duration) -> Option<Timer> {
        let due = *self.timers.first().filter(|(at, _)| *at <= now)?;
        self.timers.remove(&due);
        Some(due.1)
    }
}
