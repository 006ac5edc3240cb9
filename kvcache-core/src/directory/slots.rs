//! The slot records, the key index and the free list behind one lock.

use std::collections::HashSet;

use hashbrown::HashTable;

use super::{Candidate, DirectoryStats, EvictionPolicy, Refusal, Resident, SlotId};
use crate::BlockKey;
use crate::eviction::Place;

/// Names one fill of one slot, so that a late completion cannot be taken for a newer one. Grows for ever, also across
/// restarts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
#[repr(transparent)]
pub struct FillId(pub u64);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum State {
    Free,
    /// Reachable by key; a copy into the slot is under way.
    Filling,
    /// Reachable by key; the bytes are complete.
    Ready,
    /// Not reachable by key; a copy into (fill under way) or out of (pins) the slot is not acknowledged yet.
    Draining,
}

/// One slot. 48 bytes: the Directory's share of the metadata budget.
#[derive(Clone, Copy)]
pub(super) struct Record {
    pub(super) key: BlockKey,
    pub(super) fill: FillId,
    /// Slot of the parent block, valid while `slots[parent].fill == parent_fill`.
    parent: u32,
    parent_fill_low: u32,
    /// Resident blocks that name this one as their parent.
    pub(super) children: u32,
    pub(super) pins: u32,
    /// The chain operation that last saw this slot: its own blocks are no victims for its tail.
    seen_by: u32,
    pub(super) state: State,
    /// Whether a copy into the slot is under way: distinguishes the two reasons for draining.
    filling: bool,
}

const NO_PARENT: u32 = u32::MAX;

#[derive(Default)]
pub(super) struct Counters {
    pub(super) stored: u64,
    pub(super) evicted: u64,
    pub(super) refused: u64,
    pub(super) over_share: u64,
    pub(super) not_worth: u64,
    pub(super) failed_fills: u64,
    pub(super) cancelled_fills: u64,
    pub(super) adopted: u64,
    pub(super) removed: u64,
}

pub(super) struct Slots {
    records: Vec<Record>,
    index: HashTable<u32>,
    free: Vec<SlotId>,
    pub(super) policy: Box<dyn EvictionPolicy>,
    /// Only slots below this index are filled. Those above hold what was adopted, or nothing.
    usable: u32,
    /// Free slots that are not usable, and so not in `free`.
    unusable: usize,
    next_fill: u64,
    operation: u32,
    /// Ready slots with pins.
    pinned_ready: usize,
    /// Ready slots without pins that are not usable, and so no victims.
    early_ready: usize,
    filling: usize,
    draining: usize,
    pub(super) counters: Counters,
}

impl Slots {
    pub(super) fn new(slot_count: u32, policy: Box<dyn EvictionPolicy>) -> Self {
        let empty = Record {
            key: BlockKey::default(),
            fill: FillId(0),
            parent: NO_PARENT,
            parent_fill_low: 0,
            children: 0,
            pins: 0,
            seen_by: 0,
            state: State::Free,
            filling: false,
        };
        let mut slots = Self {
            records: vec![empty; slot_count as usize],
            index: HashTable::with_capacity(slot_count as usize),
            free: Vec::with_capacity(slot_count as usize),
            policy,
            usable: 0,
            unusable: 0,
            next_fill: 1,
            operation: 0,
            pinned_ready: 0,
            early_ready: 0,
            filling: 0,
            draining: 0,
            counters: Counters::default(),
        };
        slots.usable = slot_count;
        slots.free.extend((0..slot_count).rev().map(SlotId));
        slots
    }

    pub(super) fn limit_usable(&mut self, usable: u32) {
        let usable = usable.min(self.records.len() as u32);
        if usable < self.usable && self.index.is_empty() && self.draining == 0 {
            self.withdraw(usable);
        } else if usable > self.usable {
            for slot in (self.usable..usable).rev().map(SlotId) {
                let record = &self.records[slot.index()];
                match record.state {
                    State::Free => {
                        self.free.push(slot);
                        self.unusable -= 1;
                    }
                    State::Ready if record.pins == 0 => self.early_ready -= 1,
                    _ => {}
                }
            }
            self.usable = usable;
        }
    }

    /// Makes the slots from `usable` on unusable again, if none of them is being filled; whether it did.
    pub(super) fn withdraw(&mut self, usable: u32) -> bool {
        let end = self.usable as usize;
        let withdrawn = self.records.get(usable as usize..end).unwrap_or_default();
        if withdrawn.iter().any(|record| record.filling) {
            return false;
        }
        let count = |is: &dyn Fn(&&Record) -> bool| withdrawn.iter().filter(is).count();
        self.unusable += count(&|record| record.state == State::Free);
        self.early_ready += count(&|record| record.state == State::Ready && record.pins == 0);
        self.free.retain(|slot| slot.0 < usable);
        self.usable = self.usable.min(usable);
        true
    }

    /// Whether the slot's memory is not ready to be filled: its block was adopted, and can leave for no other.
    fn is_early(&self, slot: SlotId) -> bool {
        slot.0 >= self.usable
    }

    pub(super) fn find(&self, key: &BlockKey) -> Option<SlotId> {
        self.index
            .find(key.short_hash(), |slot| self.records[*slot as usize].key == *key)
            .map(|slot| SlotId(*slot))
    }

    pub(super) fn is_ready(&self, key: &BlockKey) -> bool {
        self.find(key).is_some_and(|slot| self.record(slot).state == State::Ready)
    }

    pub(super) fn record(&self, slot: SlotId) -> &Record {
        &self.records[slot.index()]
    }

    /// Stamps the resident blocks of a chain and returns the stamp.
    pub(super) fn mark_chain(&mut self, chain: &[BlockKey]) -> u32 {
        self.operation = self.operation.wrapping_add(1).max(1);
        for key in chain {
            if let Some(slot) = self.find(key) {
                self.records[slot.index()].seen_by = self.operation;
            }
        }
        self.operation
    }

    pub(super) fn has_free(&self) -> bool {
        !self.free.is_empty()
    }

    pub(super) fn free_slots(&self) -> usize {
        self.free.len()
    }

    pub(super) fn get(&self, slot: SlotId) -> Option<&Record> {
        self.records.get(slot.index())
    }

    /// Counts the absent blocks of `keys` as left out, and tells the policy of those that will not be tried again.
    pub(super) fn leave_out(&mut self, keys: &[BlockKey], why: Refusal) {
        for key in keys {
            if self.find(key).is_none() {
                if why.is_final() {
                    self.policy.pass_by(key);
                }
                *match why {
                    Refusal::NoRoom => &mut self.counters.refused,
                    Refusal::OverShare => &mut self.counters.over_share,
                    Refusal::NotWorth => &mut self.counters.not_worth,
                } += 1;
            }
        }
    }

    /// A slot for a new block: a free one, else a victim's; for a `newcomer` only where the policy deems it worth that.
    pub(super) fn take_slot(
        &mut self,
        newcomer: Option<&BlockKey>,
        own: u32,
        evicted: &mut Vec<(SlotId, BlockKey)>,
    ) -> Result<SlotId, Refusal> {
        if let Some(slot) = self.free.pop() {
            return Ok(slot);
        }
        let slot = match self.evict(newcomer, Some(own)) {
            Place::Victim(slot) => slot,
            Place::NotWorth => return Err(Refusal::NotWorth),
            Place::None => return Err(Refusal::NoRoom),
        };
        let key = self.records[slot.index()].key;
        self.unlink(slot);
        self.records[slot.index()].state = State::Free;
        self.counters.evicted += 1;
        evicted.push((slot, key));
        Ok(slot)
    }

    /// A victim, drained by a reader: see [`Directory::evict_ahead`](super::Directory::evict_ahead).
    pub(super) fn evict_to_drain(&mut self) -> Option<(SlotId, BlockKey)> {
        let Place::Victim(slot) = self.evict(None, None) else { return None };
        let key = self.records[slot.index()].key;
        self.unlink(slot);
        self.records[slot.index()].pins = 1;
        self.drain(slot);
        self.counters.evicted += 1;
        Some((slot, key))
    }

    /// Takes a victim out of the policy: no pinned block, none whose slot could not be filled, and none that `own` has seen.
    fn evict(&mut self, newcomer: Option<&BlockKey>, own: Option<u32>) -> Place {
        // With as many as the policy tracks there is no victim, and no need to look for one.
        if self.policy.len() <= self.pinned_ready + self.early_ready {
            return Place::None;
        }
        let (records, usable) = (&self.records, self.usable);
        let candidate = &mut |slot: SlotId| {
            let record = &records[slot.index()];
            if record.pins > 0 || slot.0 >= usable || Some(record.seen_by) == own {
                Candidate::Pinned
            } else if record.children > 0 {
                Candidate::HasChildren
            } else {
                Candidate::Leaf
            }
        };
        match newcomer {
            Some(newcomer) => self.policy.evict_for(newcomer, candidate),
            None => self.policy.evict(candidate).map_or(Place::None, Place::Victim),
        }
    }

    pub(super) fn start_fill(
        &mut self,
        slot: SlotId,
        key: BlockKey,
        parent: Option<SlotId>,
        own: u32,
    ) -> FillId {
        let fill = FillId(self.next_fill);
        self.next_fill = self.next_fill.saturating_add(1);
        self.place(slot, key, parent, fill, State::Filling);
        let record = &mut self.records[slot.index()];
        record.seen_by = own;
        record.filling = true;
        self.filling += 1;
        fill
    }

    /// Ends a fill; whether its block is ready now.
    pub(super) fn end_fill(&mut self, slot: SlotId, fill: FillId, ok: bool) -> bool {
        let Some(record) = self.records.get_mut(slot.index()) else { return false };
        if record.fill != fill || !record.filling {
            return false;
        }
        record.filling = false;
        match record.state {
            State::Filling if ok => {
                record.state = State::Ready;
                let key = record.key;
                self.filling -= 1;
                self.counters.stored += 1;
                self.policy.insert(slot, key);
                true
            }
            State::Filling => {
                self.filling -= 1;
                self.counters.failed_fills += 1;
                self.unlink(slot);
                self.release(slot);
                false
            }
            State::Draining => {
                self.counters.cancelled_fills += 1;
                self.draining -= 1;
                self.release(slot);
                false
            }
            State::Free | State::Ready => {
                unreachable!("a fill is under way only in filling and draining slots")
            }
        }
    }

    pub(super) fn pin(&mut self, slot: SlotId) {
        let is_early = self.is_early(slot);
        let record = &mut self.records[slot.index()];
        debug_assert_eq!(record.state, State::Ready, "only ready blocks are pinned");
        record.pins += 1;
        if record.pins == 1 {
            self.pinned_ready += 1;
            self.early_ready -= usize::from(is_early);
        }
    }

    pub(super) fn unpin(&mut self, slot: SlotId) {
        let is_early = self.is_early(slot);
        let record = &mut self.records[slot.index()];
        debug_assert!(record.pins > 0, "unpin without pin");
        record.pins = record.pins.saturating_sub(1);
        if record.pins > 0 {
            return;
        }
        match record.state {
            State::Ready => {
                self.pinned_ready -= 1;
                self.early_ready += usize::from(is_early);
            }
            State::Draining if !record.filling => {
                self.draining -= 1;
                self.release(slot);
            }
            _ => {}
        }
    }

    /// Makes a key unreachable; its slot if it was resident.
    pub(super) fn remove_key(&mut self, key: &BlockKey) -> Option<SlotId> {
        let slot = self.find(key)?;
        self.unlink(slot);
        let record = self.records[slot.index()];
        match record.state {
            State::Ready => {
                self.policy.remove(slot);
                if record.pins > 0 {
                    self.pinned_ready -= 1;
                    self.drain(slot);
                } else {
                    self.early_ready -= usize::from(self.is_early(slot));
                    self.release(slot);
                }
            }
            State::Filling => {
                self.filling -= 1;
                self.drain(slot);
            }
            State::Free | State::Draining => unreachable!("the index holds filling and ready slots only"),
        }
        self.counters.removed += 1;
        Some(slot)
    }

    pub(super) fn clear(&mut self) {
        let keys: Vec<BlockKey> = self.index.iter().map(|slot| self.records[*slot as usize].key).collect();
        for key in &keys {
            self.remove_key(key);
        }
        self.policy.clear();
    }

    pub(super) fn adopt<'a>(&mut self, blocks: &'a [Resident]) -> Vec<&'a Resident> {
        let mut taken = Vec::with_capacity(blocks.len());
        for block in blocks {
            self.start_fills_above(block.fill);
            let free = self.get(block.slot).is_some_and(|record| record.state == State::Free);
            if !free || self.find(&block.key).is_some() {
                continue;
            }
            self.place(block.slot, block.key, None, block.fill, State::Ready);
            self.policy.insert(block.slot, block.key);
            if self.is_early(block.slot) {
                self.unusable -= 1;
                self.early_ready += 1;
            }
            self.counters.adopted += 1;
            taken.push(block);
        }
        // A head that was stored again is younger than its tail: parents are known only when all blocks are placed.
        for block in &taken {
            if let Some(parent) = self.find(&block.parent) {
                self.link(block.slot, parent);
            }
        }
        let records = &self.records;
        self.free.retain(|slot| records[slot.index()].state == State::Free);
        taken
    }

    pub(super) fn stats(&self) -> DirectoryStats {
        DirectoryStats {
            slot_count: self.records.len(),
            unusable: self.unusable,
            free: self.free.len(),
            filling: self.filling,
            ready: self.policy.len(),
            draining: self.draining,
            pinned: self.pinned_ready,
            stored: self.counters.stored,
            evicted: self.counters.evicted,
            refused: self.counters.refused,
            over_share: self.counters.over_share,
            not_worth: self.counters.not_worth,
            failed_fills: self.counters.failed_fills,
            cancelled_fills: self.counters.cancelled_fills,
            adopted: self.counters.adopted,
            removed: self.counters.removed,
            metadata_bytes: self.metadata_bytes(),
            policy: self.policy.name(),
        }
    }

    fn metadata_bytes(&self) -> usize {
        // A bucket of the index is its value and one control byte; see hashbrown's layout.
        self.records.capacity() * size_of::<Record>()
            + self.index.allocation_size()
            + self.free.capacity() * size_of::<SlotId>()
            + self.policy.metadata_bytes()
    }

    fn place(&mut self, slot: SlotId, key: BlockKey, parent: Option<SlotId>, fill: FillId, state: State) {
        self.records[slot.index()] = Record {
            key,
            fill,
            parent: NO_PARENT,
            parent_fill_low: 0,
            children: 0,
            pins: 0,
            seen_by: 0,
            state,
            filling: false,
        };
        if let Some(parent) = parent {
            self.link(slot, parent);
        }
        let records = &self.records;
        self.index.insert_unique(key.short_hash(), slot.0, |slot| records[*slot as usize].key.short_hash());
    }

    /// Takes a slot's key out of the index and out of its parent's count of children.
    fn unlink(&mut self, slot: SlotId) {
        let record = self.records[slot.index()];
        if let Ok(entry) = self.index.find_entry(record.key.short_hash(), |candidate| *candidate == slot.0) {
            entry.remove();
        }
        if let Some(parent) = self.parent_of(slot) {
            let children = &mut self.records[parent.index()].children;
            *children = children.saturating_sub(1);
        }
        self.records[slot.index()].parent = NO_PARENT;
    }

    /// The slot of a block's parent, while that one is still what it was when they were linked.
    fn parent_of(&self, slot: SlotId) -> Option<SlotId> {
        let record = &self.records[slot.index()];
        let parent = self.records.get(record.parent as usize)?;
        let same = parent.fill.0 as u32 == record.parent_fill_low && parent.state != State::Free;
        same.then_some(SlotId(record.parent))
    }

    fn link(&mut self, slot: SlotId, parent: SlotId) {
        let record = &mut self.records[parent.index()];
        record.children += 1;
        let fill_low = record.fill.0 as u32;
        let record = &mut self.records[slot.index()];
        record.parent = parent.0;
        record.parent_fill_low = fill_low;
    }

    /// Links a resident block to its parent if its own was evicted and stored anew since: a head with a resident tail
    /// is no leaf.
    pub(super) fn relink(&mut self, slot: SlotId, parent: Option<SlotId>) {
        if let Some(parent) = parent
            && self.parent_of(slot) != Some(parent)
        {
            if let Some(old) = self.parent_of(slot) {
                let children = &mut self.records[old.index()].children;
                *children = children.saturating_sub(1);
            }
            self.link(slot, parent);
        }
    }

    pub(super) fn start_fills_above(&mut self, fill: FillId) {
        self.next_fill = self.next_fill.max(fill.0.saturating_add(1));
    }

    fn drain(&mut self, slot: SlotId) {
        self.records[slot.index()].state = State::Draining;
        self.draining += 1;
    }

    fn release(&mut self, slot: SlotId) {
        self.records[slot.index()].state = State::Free;
        if self.is_early(slot) {
            self.unusable += 1;
        } else {
            self.free.push(slot);
        }
    }

    pub(super) fn check(&self) -> Result<(), String> {
        let count = |state| self.records.iter().filter(|record| record.state == state).count();
        let pinned = self.records.iter().filter(|r| r.state == State::Ready && r.pins > 0).count();
        let early = &self.records[self.usable as usize..];
        let unusable = early.iter().filter(|record| record.state == State::Free).count();
        let early_ready = early.iter().filter(|r| r.state == State::Ready && r.pins == 0).count();
        let early_filling = early.iter().filter(|record| record.filling).count();
        let free_once: HashSet<u32> = self.free.iter().map(|slot| slot.0).collect();
        let expect = [
            ("free", count(State::Free), self.free.len() + self.unusable),
            ("free once", free_once.len(), self.free.len()),
            ("unusable", unusable, self.unusable),
            ("ready and unusable", early_ready, self.early_ready),
            ("filling and unusable", early_filling, 0),
            ("filling", count(State::Filling), self.filling),
            ("ready", count(State::Ready), self.policy.len()),
            ("draining", count(State::Draining), self.draining),
            ("pinned", pinned, self.pinned_ready),
            ("indexed", self.index.len(), self.filling + self.policy.len()),
        ];
        for (name, found, counted) in expect {
            if found != counted {
                return Err(format!("{name}: found {found} slots, counted {counted}"));
            }
        }
        for (slot, record) in self.records.iter().enumerate() {
            let reachable = matches!(record.state, State::Filling | State::Ready);
            if reachable != (self.find(&record.key) == Some(SlotId(slot as u32))) {
                return Err(format!(
                    "slot {slot} in state {:?}: reachable by its key is {}",
                    record.state, !reachable
                ));
            }
            if record.state == State::Draining && !record.filling && record.pins == 0 {
                return Err(format!("slot {slot} drains without anything to wait for"));
            }
            let children = self.records.iter().filter(|child| {
                matches!(child.state, State::Filling | State::Ready)
                    && child.parent == slot as u32
                    && child.parent_fill_low == record.fill.0 as u32
            });
            if reachable && children.count() != record.children as usize {
                return Err(format!("slot {slot} counts {} children", record.children));
            }
        }
        Ok(())
    }
}
