//! A job on its way through the copy engine: one batch per layer, bounded in flight.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::layout::EngineLayout;
use crate::copy_engine::{CopyBatch, CopyEngine, CopyState, Direction, Rejected, Ticket};
use crate::plan::{Job, JobKind};

/// A job's copies. Layers are submitted in order, except that an offload may be told to skip ahead of nothing: hooks of
/// layers that never fire are caught up at the end of the step.
pub(super) struct Running {
    pub(super) job: Job,
    /// Addresses of the transfers' slots.
    addresses: Vec<usize>,
    /// The next layer to submit.
    next_layer: usize,
    /// Batches in the copy engine, by layer.
    in_flight: VecDeque<(usize, Ticket)>,
    pub(super) failed: bool,
    /// The engine's stream as last given: what is submitted late is ordered after the same work.
    stream: Option<u64>,
    began: Instant,
    pub(super) bytes: u64,
    /// Whether to remember which batch copied which layer.
    pub(super) traced: bool,
    pub(super) trace: Vec<(usize, Ticket)>,
}

impl Running {
    pub(super) fn new(job: Job, addresses: Vec<usize>) -> Self {
        let (next_layer, in_flight) = (0, VecDeque::new());
        Self {
            job,
            addresses,
            next_layer,
            in_flight,
            failed: false,
            stream: None,
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

    /// Submits layers up to and including `last`, as far as the copy engine has room.
    pub(super) fn submit_through(
        &mut self,
        last: usize,
        layout: &EngineLayout,
        copies: &dyn CopyEngine,
        stream: Option<u64>,
    ) {
        self.stream = stream.or(self.stream);
        while !self.failed && self.next_layer <= last && self.next_layer < layout.layers().len() {
            let layer = self.next_layer;
            let mut pieces = Vec::new();
            let direction = self.direction();
            for (transfer, address) in self.job.transfers.iter().zip(&self.addresses) {
                if layout.pieces(layer, transfer, *address, direction, &mut pieces).is_err() {
                    self.failed = true;
                    return;
                }
            }
            if pieces.is_empty() {
                self.next_layer += 1;
                continue;
            }
            // What is offloaded is not read soon; what is loaded is read by the very next attention.
            let streaming = direction == Direction::Offload;
            let batch = CopyBatch { pieces, direction, fence: self.stream, streaming };
            let bytes = batch.bytes() as u64;
            // SAFETY: the pieces lie inside registered engine tensors (block ids were checked against their sizes) and
            // inside slots that the Directory gave to this job alone (offload) or pinned for it (load). Both stay until
            // the job is reported, which happens after the end of every batch was seen; the engine's blocks are held by
            // the scheduler side (offload) or belong to the loading request, which computes nothing on them before.
            match unsafe { copies.submit(batch) } {
                Ok(ticket) => {
                    self.in_flight.push_back((layer, ticket));
                    if self.traced {
                        self.trace.push((layer, ticket));
                    }
                    self.bytes += bytes;
                    self.next_layer += 1;
                }
                Err(Rejected::Full(_)) => return,
                Err(_) => self.failed = true,
            }
        }
    }

    /// Waits until no batch of layers up to `last` is in flight. Copies with the caller's help.
    pub(super) fn wait_through(&mut self, last: usize, copies: &dyn CopyEngine, patience: Duration) {
        while let Some((layer, ticket)) = self.in_flight.front().copied() {
            if layer > last {
                return;
            }
            // The memory of a batch is in use until its end was seen, so there is no leaving early: a wait beyond the
            // patience makes the job fail, but not the wait end.
            let began = Instant::now();
            loop {
                match copies.wait(ticket, patience) {
                    CopyState::Pending => self.failed |= began.elapsed() > patience,
                    CopyState::Done => break,
                    CopyState::Failed(_) => {
                        self.failed = true;
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

    /// Looks at what is in flight without waiting; whether the job has ended.
    pub(super) fn poll(&mut self, layout: &EngineLayout, copies: &dyn CopyEngine) -> bool {
        self.in_flight.retain(|(_, ticket)| match copies.poll(*ticket) {
            CopyState::Pending => true,
            CopyState::Done => false,
            CopyState::Failed(_) => {
                self.failed = true;
                false
            }
        });
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
