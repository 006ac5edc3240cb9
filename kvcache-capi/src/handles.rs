//! Handles: numbers that look like pointers to the caller, and that are never followed.
//!
//! A C program closes a handle while another thread uses it, closes it twice, or passes one of another kind, sooner or
//! later. With a pointer that would be a use after free. A handle is an index into a table with the generation of the
//! entry: what it names is found or it is not, and a closed one is an error that says so. The table grows by chunks that
//! never move and are never given back, so that a look-up takes one lock: the entry's own, shared by all who use it.

use std::sync::OnceLock;

use super::sync::{Condvar, Mutex, MutexGuard, PoisonError, RwLock};

/// Names an entry of one table. Never zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Handle(pub(crate) u64);

/// Values by handle. A call under way keeps its value; removing waits for it.
pub(crate) struct Handles<T> {
    /// What the table holds, so that a handle of another kind is not taken for one of this.
    kind: u8,
    chunks: [OnceLock<Chunk<T>>; CHUNKS],
    /// May be locked while an entry is, but not the other way round.
    unused: Mutex<Unused>,
    /// A handle was removed to the end.
    removed: Condvar,
}

type Chunk<T> = Box<[RwLock<Entry<T>>]>;

struct Entry<T> {
    /// Grows with every value that was here, so that an old handle does not find a new value.
    generation: u32,
    value: Option<T>,
}

#[derive(Default)]
struct Unused {
    /// Entries that were used and are empty again.
    emptied: Vec<u32>,
    /// Handles whose value was taken out and is still being ended.
    removing: Vec<Handle>,
    /// The first entry that was never used.
    next: u32,
}

/// Entries in the first chunk; each further one is twice as large.
const FIRST: u32 = 64;
const CHUNKS: usize = 16;

/// 4.2 million entries: leases are handles, too.
pub(crate) const ENTRIES_MAX: u32 = FIRST * ((1 << CHUNKS) - 1);

// Of 64 bits: 24 of index, 28 of generation, 4 of kind, and 8 that make the number no address of a user's process.
const INDEX_BITS: u32 = 24;
const GENERATION_BITS: u32 = 28;
const MARK: u64 = 0xA5;

/// Generations before an entry is retired: a handle is never given out twice.
const GENERATIONS: u32 = (1 << GENERATION_BITS) - 1;

impl<T> Handles<T> {
    /// An empty table; `kind` is below 16.
    pub(crate) fn new(kind: u8) -> Self {
        debug_assert!(kind < 16, "four bits");
        let chunks = std::array::from_fn(|_| OnceLock::new());
        Self { kind, chunks, unused: Mutex::default(), removed: Condvar::new() }
    }

    /// Takes `value` in. Gives it back if the table is full.
    pub(crate) fn insert(&self, value: T) -> Result<Handle, T> {
        let index = {
            let mut unused = self.unused();
            match unused.emptied.pop() {
                Some(index) => index,
                None if unused.next == ENTRIES_MAX => return Err(value),
                None => {
                    unused.next += 1;
                    unused.next - 1
                }
            }
        };
        let (chunk, place) = place_of(index);
        let entries = self.chunks[chunk].get_or_init(|| {
            let entry = || RwLock::new(Entry { generation: 0, value: None });
            (0..FIRST << chunk).map(|_| entry()).collect()
        });
        let mut entry = entries[place].write().unwrap_or_else(PoisonError::into_inner);
        entry.value = Some(value);
        Ok(self.handle(index, entry.generation))
    }

    /// What `act` makes of the value; `None` if the handle names none. Removal waits until `act` returns, so that `act` must
    /// not remove this handle.
    pub(crate) fn with<R>(&self, handle: Handle, act: impl FnOnce(&T) -> R) -> Option<R> {
        let (index, generation) = self.parts(handle)?;
        let entry = self.entry(index)?.read().unwrap_or_else(PoisonError::into_inner);
        let value = entry.value.as_ref().filter(|_| entry.generation == generation)?;
        Some(act(value))
    }

    /// Takes a value out once nobody uses it, and lets `end` do the rest. Whoever asks for the value meanwhile finds nothing.
    ///
    /// `None` if the handle names none. Where that is because somebody else is removing it just now, not before their `end` has
    /// returned: whatever this returns, what the value kept alive is gone. So `end` must not remove this handle.
    pub(crate) fn remove<R>(&self, handle: Handle, end: impl FnOnce(T) -> R) -> Option<R> {
        let (index, generation) = self.parts(handle)?;
        let mut entry = self.entry(index)?.write().unwrap_or_else(PoisonError::into_inner);
        let value = if entry.generation == generation { entry.value.take() } else { None };
        let Some(value) = value else {
            drop(entry);
            self.wait_until_removed(handle);
            return None;
        };
        entry.generation += 1;
        let reusable = (entry.generation < GENERATIONS).then_some(index);
        // Before anybody sees that the value is gone.
        self.unused().removing.push(handle);
        drop(entry);
        let _removal = Removal { table: self, handle, reusable };
        Some(end(value))
    }

    fn wait_until_removed(&self, handle: Handle) {
        let mut unused = self.unused();
        while unused.removing.contains(&handle) {
            unused = self.removed.wait(unused).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn unused(&self) -> MutexGuard<'_, Unused> {
        self.unused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn entry(&self, index: u32) -> Option<&RwLock<Entry<T>>> {
        if index >= ENTRIES_MAX {
            return None;
        }
        let (chunk, place) = place_of(index);
        self.chunks[chunk].get().map(|entries| &entries[place])
    }

    fn handle(&self, index: u32, generation: u32) -> Handle {
        let kind = MARK << 4 | u64::from(self.kind);
        Handle((kind << GENERATION_BITS | u64::from(generation)) << INDEX_BITS | u64::from(index))
    }

    fn parts(&self, handle: Handle) -> Option<(u32, u32)> {
        let index = handle.0 & ((1 << INDEX_BITS) - 1);
        let generation = handle.0 >> INDEX_BITS & ((1 << GENERATION_BITS) - 1);
        let (index, generation) = (index as u32, generation as u32);
        (self.handle(index, generation) == handle).then_some((index, generation))
    }
}

/// Says that a value was removed to the end, also where its end was a panic.
struct Removal<'a, T> {
    table: &'a Handles<T>,
    handle: Handle,
    /// The entry, unless all of its generations are used up.
    reusable: Option<u32>,
}

impl<T> Drop for Removal<'_, T> {
    fn drop(&mut self) {
        let mut unused = self.table.unused();
        unused.removing.retain(|removing| *removing != self.handle);
        unused.emptied.extend(self.reusable);
        drop(unused);
        self.table.removed.notify_all();
    }
}

/// The chunk of an entry, and its place in it.
fn place_of(index: u32) -> (usize, usize) {
    let chunk = (index / FIRST + 1).ilog2();
    (chunk as usize, (index - FIRST * ((1 << chunk) - 1)) as usize)
}
