//! The one mapping of the pool, backed by a memory file.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd};
use std::ptr::NonNull;

/// The pool could not be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot make a pool of {capacity_bytes} bytes ({step}): give a smaller capacity or free memory")]
pub struct PoolError {
    /// Bytes asked for.
    pub capacity_bytes: u64,
    /// What failed.
    pub step: &'static str,
    /// What the system said.
    #[source]
    pub source: io::Error,
}

/// Readable and writable shared memory, unmapped when dropped.
#[derive(Debug)]
pub(super) struct Mapping {
    base: NonNull<u8>,
    bytes: usize,
    file: File,
}

// SAFETY: the mapping belongs to no thread; callers of the slice functions answer for exclusion.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// `capacity_bytes` bytes of zeros, not yet backed by memory. A multiple of the page size.
    pub(super) fn new(capacity_bytes: u64) -> Result<Self, PoolError> {
        let failed = |step| move |source| PoolError { capacity_bytes, step, source };
        let too_large = |_| io::Error::from(io::ErrorKind::InvalidInput);
        let bytes = usize::try_from(capacity_bytes).map_err(too_large).map_err(failed("its length"))?;
        let file = memory_file(bytes).map_err(failed("memory file"))?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let descriptor = file.as_raw_fd();
        // SAFETY: a new mapping at an address of the system's choice touches no existing memory.
        let mapped =
            unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, libc::MAP_SHARED, descriptor, 0) };
        if mapped == libc::MAP_FAILED {
            return Err(failed("mapping")(io::Error::last_os_error()));
        }
        let base = NonNull::new(mapped.cast::<u8>());
        let base = base.ok_or_else(|| failed("mapping")(io::Error::other("mapped at address zero")))?;
        for wish in [libc::MADV_HUGEPAGE, libc::MADV_DONTDUMP] {
            // SAFETY: advice that changes no content, for exactly this mapping. The kernel may not know it.
            let _ = unsafe { libc::madvise(mapped, bytes, wish) };
        }
        Ok(Self { base, bytes, file })
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes as u64
    }

    pub(super) fn base(&self) -> NonNull<u8> {
        self.base
    }

    pub(super) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    pub(super) fn populate(&self, range: Range<u64>) -> io::Result<()> {
        if range.start > range.end || range.end > self.bytes() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let (start, length) = (range.start as usize, (range.end - range.start) as usize);
        // SAFETY: the range lies within the mapping; populating changes no byte.
        let status =
            unsafe { libc::madvise(self.base.add(start).as_ptr().cast(), length, libc::MADV_POPULATE_WRITE) };
        if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// A view for reading.
    ///
    /// # Safety
    ///
    /// The range lies within the mapping, and nobody in this process writes to it during the view's life. Clients of this host
    /// have the memory mapped, too: one that has a bug may change bytes that it should not. So what is read here goes to
    /// a socket or into a checksum, and nothing is decided by reading it twice.
    pub(super) unsafe fn slice(&self, offset: u64, bytes: u64) -> &[u8] {
        // SAFETY: the caller keeps the range within the mapping, which lives as long as `self`. Memory files start
        // as zeros, so every byte is initialised.
        unsafe { std::slice::from_raw_parts(self.base.add(offset as usize).as_ptr(), bytes as usize) }
    }

    /// A view for writing.
    ///
    /// # Safety
    ///
    /// The range lies within the mapping, and there is no other view of it during this view's life.
    #[expect(clippy::mut_from_ref, reason = "ranges are exclusive, the mapping is not")]
    pub(super) unsafe fn slice_mut(&self, offset: u64, bytes: u64) -> &mut [u8] {
        // SAFETY: as in `slice`, and the caller guarantees that the view is the only one.
        unsafe { std::slice::from_raw_parts_mut(self.base.add(offset as usize).as_ptr(), bytes as usize) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: made by `new` with this base and length; views borrow `self`.
        let _ = unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

/// A file in memory of fixed length. It can be handed to another process, and nobody can truncate it under our feet.
fn memory_file(bytes: usize) -> io::Result<File> {
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // SAFETY: takes a terminated name and numbers.
    let descriptor = unsafe { libc::memfd_create(c"kvcache-pool".as_ptr(), flags) };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just opened, and owned by nobody else.
    let file = unsafe { File::from_raw_fd(descriptor) };
    file.set_len(bytes as u64)?;
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    // SAFETY: takes a descriptor, which `file` keeps open, and numbers.
    if unsafe { libc::fcntl(descriptor, libc::F_ADD_SEALS, seals) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(file)
}
