//! L2 as the core sees it: named values somewhere else, asked for in batches and never waited for.
//!
//! Two halves, as everywhere: the scheduler side asks what [is present](Presence), the worker side [moves](RemoteStore)
//! values between slots and servers. Both are completion based: what is submitted ends exactly once, whatever happens to
//! servers and networks, and a fault is a miss. Implementations are in other crates; the core does no I/O.

mod key;

pub use key::{RemoteKey, RemoteSpace, ValueHasher, value_checksum};

use std::time::{Duration, Instant};

use crate::BlockKey;

/// Which way a value goes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum RemoteOp {
    /// From a server into memory.
    Get,
    /// From memory to a server, replacing what is there.
    Put,
    /// Nowhere: every server that may hold it forgets it. Uses no memory; its address and bytes mean nothing.
    Delete,
}

/// One value to move.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RemoteTransfer {
    /// Names this transfer in its [`RemoteEnd`]; the caller's to choose, unique among those that have not ended.
    pub ticket: u64,
    /// The direction.
    pub op: RemoteOp,
    /// The value's name.
    pub key: RemoteKey,
    /// Address of the memory that is read (put) or written (get).
    pub address: usize,
    /// Its length. A value of another length than this is not a hit.
    pub bytes: usize,
}

/// Why a transfer did not happen.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum RemoteFailure {
    /// No server that could hold the value can be reached, or there is none.
    Unreachable,
    /// It did not end before its deadline.
    TimedOut,
    /// The bytes are not those that were put, or not as many.
    Corrupt,
    /// The server has no room for it or does not accept it.
    Refused,
    /// Too much is in flight already: it was not begun.
    Overloaded,
    /// The caller has no interest in it any more.
    Cancelled,
}

impl RemoteFailure {
    /// Every failure, in counting order.
    pub const ALL: [Self; 6] =
        [Self::Unreachable, Self::TimedOut, Self::Corrupt, Self::Refused, Self::Overloaded, Self::Cancelled];

    /// The name in metrics and documents.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::TimedOut => "timed_out",
            Self::Corrupt => "corrupt",
            Self::Refused => "refused",
            Self::Overloaded => "overloaded",
            Self::Cancelled => "cancelled",
        }
    }
}

/// How a transfer ended.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum RemoteOutcome {
    /// All bytes were moved, and after a get they are those that were put: their checksum was verified.
    Done,
    /// No server that should hold the value has it (get, delete).
    Missing,
    /// Neither. After a get the memory may hold anything.
    Failed(RemoteFailure),
}

/// The end of one transfer. Its memory is not touched any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RemoteEnd {
    /// As given.
    pub ticket: u64,
    /// How.
    pub outcome: RemoteOutcome,
}

/// Moves values between memory and servers. The worker side's half of L2.
///
/// Nothing but [`wait`](Self::wait) blocks, and no method does I/O on the caller's thread: an engine's thread calls them
/// in every step.
pub trait RemoteStore: Send + Sync {
    /// Begins transfers. Each ends exactly once, at the latest a little after `patience`: what cannot be begun ends as
    /// [`RemoteFailure::Overloaded`].
    ///
    /// # Safety
    /// The memory of each transfer must stay valid until its end was polled. Until then nobody else may write it, and if
    /// it is the target of a get nobody may read it.
    unsafe fn submit(&self, batch: &[RemoteTransfer], patience: Duration);

    /// Appends what ended since the last call, in any order.
    fn poll(&self, ended: &mut Vec<RemoteEnd>);

    /// Returns when there is something to poll, or after `timeout`; whether there is.
    fn wait(&self, timeout: Duration) -> bool;

    /// When what was last polled had arrived, where that is known: whoever polls may have been busy since.
    fn last_arrival(&self) -> Option<Instant> {
        None
    }

    /// The caller has no interest in these any more. They still end, as soon as their memory is out of use.
    fn cancel(&self, tickets: &[u64]);
}

/// What a question about presence found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PresenceAnswer {
    /// As given.
    pub question: u64,
    /// For each key of the question, whether every shard of its block is present. A server that cannot be asked has
    /// nothing.
    pub present: Vec<bool>,
}

/// Answers what is present. The scheduler side's half of L2: it needs no memory and no shard of its own.
pub trait Presence: Send {
    /// Names the shards of a block, one space for each: a block is present if all of them are. Answers to earlier
    /// questions still come.
    fn set_spaces(&mut self, spaces: &[RemoteSpace]);

    /// Begins a question. It is answered exactly once, at the latest a little after `patience`, with less than the truth
    /// if servers do not answer.
    fn ask(&mut self, question: u64, keys: &[BlockKey], patience: Duration);

    /// Appends the answers that came since the last call.
    fn poll(&mut self, answers: &mut Vec<PresenceAnswer>);

    /// Returns when there may be something to poll, at the latest after `timeout`; whether there may be. Nothing that must
    /// not block calls it.
    fn wait(&mut self, timeout: Duration) -> bool {
        // Without a way to be woken: looks again soon.
        std::thread::sleep(timeout.min(Duration::from_micros(100)));
        true
    }
}
