//! The state behind a fake network: every queue pair and region, and the requests that wait.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::FromRawFd;
use std::sync::Arc;

use crate::verbs::error::{Error, Status};
use crate::verbs::provider::{RawCompletion, RawSegment, RawSend, RawVerb};
use crate::verbs::queue_pair::QueuePairConfig;

#[derive(Default)]
pub(super) struct World {
    queue_pairs: BTreeMap<u32, FakeQueue>,
    regions: BTreeMap<u32, FakeRegion>,
    last_number: u32,
    last_key: u32,
    last_domain: u32,
    allowed: Option<u64>,
    cut: Option<usize>,
    run: u64,
}

pub(super) struct FakeRegion {
    pub(super) domain: u32,
    pub(super) address: usize,
    pub(super) bytes: usize,
    pub(super) remote: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Initial,
    Connected { peer: u32 },
    Failed,
}

struct FakeQueue {
    domain: u32,
    state: State,
    remote_access: bool,
    /// Whether a message may wait for a receive as long as it takes.
    waits_for_receive: bool,
    sends: VecDeque<(RawSend, Vec<RawSegment>)>,
    receives: VecDeque<(u64, Option<RawSegment>)>,
    completions: VecDeque<RawCompletion>,
    event: Arc<File>,
    armed: bool,
}

impl FakeQueue {
    fn complete(&mut self, id: u64, status: Option<Status>, bytes: u32, immediate: Option<u32>) {
        self.completions.push_back(RawCompletion { id, status, bytes, immediate });
        if std::mem::take(&mut self.armed) {
            // Only a counter at its limit could refuse, and it is at 1.
            let _ = (&*self.event).write(&1u64.to_ne_bytes());
        }
    }

    fn fail(&mut self) {
        self.state = State::Failed;
        while let Some((send, _)) = self.sends.pop_front() {
            self.complete(send.id, Some(Status::Flushed), 0, None);
        }
        while let Some((id, _)) = self.receives.pop_front() {
            self.complete(id, Some(Status::Flushed), 0, None);
        }
    }
}

/// What became of the request at the head of a queue.
enum Ran {
    Done,
    /// It waits for a receive of the peer.
    Waits,
    /// It failed, and the peer's queue pair with it if `peer_fails`.
    Failed {
        status: Status,
        peer_fails: bool,
    },
}

impl World {
    pub(super) fn new_domain(&mut self) -> u32 {
        self.last_domain += 1;
        self.last_domain
    }

    pub(super) fn allow(&mut self, count: Option<u64>) {
        self.allowed = count;
        self.progress();
    }

    pub(super) fn cut_next_post(&mut self, taken: usize) {
        self.cut = Some(taken);
    }

    pub(super) fn requests_run(&self) -> u64 {
        self.run
    }

    pub(super) fn registered_bytes(&self) -> usize {
        self.regions.values().map(|region| region.bytes).sum()
    }

    pub(super) fn queue_pairs(&self) -> usize {
        self.queue_pairs.len()
    }

    pub(super) fn add_region(&mut self, region: FakeRegion) -> u32 {
        self.last_key += 0x101;
        self.regions.insert(self.last_key, region);
        self.last_key
    }

    pub(super) fn remove_region(&mut self, key: u32) {
        self.regions.remove(&key);
    }

    pub(super) fn add_queue_pair(
        &mut self,
        domain: u32,
        config: &QueuePairConfig,
    ) -> io::Result<(u32, Arc<File>)> {
        // SAFETY: makes a new descriptor or fails.
        let fd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just made, owned by nobody else.
        let event = Arc::new(unsafe { File::from_raw_fd(fd) });
        self.last_number += 1;
        let queue = FakeQueue {
            domain,
            state: State::Initial,
            remote_access: config.remote_access,
            waits_for_receive: config.rnr_retries == 7,
            sends: VecDeque::new(),
            receives: VecDeque::new(),
            completions: VecDeque::new(),
            event: Arc::clone(&event),
            armed: false,
        };
        self.queue_pairs.insert(self.last_number, queue);
        Ok((self.last_number, event))
    }

    pub(super) fn connect(&mut self, number: u32, peer: u32) -> Result<(), Error> {
        match self.queue_pairs.get_mut(&number) {
            Some(queue) if queue.state == State::Initial => queue.state = State::Connected { peer },
            _ => return Err(Error::Broken),
        }
        self.progress();
        Ok(())
    }

    /// How many were taken.
    ///
    /// # Safety
    /// The memory of the segments stays valid until the request completes or the queue pair is destroyed.
    pub(super) unsafe fn post_sends(
        &mut self,
        number: u32,
        sends: &[RawSend],
        segments: &[RawSegment],
    ) -> usize {
        let Some(queue) = self.queue_pairs.get_mut(&number) else { return sends.len() };
        let taken = self.cut.take().map_or(sends.len(), |taken| taken.min(sends.len()));
        let mut segments = segments;
        for send in &sends[..taken] {
            let (mine, rest) = segments.split_at(send.segment_count);
            queue.sends.push_back((*send, mine.to_vec()));
            segments = rest;
        }
        if queue.state == State::Failed {
            queue.fail();
        }
        self.progress();
        taken
    }

    /// # Safety
    /// As of `post_sends`.
    pub(super) unsafe fn post_receive(&mut self, number: u32, id: u64, segment: Option<RawSegment>) {
        let Some(queue) = self.queue_pairs.get_mut(&number) else { return };
        queue.receives.push_back((id, segment));
        if queue.state == State::Failed {
            queue.fail();
        }
        self.progress();
    }

    pub(super) fn poll(&mut self, number: u32, completions: &mut Vec<RawCompletion>, max: usize) {
        let Some(queue) = self.queue_pairs.get_mut(&number) else { return };
        let count = queue.completions.len().min(max);
        completions.extend(queue.completions.drain(..count));
    }

    pub(super) fn arm(&mut self, number: u32) {
        let Some(queue) = self.queue_pairs.get_mut(&number) else { return };
        // Empties the counter; an error says that it is empty.
        let _ = (&*queue.event).read(&mut [0; 8]);
        queue.armed = true;
    }

    pub(super) fn fail(&mut self, number: u32) {
        if let Some(queue) = self.queue_pairs.get_mut(&number) {
            queue.fail();
        }
        self.progress();
    }

    pub(super) fn destroy(&mut self, number: u32) {
        self.queue_pairs.remove(&number);
        self.progress();
    }

    /// Runs whatever can run.
    fn progress(&mut self) {
        let numbers: Vec<u32> = self.queue_pairs.keys().copied().collect();
        let mut moved = true;
        while moved {
            moved = false;
            for number in &numbers {
                moved |= self.run_head(*number);
            }
        }
    }

    /// Runs the request at the head of a queue; whether anything changed.
    fn run_head(&mut self, number: u32) -> bool {
        let Some(queue) = self.queue_pairs.get(&number) else { return false };
        let State::Connected { peer } = queue.state else { return false };
        let Some((send, segments)) = queue.sends.front() else { return false };
        if self.allowed == Some(0) {
            return false;
        }
        let send = *send;
        let ran = self.run(number, peer, &send, &segments.clone());
        if matches!(ran, Ran::Waits) {
            return false;
        }
        self.run += 1;
        self.allowed = self.allowed.map(|count| count - 1);
        let Some(queue) = self.queue_pairs.get_mut(&number) else { return true };
        queue.sends.pop_front();
        match ran {
            Ran::Waits => {}
            Ran::Done if send.signaled => queue.complete(send.id, None, 0, None),
            Ran::Done => {}
            Ran::Failed { status, peer_fails } => {
                queue.complete(send.id, Some(status), 0, None);
                queue.fail();
                if let (true, Some(peer)) = (peer_fails, self.queue_pairs.get_mut(&peer)) {
                    peer.fail();
                }
            }
        }
        true
    }

    fn run(&mut self, number: u32, peer: u32, send: &RawSend, segments: &[RawSegment]) -> Ran {
        let failed = |status| Ran::Failed { status, peer_fails: false };
        let Some(ours) = self.queue_pairs.get(&number) else { return failed(Status::Flushed) };
        if !segments.iter().all(|segment| self.covers(ours.domain, segment)) {
            return failed(Status::LocalProtection);
        }
        let bytes: usize = segments.iter().map(|segment| segment.bytes as usize).sum();
        let waits = ours.waits_for_receive;
        let Some(theirs) = self.queue_pairs.get(&peer) else { return failed(Status::RetriesExceeded) };
        if theirs.state != (State::Connected { peer: number }) {
            return failed(Status::RetriesExceeded);
        }
        let refused = |status| Ran::Failed { status, peer_fails: true };
        match send.verb {
            RawVerb::Read { remote_address, remote_key } | RawVerb::Write { remote_address, remote_key } => {
                let remote_address = remote_address as usize;
                // Nothing to move needs no permission, as on devices.
                if bytes > 0 && !self.permits(theirs, remote_key, remote_address, bytes) {
                    return refused(Status::RemoteAccess);
                }
                let mut at = remote_address;
                for segment in segments {
                    let length = segment.bytes as usize;
                    let (from, to) = match send.verb {
                        RawVerb::Write { .. } => (segment.address, at),
                        _ => (at, segment.address),
                    };
                    // SAFETY: both ranges are in registered regions, whose memory is kept until deregistration.
                    unsafe { copy(from, to, length) };
                    at += length;
                }
                Ran::Done
            }
            RawVerb::Send { immediate } => {
                let domain = theirs.domain;
                let Some(&(receive, buffer)) = theirs.receives.front() else {
                    return if waits { Ran::Waits } else { failed(Status::RnrRetriesExceeded) };
                };
                let covered = buffer.is_none_or(|buffer| self.covers(domain, &buffer));
                let Some(theirs) = self.queue_pairs.get_mut(&peer) else {
                    return failed(Status::RetriesExceeded);
                };
                theirs.receives.pop_front();
                if !covered {
                    theirs.complete(receive, Some(Status::LocalProtection), 0, None);
                    return refused(Status::RemoteOperation);
                }
                if bytes > buffer.map_or(0, |buffer| buffer.bytes as usize) {
                    theirs.complete(receive, Some(Status::LocalLength), 0, None);
                    return refused(Status::RemoteInvalidRequest);
                }
                let mut at = buffer.map_or(0, |buffer| buffer.address);
                for segment in segments {
                    // SAFETY: as above; the message fits into the buffer.
                    unsafe { copy(segment.address, at, segment.bytes as usize) };
                    at += segment.bytes as usize;
                }
                theirs.complete(receive, None, bytes as u32, immediate);
                Ran::Done
            }
        }
    }

    fn covers(&self, domain: u32, segment: &RawSegment) -> bool {
        self.regions.get(&segment.local_key).is_some_and(|region| {
            region.domain == domain && contains(region, segment.address, segment.bytes as usize)
        })
    }

    fn permits(&self, queue: &FakeQueue, key: u32, address: usize, bytes: usize) -> bool {
        queue.remote_access
            && self.regions.get(&key).is_some_and(|region| {
                region.remote && region.domain == queue.domain && contains(region, address, bytes)
            })
    }
}

fn contains(region: &FakeRegion, address: usize, bytes: usize) -> bool {
    let start = address.wrapping_sub(region.address);
    start.checked_add(bytes).is_some_and(|end| end <= region.bytes)
}

/// # Safety
/// Both ranges are valid; they may overlap, as on a device.
unsafe fn copy(from: usize, to: usize, bytes: usize) {
    // SAFETY: the caller's.
    unsafe { std::ptr::copy(from as *const u8, to as *mut u8, bytes) }
}
