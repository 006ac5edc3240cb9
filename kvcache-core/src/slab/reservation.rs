//! Takes a slab's memory in the background, piece by piece, so that opening gigabytes does not delay the engine.
//!
//! A file in shared memory starts with holes. Touching a hole when the file system is full kills the process, so slots
//! become usable only when their storage is reserved; if that fails, the rest never does: fewer slots, no crash. The same
//! when the machine's memory is nearly used up, since the kernel would end some process to find more.
//! Anonymous memory is usable at once, and this only spares the first copies their page faults. Whoever pins memory, which
//! takes all its pages at once, keeps to what is [populated](Reservation::populated_bytes) already.

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
pub(super) const PIECE_BYTES: usize = 64 << 20;

/// Memory that is left to others: below it, no more is taken.
const SPARE_BYTES: u64 = 4 * PIECE_BYTES as u64;

/// Yields to whoever computes, but not for long: on a busy machine slots become usable three times later than at 0, ten
/// times later at 10.
const NICE: i32 = 5;

/// A background thread that reserves storage; dropping it stops and joins it, which takes at most the time of one piece.
pub(super) struct Reservation {
    progress: Arc<Progress>,
    thread: Option<JoinHandle<()>>,
}

struct Progress {
    /// Bytes from the start of the mapping that may be touched. Released after the storage is there.
    usable_bytes: AtomicUsize,
    /// Bytes from the start of the mapping whose memory is taken already. Released after it is.
    populated_bytes: AtomicUsize,
    /// Set once. Relaxed: publishes nothing.
    stopping: AtomicBool,
    /// Why the rest will not become usable.
    warning: Mutex<Option<String>>,
}

/// Asks for the memory that is left; `None` where the system does not say.
pub(super) type MemoryBytes = fn() -> Option<u64>;

/// What is to be taken.
pub(super) enum Storage {
    /// Of a file: may run out.
    File(Arc<Mapping>, File, Arc<SlotTable>),
    /// Of the process.
    Anonymous(Arc<Mapping>),
}

impl Reservation {
    /// Reserves from `from` to the end of the mapping. The first `from` bytes of a file are reserved already, and only
    /// mapped. `memory_bytes` says how much memory the machine has left.
    pub(super) fn start(storage: Storage, from: usize, memory_bytes: MemoryBytes) -> io::Result<Self> {
        let usable = match &storage {
            Storage::File(..) => from,
            Storage::Anonymous(mapping) => mapping.bytes(),
        };
        let progress = Arc::new(Progress::new(usable, from));
        let shared = Arc::clone(&progress);
        let thread = std::thread::Builder::new().name("kvcache-reserve".to_owned()).spawn(move || {
            thread_placement::place(&[], NICE);
            shared.run(&storage, from, memory_bytes);
            if let Storage::File(_, _, table) = &storage {
                table.set_reserving_ended(true);
            }
        })?;
        Ok(Reservation { progress, thread: Some(thread) })
    }

    /// Everything is usable, and nothing is taken ahead of its use.
    pub(super) fn none(bytes: usize) -> Self {
        Reservation { progress: Arc::new(Progress::new(bytes, bytes)), thread: None }
    }

    /// Bytes from the start of the mapping that may be touched. Only grows.
    #[inline]
    pub(super) fn usable_bytes(&self) -> usize {
        self.progress.usable_bytes.load(Ordering::Acquire)
    }

    /// Bytes from the start of the mapping whose memory is taken already, so that pinning them takes none. At most the usable
    /// ones; all that are usable in the end, unless memory is short. Only grows.
    pub(super) fn populated_bytes(&self) -> usize {
        self.progress.populated_bytes.load(Ordering::Acquire)
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
    fn new(usable_bytes: usize, populated_bytes: usize) -> Self {
        Self {
            usable_bytes: AtomicUsize::new(usable_bytes),
            populated_bytes: AtomicUsize::new(populated_bytes),
            stopping: AtomicBool::new(false),
            warning: Mutex::new(None),
        }
    }

    fn run(&self, storage: &Storage, from: usize, memory_bytes: MemoryBytes) {
        let (Storage::File(mapping, ..) | Storage::Anonymous(mapping)) = storage;
        let pieces = |start: usize, end: usize| {
            let pieces =
                (start..end).step_by(PIECE_BYTES).map(move |at| at..end.min(at.saturating_add(PIECE_BYTES)));
            pieces.take_while(|_| !self.stopping.load(Ordering::Relaxed))
        };
        // What an earlier process left is there, but has no page table entries: 2 s of faults for 4 GiB otherwise.
        for piece in pieces(0, from) {
            let _ = mapping.populate(piece);
        }
        for piece in pieces(from, mapping.bytes()) {
            let short = memory_bytes().is_some_and(|bytes| bytes < SPARE_BYTES);
            let taken = match storage {
                _ if short => Err(io::Error::from(io::ErrorKind::OutOfMemory)),
                Storage::File(mapping, file, _) => mapping.reserve(file, piece.clone()),
                Storage::Anonymous(mapping) => mapping.populate(piece.clone()),
            };
            match (storage, taken) {
                (Storage::File(_, _, table), Ok(())) => {
                    table.set_reserved_bytes(piece.end as u64);
                    self.usable_bytes.store(piece.end, Ordering::Release);
                    self.populated_bytes.store(piece.end, Ordering::Release);
                }
                (Storage::File(..), Err(error)) => {
                    *self.warning.lock() = Some(format!(
                        "shared memory ended after {} of {} slab bytes ({error}): the cache is smaller; \
                         free some, or lower the capacity",
                        piece.start,
                        mapping.bytes()
                    ));
                    return;
                }
                (Storage::Anonymous(_), Ok(())) => self.populated_bytes.store(piece.end, Ordering::Release),
                // A kernel before 5.14 cannot: pages come when they are touched, or pinned.
                (Storage::Anonymous(_), Err(error)) if error.raw_os_error() == Some(libc::EINVAL) => {
                    self.populated_bytes.store(mapping.bytes(), Ordering::Release);
                    return;
                }
                // Memory is short: pages come when they are touched, if there are any left then.
                (Storage::Anonymous(_), Err(_)) => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::mapping::HugePages;
    use super::super::slot_table::Description;
    use super::super::test_directory::TestDirectory;
    use super::*;

    fn populated(memory_bytes: MemoryBytes) -> (usize, usize) {
        let mapping = Arc::new(Mapping::anonymous(2 * PIECE_BYTES, HugePages::Off).unwrap());
        let mut reservation = Reservation::start(Storage::Anonymous(mapping), 0, memory_bytes).unwrap();
        if let Some(thread) = reservation.thread.take() {
            thread.join().unwrap();
        }
        (reservation.populated_bytes(), reservation.usable_bytes())
    }

    /// However that ends, replicas must not wait for more.
    #[test]
    fn the_table_says_when_nothing_more_is_reserved() {
        let directory = TestDirectory::new();
        let description =
            Description { layout: [1; 16], namespace: [2; 16], slot_bytes: 4096, slot_count: 8 };
        let from = description.data_offset().unwrap();
        for (memory_bytes, bytes) in [((|| Some(0)) as MemoryBytes, from), (|| None, from + 8 * 4096)] {
            let path = directory.path().join("slab");
            let file =
                File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
            file.set_len((from + 8 * 4096) as u64).unwrap();
            let mapping = Arc::new(Mapping::shared(&file, from + 8 * 4096, HugePages::Off).unwrap());
            let table = Arc::new(SlotTable::create(Arc::clone(&mapping), &description, 1));
            table.set_reserved_bytes(from as u64);
            assert!(!table.reserving_ended());
            let storage = Storage::File(mapping, file, Arc::clone(&table));
            let mut reservation = Reservation::start(storage, from, memory_bytes).unwrap();
            if let Some(thread) = reservation.thread.take() {
                thread.join().unwrap();
            }
            assert_eq!((table.reserving_ended(), table.reserved_bytes()), (true, bytes as u64));
        }
    }

    /// Of two pieces: usable are both, since a touch may still find memory.
    #[test]
    fn anonymous_memory_is_populated_as_far_as_there_is_enough() {
        static CALLS: AtomicUsize = AtomicUsize::new(0);
        let until_second = || Some(if CALLS.fetch_add(1, Ordering::Relaxed) == 0 { u64::MAX } else { 0 });
        assert_eq!(populated(|| Some(0)), (0, 2 * PIECE_BYTES));
        assert_eq!(populated(until_second), (PIECE_BYTES, 2 * PIECE_BYTES));
        assert_eq!(populated(|| None), (2 * PIECE_BYTES, 2 * PIECE_BYTES));
        assert_eq!(Reservation::none(7).populated_bytes(), 7);
    }
}
