//! Blocks that stay where they are while somebody reads them in place.

use std::sync::Arc;

use super::pinned::Pinned;
use super::{BlockCache, slot_io};
use crate::BlockKey;

/// The leading blocks of a prefix that were in L1 when it was [taken](BlockCache::lease), readable where they lie until it is
/// dropped, from any thread.
///
/// A leased block is never evicted and its slot never reused: a block that is deleted or cleared meanwhile is found by
/// nobody, keeps its bytes for its leases, and gives its slot back with the last of them. So leases are paid for with room.
/// There is no limit on them but the slots: while all slots are leased, or filled, [`put`](BlockCache::put) stores
/// nothing and says so by its count, blocks of L2 are not kept, and the refusals are counted in
/// [`DirectoryStats::refused`](crate::directory::DirectoryStats::refused). Hold them for as long as a copy takes.
pub struct Lease {
    blocks: Pinned<Arc<BlockCache>>,
}

impl BlockCache {
    /// Takes a lease of the leading blocks of `keys` that are in L1, verified as a get does. Counts as a use of them.
    /// Blocks of L2 can be [prefetched](Self::prefetch) before. Nothing is copied and nothing waited for.
    pub fn lease(self: &Arc<Self>, keys: &[BlockKey]) -> Lease {
        let blocks = Pinned::leading(Arc::clone(self), keys);
        self.used(&keys[..blocks.slots().len()]);
        Lease { blocks }
    }
}

impl Lease {
    /// Leased blocks: the first so many of the keys.
    pub fn len(&self) -> usize {
        self.blocks.slots().len()
    }

    /// Whether no block was there.
    pub fn is_empty(&self) -> bool {
        self.blocks.slots().is_empty()
    }

    /// Where block `index` of the keys begins, if it is leased; its bytes follow. Read it no longer than the lease lives, and
    /// never write there.
    pub fn address(&self, index: usize) -> Option<usize> {
        self.blocks.cache().memory.slot_address(*self.blocks.slots().get(index)?)
    }

    /// The bytes of block `index` of the keys, if it is leased.
    pub fn block(&self, index: usize) -> Option<&[u8]> {
        slot_io::pinned_block(&self.blocks, index)
    }
}
