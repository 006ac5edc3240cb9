//! Batches on their way: into a stream, seen to end, or lost with the context.

use std::collections::HashMap;

use kvcache_core::copy_engine::{CopyBatch, CopyFailure, CopyState, Direction, Fence, InFlight, Ticket};

use super::config::CopyPath;
use super::emit::{Emitter, Kept};
use super::events::{EventPool, StreamPoint};
use super::lane::{self, Flight, LANES, Lane};
use super::pinned::PinnedPiece;
use super::{CudaCopyEngine, PathCount};
use crate::driver::DriverError;

/// What is on its way, and what has come of the rest.
pub(super) struct State {
    pub(super) emitter: Emitter,
    pub(super) lanes: [Lane; LANES],
    /// Ended and not reported.
    pub(super) ended: HashMap<u64, CopyState>,
    pub(super) next: u64,
    /// The error that has ended everything.
    pub(super) lost: Option<DriverError>,
    pub(super) counts: HashMap<(Direction, CopyPath), PathCount>,
    pub(super) pageable: u64,
}

/// The wait for a batch's fence, and the event that stands for its end.
const CALLS_AROUND_A_BATCH: usize = 2;

impl CudaCopyEngine {
    /// What a batch would be copied by.
    pub(super) fn path(&self, state: &State, direction: Direction, bytes: usize, count: usize) -> CopyPath {
        let paths = state.emitter.paths();
        match self.config.path.filter(|path| paths.contains(path)) {
            Some(path) => path,
            None => self.choice.choose(direction, bytes, count, paths),
        }
    }

    /// Puts a batch into its lane. The failure of a call is that of the batch, which ends when all that was accepted has.
    ///
    /// # Safety
    /// As [`CopyEngine::submit`].
    pub(super) unsafe fn start(
        &self,
        state: &mut State,
        index: usize,
        batch: &CopyBatch,
        pieces: &[PinnedPiece],
        path: CopyPath,
    ) -> Result<Flight, DriverError> {
        let end = self.events.take()?;
        let stream = state.lanes[index].stream;
        if let Some(point) = batch.fence.as_ref().and_then(Fence::inner::<StreamPoint>)
            && let Err(error) = self.driver.wait_event(stream, point.event)
        {
            self.events.give_back(end);
            return Err(error);
        }
        let mut kept = Kept::default();
        // SAFETY: handed on to the caller; the flight keeps what has to be kept.
        let emitted = unsafe { state.emitter.emit(path, pieces, batch.direction, stream, &mut kept) };
        if let Ok(path) = emitted {
            let count = state.counts.entry((batch.direction, path)).or_default();
            count.batches += 1;
            count.pieces += pieces.len() as u64;
            count.bytes += batch.bytes() as u64;
        }
        if let Err(error) = self.driver.record_event(end, stream) {
            // Copies may be on their way, and nothing says when they end: only a context that is lost refuses this.
            state.lose(&error, &self.events);
            std::mem::forget(kept);
            return Err(error);
        }
        let calls = match emitted {
            Ok(CopyPath::Dma) | Err(_) => pieces.len(),
            Ok(_) => kept.descriptors.len() + 2 * kept.tables.len(),
        };
        let calls = calls + CALLS_AROUND_A_BATCH;
        let failure = emitted.err().map(CopyFailure::from);
        Ok(Flight { ticket: 0, bytes: batch.bytes(), calls, end, kept, failure, forgotten: false })
    }

    /// Whether a lane has no room for a batch of so many bytes and pieces by `path`.
    pub(super) fn is_full(
        &self,
        state: &State,
        index: usize,
        bytes: usize,
        path: CopyPath,
        pieces: usize,
    ) -> bool {
        let calls = state.emitter.calls_max(path, bytes, pieces) + CALLS_AROUND_A_BATCH;
        let lane = &state.lanes[index];
        let too_much = index != lane::URGENT
            && !lane.flights.is_empty()
            && (lane.bytes.saturating_add(bytes) > self.config.bytes_max
                || lane.calls.saturating_add(calls) > self.config.calls_max);
        state.in_flight().batches + state.ended.len() >= self.config.batches_max || too_much
    }

    /// Sees what has ended in a lane.
    pub(super) fn reap(&self, state: &mut State, index: usize) {
        while let Some(flight) = state.lanes[index].flights.front() {
            match self.driver.query_event(flight.end) {
                Ok(true) => {
                    let Some(flight) = state.lanes[index].pop() else { return };
                    self.events.give_back(flight.end);
                    state.emitter.give_back(flight.kept);
                    if !flight.forgotten {
                        let end = flight.failure.map_or(CopyState::Done, CopyState::Failed);
                        state.ended.insert(flight.ticket, end);
                    }
                }
                Ok(false) => return,
                // Somebody records a graph. Ask again later.
                Err(error) if error.is_transient() => return,
                // Whatever it is, bytes may still move as long as the context lives: what the stream holds has to end first.
                Err(error) if !error.loses_context() && self.synchronize(state, index) => {}
                Err(error) => return state.lose(&error, &self.events),
            }
        }
    }

    /// Waits for all that a lane holds; whether it has ended.
    pub(super) fn synchronize(&self, state: &State, index: usize) -> bool {
        let last = state.lanes[index].flights.back();
        last.is_none_or(|last| self.driver.synchronize_event(last.end).is_ok())
    }
}

impl State {
    /// The context is lost: everything in flight has failed. What it might still use is left to the process's end.
    pub(super) fn lose(&mut self, error: &DriverError, events: &EventPool) {
        for lane in &mut self.lanes {
            while let Some(flight) = lane.pop() {
                events.give_back(flight.end);
                std::mem::forget(flight.kept);
                if !flight.forgotten {
                    self.ended.insert(flight.ticket, CopyState::Failed(error.clone().into()));
                }
            }
        }
        self.lost.get_or_insert_with(|| error.clone());
    }

    /// A ticket that has ended already.
    pub(super) fn ended(&mut self, lane: usize, end: CopyState) -> Ticket {
        let ticket = self.ticket(lane);
        self.ended.insert(ticket, end);
        Ticket(ticket)
    }

    pub(super) fn ticket(&mut self, lane: usize) -> u64 {
        self.next += 1;
        lane::ticket(self.next, lane)
    }

    pub(super) fn in_flight(&self) -> InFlight {
        self.lanes.iter().fold(InFlight::default(), |sum, lane| InFlight {
            batches: sum.batches + lane.flights.len(),
            bytes: sum.bytes + lane.bytes,
        })
    }
}
