//! Slots that become usable as their memory is prepared for a device.
//!
//! Pinning takes about a second for some gigabytes, so it happens in pieces on a thread of its own while the engine
//! starts: a slot is usable when its bytes are pinned. It would take the memory that nobody has taken yet, without asking
//! how much is left, and so follows behind whoever does ask ([`SlotMemory::populated_slots`]). What an earlier process left
//! can be loaded before, since forgetting it would cost more than the few slow loads from memory that is not pinned yet.
//! Nothing is stored there until it is: the device would refuse, and the block that was there would be gone.

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
use crate::slab::page_bytes;

/// Bytes that are pinned at once. While a call lasts, no other process of the host gets anything of the driver, so that calls
/// are short and far between: see [`rest_after`].
const PIECE_BYTES: usize = 32 << 20;

/// The longest rest between two calls.
const REST_MAX: Duration = Duration::from_millis(100);

/// After how long a call that the driver did not want at that moment is made again.
const TRY_AGAIN: Duration = Duration::from_millis(50);

/// How often growth of the memory behind the slots is looked for.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

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
    pub failure: Option<PinFailure>,
}

/// Why not all slots are pinned, and will not be.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PinFailure {
    /// The device's driver.
    #[error(transparent)]
    Refused(#[from] CopyFailure),
    /// The rest of the slots has no memory, or would take what others need.
    #[error("memory is short after {populated} of {slot_count} slots: free some, or lower the capacity")]
    MemoryShort {
        /// Slots that have memory.
        populated: u32,
        /// Slots there should be.
        slot_count: u32,
    },
}

/// Slots of which each is usable as soon as its memory is prepared for a device: pinned in pieces, on a thread of its own, while the
/// engine starts. What an earlier process left can be loaded before that, by slow copies, and nothing is stored there.
pub struct PinnedSlots {
    inner: Arc<dyn SlotMemory>,
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
    report: Mutex<(Duration, Option<PinFailure>)>,
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
        Ok(Self { inner, shared, thread: Some(thread) })
    }

    /// How far it has come.
    pub fn pinning(&self) -> Pinning {
        let is_running = !self.shared.ended.load(Ordering::Acquire);
        let (took, failure) = self.shared.report.lock().clone();
        Pinning { bytes: self.shared.bytes.load(Ordering::Relaxed), is_running, took, failure }
    }
}

/// What came of a call.
enum Outcome {
    /// It took so long.
    Pinned(Duration),
    /// Not now.
    Later,
    Refused,
}

/// The driver's work for others gets as much time as ours.
fn rest_after(took: Duration) -> Duration {
    took.min(REST_MAX)
}

/// Whether the driver only refuses because the engine captures a CUDA graph at this moment, which some calls of any thread
/// would spoil.
fn is_for_now(failure: &CopyFailure) -> bool {
    // CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, _INVALIDATED, _IMPLICIT, and CUDA_ERROR_CAPTURED_EVENT.
    matches!(failure, CopyFailure::Driver { code: 900 | 901 | 906 | 907, .. })
}

impl Shared {
    /// Waits; whether to go on.
    fn pause(&self, time: Duration) -> bool {
        let until = Instant::now() + time;
        let mut stopping = self.stopping.lock();
        while !*stopping {
            if self.stop.wait_until(&mut stopping, until).timed_out() {
                return !*stopping;
            }
        }
        false
    }

    fn run(&self) {
        let page = page_bytes();
        let mut next = None;
        loop {
            let is_last = !self.inner.is_growing();
            let count = self.inner.populated_slots();
            if let Some((base, end)) = self.range(count) {
                let mut at = next.unwrap_or(base);
                // A page that is not whole yet comes with the next growth.
                let end = if is_last { end.next_multiple_of(page) } else { end / page * page };
                while at < end {
                    let bytes = self.piece_bytes.min(end - at);
                    let pause = match self.pin(at, bytes) {
                        Outcome::Refused => return,
                        Outcome::Later => TRY_AGAIN,
                        Outcome::Pinned(took) => {
                            at += bytes;
                            self.usable.store(self.slots_below(at, base, count), Ordering::Release);
                            rest_after(took)
                        }
                    };
                    if !self.pause(pause) {
                        return;
                    }
                }
                next = Some(at);
            }
            if is_last {
                let slot_count = self.inner.slot_count();
                if count < slot_count {
                    self.report.lock().1 = Some(PinFailure::MemoryShort { populated: count, slot_count });
                }
                return;
            }
            if !self.pause(LOOK_AGAIN) {
                return;
            }
        }
    }

    /// From the first page of the first slot to the end of the last of `count`.
    fn range(&self, count: u32) -> Option<(usize, usize)> {
        let first = self.inner.slot_address(SlotId(0))?;
        let last = self.inner.slot_address(SlotId(count.checked_sub(1)?))?;
        let page = page_bytes();
        Some((first / page * page, last + self.inner.slot_bytes()))
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

    fn pin(&self, base: usize, bytes: usize) -> Outcome {
        let began = Instant::now();
        // SAFETY: the slots' pages are mapped as long as `inner` lives, which is longer than we do; the drop of `PinnedSlots`
        // unregisters them first.
        let outcome = unsafe { self.copies.register(base, bytes) };
        let took = began.elapsed();
        let mut report = self.report.lock();
        report.0 += took;
        match outcome {
            Ok(()) => {
                self.bases.lock().push(base);
                self.bytes.fetch_add(bytes, Ordering::Relaxed);
                Outcome::Pinned(took)
            }
            Err(failure) if is_for_now(&failure) => Outcome::Later,
            Err(failure) => {
                report.1 = Some(failure.into());
                Outcome::Refused
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
        self.shared.usable.load(Ordering::Acquire).min(self.inner.usable_slots())
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
#[path = "pinned_slots_tests.rs"]
mod tests;
