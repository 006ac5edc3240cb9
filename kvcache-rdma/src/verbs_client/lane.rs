//! The requests in flight on one queue pair, and which answer is whose.
//!
//! Answers carry no id. What is certain: a server answers successes in the order of the requests, and a refusal at the
//! latest when it would have been its turn, since it is sent when the request is read. So
//!
//! 1. as long as all answers are successes, they are those of the oldest requests: had an older one been refused, its
//!    refusal would have come before the success of any later one;
//! 2. a refusal may be of any request in flight that can be refused so (404 is of loads, 507 of stores). If these are of
//!    one unit, it is known. If not, nothing is known until all requests that are in flight at that moment have been
//!    answered. Then the units that cannot have been refused with any status that was seen have succeeded, and
//!    all others are asked again, alone.
//!
//! A server that answers strictly in order, as ours does, satisfies both.

use std::collections::{HashMap, VecDeque};
use std::time::Instant;

use kvcache_core::remote::{RemoteEnd, RemoteFailure, RemoteKey, RemoteOp, RemoteOutcome, value_checksum};
use kvcache_wire::Status;
use kvcache_wire::stock::{CHECKSUM_SUFFIX, RemoteMetaRequest, RemoteOp as WireOp};

use super::config::VerbsClientConfig;
use super::unit::Unit;
use super::words::{WORD_BYTES, Words};
use crate::verbs::{
    Access, Buffer, Completion, Error, Memory, Port, Queue, QueuePair, QueuePairConfig, Request, Work,
};

/// A queue pair with its requests. Dropping it ends all use of the values' memory.
pub(crate) struct Lane {
    // Dropped first: after it no device touches the words or the values.
    pair: QueuePair,
    buffers: Vec<Buffer>,
    words: Words,
    /// Places in `words`, a unit's worth each.
    free_places: Vec<usize>,
    running: HashMap<u64, Running>,
    next_unit: u64,
    /// Requests that were not answered, oldest first.
    unanswered: VecDeque<u64>,
    doubt: Option<Doubt>,
    /// Units to be asked (again) before new ones.
    waiting: VecDeque<Unit>,
    keys_max: usize,
    checksums: bool,
    completions: Vec<Completion>,
}

struct Running {
    unit: Unit,
    place: usize,
    /// Requests of it that were not answered: for the values, and for their checksums.
    unanswered: usize,
    refused: Option<Status>,
}

/// The time from a refusal that could be of several units to the last answer of what was in flight then.
#[derive(Default)]
struct Doubt {
    refusals: Vec<Status>,
    units: Vec<u64>,
    answers_left: usize,
}

impl Lane {
    /// A queue pair that is not connected yet, with the memory for its messages.
    pub(crate) fn new(port: &Port, config: &VerbsClientConfig) -> Result<Self, Error> {
        let units = config.requests_in_flight.max(1);
        let requests = units * if config.checksums { 2 } else { 1 };
        let pair = port.queue_pair(&QueuePairConfig {
            send_depth: requests as u32,
            receive_depth: requests as u32,
            segments_max: 1,
            remote_access: true,
            ..config.queue_pair.clone()
        })?;
        let message_bytes = config.message_bytes_max();
        let memory = Memory::allocate(message_bytes as usize * requests);
        let mut buffers = port.register(memory, Access::Local)?.into_buffers(message_bytes);
        buffers.truncate(requests.min(pair.config().send_depth.min(pair.config().receive_depth) as usize));
        Ok(Self {
            pair,
            buffers,
            words: Words::register(port, units * config.request_keys_max)?,
            free_places: (0..units).rev().collect(),
            running: HashMap::new(),
            next_unit: 0,
            unanswered: VecDeque::new(),
            doubt: None,
            waiting: VecDeque::new(),
            keys_max: config.request_keys_max,
            checksums: config.checksums,
            completions: Vec::new(),
        })
    }

    pub(crate) fn pair(&mut self) -> &mut QueuePair {
        &mut self.pair
    }

    /// Whether a new unit can be begun.
    pub(crate) fn has_room(&self) -> bool {
        self.waiting.is_empty() && self.may_begin(false)
    }

    fn may_begin(&self, alone: bool) -> bool {
        let enough = self.buffers.len() >= if self.checksums { 2 } else { 1 } && !self.free_places.is_empty();
        let lonely = self.running.values().any(|running| running.unit.alone);
        enough && self.doubt.is_none() && !lonely && (!alone || self.running.is_empty())
    }

    /// The earliest deadline of what is in flight or waits here.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let running = self.running.values().map(|running| running.unit.deadline);
        running.chain(self.waiting.iter().map(|unit| unit.deadline)).min()
    }

    /// Begins a unit for which there is room.
    ///
    /// # Errors
    /// The lane is broken. The unit is among those of [`into_units`](Self::into_units).
    pub(crate) fn begin(&mut self, unit: Unit) -> Result<(), Error> {
        self.waiting.push_back(unit);
        self.begin_waiting()
    }

    /// Takes a unit that must not be lost, shortly before the lane is taken down.
    pub(super) fn give_back(&mut self, unit: Unit) {
        self.waiting.push_back(unit);
    }

    fn begin_waiting(&mut self) -> Result<(), Error> {
        while self.waiting.front().is_some_and(|unit| self.may_begin(unit.alone)) {
            let (Some(unit), Some(place)) = (self.waiting.pop_front(), self.free_places.pop()) else { break };
            let number = self.next_unit;
            self.next_unit += 1;
            self.running.insert(number, Running { unit, place, unanswered: 0, refused: None });
            self.post(number)?;
        }
        Ok(())
    }

    fn post(&mut self, number: u64) -> Result<(), Error> {
        let Some(Running { unit, place, .. }) = self.running.get(&number) else { return Ok(()) };
        let first_word = place * self.keys_max;
        let names: Vec<[u8; NAME_BYTES]> = unit.items.iter().map(|item| item.key.name()).collect();
        let addresses: Vec<u64> = unit.items.iter().map(|item| item.address as u64).collect();
        let op = if unit.op == RemoteOp::Put { WireOp::Store } else { WireOp::Load };
        let remote_key = unit.region.as_ref().map_or(0, |region| region.remote_key());
        let mut messages = vec![encode(op, &names, &addresses, unit.value_bytes, remote_key)?];
        if self.checksums {
            if unit.op == RemoteOp::Put {
                for (index, (item, name)) in unit.items.iter().zip(&names).enumerate() {
                    // SAFETY: the caller of `submit` keeps the memory, and lets nobody write it until the put has ended.
                    let value = unsafe { value_at(item.address, unit.value_bytes) };
                    self.words.store(first_word + index, value_checksum(name, value));
                }
            }
            let names: Vec<Vec<u8>> =
                names.iter().map(|name| [&name[..], CHECKSUM_SUFFIX].concat()).collect();
            let addresses: Vec<u64> =
                (0..names.len()).map(|index| self.words.address(first_word + index)).collect();
            messages.push(encode(op, &names, &addresses, WORD_BYTES as u32, self.words.remote_key())?);
        }
        for message in messages {
            let Some(mut buffer) = self.buffers.pop() else { return Err(Error::Broken) };
            if !buffer.write(&message) {
                return Err(Error::TooLarge {
                    segments: 1,
                    bytes: message.len() as u64,
                    segments_max: 1,
                    bytes_max: buffer.capacity() as u64,
                });
            }
            // The receive for the answer comes first: the server may be faster than the second call.
            self.pair.post_receive(number, None)?;
            let work = Work::Send { message: Some(buffer), immediate: None };
            self.pair.post(vec![Request { id: number, work, signaled: true }])?;
            self.unanswered.push_back(number);
            if let Some(running) = self.running.get_mut(&number) {
                running.unanswered += 1;
            }
        }
        Ok(())
    }

    /// Takes what has completed; `true` if there was anything.
    ///
    /// # Errors
    /// The lane is broken.
    pub(crate) fn poll(&mut self, ends: &mut Vec<RemoteEnd>) -> Result<bool, Error> {
        let mut completions = std::mem::take(&mut self.completions);
        self.pair.poll(&mut completions)?;
        let any = !completions.is_empty();
        for completion in completions.drain(..) {
            if completion.result.is_err() {
                return Err(Error::Broken);
            }
            match completion.queue {
                Queue::Send => self.buffers.extend(completion.buffer),
                Queue::Receive => {
                    // An answer is a message with a number; anything else is another protocol.
                    let status = completion.immediate.ok_or(Error::Broken)?;
                    self.answered(Status(status as i32), ends)?;
                }
            }
        }
        self.completions = completions;
        if any {
            self.begin_waiting()?;
        }
        Ok(any)
    }

    fn answered(&mut self, status: Status, ends: &mut Vec<RemoteEnd>) -> Result<(), Error> {
        if let Some(doubt) = &mut self.doubt {
            if !status.is_ok() {
                doubt.refusals.push(status);
            }
            doubt.answers_left -= 1;
            if doubt.answers_left == 0 {
                self.end_doubt(ends);
            }
            return Ok(());
        }
        let owner = if status.is_ok() { self.unanswered.front().copied() } else { self.only_owner(status) };
        match owner {
            Some(number) => {
                let position = self.unanswered.iter().position(|unanswered| *unanswered == number);
                self.unanswered.remove(position.unwrap_or(0));
                self.unit_answered(number, status, ends);
                Ok(())
            }
            // Nobody asked.
            None if self.unanswered.is_empty() => Err(Error::Broken),
            None => {
                let mut units: Vec<u64> = self.unanswered.iter().copied().collect();
                units.dedup();
                let answers_left = self.unanswered.len() - 1;
                self.unanswered.clear();
                self.doubt = Some(Doubt { refusals: vec![status], units, answers_left });
                Ok(())
            }
        }
    }

    /// The unit that a refusal must be of, if there is one.
    fn only_owner(&self, status: Status) -> Option<u64> {
        let mut owners = self.unanswered.iter().copied().filter(|number| {
            self.running.get(number).is_some_and(|running| is_possible(status, running.unit.op))
        });
        let first = owners.next()?;
        owners.all(|number| number == first).then_some(first)
    }

    fn unit_answered(&mut self, number: u64, status: Status, ends: &mut Vec<RemoteEnd>) {
        let Some(running) = self.running.get_mut(&number) else { return };
        running.unanswered -= 1;
        if !status.is_ok() {
            running.refused = Some(status);
        }
        if running.unanswered > 0 {
            return;
        }
        let Some(Running { unit, place, refused, .. }) = self.running.remove(&number) else { return };
        self.free_places.push(place);
        match refused {
            None => self.end_moved(unit, place, ends),
            Some(status) => self.end_refused(unit, status, ends),
        }
    }

    /// Ends a unit whose bytes have all been moved.
    fn end_moved(&self, unit: Unit, place: usize, ends: &mut Vec<RemoteEnd>) {
        for (index, item) in unit.items.iter().enumerate() {
            let mut outcome = RemoteOutcome::Done;
            if self.checksums && unit.op == RemoteOp::Get {
                let wanted = self.words.load(place * self.keys_max + index);
                // SAFETY: the server has written it, and has said so; the caller of `submit` keeps the memory, and neither
                // reads nor writes it until the get has ended.
                let value = unsafe { value_at(item.address, unit.value_bytes) };
                if value_checksum(&item.key.name(), value) != wanted {
                    outcome = RemoteOutcome::Failed(RemoteFailure::Corrupt);
                }
            }
            ends.push(RemoteEnd { ticket: item.ticket, outcome });
        }
    }

    fn end_refused(&mut self, unit: Unit, status: Status, ends: &mut Vec<RemoteEnd>) {
        if unit.items.len() > 1 {
            // Some of its values may be fine.
            for half in unit.halves().into_iter().rev() {
                self.waiting.push_front(half);
            }
            return;
        }
        let outcome = match status {
            Status::NOT_FOUND => RemoteOutcome::Missing,
            // What is stored is longer than what was asked for.
            Status::BAD_REQUEST if unit.op == RemoteOp::Get => RemoteOutcome::Failed(RemoteFailure::Corrupt),
            _ => RemoteOutcome::Failed(RemoteFailure::Refused),
        };
        unit.end(outcome, ends);
    }

    fn end_doubt(&mut self, ends: &mut Vec<RemoteEnd>) {
        let Some(doubt) = self.doubt.take() else { return };
        for number in doubt.units.into_iter().rev() {
            let Some(Running { mut unit, place, refused, .. }) = self.running.remove(&number) else {
                continue;
            };
            self.free_places.push(place);
            match refused {
                // It was refused before the doubt began: that is known.
                Some(status) => self.end_refused(unit, status, ends),
                None if doubt.refusals.iter().any(|status| is_possible(*status, unit.op)) => {
                    unit.alone = true;
                    self.waiting.push_front(unit);
                }
                None => self.end_moved(unit, place, ends),
            }
        }
    }

    /// Takes the lane down, and gives back the units that have not ended. Their memory is out of use.
    pub(crate) fn into_units(self) -> Vec<Unit> {
        let Lane { pair, running, waiting, .. } = self;
        drop(pair);
        running.into_values().map(|running| running.unit).chain(waiting).collect()
    }
}

/// Whether a request of this kind can be refused with this status.
fn is_possible(status: Status, op: RemoteOp) -> bool {
    match status {
        Status::NOT_FOUND => op == RemoteOp::Get,
        Status::OUT_OF_MEMORY => op == RemoteOp::Put,
        _ => true,
    }
}

fn encode<K: AsRef<[u8]>>(
    op: WireOp,
    names: &[K],
    addresses: &[u64],
    bytes: u32,
    remote_key: u32,
) -> Result<Vec<u8>, Error> {
    RemoteMetaRequest::encode(op, names, addresses, bytes, remote_key)
        .map_err(|error| Error::Peer(error.to_string()))
}

/// # Safety
/// The range is valid, and nobody writes it during the borrow.
unsafe fn value_at<'a>(address: usize, bytes: u32) -> &'a [u8] {
    // SAFETY: the caller's.
    unsafe { std::slice::from_raw_parts(address as *const u8, bytes as usize) }
}

const NAME_BYTES: usize = RemoteKey::NAME_BYTES;
