//! A connection to a server of this host: requests about places in its pool, and copies from and to them.

use kvcache_core::remote::{RemoteFailure, RemoteKey};
use kvcache_core::ring_client::{ItemEnd, ItemResult, RequestId, RequestOp};
use kvcache_wire::Status;
use kvcache_wire::extension::{CommitItem, FrameHeader, FrameOp, LeasedValue, Limits};
use std::collections::{HashMap, VecDeque};

use super::copying::{Copying, Way};
use super::frames::{Asked, ITEM_BYTES_MAX, release};
use super::mapping::PoolMapping;
use super::spare_room::SpareRoom;
use crate::tcp::{Batch, Fault, FaultReason, InBuffer, Outgoing, Stream, Work, matches_owner};

/// Bytes of values that are asked for, being copied or being committed, at most.
const WINDOW_BYTES: u64 = 16 << 20;

/// Requests without an answer, at most.
const WINDOW_REQUESTS: usize = 64;

/// Longest text in which a server may say what is wrong.
const REASON_BYTES_MAX: u32 = 4096;

/// Bytes that are copied between two looks at sockets and at what else there is to do: 0.2 ms.
pub(super) const TURN_BYTES: usize = 2 << 20;

pub(crate) struct LocalSession {
    /// Before the mapping, which the copies point into.
    pub(super) copies: VecDeque<Copying>,
    pub(super) pool: PoolMapping,
    limits: Limits,
    next_id: u64,
    asked: HashMap<u64, Asked>,
    /// Values of each lease that are not copied yet.
    pub(super) leased: HashMap<u64, usize>,
    /// What can be given back.
    pub(super) released: Vec<u64>,
    /// Written, and not committed yet.
    written: (Vec<Work>, Vec<CommitItem>),
    /// Where the next values go.
    pub(super) spare: SpareRoom,
    /// Values that the server takes when it has given or got back others, and how they go.
    pub(super) later: VecDeque<(RequestOp, Work)>,
    pub(super) bytes_in_flight: u64,
}

impl LocalSession {
    /// With the pool whose descriptors came with the welcome.
    pub(crate) fn new(limits: Limits, pool: PoolMapping) -> Self {
        Self {
            copies: VecDeque::new(),
            pool,
            limits,
            next_id: 0,
            asked: HashMap::new(),
            leased: HashMap::new(),
            released: Vec::new(),
            written: Default::default(),
            spare: SpareRoom::default(),
            later: VecDeque::new(),
            bytes_in_flight: 0,
        }
    }

    pub(crate) fn has_room(&self) -> bool {
        let requests = WINDOW_REQUESTS.min(self.limits.requests_in_flight_max as usize);
        self.asked.len() + 1 < requests && self.bytes_in_flight < WINDOW_BYTES && self.later.is_empty()
    }

    pub(crate) fn load(&self) -> u64 {
        self.bytes_in_flight + self.asked.len() as u64
    }

    /// Whether the server owes an answer.
    pub(crate) fn owes(&self) -> bool {
        !self.asked.is_empty()
    }

    /// Whether there is something to copy.
    pub(crate) fn is_copying(&self) -> bool {
        !self.copies.is_empty()
    }

    /// Asks for as much of `batch` as one frame holds; the rest stays in it. What the server would not take ends here.
    pub(crate) fn begin(&mut self, batch: &mut Batch, outgoing: &mut Outgoing, ends: &mut Vec<ItemEnd>) {
        let limits = &self.limits;
        let by_body =
            (limits.body_bytes_max as usize).saturating_sub(RemoteKey::NAME_BYTES + 8) / ITEM_BYTES_MAX;
        let count_max = by_body.min(limits.keys_max as usize);
        let moves = !batch.is_small();
        let mut works = Vec::with_capacity(batch.items.len().min(count_max));
        while works.len() < count_max.max(1)
            && let Some(mut work) = batch.items.pop_front()
        {
            let is_too_long = moves && work.bytes as u64 > limits.value_bytes_max;
            if is_too_long || RemoteKey::NAME_BYTES > limits.key_bytes_max as usize || count_max == 0 {
                ends.extend(work.end(ItemResult::Failed(RemoteFailure::Refused)));
                continue;
            }
            if moves {
                self.bytes_in_flight += work.bytes as u64;
            }
            if batch.op == RequestOp::Put
                && let Some(spare) = self.spare.take(work.bytes)
                && let Some(to) = self.pool.to_write(spare.offset_bytes, spare.bytes)
            {
                self.copies.push_back(Copying::new(work, spare.lease, Way::Put(to)));
                continue;
            }
            works.push(work);
        }
        self.ask(batch.op, works, outgoing);
    }

    fn ask(&mut self, op: RequestOp, works: Vec<Work>, outgoing: &mut Outgoing) {
        if works.is_empty() {
            return;
        }
        let asked = match op {
            RequestOp::Get => Asked::Lease(works),
            RequestOp::Put => Asked::Reserve(works),
            RequestOp::Exists | RequestOp::Probe => Asked::Exists(works),
            RequestOp::Delete => Asked::Delete(works),
        };
        self.send(asked, outgoing);
    }

    /// Room for values that are still to come, as long as these, if there should be more than there is: how many, and how
    /// long.
    fn spare_after(&mut self, works: &[Work]) -> Option<Asked> {
        let bytes = works.last()?.bytes;
        self.released.extend(self.spare.give_up_others(bytes));
        let alike = works.iter().filter(|work| work.bytes == bytes).count();
        let count = if self.later.is_empty() { self.spare.wanted(alike, bytes) } else { 0 };
        (count > 0).then_some(Asked::Spare(count, bytes))
    }

    /// Whether it holds room for nobody.
    pub(crate) fn holds_spare(&self) -> bool {
        !self.spare.is_empty()
    }

    /// Nothing was put for a while: room for nobody is given back.
    pub(crate) fn rest(&mut self, outgoing: &mut Outgoing) {
        self.released.extend(self.spare.give_up());
        self.give_back(outgoing);
    }

    fn send(&mut self, asked: Asked, outgoing: &mut Outgoing) {
        self.next_id += 1;
        // Below the server's limits, and so below those of frames; nothing at all would be answered by an error.
        outgoing.push_bytes(asked.encode(self.next_id).unwrap_or_default());
        self.asked.insert(self.next_id, asked);
    }

    /// Nobody waits for these any more: their memory is out of use when this returns.
    pub(crate) fn forget(&mut self, request: RequestId, item: Option<u32>, outgoing: &mut Outgoing) {
        let wanted = |work: &Work| matches_owner(work.owner, request, item);
        let asked = self.asked.values_mut().flat_map(Asked::works_mut);
        for work in asked.chain(&mut self.written.0).filter(|work| wanted(work)) {
            work.owner = None;
            work.memory = None;
        }
        for (op, work) in std::mem::take(&mut self.later) {
            if wanted(&work) {
                self.bytes_in_flight -= work.bytes as u64;
            } else {
                self.later.push_back((op, work));
            }
        }
        for copying in std::mem::take(&mut self.copies) {
            if !wanted(&copying.work) {
                self.copies.push_back(copying);
                continue;
            }
            self.bytes_in_flight -= copying.work.bytes as u64;
            match copying.way {
                Way::Get(..) => self.copied_from(copying.lease),
                Way::Put(_) => self.released.push(copying.lease),
            }
        }
        // What is written already may have waited for these.
        if self.copies.is_empty() {
            self.commit(outgoing);
        }
        self.give_back(outgoing);
    }

    /// Copies a piece, and asks for what follows from that; the bytes copied.
    pub(crate) fn copy(&mut self, outgoing: &mut Outgoing, ends: &mut Vec<ItemEnd>) -> usize {
        let mut budget = TURN_BYTES;
        while budget > 0
            && let Some(mut copying) = self.copies.pop_front()
        {
            let before = copying.copy.left();
            copying.step(budget);
            budget = budget.saturating_sub(before - copying.copy.left());
            if copying.copy.left() > 0 {
                self.copies.push_front(copying);
                break;
            }
            self.copied(copying, ends);
        }
        let written: usize = self.written.0.iter().map(|work| work.bytes).sum();
        if self.copies.is_empty() || self.written.0.len() >= COMMIT_ITEMS || written >= COMMIT_BYTES {
            self.commit(outgoing);
        }
        self.give_back(outgoing);
        TURN_BYTES - budget
    }

    fn copied(&mut self, copying: Copying, ends: &mut Vec<ItemEnd>) {
        let Copying { mut work, copy, lease, way } = copying;
        match way {
            Way::Get(_, checksum) => {
                self.bytes_in_flight -= work.bytes as u64;
                self.copied_from(lease);
                let is_good = checksum == Some(copy.checksum());
                let corrupt = ItemResult::Failed(RemoteFailure::Corrupt);
                ends.extend(work.end(if is_good { ItemResult::Done } else { corrupt }));
            }
            Way::Put(_) => {
                work.memory = None;
                self.written.0.push(work);
                self.written.1.push(CommitItem { lease, checksum: copy.checksum() });
            }
        }
    }

    /// One value less of a lease is needed.
    pub(super) fn copied_from(&mut self, lease: u64) {
        if let Some(left) = self.leased.get_mut(&lease) {
            *left -= 1;
            if *left == 0 {
                self.leased.remove(&lease);
                self.released.push(lease);
            }
        }
    }

    fn commit(&mut self, outgoing: &mut Outgoing) {
        if !self.written.0.is_empty() {
            let (works, items) = std::mem::take(&mut self.written);
            let spare = self.spare_after(&works);
            self.send(Asked::Commit(works, items), outgoing);
            if let Some(spare) = spare {
                self.send(spare, outgoing);
            }
        }
    }

    fn give_back(&mut self, outgoing: &mut Outgoing) {
        if !self.later.is_empty() {
            self.released.extend(self.spare.give_up());
        }
        if !self.released.is_empty() {
            self.next_id += 1;
            outgoing.push_bytes(release(self.next_id, &self.released));
            self.released.clear();
        }
        // One at a time, when nothing else is held: then the server has room for it, or never.
        if self.asked.is_empty()
            && self.copies.is_empty()
            && self.written.0.is_empty()
            && let Some((op, work)) = self.later.pop_front()
        {
            self.ask(op, vec![work], outgoing);
        }
    }

    /// Reads up to about `budget` bytes; the number read, and whether there may be more.
    pub(crate) fn receive(
        &mut self,
        stream: &mut Stream,
        buffer: &mut InBuffer,
        outgoing: &mut Outgoing,
        budget: usize,
        ends: &mut Vec<ItemEnd>,
    ) -> Result<(usize, bool), Fault> {
        let mut received = 0;
        loop {
            let Some(wanted) = self.frame(buffer, outgoing, ends)? else { continue };
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
        outgoing: &mut Outgoing,
        ends: &mut Vec<ItemEnd>,
    ) -> Result<Option<usize>, Fault> {
        let Some(header) = buffer.peek_array::<{ FrameHeader::BYTES }>() else {
            return Ok(Some(FrameHeader::BYTES));
        };
        let header = FrameHeader::decode(&header)?;
        let id = header.head.request_id;
        let count = self.asked.get(&id).map_or(0, Asked::count);
        let body_max = REASON_BYTES_MAX.max(12 + (LeasedValue::BYTES * count) as u32);
        if header.body_bytes > body_max || header.payload_bytes > 0 {
            let (body, payload) = (header.body_bytes, header.payload_bytes);
            let text = format!("an answer of {body} and {payload} bytes where at most {body_max} are due");
            return Err(Fault::new(FaultReason::Malformed, text));
        }
        let frame_bytes = FrameHeader::BYTES + header.body_bytes as usize;
        let Some(frame) = buffer.peek(frame_bytes) else { return Ok(Some(frame_bytes)) };
        let body = &frame[FrameHeader::BYTES..];
        header.verify(body)?;
        if header.head.op == FrameOp::Close {
            let text = format!("the server ends it: {}", String::from_utf8_lossy(body).escape_debug());
            let is_ours = header.head.status == Status::BAD_REQUEST;
            let reason = if is_ours { FaultReason::Malformed } else { FaultReason::Unavailable };
            return Err(Fault::new(reason, text));
        }
        let is_answer = |asked: &Asked| header.head.is_answer && header.head.op == asked.op();
        let Some(asked) =
            self.asked.get(&id).is_some_and(is_answer).then(|| self.asked.remove(&id)).flatten()
        else {
            let text = format!("an answer to request {id}, {:?}, that was not asked", header.head.op);
            return Err(Fault::new(FaultReason::Malformed, text));
        };
        let answered = self.answered(asked, header.head.status, body, ends);
        buffer.consume(frame_bytes);
        answered?;
        self.give_back(outgoing);
        Ok(None)
    }

    /// Ends everything that has not ended.
    pub(crate) fn fail(mut self, failure: RemoteFailure, ends: &mut Vec<ItemEnd>) {
        let asked = self.asked.values_mut().flat_map(Asked::works_mut);
        let copies = self.copies.iter_mut().map(|copying| &mut copying.work);
        let later = self.later.iter_mut().map(|(_, work)| work);
        for work in asked.chain(copies).chain(later).chain(&mut self.written.0) {
            ends.extend(work.end(ItemResult::Failed(failure)));
        }
    }
}

/// Values that are committed together, at most: the first of a long batch need not wait for the last.
const COMMIT_ITEMS: usize = 64;

/// Bytes of them, about: the server answers, and finds room for more, while the next are copied.
const COMMIT_BYTES: usize = 4 << 20;
