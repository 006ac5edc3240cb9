//! What a directory holds and has done.

/// A snapshot of a [`Directory`](super::Directory). Slots are counted once: `free + filling + ready + draining +
/// unusable == slot_count`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DirectoryStats {
    /// All slots.
    pub slot_count: usize,
    /// Empty slots that cannot be filled yet: there is no memory behind them, or the device cannot write to it.
    pub unusable: usize,
    /// Slots that can be filled at once.
    pub free: usize,
    /// Slots being filled.
    pub filling: usize,
    /// Slots whose block is a hit.
    pub ready: usize,
    /// Slots of cancelled work that is not acknowledged yet.
    pub draining: usize,
    /// Ready slots that loads are using.
    pub pinned: usize,
    /// Blocks that became ready since the start.
    pub stored: u64,
    /// Blocks evicted for room.
    pub evicted: u64,
    /// Blocks not stored because nothing could be evicted.
    pub refused: u64,
    /// Blocks not stored because their request had evicted its share of the slots.
    pub over_share: u64,
    /// Blocks not stored because what would have had to leave was likelier to be used again.
    pub not_worth: u64,
    /// Fills that failed.
    pub failed_fills: u64,
    /// Fills whose block was deleted before they ended.
    pub cancelled_fills: u64,
    /// Blocks taken over from an earlier process.
    pub adopted: u64,
    /// Blocks deleted.
    pub removed: u64,
    /// Bytes of memory of the directory and its policy, ghosts included.
    pub metadata_bytes: usize,
    /// Name of the eviction policy.
    pub policy: &'static str,
}
