//! A value, and the memory of one that is on its way.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kvcache_core::eviction::SlotId;
use parking_lot::Mutex;

use crate::pool::{Extent, OpenExtent};

/// A stored value. It never changes, and its memory is its own until the last share of it is dropped.
#[derive(Debug)]
pub struct Value {
    pub(super) key: Box<[u8]>,
    pub(super) hash: u64,
    /// Its number with the eviction policy.
    pub(super) slot: SlotId,
    pub(super) extent: Extent,
    /// Clients over RDMA tell it after the value.
    pub(super) checksum: Mutex<Option<u64>>,
}

impl Value {
    /// The content.
    pub fn bytes(&self) -> &[u8] {
        self.extent.bytes()
    }

    /// Length of the content.
    pub fn len_bytes(&self) -> u64 {
        self.extent.len_bytes()
    }

    /// Bytes of the pool that it takes.
    pub fn footprint_bytes(&self) -> u64 {
        self.extent.footprint_bytes()
    }

    /// Where the content lies within the pool.
    pub fn offset_bytes(&self) -> u64 {
        self.extent.offset_bytes()
    }

    /// What the client that stored it said its checksum is, if it did.
    pub fn checksum(&self) -> Option<u64> {
        *self.checksum.lock()
    }
}

/// Memory for a value whose key is not known yet. Dropping it gives the memory back.
#[derive(Debug)]
pub struct Room {
    pub(super) extent: OpenExtent,
    pub(super) share: ReservedShare,
}

impl Room {
    /// Where it begins within the pool.
    pub fn offset_bytes(&self) -> u64 {
        self.extent.offset_bytes()
    }

    /// Length of the value.
    pub fn len_bytes(&self) -> u64 {
        self.extent.len_bytes()
    }

    /// Bytes of the pool that it takes.
    pub fn footprint_bytes(&self) -> u64 {
        self.extent.footprint_bytes()
    }

    /// Has memory behind all of it from now on, see [`OpenExtent::back`].
    ///
    /// # Errors
    ///
    /// The system has no memory.
    pub fn back(&self) -> std::io::Result<()> {
        self.extent.back()
    }

    /// Says the key.
    ///
    /// # Errors
    ///
    /// [`Refused::Empty`] for a key of no bytes.
    pub fn for_key(self, key: &[u8]) -> Result<Reservation, Refused> {
        if key.is_empty() {
            return Err(Refused::Empty);
        }
        Ok(Reservation { key: key.into(), extent: self.extent, share: self.share })
    }
}

/// Memory for a value that is on its way. Dropping it gives the memory back, and nothing was ever visible.
#[derive(Debug)]
pub struct Reservation {
    pub(super) key: Box<[u8]>,
    pub(super) extent: OpenExtent,
    pub(super) share: ReservedShare,
}

impl Reservation {
    /// Where the content goes, in full length.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.extent.bytes_mut()
    }
}

/// Why there is no memory for a value.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// A value of no bytes, or a key of none: the stock protocol cannot return it.
    #[error("a value and its key have at least one byte")]
    Empty,
    /// It is larger than the whole pool.
    #[error("a value of {bytes} bytes does not fit a pool of {capacity_bytes}: raise the capacity")]
    TooLarge {
        /// Bytes of the value.
        bytes: u64,
        /// Bytes of the pool.
        capacity_bytes: u64,
    },
    /// Puts under way hold so much that no more may be evicted for another one.
    #[error(
        "no room for {bytes} bytes: puts under way hold {reserved_bytes} of the pool's {capacity_bytes} bytes"
    )]
    Busy {
        /// Bytes of the value.
        bytes: u64,
        /// Bytes that puts under way hold.
        reserved_bytes: u64,
        /// Bytes of the pool.
        capacity_bytes: u64,
    },
    /// Everything is in use by readers and by puts under way, or too scattered.
    #[error("no room for {bytes} bytes: all {capacity_bytes} bytes of the pool are in use by transfers")]
    Full {
        /// Bytes of the value.
        bytes: u64,
        /// Bytes of the pool.
        capacity_bytes: u64,
    },
}

/// The part of the pool that unpublished values take, given back when dropped.
#[derive(Debug)]
pub(super) struct ReservedShare {
    total: Arc<AtomicU64>,
    bytes: u64,
}

impl ReservedShare {
    /// A share, and the sum of the others.
    pub(super) fn new(total: &Arc<AtomicU64>, bytes: u64) -> (Self, u64) {
        // Relaxed, here and in `drop`: the count guards no other memory.
        let others = total.fetch_add(bytes, Ordering::Relaxed);
        (Self { total: Arc::clone(total), bytes }, others)
    }
}

impl Drop for ReservedShare {
    fn drop(&mut self) {
        self.total.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
