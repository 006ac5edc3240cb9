//! The keys of a request: what they have in common once, then for each what differs.

use std::marker::PhantomData;

use crate::reader::Reader;
use crate::{DecodeError, EncodeError};

/// What a request says of each key besides its name.
pub trait ItemFields: Copy + PartialEq + std::fmt::Debug {
    /// Bytes of the fields.
    const BYTES: usize;

    /// Appends the fields.
    fn write(&self, out: &mut Vec<u8>);

    /// Reads the fields from exactly [`BYTES`](Self::BYTES) bytes.
    ///
    /// # Errors
    ///
    /// Values that make no sense.
    fn read(bytes: &[u8]) -> Result<Self, DecodeError>;
}

/// A key and nothing more: exists and delete.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Named;

impl ItemFields for Named {
    const BYTES: usize = 0;

    fn write(&self, _out: &mut Vec<u8>) {}

    fn read(_bytes: &[u8]) -> Result<Self, DecodeError> {
        Ok(Self)
    }
}

/// A value that is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GetItem {
    /// Bytes of the buffer that waits for it; a larger value is not sent. `u64::MAX` for any.
    pub value_bytes_max: u64,
}

impl ItemFields for GetItem {
    const BYTES: usize = 8;

    fn write(&self, out: &mut Vec<u8>) {
        out.extend(self.value_bytes_max.to_le_bytes());
    }

    fn read(bytes: &[u8]) -> Result<Self, DecodeError> {
        Ok(Self { value_bytes_max: Reader::new("an item of a get", bytes).u64()? })
    }
}

/// A value that is stored: its bytes are part of the payload, in the order of the items.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PutItem {
    /// Length of the value.
    pub value_bytes: u64,
    /// What gets will return with it, see [`checksum`](crate::checksum).
    pub checksum: Option<u64>,
}

impl ItemFields for PutItem {
    const BYTES: usize = 18;

    fn write(&self, out: &mut Vec<u8>) {
        out.extend(self.value_bytes.to_le_bytes());
        out.extend(self.checksum.unwrap_or(0).to_le_bytes());
        out.extend(u16::from(self.checksum.is_some()).to_le_bytes());
    }

    fn read(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new("an item of a put", bytes);
        let (value_bytes, checksum) = (reader.u64()?, reader.u64()?);
        let checksum = optional_checksum(checksum, reader.u16()?)?;
        Ok(Self { value_bytes, checksum })
    }
}

/// A checksum and the word of flags that says whether it is one.
pub(super) fn optional_checksum(checksum: u64, flags: u16) -> Result<Option<u64>, DecodeError> {
    match (flags, checksum) {
        (0, 0) => Ok(None),
        (1, checksum) => Ok(Some(checksum)),
        (0, _) => Err(DecodeError::BadValue { what: "an absent checksum, 0,", found: checksum as i64 }),
        (flags, _) => Err(DecodeError::UnknownCode { what: "item flag", code: flags.into() }),
    }
}

/// The keys of a request, verified and still where they arrived.
#[derive(Clone, Copy)]
pub struct Batch<'a, F> {
    prefix: &'a [u8],
    count: u32,
    items: &'a [u8],
    fields: PhantomData<F>,
}

impl<'a, F: ItemFields> Batch<'a, F> {
    /// Appends the body of a request.
    ///
    /// # Errors
    ///
    /// A prefix or suffix of 64 KiB or more, 2^32 items or more.
    pub fn encode<'k>(
        out: &mut Vec<u8>,
        prefix: &[u8],
        items: impl ExactSizeIterator<Item = (F, &'k [u8])>,
    ) -> Result<(), EncodeError> {
        EncodeError::check("the number of keys", items.len(), u32::MAX.into())?;
        EncodeError::check("the length of the prefix", prefix.len(), u16::MAX.into())?;
        out.extend((items.len() as u32).to_le_bytes());
        out.extend((prefix.len() as u16).to_le_bytes());
        out.extend([0; 2]);
        out.extend(prefix);
        for (fields, suffix) in items {
            EncodeError::check("the length of a key's suffix", suffix.len(), u16::MAX.into())?;
            fields.write(out);
            out.extend((suffix.len() as u16).to_le_bytes());
            out.extend(suffix);
        }
        Ok(())
    }

    /// Reads the body of a request with at most `keys_max` keys. Keys longer than the receiver takes are no error
    /// here: they get a status of their own.
    ///
    /// # Errors
    ///
    /// A count above `keys_max` or above what the body can hold, lengths that disagree, fields that make no sense.
    pub fn decode(body: &'a [u8], keys_max: u32) -> Result<Self, DecodeError> {
        let mut reader = Reader::new("a batch of keys", body);
        let count = reader.u32()?;
        let prefix_bytes = reader.u16()?;
        reader.zero_u16()?;
        if count > keys_max {
            let (found, max) = (count.into(), keys_max.into());
            return Err(DecodeError::AboveLimit { what: "the number of keys", found, max });
        }
        let prefix = reader.slice(prefix_bytes.into())?;
        let items = reader.rest();
        for _ in 0..count {
            next_item::<F>(&mut reader)?;
        }
        reader.finish()?;
        Ok(Self { prefix, count, items, fields: PhantomData })
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// Whether there is no key.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// What every key begins with.
    pub fn prefix(&self) -> &'a [u8] {
        self.prefix
    }

    /// The fields and the rest of the name of each key, in the order of the request.
    pub fn items(&self) -> Items<'a, F> {
        Items { reader: Reader::new("a batch of keys", self.items), left: self.count, fields: PhantomData }
    }
}

impl Batch<'_, PutItem> {
    /// The bytes of all values together, which the frame's payload must have; `None` if they exceed 64 bits.
    pub fn payload_bytes(&self) -> Option<u64> {
        self.items().try_fold(0_u64, |sum, (item, _)| sum.checked_add(item.value_bytes))
    }
}

impl<F: ItemFields> PartialEq for Batch<'_, F> {
    fn eq(&self, other: &Self) -> bool {
        self.prefix == other.prefix && self.items().eq(other.items())
    }
}

impl<F: ItemFields> std::fmt::Debug for Batch<'_, F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let suffixes = self.items().map(|(fields, suffix)| (fields, suffix.escape_ascii().to_string()));
        f.debug_struct("Batch")
            .field("prefix", &self.prefix.escape_ascii().to_string())
            .field("items", &suffixes.collect::<Vec<_>>())
            .finish()
    }
}

/// Iterator over the items of a [`Batch`].
#[derive(Clone, Debug)]
pub struct Items<'a, F> {
    reader: Reader<'a>,
    left: u32,
    fields: PhantomData<F>,
}

impl<'a, F: ItemFields> Iterator for Items<'a, F> {
    type Item = (F, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        // Verified when the batch was read, so there is always an item.
        next_item(&mut self.reader).ok()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left as usize, Some(self.left as usize))
    }
}

impl<F: ItemFields> ExactSizeIterator for Items<'_, F> {}

fn next_item<'a, F: ItemFields>(reader: &mut Reader<'a>) -> Result<(F, &'a [u8]), DecodeError> {
    let fields = F::read(reader.slice(F::BYTES)?)?;
    let suffix_bytes = reader.u16()?;
    Ok((fields, reader.slice(suffix_bytes.into())?))
}
