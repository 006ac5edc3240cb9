//! A queue pair of a device, with its completion queue and the channel that wakes sleepers.

use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::Arc;

use super::context::{ProtectionDomain, none};
use super::{check, errno_error, verb_error};
use crate::verbs::error::{Error, Status};
use crate::verbs::port::Limits;
use crate::verbs::provider::{RawCompletion, RawQueuePair, RawSegment, RawSend, RawVerb};
use crate::verbs::queue_pair::{PeerAddress, QueuePairConfig};
use crate::verbs::sys::abi;

pub(super) struct HardwareQueuePair {
    // In the order in which they must be destroyed; the completion queue frees itself and its channel.
    raw: Option<NonNull<abi::QueuePair>>,
    number: u32,
    queue: CompletionQueue,
    port: u8,
    gid_index: Option<u32>,
    config: QueuePairConfig,
    reads_as_initiator: u8,
    reads_as_target: u8,
    // Reused between calls.
    sends: Vec<abi::SendRequest>,
    segments: Vec<abi::Segment>,
    completions: Vec<abi::WorkCompletion>,
}

// SAFETY: handles may be used on any thread; methods take `&mut self`. The vectors hold pointers only within a call.
unsafe impl Send for HardwareQueuePair {}

impl HardwareQueuePair {
    pub(super) fn new(
        domain: Arc<ProtectionDomain>,
        port: u8,
        gid_index: Option<u32>,
        config: &QueuePairConfig,
        limits: &Limits,
    ) -> Result<Self, Error> {
        let library = domain.context.library;
        let entries = config.send_depth + config.receive_depth;
        let queue = CompletionQueue::new(Arc::clone(&domain), entries)?;
        let mut init = abi::QueuePairInit {
            user: none(),
            send_queue: queue.raw.as_ptr(),
            receive_queue: queue.raw.as_ptr(),
            shared_receive_queue: none(),
            capacity: abi::QueuePairCapacity {
                send_requests: config.send_depth,
                receive_requests: config.receive_depth,
                send_segments: config.segments_max,
                receive_segments: 1,
                inline_bytes: 0,
            },
            kind: abi::QUEUE_PAIR_RELIABLE,
            signal_all: 0,
        };
        // SAFETY: domain and completion queue are of one device and outlive the queue pair.
        let raw = unsafe { (library.create_qp)(domain.raw.as_ptr(), &mut init) };
        let raw = NonNull::new(raw).ok_or_else(|| {
            let subject = format!("{} sends and {} receives", config.send_depth, config.receive_depth);
            errno_error("ibv_create_qp", subject)
        })?;
        // SAFETY: just made by the library.
        let number = unsafe { raw.as_ref().number };
        let queue_pair = Self {
            raw: Some(raw),
            number,
            queue,
            port,
            gid_index,
            config: config.clone(),
            reads_as_initiator: config.reads_max.min(limits.reads_as_initiator_max),
            reads_as_target: config.reads_max.min(limits.reads_as_target_max),
            sends: Vec::new(),
            segments: Vec::new(),
            completions: Vec::new(),
        };
        queue_pair.initialize()?;
        Ok(queue_pair)
    }

    fn initialize(&self) -> Result<(), Error> {
        let mut access = abi::ACCESS_LOCAL_WRITE;
        if self.config.remote_access {
            access |= abi::ACCESS_REMOTE_READ | abi::ACCESS_REMOTE_WRITE;
        }
        let attributes = abi::QueuePairAttributes {
            state: abi::STATE_INIT,
            port: self.port,
            access: access as u32,
            ..Default::default()
        };
        let mask =
            abi::ATTRIBUTE_STATE | abi::ATTRIBUTE_PKEY_INDEX | abi::ATTRIBUTE_PORT | abi::ATTRIBUTE_ACCESS;
        self.modify(attributes, mask, || "the initial state".to_owned())
    }

    fn modify(
        &self,
        mut attributes: abi::QueuePairAttributes,
        mask: i32,
        subject: impl Fn() -> String,
    ) -> Result<(), Error> {
        let Some(raw) = self.raw else { return Err(Error::Broken) };
        let library = self.queue.domain.context.library;
        // SAFETY: a queue pair that has not been destroyed.
        let status = unsafe { (library.modify_qp)(raw.as_ptr(), &mut attributes, mask) };
        check("ibv_modify_qp", || format!("queue pair {}, {}", self.number, subject()), status)
    }

    fn address_of(&self, peer: &PeerAddress) -> Result<abi::AddressHandle, Error> {
        let mut address = abi::AddressHandle {
            destination_lid: peer.lid,
            service_level: self.config.service_level,
            port: self.port,
            ..Default::default()
        };
        if let Some(index) = self.gid_index {
            if peer.gid == [0; 16] {
                return Err(Error::Peer("it sent no GID, and this port is addressed by GID".to_owned()));
            }
            address.is_global = 1;
            address.route = abi::GlobalRoute {
                destination: peer.gid,
                flow_label: 0,
                source_gid_index: u8::try_from(index)
                    .map_err(|_| Error::Peer(format!("GID index {index} of this port is above 255")))?,
                hop_limit: self.config.hop_limit,
                traffic_class: self.config.traffic_class,
            };
        } else if peer.lid == 0 {
            return Err(Error::Peer("it sent no LID, and this port is addressed by LID".to_owned()));
        }
        Ok(address)
    }

    fn operations(&self) -> Option<(&abi::ContextOps, NonNull<abi::QueuePair>)> {
        // SAFETY: the context is open as long as the domain is held, and its functions never change.
        let context = unsafe { self.queue.domain.context.raw.as_ref() };
        Some((&context.ops, self.raw?))
    }
}

impl RawQueuePair for HardwareQueuePair {
    fn number(&self) -> u32 {
        self.number
    }

    fn connect(&mut self, peer: &PeerAddress, local_psn: u32) -> Result<(), Error> {
        let attributes = abi::QueuePairAttributes {
            state: abi::STATE_READY_TO_RECEIVE,
            path_mtu: peer.mtu.number() as i32,
            peer_number: peer.queue_pair,
            receive_psn: peer.packet_sequence & 0xff_ffff,
            reads_as_target: self.reads_as_target,
            rnr_timer: self.config.rnr_timer,
            address: self.address_of(peer)?,
            ..Default::default()
        };
        let mask = abi::ATTRIBUTE_STATE
            | abi::ATTRIBUTE_ADDRESS
            | abi::ATTRIBUTE_PATH_MTU
            | abi::ATTRIBUTE_PEER_NUMBER
            | abi::ATTRIBUTE_RECEIVE_PSN
            | abi::ATTRIBUTE_READS_AS_TARGET
            | abi::ATTRIBUTE_RNR_TIMER;
        self.modify(attributes, mask, || {
            let gid = std::net::Ipv6Addr::from(peer.gid);
            format!("ready to receive from queue pair {} at {gid} (lid {})", peer.queue_pair, peer.lid)
        })?;
        let attributes = abi::QueuePairAttributes {
            state: abi::STATE_READY_TO_SEND,
            timeout: self.config.timeout,
            retries: self.config.retries,
            rnr_retries: self.config.rnr_retries,
            send_psn: local_psn,
            reads_as_initiator: self.reads_as_initiator,
            ..Default::default()
        };
        let mask = abi::ATTRIBUTE_STATE
            | abi::ATTRIBUTE_TIMEOUT
            | abi::ATTRIBUTE_RETRIES
            | abi::ATTRIBUTE_RNR_RETRIES
            | abi::ATTRIBUTE_SEND_PSN
            | abi::ATTRIBUTE_READS_AS_INITIATOR;
        self.modify(attributes, mask, || "ready to send".to_owned())
    }

    unsafe fn post_sends(
        &mut self,
        sends: &[RawSend],
        segments: &[RawSegment],
    ) -> Result<(), (usize, Error)> {
        if sends.is_empty() {
            return Ok(());
        }
        self.segments.clear();
        self.segments.extend(segments.iter().map(segment));
        self.sends.clear();
        let mut first_segment = 0;
        for send in sends {
            let mut request = abi::SendRequest::zeroed();
            request.id = send.id;
            request.segment_count = send.segment_count as i32;
            if send.segment_count > 0 {
                request.segments = self.segments[first_segment..].as_mut_ptr();
                first_segment += send.segment_count;
            }
            if send.signaled {
                request.flags |= abi::FLAG_SIGNALED;
            }
            match send.verb {
                RawVerb::Send { immediate: None } => request.operation = abi::SEND_MESSAGE,
                RawVerb::Send { immediate: Some(immediate) } => {
                    request.operation = abi::SEND_MESSAGE_WITH_IMMEDIATE;
                    request.immediate = immediate;
                }
                RawVerb::Read { remote_address, remote_key } => {
                    request.operation = abi::SEND_READ;
                    request.remote_address = remote_address;
                    request.remote_key = remote_key;
                }
                RawVerb::Write { remote_address, remote_key } => {
                    request.operation = abi::SEND_WRITE;
                    request.remote_address = remote_address;
                    request.remote_key = remote_key;
                }
            }
            self.sends.push(request);
        }
        // Linked after the vector has stopped growing.
        let base = self.sends.as_mut_ptr();
        for index in 1..self.sends.len() {
            // SAFETY: both within the vector.
            unsafe { (*base.add(index - 1)).next = base.add(index) };
        }
        let Some((operations, raw)) = self.operations() else { return Err((0, Error::Broken)) };
        let Some(post_send) = operations.post_send else { return Err((0, no_driver("post_send"))) };
        let mut bad = none();
        // SAFETY: a linked list of requests whose segments lie beside them; the driver copies both. What the segments name
        // is kept by the caller.
        let status = unsafe { post_send(raw.as_ptr(), base, &mut bad) };
        if status == 0 {
            return Ok(());
        }
        let posted = posted_before(base as usize, bad as usize, sends.len());
        let error = io::Error::from_raw_os_error(status.abs());
        Err((posted, verb_error("ibv_post_send", format!("{} requests", sends.len()), error)))
    }

    unsafe fn post_receive(&mut self, id: u64, buffer: Option<RawSegment>) -> Result<(), Error> {
        let mut buffer = buffer.as_ref().map(segment);
        let mut request = abi::ReceiveRequest {
            id,
            next: none(),
            segments: buffer.as_mut().map_or(none(), |buffer| buffer as *mut _),
            segment_count: i32::from(buffer.is_some()),
        };
        let Some((operations, raw)) = self.operations() else { return Err(Error::Broken) };
        let post_recv = operations.post_recv.ok_or_else(|| no_driver("post_recv"))?;
        let mut bad = none();
        // SAFETY: one request, copied by the driver; its memory is kept by the caller.
        let status = unsafe { post_recv(raw.as_ptr(), &mut request, &mut bad) };
        check("ibv_post_recv", || format!("queue pair {}", self.number), status)
    }

    fn poll(&mut self, completions: &mut Vec<RawCompletion>, max: usize) -> Result<(), Error> {
        self.completions.resize(max, abi::WorkCompletion::default());
        let count = self.queue.poll(&mut self.completions)?;
        completions.extend(self.completions[..count].iter().map(|completion| {
            RawCompletion {
                id: completion.id,
                status: Status::of_number(completion.status),
                bytes: completion.bytes,
                // Drivers disagree whether a message with a number is reported as RECV (128) or as RECV_RDMA_WITH_IMM
                // (129, irdma); the flag is the same.
                immediate: (completion.flags & abi::COMPLETION_WITH_IMMEDIATE != 0
                    && completion.operation & OPERATION_RECEIVE != 0)
                    .then_some(completion.immediate),
            }
        }));
        Ok(())
    }

    fn arm(&mut self) -> Result<(), Error> {
        self.queue.take_events()?;
        self.queue.request_event()
    }

    fn event_fd(&self) -> BorrowedFd<'_> {
        self.queue.event_fd()
    }

    fn fail(&mut self) -> Result<(), Error> {
        let attributes = abi::QueuePairAttributes { state: abi::STATE_ERROR, ..Default::default() };
        self.modify(attributes, abi::ATTRIBUTE_STATE, || "the error state".to_owned())
    }

    fn destroy(&mut self) -> bool {
        let Some(raw) = self.raw.take() else { return true };
        // SAFETY: taken, hence destroyed once. The call returns when the device has stopped.
        unsafe { (self.queue.domain.context.library.destroy_qp)(raw.as_ptr()) == 0 }
    }
}

impl Drop for HardwareQueuePair {
    fn drop(&mut self) {
        // After a failed construction; otherwise its owner has done it.
        self.destroy();
    }
}

/// How many of `count` requests from `base` on a driver has taken that names the one at `bad` as the first that it has not.
/// One that names none of them, or nothing, may have taken all.
fn posted_before(base: usize, bad: usize, count: usize) -> usize {
    let bytes = size_of::<abi::SendRequest>();
    let index = bad.checked_sub(base).filter(|offset| offset % bytes == 0).map(|offset| offset / bytes);
    index.filter(|index| *index < count).unwrap_or(count)
}

fn segment(segment: &RawSegment) -> abi::Segment {
    abi::Segment { address: segment.address as u64, bytes: segment.bytes, local_key: segment.local_key }
}

fn no_driver(verb: &'static str) -> Error {
    verb_error(verb, "this driver", io::Error::from_raw_os_error(libc::EOPNOTSUPP))
}

/// Set in the opcodes of all completions of the receive queue.
const OPERATION_RECEIVE: i32 = 1 << 7;

/// A completion queue with its channel.
struct CompletionQueue {
    domain: Arc<ProtectionDomain>,
    raw: NonNull<abi::CompletionQueue>,
    channel: NonNull<abi::CompletionChannel>,
}

impl CompletionQueue {
    fn new(domain: Arc<ProtectionDomain>, entries: u32) -> Result<Self, Error> {
        let library = domain.context.library;
        let context = domain.context.raw.as_ptr();
        // SAFETY: an open device.
        let channel = unsafe { (library.create_comp_channel)(context) };
        let channel = NonNull::new(channel)
            .ok_or_else(|| errno_error("ibv_create_comp_channel", domain.context.name.clone()))?;
        // SAFETY: device and channel belong together.
        let raw = unsafe { (library.create_cq)(context, entries as i32, none(), channel.as_ptr(), 0) };
        let Some(raw) = NonNull::new(raw) else {
            let error = errno_error("ibv_create_cq", format!("{entries} entries"));
            // SAFETY: made above, used by nothing.
            unsafe { (library.destroy_comp_channel)(channel.as_ptr()) };
            return Err(error);
        };
        let queue = Self { domain, raw, channel };
        queue.set_nonblocking()?;
        Ok(queue)
    }

    /// Taking an event must not sleep: `poll` on the descriptor does, with a deadline.
    fn set_nonblocking(&self) -> Result<(), Error> {
        use std::os::fd::AsRawFd;
        let fd = self.event_fd().as_raw_fd();
        // SAFETY: flags of an open descriptor.
        let status =
            unsafe { libc::fcntl(fd, libc::F_SETFL, libc::fcntl(fd, libc::F_GETFL) | libc::O_NONBLOCK) };
        if status < 0 { Err(errno_error("fcntl", "the completion channel")) } else { Ok(()) }
    }

    fn poll(&self, completions: &mut [abi::WorkCompletion]) -> Result<usize, Error> {
        // SAFETY: the context is open as long as the domain is held.
        let operations = unsafe { &self.domain.context.raw.as_ref().ops };
        let poll_cq = operations.poll_cq.ok_or_else(|| no_driver("poll_cq"))?;
        // SAFETY: as many entries as the slice has.
        let count = unsafe { poll_cq(self.raw.as_ptr(), completions.len() as i32, completions.as_mut_ptr()) };
        match usize::try_from(count) {
            Ok(count) => Ok(count.min(completions.len())),
            Err(_) => {
                Err(verb_error("ibv_poll_cq", "a completion queue", io::Error::from_raw_os_error(libc::EIO)))
            }
        }
    }

    fn request_event(&self) -> Result<(), Error> {
        // SAFETY: as above.
        let operations = unsafe { &self.domain.context.raw.as_ref().ops };
        let request = operations.req_notify_cq.ok_or_else(|| no_driver("req_notify_cq"))?;
        // SAFETY: a queue that has not been destroyed.
        check("ibv_req_notify_cq", String::new, unsafe { request(self.raw.as_ptr(), 0) })
    }

    /// Takes what is in the channel. Every event taken is acknowledged, or destroying the queue would wait for ever.
    fn take_events(&self) -> Result<(), Error> {
        let library = self.domain.context.library;
        loop {
            let (mut queue, mut user) = (none(), none());
            // SAFETY: the channel is ours; it does not block.
            if unsafe { (library.get_cq_event)(self.channel.as_ptr(), &mut queue, &mut user) } != 0 {
                let error = io::Error::last_os_error();
                return match error.kind() {
                    io::ErrorKind::WouldBlock => Ok(()),
                    io::ErrorKind::Interrupted => continue,
                    _ => Err(verb_error("ibv_get_cq_event", "the completion channel", error)),
                };
            }
            // SAFETY: one event of this queue was taken, the only one of the channel.
            unsafe { (library.ack_cq_events)(self.raw.as_ptr(), 1) };
        }
    }

    fn event_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as the channel, which is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.channel.as_ref().fd) }
    }
}

impl Drop for CompletionQueue {
    fn drop(&mut self) {
        let library = self.domain.context.library;
        // SAFETY: the queue pair that used them is destroyed: it is declared, and dropped, before this.
        unsafe {
            (library.destroy_cq)(self.raw.as_ptr());
            (library.destroy_comp_channel)(self.channel.as_ptr());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_driver_may_have_taken_counts_as_taken() {
        let bytes = size_of::<abi::SendRequest>();
        let base = 0x1000;
        for (bad, posted) in [
            (base, 0),
            (base + bytes, 1),
            (base + 3 * bytes, 3),
            (base + 4 * bytes, 4),
            (base + 1, 4),
            (base - bytes, 4),
            (0, 4),
            (usize::MAX, 4),
        ] {
            assert_eq!(posted_before(base, bad, 4), posted, "{bad:#x}");
        }
    }
}
