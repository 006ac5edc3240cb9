//! A connection to a server that speaks InfiniStore's protocol alone: one operation on one value at a time.
//!
//! That protocol has no checksums, so ours follows the value as a trailer and is part of what the server stores.

use std::io::IoSliceMut;

use kvcache_core::remote::{RemoteFailure, value_checksum};
use kvcache_core::ring_client::{ItemEnd, ItemResult, RequestId, RequestOp};
use kvcache_wire::Status;
use kvcache_wire::stock::{
    CHECKSUM_SUFFIX, GetReply, Header, Op, PayloadOp, STATUS_BYTES, TcpPayloadRequest, encode_keys,
    exists_from_reply, status_from_reply,
};

use super::extension::refusal;
use super::fault::{Fault, FaultReason};
use super::in_buffer::{InBuffer, read_some};
use super::outgoing::Outgoing;
use super::stream::Stream;
use super::value::IncomingValue;
use super::work::{Batch, Work, matches_owner};

/// What follows a value: eight bytes that say so, eight of checksum.
pub(super) const TRAILER_BYTES: usize = 16;
const TRAILER_MAGIC: [u8; 8] = *b"KVCsum1\0";

/// Bytes that one system call reads, as in the extension.
const PIECE_BYTES: usize = 256 << 10;

/// The one name of the one value that is being sent.
const WIRE_ID: u64 = 0;

#[derive(Default)]
pub(super) struct StockSession {
    current: Option<Current>,
}

struct Current {
    op: RequestOp,
    work: Work,
    phase: Phase,
}

enum Phase {
    /// The status is due.
    Status,
    /// The status was good, and a number follows it.
    Number,
    /// The value, then its trailer.
    Value(Box<IncomingValue>),
    /// What is not a value of ours: so many bytes to be thrown away.
    Waste(usize),
}

pub(super) fn trailer(checksum: u64) -> [u8; TRAILER_BYTES] {
    let mut trailer = [0; TRAILER_BYTES];
    trailer[..8].copy_from_slice(&TRAILER_MAGIC);
    trailer[8..].copy_from_slice(&checksum.to_le_bytes());
    trailer
}

fn checksum_of_trailer(trailer: [u8; TRAILER_BYTES]) -> Option<u64> {
    let checksum = trailer.strip_prefix(&TRAILER_MAGIC)?;
    Some(u64::from_le_bytes(checksum.try_into().ok()?))
}

impl StockSession {
    pub(super) fn has_room(&self) -> bool {
        self.current.is_none()
    }

    pub(super) fn owes(&self) -> bool {
        self.current.is_some()
    }

    /// Sends the first item of `batch`; the rest stays in it.
    pub(super) fn begin(&mut self, batch: &mut Batch, outgoing: &mut Outgoing, ends: &mut Vec<ItemEnd>) {
        let Some(mut work) = batch.items.pop_front() else { return };
        if request(batch.op, &mut work, outgoing).is_none() {
            ends.extend(work.end(ItemResult::Failed(RemoteFailure::Refused)));
            return;
        }
        self.current = Some(Current { op: batch.op, work, phase: Phase::Status });
    }

    /// Nobody waits for these any more; false if the connection must end for it.
    pub(super) fn forget(&mut self, request: RequestId, item: Option<u32>, outgoing: &mut Outgoing) -> bool {
        let Some(current) = &mut self.current else { return true };
        if !matches_owner(current.work.owner, request, item) {
            return true;
        }
        current.work.owner = None;
        current.work.memory = None;
        outgoing.detach(WIRE_ID, 0)
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
            let wanted = match self.step(buffer, outgoing, ends)? {
                Step::Again => continue,
                Step::Buffer(wanted) => wanted,
                Step::Direct => 0,
            };
            if received >= budget {
                return Ok((received, true));
            }
            let read = if wanted > 0 { buffer.read(stream, wanted)? } else { self.read(stream, sink)? };
            match read {
                None => return Ok((received, false)),
                Some(count) => received += count,
            }
        }
    }

    /// Uses what is in the buffer.
    fn step(
        &mut self,
        buffer: &mut InBuffer,
        outgoing: &Outgoing,
        ends: &mut Vec<ItemEnd>,
    ) -> Result<Step, Fault> {
        let Some(Current { op, work, phase }) = &mut self.current else {
            if buffer.available().is_empty() {
                return Ok(Step::Buffer(STATUS_BYTES));
            }
            return Err(Fault::new(FaultReason::Malformed, "an answer that was not asked"));
        };
        let result = match phase {
            Phase::Status => {
                let Some(bytes) = buffer.peek_array() else { return Ok(Step::Buffer(STATUS_BYTES)) };
                buffer.consume(STATUS_BYTES);
                let status = known(status_from_reply(bytes))?;
                if *op == RequestOp::Put && (!status.is_ok() || !outgoing.is_empty()) {
                    // The server may take the rest of the value for requests. Ends are reported once the connection is gone, and
                    // with it whatever of the value has not left.
                    let text = format!("a put was answered with {status}");
                    let result = refusal(if status.is_ok() { Status::INTERNAL } else { status });
                    ends.extend(work.end(result));
                    return Err(Fault::new(FaultReason::StockRefusal, text));
                }
                if status.is_ok() && *op != RequestOp::Put {
                    *phase = Phase::Number;
                    return Ok(Step::Again);
                }
                refusal(status)
            }
            Phase::Number => {
                let Some(bytes) = buffer.peek_array() else { return Ok(Step::Buffer(4)) };
                buffer.consume(4);
                let number = i32::from_le_bytes(bytes);
                match op {
                    RequestOp::Get => match GetReply::from_length(number) {
                        GetReply::Missing => ItemResult::Missing,
                        GetReply::Value { bytes } => {
                            let bytes = bytes as usize;
                            *phase = match bytes.checked_sub(TRAILER_BYTES) {
                                Some(value) if value == work.bytes => {
                                    Phase::Value(Box::new(IncomingValue::new(work, value)))
                                }
                                _ => Phase::Waste(bytes),
                            };
                            return Ok(Step::Again);
                        }
                    },
                    RequestOp::Delete if number > 0 => ItemResult::Done,
                    RequestOp::Delete => ItemResult::Missing,
                    _ => match exists_from_reply(number)? {
                        true => ItemResult::Done,
                        false => ItemResult::Missing,
                    },
                }
            }
            Phase::Value(value) if value.left() > 0 => {
                let taken = value.take(work, buffer.available());
                buffer.consume(taken);
                return Ok(if value.left() > 0 { Step::Direct } else { Step::Again });
            }
            Phase::Value(value) => {
                let Some(bytes) = buffer.peek_array() else { return Ok(Step::Buffer(TRAILER_BYTES)) };
                buffer.consume(TRAILER_BYTES);
                value.result(checksum_of_trailer(bytes))
            }
            Phase::Waste(left) => {
                let taken = buffer.available().len().min(*left);
                buffer.consume(taken);
                *left -= taken;
                if *left > 0 {
                    return Ok(Step::Direct);
                }
                ItemResult::Failed(RemoteFailure::Corrupt)
            }
        };
        ends.extend(work.end(result));
        self.current = None;
        Ok(Step::Again)
    }

    /// Reads bytes of a value into their place, or bytes of waste.
    fn read(&mut self, stream: &mut Stream, sink: &mut [u8]) -> Result<Option<usize>, Fault> {
        let Some(Current { work, phase, .. }) = &mut self.current else { return Ok(None) };
        match phase {
            Phase::Value(value) => {
                let wanted = value.left().min(PIECE_BYTES);
                let bytes = work.bytes;
                let sink_bytes = sink.len().min(wanted);
                let place = IncomingValue::place(work, bytes, value.at(), wanted)
                    .unwrap_or(IoSliceMut::new(&mut sink[..sink_bytes]));
                let read = read_some(stream, &mut [place])?;
                if let Some(count) = read {
                    value.arrived(work, count);
                }
                Ok(read)
            }
            Phase::Waste(left) => {
                let count = sink.len().min(*left);
                let read = read_some(stream, &mut [IoSliceMut::new(&mut sink[..count])])?;
                *left -= read.unwrap_or(0);
                Ok(read)
            }
            Phase::Status | Phase::Number => Ok(None),
        }
    }

    /// Ends what was sent and is not answered.
    pub(super) fn fail(self, failure: RemoteFailure, ends: &mut Vec<ItemEnd>) {
        if let Some(mut current) = self.current {
            ends.extend(current.work.end(ItemResult::Failed(failure)));
        }
    }
}

enum Step {
    /// Something was done: look again.
    Again,
    /// So many bytes must be in the buffer.
    Buffer(usize),
    /// The next bytes have a place of their own.
    Direct,
}

/// Puts a request in line; `None` if the protocol cannot say it.
fn request(op: RequestOp, work: &mut Work, outgoing: &mut Outgoing) -> Option<()> {
    let name = work.key.name();
    let (code, body) = match op {
        RequestOp::Get => (Op::Payload, TcpPayloadRequest { key: &name, op: PayloadOp::Get }.encode().ok()?),
        RequestOp::Put => {
            let value_bytes = u32::try_from(work.bytes.checked_add(TRAILER_BYTES)?).ok()?;
            let put = PayloadOp::Put { value_bytes };
            (Op::Payload, TcpPayloadRequest { key: &name, op: put }.encode().ok()?)
        }
        // Clients over RDMA have put the checksum beside the value.
        RequestOp::Delete => {
            let checksum = [&name[..], CHECKSUM_SUFFIX].concat();
            (Op::Delete, encode_keys(&[&name[..], &checksum]).ok()?)
        }
        RequestOp::Exists | RequestOp::Probe => (Op::Exists, name.to_vec()),
    };
    let mut bytes = Header { op: code, body_bytes: u32::try_from(body.len()).ok()? }.encode().to_vec();
    bytes.extend(body);
    outgoing.push_bytes(bytes);
    if op == RequestOp::Put {
        let memory = work.memory.take()?;
        let checksum = value_checksum(&name, memory.read(0));
        outgoing.push_value(memory, WIRE_ID, 0);
        outgoing.push_bytes(trailer(checksum).to_vec());
    }
    Some(())
}

/// A status that a cache server may send; anything else is not one.
fn known(status: Status) -> Result<Status, Fault> {
    match status.0 {
        200 | 202 | 400 | 401 | 404 | 408 | 413 | 500 | 503 | 507 => Ok(status),
        other => {
            Err(Fault::new(FaultReason::Malformed, format!("status {other}, which no cache server sends")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Golden: stock servers keep values across our versions.
    #[test]
    fn a_trailer_is_the_same_for_ever() {
        let bytes = trailer(0x0123_4567_89ab_cdef);
        assert_eq!(bytes, *b"KVCsum1\0\xef\xcd\xab\x89\x67\x45\x23\x01");
        assert_eq!(checksum_of_trailer(bytes), Some(0x0123_4567_89ab_cdef));
        assert_eq!(checksum_of_trailer([0; TRAILER_BYTES]), None);
    }
}
