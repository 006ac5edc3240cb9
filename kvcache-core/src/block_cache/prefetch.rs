//! From L2 into L1, without a caller's buffer.

use super::BlockCache;
use super::filling::Filling;
use super::l2::L2;
use super::pinned::Pinned;
use super::slot_io;
use crate::BlockKey;
use crate::remote::RemoteSpace;

impl BlockCache {
    /// Brings the leading blocks of `keys` from L2 into L1, for a get or a [lease](Self::lease) to come, and returns how many
    /// leading blocks L1 holds then. Blocks that another call is bringing just now are not waited for.
    ///
    /// Only what L2 says it has gets slots, so that nothing is evicted for blocks that nobody has; where too few can be
    /// evicted it ends there. It is not a use of the blocks. Blocks for a match, [`L2Config::match_timeout`] at most, and
    /// then for a get, [`L2Config::fetch_timeout`] at most. Without L2 it only looks.
    ///
    /// [`L2Config::match_timeout`]: super::L2Config::match_timeout
    /// [`L2Config::fetch_timeout`]: super::L2Config::fetch_timeout
    pub fn prefetch(&self, keys: &[BlockKey]) -> usize {
        self.bring(keys).slots().len()
    }

    /// Pins the leading blocks of `keys`, after those of L2 were brought into L1.
    pub(super) fn bring(&self, keys: &[BlockKey]) -> Pinned<&Self> {
        // Before L1 is looked at, as in a get.
        let space = self.l2.as_ref().map(L2::space);
        let mut pinned = Pinned::leading(self, keys);
        let here = pinned.slots().len();
        let (Some(l2), Some(space)) = (&self.l2, space) else { return pinned };
        if here < keys.len() {
            let there = here + l2.match_prefix(&keys[here..]);
            if there > here {
                self.fetch_into_slots(l2, space, &keys[..there], here);
                pinned.append(Pinned::leading(self, &keys[here..there]));
            }
        }
        pinned
    }

    /// Fetches the absent blocks of `keys[from..]` from `space`, straight into slots of their own.
    fn fetch_into_slots(&self, l2: &L2, space: RemoteSpace, keys: &[BlockKey], from: usize) {
        let mut reserved = None;
        // From then on a clearing cancels the fills: what arrives later than that is never found.
        l2.unless_cleared(space, || reserved = Some(Filling::reserve(self, keys, from)));
        let Some(mut filling) = reserved.filter(|filling| !filling.reserved().is_empty()) else { return };
        filling.forget_hits();
        let names: Vec<BlockKey> = filling.reserved().iter().map(|reserved| keys[reserved.index]).collect();
        let Some(places) = slot_io::reserved_blocks(&mut filling) else { return };
        let came = l2.fetch(space, &names, places);
        filling.publish(keys, |position| came.get(position) == Some(&true));
        l2.filled();
    }
}
