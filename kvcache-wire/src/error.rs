//! What can be wrong with bytes.

/// Bytes that no conforming peer would have sent, or that exceed a cap of this side.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The input ends before the thing does.
    #[error("{what} needs {wanted} bytes and {have} are there")]
    Truncated {
        /// What was read.
        what: &'static str,
        /// Bytes it needs, as far as it is known.
        wanted: usize,
        /// Bytes that are left.
        have: usize,
    },
    /// Bytes are left over after the end of the thing.
    #[error("{bytes} bytes follow the end of {what}")]
    TrailingBytes {
        /// What was read.
        what: &'static str,
        /// Bytes left over.
        bytes: usize,
    },
    /// The first bytes are not those of this protocol.
    #[error(
        "{what} begins with {found:#010x}: the peer speaks another protocol or the stream is out of step"
    )]
    BadMagic {
        /// What was read.
        what: &'static str,
        /// The four bytes found, little-endian.
        found: u32,
    },
    /// A number that stands for an operation and is none.
    #[error("{what} {code:#04x} is unknown")]
    UnknownCode {
        /// What the code stands for.
        what: &'static str,
        /// The code.
        code: u32,
    },
    /// A count or a length is above what this side accepts.
    #[error("{what} is {found}, above the limit of {max}")]
    AboveLimit {
        /// What was counted.
        what: &'static str,
        /// The number found.
        found: u64,
        /// The limit.
        max: u64,
    },
    /// A field holds a value that makes no sense.
    #[error("{what} is {found}")]
    BadValue {
        /// The field.
        what: &'static str,
        /// Its value.
        found: i64,
    },
    /// Two parts that must agree do not.
    #[error("{what}: {left} and {right} differ")]
    Mismatch {
        /// What must agree.
        what: &'static str,
        /// One number.
        left: u64,
        /// The other.
        right: u64,
    },
    /// An offset of a flatbuffers table points outside of the buffer or of its table, or is not aligned.
    #[error("the offset of {what} at byte {at} is out of place")]
    BadOffset {
        /// What the offset leads to.
        what: &'static str,
        /// Where the offset, or what it leads to, lies.
        at: usize,
    },
    /// A flatbuffers field without which the request makes no sense is absent.
    #[error("the field {what} is missing")]
    MissingField {
        /// The field.
        what: &'static str,
    },
    /// A flatbuffers string without its terminator.
    #[error("the string at byte {at} does not end with a zero byte")]
    Unterminated {
        /// Where the string's length lies.
        at: usize,
    },
}

/// A request that the wire has no way to say.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{what} is {found}, and the protocol carries {max} at most")]
pub struct EncodeError {
    /// What is too large.
    pub what: &'static str,
    /// The number asked for.
    pub found: u64,
    /// What the protocol can carry.
    pub max: u64,
}

impl EncodeError {
    pub(crate) fn check(what: &'static str, found: usize, max: u64) -> Result<(), Self> {
        let found = found as u64;
        if found <= max { Ok(()) } else { Err(Self { what, found, max }) }
    }
}
