//! The compact little-endian encoding of what the two halves send each other: plans down, reports up.
//!
//! Both ends are the same version of this library in one engine, so there is no negotiation; the decoder still trusts
//! nothing, because a mismatch must become an error and never a wrong copy.

/// Bytes that are not what the other half would have sent.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("malformed {what} at byte {offset} of {bytes}: both halves of the connector must run the same version")]
pub struct Malformed {
    what: &'static str,
    offset: usize,
    bytes: usize,
}

#[derive(Default)]
pub(crate) struct Writer {
    pub(crate) bytes: Vec<u8>,
}

impl Writer {
    pub(crate) fn u8(&mut self, value: u8) {
        self.bytes.push(value);
    }

    pub(crate) fn u32(&mut self, value: u32) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn u64(&mut self, value: u64) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn array(&mut self, value: &[u8]) {
        self.bytes.extend_from_slice(value);
    }

    /// A length and the bytes.
    pub(crate) fn slice(&mut self, value: &[u8]) {
        self.u32(value.len() as u32);
        self.bytes.extend_from_slice(value);
    }

    /// A count, then each item.
    pub(crate) fn list<T>(&mut self, items: &[T], mut write: impl FnMut(&mut Self, &T)) {
        self.u32(items.len() as u32);
        for item in items {
            write(self, item);
        }
    }
}

pub(crate) struct Reader<'a> {
    what: &'static str,
    bytes: &'a [u8],
    offset: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(what: &'static str, bytes: &'a [u8]) -> Self {
        Self { what, bytes, offset: 0 }
    }

    pub(crate) fn malformed(&self) -> Malformed {
        Malformed { what: self.what, offset: self.offset, bytes: self.bytes.len() }
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let end = self.offset.checked_add(count).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or_else(|| self.malformed())?;
        let out = &self.bytes[self.offset..end];
        self.offset = end;
        Ok(out)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let mut out = [0u8; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(self.array::<1>()?[0])
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Malformed> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(crate) fn slice(&mut self) -> Result<&'a [u8], Malformed> {
        let count = self.u32()? as usize;
        self.take(count)
    }

    /// Reads a count, then that many items of at least `item_bytes` bytes each: a count that lies allocates nothing.
    pub(crate) fn list<T>(
        &mut self,
        item_bytes: usize,
        mut read: impl FnMut(&mut Self) -> Result<T, Malformed>,
    ) -> Result<Vec<T>, Malformed> {
        let count = self.u32()? as usize;
        if count > (self.bytes.len() - self.offset) / item_bytes.max(1) {
            return Err(self.malformed());
        }
        (0..count).map(|_| read(self)).collect()
    }

    /// Ends the decoding: nothing may be left.
    pub(crate) fn end(self) -> Result<(), Malformed> {
        if self.offset == self.bytes.len() { Ok(()) } else { Err(self.malformed()) }
    }
}
