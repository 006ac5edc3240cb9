//! Memory of users, as sockets read and write it. A leaf: the only place of the TCP client that makes slices of addresses.

/// The memory of one transfer, from its submission until its end is reported.
///
/// Whoever makes one promises what [`new`](Self::new) asks; everything else about it is safe. The rule that keeps the
/// promise is the driver's: it drops a transfer's `Memory` before it reports the transfer's end.
#[derive(Debug)]
pub(crate) struct Memory {
    address: usize,
    bytes: usize,
}

impl Memory {
    /// # Safety
    /// For as long as the value lives, `bytes` bytes from `address` are valid for reads, nobody else writes them, and if
    /// [`write`](Self::write) is called they are valid for writes and nobody else reads them. No memory at all if `bytes` is 0.
    pub(crate) unsafe fn new(address: usize, bytes: usize) -> Self {
        Self { address, bytes }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn address(&self) -> usize {
        self.address
    }

    /// What is there from `at` on.
    pub(crate) fn read(&self, at: usize) -> &[u8] {
        let at = at.min(self.bytes);
        if at == self.bytes {
            return &[];
        }
        // SAFETY: valid for reads and not written by others, as `new` was promised; not written by us while the result
        // lives, since `write` borrows exclusively. `at < bytes`, so the rest is inside and its address is not null.
        unsafe { std::slice::from_raw_parts((self.address + at) as *const u8, self.bytes - at) }
    }

    /// The place for at most `limit` bytes from `at` on.
    pub(crate) fn write(&mut self, at: usize, limit: usize) -> &mut [u8] {
        let at = at.min(self.bytes);
        let bytes = limit.min(self.bytes - at);
        if bytes == 0 {
            return &mut [];
        }
        // SAFETY: valid for writes and used by nobody else, as `new` was promised; the exclusive borrow keeps us from
        // making a second slice. `at + bytes <= self.bytes`, so the part is inside.
        unsafe { std::slice::from_raw_parts_mut((self.address + at) as *mut u8, bytes) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_inside() {
        let mut place = *b"0123456789";
        // SAFETY: the array outlives the value and is used through it alone.
        let mut memory = unsafe { Memory::new(place.as_mut_ptr() as usize, place.len()) };
        assert_eq!(memory.read(3), b"3456789");
        assert_eq!(memory.read(10), b"");
        assert_eq!(memory.read(usize::MAX), b"");
        memory.write(8, 5).fill(b'x');
        memory.write(20, 5).fill(b'y');
        memory.write(1, 1).fill(b'z');
        assert_eq!(memory.read(0), b"0z234567xx");
        // SAFETY: no memory.
        let none = unsafe { Memory::new(0, 0) };
        assert_eq!(none.read(0), b"");
    }
}
