//! Knows which block is in which slot, and decides which leaves.
//!
//! The Directory is pure state: it touches no block bytes and does no I/O, so that one decision made here is right for
//! the slabs of every rank. A key goes *absent → filling → ready → absent*; only *ready* is a hit. Slots whose work was
//! cancelled are *draining*: unreachable by key, but not reusable before the copy that may still touch them has been
//! acknowledged. **Memory is freed by completions only.**
//!
//! Every operation takes a whole slice of keys (one request's prefix) and holds the lock once for all of it; byte
//! copies never happen under it. Nothing here waits: when everything is pinned, filling or draining, an offload is
//! refused and counted.

mod groups;
mod slots;
mod stats;

#[cfg(test)]
mod tests;

pub use groups::{GroupKind, GroupMatch, GroupPrefix, match_groups};
pub use slots::FillId;
pub use stats::DirectoryStats;

use parking_lot::Mutex;

use crate::BlockKey;
use crate::eviction::{Candidate, EvictionPolicy, SlotId};
use slots::{Slots, State};

/// Maps keys to slots. See the [module documentation](self).
pub struct Directory {
    state: Mutex<Slots>,
}

/// How much of a prefix is resident.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PrefixMatch {
    /// Leading blocks that are ready.
    pub ready: usize,
    /// Blocks directly after them that are ready or being filled: `ready + pending` will be ready if all fills succeed.
    pub pending: usize,
    /// Whether the block after those was evicted not long ago, as far as the policy remembers.
    pub evicted: bool,
}

/// A slot reserved for a block that is about to be copied in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reserved {
    /// Position of the block in the caller's key slice.
    pub index: usize,
    /// Where its bytes go.
    pub slot: SlotId,
    /// Names this fill; [`Directory::complete_fills`] wants it back.
    pub fill: FillId,
}

/// A block that a slab holds complete.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Resident {
    /// Where it is.
    pub slot: SlotId,
    /// Its key.
    pub key: BlockKey,
    /// The key of the block before it; all zero for the first block of a prompt.
    pub parent: BlockKey,
    /// The fill that stored it.
    pub fill: FillId,
}

/// Why a block is not stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// Every block is in use. A later try may have more luck.
    NoRoom,
    /// The caller may evict no more: see [`evictions_per_request_max`].
    OverShare,
    /// What would have to leave is likelier to be used again.
    NotWorth,
}

impl Refusal {
    /// Whether the rest of the request is left out too, rather than tried again.
    pub fn is_final(self) -> bool {
        self != Self::NoRoom
    }
}

/// What an offload may copy, and what it may not.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Reservation {
    /// The slots to fill, in key order.
    pub reserved: Vec<Reserved>,
    /// Blocks that are ready or being filled already.
    pub present: usize,
    /// Those of them that are ready, as indices in key order: the caller [touches](Directory::touch) them when what is
    /// reserved has been stored, so that heads outlive tails.
    pub hits: Vec<usize>,
    /// Index of the first block that gets no slot, and why; it and all later absent ones are left out.
    pub refused: Option<(usize, Refusal)>,
    /// Keys evicted to make room, with their slots: what events report.
    pub evicted: Vec<(SlotId, BlockKey)>,
}

impl Reservation {
    /// Index of the first block that gets no slot.
    pub fn refused_from(&self) -> Option<usize> {
        self.refused.map(|(index, _)| index)
    }
}

impl Directory {
    /// An empty directory over `slot_count` slots, all usable. All memory is allocated here.
    ///
    /// Cost of metadata: at most 128 bytes a slot with the built-in policies, ghosts included, and 160 KiB with `hit-density`
    /// ([`DirectoryStats::metadata_bytes`]).
    pub fn new(slot_count: u32, policy: Box<dyn EvictionPolicy>) -> Self {
        Self { state: Mutex::new(Slots::new(slot_count, policy)) }
    }

    /// Makes only slots below `usable` available for new blocks; it can grow later, never shrink. What was
    /// [adopted](Self::adopt) above is served, and stays until its slot is usable or it is removed.
    pub fn limit_usable(&self, usable: u32) {
        self.state.lock().limit_usable(usable);
    }

    /// Slots from `usable` on need to be prepared for something else before they are filled: they are not usable until they are
    /// [made so](Self::limit_usable) again. What they hold is served, as if it was adopted there. Returns whether it is so:
    /// nothing changes while one of them is being filled. Cost: linear in the slots.
    pub fn withdraw(&self, usable: u32) -> bool {
        self.state.lock().withdraw(usable)
    }

    /// The leading blocks of `keys` that are resident. No change of state; never past a hole.
    pub fn match_prefix(&self, keys: &[BlockKey]) -> PrefixMatch {
        let state = self.state.lock();
        let ready = keys.iter().take_while(|key| state.is_ready(key)).count();
        let rest = &keys[ready..];
        let pending = rest.iter().take_while(|key| state.find(key).is_some()).count();
        let evicted = rest.get(pending).is_some_and(|key| state.policy.remembers(key));
        PrefixMatch { ready, pending, evicted }
    }

    /// Marks each of `keys` as ready (2), filling (1) or absent (0), under one lock. For groups that need no whole prefix.
    pub fn residency(&self, keys: &[BlockKey], out: &mut Vec<Residency>) {
        let state = self.state.lock();
        out.clear();
        out.extend(keys.iter().map(|key| match state.find(key) {
            None => Residency::Absent,
            Some(slot) if state.record(slot).state == State::Ready => Residency::Ready,
            Some(_) => Residency::Filling,
        }));
    }

    /// Pins the leading ready blocks of `keys`. Returns their slots in key order.
    ///
    /// Every returned slot stays where it is until [`end_load`](Self::end_load) is called with it. The use is not noted
    /// here: a request's hits are [touched](Self::touch) after its new blocks are stored.
    pub fn begin_load(&self, keys: &[BlockKey]) -> Vec<SlotId> {
        let mut state = self.state.lock();
        let slots: Vec<SlotId> = keys
            .iter()
            .map_while(|key| state.find(key).filter(|slot| state.record(*slot).state == State::Ready))
            .collect();
        for slot in &slots {
            state.pin(*slot);
        }
        slots
    }

    /// Ends what [`begin_load`](Self::begin_load) began, after the last copy out of these slots has been acknowledged.
    pub fn end_load(&self, slots: &[SlotId]) {
        let mut state = self.state.lock();
        for slot in slots {
            state.unpin(*slot);
        }
    }

    /// Marks the ready blocks of `keys` as used, tail first. Call once for each use of a block by a request.
    pub fn touch(&self, keys: &[BlockKey]) {
        let mut state = self.state.lock();
        for key in keys.iter().rev() {
            if let Some(slot) = state.find(key)
                && state.record(slot).state == State::Ready
            {
                state.policy.touch(slot);
            }
        }
    }

    /// Reserves slots for the absent blocks of `chain[from..]`, evicting at most `evictions_max` unpinned blocks where
    /// no slot is free ([`evictions_per_request_max`] is what a request may evict in all).
    ///
    /// `chain` is a prefix from its first block on: parents are found in it and its resident blocks are not evicted for
    /// its own tail. At the first block without room the rest is refused. Nothing is touched: see [`Reservation::hits`].
    pub fn begin_offload(&self, chain: &[BlockKey], from: usize, evictions_max: usize) -> Reservation {
        self.reserve(chain, from, evictions_max, false)
    }

    /// As [`begin_offload`](Self::begin_offload), where the blocks may as well not be stored: a policy may deem what would
    /// have to leave worth more ([`Refusal::NotWorth`]).
    pub fn begin_offload_if_worth(
        &self,
        chain: &[BlockKey],
        from: usize,
        evictions_max: usize,
    ) -> Reservation {
        self.reserve(chain, from, evictions_max, true)
    }

    fn reserve(&self, chain: &[BlockKey], from: usize, evictions_max: usize, if_worth: bool) -> Reservation {
        let mut state = self.state.lock();
        let mut out = Reservation::default();
        let own = state.mark_chain(chain);
        for (index, key) in chain.iter().enumerate().skip(from) {
            let parent = index.checked_sub(1).and_then(|parent| state.find(&chain[parent]));
            if let Some(slot) = state.find(key) {
                state.relink(slot, parent);
                out.present += 1;
                if state.record(slot).state == State::Ready {
                    out.hits.push(index);
                }
                continue;
            }
            let slot = if !state.has_free() && out.evicted.len() >= evictions_max {
                Err(Refusal::OverShare)
            } else {
                state.take_slot(if_worth.then_some(key), own, &mut out.evicted)
            };
            let slot = match slot {
                Ok(slot) => slot,
                Err(why) => {
                    out.refused = Some((index, why));
                    state.leave_out(&chain[index..], why);
                    break;
                }
            };
            // Looked up before the slot was taken: no block of this chain is a victim, so the parent is still there.
            let fill = state.start_fill(slot, *key, parent, own);
            out.reserved.push(Reserved { index, slot, fill });
        }
        out
    }

    /// Counts the absent blocks of `keys` as not stored, since an earlier block of their request was refused.
    pub fn leave_out(&self, keys: &[BlockKey], why: Refusal) {
        self.state.lock().leave_out(keys, why);
    }

    /// Ends fills: with `ok` their blocks become ready, otherwise absent. Call with all fills of one job, in key order.
    ///
    /// Returns the fills that became ready. A fill that was cancelled meanwhile frees its slot and is not returned;
    /// a stale fill id is ignored.
    pub fn complete_fills(&self, fills: &[(SlotId, FillId)], ok: bool) -> Vec<SlotId> {
        self.complete_fills_with(fills, ok, |_, _| {})
    }

    /// As [`complete_fills`](Self::complete_fills), and calls `label` for each block that becomes ready, before anybody
    /// can find it. `label` runs under the lock: it may write a slot's label, never its bytes.
    pub fn complete_fills_with(
        &self,
        fills: &[(SlotId, FillId)],
        ok: bool,
        mut label: impl FnMut(SlotId, FillId),
    ) -> Vec<SlotId> {
        let mut state = self.state.lock();
        let mut ready = Vec::with_capacity(fills.len());
        // Tail first, so that within a job heads outlive tails.
        for (slot, fill) in fills.iter().rev() {
            if state.end_fill(*slot, *fill, ok) {
                label(*slot, *fill);
                ready.push(*slot);
            }
        }
        ready.reverse();
        ready
    }

    /// Removes `keys`. Blocks in use become unreachable at once and their slots free when the last user ends.
    ///
    /// Returns the slots of the blocks removed (ready or filling).
    pub fn delete(&self, keys: &[BlockKey]) -> Vec<(SlotId, BlockKey)> {
        self.delete_with(keys, |_| {})
    }

    /// As [`delete`](Self::delete), and calls `label` for each slot before it can be given to another block. `label`
    /// runs under the lock: it may write a slot's label, never its bytes.
    pub fn delete_with(&self, keys: &[BlockKey], mut label: impl FnMut(SlotId)) -> Vec<(SlotId, BlockKey)> {
        let mut state = self.state.lock();
        let mut removed = Vec::new();
        for key in keys {
            if let Some(slot) = state.remove_key(key) {
                label(slot);
                removed.push((slot, *key));
            }
        }
        removed
    }

    /// Removes everything, ghosts included. Slots in use free when their last user ends.
    pub fn clear(&self) {
        self.state.lock().clear();
    }

    /// Takes over blocks that a slab kept across a restart, oldest first. Returns those taken: a block whose slot or key
    /// is in use already is left out. Their slots need not be usable yet: what is read does not need what a fill needs.
    ///
    /// New fills get ids above every `fill` given. Cost: linear in the blocks and the slots.
    pub fn adopt<'a>(&self, blocks: &'a [Resident]) -> Vec<&'a Resident> {
        self.state.lock().adopt(blocks)
    }

    /// New fills get ids above `fill`, the highest that any slab has seen: a label of an earlier process must never be
    /// taken for one of ours.
    pub fn start_fills_above(&self, fill: FillId) {
        self.state.lock().start_fills_above(fill);
    }

    /// The slot of a ready block.
    pub fn slot_of(&self, key: &BlockKey) -> Option<SlotId> {
        let state = self.state.lock();
        state.find(key).filter(|slot| state.record(*slot).state == State::Ready)
    }

    /// The key of a ready block.
    pub fn key_of(&self, slot: SlotId) -> Option<BlockKey> {
        let state = self.state.lock();
        let record = state.get(slot)?;
        (record.state == State::Ready).then_some(record.key)
    }

    /// Slots that a new block gets without an eviction.
    pub fn free_slots(&self) -> usize {
        self.state.lock().free_slots()
    }

    /// Evicts up to `count` blocks before their slots are needed, so that they can be copied elsewhere first. They are
    /// unreachable at once; each slot is free when [`end_load`](Self::end_load) is called with it.
    pub fn evict_ahead(&self, count: usize) -> Vec<(SlotId, BlockKey)> {
        let mut state = self.state.lock();
        std::iter::from_fn(|| state.evict_to_drain()).take(count).collect()
    }

    /// Counts of everything, under one lock. `free + filling + ready + draining + unusable == slot_count`, always.
    pub fn stats(&self) -> DirectoryStats {
        self.state.lock().stats()
    }

    /// Verifies every internal invariant; for tests. Linear in the slots.
    ///
    /// # Errors
    /// The first broken invariant, in words.
    pub fn check(&self) -> Result<(), String> {
        self.state.lock().check()
    }
}

/// Blocks that one request may evict: a quarter of the slots, at least one.
///
/// In a cache of a few requests' length a single long request would otherwise empty the cache, and its tail is of use
/// only while its head is there. On an agentic-coding trace with a cache of 0.5 % of the distinct blocks (1.7
/// requests) the limit lifts the block hit ratio from 12.5 % to 18 %; where a cache holds tens of requests it never
/// acts.
pub fn evictions_per_request_max(slot_count: u32) -> usize {
    (slot_count as usize / 4).max(1)
}

/// Whether a block can be loaded now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Residency {
    /// Not here.
    Absent,
    /// On its way in.
    Filling,
    /// A hit.
    Ready,
}
