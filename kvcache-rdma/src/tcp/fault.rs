//! Why a connection ended.

use std::io;

use kvcache_wire::DecodeError;

/// The reason, as it is counted.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
#[non_exhaustive]
pub enum FaultReason {
    /// The name does not resolve, or nobody listens there.
    Unreachable,
    /// No connection, or no answer to the hello, in time.
    Timeout,
    /// The server wants another token.
    Unauthorized,
    /// The server takes no more connections, or is shutting down.
    Unavailable,
    /// The TLS handshake failed, or a record cannot be read.
    Tls,
    /// The peer closed it, or the network did.
    Lost,
    /// The peer sent what no cache server sends.
    Malformed,
    /// Nothing moved for too long while answers were due.
    Stalled,
    /// A stock server refused a value while it was being sent, after which it takes the rest of it for requests.
    StockRefusal,
    /// A value that nobody waits for any more was too large to be copied out of its memory.
    Abandoned,
    /// RDMA cannot be used: no library, no device, or a server that serves none.
    Rdma,
}

impl FaultReason {
    /// Every reason, in counting order.
    pub const ALL: [Self; 11] = [
        Self::Unreachable,
        Self::Timeout,
        Self::Unauthorized,
        Self::Unavailable,
        Self::Tls,
        Self::Lost,
        Self::Malformed,
        Self::Stalled,
        Self::StockRefusal,
        Self::Abandoned,
        Self::Rdma,
    ];

    /// The name in metrics and documents.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Timeout => "timeout",
            Self::Unauthorized => "unauthorized",
            Self::Unavailable => "unavailable",
            Self::Tls => "tls",
            Self::Lost => "lost",
            Self::Malformed => "malformed",
            Self::Stalled => "stalled",
            Self::StockRefusal => "stock_refusal",
            Self::Abandoned => "abandoned",
            Self::Rdma => "rdma",
        }
    }

    /// Whether it is this side that wanted the end, and the server is as good as before.
    pub(crate) fn is_ours(self) -> bool {
        matches!(self, Self::StockRefusal | Self::Abandoned)
    }
}

/// A reason with its details.
#[derive(Clone, Debug)]
pub(crate) struct Fault {
    pub(crate) reason: FaultReason,
    pub(crate) text: String,
}

impl Fault {
    pub(crate) fn new(reason: FaultReason, text: impl Into<String>) -> Self {
        Self { reason, text: text.into() }
    }
}

impl From<DecodeError> for Fault {
    fn from(error: DecodeError) -> Self {
        Self::new(FaultReason::Malformed, error.to_string())
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        let reason = match error.kind() {
            io::ErrorKind::InvalidData => FaultReason::Tls,
            _ => FaultReason::Lost,
        };
        Self::new(reason, error.to_string())
    }
}
