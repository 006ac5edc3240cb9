//! The header of every frame.

use crate::reader::Reader;
use crate::{DecodeError, EncodeError, Status};

/// What a frame asks for or answers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum FrameOp {
    /// Is the server there?
    Ping = 1,
    /// Which keys are there? Counts as no use of them.
    Exists = 2,
    /// Values of keys.
    Get = 3,
    /// Stores values under keys.
    Put = 4,
    /// Deletes keys.
    Delete = 5,
    /// The server's counters.
    Stats = 6,
    /// Where values lie, for clients that have the pool mapped; they stay there until released, or for a while.
    Lease = 7,
    /// Where values may be written.
    Reserve = 8,
    /// Values were written: they are to be found from now on.
    Commit = 9,
    /// Leases, of values or of room, are given back. The one request without an answer.
    Release = 10,
    /// From the server only: this connection ends, the body says why as text.
    Close = 0x7f,
}

impl FrameOp {
    fn from_code(code: u8) -> Result<Self, DecodeError> {
        Ok(match code {
            1 => Self::Ping,
            2 => Self::Exists,
            3 => Self::Get,
            4 => Self::Put,
            5 => Self::Delete,
            6 => Self::Stats,
            7 => Self::Lease,
            8 => Self::Reserve,
            9 => Self::Commit,
            10 => Self::Release,
            0x7f => Self::Close,
            _ => return Err(DecodeError::UnknownCode { what: "frame operation", code: code.into() }),
        })
    }

    fn known_flags(self) -> u8 {
        match self {
            Self::Exists => flags::LEADING_ONLY,
            Self::Put => flags::VERIFY,
            _ => 0,
        }
    }
}

/// Flags of frames. Their meaning depends on the operation; a flag that the operation does not have is refused.
pub mod flags {
    /// Of exists, in request and answer: stop at the first key that is missing and count those before it.
    pub const LEADING_ONLY: u8 = 1;
    /// Of put: compare each value with its checksum before it is published.
    pub const VERIFY: u8 = 1;
}

/// What the sender of a frame decides; lengths and check follow from the body.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameHead {
    /// The operation.
    pub op: FrameOp,
    /// Whether this answers a request.
    pub is_answer: bool,
    /// See [`flags`].
    pub flags: u8,
    /// How the request as a whole ended; [`Status::OK`] in requests. On any other status the body is a reason in text.
    pub status: Status,
    /// Chosen by the client, repeated in the answer. A client may use an id again once it is answered.
    pub request_id: u64,
}

impl FrameHead {
    /// A request.
    pub fn request(op: FrameOp, flags: u8, request_id: u64) -> Self {
        Self { op, is_answer: false, flags, status: Status::OK, request_id }
    }

    /// The answer to this request.
    #[must_use]
    pub fn answer(self, status: Status) -> Self {
        let flags = if self.op == FrameOp::Exists { self.flags } else { 0 };
        Self { is_answer: true, flags, status, ..self }
    }
}

/// 32 bytes before every body.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameHeader {
    /// What the sender says.
    pub head: FrameHead,
    /// Bytes of the body. The sender may claim any number: cap it.
    pub body_bytes: u32,
    /// Covers header and body, see [`verify`](Self::verify).
    pub check: u32,
    /// Bytes that follow the body. The sender may claim any number: cap it.
    pub payload_bytes: u64,
}

impl FrameHeader {
    /// Bytes of a header.
    pub const BYTES: usize = 32;

    /// Reads a header.
    ///
    /// # Errors
    ///
    /// Another magic, an unknown operation or flag, or a request with a status. The connection must end: no later
    /// byte of the stream can be trusted.
    pub fn decode(bytes: &[u8; Self::BYTES]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new("a frame header", bytes);
        let magic = reader.u32()?;
        if magic != FRAME_MAGIC {
            return Err(DecodeError::BadMagic { what: "a frame", found: magic });
        }
        let code = reader.u8()?;
        let op = FrameOp::from_code(code & !ANSWER)?;
        let is_answer = code & ANSWER != 0;
        let flags = reader.u8()?;
        if flags & !op.known_flags() != 0 {
            return Err(DecodeError::UnknownCode { what: "frame flag", code: flags.into() });
        }
        let status = Status::from(reader.u16()?);
        if !is_answer && !status.is_ok() {
            return Err(DecodeError::BadValue {
                what: "the status of a request, 200,",
                found: status.0.into(),
            });
        }
        let head = FrameHead { op, is_answer, flags, status, request_id: reader.u64()? };
        Ok(Self { head, body_bytes: reader.u32()?, check: reader.u32()?, payload_bytes: reader.u64()? })
    }

    /// Compares header and body with the check that the sender made of them.
    ///
    /// A transport between us may have corrupted a length, an id or a key: without the check such a frame would be
    /// obeyed. Values have checksums of their own. Cost: a hash of the body.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Mismatch`]: the connection must end.
    pub fn verify(&self, body: &[u8]) -> Result<(), DecodeError> {
        if body.len() != self.body_bytes as usize {
            let (left, right) = (body.len() as u64, self.body_bytes.into());
            return Err(DecodeError::Mismatch { what: "the length of a frame's body", left, right });
        }
        let expected = check(&self.encode_unchecked(), body);
        if expected != self.check {
            let (left, right) = (expected.into(), self.check.into());
            return Err(DecodeError::Mismatch { what: "the check of a frame", left, right });
        }
        Ok(())
    }

    /// The header as sent, with the check as it is.
    pub fn encode(&self) -> [u8; Self::BYTES] {
        let mut bytes = self.encode_unchecked();
        bytes[CHECK_AT..CHECK_AT + 4].copy_from_slice(&self.check.to_le_bytes());
        bytes
    }

    /// The header with a check of zero: what the check is made of.
    fn encode_unchecked(&self) -> [u8; Self::BYTES] {
        let head = &self.head;
        let mut bytes = [0; Self::BYTES];
        bytes[0..4].copy_from_slice(&FRAME_MAGIC.to_le_bytes());
        bytes[4] = head.op as u8 | if head.is_answer { ANSWER } else { 0 };
        bytes[5] = head.flags;
        bytes[6..8].copy_from_slice(&head.status.to_u16().to_le_bytes());
        bytes[8..16].copy_from_slice(&head.request_id.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.body_bytes.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.payload_bytes.to_le_bytes());
        bytes
    }
}

/// Appends header and body of a frame to `out`; the payload is the caller's to send.
///
/// # Errors
///
/// What `write_body` says, or a body of 4 GiB or more; `out` is then as before.
pub fn write_frame(
    out: &mut Vec<u8>,
    head: FrameHead,
    payload_bytes: u64,
    write_body: impl FnOnce(&mut Vec<u8>) -> Result<(), EncodeError>,
) -> Result<(), EncodeError> {
    let start = out.len();
    let body_start = start + FrameHeader::BYTES;
    out.resize(body_start, 0);
    let written = write_body(out).and_then(|()| {
        EncodeError::check("the length of a frame's body", out.len() - body_start, u32::MAX.into())
    });
    if let Err(error) = written {
        out.truncate(start);
        return Err(error);
    }
    let body = &out[body_start..];
    let mut header = FrameHeader { head, body_bytes: body.len() as u32, check: 0, payload_bytes };
    header.check = check(&header.encode_unchecked(), body);
    out[start..body_start].copy_from_slice(&header.encode());
    Ok(())
}

/// The low half of XXH3-64 over header (check zero) and body: seeded with the header's hash, so that one pass over
/// each is enough.
fn check(header: &[u8; FrameHeader::BYTES], body: &[u8]) -> u32 {
    let seed = xxhash_rust::xxh3::xxh3_64(header);
    xxhash_rust::xxh3::xxh3_64_with_seed(body, seed) as u32
}

const FRAME_MAGIC: u32 = u32::from_le_bytes(*b"KVCf");
const ANSWER: u8 = 0x80;
const CHECK_AT: usize = 20;
