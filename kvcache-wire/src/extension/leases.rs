//! Leases: what a client on the server's host asks for in place of bytes.
//!
//! Such a client has the server's pool mapped. A lease of a value says where it lies and keeps it there for a while; a
//! lease of room says where a value may be written, and a commit makes it one. Lease ids are the server's, each used
//! once on a connection and good for it alone.

use super::batch::{ItemFields, optional_checksum};
use super::replies::expect_count;
use crate::reader::Reader;
use crate::{DecodeError, EncodeError, Status};

/// Where the value of one key lies, or why it has no lease.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LeasedValue {
    /// As in [`GetOutcome`](super::GetOutcome); the lease keeps the values whose status is 200.
    pub status: Status,
    /// Length of the value, 0 if there is none.
    pub value_bytes: u64,
    /// Made by the client that stored it.
    pub checksum: Option<u64>,
    /// Where it begins in the pool.
    pub offset_bytes: u64,
}

impl LeasedValue {
    /// Bytes in an answer.
    pub const BYTES: usize = 28;

    /// Nothing under this key, or nothing that can be leased.
    pub fn without_value(status: Status) -> Self {
        Self { status, value_bytes: 0, checksum: None, offset_bytes: 0 }
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend(self.status.to_u16().to_le_bytes());
        out.extend(u16::from(self.checksum.is_some()).to_le_bytes());
        out.extend(self.value_bytes.to_le_bytes());
        out.extend(self.checksum.unwrap_or(0).to_le_bytes());
        out.extend(self.offset_bytes.to_le_bytes());
    }

    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new("a leased value", bytes);
        let (status, flags) = (Status::from(reader.u16()?), reader.u16()?);
        let value_bytes = reader.u64()?;
        let checksum = optional_checksum(reader.u64()?, flags)?;
        Ok(Self { status, value_bytes, checksum, offset_bytes: reader.u64()? })
    }
}

/// One lease for all the values of a request, verified and still where it arrived.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LeasedValues<'a> {
    /// Names the lease.
    pub lease: u64,
    values: &'a [u8],
}

impl<'a> LeasedValues<'a> {
    /// Appends the body.
    pub fn encode(out: &mut Vec<u8>, lease: u64, values: &[LeasedValue]) {
        out.extend(lease.to_le_bytes());
        out.extend((values.len() as u32).to_le_bytes());
        for value in values {
            value.encode(out);
        }
    }

    /// Reads the body of the answer to a request with `keys` keys.
    ///
    /// # Errors
    ///
    /// Another number of keys, lengths that disagree, fields that make no sense.
    pub fn decode(body: &'a [u8], keys: u32) -> Result<Self, DecodeError> {
        let mut reader = Reader::new("an answer to a lease", body);
        let lease = reader.u64()?;
        expect_count(reader.u32()?, keys)?;
        let values = reader.slice(keys as usize * LeasedValue::BYTES)?;
        reader.finish()?;
        for value in values.chunks_exact(LeasedValue::BYTES) {
            LeasedValue::decode(value)?;
        }
        Ok(Self { lease, values })
    }

    /// The values in the order of the request.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = LeasedValue> + 'a {
        // Verified when the answer was read.
        let read = |bytes| LeasedValue::decode(bytes).unwrap_or(LeasedValue::without_value(Status::INTERNAL));
        self.values.chunks_exact(LeasedValue::BYTES).map(read)
    }
}

/// A list of numbers, verified and still where it arrived: lengths of values that want room, or leases to give back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Numbers<'a> {
    numbers: &'a [u8],
}

impl<'a> Numbers<'a> {
    /// Appends the body.
    ///
    /// # Errors
    ///
    /// 2^32 numbers or more.
    pub fn encode(out: &mut Vec<u8>, numbers: &[u64]) -> Result<(), EncodeError> {
        EncodeError::check("the length of a list", numbers.len(), u32::MAX.into())?;
        out.extend((numbers.len() as u32).to_le_bytes());
        for number in numbers {
            out.extend(number.to_le_bytes());
        }
        Ok(())
    }

    /// Reads the body of a request with at most `numbers_max` numbers.
    ///
    /// # Errors
    ///
    /// A count above `numbers_max`, lengths that disagree.
    pub fn decode(body: &'a [u8], numbers_max: u32) -> Result<Self, DecodeError> {
        let mut reader = Reader::new("a list of numbers", body);
        let count = reader.u32()?;
        if count > numbers_max {
            let (found, max) = (count.into(), numbers_max.into());
            return Err(DecodeError::AboveLimit { what: "the length of a list", found, max });
        }
        let numbers = reader.slice(count as usize * 8)?;
        reader.finish()?;
        Ok(Self { numbers })
    }

    /// The numbers in their order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = u64> + 'a {
        self.numbers.as_chunks::<8>().0.iter().map(|number| u64::from_le_bytes(*number))
    }
}

/// Where one value may be written, or why nowhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LeasedRoom {
    /// 200, or as in an answer to a put.
    pub status: Status,
    /// Names the lease; 0 without one.
    pub lease: u64,
    /// Where the room begins in the pool.
    pub offset_bytes: u64,
}

impl LeasedRoom {
    /// Bytes in an answer.
    pub const BYTES: usize = 18;

    /// No room.
    pub fn refused(status: Status) -> Self {
        Self { status, lease: 0, offset_bytes: 0 }
    }

    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new("leased room", bytes);
        Ok(Self { status: Status::from(reader.u16()?), lease: reader.u64()?, offset_bytes: reader.u64()? })
    }
}

/// The room for each value of a request, verified and still where it arrived.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LeasedRooms<'a> {
    rooms: &'a [u8],
}

impl<'a> LeasedRooms<'a> {
    /// Appends the body.
    pub fn encode(out: &mut Vec<u8>, rooms: &[LeasedRoom]) {
        out.extend((rooms.len() as u32).to_le_bytes());
        for room in rooms {
            out.extend(room.status.to_u16().to_le_bytes());
            out.extend(room.lease.to_le_bytes());
            out.extend(room.offset_bytes.to_le_bytes());
        }
    }

    /// Reads the body of the answer to a request for room for `values` values.
    ///
    /// # Errors
    ///
    /// Another number of values, lengths that disagree.
    pub fn decode(body: &'a [u8], values: u32) -> Result<Self, DecodeError> {
        let mut reader = Reader::new("an answer about room", body);
        expect_count(reader.u32()?, values)?;
        let rooms = reader.slice(values as usize * LeasedRoom::BYTES)?;
        reader.finish()?;
        Ok(Self { rooms })
    }

    /// The rooms in the order of the request.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = LeasedRoom> + 'a {
        // Cut into pieces of the right length when the answer was read.
        let read = |bytes| LeasedRoom::decode(bytes).unwrap_or(LeasedRoom::refused(Status::INTERNAL));
        self.rooms.chunks_exact(LeasedRoom::BYTES).map(read)
    }
}

/// A value that was written into leased room and is to be found under a key from now on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CommitItem {
    /// The room's lease. It ends with the commit, however that goes.
    pub lease: u64,
    /// What gets will return with the value, see [`checksum`](crate::checksum).
    pub checksum: u64,
}

impl ItemFields for CommitItem {
    const BYTES: usize = 16;

    fn write(&self, out: &mut Vec<u8>) {
        out.extend(self.lease.to_le_bytes());
        out.extend(self.checksum.to_le_bytes());
    }

    fn read(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new("an item of a commit", bytes);
        Ok(Self { lease: reader.u64()?, checksum: reader.u64()? })
    }
}
