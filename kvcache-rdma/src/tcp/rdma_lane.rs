//! One queue pair to a server, and the values that travel over it.

use std::collections::{HashMap, HashSet};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use kvcache_core::remote::{RemoteEnd, RemoteFailure, RemoteOp, RemoteOutcome};
use kvcache_core::ring_client::{ItemEnd, ItemResult, RequestId, RequestOp};
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};

use super::connection::Turn;
use super::fault::{Fault, FaultReason};
use super::work::{Batch, Work, matches_owner};
use crate::rdma::{Device, ItemMemory, ReadyLane};
use crate::verbs::Error;
use crate::verbs_client::{Item, Unit, VerbsClientConfig};

/// A transfer that nobody waits for any more, on a lane where nothing has ended since: after so long the queue pair goes.
const FORGOTTEN_MAX: Duration = Duration::from_millis(250);

/// Looks for completions in a row, while others may wait.
const ROUNDS_MAX: usize = 16;

/// Values have 31-bit lengths on the wire.
const VALUE_BYTES_MAX: usize = i32::MAX as usize;

/// The memory of a value that has been posted is in use until its end, whoever has given it up: an answer may still come,
/// and bytes with it. It ends with its answer, or with the lane.
pub(super) struct RdmaLane {
    ready: ReadyLane,
    /// By the ticket that the lane knows them by.
    works: HashMap<u64, Work>,
    next_ticket: u64,
    /// When anything last ended, or work was given to an idle lane.
    heard: Duration,
    /// Whether anything ever has.
    was_heard: bool,
    /// Tickets of what nobody waits for any more and is in use nevertheless, and since when there is any.
    forgotten: HashSet<u64>,
    forgotten_since: Duration,
    // Reused between calls.
    remote_ends: Vec<RemoteEnd>,
}

impl RdmaLane {
    /// Takes over a lane, whose events come under these tokens: the queue pair's, and that of its TCP connection.
    pub(super) fn open(
        mut ready: ReadyLane,
        registry: &Registry,
        tokens: [Token; 2],
        now: Duration,
    ) -> Result<Self, Fault> {
        let fd = ready.lane.pair().event_fd().as_raw_fd();
        registry.register(&mut SourceFd(&fd), tokens[0], Interest::READABLE)?;
        registry.register(&mut ready.control, tokens[1], Interest::READABLE)?;
        Ok(Self {
            ready,
            works: HashMap::new(),
            next_ticket: 0,
            heard: now,
            was_heard: false,
            forgotten: HashSet::new(),
            forgotten_since: now,
            remote_ends: Vec::new(),
        })
    }

    pub(super) fn has_room(&self) -> bool {
        self.ready.lane.has_room()
    }

    pub(super) fn owes(&self) -> bool {
        !self.works.is_empty()
    }

    pub(super) fn load(&self) -> usize {
        self.works.len()
    }

    pub(super) fn was_heard(&self) -> bool {
        self.was_heard
    }

    /// Sends what there is room for; the rest stays in `batch`. What cannot be moved ends here.
    pub(super) fn begin(
        &mut self,
        batch: &mut Batch,
        device: &Device,
        config: &VerbsClientConfig,
        now: Duration,
        ends: &mut Vec<ItemEnd>,
    ) -> Result<(), Fault> {
        while self.has_room()
            && let Some(unit) = self.unit(batch, device, config, ends)
        {
            if self.works.len() == unit.items.len() {
                self.heard = now;
            }
            self.ready.lane.begin(unit).map_err(broken)?;
        }
        Ok(())
    }

    /// Values of one length and one region from the front of `batch`, which are in use from now on.
    fn unit(
        &mut self,
        batch: &mut Batch,
        device: &Device,
        config: &VerbsClientConfig,
        ends: &mut Vec<ItemEnd>,
    ) -> Option<Unit> {
        let op = if batch.op == RequestOp::Put { RemoteOp::Put } else { RemoteOp::Get };
        loop {
            let first = memory_of(batch.items.front()?);
            let registered = first.and_then(|first| device.region_of(first));
            let fits = |(index, work): (usize, &Work)| {
                let (Some(first), Some(memory)) = (first, memory_of(work)) else { return false };
                let has_room =
                    index < config.request_keys_max && (index + 1) * first.bytes <= config.request_bytes_max;
                let lies_there = match &registered {
                    Some(region) => region.slice_at(memory.address, memory.bytes).is_ok(),
                    // One region for a row of values: what a caller's buffer is.
                    None => memory.address == first.address + index * first.bytes,
                };
                index == 0 || (has_room && memory.bytes == first.bytes && lies_there)
            };
            let count = batch.items.iter().enumerate().take_while(|entry| fits(*entry)).count().max(1);
            let region = match (first, registered) {
                (_, Some(region)) => Some(region),
                (Some(ItemMemory { address, bytes }), None) => {
                    let row = ItemMemory { address, bytes: bytes * count };
                    // SAFETY: the memory of works is mapped until their ends are reported. The region is the unit's, which
                    // the lane drops before it tells the ends of its items, or with itself after the queue pair.
                    unsafe { device.register_for_request(row) }
                }
                (None, None) => None,
            };
            let mut works: Vec<Work> = batch.items.drain(..count).collect();
            let (Some(ItemMemory { bytes, .. }), Some(region)) = (first, region) else {
                let refused = ItemResult::Failed(RemoteFailure::Refused);
                ends.extend(works.iter_mut().filter_map(|work| work.end(refused)));
                continue;
            };
            let items = works.into_iter().map(|work| self.item(work)).collect();
            return Some(Unit {
                op,
                items,
                value_bytes: bytes as u32,
                region: Some(region),
                // The client of the ring watches the time.
                deadline: Instant::now() + Duration::from_secs(86_400),
                retried: false,
                alone: false,
            });
        }
    }

    fn item(&mut self, work: Work) -> Item {
        self.next_ticket += 1;
        let address = work.memory.as_ref().map_or(0, |memory| memory.address());
        let item = Item { ticket: self.next_ticket, key: work.key, address };
        self.works.insert(self.next_ticket, work);
        item
    }

    /// Takes what has ended. After a fault the lane must be closed.
    pub(super) fn turn(&mut self, now: Duration, ends: &mut Vec<ItemEnd>) -> Result<Turn, Fault> {
        // Completions of what we send are the work of devices: only an answer says that the server lives.
        let left = self.works.len();
        let mut again = true;
        for _ in 0..ROUNDS_MAX {
            if self.poll(ends)? {
                continue;
            }
            self.ready.lane.pair().arm().map_err(broken)?;
            // What has completed before that makes no event.
            if !self.poll(ends)? {
                again = false;
                break;
            }
        }
        let heard = self.works.len() < left;
        self.note(heard, now);
        Ok(Turn { heard, again })
    }

    /// Whether anything had completed.
    fn poll(&mut self, ends: &mut Vec<ItemEnd>) -> Result<bool, Fault> {
        let polled = self.ready.lane.poll(&mut self.remote_ends);
        for RemoteEnd { ticket, outcome } in self.remote_ends.drain(..) {
            self.forgotten.remove(&ticket);
            if let Some(mut work) = self.works.remove(&ticket) {
                ends.extend(work.end(result_of(outcome)));
            }
        }
        polled.map_err(broken)
    }

    fn note(&mut self, heard: bool, now: Duration) {
        if heard {
            self.heard = now;
            self.was_heard = true;
        }
    }

    /// Whether the server has ended the TCP connection, and with it the queue pair. It says nothing there otherwise.
    pub(super) fn is_ended_by_peer(&mut self) -> bool {
        use std::io::{ErrorKind, Read};
        !matches!(self.ready.control.read(&mut [0; 64]), Err(error) if matches!(
            error.kind(),
            ErrorKind::WouldBlock | ErrorKind::Interrupted
        ))
    }

    /// Nobody waits for these any more; those whose memory is in use, by position.
    pub(super) fn forget(&mut self, request: RequestId, item: Option<u32>, now: Duration) -> Vec<u32> {
        if self.forgotten.is_empty() {
            self.forgotten_since = now;
        }
        let owned = self.works.iter().filter_map(|(ticket, work)| Some((ticket, work.owner?)));
        let given_up = owned.filter(|(_, owner)| matches_owner(Some(*owner), request, item));
        let mut in_use = Vec::new();
        for (ticket, (_, position)) in given_up {
            self.forgotten.insert(*ticket);
            in_use.push(position);
        }
        in_use
    }

    /// What is wrong with it if nothing ends for too long.
    pub(super) fn check(&self, silence_max: Duration, now: Duration) -> Result<(), Fault> {
        if !self.owes() {
            return Ok(());
        }
        let forgotten =
            (!self.forgotten.is_empty()).then(|| now.saturating_sub(self.forgotten_since.max(self.heard)));
        let silent = now.saturating_sub(self.heard);
        let limit = match forgotten {
            Some(time) if time >= FORGOTTEN_MAX => FORGOTTEN_MAX,
            _ if silent >= silence_max => silence_max,
            _ => return Ok(()),
        };
        Err(Fault::new(FaultReason::Stalled, format!("no transfer ended for {} ms", limit.as_millis())))
    }

    /// Destroys the queue pair, after which no device touches the values' memory for it, and ends what it carries.
    pub(super) fn close(self, failure: RemoteFailure, ends: &mut Vec<ItemEnd>) {
        let Self { ready, works, .. } = self;
        let ReadyLane { lane, control } = ready;
        drop((lane, control));
        let failed = ItemResult::Failed(failure);
        ends.extend(works.into_values().filter_map(|mut work| work.end(failed)));
    }
}

/// Where a value lies, if it can travel.
fn memory_of(work: &Work) -> Option<ItemMemory> {
    let memory = work.memory.as_ref().filter(|memory| (1..=VALUE_BYTES_MAX).contains(&memory.bytes()))?;
    Some(ItemMemory { address: memory.address(), bytes: memory.bytes() })
}

fn result_of(outcome: RemoteOutcome) -> ItemResult {
    match outcome {
        RemoteOutcome::Done => ItemResult::Done,
        RemoteOutcome::Missing => ItemResult::Missing,
        RemoteOutcome::Failed(failure) => ItemResult::Failed(failure),
    }
}

fn broken(error: Error) -> Fault {
    Fault::new(FaultReason::Lost, format!("the queue pair broke: {error}"))
}
