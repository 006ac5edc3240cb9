//! Moves bytes between slots and the engine's KV memory, and says when they have arrived.
//!
//! The Store plans copies as batches of [`Piece`]s; who performs them differs: threads of the host
//! ([`HostCopyEngine`]), a GPU's copy engines, a fake in tests. All of them are *completion based*: [`CopyEngine::submit`]
//! returns at once with a [`Ticket`], and the outcome is a value that is polled. There are no callbacks, so nothing ever
//! runs on a thread that did not ask for it.
//!
//! Every accepted batch ends exactly once, as [`CopyState::Done`] or [`CopyState::Failed`]. The first
//! [`poll`](CopyEngine::poll) or [`wait`](CopyEngine::wait) that sees the end frees the ticket; asking again answers
//! [`CopyFailure::UnknownTicket`], never `Done`.
//!
//! Memory named by a batch stays reserved (neither freed, nor reused, nor read) until its end was seen: a deadline that
//! passed, or a lost interest in the outcome, does not stop a copy.

pub mod checked_copy;
pub mod drill;
mod host;
pub mod stream_copy;

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

pub use host::{HostCopyConfig, HostCopyEngine};

/// One contiguous copy: `bytes` bytes from address `src` to address `dst`.
///
/// Addresses are plain numbers since a device address is none that this process could dereference. The duties that
/// make them true are those of [`CopyEngine::submit`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Piece {
    /// First byte to read.
    pub src: usize,
    /// First byte to write.
    pub dst: usize,
    /// Bytes to copy; zero is allowed and copies nothing.
    pub bytes: usize,
}

/// Which way a batch goes, for engines that use another queue, and counters, for each way.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Direction {
    /// From slots to the engine's memory.
    Load,
    /// From the engine's memory to slots.
    Offload,
}

/// A point in the work of one of the engine's streams: all that the stream held when it was [made](CopyEngine::fence).
///
/// Cheap to clone; what it stands for is given back with the last clone.
#[derive(Clone)]
pub struct Fence(Arc<dyn Any + Send + Sync>);

impl Fence {
    /// A fence that is `inner` to the copy engine that makes it.
    pub fn new(inner: impl Any + Send + Sync) -> Self {
        Self(Arc::new(inner))
    }

    /// What the copy engine has put in, if it is of that type.
    pub fn inner<T: Any>(&self) -> Option<&T> {
        self.0.downcast_ref()
    }
}

impl PartialEq for Fence {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Fence {}

impl std::fmt::Debug for Fence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Fence")
    }
}

/// Copies that complete together, in no particular order among themselves.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CopyBatch {
    /// What to copy. An empty batch is done as soon as it is submitted.
    pub pieces: Vec<Piece>,
    /// Which way the bytes go.
    pub direction: Direction,
    /// Work of the engine that comes first (device engines only). The host engine refuses a batch with a fence, since
    /// copying without waiting would read unfinished bytes.
    pub fence: Option<Fence>,
    /// Whether the destination will not be read soon by a CPU: such copies go past the caches.
    pub streaming: bool,
    /// Whether a forward pass waits for it: goes before batches for which nobody waits, where the engine has queues for both.
    pub urgent: bool,
}

impl CopyBatch {
    /// Sum of the pieces' bytes.
    pub fn bytes(&self) -> usize {
        self.pieces.iter().map(|piece| piece.bytes).fold(0, usize::saturating_add)
    }
}

/// Names a submitted batch within its engine. Never reused during the life of the engine.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Ticket(pub u64);

/// Where a batch stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CopyState {
    /// Not finished: its memory is in use.
    Pending,
    /// All bytes have arrived and are visible to the thread that got this answer.
    Done,
    /// Ended without arriving: the destination's content is undefined, its memory free again.
    Failed(CopyFailure),
}

impl CopyState {
    /// Whether the batch has ended, well or not.
    pub fn is_finished(&self) -> bool {
        *self != CopyState::Pending
    }
}

/// Why a batch, or a registration, failed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CopyFailure {
    /// The ticket was never issued, or its end was already reported.
    #[error("copy ticket {} is unknown: never issued, or its end was already reported", .0.0)]
    UnknownTicket(Ticket),
    /// The engine is shutting down and dropped the batch before it was complete.
    #[error("copy engine is shutting down")]
    ShutDown,
    /// A driver call returned a status that is not success.
    #[error("{operation} failed: {name} ({code})")]
    Driver {
        /// The call that failed.
        operation: &'static str,
        /// What it returned.
        code: i64,
        /// What the driver calls that.
        name: String,
    },
    /// The copy can no longer complete, for a reason that has no number.
    #[error("copy failed: {0}")]
    Other(String),
}

/// A batch that was not accepted. It is handed back unchanged and none of its bytes were touched.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Rejected {
    /// The bound on batches or bytes in flight is reached. Not an error: retry after a completion, or drop the work.
    Full(CopyBatch),
    /// This engine cannot do such a batch at all.
    Unsupported(CopyBatch, &'static str),
}

impl Rejected {
    /// Why it was not accepted.
    pub fn reason(&self) -> &'static str {
        match self {
            Rejected::Full(_) => "the copy engine is full",
            Rejected::Unsupported(_, reason) => reason,
        }
    }

    /// The batch, to be retried or dropped.
    pub fn into_batch(self) -> CopyBatch {
        match self {
            Rejected::Full(batch) | Rejected::Unsupported(batch, _) => batch,
        }
    }
}

/// What an engine has accepted and not yet ended.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct InFlight {
    /// Batches.
    pub batches: usize,
    /// Bytes of these batches, those already copied included.
    pub bytes: usize,
}

/// Performs batches of copies. All methods may be called from any thread.
///
/// # Bounds
///
/// An engine bounds its batches and bytes in flight; beyond the bound `submit` hands the batch back. A batch that alone
/// exceeds the bound on bytes is accepted when nothing else is in flight, so that it is slow rather than impossible.
/// Ends that nobody has polled do not count as in flight, but hold memory: they share the bound on batches.
pub trait CopyEngine: Send + Sync {
    /// The name in logs and metrics, for example `host`.
    fn name(&self) -> &'static str;

    /// Accepts a batch and returns at once, without waiting for copies or for room.
    ///
    /// # Errors
    ///
    /// Hands the batch back when the engine is full or cannot do it.
    ///
    /// # Safety
    ///
    /// Until the batch's end was reported by [`poll`](Self::poll) or [`wait`](Self::wait), or, after
    /// [`forget`](Self::forget), until the engine is dropped or has nothing in flight:
    /// every `src..src + bytes` must be readable and every `dst..dst + bytes` writable memory of the kind that this
    /// engine copies, nobody else may write the sources or touch the destinations, and no destination may overlap a
    /// source or another destination of the batch.
    unsafe fn submit(&self, batch: CopyBatch) -> Result<Ticket, Rejected>;

    /// Where the batch stands, without blocking. An answer other than `Pending` frees the ticket.
    fn poll(&self, ticket: Ticket) -> CopyState;

    /// Blocks until the batch ends or `timeout` has passed (then `Pending`, and the copy goes on).
    ///
    /// Where the CPU copies, the caller performs chunks of this batch itself instead of sleeping, so that it
    /// makes progress with no thread in the pool. The timeout is checked between chunks.
    fn wait(&self, ticket: Ticket, timeout: Duration) -> CopyState;

    /// Performs about `budget_bytes` of queued copies, oldest first, on the calling thread; returns the bytes copied.
    ///
    /// Zero where a device copies, and where nothing is queued. Copies in whole chunks: may exceed the budget by less
    /// than one chunk.
    fn help(&self, budget_bytes: usize) -> usize {
        let _ = budget_bytes;
        0
    }

    /// Gives up interest in the outcome: the copy still runs to its end, and the ticket is freed then.
    fn forget(&self, ticket: Ticket);

    /// What is accepted and not ended.
    fn in_flight(&self) -> InFlight;

    /// Whether the engine's memory is written and read by streams of a device, so that copies need [fences](Self::fence).
    fn has_streams(&self) -> bool {
        false
    }

    /// Marks what `stream` (a raw handle of the engine's) holds now, for batches that have to come after it. Costs
    /// microseconds, so that one fence should serve all batches of a moment.
    ///
    /// # Errors
    /// Fails where there are no streams, or this is none that the copy engine can use.
    fn fence(&self, stream: u64) -> Result<Fence, CopyFailure> {
        Err(CopyFailure::Other(format!(
            "the {} copy engine has no streams, {stream:#x} was given",
            self.name()
        )))
    }

    /// What `stream` gets from now on waits for the batch; the calling thread does not. The batch still has to be polled.
    ///
    /// # Errors
    /// As [`fence`](Self::fence); then nothing waits.
    fn order_after(&self, ticket: Ticket, stream: u64) -> Result<(), CopyFailure> {
        let _ = ticket;
        self.fence(stream).map(drop)
    }

    /// Bytes of the loads that have ended well since the last call, and for how long they were being copied. Both are zero where
    /// that is not measured.
    ///
    /// The time is the copies' own. Whoever submits a batch and asks for its end cannot measure it: in between the batch waits
    /// for others, for a thread and for the question, all of which a forward pass outlasts.
    fn take_load_time(&self) -> (u64, Duration) {
        (0, Duration::ZERO)
    }

    /// How long a batch takes when nothing else is copied, if the engine has measured such batches before: for engines that
    /// cannot measure loads [as they happen](Self::take_load_time), such as those whose copies are ordered by streams.
    fn expected_time(&self, batch: &CopyBatch) -> Option<Duration> {
        let _ = batch;
        None
    }

    /// Bytes from which on a batch is large enough: smaller ones cost more in calls than in bytes. Zero where calls are free.
    fn batch_bytes(&self) -> usize {
        0
    }

    /// Prepares memory for fast copies (device engines pin it). May take long: call it off the engine's path.
    ///
    /// # Errors
    ///
    /// Fails when the driver refuses; copies from and to this memory still work, more slowly.
    ///
    /// # Safety
    ///
    /// `base..base + bytes` must be mapped memory of this process until [`unregister`](Self::unregister) or the drop
    /// of the engine.
    unsafe fn register(&self, base: usize, bytes: usize) -> Result<(), CopyFailure> {
        let _ = (base, bytes);
        Ok(())
    }

    /// Undoes [`register`](Self::register) for the range that starts at `base`, with no copy in flight on it.
    fn unregister(&self, base: usize) {
        let _ = base;
    }
}
