//! Jobs between L1 and L2: a few transfers at a time, behind whatever the engine does.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::SlotMemory;
use crate::fingerprint::Namespace;
use crate::plan::{Job, JobId, JobKind};
use crate::remote::{
    RemoteEnd, RemoteFailure, RemoteKey, RemoteOp, RemoteOutcome, RemoteSpace, RemoteStore, RemoteTransfer,
};
use crate::report::{JobEnd, RemoteShard};

/// A rank's way to L2.
#[derive(Clone)]
pub struct RemoteLink {
    /// Moves the values.
    pub store: Arc<dyn RemoteStore>,
    /// The namespace of the scheduler side.
    pub namespace: Namespace,
    /// What this rank's bytes depend on.
    pub shard: crate::fingerprint::ShardFingerprint,
    /// The longest one transfer may take.
    pub patience: Duration,
    /// Values on their way at once, in each direction. Fetches take more, up to [`FETCHES_IN_FLIGHT_MAX`], where these
    /// are too few for the time from one look to the next, which is an engine's step.
    pub in_flight_max: usize,
}

/// Values on their way from L2 at once, however long steps are.
pub const FETCHES_IN_FLIGHT_MAX: usize = 1024;

/// Bandwidth is measured over at least this long, or until nothing is on its way.
const MEASURED_OVER: Duration = Duration::from_millis(100);

/// What a rank has done with L2, for metrics.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct RemoteLinkStats {
    /// Bytes that came from L2.
    pub fetched_bytes: u64,
    /// Time during which any were on their way, in nanoseconds.
    pub fetch_ns: u64,
    /// Bytes brought to L2.
    pub demoted_bytes: u64,
    /// Values that L2 was said to have and had not.
    pub missing: u64,
    /// Transfers that failed, by [`RemoteFailure`] in the order of [`RemoteFailure::ALL`].
    pub failures: [u64; RemoteFailure::ALL.len()],
    /// Blocks that were to be demoted and were not what they should be in L1.
    pub unfit: u64,
}

impl RemoteLinkStats {
    /// Grows with whatever ends.
    pub fn activity(&self) -> u64 {
        // What a rank moves is of one size: its bytes count values, but any number that grows will do.
        let moved = self.fetched_bytes.wrapping_add(self.demoted_bytes);
        moved.wrapping_add(self.missing + self.unfit + self.failures.iter().sum::<u64>())
    }
}

struct Moving {
    job: Job,
    space: RemoteSpace,
    /// The next transfer to begin.
    next: usize,
    /// Transfers that have not ended.
    left: usize,
    failed: Vec<u32>,
    cancelled: bool,
}

pub(super) struct RemoteJobs {
    link: RemoteLink,
    value_bytes: usize,
    jobs: HashMap<JobId, Moving>,
    fetches: VecDeque<JobId>,
    demotions: VecDeque<JobId>,
    in_flight: HashMap<u64, (JobId, u32)>,
    fetches_in_flight: usize,
    /// Fetches that may be on their way at once.
    pub(super) fetch_window: usize,
    next_ticket: u64,
    fetching_since: Option<Instant>,
    /// Whether something has failed since: then the time says nothing of the bandwidth.
    fetch_failed: bool,
    /// Bytes that have come since.
    unmeasured_bytes: u64,
    /// Bytes, and the nanoseconds that they took.
    unreported: (u64, u64),
    ends: Vec<RemoteEnd>,
    pub(super) stats: RemoteLinkStats,
}

impl RemoteJobs {
    pub(super) fn new(link: RemoteLink, value_bytes: usize) -> Self {
        Self {
            fetch_window: link.in_flight_max,
            link,
            value_bytes,
            jobs: HashMap::new(),
            fetches: VecDeque::new(),
            demotions: VecDeque::new(),
            in_flight: HashMap::new(),
            fetches_in_flight: 0,
            next_ticket: 0,
            fetching_since: None,
            fetch_failed: false,
            unmeasured_bytes: 0,
            unreported: (0, 0),
            ends: Vec::new(),
            stats: RemoteLinkStats::default(),
        }
    }

    pub(super) fn shard(&self) -> RemoteShard {
        RemoteShard { shard: self.link.shard, value_bytes: self.value_bytes as u64 }
    }

    /// Takes a job whose fills, if it has any, have begun.
    pub(super) fn begin(&mut self, job: Job, generation: u64) {
        let shard = self.shard();
        let space = RemoteSpace::new(&self.link.namespace, &shard.shard, shard.value_bytes, generation);
        let queue = if job.kind == JobKind::Fetch { &mut self.fetches } else { &mut self.demotions };
        queue.push_back(job.id);
        let left = job.transfers.len();
        self.jobs.insert(job.id, Moving { job, space, next: 0, left, failed: Vec::new(), cancelled: false });
    }

    /// Nobody has an interest in these jobs any more.
    pub(super) fn cancel(&mut self, ids: &[JobId]) {
        for id in ids {
            let Some(moving) = self.jobs.get_mut(id) else { continue };
            moving.cancelled = true;
            let on_the_way = self.in_flight.iter().filter(|(_, (job, _))| job == id);
            let tickets: Vec<u64> = on_the_way.map(|(ticket, _)| *ticket).collect();
            self.link.store.cancel(&tickets);
        }
    }

    pub(super) fn cancel_all(&mut self) {
        let all: Vec<JobId> = self.jobs.keys().copied().collect();
        self.cancel(&all);
    }

    /// Begins what may be begun.
    pub(super) fn submit(&mut self, memory: &dyn SlotMemory) {
        if self.fetches.is_empty() && self.demotions.is_empty() {
            return;
        }
        let mut batch = Vec::new();
        let room = self.fetch_window.saturating_sub(self.fetches_in_flight);
        let fetches = self.take(JobKind::Fetch, room, memory, &mut batch);
        self.fetches_in_flight += fetches;
        let room = self.link.in_flight_max.saturating_sub(self.in_flight.len() - self.fetches_in_flight);
        self.take(JobKind::Demote, room, memory, &mut batch);
        if fetches > 0 {
            self.fetching_since.get_or_insert_with(Instant::now);
        }
        if !batch.is_empty() {
            // SAFETY: each slot is usable memory of this rank. The Directory has given it to its fetch alone, or has pinned
            // it for its demotion, until the job has been reported, which is after the end of each transfer was polled;
            // `drain` polls them all before the memory goes.
            unsafe { self.link.store.submit(&batch, self.link.patience) };
        }
    }

    /// The next transfers of jobs of a kind, at most `room`; how many there are.
    fn take(
        &mut self,
        kind: JobKind,
        room: usize,
        memory: &dyn SlotMemory,
        batch: &mut Vec<RemoteTransfer>,
    ) -> usize {
        let before = batch.len();
        loop {
            let queue = if kind == JobKind::Fetch { &mut self.fetches } else { &mut self.demotions };
            let Some(id) = queue.front().copied() else { break };
            let Some(moving) = self.jobs.get_mut(&id) else {
                queue.pop_front();
                continue;
            };
            while batch.len() - before < room
                && let Some(transfer) = moving.job.transfers.get(moving.next)
            {
                let position = moving.next as u32;
                moving.next += 1;
                // What would be brought to L2 gets a checksum there that says it is right: so it has to be.
                let fit = kind == JobKind::Fetch || memory.may_demote(transfer.slot, &transfer.key);
                self.stats.unfit += u64::from(!fit);
                let address = memory.slot_address(transfer.slot).filter(|_| fit && !moving.cancelled);
                let Some(address) = address else {
                    moving.failed.push(position);
                    moving.left -= 1;
                    continue;
                };
                let ticket = self.next_ticket;
                self.next_ticket += 1;
                self.in_flight.insert(ticket, (id, position));
                batch.push(RemoteTransfer {
                    ticket,
                    op: if kind == JobKind::Fetch { RemoteOp::Get } else { RemoteOp::Put },
                    key: RemoteKey { space: moving.space, block: transfer.key },
                    address,
                    bytes: self.value_bytes,
                });
            }
            if moving.next < moving.job.transfers.len() {
                break;
            }
            queue.pop_front();
        }
        batch.len() - before
    }

    /// Sees what has ended without waiting; the jobs of which everything has.
    pub(super) fn collect(&mut self, memory: &dyn SlotMemory) -> Vec<JobEnd> {
        if self.jobs.is_empty() {
            return Vec::new();
        }
        if !self.in_flight.is_empty() {
            self.link.store.poll(&mut self.ends);
            let mut ends = std::mem::take(&mut self.ends);
            let was_full = self.fetches_in_flight >= self.fetch_window;
            for end in ends.drain(..) {
                self.end_transfer(end, memory);
            }
            self.ends = ends;
            if was_full && self.fetches_in_flight == 0 && !self.fetches.is_empty() {
                // Nothing was on its way any more while the engine was busy with its step.
                self.fetch_window = (self.fetch_window * 2).min(FETCHES_IN_FLIGHT_MAX.max(self.fetch_window));
            }
            self.measure();
        }
        self.submit(memory);
        let is_over = |moving: &Moving| moving.left == 0 && moving.next >= moving.job.transfers.len();
        let over: Vec<JobId> = self.jobs.iter().filter(|(_, m)| is_over(m)).map(|(id, _)| *id).collect();
        let mut ended = Vec::with_capacity(over.len());
        for id in over {
            let Some(mut moving) = self.jobs.remove(&id) else { continue };
            moving.failed.sort_unstable();
            if moving.job.kind == JobKind::Fetch {
                for position in &moving.failed {
                    let transfer = &moving.job.transfers[*position as usize];
                    memory.void(transfer.slot, transfer.fill);
                }
            }
            ended.push(JobEnd { id, ok: true, failed: moving.failed });
        }
        // The order in which a hash map gives them would make runs differ.
        ended.sort_unstable_by_key(|end| end.id);
        ended
    }

    /// Measures how fast values come.
    fn measure(&mut self) {
        let Some(since) = self.fetching_since else { return };
        // Values may have arrived long ago, while the engine was busy with its step.
        let until = self.link.store.last_arrival().unwrap_or_else(Instant::now);
        let elapsed = until.saturating_duration_since(since);
        let is_over = self.fetches_in_flight == 0;
        if !is_over && (elapsed < MEASURED_OVER || self.unmeasured_bytes == 0) {
            return;
        }
        self.fetching_since = (!is_over).then_some(until);
        let elapsed = elapsed.as_nanos() as u64;
        let bytes = std::mem::take(&mut self.unmeasured_bytes);
        self.stats.fetch_ns += elapsed;
        if !std::mem::take(&mut self.fetch_failed) {
            self.unreported = (self.unreported.0 + bytes, self.unreported.1 + elapsed);
        }
    }

    fn end_transfer(&mut self, end: RemoteEnd, memory: &dyn SlotMemory) {
        let Some((id, position)) = self.in_flight.remove(&end.ticket) else { return };
        let Some(moving) = self.jobs.get_mut(&id) else { return };
        let fetch = moving.job.kind == JobKind::Fetch;
        self.fetches_in_flight -= usize::from(fetch);
        moving.left -= 1;
        match end.outcome {
            RemoteOutcome::Done if fetch => {
                let transfer = &moving.job.transfers[position as usize];
                memory.publish(transfer.slot, transfer.fill);
                self.stats.fetched_bytes += self.value_bytes as u64;
                self.unmeasured_bytes += self.value_bytes as u64;
                return;
            }
            RemoteOutcome::Done => {
                self.stats.demoted_bytes += self.value_bytes as u64;
                return;
            }
            RemoteOutcome::Missing => self.stats.missing += 1,
            RemoteOutcome::Failed(failure) => {
                let at = RemoteFailure::ALL.iter().position(|of| *of == failure).unwrap_or(0);
                self.stats.failures[at] += 1;
                self.fetch_failed |= fetch;
                if fetch && failure == RemoteFailure::TimedOut {
                    self.fetch_window = (self.fetch_window / 2).max(self.link.in_flight_max);
                }
            }
        }
        moving.failed.push(position);
    }

    /// Jobs that have not ended.
    pub(super) fn in_flight(&self) -> usize {
        self.jobs.len()
    }

    /// Whether there are any.
    pub(super) fn is_busy(&self) -> bool {
        !self.jobs.is_empty()
    }

    /// Bytes fetched since the last call, and the nanoseconds that it took.
    pub(super) fn take_fetched(&mut self) -> (u64, u64) {
        std::mem::take(&mut self.unreported)
    }

    /// Waits until something has ended, for `timeout` at most.
    pub(super) fn wait(&self, timeout: Duration) {
        if !self.in_flight.is_empty() {
            self.link.store.wait(timeout);
        }
    }
}
