//! A stream of ours and the batches in it, oldest first.

use std::collections::VecDeque;

use kvcache_core::copy_engine::{CopyFailure, Direction};

use super::emit::Kept;
use crate::driver::{Event, Stream};

/// Streams of a device.
pub(super) const LANES: usize = 3;
/// Loads for which a forward pass waits: they are not behind others in a stream. The copy engine they share.
pub(super) const URGENT: usize = 0;
const LOADS: usize = 1;
const OFFLOADS: usize = 2;

/// Where a batch goes.
pub(super) fn lane_of(direction: Direction, urgent: bool) -> usize {
    match direction {
        Direction::Load if urgent => URGENT,
        Direction::Load => LOADS,
        Direction::Offload => OFFLOADS,
    }
}

/// The `number`-th ticket, of a lane.
pub(super) fn ticket(number: u64, lane: usize) -> u64 {
    number * LANES as u64 + lane as u64
}

/// The lane of a ticket.
pub(super) fn lane_of_ticket(ticket: u64) -> usize {
    (ticket % LANES as u64) as usize
}

/// A batch in a stream.
pub(super) struct Flight {
    pub(super) ticket: u64,
    pub(super) bytes: usize,
    /// Operations that it put into the stream.
    pub(super) calls: usize,
    /// Stands for the batch, and for all before it.
    pub(super) end: Event,
    pub(super) kept: Kept,
    /// Not all of it was accepted: that is how it ends, once what was accepted has ended.
    pub(super) failure: Option<CopyFailure>,
    /// Nobody will ask for it.
    pub(super) forgotten: bool,
}

/// A stream and what is in it.
pub(super) struct Lane {
    pub(super) stream: Stream,
    /// By rising tickets.
    pub(super) flights: VecDeque<Flight>,
    pub(super) bytes: usize,
    pub(super) calls: usize,
}

impl Lane {
    pub(super) fn new(stream: Stream) -> Self {
        Self { stream, flights: VecDeque::new(), bytes: 0, calls: 0 }
    }

    pub(super) fn push(&mut self, flight: Flight) {
        self.bytes += flight.bytes;
        self.calls += flight.calls;
        self.flights.push_back(flight);
    }

    /// Takes the oldest batch out.
    pub(super) fn pop(&mut self) -> Option<Flight> {
        let flight = self.flights.pop_front()?;
        self.bytes -= flight.bytes;
        self.calls -= flight.calls;
        Some(flight)
    }

    fn place(&self, ticket: u64) -> Option<usize> {
        self.flights.binary_search_by_key(&ticket, |flight| flight.ticket).ok()
    }

    pub(super) fn find(&self, ticket: u64) -> Option<&Flight> {
        self.flights.get(self.place(ticket)?)
    }

    pub(super) fn find_mut(&mut self, ticket: u64) -> Option<&mut Flight> {
        let place = self.place(ticket)?;
        self.flights.get_mut(place)
    }
}
