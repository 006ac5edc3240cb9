//! A value on its way in: from the socket into its memory, hashed while it is still in the processor's cache.

use std::io::IoSliceMut;

use kvcache_core::remote::{RemoteFailure, ValueHasher};
use kvcache_core::ring_client::ItemResult;

use super::work::Work;

/// What is expected of one value.
pub(super) struct IncomingValue {
    /// Length that the server announced.
    bytes: usize,
    /// Bytes that are there.
    at: usize,
    hasher: ValueHasher,
    /// Whether it can be what was asked for. If not it is read and thrown away.
    fits: bool,
}

impl IncomingValue {
    pub(super) fn new(work: &Work, bytes: usize) -> Self {
        Self { bytes, at: 0, hasher: ValueHasher::new(&work.key.name()), fits: bytes == work.bytes }
    }

    pub(super) fn left(&self) -> usize {
        self.bytes - self.at
    }

    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// Where the bytes from `at` on of a value of `bytes` bytes go, at most `limit` of them; `None` if nowhere.
    pub(super) fn place(work: &mut Work, bytes: usize, at: usize, limit: usize) -> Option<IoSliceMut<'_>> {
        let fits = bytes == work.bytes;
        let memory = work.memory.as_mut().filter(|_| fits)?;
        Some(IoSliceMut::new(memory.write(at, limit)))
    }

    /// `count` bytes arrived there.
    pub(super) fn arrived(&mut self, work: &Work, count: usize) {
        if let Some(memory) = work.memory.as_ref().filter(|_| self.fits) {
            let there = memory.read(self.at);
            self.hasher.update(there.get(..count).unwrap_or(there));
        }
        self.at += count;
    }

    /// Takes bytes that were read together with others; how many.
    pub(super) fn take(&mut self, work: &mut Work, bytes: &[u8]) -> usize {
        let count = bytes.len().min(self.left());
        if let Some(mut place) = Self::place(work, self.bytes, self.at, count) {
            place.copy_from_slice(&bytes[..count]);
        }
        self.arrived(work, count);
        count
    }

    /// How the item ends, once nothing is left.
    pub(super) fn result(&self, checksum: Option<u64>) -> ItemResult {
        if self.fits && checksum == Some(self.hasher.finish()) {
            ItemResult::Done
        } else {
            ItemResult::Failed(RemoteFailure::Corrupt)
        }
    }
}
