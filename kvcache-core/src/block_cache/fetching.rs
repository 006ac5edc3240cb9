//! A get that goes on in L2 where L1 ends.

use std::mem::MaybeUninit;

use super::l2::L2;
use super::segments::Target;
use super::{BlockCache, slot_io};
use crate::BlockKey;
use crate::remote::RemoteSpace;

/// Room for blocks that cannot be fetched to where they go, since that is in several places. One round trip each.
/// Tests want several.
const BOUNCE_BYTES_MAX: usize = if cfg!(test) { 200 } else { 32 << 20 };

impl BlockCache {
    /// Brings blocks to their places in `target` from `from` on, of which the first is not in L1. Returns how many leading
    /// blocks of `keys` there are then.
    pub(super) fn fetch(
        &self,
        l2: &L2,
        space: RemoteSpace,
        keys: &[BlockKey],
        from: usize,
        target: &mut Target<'_>,
    ) -> usize {
        let at_once = match target.is_whole() {
            true => keys.len(),
            false => (BOUNCE_BYTES_MAX / self.block_bytes.max(1)).max(1),
        };
        let mut ready = from;
        while ready < keys.len() {
            let end = keys.len().min(ready.saturating_add(at_once));
            let reached = self.fetch_some(l2, space, &keys[..end], ready, target);
            if reached < end {
                return reached;
            }
            ready = end;
        }
        ready
    }

    fn fetch_some(
        &self,
        l2: &L2,
        space: RemoteSpace,
        keys: &[BlockKey],
        from: usize,
        target: &mut Target<'_>,
    ) -> usize {
        let absent = |index: &usize| self.directory.slot_of(&keys[*index]).is_none();
        let wanted: Vec<usize> = (from..keys.len()).filter(absent).collect();
        let names: Vec<BlockKey> = wanted.iter().map(|index| keys[*index]).collect();
        let bounce_bytes = if target.is_whole() { 0 } else { wanted.len() * self.block_bytes };
        let mut bounce = Box::<[u8]>::new_uninit_slice(bounce_bytes);
        let places: Vec<&mut [MaybeUninit<u8>]> = match target.is_whole() {
            true => target.whole_blocks(wanted.iter().copied()),
            false => bounce.chunks_exact_mut(self.block_bytes).collect(),
        };
        let came = l2.fetch(space, &names, places);
        let mut fetched = wanted.iter().zip(came).enumerate().peekable();
        for ready in from..keys.len() {
            let good = match fetched.next_if(|(_, (index, _))| **index == ready) {
                Some((_, (_, false))) => false,
                Some((position, (_, true))) => {
                    if !target.is_whole() {
                        let at = position * self.block_bytes;
                        slot_io::scatter(&bounce[at..at + self.block_bytes], ready, target);
                    }
                    true
                }
                None => self.get_here(&keys[ready..=ready], ready, target) == 1,
            };
            if !good {
                return ready;
            }
        }
        keys.len()
    }
}
