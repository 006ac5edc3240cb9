//! A job on its way through the copy engine: a batch for each layer or for several, bounded in flight.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::fences::StreamFence;
use super::layout::EngineLayout;
use crate::copy_engine::{
    CopyBatch, CopyEngine, CopyFailure, CopyState, Direction, Fence, Piece, Rejected, Ticket,
};
use crate::plan::{Job, JobKind};

/// A job's copies. Layers are submitted in order, several at once where the copy engine is better off with large batches.
pub(super) struct Running {
    pub(super) job: Job,
    /// Addresses of the transfers' slots.
    addresses: Vec<usize>,
    /// The next layer to submit.
    next_layer: usize,
    /// Batches in the copy engine, by layer.
    in_flight: VecDeque<Flight>,
    pub(super) failed: bool,
    /// Why, if the copy engine has said so.
    pub(super) failure: Option<CopyFailure>,
    /// What the engine's stream held when the bytes became ready to be copied: the same for what is submitted late.
    fence: Option<Fence>,
    began: Instant,
    pub(super) bytes: u64,
    /// Whether to remember which batch copied which layer.
    pub(super) traced: bool,
    pub(super) trace: Vec<(usize, Ticket)>,
}

/// A batch in the copy engine.
struct Flight {
    /// The first of its layers.
    layer: usize,
    ticket: Ticket,
    /// The engine's stream that waits for it.
    ordered_before: Option<u64>,
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

    fn fail(&mut self, failure: CopyFailure) {
        self.failed = true;
        self.failure.get_or_insert(failure);
    }

    /// Submits the layers of an offload up to `last`, which have just been computed, as far as the copy engine has room.
    /// Keeps a batch back that is too small, if more layers follow.
    pub(super) fn submit_computed(
        &mut self,
        last: usize,
        layout: &EngineLayout,
        copies: &dyn CopyEngine,
        fence: &mut StreamFence<'_>,
    ) {
        let worth_it = last >= layout.last_layer()
            || copies.batch_bytes() == 0
            || (self.next_layer..=last).map(|layer| self.layer_bytes(layer, layout)).sum::<usize>()
                >= copies.batch_bytes();
        if !self.failed && self.next_layer <= last && self.next_layer <= layout.last_layer() && worth_it {
            self.fence_with(fence);
            self.submit_through(last, layout, copies);
        }
    }

    /// Submits layers up to and including `last`, as far as the copy engine has room.
    pub(super) fn submit_through(&mut self, last: usize, layout: &EngineLayout, copies: &dyn CopyEngine) {
        while !self.failed && self.next_layer <= last && self.next_layer <= layout.last_layer() {
            let layer = self.next_layer;
            let Some((pieces, next_layer)) = self.next_pieces(last, layout, copies.batch_bytes()) else {
                self.failed = true;
                return;
            };
            if pieces.is_empty() {
                self.next_layer = next_layer;
                continue;
            }
            let direction = self.direction();
            // What is offloaded is not read soon; what is loaded is read by the very next attention.
            let streaming = direction == Direction::Offload;
            let urgent = self.job.kind == JobKind::LoadLayerwise;
            let batch = CopyBatch { pieces, direction, fence: self.fence.clone(), streaming, urgent };
            let bytes = batch.bytes() as u64;
            // SAFETY: the pieces lie inside registered engine tensors (block ids were checked against their sizes) and
            // inside slots that the Directory gave to this job alone (offload) or pinned for it (load). Both stay until
            // the job is reported, which happens after the end of every batch was seen; the engine's blocks are held by
            // the scheduler side (offload) or belong to the loading request, which computes nothing on them before.
            match unsafe { copies.submit(batch) } {
                Ok(ticket) => {
                    self.in_flight.push_back(Flight { layer, ticket, ordered_before: None });
                    if self.traced {
                        self.trace.push((layer, ticket));
                    }
                    self.bytes += bytes;
                    self.next_layer = next_layer;
                }
                Err(Rejected::Full(_)) => return,
                Err(rejected) => self.fail(CopyFailure::Other(rejected.reason().to_owned())),
            }
        }
    }

    /// The copies of the next layer, and of those after it until they are `enough` bytes, with the layer that follows. What an
    /// offload may take ends at `last`: later layers are not computed. `None` if a block id is out of range.
    fn next_pieces(&self, last: usize, layout: &EngineLayout, enough: usize) -> Option<(Vec<Piece>, usize)> {
        let limit = match self.direction() {
            Direction::Offload => last.min(layout.last_layer()),
            Direction::Load => layout.last_layer(),
        };
        let mut end = self.next_layer;
        let mut bytes = self.layer_bytes(end, layout);
        while bytes < enough && end < limit {
            end += 1;
            bytes += self.layer_bytes(end, layout);
        }
        let (mut pieces, direction) = (Vec::new(), self.direction());
        for (transfer, address) in self.job.transfers.iter().zip(&self.addresses) {
            for layer in self.next_layer..=end {
                layout.pieces(layer, transfer, *address, direction, &mut pieces).ok()?;
            }
        }
        Some((pieces, end + 1))
    }

    /// Bytes of one layer of all transfers, those of skipped blocks included.
    fn layer_bytes(&self, layer: usize, layout: &EngineLayout) -> usize {
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
        let flights = self.in_flight.iter_mut().take_while(|flight| flight.layer <= last);
        for flight in flights.filter(|flight| flight.ordered_before != Some(stream)) {
            if copies.order_after(flight.ticket, stream).is_err() {
                return self.wait_through(last, copies, patience);
            }
            flight.ordered_before = Some(stream);
        }
    }

    /// Whether the copy engine has anything of it.
    pub(super) fn is_moving(&self) -> bool {
        !self.in_flight.is_empty()
    }

    /// Waits for the oldest batch, for `timeout` at most.
    pub(super) fn rest(&mut self, copies: &dyn CopyEngine, timeout: Duration) {
        let Some(Flight { ticket, .. }) = self.in_flight.front() else { return };
        match copies.wait(*ticket, timeout) {
            CopyState::Pending => return,
            CopyState::Done => {}
            CopyState::Failed(failure) => self.fail(failure),
        }
        self.in_flight.pop_front();
    }

    /// Waits until no batch of layers up to `last` is in flight. Copies with the caller's help.
    pub(super) fn wait_through(&mut self, last: usize, copies: &dyn CopyEngine, patience: Duration) {
        while let Some(Flight { layer, ticket, .. }) = self.in_flight.front() {
            if *layer > last {
                return;
            }
            // The memory of a batch is in use until its end was seen, so there is no leaving early: a wait beyond the
            // patience makes the job fail, but not the wait end.
            let began = Instant::now();
            loop {
                match copies.wait(*ticket, patience) {
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
        let oldest = self.in_flight.front().map(|flight| flight.layer);
        if let Some(layer) = oldest {
            self.wait_through(layer, copies, patience);
        }
        oldest.is_some()
    }

    /// Looks at what is in flight without waiting; whether the job has ended.
    pub(super) fn poll(&mut self, layout: &EngineLayout, copies: &dyn CopyEngine) -> bool {
        // A job's batches end in order, or nearly so: behind one that has not ended, nothing is worth a call.
        while let Some(flight) = self.in_flight.front() {
            match copies.poll(flight.ticket) {
                CopyState::Pending => break,
                CopyState::Done => {}
                CopyState::Failed(failure) => self.fail(failure),
            }
            self.in_flight.pop_front();
        }
        self.in_flight.is_empty() && (self.failed || self.next_layer >= layout.layers().len())
    }

    /// Whether all of a layer's bytes have been submitted.
    pub(super) fn has_submitted(&self, layer: usize) -> bool {
        self.next_layer > layer
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.began.elapsed()
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
