//! The bodies of answers: one outcome for each key of the request, in its order.

use super::batch::optional_checksum;
use crate::reader::Reader;
use crate::{DecodeError, Status};

/// Which keys are there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ExistsReply<'a> {
    /// To a request with [`LEADING_ONLY`](super::flags::LEADING_ONLY): so many from the first on.
    Leading(u32),
    /// To any other request: a bit for each key, lowest bit of the first byte first; unused bits are zero.
    Bits {
        /// Number of keys.
        count: u32,
        /// Their bits.
        bits: &'a [u8],
    },
}

impl<'a> ExistsReply<'a> {
    /// Appends the body that counts the leading keys.
    pub fn encode_leading(out: &mut Vec<u8>, leading: u32) {
        out.extend(leading.to_le_bytes());
    }

    /// Appends the body that answers for each key.
    pub fn encode_bits(out: &mut Vec<u8>, present: impl ExactSizeIterator<Item = bool>) {
        out.extend((present.len() as u32).to_le_bytes());
        let start = out.len();
        out.resize(start + present.len().div_ceil(8), 0);
        for (index, _) in present.enumerate().filter(|(_, present)| *present) {
            out[start + index / 8] |= 1 << (index % 8);
        }
    }

    /// Reads the body of the answer to a request with `keys` keys.
    ///
    /// # Errors
    ///
    /// Another number of keys than were asked for, lengths that disagree.
    pub fn decode(body: &'a [u8], leading_only: bool, keys: u32) -> Result<Self, DecodeError> {
        let mut reader = Reader::new("an answer to exists", body);
        let count = reader.u32()?;
        if leading_only {
            reader.finish()?;
            if count > keys {
                let (found, max) = (count.into(), keys.into());
                return Err(DecodeError::AboveLimit { what: "the number of leading keys", found, max });
            }
            return Ok(Self::Leading(count));
        }
        expect_count(count, keys)?;
        let bits = reader.slice(count.div_ceil(8) as usize)?;
        reader.finish()?;
        let unused = (8 - count % 8) % 8;
        match bits.last() {
            Some(last) if u32::from(*last) >> (8 - unused) != 0 => {
                Err(DecodeError::BadValue { what: "the unused bits of exists, 0,", found: (*last).into() })
            }
            _ => Ok(Self::Bits { count, bits }),
        }
    }

    /// Whether the key at `index` is there; `false` beyond the end, and beyond the leading keys.
    pub fn is_present(&self, index: usize) -> bool {
        match self {
            Self::Leading(leading) => index < *leading as usize,
            Self::Bits { count, bits } => {
                index < *count as usize
                    && bits.get(index / 8).is_some_and(|byte| byte >> (index % 8) & 1 == 1)
            }
        }
    }
}

/// What became of one key of a get.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GetOutcome {
    /// [`OK`](Status::OK): the value is part of the payload. Otherwise nothing is.
    pub status: Status,
    /// Length of the value; also where it was [`TOO_LARGE`](Status::TOO_LARGE) for the buffer. 0 where it is not there.
    pub value_bytes: u64,
    /// What the client that stored it said, if it did.
    pub checksum: Option<u64>,
}

impl GetOutcome {
    /// Bytes of an outcome.
    pub const BYTES: usize = 20;

    /// Nothing under this key, or nothing that can be sent.
    pub fn without_value(status: Status) -> Self {
        Self { status, value_bytes: 0, checksum: None }
    }

    /// Bytes of the payload that are this value.
    pub fn payload_bytes(&self) -> u64 {
        if self.status.is_ok() { self.value_bytes } else { 0 }
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend(self.status.to_u16().to_le_bytes());
        out.extend(u16::from(self.checksum.is_some()).to_le_bytes());
        out.extend(self.value_bytes.to_le_bytes());
        out.extend(self.checksum.unwrap_or(0).to_le_bytes());
    }

    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new("an outcome of a get", bytes);
        let (status, flags) = (Status::from(reader.u16()?), reader.u16()?);
        let value_bytes = reader.u64()?;
        let checksum = optional_checksum(reader.u64()?, flags)?;
        Ok(Self { status, value_bytes, checksum })
    }
}

/// The outcomes of a get, verified and still where they arrived.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GetReplies<'a> {
    outcomes: &'a [u8],
}

impl<'a> GetReplies<'a> {
    /// Appends the body.
    pub fn encode(out: &mut Vec<u8>, outcomes: &[GetOutcome]) {
        out.extend((outcomes.len() as u32).to_le_bytes());
        for outcome in outcomes {
            outcome.encode(out);
        }
    }

    /// Reads the body of the answer to a get of `keys` keys, with a payload of `payload_bytes` bytes.
    ///
    /// # Errors
    ///
    /// Another number of keys, lengths that disagree, values that together are not the payload.
    pub fn decode(body: &'a [u8], keys: u32, payload_bytes: u64) -> Result<Self, DecodeError> {
        let mut reader = Reader::new("an answer to a get", body);
        expect_count(reader.u32()?, keys)?;
        let outcomes = reader.slice(keys as usize * GetOutcome::BYTES)?;
        reader.finish()?;
        let mut sum = 0_u64;
        for outcome in outcomes.chunks_exact(GetOutcome::BYTES) {
            sum = sum.saturating_add(GetOutcome::decode(outcome)?.payload_bytes());
        }
        if sum != payload_bytes {
            let (left, right) = (sum, payload_bytes);
            return Err(DecodeError::Mismatch { what: "the values and the payload of a get", left, right });
        }
        Ok(Self { outcomes })
    }

    /// The outcomes in the order of the request.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = GetOutcome> + 'a {
        // Verified when the answer was read.
        let read =
            |bytes| GetOutcome::decode(bytes).unwrap_or_else(|_| GetOutcome::without_value(Status::INTERNAL));
        self.outcomes.chunks_exact(GetOutcome::BYTES).map(read)
    }
}

/// The outcomes of a put or a delete, verified and still where they arrived.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Statuses<'a> {
    codes: &'a [u8],
}

impl<'a> Statuses<'a> {
    /// Appends the body.
    pub fn encode(out: &mut Vec<u8>, statuses: &[Status]) {
        out.extend((statuses.len() as u32).to_le_bytes());
        for status in statuses {
            out.extend(status.to_u16().to_le_bytes());
        }
    }

    /// Reads the body of the answer to a request with `keys` keys.
    ///
    /// # Errors
    ///
    /// Another number of keys, lengths that disagree.
    pub fn decode(body: &'a [u8], keys: u32) -> Result<Self, DecodeError> {
        let mut reader = Reader::new("a list of statuses", body);
        expect_count(reader.u32()?, keys)?;
        let codes = reader.slice(keys as usize * 2)?;
        reader.finish()?;
        Ok(Self { codes })
    }

    /// The statuses in the order of the request.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Status> + 'a {
        self.codes.as_chunks::<2>().0.iter().map(|code| Status::from(u16::from_le_bytes(*code)))
    }
}

pub(super) fn expect_count(found: u32, keys: u32) -> Result<(), DecodeError> {
    if found == keys {
        return Ok(());
    }
    let (left, right) = (found.into(), keys.into());
    Err(DecodeError::Mismatch { what: "the number of answers and of keys", left, right })
}
