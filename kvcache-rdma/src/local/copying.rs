//! A copy between a slot and the server's pool that is under way. A leaf: the one place of the client that copies.

use kvcache_core::copy_engine::checked_copy::CheckedCopy;

use crate::tcp::Work;

/// A copy between a slot and the pool.
pub(super) struct Copying {
    pub(super) work: Work,
    pub(super) copy: CheckedCopy,
    pub(super) lease: u64,
    pub(super) way: Way,
}

#[derive(Clone, Copy)]
pub(super) enum Way {
    /// From the pool; what was stored has this checksum.
    Get(*const u8, Option<u64>),
    /// To the pool.
    Put(*mut u8),
}

// SAFETY: the addresses lie in the session's own mapping, which moves between threads with it.
unsafe impl Send for Copying {}

impl Copying {
    pub(super) fn new(work: Work, lease: u64, way: Way) -> Self {
        let copy = CheckedCopy::new(&work.key.name(), work.bytes);
        Self { work, copy, lease, way }
    }

    /// Copies at most about `bytes_max` bytes more.
    pub(super) fn step(&mut self, bytes_max: usize) {
        let bytes = self.work.bytes;
        let Some(memory) = self.work.memory.as_mut() else { return };
        // SAFETY: the slot has `bytes` bytes, as `Memory` was promised, and so has the place in the pool, as was checked
        // when its address was made. The mapping lives as long as the session, whose copies these are. From the pool
        // others' writes are no harm, as the copy says; to the pool, room belongs to the connection until it is
        // committed or released, both of which come after the copy.
        unsafe {
            match self.way {
                Way::Get(from, _) => self.copy.step(from, memory.write(0, bytes).as_mut_ptr(), bytes_max),
                Way::Put(to) => self.copy.step(memory.read(0).as_ptr(), to, bytes_max),
            }
        }
    }
}
