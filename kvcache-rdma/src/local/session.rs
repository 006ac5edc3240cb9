//! A connection to a server of this host: requests about places in its pool, and copies from and to them.

use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;

use kvcache_core::copy_engine::checked_copy::CheckedCopy;
use kvcache_core::remote::{RemoteFailure, RemoteKey};
use kvcache_core::ring_client::{ItemEnd, ItemResult, RequestId, RequestOp};
use kvcache_wire::Status;
use kvcache_wire::extension::{
    CommitItem, ExistsReply, FrameHeader, FrameOp, LeasedRoom, LeasedRooms, LeasedValue, LeasedValues,
    Limits, Statuses,
};

use super::frames::{Asked, ITEM_BYTES_MAX, release};
use super::mapping::PoolMapping;
use crate::tcp::{Batch, Fault, FaultReason, InBuffer, Outgoing, Stream, Work, matches_owner, refusal};

/// Bytes of values that are asked for, being copied or being committed, at most.
const WINDOW_BYTES: u64 = 16 << 20;

/// Requests without an answer, at most.
const WINDOW_REQUESTS: usize = 64;

/// Longest text in which a server may say what is wrong.
const REASON_BYTES_MAX: u32 = 4096;

/// Bytes that are copied between two looks at sockets and at what else there is to do.
const TURN_BYTES: usize = 1 << 20;

pub(crate) struct LocalSession {
    /// Before the mapping, which the copies point into.
    copies: VecDeque<Copying>,
    pool: Pool,
    limits: Limits,
    next_id: u64,
    asked: HashMap<u64, Asked>,
    /// Values of each lease that are not copied yet.
    leased: HashMap<u64, usize>,
    /// What can be given back.
    released: Vec<u64>,
    /// Written, and not committed yet.
    written: (Vec<Work>, Vec<CommitItem>),
    /// Values that the server takes when it has given or got back others, and how they go.
    later: VecDeque<(RequestOp, Work)>,
    bytes_in_flight: u64,
}

/// The pool is mapped when a value is first asked for: who asks for presence alone never does.
enum Pool {
    Unmapped([OwnedFd; 2]),
    Mapped(PoolMapping),
    Failed,
}

struct Copying {
    work: Work,
    copy: CheckedCopy,
    lease: u64,
    way: Way,
}

#[derive(Clone, Copy)]
enum Way {
    /// From the pool; what was stored has this checksum.
    Get(*const u8, Option<u64>),
    /// To the pool.
    Put(*mut u8),
}

// SAFETY: the addresses lie in the session's own mapping, which moves between threads with it.
unsafe impl Send for Copying {}

impl LocalSession {
    /// With the descriptors that came with the welcome.
    pub(crate) fn new(limits: Limits, descriptors: [OwnedFd; 2]) -> Self {
        Self {
            copies: VecDeque::new(),
            pool: Pool::Unmapped(descriptors),
            limits,
            next_id: 0,
            asked: HashMap::new(),
            leased: HashMap::new(),
            released: Vec::new(),
            written: Default::default(),
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

    fn send(&mut self, asked: Asked, outgoing: &mut Outgoing) {
        self.next_id += 1;
        // Below the server's limits, and so below those of frames; nothing at all would be answered by an error.
        outgoing.push_bytes(asked.encode(self.next_id).unwrap_or_default());
        self.asked.insert(self.next_id, asked);
    }

    /// Nobody waits for these any more: their memory is out of use when this returns.
    pub(crate) fn forget(&mut self, request: RequestId, item: Option<u32>, outgoing: &mut Outgoing) {
        let wanted = |work: &Work| matches_owner(work.owner, request, item);
        let asked = self.asked.values_mut().flat_map(|asked| asked.works().iter_mut());
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
        if self.copies.is_empty() || self.written.0.len() >= COMMIT_ITEMS {
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
    fn copied_from(&mut self, lease: u64) {
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
            self.send(Asked::Commit(works, items), outgoing);
        }
    }

    fn give_back(&mut self, outgoing: &mut Outgoing) {
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
        let works = self.asked.get_mut(&id).map_or(0, |asked| asked.works().len());
        let body_max = REASON_BYTES_MAX.max(12 + (LeasedValue::BYTES * works) as u32);
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
        let is_answer = |asked: &mut Asked| header.head.is_answer && header.head.op == asked.op();
        let Some(asked) =
            self.asked.get_mut(&id).is_some_and(is_answer).then(|| self.asked.remove(&id)).flatten()
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

    fn answered(
        &mut self,
        asked: Asked,
        status: Status,
        body: &[u8],
        ends: &mut Vec<ItemEnd>,
    ) -> Result<(), Fault> {
        let moves = !matches!(asked, Asked::Exists(_) | Asked::Delete(_));
        match asked {
            _ if !status.is_ok() => {
                let mut asked = asked;
                for mut work in std::mem::take(asked.works()) {
                    self.end(&mut work, moves, refusal(status), ends);
                }
            }
            Asked::Lease(works) => {
                let leased = match LeasedValues::decode(body, works.len() as u32) {
                    Ok(leased) => leased,
                    Err(error) => return self.end_all(works, error.into(), ends),
                };
                let pinned = leased.iter().filter(|value| value.status.is_ok()).count();
                if pinned > 0 {
                    self.leased.insert(leased.lease, pinned);
                }
                let mut result = Ok(());
                for (value, work) in leased.iter().zip(works) {
                    result = result.and(self.leased_value(leased.lease, value, work, ends));
                }
                result?;
            }
            Asked::Reserve(works) => {
                let rooms = match LeasedRooms::decode(body, works.len() as u32) {
                    Ok(rooms) => rooms,
                    Err(error) => return self.end_all(works, error.into(), ends),
                };
                let mut result = Ok(());
                for (room, work) in rooms.iter().zip(works) {
                    result = result.and(self.leased_room(room, work, ends));
                }
                result?;
            }
            Asked::Commit(works, _) | Asked::Delete(works) => {
                let statuses = match Statuses::decode(body, works.len() as u32) {
                    Ok(statuses) => statuses,
                    Err(error) => return self.end_all(works, error.into(), ends),
                };
                for (status, mut work) in statuses.iter().zip(works) {
                    self.end(&mut work, moves, refusal(status), ends);
                }
            }
            Asked::Exists(works) => {
                let reply = match ExistsReply::decode(body, false, works.len() as u32) {
                    Ok(reply) => reply,
                    Err(error) => return self.end_all(works, error.into(), ends),
                };
                for (index, mut work) in works.into_iter().enumerate() {
                    let present = reply.is_present(index);
                    self.end(
                        &mut work,
                        false,
                        if present { ItemResult::Done } else { ItemResult::Missing },
                        ends,
                    );
                }
            }
        }
        Ok(())
    }

    fn leased_value(
        &mut self,
        lease: u64,
        value: LeasedValue,
        mut work: Work,
        ends: &mut Vec<ItemEnd>,
    ) -> Result<(), Fault> {
        let corrupt = ItemResult::Failed(RemoteFailure::Corrupt);
        match value.status {
            Status::OK => {
                if work.memory.is_some() && value.value_bytes == work.bytes as u64 {
                    let (at, bytes) = (value.offset_bytes, work.bytes);
                    let from = self
                        .pool()
                        .and_then(|pool| pool.to_read(at, bytes).ok_or_else(|| outside(at, bytes)));
                    match from {
                        Ok(from) => {
                            let way = Way::Get(from, value.checksum);
                            self.copies.push_back(Copying::new(work, lease, way));
                        }
                        Err(fault) => return self.end_all(vec![work], fault, ends),
                    }
                } else {
                    self.copied_from(lease);
                    self.end(&mut work, true, corrupt, ends);
                }
            }
            // Another length than was put.
            Status::TOO_LARGE => self.end(&mut work, true, corrupt, ends),
            Status::RETRY => self.later.push_back((RequestOp::Get, work)),
            status => self.end(&mut work, true, refusal(status), ends),
        }
        Ok(())
    }

    fn leased_room(
        &mut self,
        room: LeasedRoom,
        mut work: Work,
        ends: &mut Vec<ItemEnd>,
    ) -> Result<(), Fault> {
        match room.status {
            Status::OK if work.memory.is_some() => {
                let (at, bytes) = (room.offset_bytes, work.bytes);
                let to =
                    self.pool().and_then(|pool| pool.to_write(at, bytes).ok_or_else(|| outside(at, bytes)));
                match to {
                    Ok(to) => self.copies.push_back(Copying::new(work, room.lease, Way::Put(to))),
                    Err(fault) => return self.end_all(vec![work], fault, ends),
                }
            }
            // Nobody waits for it any more.
            Status::OK => {
                self.released.push(room.lease);
                self.bytes_in_flight -= work.bytes as u64;
            }
            Status::RETRY => self.later.push_back((RequestOp::Put, work)),
            status => self.end(&mut work, true, refusal(status), ends),
        }
        Ok(())
    }

    fn end(&mut self, work: &mut Work, moves: bool, result: ItemResult, ends: &mut Vec<ItemEnd>) {
        if moves {
            self.bytes_in_flight -= work.bytes as u64;
        }
        ends.extend(work.end(result));
    }

    /// Ends works whose answer cannot be read; the connection ends with them.
    fn end_all(&mut self, works: Vec<Work>, fault: Fault, ends: &mut Vec<ItemEnd>) -> Result<(), Fault> {
        for mut work in works {
            ends.extend(work.end(ItemResult::Failed(RemoteFailure::Unreachable)));
        }
        Err(fault)
    }

    fn pool(&mut self) -> Result<&PoolMapping, Fault> {
        if let Pool::Unmapped(_) = self.pool
            && let Pool::Unmapped(descriptors) = std::mem::replace(&mut self.pool, Pool::Failed)
        {
            let fault = |error: std::io::Error| {
                Fault::new(FaultReason::Malformed, format!("the server's pool cannot be mapped: {error}"))
            };
            self.pool = Pool::Mapped(PoolMapping::new(descriptors).map_err(fault)?);
        }
        match &self.pool {
            Pool::Mapped(mapping) => Ok(mapping),
            _ => Err(Fault::new(FaultReason::Malformed, "the server's pool is not mapped")),
        }
    }

    /// Ends everything that has not ended.
    pub(crate) fn fail(mut self, failure: RemoteFailure, ends: &mut Vec<ItemEnd>) {
        let asked = self.asked.values_mut().flat_map(|asked| asked.works().iter_mut());
        let copies = self.copies.iter_mut().map(|copying| &mut copying.work);
        let later = self.later.iter_mut().map(|(_, work)| work);
        for work in asked.chain(copies).chain(later).chain(&mut self.written.0) {
            ends.extend(work.end(ItemResult::Failed(failure)));
        }
    }
}

/// Values that are committed together, at most: the first of a long batch need not wait for the last.
const COMMIT_ITEMS: usize = 64;

fn outside(offset: u64, bytes: usize) -> Fault {
    let text = format!("{bytes} bytes at {offset} are outside of the server's pool");
    Fault::new(FaultReason::Malformed, text)
}

impl Copying {
    fn new(work: Work, lease: u64, way: Way) -> Self {
        let copy = CheckedCopy::new(&work.key.name(), work.bytes);
        Self { work, copy, lease, way }
    }

    /// Copies at most about `bytes_max` bytes more.
    fn step(&mut self, bytes_max: usize) {
        let bytes = self.work.bytes;
        let Some(memory) = self.work.memory.as_mut() else { return };
        // SAFETY: the slot has `bytes` bytes, as `Memory` was promised, and so has the place in the pool, as was checked
        // when its address was made. The mapping lives as long as the session, whose copies these are. From the pool
        // others' writes are no harm, as the copy says; to the pool, room belongs to the connection until it is
        // committed or released, both of which come after the copy.
        unsafe {
            match self.way {
                Way::Get(from, _) => self.copy.step(from, memory.write(0, bytes).as_mut_ptr(), bytes_max),
                Way::Put(to) => self.copy.step(memory.read(0).as_ptr(), to, bytes_max),
            }
        }
    }
}
