//! Copies between slots and a device's memory. A leaf.

use std::collections::{BTreeSet, VecDeque};
use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::filling::Filling;
use super::pinned::Pinned;
use super::segments::BlockPlaces;
use super::{BlockCache, Segment};
use crate::copy_engine::{CopyBatch, CopyEngine, CopyFailure, CopyState, Direction, Fence, Rejected, Ticket};

/// Bytes of a batch, from which on another is begun: large enough for a device's speed, and small beside what a copy engine
/// takes in flight, so that others get their turns. Tests want several.
const BATCH_BYTES: usize = if cfg!(test) { 150 } else { 32 << 20 };

/// How long a copy engine may be full of what others do before a call gives up.
const FULL_PATIENCE: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 10 });

/// Reasons that are kept: those of a device are few, and a text may hold an address.
const FAILURES_MAX: usize = 8;

/// Where blocks lie in a device's memory.
pub(super) struct DeviceBlocks<'a>(BlockPlaces<'a>);

impl<'a> DeviceBlocks<'a> {
    /// The blocks in `segments`, which were checked to be `per_block` for each.
    ///
    /// # Safety
    /// For `'a`, from the moment on that the stream which a copy is given has come to what it holds, each segment is memory
    /// that the copy engine can use, and that nobody writes if it is copied from. If it is copied to, nobody else uses it
    /// and no two segments overlap.
    pub(super) unsafe fn new(segments: &'a [Segment], per_block: usize) -> Self {
        Self(BlockPlaces::Scattered { segments, per_block })
    }
}

/// A device's copy engine, and what has gone wrong with it.
pub(super) struct DeviceCopies {
    engine: Arc<dyn CopyEngine>,
    failures: Mutex<BTreeSet<String>>,
}

impl DeviceCopies {
    pub(super) fn new(engine: Arc<dyn CopyEngine>) -> Self {
        Self { engine, failures: Mutex::default() }
    }

    pub(super) fn failures(&self) -> Vec<String> {
        self.failures.lock().iter().cloned().collect()
    }

    /// Copies blocks into the slots that `filling` has reserved; how many of these arrived, from the first on.
    pub(super) fn copy_in<C: Deref<Target = BlockCache>>(
        &self,
        filling: &mut Filling<C>,
        from: &DeviceBlocks<'_>,
        stream: Option<u64>,
    ) -> usize {
        let memory = &filling.cache().memory;
        let reserved = filling.reserved().iter();
        let moves = reserved.map_while(|at| Some((at.index, memory.slot_address(at.slot)?))).collect();
        // SAFETY: `from` promises the sources; the destinations are usable slots of at least the bytes of a block, reserved for
        // this fill alone, and slots do not overlap.
        unsafe { self.copy(moves, from.0, filling.cache().block_bytes, Direction::Offload, stream) }
    }

    /// Copies the slots that `pinned` holds to the places of their blocks; how many of these arrived, from the first on.
    pub(super) fn copy_out<C: Deref<Target = BlockCache>>(
        &self,
        pinned: &Pinned<C>,
        to: DeviceBlocks<'_>,
        stream: Option<u64>,
    ) -> usize {
        let memory = &pinned.cache().memory;
        let slots = pinned.slots().iter().enumerate();
        let moves = slots.map_while(|(index, slot)| Some((index, memory.slot_address(*slot)?))).collect();
        // SAFETY: `to` promises the destinations; the sources are usable slots of at least the bytes of a block, pinned and
        // thus not written.
        unsafe { self.copy(moves, to.0, pinned.cache().block_bytes, Direction::Load, stream) }
    }

    /// Copies between blocks, by their indices, and addresses of slots; how many arrived, from the first on.
    ///
    /// # Safety
    /// As for [`CopyEngine::submit`], until the return of this call.
    unsafe fn copy(
        &self,
        moves: Vec<(usize, usize)>,
        places: BlockPlaces<'_>,
        block_bytes: usize,
        direction: Direction,
        stream: Option<u64>,
    ) -> usize {
        if moves.is_empty() {
            return 0;
        }
        let fence = match self.fence(stream) {
            Ok(fence) => fence,
            Err(failure) => {
                self.note(&failure);
                return 0;
            }
        };
        let mut flights = Flights { copies: self, running: VecDeque::new(), arrived: 0, failed: false };
        for moves in moves.chunks((BATCH_BYTES / block_bytes.max(1)).max(1)) {
            let mut pieces = Vec::with_capacity(moves.len() * places.pieces_per_block());
            for (index, slot) in moves {
                places.pieces(*index, *slot, direction, &mut pieces);
            }
            // Whoever called waits for a load, and for an offload as well: but a load of another call may be for a forward pass.
            let urgent = direction == Direction::Load;
            let streaming = direction == Direction::Offload;
            let batch = CopyBatch { pieces, direction, fence: fence.clone(), streaming, urgent };
            // SAFETY: the caller's duties hold until the return, before which `flights` sees the end of every batch.
            let submitted = unsafe { flights.submit(batch, moves.len()) };
            if let Err(failure) = submitted {
                self.note(&failure);
                break;
            }
            if flights.failed {
                break;
            }
        }
        flights.end()
    }

    /// On a device nothing is known of when an engine's work ends, so without its stream no copy can be ordered after it.
    fn fence(&self, stream: Option<u64>) -> Result<Option<Fence>, CopyFailure> {
        match stream {
            Some(stream) => self.engine.fence(stream).map(Some),
            None if self.engine.has_streams() => {
                Err(CopyFailure::Other("the engine's stream was not given".to_owned()))
            }
            None => Ok(None),
        }
    }

    fn note(&self, failure: &CopyFailure) {
        let mut failures = self.failures.lock();
        if failures.len() < FAILURES_MAX {
            failures.insert(failure.to_string());
        }
    }
}

/// Batches whose memory is in use. Dropping it waits for their ends.
struct Flights<'a> {
    copies: &'a DeviceCopies,
    /// Each with its blocks.
    running: VecDeque<(Ticket, usize)>,
    /// Blocks that have arrived, from the first on.
    arrived: usize,
    /// Whether a batch has failed: those after it do not count.
    failed: bool,
}

impl Flights<'_> {
    /// Begins a batch of so many blocks, when there is room for it.
    ///
    /// # Safety
    /// As for [`CopyEngine::submit`], until this is dropped.
    unsafe fn submit(&mut self, mut batch: CopyBatch, blocks: usize) -> Result<(), CopyFailure> {
        let mut gives_up = None;
        loop {
            // SAFETY: the caller's duty.
            match unsafe { self.copies.engine.submit(batch) } {
                Ok(ticket) => {
                    self.running.push_back((ticket, blocks));
                    return Ok(());
                }
                Err(Rejected::Full(back)) => batch = back,
                Err(rejected) => return Err(CopyFailure::Other(rejected.reason().to_owned())),
            }
            if self.end_oldest() {
                continue;
            }
            // Full of what others do.
            let gives_up = *gives_up.get_or_insert_with(|| Instant::now() + FULL_PATIENCE);
            if Instant::now() >= gives_up {
                return Err(CopyFailure::Other("the copy engine was full for too long".to_owned()));
            }
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    /// Waits for the end of the oldest batch; whether there was one.
    fn end_oldest(&mut self) -> bool {
        let Some((ticket, blocks)) = self.running.front().copied() else { return false };
        // Its memory is in use until its end was seen, so there is no leaving early.
        let state = loop {
            match self.copies.engine.wait(ticket, Duration::from_secs(1)) {
                CopyState::Pending => {}
                ended => break ended,
            }
        };
        self.running.pop_front();
        match state {
            CopyState::Failed(failure) => {
                self.failed = true;
                self.copies.note(&failure);
            }
            _ if self.failed => {}
            _ => self.arrived += blocks,
        }
        true
    }

    fn end(mut self) -> usize {
        while self.end_oldest() {}
        self.arrived
    }
}

impl Drop for Flights<'_> {
    fn drop(&mut self) {
        while self.end_oldest() {}
    }
}
