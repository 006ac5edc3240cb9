//! Slots that become usable as their memory is prepared for a device.
//!
//! Pinning takes about a second for some gigabytes, so it happens in pieces on a thread of its own while the engine starts: a
//! slot is usable when its bytes are pinned. What an earlier process left is usable before, since forgetting it would cost more
//! than the few slow loads from memory that is not pinned yet.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::{SlotLabel, SlotMemory};
use crate::BlockKey;
use crate::copy_engine::{CopyEngine, CopyFailure};
use crate::directory::{FillId, Resident};
use crate::eviction::SlotId;

/// Bytes that are pinned at once: some tens of milliseconds, so that slots become usable soon and an end is not delayed.
const PIECE_BYTES: usize = 256 << 20;

/// How often growth of the memory behind the slots is looked for.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Ranges start and end at pages, which is what is pinned.
const PAGE_BYTES: usize = 4096;

/// How far pinning has come.
#[derive(Clone, PartialEq, Debug)]
pub struct Pinning {
    /// Bytes that are pinned.
    pub bytes: usize,
    /// Whether it goes on.
    pub is_running: bool,
    /// Time that the calls took.
    pub took: Duration,
    /// Why it ended early, if it did.
    pub failure: Option<CopyFailure>,
}

/// See the [module documentation](self).
pub struct PinnedSlots {
    inner: Arc<dyn SlotMemory>,
    /// Slots below this index were found filled.
    warm_below: u32,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    inner: Arc<dyn SlotMemory>,
    copies: Arc<dyn CopyEngine>,
    piece_bytes: usize,
    usable: AtomicU32,
    bytes: AtomicUsize,
    /// Set after the last change of `usable`.
    ended: AtomicBool,
    stopping: Mutex<bool>,
    stop: Condvar,
    report: Mutex<(Duration, Option<CopyFailure>)>,
    bases: Mutex<Vec<usize>>,
}

impl PinnedSlots {
    /// Starts to pin the slots of `inner`, which lie at equal distances, for `copies`.
    ///
    /// # Errors
    /// If the system refuses a thread.
    pub fn new(inner: Arc<dyn SlotMemory>, copies: Arc<dyn CopyEngine>) -> std::io::Result<Self> {
        Self::with_pieces(inner, copies, PIECE_BYTES)
    }

    fn with_pieces(
        inner: Arc<dyn SlotMemory>,
        copies: Arc<dyn CopyEngine>,
        piece_bytes: usize,
    ) -> std::io::Result<Self> {
        let warm_below = inner.warm_slots().iter().map(|block| block.slot.0 + 1).max().unwrap_or(0);
        let shared = Arc::new(Shared {
            inner: Arc::clone(&inner),
            copies,
            piece_bytes,
            usable: AtomicU32::new(0),
            bytes: AtomicUsize::new(0),
            ended: AtomicBool::new(false),
            stopping: Mutex::new(false),
            stop: Condvar::new(),
            report: Mutex::new((Duration::ZERO, None)),
            bases: Mutex::new(Vec::new()),
        });
        let worker = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("kvcache-pin".to_owned()).spawn(move || {
            worker.run();
            worker.ended.store(true, Ordering::Release);
        })?;
        Ok(Self { inner, warm_below, shared, thread: Some(thread) })
    }

    /// How far it has come.
    pub fn pinning(&self) -> Pinning {
        let is_running = !self.shared.ended.load(Ordering::Acquire);
        let (took, failure) = self.shared.report.lock().clone();
        Pinning { bytes: self.shared.bytes.load(Ordering::Relaxed), is_running, took, failure }
    }
}

impl Shared {
    fn run(&self) {
        let mut next = None;
        loop {
            let is_last = !self.inner.is_growing();
            let count = self.inner.usable_slots();
            if let Some((base, end)) = self.range(count) {
                let mut at = next.unwrap_or(base);
                // A page that is not whole yet comes with the next growth.
                let end =
                    if is_last { end.next_multiple_of(PAGE_BYTES) } else { end / PAGE_BYTES * PAGE_BYTES };
                while at < end {
                    if *self.stopping.lock() {
                        return;
                    }
                    let bytes = self.piece_bytes.min(end - at);
                    if !self.pin(at, bytes) {
                        return;
                    }
                    at += bytes;
                    self.usable.store(self.slots_below(at, base, count), Ordering::Release);
                }
                next = Some(at);
            }
            if is_last {
                return;
            }
            let mut stopping = self.stopping.lock();
            if *stopping {
                return;
            }
            self.stop.wait_for(&mut stopping, LOOK_AGAIN);
        }
    }

    /// From the first page of the first slot to the end of the last of `count`.
    fn range(&self, count: u32) -> Option<(usize, usize)> {
        let first = self.inner.slot_address(SlotId(0))?;
        let last = self.inner.slot_address(SlotId(count.checked_sub(1)?))?;
        Some((first / PAGE_BYTES * PAGE_BYTES, last + self.inner.slot_bytes()))
    }

    /// Slots of `count` that end at or before `end`.
    fn slots_below(&self, end: usize, base: usize, count: u32) -> u32 {
        let first = self.inner.slot_address(SlotId(0)).unwrap_or(base);
        let second = self.inner.slot_address(SlotId(1)).unwrap_or(first + self.inner.slot_bytes());
        let stride = (second - first).max(1);
        // The last slot need not be followed by a gap.
        let gap = stride.saturating_sub(self.inner.slot_bytes());
        let whole = (end + gap).saturating_sub(first) / stride;
        count.min(u32::try_from(whole).unwrap_or(u32::MAX))
    }

    fn pin(&self, base: usize, bytes: usize) -> bool {
        let began = Instant::now();
        // SAFETY: the slots' pages are mapped as long as `inner` lives, which is longer than we do; the drop of `PinnedSlots`
        // unregisters them first.
        let outcome = unsafe { self.copies.register(base, bytes) };
        let mut report = self.report.lock();
        report.0 += began.elapsed();
        match outcome {
            Ok(()) => {
                self.bases.lock().push(base);
                self.bytes.fetch_add(bytes, Ordering::Relaxed);
                true
            }
            Err(failure) => {
                report.1 = Some(failure);
                false
            }
        }
    }
}

impl Drop for PinnedSlots {
    fn drop(&mut self) {
        *self.shared.stopping.lock() = true;
        self.shared.stop.notify_all();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread is its own; there is nothing left to do here.
            let _ = thread.join();
        }
        for base in self.shared.bases.lock().drain(..) {
            self.shared.copies.unregister(base);
        }
    }
}

impl SlotMemory for PinnedSlots {
    fn slot_count(&self) -> u32 {
        self.inner.slot_count()
    }

    fn usable_slots(&self) -> u32 {
        let pinned = self.shared.usable.load(Ordering::Acquire);
        pinned.max(self.warm_below).min(self.inner.usable_slots())
    }

    fn is_growing(&self) -> bool {
        !self.shared.ended.load(Ordering::Acquire)
    }

    fn slot_bytes(&self) -> usize {
        self.inner.slot_bytes()
    }

    fn slot_address(&self, slot: SlotId) -> Option<usize> {
        self.inner.slot_address(slot)
    }

    fn is_replica(&self) -> bool {
        self.inner.is_replica()
    }

    fn begin_fill(&self, slot: SlotId, label: &SlotLabel) {
        self.inner.begin_fill(slot, label);
    }

    fn publish(&self, slot: SlotId, fill: FillId) {
        self.inner.publish(slot, fill);
    }

    fn forget(&self, slot: SlotId) {
        self.inner.forget(slot);
    }

    fn void(&self, slot: SlotId, fill: FillId) {
        self.inner.void(slot, fill);
    }

    fn holds(&self, slot: SlotId, key: &BlockKey) -> bool {
        self.inner.holds(slot, key)
    }

    fn may_demote(&self, slot: SlotId, key: &BlockKey) -> bool {
        self.inner.may_demote(slot, key)
    }

    fn warm_slots(&self) -> Vec<Resident> {
        self.inner.warm_slots()
    }

    fn highest_fill(&self) -> FillId {
        self.inner.highest_fill()
    }

    fn epoch(&self) -> u64 {
        self.inner.epoch()
    }

    fn advance_epoch(&self, epoch: u64) {
        self.inner.advance_epoch(epoch);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fakes::fake_copies::{CopyBehaviour, LazyCopies};
    use crate::fakes::fake_memory::{FakeMemory, MemoryBugs, Slab};
    use crate::slab::{Slab as RealSlab, SlabConfig};
    use crate::store::SlabSlots;

    fn wait_until(what: impl Fn() -> bool) {
        let began = Instant::now();
        while !what() {
            assert!(began.elapsed() < Duration::from_secs(20), "it never happens");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn ended(slots: &PinnedSlots) -> Pinning {
        wait_until(|| !slots.is_growing());
        slots.pinning()
    }

    fn copies() -> Arc<LazyCopies> {
        Arc::new(LazyCopies::new(1, CopyBehaviour::default()))
    }

    #[test]
    fn all_pages_are_pinned_once_and_given_back() {
        let copies = copies();
        // Slots of one and a half pages, so that pieces end within slots.
        let slab = RealSlab::open(&SlabConfig::anonymous(6000, 11)).unwrap();
        let (base, bytes) = (slab.base().as_ptr() as usize, slab.data_bytes());
        let inner = Arc::new(SlabSlots::new(slab, false));
        let slots = PinnedSlots::with_pieces(inner, Arc::clone(&copies) as _, 2 * PAGE_BYTES).unwrap();
        let pinning = ended(&slots);
        assert_eq!((slots.usable_slots(), pinning.failure), (11, None));
        let ranges = copies.registered();
        assert_eq!(ranges[0].0, base);
        assert!(ranges.windows(2).all(|pair| pair[0].0 + pair[0].1 == pair[1].0), "{ranges:?}");
        let end = ranges.last().map(|(start, bytes)| start + bytes).unwrap();
        assert!(
            end >= base + bytes - PAGE_BYTES && end.is_multiple_of(PAGE_BYTES) && pinning.bytes == end - base
        );
        drop(slots);
        assert!(copies.registered().is_empty());
    }

    #[test]
    fn slots_are_usable_up_to_where_pinning_has_come() {
        let copies = copies();
        copies.refuse_to_register_after(5 * PAGE_BYTES);
        let slab = RealSlab::open(&SlabConfig::anonymous(6144, 11)).unwrap();
        let stride = slab.stride_bytes();
        let inner = Arc::new(SlabSlots::new(slab, false));
        let slots = PinnedSlots::with_pieces(inner, Arc::clone(&copies) as _, PAGE_BYTES).unwrap();
        let pinning = ended(&slots);
        assert_eq!(pinning.bytes, 5 * PAGE_BYTES);
        let whole = (0..11).take_while(|slot| slot * stride + 6144 <= 5 * PAGE_BYTES).count();
        assert_eq!(slots.usable_slots() as usize, whole);
        assert!(matches!(pinning.failure, Some(CopyFailure::Driver { .. })) && whole > 1);
    }

    #[test]
    fn memory_that_grows_is_pinned_as_it_does() {
        let copies = copies();
        let slab = Slab::new(8, PAGE_BYTES);
        let memory = FakeMemory::new(&slab, 0, MemoryBugs::default());
        let slots =
            PinnedSlots::with_pieces(Arc::clone(&memory) as _, Arc::clone(&copies) as _, 1 << 20).unwrap();
        assert!(slots.usable_slots() == 0 && slots.is_growing());
        memory.grow(3);
        // The fake's slots do not start at a page: the last of them is not whole before the next growth.
        wait_until(|| slots.usable_slots() >= 2);
        memory.grow(5);
        ended(&slots);
        assert_eq!(slots.usable_slots(), 8);
    }

    #[test]
    fn what_was_found_filled_is_usable_at_once() {
        let copies = copies();
        copies.refuse_to_register_after(0);
        let slab = Slab::new(8, PAGE_BYTES);
        let memory = FakeMemory::new(&slab, 8, MemoryBugs::default());
        let label = SlotLabel {
            key: BlockKey([1; 16]),
            parent: BlockKey::default(),
            engine_hash: Default::default(),
            fill: FillId(1),
            epoch: 0,
        };
        memory.begin_fill(SlotId(4), &label);
        memory.publish(SlotId(4), FillId(1));
        let slots = PinnedSlots::with_pieces(memory, copies, 1 << 20).unwrap();
        ended(&slots);
        assert_eq!(slots.usable_slots(), 5);
    }
}
