//! What a server answers on TCP: a status, and after a good one mostly a number.

use crate::{DecodeError, Status};

/// Bytes of a status alone: every refusal, and the answer to a put.
pub const STATUS_BYTES: usize = 4;
/// Bytes of a status with a number: the answers to exists, match, delete, and the head of the answer to a get.
pub const REPLY_BYTES: usize = 8;

/// A status with a number.
pub fn reply(status: Status, number: i32) -> [u8; REPLY_BYTES] {
    let [a, b, c, d] = status.0.to_le_bytes();
    let [e, f, g, h] = number.to_le_bytes();
    [a, b, c, d, e, f, g, h]
}

/// The status that every answer begins with.
pub fn status_from_reply(bytes: [u8; STATUS_BYTES]) -> Status {
    Status(i32::from_le_bytes(bytes))
}

/// Reads the number in the answer to exists: the stock server says 0 for "it is there".
///
/// # Errors
///
/// A number that is neither 0 nor 1: the stream is out of step.
pub fn exists_from_reply(number: i32) -> Result<bool, DecodeError> {
    match number {
        0 => Ok(true),
        1 => Ok(false),
        found => Err(DecodeError::BadValue { what: "the answer to exists, 0 or 1,", found: found.into() }),
    }
}

/// The head of the answer to a get; the value follows.
///
/// For a key that is not there a stock server sends the status alone. A stock client waits for eight bytes, so that
/// it hangs; and on any status but 200, and on a length of 0, it dereferences null. The one answer that it survives is
/// [`MISSING`](Self::MISSING), a length below zero, on which it raises `ValueError` and keeps the connection.
/// So this is what our server sends, and what this decoder takes for "not there".
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GetReply {
    /// That many bytes of value follow, at least 1.
    Value {
        /// Length of the value.
        bytes: u32,
    },
    /// The key is not there; nothing follows.
    Missing,
}

impl GetReply {
    /// What our server sends to a stock client for a key that is not there.
    pub const MISSING: [u8; REPLY_BYTES] = [200, 0, 0, 0, 0xff, 0xff, 0xff, 0xff];

    /// Reads the four bytes after a good status.
    pub fn from_length(length: i32) -> Self {
        match u32::try_from(length) {
            Ok(bytes @ 1..) => Self::Value { bytes },
            _ => Self::Missing,
        }
    }

    /// The head as sent. A value of 2 GiB or more does not fit the protocol and is sent as missing.
    pub fn encode(self) -> [u8; REPLY_BYTES] {
        match self {
            Self::Value { bytes } => match i32::try_from(bytes) {
                Ok(length) => reply(Status::OK, length),
                Err(_) => Self::MISSING,
            },
            Self::Missing => Self::MISSING,
        }
    }
}
