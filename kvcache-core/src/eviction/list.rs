//! Doubly linked lists over slot indices.
//!
//! A policy keeps every slot in one of a few queues and moves slots between them all the time. Pointers would need
//! unsafe code and an allocation a node; here the links are two `u32` arrays indexed by slot, shared by all lists of
//! a policy, since a slot is in at most one list. Each list is a ring closed by a sentinel node behind the last slot,
//! so that linking and unlinking never branch on "first" or "last":
//!
//! ```text
//! prev/next:  [ slot 0 | slot 1 | ... | slot n-1 | sentinel of list 0 | sentinel of list 1 ]
//! list 0:     sentinel -> front (newest) -> ... -> back (oldest) -> sentinel
//! ```

use super::SlotId;

/// Lists that share one pair of link arrays; a slot is in at most one of them.
///
/// Every operation is O(1). Memory: 9 bytes a slot.
#[derive(Debug)]
pub(super) struct SlotLists<const LISTS: usize> {
    prev: Vec<u32>,
    next: Vec<u32>,
    /// Which list a slot is in, or [`UNLINKED`].
    list_of: Vec<u8>,
    lens: [usize; LISTS],
}

impl<const LISTS: usize> SlotLists<LISTS> {
    /// Empty lists over the slots `0..slot_count`.
    ///
    /// # Panics
    ///
    /// If `slot_count` leaves no room for the sentinels in a `u32`.
    pub(super) fn new(slot_count: u32) -> Self {
        assert!(LISTS < UNLINKED as usize, "a list index must fit beside the unlinked mark");
        let nodes = slot_count.checked_add(LISTS as u32).expect("slot count leaves room for the sentinels");
        let mut lists = Self {
            prev: (0..nodes).collect(),
            next: (0..nodes).collect(),
            list_of: vec![UNLINKED; slot_count as usize],
            lens: [0; LISTS],
        };
        lists.clear();
        lists
    }

    /// Empties every list.
    pub(super) fn clear(&mut self) {
        self.list_of.fill(UNLINKED);
        self.lens = [0; LISTS];
        for list in 0..LISTS {
            let sentinel = self.sentinel(list);
            self.prev[sentinel as usize] = sentinel;
            self.next[sentinel as usize] = sentinel;
        }
    }

    /// Number of slots in `list`.
    #[inline]
    pub(super) fn len(&self, list: usize) -> usize {
        self.lens[list]
    }

    /// Number of slots in all lists.
    #[inline]
    pub(super) fn total_len(&self) -> usize {
        self.lens.iter().sum()
    }

    /// The list that `slot` is in. A slot beyond the slot count is in none.
    #[inline]
    pub(super) fn list_of(&self, slot: SlotId) -> Option<usize> {
        self.list_of.get(slot.index()).filter(|&&list| list != UNLINKED).map(|&list| list as usize)
    }

    /// Oldest slot of `list`.
    #[inline]
    pub(super) fn back(&self, list: usize) -> Option<SlotId> {
        self.slot(self.prev[self.sentinel(list) as usize])
    }

    /// The neighbour of `slot` towards the front: the next one in eviction order.
    #[inline]
    pub(super) fn newer(&self, slot: SlotId) -> Option<SlotId> {
        self.slot(self.prev[slot.index()])
    }

    /// Links `slot`, which is in no list, as the newest of `list`.
    ///
    /// # Panics
    ///
    /// If the slot is in a list already: the caller has lost count of its slots.
    #[inline]
    pub(super) fn push_front(&mut self, list: usize, slot: SlotId) {
        assert!(self.list_of[slot.index()] == UNLINKED, "slot {} is tracked already", slot.0);
        let sentinel = self.sentinel(list);
        let first = self.next[sentinel as usize];
        self.prev[slot.index()] = sentinel;
        self.next[slot.index()] = first;
        self.prev[first as usize] = slot.0;
        self.next[sentinel as usize] = slot.0;
        self.list_of[slot.index()] = list as u8;
        self.lens[list] += 1;
    }

    /// Unlinks `slot`; returns the list it was in.
    #[inline]
    pub(super) fn unlink(&mut self, slot: SlotId) -> Option<usize> {
        let list = self.list_of(slot)?;
        let (newer, older) = (self.prev[slot.index()], self.next[slot.index()]);
        self.next[newer as usize] = older;
        self.prev[older as usize] = newer;
        self.list_of[slot.index()] = UNLINKED;
        self.lens[list] -= 1;
        Some(list)
    }

    /// Moves a linked `slot` to the front of `list`.
    #[inline]
    pub(super) fn move_to_front(&mut self, list: usize, slot: SlotId) {
        self.unlink(slot);
        self.push_front(list, slot);
    }

    /// Bytes of memory that the lists hold.
    pub(super) fn metadata_bytes(&self) -> usize {
        (self.prev.capacity() + self.next.capacity()) * size_of::<u32>() + self.list_of.capacity()
    }

    #[inline]
    fn sentinel(&self, list: usize) -> u32 {
        (self.list_of.len() + list) as u32
    }

    #[inline]
    fn slot(&self, node: u32) -> Option<SlotId> {
        ((node as usize) < self.list_of.len()).then_some(SlotId(node))
    }
}

const UNLINKED: u8 = u8::MAX;
