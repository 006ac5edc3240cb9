//! The memory of all values: one mapping, cut into extents.
//!
//! A value lives in one contiguous [`Extent`], so that it is received and sent without copies in between, and so that a
//! device or a neighbour process can be told its place with two numbers. While a value arrives its extent is an
//! [`OpenExtent`], which one owner fills; sealed, it is shared and never changes again. Dropping the last handle
//! returns the memory, hence no reader and no writer ever finds somebody else's bytes.

mod backed;
mod free_extents;
mod mapping;

use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::Arc;

use parking_lot::Mutex;

use backed::BackedGranules;
use free_extents::FreeExtents;
use mapping::Mapping;
pub use mapping::PoolError;

/// Extents begin and end at multiples of this: the page of the system and of a device's address translation.
pub const GRANULE_BYTES: u64 = 4096;

/// The memory of all values.
#[derive(Debug)]
pub struct Pool {
    mapping: Mapping,
    free: Mutex<FreeExtents>,
    backed: BackedGranules,
}

impl Pool {
    /// A pool of `capacity_bytes`, rounded up to a whole granule. The system gives memory when it is first touched.
    ///
    /// # Errors
    ///
    /// What the system says when it has no address space or no memory file to give.
    pub fn new(capacity_bytes: u64) -> Result<Arc<Self>, PoolError> {
        let granules = capacity_bytes.div_ceil(GRANULE_BYTES).max(1);
        let mapping = Mapping::new(granules * GRANULE_BYTES)?;
        let (free, backed) = (Mutex::new(FreeExtents::new(granules)), BackedGranules::new(granules));
        Ok(Arc::new(Self { mapping, free, backed }))
    }

    /// Takes `bytes` bytes, at least one granule; `None` if no gap is large enough. O(log n) of the number of gaps.
    pub fn allocate(self: &Arc<Self>, bytes: u64) -> Option<OpenExtent> {
        let granules = bytes.div_ceil(GRANULE_BYTES).max(1);
        let first = self.free.lock().take(granules)?;
        Some(OpenExtent { pool: Arc::clone(self), first, granules, bytes })
    }

    /// Bytes of the whole pool.
    pub fn capacity_bytes(&self) -> u64 {
        self.mapping.bytes()
    }

    /// Bytes in extents, their unused ends included.
    pub fn used_bytes(&self) -> u64 {
        self.capacity_bytes() - self.free.lock().free_granules() * GRANULE_BYTES
    }

    /// Bytes of the largest gap: the largest value that fits without evicting.
    pub fn largest_gap_bytes(&self) -> u64 {
        self.free.lock().largest() * GRANULE_BYTES
    }

    /// Address and length of all extents together, for a device that is told of them once. What may be touched there is
    /// decided by extents.
    pub(crate) fn memory(&self) -> (NonNull<u8>, usize) {
        (self.mapping.base(), self.mapping.bytes() as usize)
    }

    /// The memory file behind the pool. It cannot change its length any more; whoever gets it may map it.
    pub fn file(&self) -> BorrowedFd<'_> {
        self.mapping.file()
    }

    /// Backs a part of the pool with memory now, so that no put waits for it. Leaves the content as it is.
    ///
    /// # Errors
    ///
    /// The system has no memory, or is too old to be asked.
    pub fn populate(&self, range: Range<u64>) -> std::io::Result<()> {
        self.mapping.populate(range)
    }
}

/// An extent that one owner fills.
#[derive(Debug)]
pub struct OpenExtent {
    pool: Arc<Pool>,
    first: u64,
    granules: u64,
    bytes: u64,
}

impl OpenExtent {
    /// The bytes; whatever was there before until they are written.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: the range was taken from the free extents and is given back in `drop` only, so no other extent
        // overlaps it, and `&mut self` excludes other views of this one.
        unsafe { self.pool.mapping.slice_mut(self.first * GRANULE_BYTES, self.bytes) }
    }

    /// Where the bytes begin within the pool.
    pub fn offset_bytes(&self) -> u64 {
        self.first * GRANULE_BYTES
    }

    /// Length of the content.
    pub fn len_bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes of the pool that it takes: whole granules.
    pub fn footprint_bytes(&self) -> u64 {
        self.granules * GRANULE_BYTES
    }

    /// Has the system back all of it with memory now, unless that was done before.
    ///
    /// For extents that another process fills: memory that runs out is an error here, and the end of that process there.
    ///
    /// # Errors
    ///
    /// The system has no memory.
    pub fn back(&self) -> std::io::Result<()> {
        let pool = &self.pool;
        if !pool.backed.contains(self.first, self.granules) {
            let start = self.offset_bytes();
            pool.populate(start..start + self.footprint_bytes())?;
            pool.backed.insert(self.first, self.granules);
        }
        Ok(())
    }

    /// Ends the filling: from now on the bytes are shared and do not change.
    pub fn seal(self) -> Extent {
        Extent { open: self }
    }
}

impl Drop for OpenExtent {
    fn drop(&mut self) {
        self.pool.free.lock().put_back(self.first, self.granules);
    }
}

/// A sealed extent.
#[derive(Debug)]
pub struct Extent {
    open: OpenExtent,
}

impl Extent {
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: as in `bytes_mut`; sealing consumed the only handle that writes, so the bytes no longer change.
        unsafe { self.open.pool.mapping.slice(self.open.first * GRANULE_BYTES, self.open.bytes) }
    }

    /// Where the bytes begin within the pool.
    pub fn offset_bytes(&self) -> u64 {
        self.open.offset_bytes()
    }

    /// Bytes of the pool that it takes: whole granules.
    pub fn footprint_bytes(&self) -> u64 {
        self.open.footprint_bytes()
    }

    /// Length of the content.
    pub fn len_bytes(&self) -> u64 {
        self.open.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_extent_makes_room_whether_sealed_or_not() {
        let pool = Pool::new(3 * GRANULE_BYTES).unwrap();
        let mut one = pool.allocate(GRANULE_BYTES + 1).unwrap();
        one.bytes_mut().fill(7);
        assert!(pool.allocate(GRANULE_BYTES + 1).is_none());
        let other = pool.allocate(1).unwrap();
        assert_eq!(pool.used_bytes(), 3 * GRANULE_BYTES);
        let one = one.seal();
        assert!(one.bytes().iter().all(|byte| *byte == 7));
        drop((one, other));
        assert_eq!((pool.used_bytes(), pool.largest_gap_bytes()), (0, 3 * GRANULE_BYTES));
    }

    #[test]
    fn the_memory_file_can_be_mapped_by_others_and_never_shrinks() {
        let pool = Pool::new(2 * GRANULE_BYTES).unwrap();
        pool.allocate(GRANULE_BYTES).unwrap().bytes_mut()[5] = 9;
        let file = std::fs::File::from(pool.file().try_clone_to_owned().unwrap());
        assert_eq!(file.metadata().unwrap().len(), 2 * GRANULE_BYTES);
        assert!(file.set_len(0).is_err(), "a neighbour could take the memory away from under us");
        assert!(pool.populate(0..2 * GRANULE_BYTES).is_ok());
        assert!(pool.populate(0..3 * GRANULE_BYTES).is_err());
    }
}
