//! Registers a slab in the background, as its slots become usable.
//!
//! Pinning takes about a second a GiB, and a slab takes its memory in the background as well: neither may delay the
//! engine's start.

use std::ptr::NonNull;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use kvcache_core::eviction::SlotId;
use kvcache_core::store::SlotMemory;
use parking_lot::{Condvar, Mutex};

use super::device::Device;
use crate::verbs::{Memory, Port};

/// A thread that registers slots until all are. Dropping it ends the thread, after at most one piece.
pub(crate) struct SlabRegistration {
    stop: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

/// Bytes of one region, about: a slab of any size is usable after the first.
const PIECE_BYTES: usize = 1 << 30;

/// How soon one looks for more usable slots, or for a device.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
const LOOK_FOR_DEVICE: Duration = Duration::from_secs(5);

impl SlabRegistration {
    /// # Errors
    /// The system refuses a thread.
    ///
    /// # Safety
    /// The addresses of usable slots are mapped, readable and writable as long as `slots` or a clone of it lives.
    pub(crate) unsafe fn start(device: Arc<Device>, slots: Arc<dyn SlotMemory>) -> std::io::Result<Self> {
        let stop = Arc::new((Mutex::new(false), Condvar::new()));
        let stopping = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("kvcache-register".to_owned())
            // SAFETY: as promised to us.
            .spawn(move || unsafe { run(&device, &slots, &stopping) })?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for SlabRegistration {
    fn drop(&mut self) {
        *self.stop.0.lock() = true;
        self.stop.1.notify_all();
        if let Some(thread) = self.thread.take() {
            // A panic was reported by the thread itself.
            let _ = thread.join();
        }
    }
}

/// Whether to stop, after `pause` or at once when told to.
fn stops(stop: &(Mutex<bool>, Condvar), pause: Duration) -> bool {
    let mut stopping = stop.0.lock();
    if !*stopping && !pause.is_zero() {
        // Woken for nothing is as good as the end of the pause.
        let _ = stop.1.wait_for(&mut stopping, pause);
    }
    *stopping
}

/// # Safety
/// As of [`SlabRegistration::start`].
unsafe fn run(device: &Device, slots: &Arc<dyn SlotMemory>, stop: &(Mutex<bool>, Condvar)) {
    let port = loop {
        match device.open() {
            Ok(port) => break port,
            // Whoever needs a lane reports why.
            Err(_) if stops(stop, LOOK_FOR_DEVICE) => return,
            Err(_) => {}
        }
    };
    let mut next = 0;
    while next < slots.slot_count() {
        let growing = slots.is_growing();
        let usable = slots.usable_slots();
        let per_piece = (PIECE_BYTES / slots.slot_bytes().max(1)).max(1) as u32;
        let end = next.saturating_add(per_piece).min(usable);
        // A piece is whole, unless nothing more comes: regions are few.
        if end - next.min(end) < per_piece && growing && end < slots.slot_count() {
            if stops(stop, LOOK_AGAIN) {
                return;
            }
            continue;
        }
        // SAFETY: the caller's duty is ours.
        if end <= next || stops(stop, Duration::ZERO) || !unsafe { register(device, &port, slots, next, end) }
        {
            return;
        }
        next = end;
    }
}

/// Registers slots from `first` up to `end`; false if that cannot be done, and need not be tried again.
///
/// # Safety
/// As of [`SlabRegistration::start`].
unsafe fn register(device: &Device, port: &Port, slots: &Arc<dyn SlotMemory>, first: u32, end: u32) -> bool {
    let address = |slot: u32| slots.slot_address(SlotId(slot));
    let (Some(base), Some(last)) = (address(first), address(end - 1)) else { return false };
    // Slots that are not in a row have each a region of their own when they are used.
    let Some(bytes) = last.checked_sub(base).and_then(|before| before.checked_add(slots.slot_bytes())) else {
        return false;
    };
    if bytes > 2 * PIECE_BYTES.max(slots.slot_bytes()) {
        return false;
    }
    let Some(start) = NonNull::new(base as *mut u8) else { return false };
    // SAFETY: usable slots are mapped as long as `slots` lives, which is the owner; between them is padding of the same
    // mapping, since slots are at equal distances.
    let memory = unsafe { Memory::new(start, bytes, Arc::new(Arc::clone(slots))) };
    device.register_slab(port, memory)
}
