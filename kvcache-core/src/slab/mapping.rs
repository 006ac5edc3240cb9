//! Memory mappings of slabs: the only place that calls `mmap`.
//!
//! A mapping starts at a 2 MiB boundary, so that huge pages fit it, and lives as long as its [`Mapping`]. Its bytes are
//! handed out as addresses, or as slices of types that are made of atomics alone ([`Mapped`]).

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;

/// Alignment of every mapping: the huge page of x86-64 and of 4 KiB-granule AArch64.
pub(super) const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Which pages back an anonymous slab.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum HugePages {
    /// Huge pages where the system makes them from ordinary memory (`madvise`).
    #[default]
    Transparent,
    /// Pages that the administrator has set aside (hugetlbfs) if there are enough, otherwise transparent ones.
    Reserved,
    /// Ordinary pages only.
    Off,
}

/// Types that may be viewed in shared mapped memory.
///
/// # Safety
///
/// Every bit pattern is a valid value, all fields are atomics, and the alignment is at most 4096.
pub(super) unsafe trait Mapped {}

const READ: libc::c_int = libc::PROT_READ;
const WRITE: libc::c_int = libc::PROT_WRITE;

/// A mapping, readable and mostly writable, unmapped when dropped.
pub(super) struct Mapping {
    base: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the mapping belongs to no thread; its bytes are reached through raw addresses or atomics only.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Memory of this process alone, zeroed, not yet backed by pages.
    pub(super) fn anonymous(bytes: usize, huge_pages: HugePages) -> io::Result<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        if huge_pages == HugePages::Reserved {
            // Without NORESERVE: the pages are set aside now or the call fails, so no later access can.
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB;
            let whole = bytes.next_multiple_of(HUGE_PAGE_BYTES);
            if let Ok(mapping) = Mapping::aligned(whole, READ | WRITE, flags, -1) {
                return Ok(mapping);
            }
        }
        let mapping = Mapping::aligned(bytes, READ | WRITE, flags, -1)?;
        mapping.advise(if huge_pages == HugePages::Off {
            libc::MADV_NOHUGEPAGE
        } else {
            libc::MADV_HUGEPAGE
        });
        Ok(mapping)
    }

    /// The first `bytes` bytes of `file`, shared with everyone who maps it. The file must be at least that long.
    ///
    /// Touching a page that the file system cannot back kills the process: callers reserve ranges first, see
    /// [`reserve`](Self::reserve).
    pub(super) fn shared(file: &File, bytes: usize, huge_pages: HugePages) -> io::Result<Self> {
        let mapping = Mapping::aligned(bytes, READ | WRITE, libc::MAP_SHARED, file.as_raw_fd())?;
        if huge_pages != HugePages::Off {
            mapping.advise(libc::MADV_HUGEPAGE);
        }
        Ok(mapping)
    }

    /// The same for reading only: writing through it kills the process.
    pub(super) fn shared_for_reading(file: &File, bytes: usize, huge_pages: HugePages) -> io::Result<Self> {
        let mapping = Mapping::aligned(bytes, READ, libc::MAP_SHARED, file.as_raw_fd())?;
        if huge_pages != HugePages::Off {
            mapping.advise(libc::MADV_HUGEPAGE);
        }
        Ok(mapping)
    }

    pub(super) fn base(&self) -> NonNull<u8> {
        self.base
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Backs a range with pages now, so that no later access waits for them. Leaves the content as it is, and may run
    /// while others use the range. An optimisation: errors mean that it did not happen.
    pub(super) fn populate(&self, range: Range<usize>) -> io::Result<()> {
        assert!(range.start <= range.end && range.end <= self.bytes, "range outside of the mapping");
        // The kernel holds the lock of the process's memory map during each call. Whatever thread allocates or frees memory
        // meanwhile waits for that, and others that fault wait behind it: so it gets its turn after every huge page.
        for start in range.clone().step_by(HUGE_PAGE_BYTES) {
            let bytes = HUGE_PAGE_BYTES.min(range.end - start);
            // SAFETY: the range lies within the mapping; populating changes no byte.
            let status = unsafe {
                libc::madvise(self.base.add(start).as_ptr().cast(), bytes, libc::MADV_POPULATE_WRITE)
            };
            if status != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    }

    /// Makes the file behind a shared mapping own the storage of a range, so that no later access to it can fail.
    ///
    /// Populating comes first since only a page fault honours the mapping's wish for huge pages; a full file system
    /// makes it fail cleanly. `fallocate` decides: it also covers kernels before 5.14, which cannot populate.
    pub(super) fn reserve(&self, file: &File, range: Range<usize>) -> io::Result<()> {
        let _ = self.populate(range.clone());
        let (offset, length) = (range.start as libc::off_t, range.len() as libc::off_t);
        // SAFETY: takes a descriptor, which `file` keeps open, and numbers.
        if unsafe { libc::fallocate(file.as_raw_fd(), 0, offset, length) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EOPNOTSUPP) {
            return Err(error);
        }
        // SAFETY: as above. The C library writes where the file system cannot allocate; content is kept.
        match unsafe { libc::posix_fallocate(file.as_raw_fd(), offset, length) } {
            0 => Ok(()),
            code => Err(io::Error::from_raw_os_error(code)),
        }
    }

    /// `count` values at `offset`. Panics when they do not lie within the mapping or are misaligned.
    pub(super) fn view<T: Mapped>(&self, offset: usize, count: usize) -> &[T] {
        let end = count.checked_mul(size_of::<T>()).and_then(|bytes| bytes.checked_add(offset));
        assert!(end.is_some_and(|end| end <= self.bytes), "view outside of the mapping");
        assert!(offset.is_multiple_of(align_of::<T>()), "misaligned view");
        // SAFETY: the range lies within the mapping, which outlives the borrow; the base is 2 MiB aligned and the
        // offset aligned for `T`; `Mapped` types accept every bit pattern and are changed through atomics only.
        unsafe { std::slice::from_raw_parts(self.base.add(offset).cast::<T>().as_ptr(), count) }
    }

    /// Maps at a 2 MiB boundary: takes a larger hole in the address space, maps inside, gives the ends back.
    fn aligned(
        bytes: usize,
        protection: libc::c_int,
        flags: libc::c_int,
        descriptor: libc::c_int,
    ) -> io::Result<Self> {
        let hole_bytes =
            bytes.checked_add(HUGE_PAGE_BYTES).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        let hole_flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the system's choice touches no existing memory.
        let hole =
            unsafe { libc::mmap(std::ptr::null_mut(), hole_bytes, libc::PROT_NONE, hole_flags, -1, 0) };
        if hole == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = hole as usize;
        let base = start.next_multiple_of(HUGE_PAGE_BYTES);
        // The kernel counts in pages: the tail begins after the last page of the mapping.
        let tail = base + bytes.next_multiple_of(page_bytes());
        let unmap = |from: usize, to: usize| {
            if from < to {
                // SAFETY: within the hole, which nobody else knows, and outside of the mapping that is kept.
                let _ = unsafe { libc::munmap(from as *mut libc::c_void, to - from) };
            }
        };
        // SAFETY: replaces a part of the hole, which is ours and unused.
        let mapped = unsafe {
            libc::mmap(base as *mut libc::c_void, bytes, protection, flags | libc::MAP_FIXED, descriptor, 0)
        };
        if mapped == libc::MAP_FAILED {
            let error = io::Error::last_os_error();
            unmap(start, start + hole_bytes);
            return Err(error);
        }
        unmap(start, base);
        unmap(tail, start + hole_bytes);
        let base =
            NonNull::new(mapped.cast::<u8>()).ok_or_else(|| io::Error::other("mapped at address zero"))?;
        let mapping = Mapping { base, bytes };
        // Gigabytes of cache have no place in a core dump.
        mapping.advise(libc::MADV_DONTDUMP);
        Ok(mapping)
    }

    /// Pages that are backed from now on come from a NUMA node while it has memory. A kernel without nodes has no wish to
    /// fulfil. After an error, as in containers that may not ask (`CAP_SYS_NICE`), pages come from wherever the thread runs that
    /// touches them first.
    pub(super) fn prefer_node(&self, node: u32) -> io::Result<()> {
        const MPOL_PREFERRED: libc::c_int = 1;
        const NODES: usize = 1024;
        let mut mask = [0u64; NODES / 64];
        let Some(word) = mask.get_mut(node as usize / 64) else {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        };
        *word |= 1 << (node % 64);
        // SAFETY: the range is this mapping and the mask has as many bits as are said; a policy changes no byte. The kernel
        // takes the number of bits plus one.
        let status = unsafe {
            let start = self.base.as_ptr();
            libc::syscall(libc::SYS_mbind, start, self.bytes, MPOL_PREFERRED, mask.as_ptr(), NODES + 1, 0)
        };
        match (status, io::Error::last_os_error()) {
            (0, _) => Ok(()),
            (_, error) if error.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
            (_, error) => Err(error),
        }
    }

    /// Leaves a range out of processes that are forked from this one. Otherwise the kernel copies each page that a device has
    /// pinned during the fork, for children that mostly execute another program at once.
    pub(super) fn keep_from_children(&self, range: Range<usize>) {
        assert!(range.start <= range.end && range.end <= self.bytes, "range outside of the mapping");
        // SAFETY: the range lies within the mapping; the advice changes nothing of this process.
        let _ = unsafe {
            let start = self.base.add(range.start);
            libc::madvise(start.as_ptr().cast(), range.len(), libc::MADV_DONTFORK)
        };
    }

    /// Tells the kernel a wish; it may not know it.
    fn advise(&self, advice: libc::c_int) {
        // SAFETY: only advice that changes no content is passed, for exactly this mapping.
        let _ = unsafe { libc::madvise(self.base.as_ptr().cast(), self.bytes, advice) };
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: created by `aligned` with this base and length; views borrow `self`, and whoever holds addresses
        // keeps the slab.
        let _ = unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

/// The system's page, 4096 bytes nearly everywhere.
pub(crate) fn page_bytes() -> usize {
    // SAFETY: takes a constant and returns a number.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(bytes).unwrap_or(4096)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::slab::test_directory::TestDirectory;

    struct Word(AtomicU64);
    // SAFETY: one atomic.
    unsafe impl Mapped for Word {}

    #[test]
    fn anonymous_mappings_are_aligned_zeroed_and_writable() {
        for huge_pages in [HugePages::Transparent, HugePages::Reserved, HugePages::Off] {
            let mapping = Mapping::anonymous(3 << 20, huge_pages).unwrap();
            assert_eq!(mapping.base().as_ptr() as usize % HUGE_PAGE_BYTES, 0);
            mapping.populate(0..mapping.bytes()).unwrap();
            let words = mapping.view::<Word>(0, (3 << 20) / 8);
            assert!(words.iter().all(|word| word.0.load(Ordering::Relaxed) == 0));
            words[words.len() - 1].0.store(7, Ordering::Relaxed);
            mapping.populate(0..mapping.bytes()).unwrap();
            assert_eq!(words[words.len() - 1].0.load(Ordering::Relaxed), 7);
        }
    }

    /// The kernel says so in its table of mappings; one without NUMA has no such table.
    #[test]
    fn a_node_is_preferred() {
        let mapping = Mapping::anonymous(3 << 20, HugePages::Off).unwrap();
        let refused = mapping.prefer_node(0).is_err();
        assert!(mapping.prefer_node(100_000).is_err());
        mapping.populate(0..mapping.bytes()).unwrap();
        let Ok(maps) = std::fs::read_to_string("/proc/self/numa_maps") else { return };
        let start = format!("{:x} ", mapping.base().as_ptr() as usize);
        let line = maps.lines().find(|line| line.starts_with(&start)).expect("the mapping is listed");
        assert!(refused || line.contains("prefer:0") || line.contains("prefer (many):0"), "{line}");
    }

    #[test]
    fn shared_mappings_of_one_file_see_each_other() {
        let directory = TestDirectory::new();
        let path = directory.path().join("file");
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        file.set_len(1 << 20).unwrap();
        let (one, other) = (0..2)
            .map(|_| Mapping::shared(&file, 1 << 20, HugePages::Transparent).unwrap())
            .collect::<Vec<_>>()
            .try_into()
            .map(|[one, other]: [Mapping; 2]| (one, other))
            .unwrap_or_else(|_| unreachable!());
        one.reserve(&file, 0..1 << 20).unwrap();
        one.view::<Word>(4096, 1)[0].0.store(11, Ordering::Relaxed);
        assert_eq!(other.view::<Word>(4096, 1)[0].0.load(Ordering::Relaxed), 11);
        other.reserve(&file, 0..1 << 20).unwrap();
        assert_eq!(other.view::<Word>(4096, 1)[0].0.load(Ordering::Relaxed), 11);
    }

    #[test]
    #[should_panic(expected = "view outside of the mapping")]
    fn a_view_beyond_the_end_panics() {
        let mapping = Mapping::anonymous(4096, HugePages::Off).unwrap();
        mapping.view::<Word>(4096 - 8, 2);
    }
}
