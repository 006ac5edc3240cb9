//! What a provider of verbs has to do: the hardware through libibverbs, or the fake.
//!
//! This is the raw face, with numbers for memory. What makes it safe, that memory outlives the requests which name it, is
//! above it and the same for all providers: [`Region`](super::Region) and [`QueuePair`](super::QueuePair).

use std::os::fd::BorrowedFd;

use super::error::{Error, Status};
use super::memory::{Access, Memory};
use super::port::{Limits, LinkLayer, Mtu};
use super::queue_pair::{PeerAddress, QueuePairConfig};

/// An opened port: makes regions and queue pairs that can work with each other.
pub(in crate::verbs) trait RawPort: Send + Sync {
    fn description(&self) -> PortDescription;

    /// Pins the memory and makes it known to the device.
    ///
    /// # Safety
    /// The memory must stay valid until the region was deregistered.
    unsafe fn register(&self, memory: &Memory, access: Access) -> Result<Box<dyn RawRegion>, Error>;

    /// Makes memory of another device known, by the file descriptor of a dma-buf.
    ///
    /// # Safety
    /// As of [`register`](Self::register); `memory` holds addresses of the other device.
    unsafe fn register_dmabuf(
        &self,
        memory: &Memory,
        fd: BorrowedFd<'_>,
        offset: u64,
        access: Access,
    ) -> Result<Box<dyn RawRegion>, Error>;

    /// Makes a queue pair with a completion queue of its own, in its initial state.
    fn create_queue_pair(&self, config: &QueuePairConfig) -> Result<Box<dyn RawQueuePair>, Error>;
}

/// What is known of an opened port.
#[derive(Clone, Debug)]
pub(in crate::verbs) struct PortDescription {
    pub(in crate::verbs) name: String,
    pub(in crate::verbs) link_layer: LinkLayer,
    pub(in crate::verbs) gid: [u8; 16],
    pub(in crate::verbs) lid: u16,
    pub(in crate::verbs) active_mtu: Mtu,
    pub(in crate::verbs) message_bytes_max: u32,
    pub(in crate::verbs) limits: Limits,
}

pub(in crate::verbs) trait RawRegion: Send + Sync {
    fn local_key(&self) -> u32;
    fn remote_key(&self) -> u32;
    /// Makes the device forget the memory; called once. `false` if it refuses: then it may still use it.
    fn deregister(&mut self) -> bool;
}

pub(in crate::verbs) trait RawQueuePair: Send {
    fn number(&self) -> u32;

    /// Brings it from its initial state to where it can receive and send.
    fn connect(&mut self, peer: &PeerAddress, local_psn: u32) -> Result<(), Error>;

    /// Posts requests in order. On an error, tells how many at the front were posted.
    ///
    /// # Safety
    /// The memory of every segment stays registered and valid until the request's completion (or that of a later one of the
    /// same queue) was polled, or the queue pair was destroyed.
    unsafe fn post_sends(&mut self, sends: &[RawSend], segments: &[RawSegment])
    -> Result<(), (usize, Error)>;

    /// Posts one receive. `segment` is `None` for a message without bytes.
    ///
    /// # Safety
    /// As of [`post_sends`](Self::post_sends).
    unsafe fn post_receive(&mut self, id: u64, segment: Option<RawSegment>) -> Result<(), Error>;

    /// Appends completions, at most `max`.
    fn poll(&mut self, completions: &mut Vec<RawCompletion>, max: usize) -> Result<(), Error>;

    /// Asks for an event at the next completion. Completions that are there already cause none: poll after it.
    fn arm(&mut self) -> Result<(), Error>;

    /// Readable when there was an event.
    fn event_fd(&self) -> BorrowedFd<'_>;

    /// To the error state: what is outstanding is flushed, peers are not answered any more.
    fn fail(&mut self) -> Result<(), Error>;

    /// Ends all use of memory; called once, at the end. `false` if the device refuses: then it may still use it.
    fn destroy(&mut self) -> bool;
}

/// A part of registered memory.
#[derive(Clone, Copy, Debug)]
pub(in crate::verbs) struct RawSegment {
    pub(in crate::verbs) address: usize,
    pub(in crate::verbs) bytes: u32,
    pub(in crate::verbs) local_key: u32,
}

/// One request for the send queue. Its segments are the next `segment_count` of the call's.
#[derive(Clone, Copy, Debug)]
pub(in crate::verbs) struct RawSend {
    pub(in crate::verbs) id: u64,
    pub(in crate::verbs) verb: RawVerb,
    pub(in crate::verbs) segment_count: usize,
    /// Whether success makes a completion. Failure always does.
    pub(in crate::verbs) signaled: bool,
}

#[derive(Clone, Copy, Debug)]
pub(in crate::verbs) enum RawVerb {
    Send { immediate: Option<u32> },
    Read { remote_address: u64, remote_key: u32 },
    Write { remote_address: u64, remote_key: u32 },
}

#[derive(Clone, Copy, Debug)]
pub(in crate::verbs) struct RawCompletion {
    pub(in crate::verbs) id: u64,
    pub(in crate::verbs) status: Option<Status>,
    pub(in crate::verbs) bytes: u32,
    pub(in crate::verbs) immediate: Option<u32>,
}
