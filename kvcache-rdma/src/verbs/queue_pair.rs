//! A reliable connection: two queues of work, and the memory that they hold.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use super::error::{Error, Status};
use super::memory::{Buffer, Region, Slice};
use super::port::{Limits, Mtu};
use super::provider::{PortDescription, RawCompletion, RawQueuePair, RawSegment, RawSend, RawVerb};

/// How a queue pair is made. What a device cannot do is cut to its limits.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct QueuePairConfig {
    /// Requests of the send queue.
    pub send_depth: u32,
    /// Receives that can wait for messages.
    pub receive_depth: u32,
    /// Segments of one request.
    pub segments_max: u32,
    /// Whether the peer may read and write regions with [`Access::Remote`](super::Access::Remote).
    pub remote_access: bool,
    /// Largest packet; the port's own, and the peer's, may be smaller. `None` for as large as these allow.
    pub mtu: Option<Mtu>,
    /// Routers between the peers. InfiniStore's 1 does not leave the subnet.
    pub hop_limit: u8,
    /// Class of its packets (DSCP in the upper six bits), for networks that keep RoCE apart.
    pub traffic_class: u8,
    /// Service level: the priority on InfiniBand.
    pub service_level: u8,
    /// Time until a packet counts as lost: 4.096 µs × 2^timeout; 14 is 67 ms.
    pub timeout: u8,
    /// How often a lost packet is sent again, at most 7.
    pub retries: u8,
    /// How often a message that found no receive waiting is sent again; 7 is for ever.
    pub rnr_retries: u8,
    /// What the peer waits before it tries so again: 12 is 0.64 ms.
    pub rnr_timer: u8,
    /// Reads outstanding in each direction; the peer's number is not known, and stock peers have 16.
    pub reads_max: u8,
}

impl Default for QueuePairConfig {
    /// Small queues, one segment, the timers of InfiniStore, routed.
    fn default() -> Self {
        Self {
            send_depth: 64,
            receive_depth: 64,
            segments_max: 1,
            remote_access: false,
            mtu: None,
            hop_limit: 64,
            traffic_class: 0,
            service_level: 0,
            timeout: 14,
            retries: 7,
            rnr_retries: 7,
            rnr_timer: 12,
            reads_max: 16,
        }
    }
}

impl QueuePairConfig {
    /// What of it a device can do.
    pub(in crate::verbs) fn within(&self, limits: &Limits) -> Self {
        let queue = limits.queue_depth_max.min(limits.completions_max / 2).max(1);
        Self {
            send_depth: self.send_depth.clamp(1, queue),
            receive_depth: self.receive_depth.clamp(1, queue),
            segments_max: self
                .segments_max
                .clamp(1, limits.segments_max.min(limits.read_segments_max).max(1)),
            timeout: self.timeout.min(31),
            retries: self.retries.min(7),
            rnr_retries: self.rnr_retries.min(7),
            rnr_timer: self.rnr_timer.min(31),
            ..self.clone()
        }
    }
}

/// What one side must know of the other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PeerAddress {
    /// Number of the queue pair on its device, 24 bits.
    pub queue_pair: u32,
    /// Number of the first packet that it sends, 24 bits.
    pub packet_sequence: u32,
    /// Its port's address; zeroes on InfiniBand.
    pub gid: [u8; 16],
    /// Its port's LID; 0 on Ethernet.
    pub lid: u16,
    /// The largest packet of its port.
    pub mtu: Mtu,
}

/// Work for the send queue.
#[derive(Debug)]
pub enum Work {
    /// A message, or an empty one, into the peer's next receive.
    Send {
        /// The message; given back with the completion.
        message: Option<Buffer>,
        /// A number for the peer, as its machine stores it.
        immediate: Option<u32>,
    },
    /// Bytes of the peer's memory into ours.
    Read {
        /// Where to, filled in order.
        into: Vec<Slice>,
        /// Where from.
        remote_address: u64,
        /// The peer's key for it.
        remote_key: u32,
    },
    /// Our bytes into the peer's memory.
    Write {
        /// Where from, in order.
        from: Vec<Slice>,
        /// Where to.
        remote_address: u64,
        /// The peer's key for it.
        remote_key: u32,
    },
}

/// One entry of a [`QueuePair::post`].
#[derive(Debug)]
pub struct Request {
    /// The caller's number, given back with the completion.
    pub id: u64,
    /// What to do.
    pub work: Work,
    /// Whether success is reported. What is not reported is known to have succeeded once a later request of the queue
    /// has; the last request of a post should be reported, or the queue fills up.
    pub signaled: bool,
}

/// Which queue a completion is of.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Queue {
    /// The send queue: messages, reads and writes of ours.
    Send,
    /// The receive queue: a message of the peer.
    Receive,
}

/// The end of a request.
#[derive(Debug)]
pub struct Completion {
    /// As given.
    pub id: u64,
    /// The queue it was in.
    pub queue: Queue,
    /// How it ended. After a failure the queue pair is in its error state.
    pub result: Result<(), Status>,
    /// The number that came with a message.
    pub immediate: Option<u32>,
    /// The buffer of the request; after a receive it holds the message.
    pub buffer: Option<Buffer>,
}

/// A queue pair with its completion queue. Not shared between threads: one drives it.
///
/// It holds the memory of all requests that have not completed. Dropping it destroys the device's queue pair first,
/// after which nothing of ours is touched for it any more, neither by our requests nor by the peer's.
pub struct QueuePair {
    raw: Box<dyn RawQueuePair>,
    port: PortDescription,
    config: QueuePairConfig,
    packet_sequence: u32,
    sends: VecDeque<Held>,
    receives: VecDeque<Held>,
    next_id: u64,
    failed: bool,
    // Reused between calls.
    raw_sends: Vec<RawSend>,
    raw_segments: Vec<RawSegment>,
    raw_completions: Vec<RawCompletion>,
}

/// A request in flight and what it keeps alive.
struct Held {
    raw_id: u64,
    id: u64,
    buffer: Option<Buffer>,
    _regions: Vec<Arc<Region>>,
}

impl QueuePair {
    pub(in crate::verbs) fn new(
        raw: Box<dyn RawQueuePair>,
        port: PortDescription,
        config: QueuePairConfig,
        packet_sequence: u32,
    ) -> Self {
        Self {
            raw,
            port,
            config,
            packet_sequence: packet_sequence & 0xff_ffff,
            sends: VecDeque::new(),
            receives: VecDeque::new(),
            next_id: 0,
            failed: false,
            raw_sends: Vec::new(),
            raw_segments: Vec::new(),
            raw_completions: Vec::new(),
        }
    }

    /// What the peer needs to know.
    pub fn address(&self) -> PeerAddress {
        PeerAddress {
            queue_pair: self.raw.number(),
            packet_sequence: self.packet_sequence,
            gid: self.port.gid,
            lid: self.port.lid,
            mtu: self.config.mtu.map_or(self.port.active_mtu, |mtu| mtu.min(self.port.active_mtu)),
        }
    }

    /// The configuration after the device's limits.
    pub fn config(&self) -> &QueuePairConfig {
        &self.config
    }

    /// Connects to a peer that knows, or will know, our address. Sending is possible at once.
    ///
    /// # Errors
    /// [`Error::Verb`]: the device refuses, as when it has no route to the peer.
    pub fn connect(&mut self, peer: &PeerAddress) -> Result<(), Error> {
        let peer = PeerAddress { mtu: peer.mtu.min(self.address().mtu), ..*peer };
        self.raw.connect(&peer, self.packet_sequence)
    }

    /// Requests in the send queue that have not completed.
    pub fn sends_in_flight(&self) -> usize {
        self.sends.len()
    }

    /// Receives that have not completed.
    pub fn receives_in_flight(&self) -> usize {
        self.receives.len()
    }

    /// Requests that can still be posted.
    pub fn send_room(&self) -> usize {
        (self.config.send_depth as usize).saturating_sub(self.sends.len())
    }

    /// Lets the peer send one more message, into `buffer`, or one without bytes.
    ///
    /// # Errors
    /// The receive queue is full, or the queue pair has failed.
    pub fn post_receive(&mut self, id: u64, buffer: Option<Buffer>) -> Result<(), Error> {
        if self.failed {
            return Err(Error::Broken);
        }
        let depth = self.config.receive_depth as usize;
        if self.receives.len() >= depth {
            return Err(Error::QueueFull { wanted: 1, used: self.receives.len(), depth });
        }
        let segment = buffer.as_ref().map(|buffer| RawSegment {
            address: buffer.address,
            bytes: buffer.capacity,
            local_key: buffer.region.local_key(),
        });
        let raw_id = self.raw_id(RECEIVE);
        // Held before it is posted: the device may complete it at once.
        self.receives.push_back(Held { raw_id, id, buffer, _regions: Vec::new() });
        // SAFETY: the buffer is held until its completion was polled or the queue pair destroyed.
        if let Err(error) = unsafe { self.raw.post_receive(raw_id, segment) } {
            self.receives.pop_back();
            return Err(error);
        }
        Ok(())
    }

    /// Posts requests in order, with one call to the device.
    ///
    /// # Errors
    /// Nothing was posted: the queue is too full, a request too large, or the queue pair has failed. When the device
    /// refuses in the middle, the queue pair fails; what was posted is flushed.
    pub fn post(&mut self, requests: Vec<Request>) -> Result<(), Error> {
        if self.failed {
            return Err(Error::Broken);
        }
        if requests.len() > self.send_room() {
            return Err(Error::QueueFull {
                wanted: requests.len(),
                used: self.sends.len(),
                depth: self.config.send_depth as usize,
            });
        }
        requests.iter().try_for_each(|request| self.check(&request.work))?;
        self.raw_sends.clear();
        self.raw_segments.clear();
        let first = self.sends.len();
        for Request { id, work, signaled } in requests {
            let raw_id = self.raw_id(SEND);
            let before = self.raw_segments.len();
            let (verb, buffer, regions) = match work {
                Work::Send { message, immediate } => {
                    self.raw_segments.extend(message.as_ref().filter(|message| message.bytes > 0).map(
                        |message| RawSegment {
                            address: message.address,
                            bytes: message.bytes,
                            local_key: message.region.local_key(),
                        },
                    ));
                    (RawVerb::Send { immediate }, message, Vec::new())
                }
                Work::Read { into, remote_address, remote_key } => {
                    (RawVerb::Read { remote_address, remote_key }, None, self.add_segments(into))
                }
                Work::Write { from, remote_address, remote_key } => {
                    (RawVerb::Write { remote_address, remote_key }, None, self.add_segments(from))
                }
            };
            let segment_count = self.raw_segments.len() - before;
            self.raw_sends.push(RawSend { id: raw_id, verb, segment_count, signaled });
            self.sends.push_back(Held { raw_id, id, buffer, _regions: regions });
        }
        // SAFETY: all memory is held in `sends` until its completion was polled or the queue pair destroyed.
        if let Err((posted, error)) = unsafe { self.raw.post_sends(&self.raw_sends, &self.raw_segments) } {
            self.sends.truncate(first + posted);
            // Which of the caller's requests run is not worth a story: none of them will.
            let _ = self.fail();
            return Err(error);
        }
        Ok(())
    }

    /// Appends completions. Never blocks.
    ///
    /// # Errors
    /// The completion queue is broken; the queue pair is of no more use.
    pub fn poll(&mut self, completions: &mut Vec<Completion>) -> Result<(), Error> {
        self.raw_completions.clear();
        self.raw.poll(&mut self.raw_completions, POLL_MAX)?;
        let raw_completions = std::mem::take(&mut self.raw_completions);
        for raw in &raw_completions {
            self.failed |= raw.status.is_some();
            let (held, queue) = if raw.id & 1 == RECEIVE {
                (self.receives.pop_front_if(|held| held.raw_id == raw.id), Queue::Receive)
            } else {
                // Earlier requests without a completion of their own have ended with this one.
                while self.sends.front().is_some_and(|held| held.raw_id < raw.id) {
                    self.sends.pop_front();
                }
                (self.sends.pop_front_if(|held| held.raw_id == raw.id), Queue::Send)
            };
            // A completion of nothing that was posted: nothing to give back, nothing to tell.
            let Some(held) = held else { continue };
            let mut buffer = held.buffer;
            if let (Some(buffer), Queue::Receive) = (&mut buffer, queue) {
                buffer.bytes = if raw.status.is_none() { raw.bytes.min(buffer.capacity) } else { 0 };
            }
            completions.push(Completion {
                id: held.id,
                queue,
                result: raw.status.map_or(Ok(()), Err),
                immediate: raw.immediate,
                buffer,
            });
        }
        self.raw_completions = raw_completions;
        Ok(())
    }

    /// Asks for [`event_fd`](Self::event_fd) to become readable at the next completion, and forgets earlier events.
    /// Poll once after it, before sleeping: what has completed already causes no event.
    ///
    /// # Errors
    /// The completion queue is broken.
    pub fn arm(&mut self) -> Result<(), Error> {
        self.raw.arm()
    }

    /// A file descriptor to wait on, beside sockets and others.
    pub fn event_fd(&self) -> BorrowedFd<'_> {
        self.raw.event_fd()
    }

    /// Whether it is in its error state. It stays there: make another one.
    pub fn is_failed(&self) -> bool {
        self.failed
    }

    /// Puts it into its error state: every request that has not completed is flushed, and the peer is not answered.
    ///
    /// # Errors
    /// The device refuses. Dropping the queue pair still ends all use of memory.
    pub fn fail(&mut self) -> Result<(), Error> {
        self.failed = true;
        self.raw.fail()
    }

    fn check(&self, work: &Work) -> Result<(), Error> {
        let slices: &[Slice] = match work {
            Work::Send { .. } => &[],
            Work::Read { into, .. } => into,
            Work::Write { from, .. } => from,
        };
        let bytes: u64 = slices.iter().map(|slice| u64::from(slice.bytes)).sum();
        let bytes_max = u64::from(self.port.message_bytes_max);
        if slices.len() > self.config.segments_max as usize || bytes > bytes_max {
            return Err(Error::TooLarge {
                segments: slices.len(),
                bytes,
                segments_max: self.config.segments_max as usize,
                bytes_max,
            });
        }
        Ok(())
    }

    fn add_segments(&mut self, slices: Vec<Slice>) -> Vec<Arc<Region>> {
        self.raw_segments.extend(slices.iter().filter(|slice| slice.bytes > 0).map(|slice| RawSegment {
            address: slice.address,
            bytes: slice.bytes,
            local_key: slice.region.local_key(),
        }));
        slices.into_iter().map(|slice| slice.region).collect()
    }

    /// Increases within a queue; the lowest bit tells the queue, since a failed completion has no valid opcode.
    fn raw_id(&mut self, queue: u64) -> u64 {
        self.next_id += 1;
        self.next_id << 1 | queue
    }
}

impl Drop for QueuePair {
    fn drop(&mut self) {
        if !self.raw.destroy() {
            // The device may go on: what it knows stays reserved for ever.
            std::mem::forget(std::mem::take(&mut self.sends));
            std::mem::forget(std::mem::take(&mut self.receives));
        }
    }
}

impl std::fmt::Debug for QueuePair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "QueuePair {{ {} on {}, {} sends and {} receives in flight }}",
            self.raw.number(),
            self.port.name,
            self.sends.len(),
            self.receives.len()
        )
    }
}

const SEND: u64 = 0;
const RECEIVE: u64 = 1;

/// Completions of one poll: enough to spread the cost of a call, few enough to stay fair.
const POLL_MAX: usize = 64;
