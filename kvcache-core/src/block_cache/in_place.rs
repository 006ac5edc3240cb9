//! Blocks that an engine writes straight into their slots.

use std::sync::Arc;

use super::filling::Filling;
use super::{BlockCache, slot_io};
use crate::BlockKey;
use crate::directory::Residency;

/// What there is for one block of a [reservation](BlockCache::reserve).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// Nothing to do: the cache has the block, or another call is filling it.
    Present,
    /// Its bytes go to this address.
    Write(usize),
    /// It is absent and everything else is in use. So it is with all absent blocks after it.
    NoRoom,
}

/// Slots for the absent blocks of a prefix, to be written by their holder: copy-free where the bytes are made anyway.
///
/// A block is a hit when it was [committed](Self::commit), and not before; dropping it without makes all of it absent
/// again. Meanwhile another put of the same blocks counts them as held and writes nothing, another reservation finds them
/// [present](Place::Present), and a get misses them. If they are deleted, or the cache is cleared, the commit comes to
/// nothing: the slots stay this reservation's until then. They are out of the cache's hands that long and cannot be evicted,
/// so a reservation that is held for long costs room, as a [`Lease`](super::Lease) does.
pub struct InPlaceFill {
    cache: Arc<BlockCache>,
    filling: Filling<Arc<BlockCache>>,
    keys: Vec<BlockKey>,
    places: Vec<Place>,
}

impl BlockCache {
    /// Reserves slots for the absent blocks of `keys`, which are a prefix from its first block on, evicting others where none is
    /// free.
    pub fn reserve(self: &Arc<Self>, keys: &[BlockKey]) -> InPlaceFill {
        let filling = Filling::reserve(Arc::clone(self), keys, 0);
        let reach = filling.reach();
        let mut places = vec![Place::Present; keys.len()];
        if reach < keys.len() {
            // Behind the first block that was refused only those that are there already have a place.
            let mut residency = Vec::new();
            self.directory.residency(&keys[reach..], &mut residency);
            for (place, residency) in places[reach..].iter_mut().zip(residency) {
                if residency == Residency::Absent {
                    *place = Place::NoRoom;
                }
            }
        }
        for reserved in filling.reserved() {
            let address = self.memory.slot_address(reserved.slot);
            places[reserved.index] = address.map_or(Place::NoRoom, Place::Write);
        }
        InPlaceFill { cache: Arc::clone(self), filling, keys: keys.to_vec(), places }
    }
}

impl InPlaceFill {
    /// One for each key, in their order.
    ///
    /// Whoever writes to an address, a device included, must have ended before this is committed or dropped: the slot may
    /// then be read, or be another block's.
    pub fn places(&self) -> &[Place] {
        &self.places
    }

    /// Blocks to write.
    pub fn reserved(&self) -> usize {
        self.filling.reserved().len()
    }

    /// The bytes of block `index` of the keys, if it is to be written; whatever was there before.
    pub fn block_mut(&mut self, index: usize) -> Option<&mut [u8]> {
        let Place::Write(_) = self.places.get(index)? else { return None };
        let position = self.filling.reserved().binary_search_by_key(&index, |reserved| reserved.index);
        slot_io::reserved_block(&mut self.filling, position.ok()?)
    }

    /// All reserved blocks are written: they are hits from now on, and go to L2 as blocks do that are [put](BlockCache::put).
    /// Returns how many leading blocks of the keys the cache holds then, counted as for a put.
    pub fn commit(self) -> usize {
        self.commit_first(usize::MAX)
    }

    /// The first `written` of the reserved blocks, in key order, are written: only these are committed, and the others are
    /// given back. Returns as [`commit`](Self::commit).
    pub fn commit_first(self, written: usize) -> usize {
        let Self { cache, filling, keys, places } = self;
        let addressed: Vec<bool> = filling
            .reserved()
            .iter()
            .map(|reserved| matches!(places[reserved.index], Place::Write(_)))
            .collect();
        let published = filling.publish(&keys, |position| position < written && addressed[position]);
        cache.tell_l2(&published);
        published.held
    }
}
