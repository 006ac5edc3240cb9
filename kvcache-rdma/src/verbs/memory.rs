//! Memory that a device may read and write, and who keeps it alive.
//!
//! ```text
//! Memory   address, length, and an owner that keeps them true
//!   └─ Region   the memory, registered: deregistered before the owner is released
//!        ├─ Slice    a part of it, named by work requests; the CPU cannot reach it through a slice
//!        └─ Buffer   an exclusive part for messages: either the CPU has it, or a queue pair
//! ```
//!
//! Slices and buffers hold their region, and a queue pair holds those of every work request that has not completed. So a
//! region cannot be deregistered, nor its memory released, while a device may touch it.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::any::Any;
use std::ptr::NonNull;
use std::sync::Arc;

use super::error::Error;
use super::provider::RawRegion;

/// A range of memory with what keeps it alive.
pub struct Memory {
    base: NonNull<u8>,
    bytes: usize,
    owner: Arc<dyn Any + Send + Sync>,
}

// SAFETY: an address and a length; the owner may be released on any thread.
unsafe impl Send for Memory {}
// SAFETY: nothing can be reached through a shared reference but the numbers.
unsafe impl Sync for Memory {}

impl Memory {
    /// Memory that somebody else has made, such as a slab.
    ///
    /// # Safety
    /// The range must stay mapped, readable and writable as long as `owner` (or a clone of it) lives. What a device
    /// may do with it is decided by work requests and by peers that know its remote key: whoever names a part of it in one
    /// must not use that part otherwise until the request has completed.
    pub unsafe fn new(base: NonNull<u8>, bytes: usize, owner: Arc<dyn Any + Send + Sync>) -> Self {
        Self { base, bytes, owner }
    }

    /// Fresh zeroed memory in whole pages.
    pub fn allocate(bytes: usize) -> Self {
        let pages = Pages::zeroed(bytes);
        Self { base: pages.base, bytes: pages.layout.size(), owner: Arc::new(pages) }
    }

    /// Address of the first byte.
    pub fn address(&self) -> usize {
        self.base.as_ptr() as usize
    }

    /// Length of the range.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

/// An allocation of whole pages, so that no other allocation shares a page that a device writes.
struct Pages {
    base: NonNull<u8>,
    layout: Layout,
}

// SAFETY: an allocation belongs to no thread.
unsafe impl Send for Pages {}
// SAFETY: nothing is reached through a shared reference.
unsafe impl Sync for Pages {}

impl Pages {
    fn zeroed(bytes: usize) -> Self {
        let bytes = bytes.max(1).next_multiple_of(PAGE_BYTES);
        let Ok(layout) = Layout::from_size_align(bytes, PAGE_BYTES) else {
            handle_alloc_error(Layout::new::<u8>())
        };
        // SAFETY: the layout is not empty.
        let base = unsafe { alloc_zeroed(layout) };
        let Some(base) = NonNull::new(base) else { handle_alloc_error(layout) };
        Self { base, layout }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout; regions over it release their share of it after deregistration.
        unsafe { dealloc(self.base.as_ptr(), self.layout) }
    }
}

const PAGE_BYTES: usize = 4096;

/// Who may touch a region besides local work requests.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Access {
    /// Nobody: local requests read and write it.
    Local,
    /// Peers that know its remote key may read and write it.
    Remote,
}

/// Registered memory: pinned, known to the device.
pub struct Region {
    raw: Box<dyn RawRegion>,
    memory: Option<Memory>,
    base: usize,
    bytes: usize,
}

impl Region {
    pub(in crate::verbs) fn new(raw: Box<dyn RawRegion>, memory: Memory) -> Self {
        let (base, bytes) = (memory.address(), memory.bytes);
        Self { raw, memory: Some(memory), base, bytes }
    }

    /// Address of the first byte, which is also how peers name it.
    pub fn address(&self) -> usize {
        self.base
    }

    /// Registered bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The key that lets a peer read and write the region.
    pub fn remote_key(&self) -> u32 {
        self.raw.remote_key()
    }

    pub(in crate::verbs) fn local_key(&self) -> u32 {
        self.raw.local_key()
    }

    /// The part of `bytes` bytes at the absolute address `address`.
    ///
    /// # Errors
    /// [`Error::OutsideRegion`].
    pub fn slice_at(self: &Arc<Self>, address: usize, bytes: usize) -> Result<Slice, Error> {
        let start = address.wrapping_sub(self.base);
        let end = start.checked_add(bytes).filter(|end| *end <= self.bytes);
        if end.is_none() || bytes > u32::MAX as usize {
            return Err(Error::OutsideRegion { start, end: start.saturating_add(bytes), bytes: self.bytes });
        }
        Ok(Slice { region: Arc::clone(self), address, bytes: bytes as u32 })
    }

    /// Cuts the whole region into exclusive buffers of `each` bytes; a rest that is smaller is left unused.
    pub fn into_buffers(self, each: u32) -> Vec<Buffer> {
        let region = Arc::new(self);
        let count = region.bytes / (each.max(1) as usize);
        (0..count)
            .map(|index| Buffer {
                region: Arc::clone(&region),
                address: region.base + index * each as usize,
                capacity: each,
                bytes: 0,
            })
            .collect()
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        let memory = self.memory.take();
        if !self.raw.deregister() {
            // The device still knows it: memory that may be written at any time must not go back.
            std::mem::forget(memory);
        }
    }
}

impl std::fmt::Debug for Region {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Region {{ {} bytes at {:#x} }}", self.bytes, self.base)
    }
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Memory {{ {} bytes at {:#x}, {} owners }}",
            self.bytes,
            self.address(),
            Arc::strong_count(&self.owner)
        )
    }
}

/// A part of a region, as a segment of a work request.
#[derive(Clone, Debug)]
pub struct Slice {
    pub(in crate::verbs) region: Arc<Region>,
    pub(in crate::verbs) address: usize,
    pub(in crate::verbs) bytes: u32,
}

impl Slice {
    /// Its length.
    pub fn bytes(&self) -> u32 {
        self.bytes
    }
}

/// A part of a region that has one user at a time: the CPU while it is held, the device while it is posted.
#[derive(Debug)]
pub struct Buffer {
    pub(in crate::verbs) region: Arc<Region>,
    pub(in crate::verbs) address: usize,
    pub(in crate::verbs) capacity: u32,
    pub(in crate::verbs) bytes: u32,
}

impl Buffer {
    /// Bytes that fit.
    pub fn capacity(&self) -> usize {
        self.capacity as usize
    }

    /// The message in it: what was written, or what has arrived.
    pub fn message(&self) -> &[u8] {
        // SAFETY: within the region, whose memory is initialised and lives while `region` is held; no device uses the
        // range, since posting moves the buffer into the queue pair, and no other buffer or slice of it exists
        // (`into_buffers` consumes the region).
        unsafe { std::slice::from_raw_parts(self.address as *const u8, self.bytes as usize) }
    }

    /// Replaces the message; `false`, and no change, if it does not fit.
    pub fn write(&mut self, message: &[u8]) -> bool {
        if message.len() > self.capacity() {
            return false;
        }
        // SAFETY: as in `message`; the buffer is borrowed exclusively, so `message` is another memory.
        unsafe { std::ptr::copy_nonoverlapping(message.as_ptr(), self.address as *mut u8, message.len()) };
        self.bytes = message.len() as u32;
        true
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Counts deregistrations; they fail when told to.
    struct FakeRegion {
        deregistered: Arc<AtomicUsize>,
        fails: bool,
    }

    impl RawRegion for FakeRegion {
        fn local_key(&self) -> u32 {
            1
        }
        fn remote_key(&self) -> u32 {
            2
        }
        fn deregister(&mut self) -> bool {
            self.deregistered.fetch_add(1, Ordering::Relaxed);
            !self.fails
        }
    }

    fn region(bytes: usize, fails: bool) -> (Region, Arc<AtomicUsize>, Arc<dyn Any + Send + Sync>) {
        let deregistered = Arc::new(AtomicUsize::new(0));
        let memory = Memory::allocate(bytes);
        let owner = Arc::clone(&memory.owner);
        let raw = FakeRegion { deregistered: Arc::clone(&deregistered), fails };
        (Region::new(Box::new(raw), memory), deregistered, owner)
    }

    #[test]
    fn memory_is_released_after_the_last_slice_and_the_deregistration() {
        let (region, deregistered, owner) = region(8192, false);
        let region = Arc::new(region);
        let slice = region.slice_at(region.address() + 4096, 4096).unwrap();
        drop(region);
        assert_eq!((deregistered.load(Ordering::Relaxed), Arc::strong_count(&owner)), (0, 2));
        drop(slice);
        assert_eq!((deregistered.load(Ordering::Relaxed), Arc::strong_count(&owner)), (1, 1));
    }

    #[test]
    fn memory_that_cannot_be_deregistered_is_never_released() {
        let (region, deregistered, owner) = region(4096, true);
        drop(region);
        assert_eq!((deregistered.load(Ordering::Relaxed), Arc::strong_count(&owner)), (1, 2));
    }

    #[test]
    fn slices_lie_inside_of_their_region() {
        let (region, _, _) = region(8192, false);
        let region = Arc::new(region);
        let base = region.address();
        assert!(region.slice_at(base, 8192).is_ok());
        for (address, bytes) in
            [(base, 8193), (base - 1, 1), (base + 8192, 1), (base + 1, usize::MAX), (0, 1)]
        {
            assert!(region.slice_at(address, bytes).is_err(), "{address} {bytes}");
        }
    }

    #[test]
    fn buffers_share_nothing() {
        let (region, _, _) = region(4096, false);
        let mut buffers = region.into_buffers(1500);
        assert_eq!(buffers.len(), 2);
        assert!(buffers[0].write(&[1; 1500]) && buffers[1].write(&[2; 10]));
        assert!(!buffers[0].write(&[3; 1501]));
        assert_eq!(buffers[0].message(), [1; 1500]);
        assert_eq!(buffers[1].message(), [2; 10]);
    }
}
