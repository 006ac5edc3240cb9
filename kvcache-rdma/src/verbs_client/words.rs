//! Registered 64-bit words, for checksums that travel beside values.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::verbs::{Access, Error, Memory, Port, Region};

/// Words that peers may read and write. Accessed atomically here: what a peer does at the same time is its own number.
#[derive(Debug)]
pub(super) struct Words {
    region: Arc<Region>,
    count: usize,
}

impl Words {
    pub(super) fn register(port: &Port, count: usize) -> Result<Self, Error> {
        let region = port.register(Memory::allocate(count * WORD_BYTES), Access::Remote)?;
        Ok(Self { region: Arc::new(region), count })
    }

    pub(super) fn remote_key(&self) -> u32 {
        self.region.remote_key()
    }

    /// Where peers find a word.
    pub(super) fn address(&self, index: usize) -> u64 {
        (self.region.address() + index * WORD_BYTES) as u64
    }

    pub(super) fn load(&self, index: usize) -> u64 {
        self.word(index).load(Ordering::Relaxed)
    }

    pub(super) fn store(&self, index: usize, value: u64) {
        self.word(index).store(value, Ordering::Relaxed);
    }

    fn word(&self, index: usize) -> &AtomicU64 {
        assert!(index < self.count, "word {index} of {}", self.count);
        // SAFETY: within the region, which is page-aligned, zeroed, alive as long as `self`, and made of these words only.
        unsafe { &*(self.address(index) as *const AtomicU64) }
    }
}

/// Bytes of a word.
pub(super) const WORD_BYTES: usize = 8;
