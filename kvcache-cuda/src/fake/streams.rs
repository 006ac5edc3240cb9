//! Streams and events by their handles.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::clock::Clock;
use super::operation::{Operation, Recording};
use crate::driver::{Event, Stream};

/// What kind of stream it is, which says who may give it back and when it runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// The legacy default stream. None of ours waits for it.
    Legacy,
    /// Of [`create_stream`](crate::driver::Driver::create_stream).
    Ours,
    /// A stream that the engine made.
    Engine,
    /// The order of an engine that computes on the CPU: what it gets has been done when the call returns.
    Cpu,
}

pub(super) struct StreamState {
    pub(super) kind: Kind,
    pub(super) alive: bool,
    pub(super) capturing: bool,
    pub(super) queue: VecDeque<Operation>,
    /// Operations that were submitted, and how many of these have ended.
    pub(super) submitted: u64,
    pub(super) completed: u64,
    /// What is before its next operation.
    pub(super) clock: Clock,
}

#[derive(Default)]
pub(super) struct EventState {
    pub(super) recording: Option<Arc<Recording>>,
    /// Times that it was asked for since it was recorded.
    pub(super) queries: u32,
}

/// Handles hold the number of their device above, so that those of another device are known as such.
const DEVICE_SHIFT: u32 = 32;

/// The streams and events of one device.
pub(super) struct Streams {
    serial: u64,
    pub(super) streams: Vec<StreamState>,
    events: HashMap<u64, EventState>,
    events_made: u64,
}

/// Why a handle is none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Unusable {
    Unknown,
    OtherDevice,
    Destroyed,
    Capturing,
}

impl Streams {
    /// With the legacy default stream. `serial` is the device's number among all fakes of the process.
    pub(super) fn new(serial: u64) -> Self {
        let mut streams = Self { serial, streams: Vec::new(), events: HashMap::new(), events_made: 0 };
        streams.create(Kind::Legacy);
        streams
    }

    pub(super) fn create(&mut self, kind: Kind) -> Stream {
        let index = self.streams.len();
        self.streams.push(StreamState {
            kind,
            alive: true,
            capturing: false,
            queue: VecDeque::new(),
            submitted: 0,
            completed: 0,
            clock: Clock::default(),
        });
        if kind == Kind::Legacy { Stream(0) } else { Stream(self.serial << DEVICE_SHIFT | index as u64) }
    }

    /// The place of a stream that work may be submitted to.
    pub(super) fn index(&self, stream: Stream) -> Result<usize, Unusable> {
        let index = match stream.0 {
            0 => 0,
            handle if handle >> DEVICE_SHIFT == self.serial => (handle & ((1 << DEVICE_SHIFT) - 1)) as usize,
            // Small numbers are the driver's special handles, or garbage.
            handle if handle >> DEVICE_SHIFT == 0 => return Err(Unusable::Unknown),
            _ => return Err(Unusable::OtherDevice),
        };
        let state =
            self.streams.get(index).filter(|_| index > 0 || stream.0 == 0).ok_or(Unusable::Unknown)?;
        match state {
            StreamState { alive: false, .. } => Err(Unusable::Destroyed),
            StreamState { capturing: true, .. } => Err(Unusable::Capturing),
            _ => Ok(index),
        }
    }

    /// The place of a stream that may record a graph.
    pub(super) fn index_even_if_capturing(&mut self, stream: Stream) -> Option<usize> {
        let index = (stream.0 & ((1 << DEVICE_SHIFT) - 1)) as usize;
        let capturing =
            self.streams.get_mut(index).map(|state| std::mem::replace(&mut state.capturing, false))?;
        let found = self.index(stream).ok();
        self.streams[index].capturing = capturing;
        found
    }

    pub(super) fn create_event(&mut self) -> Event {
        self.events_made += 1;
        let handle = self.serial << DEVICE_SHIFT | self.events_made;
        self.events.insert(handle, EventState::default());
        Event(handle)
    }

    pub(super) fn event(&mut self, event: Event) -> Option<&mut EventState> {
        self.events.get_mut(&event.0)
    }

    pub(super) fn destroy_event(&mut self, event: Event) -> bool {
        self.events.remove(&event.0).is_some()
    }

    pub(super) fn is_done(&self, recording: &Recording) -> bool {
        self.streams[recording.stream].completed >= recording.position
    }

    /// All that has not ended.
    pub(super) fn pending(&self) -> impl Iterator<Item = &Operation> {
        self.streams.iter().flat_map(|stream| &stream.queue)
    }

    pub(super) fn pending_mut(&mut self) -> impl Iterator<Item = &mut Operation> {
        self.streams.iter_mut().flat_map(|stream| &mut stream.queue)
    }
}
