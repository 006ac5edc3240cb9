//! The bodies of requests that are flatbuffers tables.

use super::flatbuffer_builder::Builder;
use super::flatbuffer_table::{Keys, Table};
use crate::{DecodeError, EncodeError};

/// What a receiver accepts of one request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Caps {
    /// Keys of one request.
    pub keys_max: u32,
    /// Bytes of one key.
    pub key_bytes_max: u32,
}

impl Default for Caps {
    /// 65,536 keys of 1,024 bytes: several times what engines ask, and at most 64 MiB to hash for one request.
    fn default() -> Self {
        Self { keys_max: 65_536, key_bytes_max: 1024 }
    }
}

/// The body of match and delete: a table of keys.
///
/// # Errors
///
/// Keys that together do not fit in the 2 GiB of a table.
pub fn encode_keys<K: AsRef<[u8]>>(keys: &[K]) -> Result<Vec<u8>, EncodeError> {
    let mut builder = Builder::with_capacity(checked_capacity(keys)?);
    let keys = builder.strings(keys);
    builder.start_table();
    builder.field_offset(0, keys);
    Ok(builder.finish())
}

/// Reads the body of match and delete.
///
/// # Errors
///
/// Anything that a conforming writer would not write, and more than `caps` allows.
pub fn decode_keys(body: &[u8], caps: Caps) -> Result<Keys<'_>, DecodeError> {
    Table::root(body)?.strings(0, caps.keys_max, caps.key_bytes_max)
}

/// What a TCP payload request does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PayloadOp {
    /// `P`: the value's bytes follow the body at once.
    Put {
        /// Their number.
        value_bytes: u32,
    },
    /// `G`: answered with a [`GetReply`](super::GetReply).
    Get,
}

/// The body of [`Op::Payload`](super::Op::Payload).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TcpPayloadRequest<'a> {
    /// The value's key.
    pub key: &'a [u8],
    /// Put or get.
    pub op: PayloadOp,
}

impl<'a> TcpPayloadRequest<'a> {
    /// The table as the stock client writes it.
    ///
    /// # Errors
    ///
    /// A value of 2 GiB or more, or a key that does not fit a table.
    pub fn encode(&self) -> Result<Vec<u8>, EncodeError> {
        let (code, value_bytes) = match self.op {
            PayloadOp::Put { value_bytes } => (b'P', value_bytes),
            PayloadOp::Get => (b'G', 0),
        };
        EncodeError::check("the value's length in bytes", value_bytes as usize, i32::MAX as u64)?;
        let mut builder = Builder::with_capacity(checked_capacity(&[self.key])?);
        let key = builder.string(self.key);
        builder.start_table();
        builder.field(1, value_bytes.to_le_bytes());
        builder.field_offset(0, key);
        builder.field(2, [code]);
        Ok(builder.finish())
    }

    /// Reads the table.
    ///
    /// # Errors
    ///
    /// Anything that a conforming writer would not write, an operation other than put and get, a negative length, and a
    /// key longer than `caps` allows.
    pub fn decode(body: &'a [u8], caps: Caps) -> Result<Self, DecodeError> {
        let table = Table::root(body)?;
        let key = table.string(0, caps.key_bytes_max, "the key")?;
        let length = i32::from_le_bytes(table.field(1, "value_length")?);
        let op = match table.field::<1>(2, "op")? {
            [b'P'] => PayloadOp::Put {
                value_bytes: u32::try_from(length)
                    .map_err(|_| DecodeError::BadValue { what: "value_length", found: length.into() })?,
            },
            [b'G'] => PayloadOp::Get,
            [code] => return Err(DecodeError::UnknownCode { what: "payload operation", code: code.into() }),
        };
        Ok(Self { key, op })
    }
}

/// What an RDMA request does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RemoteOp {
    /// `W`: the server reads the client's memory and stores it under the keys.
    Store,
    /// `A`: the server writes the values of the keys into the client's memory.
    Load,
}

/// An RDMA request: the whole message of one SEND, without a [`Header`](super::Header).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RemoteMetaRequest<'a> {
    /// Keys, as many as there are addresses.
    pub keys: Keys<'a>,
    /// Bytes of each of the client's blocks.
    pub block_bytes: u32,
    /// Key of the client's memory region.
    pub remote_key: u32,
    /// Where the client's blocks lie in its address space.
    pub addresses: Addresses<'a>,
    /// Which way the bytes go.
    pub op: RemoteOp,
}

impl<'a> RemoteMetaRequest<'a> {
    /// The table as the stock client writes it: `addresses[i]` is the block of `keys[i]`.
    ///
    /// # Errors
    ///
    /// More keys than addresses or the reverse, blocks of 2 GiB or more, or a table that would exceed 2 GiB.
    pub fn encode<K: AsRef<[u8]>>(
        op: RemoteOp,
        keys: &[K],
        addresses: &[u64],
        block_bytes: u32,
        remote_key: u32,
    ) -> Result<Vec<u8>, EncodeError> {
        EncodeError::check("the length of a block in bytes", block_bytes as usize, i32::MAX as u64)?;
        if keys.len() != addresses.len() {
            let (found, max) = (addresses.len() as u64, keys.len() as u64);
            return Err(EncodeError { what: "the number of addresses", found, max });
        }
        let mut builder = Builder::with_capacity(checked_capacity(keys)? + 8 * addresses.len());
        let keys = builder.strings(keys);
        let addresses = builder.u64s(addresses.iter().copied());
        builder.start_table();
        builder.field_offset(3, addresses);
        builder.field(2, remote_key.to_le_bytes());
        builder.field(1, block_bytes.to_le_bytes());
        builder.field_offset(0, keys);
        builder.field(4, [if op == RemoteOp::Store { b'W' } else { b'A' }]);
        Ok(builder.finish())
    }

    /// Reads the table.
    ///
    /// # Errors
    ///
    /// Anything that a conforming writer would not write, an unknown operation, a negative block size, as well as
    /// different numbers of keys and addresses, and more than `caps` allows.
    pub fn decode(message: &'a [u8], caps: Caps) -> Result<Self, DecodeError> {
        let table = Table::root(message)?;
        let keys = table.strings(0, caps.keys_max, caps.key_bytes_max)?;
        let block_bytes = i32::from_le_bytes(table.field(1, "block_size")?);
        let block_bytes = u32::try_from(block_bytes)
            .map_err(|_| DecodeError::BadValue { what: "block_size", found: block_bytes.into() })?;
        let addresses = Addresses { bytes: table.u64s(3, caps.keys_max, "remote_addrs")? };
        let op = match table.field::<1>(4, "op")? {
            [b'W'] => RemoteOp::Store,
            [b'A'] => RemoteOp::Load,
            [code] => return Err(DecodeError::UnknownCode { what: "RDMA operation", code: code.into() }),
        };
        if keys.len() != addresses.len() {
            let (left, right) = (keys.len() as u64, addresses.len() as u64);
            return Err(DecodeError::Mismatch { what: "the numbers of keys and addresses", left, right });
        }
        let remote_key = u32::from_le_bytes(table.field(2, "rkey")?);
        Ok(Self { keys, block_bytes, remote_key, addresses, op })
    }
}

/// Addresses of an RDMA request, still where they arrived.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Addresses<'a> {
    bytes: &'a [u8],
}

impl<'a> Addresses<'a> {
    /// Number of addresses.
    pub fn len(&self) -> usize {
        self.bytes.len() / 8
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The addresses in the order of the request.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = u64> + ExactSizeIterator + 'a {
        self.bytes.as_chunks::<8>().0.iter().map(|bytes| u64::from_le_bytes(*bytes))
    }
}

impl std::fmt::Debug for Addresses<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// An upper bound of the bytes of a table with these keys: offset, length, terminator and padding of each.
fn checked_capacity<K: AsRef<[u8]>>(keys: &[K]) -> Result<usize, EncodeError> {
    let bytes = keys.iter().map(|key| key.as_ref().len().saturating_add(12)).fold(128, usize::saturating_add);
    // Addresses are smaller than what the bound adds for each key, so a quarter of the format's limit is safe.
    EncodeError::check("the length of all keys in bytes", bytes, i32::MAX as u64 / 4)?;
    Ok(bytes)
}
