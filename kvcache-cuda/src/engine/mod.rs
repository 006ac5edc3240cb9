//! The [`CopyEngine`] of a CUDA device.
//!
//! Three streams of its own: loads for which a forward pass waits, other loads, and offloads. A stream runs in order, so the
//! ends of its batches are seen in order, and one event a batch is enough. The engine's streams and these wait for each
//! other by events only; the CPU waits for nothing. Completion is polled.
//!
//! Each batch takes the path that is fastest for its piece size and count (see [`choice`](PathChoice)). A path that the driver refuses
//! is given up for good, and plain copies take over. An error that arrives after a call was accepted means that the device's
//! context is lost, for the inference engine as well: all that is in flight fails, and nothing is accepted any more.

mod calibrate;
mod choice;
mod config;
mod emit;
mod events;
mod in_flight;
mod lane;
mod pinned;
mod tables;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvcache_core::copy_engine::{
    CopyBatch, CopyEngine, CopyFailure, CopyState, Direction, Fence, InFlight, Piece, Rejected, Ticket,
};
use parking_lot::{Mutex, RwLock};

pub use choice::{PathChoice, Rate};
pub use config::{CopyPath, CudaCopyConfig};

use crate::driver::{Driver, DriverError, Priority, Stream};
use emit::Emitter;
use events::{EventPool, StreamPoint};
use in_flight::State;
use lane::{Flight, LANES, Lane, lane_of, lane_of_ticket};
use pinned::{PinnedPiece, PinnedRanges};

/// What was copied by one path, in one direction.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct PathCount {
    /// Batches that were accepted.
    pub batches: u64,
    /// Their pieces.
    pub pieces: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// The copy engine of one device. See the [module documentation](self).
///
/// Dropping it waits for what is in flight.
pub struct CudaCopyEngine {
    driver: Arc<dyn Driver>,
    config: CudaCopyConfig,
    choice: PathChoice,
    events: Arc<EventPool>,
    pinned: RwLock<PinnedRanges>,
    state: Mutex<State>,
}

impl CudaCopyEngine {
    /// Makes streams, loads the kernels and, if the configuration says so, measures the paths: some ten milliseconds and 16 MiB
    /// on both sides meanwhile. Tables take 5.25 MiB on both sides for good.
    ///
    /// # Errors
    /// The device has no streams or events for us, or plain copies do not copy what they should. What is missing beyond that
    /// makes copies slower, see [`remarks`](Self::remarks).
    pub fn new(driver: Arc<dyn Driver>, config: CudaCopyConfig) -> Result<Self, DriverError> {
        let events = Arc::new(EventPool::new(Arc::clone(&driver)));
        let mut streams = Vec::with_capacity(LANES);
        for lane in 0..LANES {
            let priority = if lane == lane::URGENT { Priority::High } else { Priority::Low };
            match driver.create_stream(priority) {
                Ok(stream) => streams.push(stream),
                Err(error) => {
                    streams.into_iter().for_each(|stream| driver.destroy_stream(stream));
                    return Err(error);
                }
            }
        }
        let lanes = [Lane::new(streams[0]), Lane::new(streams[1]), Lane::new(streams[2])];
        let emitter = Emitter::new(Arc::clone(&driver), &config);
        let mut state = State {
            emitter,
            lanes,
            ended: HashMap::new(),
            next: 0,
            lost: None,
            counts: HashMap::new(),
            pageable: 0,
        };
        let rates = if config.calibrate {
            match calibrate::measure(&driver, &events, &mut state.emitter, streams[lane::URGENT]) {
                Ok(rates) => rates,
                Err(error) => {
                    state.emitter.free();
                    streams.into_iter().for_each(|stream| driver.destroy_stream(stream));
                    return Err(error);
                }
            }
        } else {
            Vec::new()
        };
        let choice = PathChoice::new(rates);
        let pinned = RwLock::new(PinnedRanges::default());
        Ok(Self { driver, config, choice, events, pinned, state: Mutex::new(state) })
    }

    /// The device.
    pub fn driver(&self) -> &Arc<dyn Driver> {
        &self.driver
    }

    /// How paths are chosen, with what was measured.
    pub fn choice(&self) -> &PathChoice {
        &self.choice
    }

    /// The paths that can be used.
    pub fn paths(&self) -> Vec<CopyPath> {
        self.state.lock().emitter.paths().to_vec()
    }

    /// What makes copies slower than they could be, one line each.
    pub fn remarks(&self) -> Vec<String> {
        self.state.lock().emitter.remarks().to_vec()
    }

    /// The error that has ended everything, if one has: nothing is copied any more.
    pub fn lost(&self) -> Option<DriverError> {
        self.state.lock().lost.clone()
    }

    /// What was copied, by direction and path.
    pub fn counts(&self) -> Vec<(Direction, CopyPath, PathCount)> {
        let state = self.state.lock();
        let mut counts: Vec<_> =
            state.counts.iter().map(|((direction, path), count)| (*direction, *path, *count)).collect();
        counts.sort_by_key(|(direction, path, _)| (*direction == Direction::Offload, path.name()));
        counts
    }

    /// Batches that were loaded from memory that is not pinned, at the cost of blocking the caller.
    pub fn pageable_batches(&self) -> u64 {
        self.state.lock().pageable
    }
}

impl CopyEngine for CudaCopyEngine {
    fn name(&self) -> &'static str {
        "cuda"
    }

    unsafe fn submit(&self, mut batch: CopyBatch) -> Result<Ticket, Rejected> {
        if batch.fence.as_ref().is_some_and(|fence| fence.inner::<StreamPoint>().is_none()) {
            return Err(Rejected::Unsupported(batch, "the fence is one of another copy engine"));
        }
        let lane = lane_of(batch.direction, batch.urgent);
        let cut = self.pinned.read().cut(&batch.pieces, batch.direction);
        let pageable = cut.is_none();
        if pageable && batch.direction == Direction::Offload {
            // It would hold the caller until the engine's stream has come that far.
            return Err(Rejected::Unsupported(batch, "offloads go to pinned memory only"));
        }
        let pieces = cut.unwrap_or_else(|| {
            batch.pieces.retain(|piece| piece.bytes > 0);
            batch.pieces.iter().map(|piece| PinnedPiece { piece: *piece, host_for_device: 0 }).collect()
        });
        let mut state = self.state.lock();
        if let Some(lost) = &state.lost {
            let end = CopyState::Failed(lost.clone().into());
            return Ok(state.ended(lane, end));
        }
        if pieces.is_empty() {
            return Ok(state.ended(lane, CopyState::Done));
        }
        let bytes = batch.bytes();
        let path = match pageable {
            true => CopyPath::Dma,
            false => self.path(&state, batch.direction, bytes, pieces.len()),
        };
        if self.is_full(&state, lane, bytes, path, pieces.len()) {
            // What nobody asks for any more is seen here, if nowhere else.
            for lane in 0..LANES {
                if state.lanes[lane].flights.iter().any(|flight| flight.forgotten) {
                    self.reap(&mut state, lane);
                }
            }
        }
        if self.is_full(&state, lane, bytes, path, pieces.len()) {
            return Err(Rejected::Full(batch));
        }
        // SAFETY: the caller's duties are the same.
        let started = unsafe { self.start(&mut state, lane, &batch, &pieces, path) };
        state.pageable += u64::from(pageable);
        match started {
            Ok(flight) => {
                let ticket = state.ticket(lane);
                state.lanes[lane].push(Flight { ticket, ..flight });
                Ok(Ticket(ticket))
            }
            Err(error) => Ok(state.ended(lane, CopyState::Failed(error.into()))),
        }
    }

    fn poll(&self, ticket: Ticket) -> CopyState {
        let mut state = self.state.lock();
        if !state.ended.contains_key(&ticket.0) {
            self.reap(&mut state, lane_of_ticket(ticket.0));
        }
        if let Some(end) = state.ended.remove(&ticket.0) {
            return end;
        }
        let pending = state.lanes[lane_of_ticket(ticket.0)].find(ticket.0).is_some_and(|f| !f.forgotten);
        if pending { CopyState::Pending } else { CopyState::Failed(CopyFailure::UnknownTicket(ticket)) }
    }

    fn wait(&self, ticket: Ticket, timeout: Duration) -> CopyState {
        let deadline = Instant::now().checked_add(timeout);
        let mut turn = 0u32;
        loop {
            let state = self.poll(ticket);
            if state.is_finished() || deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return state;
            }
            // Most waits are for copies of tens of microseconds; a long one costs no more CPU than a timer does.
            turn += 1;
            match turn {
                0..50 => std::hint::spin_loop(),
                50..100 => std::thread::yield_now(),
                _ => std::thread::sleep(Duration::from_micros(50)),
            }
        }
    }

    fn forget(&self, ticket: Ticket) {
        let mut state = self.state.lock();
        if state.ended.remove(&ticket.0).is_none()
            && let Some(flight) = state.lanes[lane_of_ticket(ticket.0)].find_mut(ticket.0)
        {
            flight.forgotten = true;
        }
    }

    fn in_flight(&self) -> InFlight {
        self.state.lock().in_flight()
    }

    fn has_streams(&self) -> bool {
        true
    }

    fn fence(&self, stream: u64) -> Result<Fence, CopyFailure> {
        let stream = Stream(stream);
        self.driver.check_stream(stream)?;
        let event = self.events.take()?;
        // Given back when dropped, also if the next call fails.
        let point = StreamPoint { event, pool: Arc::clone(&self.events) };
        self.driver.record_event(event, stream)?;
        Ok(Fence::new(point))
    }

    fn order_after(&self, ticket: Ticket, stream: u64) -> Result<(), CopyFailure> {
        let state = self.state.lock();
        match state.ended.get(&ticket.0) {
            Some(CopyState::Failed(failure)) => return Err(failure.clone()),
            // The calling thread knows, or will before it puts more into the stream.
            Some(_) => return Ok(()),
            None => {}
        }
        let flight = state.lanes[lane_of_ticket(ticket.0)].find(ticket.0);
        let flight = flight.ok_or(CopyFailure::UnknownTicket(ticket))?;
        if let Some(failure) = &flight.failure {
            return Err(failure.clone());
        }
        self.driver.check_stream(Stream(stream))?;
        Ok(self.driver.wait_event(Stream(stream), flight.end)?)
    }

    /// By what was measured at the start.
    fn expected_time(&self, batch: &CopyBatch) -> Option<Duration> {
        let (bytes, count) = (batch.bytes(), batch.pieces.len());
        let path = self.path(&self.state.lock(), batch.direction, bytes, count);
        self.choice.time(batch.direction, path, bytes, count)
    }

    fn batch_bytes(&self) -> usize {
        self.config.batch_bytes
    }

    unsafe fn register(&self, base: usize, bytes: usize) -> Result<(), CopyFailure> {
        // SAFETY: the caller's duties are the same.
        let device = unsafe { self.driver.register_host(base, bytes) }?;
        self.pinned.write().insert(base, bytes, device);
        Ok(())
    }

    fn unregister(&self, base: usize) {
        if self.pinned.write().remove(base) {
            // Nothing should be in flight on it. If something is, it must not lose its pages.
            let mut state = self.state.lock();
            for lane in 0..LANES {
                let _ = self.synchronize(&state, lane);
                self.reap(&mut state, lane);
            }
            drop(state);
            self.driver.unregister_host(base);
        }
    }
}

impl Drop for CudaCopyEngine {
    fn drop(&mut self) {
        let state = self.state.get_mut();
        for lane in &state.lanes {
            if let Some(last) = lane.flights.back()
                && let Err(error) = self.driver.synchronize_event(last.end)
            {
                state.lost.get_or_insert(error);
            }
        }
        for lane in &mut state.lanes {
            while let Some(flight) = lane.pop() {
                self.events.give_back(flight.end);
                if state.lost.is_none() {
                    state.emitter.give_back(flight.kept);
                } else {
                    std::mem::forget(flight.kept);
                }
            }
            self.driver.destroy_stream(lane.stream);
        }
        if state.lost.is_none() {
            state.emitter.free();
            for base in self.pinned.get_mut().starts() {
                self.driver.unregister_host(base);
            }
        }
    }
}

impl std::fmt::Debug for CudaCopyEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CudaCopyEngine").field("device", self.driver.device()).finish_non_exhaustive()
    }
}

/// A copy that no path has to be chosen for.
fn plain(piece: Piece) -> PinnedPiece {
    PinnedPiece { piece, host_for_device: 0 }
}
