//! The header of every TCP request.

use crate::DecodeError;
use crate::reader::Reader;

/// What a TCP request asks for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Op {
    /// `E`: exchange of RDMA queue pairs; the body is a [`ConnectionInfo`](super::ConnectionInfo).
    Exchange,
    /// `C`: is a key there? The body is the key's bytes.
    Exists,
    /// `M`: index of the last key of a list that is there; the body is a table of keys.
    Match,
    /// `X`: deletes keys; the body is a table of keys.
    Delete,
    /// `L`: put or get over TCP; the body is a [`TcpPayloadRequest`](super::TcpPayloadRequest).
    Payload,
    /// `H`: the hello of our [extension](crate::extension). Stock servers do not know it.
    Hello,
    /// Anything else: answered with [`BAD_REQUEST`](crate::Status::BAD_REQUEST).
    Unknown(u8),
}

impl Op {
    /// The byte on the wire.
    pub const fn code(self) -> u8 {
        match self {
            Self::Exchange => b'E',
            Self::Exists => b'C',
            Self::Match => b'M',
            Self::Delete => b'X',
            Self::Payload => b'L',
            Self::Hello => b'H',
            Self::Unknown(code) => code,
        }
    }

    /// The operation of a byte on the wire.
    pub const fn from_code(code: u8) -> Self {
        match code {
            b'E' => Self::Exchange,
            b'C' => Self::Exists,
            b'M' => Self::Match,
            b'X' => Self::Delete,
            b'L' => Self::Payload,
            b'H' => Self::Hello,
            other => Self::Unknown(other),
        }
    }
}

/// Nine bytes: magic, operation, length of the body.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// What is asked for.
    pub op: Op,
    /// Bytes that follow, a payload after the body not counted. The sender may claim any number: cap it.
    pub body_bytes: u32,
}

impl Header {
    /// Bytes of a header.
    pub const BYTES: usize = 9;
    /// The first four bytes, little-endian.
    pub const MAGIC: u32 = 0xdead_beef;

    /// The header as sent.
    pub fn encode(self) -> [u8; Self::BYTES] {
        let [a, b, c, d] = Self::MAGIC.to_le_bytes();
        let [l0, l1, l2, l3] = self.body_bytes.to_le_bytes();
        [a, b, c, d, self.op.code(), l0, l1, l2, l3]
    }

    /// Reads a header.
    ///
    /// # Errors
    ///
    /// [`DecodeError::BadMagic`]: no later byte of the stream can be trusted, so the connection must end.
    pub fn decode(bytes: &[u8; Self::BYTES]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new("a request header", bytes);
        let magic = reader.u32()?;
        if magic != Self::MAGIC {
            return Err(DecodeError::BadMagic { what: "a request header", found: magic });
        }
        Ok(Self { op: Op::from_code(reader.u8()?), body_bytes: reader.u32()? })
    }
}
