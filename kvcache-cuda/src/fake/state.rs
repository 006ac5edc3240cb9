//! All that a fake device knows, and how work gets into its streams. [`schedule`](super::schedule) gets it out again.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use kvcache_core::copy_engine::Piece;

use super::bytes::Promise;
use super::clock::{Clock, HOST, of_stream};
use super::faults::Faults;
use super::launches::table_ranges;
use super::memory::{Memory, Place, hex};
use super::operation::{
    Arrays, Early, Operation, Progress, Recording, Touched, Watch, Work, destination, source,
};
use super::races::{Access, Races};
use super::random::Random;
use super::ranges::Ranges;
use super::status::{Call, Status};
use super::streams::{Kind, Streams, Unusable};
use crate::driver::{Arguments, Descriptors, DriverError, Stream};
use crate::kernels::Kernel;

/// Violations that are kept: a program that is wrong in a loop should not fill the memory.
const VIOLATIONS_MAX: usize = 1000;

pub(super) struct State {
    pub(super) streams: Streams,
    pub(super) memory: Memory,
    pub(super) random: Random,
    pub(super) faults: Faults,
    pub(super) races: Races,
    /// What the host's thread knows to be before it. All threads of the host count as one.
    pub(super) host: Clock,
    pub(super) violations: Vec<String>,
    /// As many of them a strict device has panicked about.
    reported: usize,
    /// The background thread is to end.
    pub(super) stopping: bool,
    /// Operations submitted to any stream.
    pub(super) submitted: u64,
    pub(super) kernels_loaded: bool,
    /// The error that lost the context.
    pub(super) lost: Option<Status>,
    pub(super) calls: HashMap<Call, u64>,
    pub(super) pageable_copies: u64,
    /// Operations that a stream holds, and calls that had to wait for room.
    queue_depth: usize,
    pub(super) blocked_submissions: u64,
    /// A digest of what ran in which order.
    pub(super) schedule: u64,
}

impl State {
    pub(super) fn new(seed: u64, serial: u64, queue_depth: usize) -> Self {
        Self {
            streams: Streams::new(serial),
            memory: Memory::default(),
            random: Random::new(seed),
            faults: Faults::new(seed),
            races: Races::default(),
            host: Clock::default(),
            violations: Vec::new(),
            reported: 0,
            stopping: false,
            submitted: 0,
            kernels_loaded: false,
            lost: None,
            calls: HashMap::new(),
            pageable_copies: 0,
            queue_depth,
            blocked_submissions: 0,
            schedule: 0,
        }
    }

    /// Counts a call and says whether it is to fail.
    pub(super) fn admit(&mut self, call: Call, bytes: usize) -> Result<(), DriverError> {
        if let Some(status) = self.lost {
            return Err(status.of(call));
        }
        match self.faults.hit(call, bytes) {
            Some(status) => Err(status.of(call)),
            None => {
                *self.calls.entry(call).or_default() += 1;
                Ok(())
            }
        }
    }

    pub(super) fn violation(&mut self, text: String) {
        if self.violations.len() < VIOLATIONS_MAX {
            self.violations.push(text);
        }
    }

    /// Violations that were not asked for here before.
    pub(super) fn unreported(&mut self) -> Vec<String> {
        let new = self.violations[self.reported..].to_vec();
        self.reported = self.violations.len();
        new
    }

    /// A call that no correct program makes: reported, and refused.
    pub(super) fn refuse(&mut self, call: Call, status: Status, why: String) -> DriverError {
        self.violation(format!("{call:?}: {why}"));
        status.of(call)
    }

    /// The place of a stream that is to get work.
    pub(super) fn stream(&mut self, call: Call, stream: Stream) -> Result<usize, DriverError> {
        self.streams.index(stream).map_err(|why| {
            let (status, why) = match why {
                Unusable::Unknown => (Status::INVALID_HANDLE, "there is no such stream"),
                Unusable::OtherDevice => (Status::INVALID_CONTEXT, "a stream of another device"),
                Unusable::Destroyed => (Status::INVALID_HANDLE, "a stream that was destroyed"),
                Unusable::Capturing => (Status::STREAM_CAPTURE_UNSUPPORTED, "the stream records a graph"),
            };
            self.refuse(call, status, format!("{why}: {stream:?}"))
        })
    }

    /// Puts work at a stream's end; its position there.
    pub(super) fn submit(
        &mut self,
        stream: usize,
        what: &str,
        work: Work,
        touched: Touched,
        order: Order,
    ) -> u64 {
        self.submitted += 1;
        let state = &mut self.streams.streams[stream];
        state.submitted += 1;
        state.clock.join(&self.host);
        if let Work::Wait(recording) = &work {
            state.clock.join(&recording.clock);
        }
        state.clock.set(of_stream(stream), state.submitted);
        let clock = Arc::new(state.clock.clone());
        let read_clock = match order.reads_any_time {
            true => Arc::new(self.host.clone()),
            false => Arc::clone(&clock),
        };
        let position = state.submitted;
        let label = format!("{what} (operation {}, stream {stream})", self.submitted).into();
        let watch = order.watched.and_then(|(promise, ranges)| self.watch(promise, ranges));
        let operation = Operation {
            number: self.submitted,
            position,
            label,
            clock,
            read_clock,
            touched,
            watch,
            doomed: false,
            progress: Progress::Submitted(work),
        };
        let state = &mut self.streams.streams[stream];
        state.queue.push_back(operation);
        if order.pageable || state.kind == Kind::Cpu {
            self.run_until(stream, position);
        } else if state.queue.len() > self.queue_depth {
            self.blocked_submissions += 1;
            self.run_until(stream, position - self.queue_depth as u64);
        }
        position
    }

    /// Remembers what bytes are, unless something that is running changes them.
    fn watch(&self, promise: Promise, ranges: Ranges) -> Option<Watch> {
        let mut running = self.streams.pending().filter(|operation| operation.has_begun());
        if running.any(|operation| operation.touched.writes.overlap(&ranges).is_some()) {
            return None;
        }
        let digest = promise.digest(&ranges);
        Some(Watch { ranges, digest })
    }

    /// One copy.
    pub(super) fn copy(&mut self, promise: Promise, piece: Piece, stream: usize) -> Result<(), DriverError> {
        if piece.bytes == 0 {
            return Ok(());
        }
        let places = self
            .memory
            .place(&source(&piece))
            .and_then(|source| Ok([source, self.memory.place(&destination(&piece))?]));
        let places = places.map_err(|why| self.refuse(Call::Copy, Status::INVALID_VALUE, why))?;
        if let Some(why) = super::launches::unordered_conflict(&[piece]) {
            return Err(self.refuse(Call::Copy, Status::INVALID_VALUE, why));
        }
        let pageable = places.contains(&Place::Pageable);
        self.pageable_copies += u64::from(pageable);
        let touched = Touched::by(&[piece]);
        let watched = (!pageable).then(|| (promise, touched.reads.clone()));
        let work = Work::Copies { promise, pieces: vec![(piece, None)], arrays: None };
        self.submit(stream, "copy", work, touched, Order { watched, pageable, reads_any_time: false });
        Ok(())
    }

    /// A batch whose sources may be read before its turn if `reads_any_time`.
    pub(super) fn copy_batch(
        &mut self,
        promise: Promise,
        descriptors: &Arc<Descriptors>,
        reads_any_time: bool,
        stream: usize,
    ) -> Result<(), DriverError> {
        let pieces = self
            .batch_pieces(descriptors, reads_any_time)
            .map_err(|why| self.refuse(Call::CopyBatch, Status::INVALID_VALUE, why))?;
        let touched = Touched::by(&pieces);
        // The driver may read everything at once, nothing before the stream's turn, or anything between.
        let ahead = if reads_any_time { self.random.below(3) } else { 0 };
        let mut read = |piece: Piece| -> (Piece, Early) {
            let early = ahead == 2 || (ahead == 1 && self.random.below(2) == 0);
            (piece, early.then(|| promise.read(piece.src, piece.bytes)))
        };
        let pieces = pieces.into_iter().map(&mut read).collect();
        let watched = Some((promise, touched.reads.clone()));
        let work = Work::Copies { promise, pieces, arrays: Some(Arrays::new(descriptors)) };
        self.submit(stream, "batch", work, touched, Order { watched, pageable: false, reads_any_time });
        Ok(())
    }

    fn batch_pieces(&self, descriptors: &Descriptors, host_sources: bool) -> Result<Vec<Piece>, String> {
        let Descriptors { destinations, sources, sizes } = descriptors;
        if sizes.is_empty() || sizes.len() != sources.len() || sizes.len() != destinations.len() {
            let (d, s, b) = (destinations.len(), sources.len(), sizes.len());
            return Err(format!("{d} destinations, {s} sources and {b} sizes"));
        }
        let mut pieces = Vec::with_capacity(sizes.len());
        for (index, bytes) in sizes.iter().enumerate() {
            let piece =
                Piece { src: sources[index] as usize, dst: destinations[index] as usize, bytes: *bytes };
            if *bytes == 0 {
                return Err(format!("copy {index} has no bytes"));
            }
            for (side, range) in [("source", source(&piece)), ("destination", destination(&piece))] {
                match self.memory.place(&range).map_err(|why| format!("the {side} of copy {index}: {why}"))? {
                    Place::Pageable => {
                        return Err(format!("the {side} of copy {index} is not pinned: {}", hex(&range)));
                    }
                    Place::Device if host_sources && side == "source" => {
                        return Err(format!(
                            "copy {index} reads the device's memory out of the stream's order"
                        ));
                    }
                    _ => {}
                }
            }
            pieces.push(piece);
        }
        match super::launches::unordered_conflict(&pieces) {
            Some(why) => Err(why),
            None => Ok(pieces),
        }
    }

    /// A kernel, whose arguments are of its form.
    pub(super) fn launch(
        &mut self,
        promise: Promise,
        kernel: Kernel,
        arguments: Arguments,
        stream: usize,
    ) -> Result<(), DriverError> {
        let tables = table_ranges(&arguments, &self.memory)
            .map_err(|why| self.refuse(Call::Launch, Status::INVALID_VALUE, why))?;
        let tables = Ranges::new(tables);
        let touched = Touched { reads: tables.clone(), writes: Ranges::default() };
        let order = Order { watched: Some((promise, tables)), pageable: false, reads_any_time: false };
        self.submit(stream, kernel.symbol(), Work::Launch { promise, kernel, arguments }, touched, order);
        Ok(())
    }

    /// Makes an event stand for what the stream holds.
    pub(super) fn record(&mut self, stream: usize) -> Arc<Recording> {
        let position = self.submit(stream, "record", Work::Record, Touched::default(), Order::default());
        let clock = Arc::new(self.streams.streams[stream].clock.clone());
        Arc::new(Recording { stream, position, clock })
    }

    /// The host has learned that a recording has ended.
    pub(super) fn host_learns(&mut self, recording: &Recording) {
        self.host.join(&recording.clock);
        self.forget_old_accesses();
    }

    /// The host reads or writes now.
    pub(super) fn host_access(&mut self, what: &str, touched: Touched) {
        if self.lost.is_some() {
            // With the context all work ended, and the host has been told.
            return;
        }
        let position = self.host.at(HOST) + 1;
        self.host.set(HOST, position);
        let clock = Arc::new(self.host.clone());
        let (read_clock, write_clock) = (Arc::clone(&clock), clock);
        let label = format!("{what} (host)").into();
        self.remember(Access { component: HOST, position, touched, read_clock, write_clock, label });
    }

    /// Compares an access with those before and keeps it for those to come.
    pub(super) fn remember(&mut self, access: Access) {
        let mut found = Vec::new();
        self.races.add(access, &mut found);
        found.into_iter().for_each(|race| self.violation(race));
        if self.races.len().is_multiple_of(32) {
            self.forget_old_accesses();
        }
    }

    fn forget_old_accesses(&mut self) {
        let oldest = self.streams.pending().filter(|operation| !operation.has_begun());
        let oldest = oldest.map(|operation| operation.number).min().unwrap_or(u64::MAX);
        self.races.forget(&self.host, self.submitted, oldest);
    }

    /// Memory goes away: reports what still needs it and keeps that from touching it.
    pub(super) fn release(&mut self, what: &str, range: Range<usize>) {
        let ranges = Ranges::new([range.clone()]);
        let mut needed = Vec::new();
        for operation in self.streams.pending_mut() {
            if let Some(both) = operation.touched.overlap(&ranges) {
                operation.doomed = true;
                needed.push(format!("{what} of {} while {} needs it", hex(&both), operation.label));
            }
        }
        needed.into_iter().for_each(|text| self.violation(text));
        self.host_access(what, Touched { reads: Ranges::default(), writes: ranges });
    }
}

/// How an operation stands to others.
#[derive(Default)]
pub(super) struct Order {
    /// Bytes that nobody may change before it begins.
    pub(super) watched: Option<(Promise, Ranges)>,
    /// The call returns when it has ended.
    pub(super) pageable: bool,
    /// Its reads wait for nothing.
    pub(super) reads_any_time: bool,
}
