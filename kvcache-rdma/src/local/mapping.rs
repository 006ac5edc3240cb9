//! The server's pool in this process. A leaf: the one place of the client that maps memory.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::NonNull;

/// Two mappings of one pool: gets read from one that cannot be written, puts write to the other.
#[derive(Debug)]
pub(crate) struct PoolMapping {
    readable: NonNull<u8>,
    writable: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the mappings belong to no thread; whoever uses their addresses answers for exclusion.
unsafe impl Send for PoolMapping {}

impl PoolMapping {
    /// Maps the pool behind the descriptors that came with a welcome: the first for reading, the second for writing.
    ///
    /// # Errors
    ///
    /// What is behind them is no pool, or can shrink, or there is no address space.
    pub(crate) fn new([readable, writable]: [OwnedFd; 2]) -> io::Result<Self> {
        let (readable, writable) = (File::from(readable), File::from(writable));
        let bytes = readable.metadata()?.len();
        if bytes == 0 || writable.metadata()?.len() != bytes {
            return Err(io::Error::other("the server's pool has no length, or two"));
        }
        for file in [&readable, &writable] {
            // SAFETY: takes a descriptor, which the file keeps open, and numbers.
            let seals = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GET_SEALS) };
            if seals < 0 || seals & libc::F_SEAL_SHRINK == 0 {
                // To touch memory behind the end of a file that was cut off would end this process.
                return Err(io::Error::other("the server's pool can be cut off under our feet"));
            }
        }
        let bytes = usize::try_from(bytes).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        let readable = map(&readable, bytes, libc::PROT_READ)?;
        let writable = map(&writable, bytes, libc::PROT_READ | libc::PROT_WRITE).inspect_err(|_| {
            // SAFETY: just mapped, and known to nobody.
            unsafe { libc::munmap(readable.as_ptr().cast(), bytes) };
        })?;
        Ok(Self { readable, writable, bytes })
    }

    /// Where a value lies; `None` if not within the pool. Valid while the mapping lives; others may change its bytes.
    pub(super) fn to_read(&self, offset: u64, bytes: usize) -> Option<*const u8> {
        self.place(self.readable, offset, bytes).map(<*mut u8>::cast_const)
    }

    /// Where a value goes; `None` if not within the pool. Valid while the mapping lives.
    pub(super) fn to_write(&self, offset: u64, bytes: usize) -> Option<*mut u8> {
        self.place(self.writable, offset, bytes)
    }

    fn place(&self, base: NonNull<u8>, offset: u64, bytes: usize) -> Option<*mut u8> {
        let offset = usize::try_from(offset).ok()?;
        let end = offset.checked_add(bytes)?;
        // SAFETY: the whole range lies within the mapping.
        (end <= self.bytes).then(|| unsafe { base.as_ptr().add(offset) })
    }
}

impl Drop for PoolMapping {
    fn drop(&mut self) {
        for base in [self.readable, self.writable] {
            // SAFETY: made by `new` with this length; its user drops all addresses within it before.
            let _ = unsafe { libc::munmap(base.as_ptr().cast(), self.bytes) };
        }
    }
}

fn map(file: &File, bytes: usize, protection: libc::c_int) -> io::Result<NonNull<u8>> {
    let descriptor = file.as_raw_fd();
    // SAFETY: a new mapping at an address of the system's choice touches no existing memory.
    let base =
        unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, libc::MAP_SHARED, descriptor, 0) };
    if base == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // Children must not inherit it: a put of theirs would outlive the connection that it belongs to.
    for wish in [libc::MADV_DONTFORK, libc::MADV_DONTDUMP, libc::MADV_HUGEPAGE] {
        // SAFETY: advice that changes no content, for exactly this mapping. The kernel may not know it.
        let _ = unsafe { libc::madvise(base, bytes, wish) };
    }
    NonNull::new(base.cast()).ok_or_else(|| io::Error::other("mapped at address zero"))
}

#[cfg(test)]
mod tests {
    use std::os::fd::FromRawFd;

    use super::*;

    fn pool(bytes: u64, seals: libc::c_int) -> [OwnedFd; 2] {
        // SAFETY: takes a terminated name and numbers; the descriptor is new and nobody else's.
        let file = unsafe {
            File::from_raw_fd(libc::memfd_create(
                c"test".as_ptr(),
                libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING,
            ))
        };
        file.set_len(bytes).unwrap();
        // SAFETY: takes a descriptor, which the file keeps open, and numbers.
        assert_eq!(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) }, 0);
        let readable = File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
        [readable.into(), file.into()]
    }

    #[test]
    fn places_lie_within_the_pool_and_both_mappings_show_the_same() {
        let mapping = PoolMapping::new(pool(8192, libc::F_SEAL_SHRINK)).unwrap();
        let (to, from) = (mapping.to_write(4000, 4192).unwrap(), mapping.to_read(4000, 4192).unwrap());
        // SAFETY: both are within the mappings, and nobody else has them.
        unsafe {
            to.add(4191).write(9);
            assert_eq!(from.add(4191).read(), 9);
        }
        for (offset, bytes) in [(4000, 4193), (8193, 0), (u64::MAX, 1), (1, usize::MAX)] {
            assert!(mapping.to_read(offset, bytes).is_none() && mapping.to_write(offset, bytes).is_none());
        }
    }

    #[test]
    fn a_pool_that_could_shrink_is_refused() {
        let error = PoolMapping::new(pool(8192, libc::F_SEAL_GROW)).unwrap_err().to_string();
        assert!(error.contains("cut off"), "{error}");
        assert!(PoolMapping::new(pool(0, libc::F_SEAL_SHRINK)).is_err());
    }
}
