//! Blocks on their way into L1.

use std::ops::Deref;

use super::BlockCache;
use crate::BlockKey;
use crate::directory::{FillId, Reserved};
use crate::eviction::SlotId;
use crate::plan::EngineHash;
use crate::store::SlotLabel;

/// Slots that were reserved for the absent blocks of a prefix. Nobody else reads or writes them, and nobody finds their
/// blocks, before they are [published](Self::publish). Dropping it gives them back.
pub(super) struct Filling<C: Deref<Target = BlockCache>> {
    cache: C,
    reserved: Vec<Reserved>,
    /// Blocks of the same prefix that were there: used after the others are stored, so that heads outlive tails.
    hits: Vec<BlockKey>,
    /// Leading blocks that the cache holds if all of these arrive.
    reach: usize,
}

impl<C: Deref<Target = BlockCache>> Filling<C> {
    /// Reserves slots for the absent blocks of `keys[from..]` and labels them as being filled.
    pub(super) fn reserve(cache: C, keys: &[BlockKey], from: usize) -> Self {
        cache.take_up_growth();
        // Nobody else waits for a share: whoever puts more than fits wants it all.
        let reservation = cache.directory.begin_offload(keys, from, usize::MAX);
        let reach = reservation.refused_from().unwrap_or(keys.len());
        let hits = reservation.hits.iter().map(|index| keys[*index]).collect();
        let filling = Self { cache, reserved: reservation.reserved, hits, reach };
        let epoch = filling.cache.memory.epoch();
        for reserved in &filling.reserved {
            let parent = reserved.index.checked_sub(1).map_or(BlockKey::default(), |parent| keys[parent]);
            let label = SlotLabel {
                key: keys[reserved.index],
                parent,
                engine_hash: EngineHash::default(),
                fill: reserved.fill,
                epoch,
            };
            filling.cache.memory.begin_fill(reserved.slot, &label);
        }
        filling
    }

    pub(super) fn cache(&self) -> &BlockCache {
        &self.cache
    }

    /// What is to be filled, in key order.
    pub(super) fn reserved(&self) -> &[Reserved] {
        &self.reserved
    }

    /// Leading blocks that were not refused.
    pub(super) fn reach(&self) -> usize {
        self.reach
    }

    /// The blocks that were there are not used by this.
    pub(super) fn forget_hits(&mut self) {
        self.hits.clear();
    }

    /// Ends all fills: those for whose position in [`reserved`](Self::reserved) `arrived` is true are hits from now on.
    /// `keys` are those of the reservation.
    pub(super) fn publish(mut self, keys: &[BlockKey], mut arrived: impl FnMut(usize) -> bool) -> Published {
        let reserved = std::mem::take(&mut self.reserved);
        let mut held = self.reach;
        let (mut good, mut bad) = (Vec::with_capacity(reserved.len()), Vec::new());
        let mut stored = Vec::with_capacity(reserved.len());
        for (position, Reserved { index, slot, fill }) in reserved.into_iter().enumerate() {
            if arrived(position) {
                good.push((slot, fill));
                stored.push(keys[index]);
            } else {
                held = held.min(index);
                bad.push((slot, fill));
            }
        }
        self.end(&good, true);
        self.end(&bad, false);
        let hits = std::mem::take(&mut self.hits);
        self.cache.directory.touch(&hits);
        Published { held, stored, hits }
    }

    fn end(&self, fills: &[(SlotId, FillId)], ok: bool) {
        if fills.is_empty() {
            return;
        }
        // A block that was deleted meanwhile keeps its label of being filled, which no restart serves.
        let memory = &self.cache.memory;
        self.cache.directory.complete_fills_with(fills, ok, |slot, fill| memory.publish(slot, fill));
    }
}

impl<C: Deref<Target = BlockCache>> Drop for Filling<C> {
    fn drop(&mut self) {
        let fills: Vec<_> = self.reserved.iter().map(|reserved| (reserved.slot, reserved.fill)).collect();
        self.end(&fills, false);
    }
}

/// What came of a [`Filling`].
pub(super) struct Published {
    /// Leading blocks that the cache holds.
    pub(super) held: usize,
    /// Blocks that it did not have before.
    pub(super) stored: Vec<BlockKey>,
    /// Blocks that it had.
    pub(super) hits: Vec<BlockKey>,
}
