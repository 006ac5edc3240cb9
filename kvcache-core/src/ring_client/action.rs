//! What the client wants done, and what it is told.

use std::time::Duration;

use crate::remote::{RemoteFailure, RemoteKey, RemoteOp};

/// Names a server for as long as the client lives; whoever does the I/O chooses it, and gives a member that left and came
/// back the same one or another.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ServerId(pub u32);

/// Names a request; never used twice.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct RequestId(pub u64);

/// What a request asks of a server.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum RequestOp {
    /// To write values into memory here.
    Get,
    /// To keep values.
    Put,
    /// To forget values.
    Delete,
    /// Whether it has values.
    Exists,
    /// Whether it answers at all: as [`Exists`](Self::Exists), of one name that nobody uses.
    Probe,
}

impl From<RemoteOp> for RequestOp {
    fn from(op: RemoteOp) -> Self {
        match op {
            RemoteOp::Get => Self::Get,
            RemoteOp::Put => Self::Put,
            RemoteOp::Delete => Self::Delete,
        }
    }
}

/// One value of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Item {
    /// Its name.
    pub key: RemoteKey,
    /// Memory to read (put) or write (get); 0 where there is none.
    pub address: usize,
    /// Its length.
    pub bytes: usize,
}

/// Something to do. The order of actions matters.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    /// Send a request. Each of its items ends once, through [`ItemEnd`] or with the whole request.
    Send {
        /// To whom.
        server: ServerId,
        /// Names it.
        request: RequestId,
        /// What is asked.
        op: RequestOp,
        /// Of which values; never none.
        items: Vec<Item>,
        /// When it will be abandoned, on the clock of the inputs.
        deadline: Duration,
    },
    /// Nobody waits any more. What has not ended must end as soon as its memory is out of use, in whatever way.
    Abandon {
        /// Where it was sent.
        server: ServerId,
        /// The request.
        request: RequestId,
        /// One of its items, by position, or all that have not ended.
        item: Option<u32>,
    },
    /// The server is no member any more and nothing is in flight there: its connections can go.
    Retire {
        /// The server.
        server: ServerId,
    },
}

/// How one item ended. Its memory is out of use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ItemResult {
    /// Moved and verified, forgotten, or present.
    Done,
    /// The server does not have it.
    Missing,
    /// Neither.
    Failed(RemoteFailure),
}

/// The end of one item of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ItemEnd {
    /// The request.
    pub request: RequestId,
    /// The item's position in it.
    pub item: u32,
    /// How it ended.
    pub result: ItemResult,
}

/// What happened to a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ConnectionFault {
    /// It could not be made, or was refused: to try again at once is in vain.
    Refused,
    /// It was there and broke.
    Lost,
}
