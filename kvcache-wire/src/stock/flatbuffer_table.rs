//! Reads flatbuffers tables that a stranger wrote: every step checks that it stays within the buffer.
//!
//! The layout is the writer's choice, so nothing but the format's rules is assumed: offsets lie anywhere, fields in
//! any order, several offsets may lead to one string.

use crate::DecodeError;

/// The root table of a buffer, its vtable verified.
#[derive(Clone, Copy, Debug)]
pub(super) struct Table<'a> {
    buffer: &'a [u8],
    at: usize,
    table_bytes: usize,
    vtable: &'a [u8],
}

impl<'a> Table<'a> {
    pub(super) fn root(buffer: &'a [u8]) -> Result<Self, DecodeError> {
        // Offsets are 32 bits wide and half of that is the format's limit: above it sums could wrap on a peer.
        if buffer.len() > i32::MAX as usize {
            return Err(DecodeError::AboveLimit {
                what: "the length of a table's buffer",
                found: buffer.len() as u64,
                max: i32::MAX as u64,
            });
        }
        let at = follow(buffer, 0, "the root table")?;
        let to_vtable = i32::from_le_bytes(array(buffer, at, "the root table")?);
        let out_of_place = DecodeError::BadOffset { what: "the vtable", at };
        let vtable_at = usize::try_from(at as i64 - i64::from(to_vtable)).map_err(|_| out_of_place)?;
        if !vtable_at.is_multiple_of(2) {
            return Err(out_of_place);
        }
        let vtable_bytes = usize::from(u16_at(buffer, vtable_at, "the vtable")?);
        let table_bytes = usize::from(u16_at(buffer, vtable_at + 2, "the vtable")?);
        if vtable_bytes < 4 || !vtable_bytes.is_multiple_of(2) {
            return Err(DecodeError::BadValue { what: "the vtable's length", found: vtable_bytes as i64 });
        }
        let vtable = slice(buffer, vtable_at, vtable_bytes, "the vtable")?;
        if table_bytes < 4 {
            return Err(DecodeError::BadValue { what: "the table's length", found: table_bytes as i64 });
        }
        slice(buffer, at, table_bytes, "the root table")?;
        Ok(Self { buffer, at, table_bytes, vtable })
    }

    /// Position of the field in `slot`, or `None` where the writer has left it out.
    fn position(&self, slot: usize, bytes: usize, what: &'static str) -> Result<Option<usize>, DecodeError> {
        let Some(entry) = self.vtable.get(4 + 2 * slot..6 + 2 * slot) else { return Ok(None) };
        let offset = usize::from(u16_at(entry, 0, what)?);
        if offset == 0 {
            return Ok(None);
        }
        let at = self.at + offset;
        if offset < 4 || offset + bytes > self.table_bytes || !at.is_multiple_of(bytes) {
            return Err(DecodeError::BadOffset { what, at });
        }
        Ok(Some(at))
    }

    /// A field of `N` bytes; absent means zero.
    pub(super) fn field<const N: usize>(
        &self,
        slot: usize,
        what: &'static str,
    ) -> Result<[u8; N], DecodeError> {
        match self.position(slot, N, what)? {
            Some(at) => array(self.buffer, at, what),
            None => Ok([0; N]),
        }
    }

    fn reference(&self, slot: usize, what: &'static str) -> Result<usize, DecodeError> {
        let at = self.position(slot, 4, what)?.ok_or(DecodeError::MissingField { what })?;
        follow(self.buffer, at, what)
    }

    pub(super) fn string(
        &self,
        slot: usize,
        bytes_max: u32,
        what: &'static str,
    ) -> Result<&'a [u8], DecodeError> {
        string(self.buffer, self.reference(slot, what)?, bytes_max, what)
    }

    /// The elements of a vector, `element` bytes each.
    fn vector(
        &self,
        slot: usize,
        element: usize,
        count_max: u32,
        what: &'static str,
    ) -> Result<(usize, u32), DecodeError> {
        let at = self.reference(slot, what)?;
        let count = u32::from_le_bytes(array(self.buffer, at, what)?);
        if count > count_max {
            return Err(DecodeError::AboveLimit { what, found: count.into(), max: count_max.into() });
        }
        let start = at + 4;
        if count > 0 && !start.is_multiple_of(element) {
            return Err(DecodeError::BadOffset { what, at });
        }
        slice(self.buffer, start, count as usize * element, what)?;
        Ok((start, count))
    }

    pub(super) fn strings(
        &self,
        slot: usize,
        count_max: u32,
        bytes_max: u32,
    ) -> Result<Keys<'a>, DecodeError> {
        let (start, count) = self.vector(slot, 4, count_max, "keys")?;
        let keys = Keys { buffer: self.buffer, start, count };
        for index in 0..count as usize {
            let at = follow(self.buffer, start + 4 * index, "a key")?;
            string(self.buffer, at, bytes_max, "a key")?;
        }
        Ok(keys)
    }

    /// The bytes of a vector of 64-bit numbers.
    pub(super) fn u64s(
        &self,
        slot: usize,
        count_max: u32,
        what: &'static str,
    ) -> Result<&'a [u8], DecodeError> {
        let (start, count) = self.vector(slot, 8, count_max, what)?;
        slice(self.buffer, start, count as usize * 8, what)
    }
}

/// The keys of a request, verified and still where they arrived.
#[derive(Clone, Copy)]
pub struct Keys<'a> {
    buffer: &'a [u8],
    start: usize,
    count: u32,
}

impl<'a> Keys<'a> {
    /// Number of keys.
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// Whether there is no key.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The key at `index`, if there are as many. O(1).
    pub fn get(&self, index: usize) -> Option<&'a [u8]> {
        if index >= self.len() {
            return None;
        }
        let at = follow(self.buffer, self.start + 4 * index, "a key").ok()?;
        string(self.buffer, at, u32::MAX, "a key").ok()
    }

    /// The keys in the order of the request.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &'a [u8]> + ExactSizeIterator {
        let keys = *self;
        // Every index below the count was verified when the table was read.
        (0..self.len()).map(move |index| keys.get(index).unwrap_or_default())
    }
}

impl PartialEq for Keys<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for Keys<'_> {}

impl std::fmt::Debug for Keys<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter().map(|key| key.escape_ascii().to_string())).finish()
    }
}

/// Where the offset at `at` leads; four bytes are there.
fn follow(buffer: &[u8], at: usize, what: &'static str) -> Result<usize, DecodeError> {
    let offset = u32::from_le_bytes(array(buffer, at, what)?) as usize;
    let target = at.checked_add(offset).ok_or(DecodeError::BadOffset { what, at })?;
    if offset < 4 || !target.is_multiple_of(4) || buffer.len() < 4 || target > buffer.len() - 4 {
        return Err(DecodeError::BadOffset { what, at });
    }
    Ok(target)
}

fn string<'a>(
    buffer: &'a [u8],
    at: usize,
    bytes_max: u32,
    what: &'static str,
) -> Result<&'a [u8], DecodeError> {
    let bytes = u32::from_le_bytes(array(buffer, at, what)?);
    if bytes > bytes_max {
        return Err(DecodeError::AboveLimit { what, found: bytes.into(), max: bytes_max.into() });
    }
    let text = slice(buffer, at + 4, bytes as usize, what)?;
    match buffer.get(at + 4 + bytes as usize) {
        Some(0) => Ok(text),
        _ => Err(DecodeError::Unterminated { at }),
    }
}

fn u16_at(buffer: &[u8], at: usize, what: &'static str) -> Result<u16, DecodeError> {
    array(buffer, at, what).map(u16::from_le_bytes)
}

fn array<const N: usize>(buffer: &[u8], at: usize, what: &'static str) -> Result<[u8; N], DecodeError> {
    let bytes = slice(buffer, at, N, what)?;
    bytes.try_into().map_err(|_| DecodeError::BadOffset { what, at })
}

fn slice<'a>(buffer: &'a [u8], at: usize, bytes: usize, what: &'static str) -> Result<&'a [u8], DecodeError> {
    let end = at.checked_add(bytes).filter(|end| *end <= buffer.len());
    end.and_then(|end| buffer.get(at..end)).ok_or(DecodeError::Truncated {
        what,
        wanted: bytes,
        have: buffer.len().saturating_sub(at),
    })
}
