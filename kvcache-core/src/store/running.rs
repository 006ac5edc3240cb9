//! A job on its way through the copy engine: what of it was submitted, and what has ended.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::{Duration, Instant};

use super::fences::StreamFence;
use super::flight::Flight;
use super::layout::EngineLayout;
use crate::copy_engine::{CopyEngine, CopyFailure, CopyState, Direction, Fence, Piece, Ticket};
use crate::plan::{Job, JobKind};

/// A job's copies. Layers are submitted in order, several at once where the copy engine is better off with large batches.
pub(super) struct Running {
    pub(super) job: Job,
    /// Addresses of the transfers' slots.
    addresses: Vec<usize>,
    /// The next layer to submit.
    next_layer: usize,
    /// Batches in the copy engine, each with the first of its layers. Other jobs may have a part in them.
    in_flight: VecDeque<(usize, Flight)>,
    pub(super) failed: bool,
    /// Why, if the copy engine has said so.
    pub(super) failure: Option<CopyFailure>,
    /// What the engine's stream held when the bytes became ready to be copied: the same for what is submitted late.
    fence: Option<Fence>,
    began: Instant,
    /// What the copy engine said of its part of batches before it got them, if it knew of all.
    expected: Option<Duration>,
    pub(super) bytes: u64,
    /// Whether to remember which batch copied which layer.
    pub(super) traced: bool,
    pub(super) trace: Vec<(usize, Ticket)>,
}

impl Running {
    pub(super) fn new(job: Job, addresses: Vec<usize>) -> Self {
        Self {
            job,
            addresses,
            next_layer: 0,
            in_flight: VecDeque::new(),
            failed: false,
            failure: None,
            fence: None,
            began: Instant::now(),
            expected: Some(Duration::ZERO),
            bytes: 0,
            traced: false,
            trace: Vec::new(),
        }
    }

    /// A job that cannot run: ends as failed.
    pub(super) fn dead(job: Job) -> Self {
        Self { failed: true, ..Self::new(job, Vec::new()) }
    }

    /// A job whose bytes another rank copies: ends with the step.
    pub(super) fn without_copies(job: Job) -> Self {
        Self { next_layer: usize::MAX, ..Self::new(job, Vec::new()) }
    }

    pub(super) fn direction(&self) -> Direction {
        if self.job.kind == JobKind::Offload { Direction::Offload } else { Direction::Load }
    }

    /// What is submitted from now on comes after the fence. A job that cannot be ordered fails.
    pub(super) fn fence_with(&mut self, fence: &mut StreamFence<'_>) {
        match fence.get() {
            Ok(Some(fence)) => self.fence = Some(fence),
            Ok(None) => {}
            Err(failure) => self.fail(failure),
        }
    }

    /// Ends as failed when nothing of it is in flight any more.
    pub(super) fn fail(&mut self, failure: CopyFailure) {
        self.failed = true;
        self.failure.get_or_insert(failure);
    }

    /// What its next batch has to come after.
    pub(super) fn fence(&self) -> Option<&Fence> {
        self.fence.as_ref()
    }

    /// Whether a forward pass waits for it.
    pub(super) fn is_urgent(&self) -> bool {
        self.job.kind == JobKind::LoadLayerwise
    }

    /// Whether copies of both may be in one batch.
    pub(super) fn may_share_with(&self, other: &Self) -> bool {
        self.job.kind == other.job.kind && self.fence == other.fence
    }

    /// The next layer to submit.
    pub(super) fn next_layer(&self) -> usize {
        self.next_layer
    }

    /// Whether layers up to `last` are to be submitted.
    pub(super) fn has_to_submit(&self, last: usize, layout: &EngineLayout) -> bool {
        !self.failed && self.next_layer <= last.min(layout.last_layer())
    }

    /// Bytes of the layers up to `last` that are to be submitted.
    pub(super) fn bytes_through(&self, last: usize, layout: &EngineLayout) -> usize {
        (self.next_layer..=last).map(|layer| self.layer_bytes(layer, layout)).sum()
    }

    /// Appends the copies of some layers of all transfers; their bytes. `None`, and nothing is appended, if a block id is out
    /// of range.
    pub(super) fn add_pieces(
        &self,
        layers: Range<usize>,
        layout: &EngineLayout,
        pieces: &mut Vec<Piece>,
    ) -> Option<u64> {
        let (count, last) = (pieces.len(), pieces.last().copied());
        for (transfer, address) in self.job.transfers.iter().zip(&self.addresses) {
            for layer in layers.clone() {
                if layout.pieces(layer, transfer, *address, self.direction(), pieces).is_err() {
                    // The last piece of another job may have been continued.
                    pieces.truncate(count);
                    if let Some((piece, last)) = pieces.last_mut().zip(last) {
                        *piece = last;
                    }
                    return None;
                }
            }
        }
        let before = last.map_or(0, |piece| piece.bytes);
        let bytes: usize = pieces[count.saturating_sub(1)..].iter().map(|piece| piece.bytes).sum();
        Some((bytes - before) as u64)
    }

    /// Layers were submitted, in a batch unless they have no bytes; how long they should take, if the copy engine knows.
    pub(super) fn has_taken(
        &mut self,
        layers: Range<usize>,
        bytes: u64,
        flight: Option<&Flight>,
        expected: Option<Duration>,
    ) {
        if let Some(flight) = flight {
            self.in_flight.push_back((layers.start, flight.clone()));
            if self.traced {
                self.trace.push((layers.start, flight.ticket()));
            }
        }
        self.bytes += bytes;
        self.expected = self.expected.zip(expected).map(|(sum, more)| sum + more);
        self.next_layer = layers.end;
    }

    /// Bytes of one layer of all transfers, those of skipped blocks included.
    pub(super) fn layer_bytes(&self, layer: usize, layout: &EngineLayout) -> usize {
        let group = layout.layers().get(layer).map(|binding| binding.group);
        let transfers = self.job.transfers.iter().filter(|transfer| Some(transfer.group) == group).count();
        if transfers == 0 { 0 } else { transfers * layout.slot_blocks() * layout.page_bytes(layer) }
    }

    /// What `stream` gets from now on waits for the batches of layers up to `last`. If it cannot, the caller does.
    pub(super) fn order_through(
        &mut self,
        last: usize,
        stream: u64,
        copies: &dyn CopyEngine,
        patience: Duration,
    ) {
        let mut flights = self.in_flight.iter().take_while(|(layer, _)| *layer <= last);
        if flights.any(|(_, flight)| flight.order_before(stream, copies).is_err()) {
            self.wait_through(last, copies, patience);
        }
    }

    /// Whether the copy engine has anything of it.
    pub(super) fn is_moving(&self) -> bool {
        !self.in_flight.is_empty()
    }

    /// Waits for the oldest batch, for `timeout` at most.
    pub(super) fn rest(&mut self, copies: &dyn CopyEngine, timeout: Duration) {
        let Some((_, flight)) = self.in_flight.front() else { return };
        match flight.wait(copies, timeout) {
            CopyState::Pending => return,
            CopyState::Done => {}
            CopyState::Failed(failure) => self.fail(failure),
        }
        self.in_flight.pop_front();
    }

    /// Waits until no batch of layers up to `last` is in flight. Copies with the caller's help.
    pub(super) fn wait_through(&mut self, last: usize, copies: &dyn CopyEngine, patience: Duration) {
        while let Some((_, flight)) = self.in_flight.front().filter(|(layer, _)| *layer <= last) {
            // The memory of a batch is in use until its end was seen, so there is no leaving early: a wait beyond the
            // patience makes the job fail, but not the wait end.
            let began = Instant::now();
            loop {
                match flight.wait(copies, patience) {
                    CopyState::Pending => self.failed |= began.elapsed() > patience,
                    CopyState::Done => break,
                    CopyState::Failed(failure) => {
                        self.failed = true;
                        self.failure.get_or_insert(failure);
                        break;
                    }
                }
            }
            self.in_flight.pop_front();
        }
    }

    /// Waits for the oldest batch in flight; whether there was one.
    pub(super) fn wait_oldest(&mut self, copies: &dyn CopyEngine, patience: Duration) -> bool {
        let oldest = self.in_flight.front().map(|(layer, _)| *layer);
        if let Some(layer) = oldest {
            self.wait_through(layer, copies, patience);
        }
        oldest.is_some()
    }

    /// Looks at what is in flight without waiting; whether the job has ended. A batch that another job has just found to be
    /// `pending` is not asked about again.
    pub(super) fn poll(
        &mut self,
        layout: &EngineLayout,
        copies: &dyn CopyEngine,
        pending: &mut Option<Ticket>,
    ) -> bool {
        // A job's batches end in order, or nearly so: behind one that has not ended, nothing is worth a call.
        while let Some((_, flight)) = self.in_flight.front().filter(|(_, f)| *pending != Some(f.ticket())) {
            match flight.poll(copies) {
                CopyState::Pending => {
                    *pending = Some(flight.ticket());
                    break;
                }
                CopyState::Done => {}
                CopyState::Failed(failure) => self.fail(failure),
            }
            self.in_flight.pop_front();
        }
        self.in_flight.is_empty() && (self.failed || self.next_layer >= layout.layers().len())
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// How long the copies should have taken, if the copy engine knew that of each.
    pub(super) fn expected_time(&self) -> Option<Duration> {
        self.expected
    }

    /// Engine blocks that the job was to load.
    pub(super) fn engine_blocks(&self) -> impl Iterator<Item = u32> {
        self.job
            .transfers
            .iter()
            .flat_map(|transfer| transfer.blocks.iter().copied())
            .filter(|block| *block != crate::plan::Transfer::SKIP)
            .chain(self.job.lost_blocks.iter().copied())
    }
}
