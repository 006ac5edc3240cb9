//! What the server needs of a storage: memory to fill, and memory to send.

/// A range of memory that its holder keeps reserved.
///
/// # Safety
/// From creation to drop, the range is inside of memory that was given to the server as its pool, and nobody else writes
/// it; while a device fills it (a put), nobody reads it either.
pub unsafe trait ValueMemory: Send {
    /// Address of the first byte.
    fn address(&self) -> usize;
    /// Length of the value.
    fn bytes(&self) -> usize;
}

/// Why a value has no place.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum PutRefused {
    /// It is longer than the storage takes at all.
    TooLarge,
    /// There is no room now, and nothing that could be evicted.
    NoRoom,
}

/// Values under keys. Called from the threads of the server, at the same time.
pub trait Storage: Send + Sync + 'static {
    /// A value that is being filled. Dropped without [`commit`](Self::commit) it leaves no trace.
    type Put: ValueMemory;
    /// A value that is there. It stays readable as long as it is held, even if its key is deleted or replaced.
    type Value: ValueMemory;

    /// Reserves memory for a value of `bytes` bytes, at least 1. Must not block.
    ///
    /// # Errors
    /// The value has no place.
    fn begin_put(&self, key: &[u8], bytes: usize) -> Result<Self::Put, PutRefused>;

    /// Makes filled values visible, replacing what was under their keys.
    fn commit(&self, filled: Vec<Self::Put>);

    /// The value of a key.
    fn get(&self, key: &[u8]) -> Option<Self::Value>;

    /// Forgets a key; whether it was there.
    fn delete(&self, key: &[u8]) -> bool;
}
