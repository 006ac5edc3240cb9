//! Takes a slab's memory in the background, piece by piece, so that opening gigabytes does not delay the engine.
//!
//! A file in shared memory starts with holes. Touching a hole when the file system is full kills the process, so slots
//! become usable only when their storage is reserved; if that fails, the rest never does: fewer slots, no crash.
//! Anonymous memory is usable at once, and this only spares the first copies their page faults.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use parking_lot::Mutex;

use super::mapping::Mapping;
use super::slot_table::SlotTable;
use crate::thread_placement;

/// Bytes between two looks at the order to stop: about 20 ms of clearing pages.
const PIECE_BYTES: usize = 64 << 20;

/// Leaves the CPUs to whoever computes.
const NICE: i32 = 10;

/// A background thread that reserves storage; dropping it stops and joins it, which takes at most the time of one piece.
pub(super) struct Reservation {
    progress: Arc<Progress>,
    thread: Option<JoinHandle<()>>,
}

struct Progress {
    /// Bytes from the start of the mapping that may be touched. Released after the storage is there.
    usable_bytes: AtomicUsize,
    /// Set once. Relaxed: publishes nothing.
    stopping: AtomicBool,
    /// Why the rest will not become usable.
    warning: Mutex<Option<String>>,
}

/// What is to be taken.
pub(super) enum Storage {
    /// Of a file: may run out.
    File(Arc<Mapping>, File, Arc<SlotTable>),
    /// Of the process.
    Anonymous(Arc<Mapping>),
}

impl Reservation {
    /// Reserves from `from` to the end of the mapping. The first `from` bytes are reserved already.
    pub(super) fn start(storage: Storage, from: usize) -> io::Result<Self> {
        let usable = match &storage {
            Storage::File(..) => from,
            Storage::Anonymous(mapping) => mapping.bytes(),
        };
        let progress = Arc::new(Progress {
            usable_bytes: AtomicUsize::new(usable),
            stopping: AtomicBool::new(false),
            warning: Mutex::new(None),
        });
        let shared = Arc::clone(&progress);
        let thread = std::thread::Builder::new().name("kvcache-reserve".to_owned()).spawn(move || {
            thread_placement::place(&[], NICE);
            shared.run(&storage, from);
        })?;
        Ok(Reservation { progress, thread: Some(thread) })
    }

    /// Everything is usable, and nothing is taken ahead of its use.
    pub(super) fn none(bytes: usize) -> Self {
        let progress = Progress {
            usable_bytes: AtomicUsize::new(bytes),
            stopping: AtomicBool::new(false),
            warning: Mutex::new(None),
        };
        Reservation { progress: Arc::new(progress), thread: None }
    }

    /// Bytes from the start of the mapping that may be touched. Only grows.
    #[inline]
    pub(super) fn usable_bytes(&self) -> usize {
        self.progress.usable_bytes.load(Ordering::Acquire)
    }

    /// Whether the thread is still at work.
    pub(super) fn is_running(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    pub(super) fn warning(&self) -> Option<String> {
        self.progress.warning.lock().clone()
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.progress.stopping.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic there was already printed; the slab goes away either way.
            let _ = thread.join();
        }
    }
}

impl Progress {
    fn run(&self, storage: &Storage, from: usize) {
        let (Storage::File(mapping, ..) | Storage::Anonymous(mapping)) = storage;
        let mut at = from;
        while at < mapping.bytes() && !self.stopping.load(Ordering::Relaxed) {
            let end = mapping.bytes().min(at.saturating_add(PIECE_BYTES));
            match storage {
                Storage::File(mapping, file, table) => {
                    if let Err(error) = mapping.reserve(file, at..end) {
                        *self.warning.lock() = Some(format!(
                            "shared memory ended after {at} of {} slab bytes ({error}): the cache is smaller; \
                             free some, or lower the capacity",
                            mapping.bytes()
                        ));
                        return;
                    }
                    table.set_reserved_bytes(end as u64);
                    self.usable_bytes.store(end, Ordering::Release);
                }
                Storage::Anonymous(mapping) => {
                    // The kernel is too old, or memory is short: pages come when they are touched.
                    if mapping.populate(at..end).is_err() {
                        return;
                    }
                }
            }
            at = end;
        }
    }
}
