//! A connection to a server of ours: many requests in flight, answered in any order.

use std::collections::HashMap;
use std::io::IoSliceMut;

use kvcache_core::remote::{RemoteFailure, RemoteKey, value_checksum};
use kvcache_core::ring_client::{ItemEnd, ItemResult, RequestId, RequestOp};
use kvcache_wire::extension::{
    Batch as Keys, ExistsReply, FrameHead, FrameHeader, FrameOp, GetItem, GetOutcome, GetReplies, Limits,
    Named, PutItem, Statuses, write_frame,
};
use kvcache_wire::{EncodeError, Status};

use super::fault::{Fault, FaultReason};
use super::in_buffer::{InBuffer, read_some};
use super::outgoing::Outgoing;
use super::stream::Stream;
use super::value::IncomingValue;
use super::work::{Batch, Work, matches_owner};

/// Bytes of values that one connection has been asked for or has taken and not answered, at most, whatever the server would take.
const WINDOW_BYTES: u64 = 16 << 20;

/// Requests likewise.
const WINDOW_REQUESTS: usize = 64;

/// Bytes that one system call reads: so much stays in a core's own cache until it is hashed.
const PIECE_BYTES: usize = 256 << 10;

/// Slices that one system call fills.
const SLICES: usize = 32;

/// Longest text in which a server may say what is wrong.
const REASON_BYTES_MAX: u32 = 4096;

/// Bytes of a key in a request beside the key itself, at most.
const FIELDS_BYTES: usize = 20;

pub(super) struct ExtensionSession {
    limits: Limits,
    next_id: u64,
    sent: HashMap<u64, Sent>,
    bytes_in_flight: u64,
    receiving: Option<Receiving>,
}

struct Sent {
    op: RequestOp,
    items: Vec<Work>,
    bytes: u64,
}

/// A value that follows an answer: its item's position, its length, its checksum.
type Expected = (usize, u64, Option<u64>);

/// An answer whose values are arriving.
struct Receiving {
    sent: Sent,
    expected: Vec<Expected>,
    /// The one that arrives.
    current: usize,
    value: Option<IncomingValue>,
}

impl ExtensionSession {
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, next_id: 0, sent: HashMap::new(), bytes_in_flight: 0, receiving: None }
    }

    pub(super) fn has_room(&self) -> bool {
        let requests = WINDOW_REQUESTS.min(self.limits.requests_in_flight_max as usize);
        self.sent.len() < requests
            && self.bytes_in_flight < WINDOW_BYTES.min(self.limits.bytes_in_flight_max / 2)
    }

    pub(super) fn load(&self) -> u64 {
        self.bytes_in_flight + self.sent.len() as u64
    }

    pub(super) fn owes(&self) -> bool {
        !self.sent.is_empty() || self.receiving.is_some()
    }

    /// Sends as much of `batch` as one frame holds; the rest stays in it. What the server would not take ends here.
    pub(super) fn begin(&mut self, batch: &mut Batch, outgoing: &mut Outgoing, ends: &mut Vec<ItemEnd>) {
        let items = self.take(batch, ends);
        if items.is_empty() {
            return;
        }
        self.next_id += 1;
        let wire_id = self.next_id;
        let bytes = if batch.is_small() { 0 } else { items.iter().map(|work| work.bytes as u64).sum() };
        let mut sent = Sent { op: batch.op, items, bytes };
        let mut frame = Vec::with_capacity(
            FrameHeader::BYTES + 64 + sent.items.len() * (FIELDS_BYTES + RemoteKey::NAME_BYTES),
        );
        if encode(&mut frame, wire_id, &sent).is_err() {
            // Unreachable with the limits that `take` keeps; a request that cannot be said is refused.
            let refused = ItemResult::Failed(RemoteFailure::Refused);
            ends.extend(sent.items.iter_mut().filter_map(|work| work.end(refused)));
            return;
        }
        outgoing.push_bytes(frame);
        if sent.op == RequestOp::Put {
            for (position, work) in sent.items.iter_mut().enumerate() {
                if let Some(memory) = work.memory.take() {
                    outgoing.push_value(memory, wire_id, position);
                }
            }
        }
        self.bytes_in_flight += bytes;
        self.sent.insert(wire_id, sent);
    }

    fn take(&self, batch: &mut Batch, ends: &mut Vec<ItemEnd>) -> Vec<Work> {
        let limits = &self.limits;
        let key_bytes = FIELDS_BYTES + RemoteKey::NAME_BYTES;
        let by_body = (limits.body_bytes_max as usize).saturating_sub(RemoteKey::NAME_BYTES + 8) / key_bytes;
        let count_max = by_body.min(limits.keys_max as usize);
        let mut items = Vec::with_capacity(batch.items.len().min(count_max));
        let mut bytes = 0_u64;
        let values = !batch.is_small();
        while let Some(mut work) = batch.items.pop_front() {
            let value = if values { work.bytes as u64 } else { 0 };
            if value > limits.value_bytes_max
                || value > limits.payload_bytes_max
                || RemoteKey::NAME_BYTES > limits.key_bytes_max as usize
                || count_max == 0
            {
                ends.extend(work.end(ItemResult::Failed(RemoteFailure::Refused)));
                continue;
            }
            if items.len() == count_max || bytes + value > limits.payload_bytes_max {
                batch.items.push_front(work);
                break;
            }
            bytes += value;
            items.push(work);
        }
        items
    }

    /// Nobody waits for these any more; false if the connection must end for it.
    pub(super) fn forget(&mut self, request: RequestId, item: Option<u32>, outgoing: &mut Outgoing) -> bool {
        let mut detached = true;
        let receiving = self.receiving.as_mut().map(|receiving| (0, &mut receiving.sent));
        for (wire_id, sent) in self.sent.iter_mut().map(|(id, sent)| (*id, sent)).chain(receiving) {
            for (position, work) in sent.items.iter_mut().enumerate() {
                if matches_owner(work.owner, request, item) {
                    work.owner = None;
                    work.memory = None;
                    detached &= sent.op != RequestOp::Put || outgoing.detach(wire_id, position);
                }
            }
        }
        detached
    }

    /// Reads up to about `budget` bytes; the number read, and whether there may be more.
    pub(super) fn receive(
        &mut self,
        stream: &mut Stream,
        buffer: &mut InBuffer,
        outgoing: &Outgoing,
        sink: &mut [u8],
        budget: usize,
        ends: &mut Vec<ItemEnd>,
    ) -> Result<(usize, bool), Fault> {
        let mut received = 0;
        loop {
            if let Some(receiving) = &mut self.receiving {
                receiving.take_buffered(buffer, ends);
                if receiving.is_complete() {
                    self.receiving = None;
                    continue;
                }
                if received >= budget {
                    return Ok((received, true));
                }
                match receiving.read(stream, sink, ends)? {
                    None => return Ok((received, false)),
                    Some(count) => received += count,
                }
                continue;
            }
            let wanted = match self.frame(buffer, outgoing, ends)? {
                None => continue,
                Some(wanted) => wanted,
            };
            if received >= budget {
                return Ok((received, true));
            }
            match buffer.read(stream, wanted)? {
                None => return Ok((received, false)),
                Some(count) => received += count,
            }
        }
    }

    /// Handles the frame at the start of the buffer; or says how many bytes it needs to.
    fn frame(
        &mut self,
        buffer: &mut InBuffer,
        outgoing: &Outgoing,
        ends: &mut Vec<ItemEnd>,
    ) -> Result<Option<usize>, Fault> {
        let Some(header) = buffer.peek_array::<{ FrameHeader::BYTES }>() else {
            return Ok(Some(FrameHeader::BYTES));
        };
        let header = FrameHeader::decode(&header)?;
        let id = header.head.request_id;
        let body_max = match self.sent.get(&id) {
            // The longest answer that is none of the below: a reason.
            Some(sent) => REASON_BYTES_MAX.max(8 + (GetOutcome::BYTES * sent.items.len()) as u32),
            None => REASON_BYTES_MAX,
        };
        if header.body_bytes > body_max {
            let text = format!("an answer of {} bytes where at most {body_max} are due", header.body_bytes);
            return Err(Fault::new(FaultReason::Malformed, text));
        }
        let frame_bytes = FrameHeader::BYTES + header.body_bytes as usize;
        let Some(frame) = buffer.peek(frame_bytes) else { return Ok(Some(frame_bytes)) };
        let body = &frame[FrameHeader::BYTES..];
        header.verify(body)?;
        if header.head.op == FrameOp::Close {
            let text = format!("the server ends it: {}", String::from_utf8_lossy(body).escape_debug());
            let reason = match header.head.status {
                Status::BAD_REQUEST => FaultReason::Malformed,
                _ => FaultReason::Unavailable,
            };
            return Err(Fault::new(reason, text));
        }
        // It stays among what was sent until the answer is understood: a fault must find its items there.
        let Some(sent) =
            self.sent.get_mut(&id).filter(|sent| header.head.is_answer && answers(sent, &header))
        else {
            let text = format!("an answer to request {id}, {:?}, that was not asked", header.head.op);
            return Err(Fault::new(FaultReason::Malformed, text));
        };
        if outgoing.holds(id) {
            // Its memory is still being sent; to believe the answer would be to give it back too early.
            return Err(Fault::new(FaultReason::Malformed, "an answer to a put that has not left yet"));
        }
        let expected = sent.answered(&header, body, ends)?;
        self.bytes_in_flight -= sent.bytes;
        self.receiving = self.sent.remove(&id).filter(|_| !expected.is_empty()).map(|sent| Receiving {
            sent,
            expected,
            current: 0,
            value: None,
        });
        buffer.consume(frame_bytes);
        Ok(None)
    }

    /// Ends everything that was sent and is not answered.
    pub(super) fn fail(self, failure: RemoteFailure, ends: &mut Vec<ItemEnd>) {
        let receiving = self.receiving.map(|receiving| receiving.sent);
        for mut sent in self.sent.into_values().chain(receiving) {
            let result = ItemResult::Failed(failure);
            ends.extend(sent.items.iter_mut().filter_map(|work| work.end(result)));
        }
    }
}

impl Sent {
    /// Ends what the answer settles; returns the rest, whose values follow.
    fn answered(
        &mut self,
        header: &FrameHeader,
        body: &[u8],
        ends: &mut Vec<ItemEnd>,
    ) -> Result<Vec<Expected>, Fault> {
        let count = self.items.len() as u32;
        let has_values = self.op == RequestOp::Get && header.head.status.is_ok();
        if !has_values && header.payload_bytes > 0 {
            return Err(Fault::new(FaultReason::Malformed, "an answer with values that nobody asked for"));
        }
        if !header.head.status.is_ok() {
            ends.extend(self.items.iter_mut().filter_map(|work| work.end(refusal(header.head.status))));
            return Ok(Vec::new());
        }
        let mut expected = Vec::new();
        match self.op {
            RequestOp::Exists | RequestOp::Probe => {
                let reply = ExistsReply::decode(body, false, count)?;
                for (index, work) in self.items.iter_mut().enumerate() {
                    let present = reply.is_present(index);
                    ends.extend(work.end(if present { ItemResult::Done } else { ItemResult::Missing }));
                }
            }
            RequestOp::Put | RequestOp::Delete => {
                for (status, work) in Statuses::decode(body, count)?.iter().zip(&mut self.items) {
                    ends.extend(work.end(refusal(status)));
                }
            }
            RequestOp::Get => {
                expected.reserve_exact(self.items.len());
                let replies = GetReplies::decode(body, count, header.payload_bytes)?;
                for (position, outcome) in replies.iter().enumerate() {
                    let work = &mut self.items[position];
                    if !outcome.status.is_ok() || outcome.value_bytes == 0 {
                        ends.extend(work.end(match outcome.status {
                            // Another length than was put.
                            Status::TOO_LARGE | Status::OK => ItemResult::Failed(RemoteFailure::Corrupt),
                            status => refusal(status),
                        }));
                    } else if outcome.value_bytes > work.bytes as u64 {
                        let text = format!(
                            "a value of {} bytes where at most {} were asked for",
                            outcome.value_bytes, work.bytes
                        );
                        return Err(Fault::new(FaultReason::Malformed, text));
                    } else {
                        expected.push((position, outcome.value_bytes, outcome.checksum));
                    }
                }
            }
        }
        Ok(expected)
    }
}

impl Receiving {
    fn is_complete(&self) -> bool {
        self.current == self.expected.len()
    }

    /// The value that arrives, and its item.
    fn current(&mut self) -> Option<(&mut IncomingValue, &mut Work)> {
        let (position, bytes, _) = *self.expected.get(self.current)?;
        let work = &mut self.sent.items[position];
        let value = self.value.get_or_insert_with(|| IncomingValue::new(work, bytes as usize));
        Some((value, work))
    }

    fn take_buffered(&mut self, buffer: &mut InBuffer, ends: &mut Vec<ItemEnd>) {
        while !buffer.available().is_empty()
            && let Some((value, work)) = self.current()
        {
            let taken = value.take(work, buffer.available());
            buffer.consume(taken);
            self.end_current(ends);
        }
    }

    /// Reads into as many values as one system call reaches.
    fn read(
        &mut self,
        stream: &mut Stream,
        sink: &mut [u8],
        ends: &mut Vec<ItemEnd>,
    ) -> Result<Option<usize>, Fault> {
        let read = read_some(stream, &mut self.places(sink))?;
        let Some(count) = read else { return Ok(None) };
        let mut left = count;
        while left > 0
            && let Some((value, work)) = self.current()
        {
            let part = left.min(value.left());
            value.arrived(work, part);
            left -= part;
            self.end_current(ends);
        }
        Ok(Some(count))
    }

    /// Where the next bytes go, in their order; `sink` stands for nowhere.
    fn places<'a>(&'a mut self, sink: &'a mut [u8]) -> Vec<IoSliceMut<'a>> {
        let mut places = Vec::with_capacity(SLICES);
        let mut left = PIECE_BYTES;
        let mut sink = Some(sink);
        let mut at = self.value.as_ref().map_or(0, IncomingValue::at);
        let mut expected = self.expected[self.current..].iter().peekable();
        for (position, work) in self.sent.items.iter_mut().enumerate() {
            let Some((_, bytes, _)) = expected.next_if(|(next, ..)| *next == position) else { continue };
            let wanted = (*bytes as usize - at).min(left);
            let place = match IncomingValue::place(work, *bytes as usize, at, wanted) {
                Some(place) => place,
                None => match sink.take() {
                    Some(sink) => {
                        let count = sink.len().min(wanted);
                        IoSliceMut::new(&mut sink[..count])
                    }
                    None => break,
                },
            };
            let (filled, whole) = (place.len(), place.len() == *bytes as usize - at);
            places.push(place);
            left -= filled;
            at = 0;
            if !whole || left == 0 || places.len() == SLICES {
                break;
            }
        }
        places
    }

    /// Ends the current value if all of it is there.
    fn end_current(&mut self, ends: &mut Vec<ItemEnd>) {
        let Some((position, _, checksum)) = self.expected.get(self.current).copied() else { return };
        if let Some(value) = self.value.take_if(|value| value.left() == 0) {
            ends.extend(self.sent.items[position].end(value.result(checksum)));
            self.current += 1;
        }
    }
}

fn answers(sent: &Sent, header: &FrameHeader) -> bool {
    header.head.op == frame_op(sent.op)
}

fn frame_op(op: RequestOp) -> FrameOp {
    match op {
        RequestOp::Get => FrameOp::Get,
        RequestOp::Put => FrameOp::Put,
        RequestOp::Delete => FrameOp::Delete,
        RequestOp::Exists | RequestOp::Probe => FrameOp::Exists,
    }
}

/// What a status says of an item. `OK` is its good end.
pub(crate) fn refusal(status: Status) -> ItemResult {
    match status {
        Status::OK => ItemResult::Done,
        Status::NOT_FOUND => ItemResult::Missing,
        Status::CHECKSUM_MISMATCH => ItemResult::Failed(RemoteFailure::Corrupt),
        _ => ItemResult::Failed(RemoteFailure::Refused),
    }
}

/// How much the names of these have in common: a shard's names share their space.
pub(crate) fn common_prefix(works: &[Work]) -> usize {
    match works {
        [first, rest @ ..] if rest.iter().all(|work| work.key.space == first.key.space) => 33,
        _ => 0,
    }
}

fn encode(out: &mut Vec<u8>, wire_id: u64, sent: &Sent) -> Result<(), EncodeError> {
    let op = frame_op(sent.op);
    let head = FrameHead::request(op, 0, wire_id);
    let names: Vec<[u8; RemoteKey::NAME_BYTES]> = sent.items.iter().map(|work| work.key.name()).collect();
    let common = common_prefix(&sent.items);
    let prefix = names.first().map_or(&[][..], |name| &name[..common]);
    let suffixes = names.iter().map(|name| &name[common..]);
    let payload = if sent.op == RequestOp::Put { sent.bytes } else { 0 };
    write_frame(out, head, payload, |body| match op {
        FrameOp::Get => {
            let wanted = sent.items.iter().map(|work| GetItem { value_bytes_max: work.bytes as u64 });
            Keys::encode(body, prefix, wanted.zip(suffixes))
        }
        FrameOp::Put => {
            let values = sent.items.iter().zip(&names).map(|(work, name)| {
                let value = work.memory.as_ref().map_or(&[][..], |memory| memory.read(0));
                PutItem { value_bytes: work.bytes as u64, checksum: Some(value_checksum(name, value)) }
            });
            Keys::encode(body, prefix, values.zip(suffixes))
        }
        _ => Keys::encode(body, prefix, suffixes.map(|suffix| (Named, suffix))),
    })
}
