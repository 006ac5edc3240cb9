//! Slots on the heap with a table of labels. Both outlive the process that a test pretends to kill.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use kvcache_core::BlockKey;
use kvcache_core::directory::{FillId, Resident};
use kvcache_core::eviction::SlotId;
use kvcache_core::store::{SlotLabel, SlotMemory};
use parking_lot::{Mutex, MutexGuard};

/// Memory at a stable address that copies may touch from any thread.
pub(crate) struct Bytes {
    base: *mut u64,
    words: usize,
}

// SAFETY: plain memory; who may touch which part when is the duty of those who copy, as it is for real slabs.
unsafe impl Send for Bytes {}
// SAFETY: as above.
unsafe impl Sync for Bytes {}

impl Bytes {
    pub(crate) fn new(bytes: usize) -> Self {
        let words = bytes.div_ceil(8);
        let base = Box::into_raw(vec![0u64; words].into_boxed_slice()).cast();
        Self { base, words }
    }

    pub(crate) fn address(&self) -> usize {
        self.base as usize
    }

    pub(crate) fn word(&self, index: usize) -> u64 {
        assert!(index < self.words);
        // SAFETY: inside of the allocation, aligned; the tests read nothing that a copy writes on another thread.
        unsafe { self.base.add(index).read() }
    }

    pub(crate) fn set_word(&self, index: usize, value: u64) {
        assert!(index < self.words);
        // SAFETY: as for `word`.
        unsafe { self.base.add(index).write(value) }
    }

    pub(crate) fn words(&self) -> usize {
        self.words
    }
}

impl Drop for Bytes {
    fn drop(&mut self) {
        // SAFETY: made by `Box::into_raw` of a slice of this length.
        drop(unsafe { Box::from_raw(std::ptr::slice_from_raw_parts_mut(self.base, self.words)) });
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Record {
    pub(crate) label: SlotLabel,
    pub(crate) ready: bool,
    pub(crate) damaged: bool,
}

struct Table {
    records: Vec<Option<Record>>,
    epoch: u64,
    highest: FillId,
}

/// What survives a crash: the bytes and labels written so far.
pub(crate) struct Slab {
    bytes: Bytes,
    slot_bytes: usize,
    table: Mutex<Table>,
}

impl Slab {
    pub(crate) fn new(slot_count: u32, slot_bytes: usize) -> Arc<Self> {
        let slot_bytes = slot_bytes.next_multiple_of(8);
        let table = Table { records: vec![None; slot_count as usize], epoch: 0, highest: FillId(0) };
        let bytes = Bytes::new(slot_bytes * slot_count as usize);
        Arc::new(Self { bytes, slot_bytes, table: Mutex::new(table) })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock()
    }

    pub(crate) fn record(&self, slot: SlotId) -> Option<Record> {
        self.table().records[slot.index()]
    }

    pub(crate) fn slot_count(&self) -> usize {
        self.table().records.len()
    }

    /// Slots that are being filled.
    pub(crate) fn half_filled(&self) -> usize {
        self.table().records.iter().flatten().filter(|record| !record.ready).count()
    }

    /// Spoils the bytes of a slot such that whoever verifies it notices; whether it held a block.
    pub(crate) fn damage(&self, slot: SlotId) -> bool {
        let mut table = self.table();
        let Some(record) = table.records[slot.index()].as_mut() else { return false };
        record.damaged = true;
        let words = self.slot_bytes / 8;
        for word in slot.index() * words..(slot.index() + 1) * words {
            self.bytes.set_word(word, !self.bytes.word(word));
        }
        true
    }
}

/// Mistakes that a test can plant.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct MemoryBugs {
    /// A slot is labelled ready before its bytes are.
    pub(crate) publish_before_copy: bool,
    /// Blocks of an older epoch are found again.
    pub(crate) forget_epoch: bool,
    /// A slot is believed to hold whatever is asked for.
    pub(crate) trust_any_label: bool,
    /// What a replica knows to be worthless stays.
    pub(crate) keep_void: bool,
}

/// One process's view of a [`Slab`].
pub(crate) struct FakeMemory {
    slab: Arc<Slab>,
    usable: AtomicU32,
    /// Slots that are not usable have memory all the same, which a device cannot write to yet.
    pins: AtomicBool,
    populated: AtomicU32,
    /// Whether more will be.
    populating: AtomicBool,
    alive: AtomicBool,
    replica: bool,
    bugs: MemoryBugs,
}

impl FakeMemory {
    pub(crate) fn new(slab: &Arc<Slab>, usable: u32, bugs: MemoryBugs) -> Arc<Self> {
        Self::of(slab, usable, false, bugs)
    }

    /// A rank's that shares the slab with the one that fills it.
    pub(crate) fn replica(slab: &Arc<Slab>, usable: u32, bugs: MemoryBugs) -> Arc<Self> {
        Self::of(slab, usable, true, bugs)
    }

    fn of(slab: &Arc<Slab>, usable: u32, replica: bool, bugs: MemoryBugs) -> Arc<Self> {
        let (usable, alive) = (AtomicU32::new(usable), AtomicBool::new(true));
        let (populated, populating) = (AtomicU32::new(u32::MAX), AtomicBool::new(false));
        let pins = AtomicBool::new(false);
        Arc::new(Self { slab: Arc::clone(slab), usable, pins, populated, populating, alive, replica, bugs })
    }

    /// The process is dead: nothing it still tries reaches the slab.
    pub(crate) fn kill(&self) {
        self.alive.store(false, Ordering::SeqCst);
    }

    pub(crate) fn grow(&self, slots: u32) {
        let usable = self.usable.load(Ordering::SeqCst).saturating_add(slots).min(self.slot_count());
        self.usable.store(usable, Ordering::SeqCst);
    }

    /// From now on slots become usable as they are pinned, and all of them have memory.
    pub(crate) fn pin_slowly(&self) {
        self.pins.store(true, Ordering::SeqCst);
    }

    fn has_memory(&self, slot: SlotId) -> bool {
        slot.0 < self.usable_slots()
            || self.pins.load(Ordering::SeqCst) && slot.index() < self.slab.slot_count()
    }

    /// Only that many slots have memory so far, and whether there will be more.
    pub(crate) fn populate(&self, slots: u32, more: bool) {
        self.populated.store(slots, Ordering::SeqCst);
        self.populating.store(more, Ordering::SeqCst);
    }

    fn change(&self, slot: SlotId, change: impl FnOnce(&mut Option<Record>)) {
        if self.alive.load(Ordering::SeqCst)
            && let Some(record) = self.slab.table().records.get_mut(slot.index())
        {
            change(record);
        }
    }
}

impl SlotMemory for FakeMemory {
    fn slot_count(&self) -> u32 {
        self.slab.slot_count() as u32
    }

    fn usable_slots(&self) -> u32 {
        self.usable.load(Ordering::SeqCst)
    }

    fn populated_slots(&self) -> u32 {
        self.populated.load(Ordering::SeqCst).min(self.usable_slots())
    }

    fn is_growing(&self) -> bool {
        self.usable_slots() < self.slot_count() || self.populating.load(Ordering::SeqCst)
    }

    fn slot_bytes(&self) -> usize {
        self.slab.slot_bytes
    }

    fn slot_address(&self, slot: SlotId) -> Option<usize> {
        self.has_memory(slot).then(|| self.slab.bytes.address() + slot.index() * self.slab.slot_bytes)
    }

    fn is_replica(&self) -> bool {
        self.replica
    }

    fn begin_fill(&self, slot: SlotId, label: &SlotLabel) {
        if self.replica {
            return;
        }
        self.change(slot, |record| {
            *record = Some(Record { label: *label, ready: self.bugs.publish_before_copy, damaged: false });
        });
        let mut table = self.slab.table();
        table.highest = table.highest.max(label.fill);
    }

    fn publish(&self, slot: SlotId, fill: FillId) {
        if self.replica {
            return;
        }
        self.change(slot, |record| {
            if let Some(record) = record
                && record.label.fill == fill
            {
                record.ready = true;
            }
        });
    }

    fn forget(&self, slot: SlotId) {
        if !self.replica {
            self.change(slot, |record| *record = None);
        }
    }

    fn void(&self, slot: SlotId, fill: FillId) {
        if !self.replica {
            self.forget(slot);
        } else if !self.bugs.keep_void {
            self.change(slot, |record| {
                record.take_if(|record| record.label.fill == fill);
            });
        }
    }

    fn holds(&self, slot: SlotId, key: &BlockKey) -> bool {
        let table = self.slab.table();
        self.bugs.trust_any_label
            || table.records.get(slot.index()).copied().flatten().is_some_and(|record| {
                let current = self.bugs.forget_epoch || record.label.epoch == table.epoch;
                record.ready && !record.damaged && record.label.key == *key && current
            })
    }

    fn warm_slots(&self) -> Vec<Resident> {
        let table = self.slab.table();
        let records = table.records.iter().enumerate();
        let warm = records.filter_map(|(slot, record)| record.as_ref().map(|record| (slot, record)));
        warm.filter(|(_, record)| {
            record.ready && (self.bugs.forget_epoch || record.label.epoch == table.epoch)
        })
        .filter(|(slot, _)| self.pins.load(Ordering::SeqCst) || (*slot as u32) < self.usable_slots())
        .map(|(slot, Record { label, .. })| Resident {
            slot: SlotId(slot as u32),
            key: label.key,
            parent: label.parent,
            fill: label.fill,
        })
        .collect()
    }

    fn highest_fill(&self) -> FillId {
        self.slab.table().highest
    }

    fn epoch(&self) -> u64 {
        self.slab.table().epoch
    }

    fn advance_epoch(&self, epoch: u64) {
        if self.alive.load(Ordering::SeqCst) && !self.replica {
            self.slab.table().epoch = epoch;
        }
    }
}
