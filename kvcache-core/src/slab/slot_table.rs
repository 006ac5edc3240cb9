//! What each slot holds, written into the slab itself, so that a restarted engine finds its blocks again.
//!
//! ```text
//! 0            header page: immutable description with a checksum, then epoch, highest fill id, reserved bytes
//! 4096         one 128-byte record per slot
//! data_offset  slots (2 MiB aligned)
//! ```
//!
//! # Why a killed writer leaves nothing bad
//!
//! A process that is killed stops between two of its stores, and all earlier ones reach the page cache. So the order of
//! a slot's stores is all that counts:
//!
//! 1. the state becomes *filling*, before any other field or data byte of the slot changes: from here on the slot is lost;
//! 2. key, fill id and the other fields, with a checksum over them;
//! 3. the data bytes (the copy engine orders streaming stores before its completion);
//! 4. the state becomes *ready*.
//!
//! A reader after the restart accepts *ready* records only, so it never sees a slot between 1 and 4. The checksum over the fields
//! is for what is not a killed writer: a damaged file, a foreign tool.
//!
//! A reboot is different: the kernel may have written pages of a disk file in any order. Records carry the boot they were
//! filled in, and those of another boot are accepted only with a data checksum, which must be verified before the first use.
//!
//! Words are in the machine's byte order; another order does not know the magic number and starts empty.

use std::collections::HashMap;
use std::fs::File;
use std::mem::offset_of;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use xxhash_rust::xxh3::xxh3_64;

use super::mapping::{HUGE_PAGE_BYTES, Mapped, Mapping};
use crate::BlockKey;
use crate::eviction::SlotId;

/// Identity of a slot's content, as the Directory knows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SlotRecord {
    /// The block.
    pub key: BlockKey,
    /// The block before it in its prefix; all zeroes for a first block.
    pub parent: BlockKey,
    /// The engine's own hash of the block, for its events; shorter hashes are padded with zeroes.
    pub engine_hash: [u8; 32],
    /// Number of the fill, unique among all fills of the slab's life and greater than those before.
    pub fill_id: u64,
    /// KV cache group and size class, as the Directory encodes them.
    pub info: u32,
}

/// A slot that still holds its block after a restart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WarmSlot {
    /// Where it is.
    pub slot: SlotId,
    /// What it holds.
    pub record: SlotRecord,
    /// Filled before a reboot: its data checksum must be verified before the first use.
    pub needs_verify: bool,
}

/// What a slab file is made for. A file with another description is started afresh.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Description {
    pub(super) layout: [u8; 16],
    pub(super) namespace: [u8; 16],
    pub(super) slot_bytes: u64,
    pub(super) slot_count: u64,
}

impl Description {
    /// Offset of the first slot.
    pub(super) fn data_offset(&self) -> Option<usize> {
        let records = usize::try_from(self.slot_count).ok()?.checked_mul(size_of::<Record>())?;
        records.checked_add(TABLE_OFFSET)?.checked_next_multiple_of(HUGE_PAGE_BYTES)
    }
}

/// The table of one slab. Each slot's record is changed only by the slot's owner; different slots at the same time. The
/// exception is [`void`](Self::void), by which another rank takes part in a fill.
pub struct SlotTable {
    mapping: Arc<Mapping>,
    slot_count: usize,
    boot: u64,
}

const MAGIC: u64 = u64::from_le_bytes(*b"KVCSLAB\n");
const VERSION: u64 = 1;
const TABLE_OFFSET: usize = 4096;

const ABSENT: u32 = 0;
const FILLING: u32 = 1;
const READY: u32 = 2;

/// The first page. Before `checksum`: written once, when the slab is created.
#[repr(C, align(64))]
struct Header {
    magic: AtomicU64,
    /// Version in the low half, length of the header page in the high half.
    version: AtomicU64,
    layout: [AtomicU64; 2],
    namespace: [AtomicU64; 2],
    slot_bytes: AtomicU64,
    slot_count: AtomicU64,
    table_offset: AtomicU64,
    data_offset: AtomicU64,
    /// XXH3-64 of the words above.
    checksum: AtomicU64,
    _reserved: [AtomicU64; 5],
    /// Records of another epoch are void.
    epoch: AtomicU64,
    /// At least every fill id ever begun.
    highest_fill_id: AtomicU64,
    /// Bytes from the start of the file whose storage is reserved.
    reserved_bytes: AtomicU64,
    /// The mark of the engine that uses the slab, set when all of the above is true; 0 while nobody does.
    opened_by: AtomicU64,
    /// Ranks that have mapped the slab besides its owner, since it was opened.
    attached: AtomicU64,
    /// 1 when the owner reserves no more than `reserved_bytes`, whether that is all or not.
    reserving_ended: AtomicU64,
}

// SAFETY: atomics only, 64-byte aligned.
unsafe impl Mapped for Header {}

const IDENTITY_WORDS: usize = 2 + 2 + 4 + 3;

/// Where the fill id stands in them.
const FILL_ID_WORD: usize = 8;

/// One slot's record: two cache lines that no other slot shares.
#[repr(C, align(128))]
struct Record {
    /// `ABSENT`, `FILLING` or `READY`; the module's head says in which order it changes with the rest.
    state: AtomicU32,
    info: AtomicU32,
    /// Key, parent, engine hash, fill id, epoch, and XXH3-64 of the boot id during which the slot was filled.
    identity: [AtomicU64; IDENTITY_WORDS],
    /// XXH3-64 of `identity`, `info` and the slot's index.
    checksum: AtomicU64,
    /// XXH3-64 of the slot's bytes, if `data_seal` fits.
    data_checksum: AtomicU64,
    /// XXH3-64 of `data_checksum` and `checksum`: a checksum that is torn, or of an earlier fill, does not fit.
    data_seal: AtomicU64,
}

// SAFETY: atomics only, 128-byte aligned; padding is never read.
unsafe impl Mapped for Record {}

const _: () = assert!(size_of::<Record>() == 128 && size_of::<Header>() <= TABLE_OFFSET);

impl SlotTable {
    /// Writes an empty table for `description` into `mapping`, whose header page and table must be reserved.
    pub(super) fn create(mapping: Arc<Mapping>, description: &Description, boot: u64) -> Self {
        let table = SlotTable { mapping, slot_count: description.slot_count as usize, boot };
        let header = table.header();
        // Until the checksum is written the file describes nothing, whatever it held before.
        header.checksum.store(0, Ordering::Relaxed);
        header.magic.store(0, Ordering::Relaxed);
        fence(Ordering::Release);
        for record in table.records() {
            record.state.store(ABSENT, Ordering::Relaxed);
        }
        let words = description.words();
        for (field, word) in header.description().into_iter().zip(words) {
            field.store(word, Ordering::Relaxed);
        }
        header.epoch.store(0, Ordering::Relaxed);
        header.highest_fill_id.store(0, Ordering::Relaxed);
        header.reserved_bytes.store(0, Ordering::Relaxed);
        header.opened_by.store(0, Ordering::Relaxed);
        header.attached.store(0, Ordering::Relaxed);
        header.reserving_ended.store(0, Ordering::Relaxed);
        header.checksum.store(hash_words(&words), Ordering::Release);
        table
    }

    /// The table that `mapping` already holds, if it is one for `description`.
    pub(super) fn existing(mapping: Arc<Mapping>, description: &Description, boot: u64) -> Option<Self> {
        let table = SlotTable { mapping, slot_count: description.slot_count as usize, boot };
        let header = table.header();
        let words = header.description().map(|field| field.load(Ordering::Relaxed));
        let checksum = header.checksum.load(Ordering::Acquire);
        (words == description.words() && checksum == hash_words(&words)).then_some(table)
    }

    /// Step 1 and 2: the slot no longer holds what it held, and is being filled with `record`. Before the copy starts.
    ///
    /// # Panics
    ///
    /// If the slot is out of range, here and in all methods that take one.
    pub fn begin_fill(&self, slot: SlotId, record: &SlotRecord) {
        self.begin_fill_steps(slot, record, &mut |_| true);
    }

    /// Step 4: the bytes of fill `fill_id` are complete. After the copy's completion was seen. False, with nothing
    /// changed, when the slot is not being filled by this fill.
    pub fn publish(&self, slot: SlotId, fill_id: u64) -> bool {
        let record = self.record(slot);
        // Release: the fields and, through the copy's completion, the data come before it. Exchanged, because another rank
        // may void the fill at the same time.
        record.fill_id() == fill_id
            && record.state.compare_exchange(FILLING, READY, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Fill `fill_id` is worth nothing, complete or not: it will not be published, and if it was, it is no more. For
    /// whoever knows that the slot is not given to another fill meanwhile.
    pub fn void(&self, slot: SlotId, fill_id: u64) {
        let record = self.record(slot);
        // Acquire: the state is not written before the fill is known to be the one that is meant.
        if record.identity[FILL_ID_WORD].load(Ordering::Acquire) == fill_id {
            record.state.store(ABSENT, Ordering::Release);
        }
    }

    /// The slot holds nothing. Before its memory is given to anybody who will not call [`begin_fill`](Self::begin_fill).
    pub fn clear(&self, slot: SlotId) {
        self.record(slot).state.store(ABSENT, Ordering::Relaxed);
        // Keeps the compiler from moving the owner's later stores before it.
        fence(Ordering::Release);
    }

    /// Keeps the XXH3-64 of the slot's bytes. False, with nothing changed, when the slot does not hold fill `fill_id`.
    pub fn set_checksum(&self, slot: SlotId, fill_id: u64, xxh3: u64) -> bool {
        let record = self.record(slot);
        let ready = record.state.load(Ordering::Acquire) == READY;
        if !ready || record.fill_id() != fill_id {
            return false;
        }
        record.data_checksum.store(xxh3, Ordering::Relaxed);
        let seal = hash_words(&[xxh3, record.checksum.load(Ordering::Relaxed)]);
        record.data_seal.store(seal, Ordering::Release);
        true
    }

    /// The checksum of the slot's bytes, if one was set for what it holds now.
    pub fn checksum(&self, slot: SlotId) -> Option<u64> {
        let record = self.record(slot);
        let seal = record.data_seal.load(Ordering::Acquire);
        let checksum = record.data_checksum.load(Ordering::Relaxed);
        (seal == hash_words(&[checksum, record.checksum.load(Ordering::Relaxed)])).then_some(checksum)
    }

    /// What the slot holds, if it is complete, intact and of this epoch.
    pub fn ready(&self, slot: SlotId) -> Option<SlotRecord> {
        self.warm(slot).map(|warm| warm.record)
    }

    /// Every slot that a restarted engine may use, in slot order; of several with one key the newest. Reads 128 bytes per
    /// slot: about a millisecond for 10 000 slots.
    pub fn warm_slots(&self) -> Vec<WarmSlot> {
        let mut newest: HashMap<BlockKey, WarmSlot> = HashMap::new();
        for warm in (0..self.slot_count).filter_map(|index| self.warm(SlotId(index as u32))) {
            let kept = newest.entry(warm.record.key).or_insert(warm);
            if kept.record.fill_id < warm.record.fill_id {
                *kept = warm;
            }
        }
        let mut warm: Vec<_> = newest.into_values().collect();
        warm.sort_unstable_by_key(|warm| warm.slot);
        warm
    }

    /// A warm slot's data was verified: it is as good as one filled since this boot.
    pub(super) fn confirm(&self, slot: SlotId) {
        if let (Some(warm), Some(checksum)) = (self.warm(slot), self.checksum(slot)) {
            self.begin_fill(slot, &warm.record);
            self.publish(slot, warm.record.fill_id);
            self.set_checksum(slot, warm.record.fill_id, checksum);
        }
    }

    /// Number of slots.
    pub fn slot_count(&self) -> usize {
        self.slot_count
    }

    /// The epoch whose records are valid.
    pub fn epoch(&self) -> u64 {
        self.header().epoch.load(Ordering::Relaxed)
    }

    /// Voids every record of an earlier epoch, at once and for good. An epoch never goes back: lower values change nothing.
    pub fn raise_epoch(&self, epoch: u64) {
        self.header().epoch.fetch_max(epoch, Ordering::AcqRel);
    }

    /// At least the highest fill id of the slab's life: new fills start above.
    pub fn highest_fill_id(&self) -> u64 {
        self.header().highest_fill_id.load(Ordering::Relaxed)
    }

    /// Bytes from the start of the mapping whose storage was reserved, by this process or an earlier one.
    pub(super) fn reserved_bytes(&self) -> u64 {
        self.header().reserved_bytes.load(Ordering::Acquire)
    }

    pub(super) fn set_reserved_bytes(&self, bytes: u64) {
        self.header().reserved_bytes.store(bytes, Ordering::Release);
    }

    /// Whether the owner has reserved all that it will.
    pub(super) fn reserving_ended(&self) -> bool {
        // Acquire: with the answer comes how much that is.
        self.header().reserving_ended.load(Ordering::Acquire) != 0
    }

    pub(super) fn set_reserving_ended(&self, ended: bool) {
        self.header().reserving_ended.store(u64::from(ended), Ordering::Release);
    }

    /// The slab is in use by the engine that bears `mark`, or with 0 by nobody.
    pub(super) fn set_opened_by(&self, mark: u64) {
        self.header().attached.store(0, Ordering::Relaxed);
        self.header().opened_by.store(mark, Ordering::Release);
    }

    /// Who uses the slab.
    pub(super) fn opened_by(&self) -> u64 {
        self.header().opened_by.load(Ordering::Acquire)
    }

    /// What the slab in `file` is made for, and who uses it. Reads the file instead of mapping it: an owner that is about
    /// to start it afresh may shorten it.
    pub(super) fn peek(file: &File) -> Option<(Description, u64)> {
        let mut page = [0; size_of::<Header>()];
        file.read_exact_at(&mut page, 0).ok()?;
        let word =
            |offset: usize| u64::from_ne_bytes(page[offset..offset + 8].try_into().expect("eight bytes"));
        let words: [u64; 10] = std::array::from_fn(|index| word(index * 8));
        let description = Description::of_words(&words);
        let sealed = description.words() == words && word(offset_of!(Header, checksum)) == hash_words(&words);
        sealed.then(|| (description, word(offset_of!(Header, opened_by))))
    }

    /// The file describes nothing any more, whatever is still written into it: the next owner starts it afresh.
    pub(super) fn disown(&self) {
        self.header().checksum.store(0, Ordering::Release);
    }

    /// Counts one more rank that has mapped the slab; their number.
    pub(super) fn attach(&self) -> u64 {
        self.header().attached.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// [`begin_fill`](Self::begin_fill), stopping where `go_on` says false: a writer that was killed there.
    fn begin_fill_steps(&self, slot: SlotId, content: &SlotRecord, go_on: &mut dyn FnMut(usize) -> bool) {
        let record = self.record(slot);
        self.header().highest_fill_id.fetch_max(content.fill_id, Ordering::Relaxed);
        record.state.store(FILLING, Ordering::Relaxed);
        // No store below, nor any of the copy that follows, may be moved before the state's.
        fence(Ordering::Release);
        let epoch = self.epoch();
        let words = identity_words(content, epoch, self.boot);
        let checksum = record_checksum(&words, content.info, slot);
        record.info.store(content.info, Ordering::Relaxed);
        let fields = record.identity.iter().zip(words).chain([(&record.checksum, checksum)]);
        for (step, (field, word)) in fields.enumerate() {
            if !go_on(step) {
                return;
            }
            field.store(word, Ordering::Relaxed);
        }
        // The data is about to be overwritten as well; orders the fields before the first byte, for symmetry only.
        fence(Ordering::Release);
    }

    fn warm(&self, slot: SlotId) -> Option<WarmSlot> {
        let record = self.record(slot);
        if record.state.load(Ordering::Acquire) != READY {
            return None;
        }
        let words = record.identity.each_ref().map(|word| word.load(Ordering::Relaxed));
        let info = record.info.load(Ordering::Relaxed);
        let (content, epoch, boot) = parse_identity(&words, info);
        let checksum = record.checksum.load(Ordering::Relaxed);
        if checksum != record_checksum(&words, info, slot) || epoch != self.epoch() {
            return None;
        }
        let needs_verify = boot != self.boot;
        if needs_verify && self.checksum(slot).is_none() {
            return None;
        }
        Some(WarmSlot { slot, record: content, needs_verify })
    }

    fn header(&self) -> &Header {
        &self.mapping.view::<Header>(0, 1)[0]
    }

    fn records(&self) -> &[Record] {
        self.mapping.view(TABLE_OFFSET, self.slot_count)
    }

    fn record(&self, slot: SlotId) -> &Record {
        &self.records()[slot.index()]
    }
}

impl Record {
    fn fill_id(&self) -> u64 {
        self.identity[FILL_ID_WORD].load(Ordering::Relaxed)
    }
}

impl Header {
    /// The immutable words, in the order of [`Description::words`].
    fn description(&self) -> [&AtomicU64; 10] {
        let ([layout0, layout1], [namespace0, namespace1]) = (&self.layout, &self.namespace);
        let (magic, version) = (&self.magic, &self.version);
        let (slot_bytes, slot_count) = (&self.slot_bytes, &self.slot_count);
        let (table, data) = (&self.table_offset, &self.data_offset);
        [magic, version, layout0, layout1, namespace0, namespace1, slot_bytes, slot_count, table, data]
    }
}

impl Description {
    fn words(&self) -> [u64; 10] {
        let version = VERSION | (TABLE_OFFSET as u64) << 32;
        let ([layout0, layout1], [namespace0, namespace1]) =
            (words_of(&self.layout), words_of(&self.namespace));
        let data_offset = self.data_offset().unwrap_or(0) as u64;
        let (slot_bytes, slot_count) = (self.slot_bytes, self.slot_count);
        let table = TABLE_OFFSET as u64;
        [MAGIC, version, layout0, layout1, namespace0, namespace1, slot_bytes, slot_count, table, data_offset]
    }
}

impl Description {
    /// The inverse of [`words`](Self::words); of other words, some description that has others.
    fn of_words(words: &[u64; 10]) -> Self {
        let [_, _, layout0, layout1, namespace0, namespace1, slot_bytes, slot_count, _, _] = *words;
        let (layout, namespace) = (bytes_of([layout0, layout1]), bytes_of([namespace0, namespace1]));
        Description { layout, namespace, slot_bytes, slot_count }
    }
}

fn identity_words(content: &SlotRecord, epoch: u64, boot: u64) -> [u64; IDENTITY_WORDS] {
    let ([key0, key1], [parent0, parent1]) = (words_of(&content.key.0), words_of(&content.parent.0));
    let mut hash = [[0; 16]; 2];
    hash[0].copy_from_slice(&content.engine_hash[..16]);
    hash[1].copy_from_slice(&content.engine_hash[16..]);
    let ([hash0, hash1], [hash2, hash3]) = (words_of(&hash[0]), words_of(&hash[1]));
    [key0, key1, parent0, parent1, hash0, hash1, hash2, hash3, content.fill_id, epoch, boot]
}

/// The record, its epoch and its boot.
fn parse_identity(words: &[u64; IDENTITY_WORDS], info: u32) -> (SlotRecord, u64, u64) {
    let [key0, key1, parent0, parent1, hash0, hash1, hash2, hash3, fill_id, epoch, boot] = *words;
    let mut engine_hash = [0; 32];
    engine_hash[..16].copy_from_slice(&bytes_of([hash0, hash1]));
    engine_hash[16..].copy_from_slice(&bytes_of([hash2, hash3]));
    let (key, parent) = (BlockKey(bytes_of([key0, key1])), BlockKey(bytes_of([parent0, parent1])));
    (SlotRecord { key, parent, engine_hash, fill_id, info }, epoch, boot)
}

fn record_checksum(words: &[u64; IDENTITY_WORDS], info: u32, slot: SlotId) -> u64 {
    let mut all = [0; IDENTITY_WORDS + 1];
    all[..IDENTITY_WORDS].copy_from_slice(words);
    all[IDENTITY_WORDS] = u64::from(info) << 32 | u64::from(slot.0);
    hash_words(&all)
}

fn hash_words<const N: usize>(words: &[u64; N]) -> u64 {
    xxh3_64(words.map(u64::to_ne_bytes).as_flattened())
}

fn words_of(bytes: &[u8; 16]) -> [u64; 2] {
    let value = u128::from_le_bytes(*bytes);
    [value as u64, (value >> 64) as u64]
}

fn bytes_of([low, high]: [u64; 2]) -> [u8; 16] {
    (u128::from(low) | u128::from(high) << 64).to_le_bytes()
}

#[cfg(test)]
#[path = "slot_table_tests.rs"]
mod tests;
