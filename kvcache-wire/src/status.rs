//! Status codes, in InfiniStore's numbers and ours.

use std::fmt;

/// How an operation ended. The wire may carry any number; the names are those that this library knows.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(transparent)]
pub struct Status(pub i32);

impl Status {
    /// Finished as asked.
    pub const OK: Self = Self(200);
    /// Taken, not finished. Stock servers up to 0.2.22 used it.
    pub const ACCEPTED: Self = Self(202);
    /// The request makes no sense to the server.
    pub const BAD_REQUEST: Self = Self(400);
    /// The token is missing or wrong, or this server takes requests with a token only.
    pub const UNAUTHORIZED: Self = Self(401);
    /// No such key.
    pub const NOT_FOUND: Self = Self(404);
    /// Try again. Unused by today's stock servers.
    pub const RETRY: Self = Self(408);
    /// The value is larger than the pool takes, or than the reader's buffer. Ours.
    pub const TOO_LARGE: Self = Self(413);
    /// The value is not the one that its checksum was made of. Ours.
    pub const CHECKSUM_MISMATCH: Self = Self(422);
    /// No version of the extension in common. Ours.
    pub const VERSION_UNSUPPORTED: Self = Self(426);
    /// Something on the server failed.
    pub const INTERNAL: Self = Self(500);
    /// The server cannot serve this now: shutting down, too many connections, or no RDMA device.
    pub const UNAVAILABLE: Self = Self(503);
    /// No room, and nothing that could be evicted.
    pub const OUT_OF_MEMORY: Self = Self(507);

    /// Whether the operation did what was asked.
    #[inline]
    pub fn is_ok(self) -> bool {
        self == Self::OK
    }

    /// The code as the extension's frames carry it. Codes that do not fit are internal errors there.
    #[inline]
    pub fn to_u16(self) -> u16 {
        u16::try_from(self.0).unwrap_or(500)
    }

    fn name(self) -> Option<&'static str> {
        Some(match self {
            Self::OK => "ok",
            Self::ACCEPTED => "accepted",
            Self::BAD_REQUEST => "bad request",
            Self::UNAUTHORIZED => "unauthorized",
            Self::NOT_FOUND => "not found",
            Self::RETRY => "retry",
            Self::TOO_LARGE => "too large",
            Self::CHECKSUM_MISMATCH => "checksum mismatch",
            Self::VERSION_UNSUPPORTED => "version unsupported",
            Self::INTERNAL => "internal error",
            Self::UNAVAILABLE => "unavailable",
            Self::OUT_OF_MEMORY => "out of memory",
            _ => return None,
        })
    }
}

impl From<u16> for Status {
    fn from(code: u16) -> Self {
        Self(i32::from(code))
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => write!(f, "{} {name}", self.0),
            None => write!(f, "{}", self.0),
        }
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
