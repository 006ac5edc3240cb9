//! The only place where the fake touches memory that others named.

use std::hash::{DefaultHasher, Hasher};

use super::random::Random;
use super::ranges::Ranges;
use crate::kernels::Plain;

/// Evidence that a caller of one of the driver's unsafe methods vouched for the memory that it named, until the operation
/// has ended. Operations carry it; whatever is called with it may touch that operation's memory and no other.
#[derive(Clone, Copy)]
pub(super) struct Promise(());

impl Promise {
    /// # Safety
    /// The caller is an unsafe method whose contract makes the memory that it names valid until its operation has ended,
    /// and uses the promise for that memory alone.
    pub(super) unsafe fn given() -> Self {
        Self(())
    }

    /// Copies `bytes` bytes.
    pub(super) fn copy(self, src: usize, dst: usize, bytes: usize) {
        // SAFETY: the promise covers both ranges; `copy` allows them to overlap.
        unsafe { std::ptr::copy(src as *const u8, dst as *mut u8, bytes) };
    }

    /// Writes bytes that were read earlier.
    pub(super) fn write(self, src: &[u8], dst: usize) {
        // SAFETY: the promise covers the destination, which is not the vector that holds `src`.
        unsafe { std::ptr::copy(src.as_ptr(), dst as *mut u8, src.len()) };
    }

    /// The bytes as they are now.
    pub(super) fn read(self, src: usize, bytes: usize) -> Box<[u8]> {
        let mut read = vec![0; bytes].into_boxed_slice();
        // SAFETY: the promise covers the source; the destination was just made and is as long.
        unsafe { std::ptr::copy_nonoverlapping(src as *const u8, read.as_mut_ptr(), bytes) };
        read
    }

    /// Leaves the bytes undefined.
    pub(super) fn scribble(self, dst: usize, bytes: usize, random: &mut Random) {
        let noise: Vec<u8> = (0..bytes).map(|_| random.next() as u8).collect();
        self.write(&noise, dst);
    }

    /// A table of `count` entries.
    pub(super) fn table<Entry: Plain>(self, table: usize, count: usize) -> Vec<Entry> {
        let entry = |index| (table + index * size_of::<Entry>()) as *const Entry;
        // SAFETY: the promise covers the table. Every pattern of bits is a value of a plain type, which is made of integers.
        (0..count).map(|index| unsafe { entry(index).read_unaligned() }).collect()
    }

    /// A number that changes when the bytes do.
    pub(super) fn digest(self, ranges: &Ranges) -> u64 {
        let mut hasher = DefaultHasher::new();
        for range in ranges.iter() {
            // SAFETY: the promise covers the range; nobody writes to it during the call, as the method's contract says.
            hasher.write(unsafe { std::slice::from_raw_parts(range.start as *const u8, range.len()) });
        }
        hasher.finish()
    }
}
