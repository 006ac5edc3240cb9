//! What the requests of frames do: from a verified body to an answer.

use std::sync::Arc;
use std::time::Instant;

use kvcache_wire::extension::{
    Batch, ExistsReply, FrameHead, FrameHeader, FrameOp, GetItem, GetOutcome, GetReplies, ItemFields, Named,
    PutItem, Statuses, encode_stats, flags, write_frame,
};
use kvcache_wire::{DecodeError, EncodeError, Status};

use super::Shared;
use super::put_request::PutRequest;
use crate::local::{self, Leases};
use crate::metrics::Operation;
use crate::outgoing::Outgoing;
use crate::store::{Refused, Value};

/// What a request has led to.
#[derive(Debug)]
pub(super) enum Handled {
    /// Its answer is queued.
    Answered,
    /// Its values follow.
    Receiving(Box<PutRequest>),
}

/// Handles a request whose body is there.
///
/// # Errors
///
/// A body that cannot be read, or a frame that makes no sense from a client: the connection must end.
pub(super) fn handle<W: tokio::io::AsyncWrite + Unpin>(
    shared: &Shared,
    header: &FrameHeader,
    body: &[u8],
    started: Instant,
    outgoing: &mut Outgoing<W>,
    leases: Option<&mut Leases>,
) -> Result<Handled, DecodeError> {
    let head = header.head;
    if head.is_answer || head.op == FrameOp::Close {
        return Err(DecodeError::UnknownCode { what: "request", code: head.op as u32 });
    }
    let payload_bytes = if head.op == FrameOp::Put { header.payload_bytes } else { 0 };
    if header.payload_bytes != payload_bytes {
        let (left, right) = (payload_bytes, header.payload_bytes);
        return Err(DecodeError::Mismatch { what: "the payload of a request without values", left, right });
    }
    let (operation, answer, values) = match head.op {
        FrameOp::Exists => (Operation::Exists, exists(shared, head, &batch(shared, body)?), Vec::new()),
        FrameOp::Get => {
            let (answer, values) = get(shared, head, &batch(shared, body)?);
            (Operation::Get, answer, values)
        }
        FrameOp::Delete => (Operation::Delete, delete(shared, head, &batch(shared, body)?), Vec::new()),
        FrameOp::Put => {
            let batch: Batch<'_, PutItem> = batch(shared, body)?;
            let values_bytes = batch.payload_bytes().unwrap_or(u64::MAX);
            if values_bytes != payload_bytes {
                let (left, right) = (values_bytes, payload_bytes);
                return Err(DecodeError::Mismatch {
                    what: "the values and the payload of a put",
                    left,
                    right,
                });
            }
            let request = PutRequest::new(shared, head, &batch, started);
            return Ok(Handled::Receiving(Box::new(request)));
        }
        FrameOp::Lease | FrameOp::Reserve | FrameOp::Commit | FrameOp::Release => {
            let Some(leases) = leases else {
                return Err(DecodeError::UnknownCode { what: "request over TCP", code: head.op as u32 });
            };
            let (operation, answer) = local::handle(shared, leases, head, body)?;
            (operation, answer, Vec::new())
        }
        FrameOp::Stats => (Operation::Other, stats(shared, head), Vec::new()),
        FrameOp::Ping | FrameOp::Close => (Operation::Other, answer_frame(head, 0, |_| Ok(())), Vec::new()),
    };
    shared.metrics.request(operation, started.elapsed());
    outgoing.push(answer, values);
    Ok(Handled::Answered)
}

fn batch<'a, F: ItemFields>(shared: &Shared, body: &'a [u8]) -> Result<Batch<'a, F>, DecodeError> {
    Batch::decode(body, shared.limits.keys_max)
}

fn exists(shared: &Shared, head: FrameHead, batch: &Batch<'_, Named>) -> Vec<u8> {
    let mut names = Names::new(shared, batch.prefix());
    let mut present =
        batch.items().map(|(_, suffix)| names.of(suffix).is_some_and(|key| shared.store.contains(key)));
    answer_frame(head, 0, |out| {
        if head.flags & flags::LEADING_ONLY != 0 {
            let leading = present.take_while(|present| *present).count();
            ExistsReply::encode_leading(out, leading as u32);
        } else {
            ExistsReply::encode_bits(out, &mut present);
        }
        Ok(())
    })
}

fn get(shared: &Shared, head: FrameHead, batch: &Batch<'_, GetItem>) -> (Vec<u8>, Vec<Arc<Value>>) {
    let mut names = Names::new(shared, batch.prefix());
    let mut values = Vec::new();
    let mut outcomes = Vec::with_capacity(batch.len());
    let mut payload_bytes = 0;
    for (item, suffix) in batch.items() {
        let Some(value) = names.of(suffix).and_then(|key| shared.store.get(key)) else {
            outcomes.push(GetOutcome::without_value(Status::NOT_FOUND));
            continue;
        };
        let value_bytes = value.len_bytes();
        let status = if value_bytes > item.value_bytes_max {
            Status::TOO_LARGE
        } else if payload_bytes + value_bytes > shared.limits.payload_bytes_max {
            Status::RETRY
        } else {
            Status::OK
        };
        outcomes.push(GetOutcome { status, value_bytes, checksum: shared.store.checksum_of(&value) });
        if status.is_ok() {
            payload_bytes += value_bytes;
            values.push(value);
        }
    }
    shared.store.touch(&values);
    let metrics = &shared.metrics;
    metrics.hits.add(values.len() as u64);
    metrics.misses.add((outcomes.len() - values.len()) as u64);
    metrics.sent_bytes.add(payload_bytes);
    let answer = answer_frame(head, payload_bytes, |out| {
        GetReplies::encode(out, &outcomes);
        Ok(())
    });
    (answer, values)
}

fn delete(shared: &Shared, head: FrameHead, batch: &Batch<'_, Named>) -> Vec<u8> {
    let mut names = Names::new(shared, batch.prefix());
    let statuses: Vec<Status> = batch
        .items()
        .map(|(_, suffix)| names.of(suffix).is_some_and(|key| shared.store.delete(key)))
        .map(|deleted| if deleted { Status::OK } else { Status::NOT_FOUND })
        .collect();
    let deleted = statuses.iter().filter(|status| status.is_ok()).count();
    shared.metrics.deletes.add(deleted as u64);
    answer_frame(head, 0, |out| {
        Statuses::encode(out, &statuses);
        Ok(())
    })
}

fn stats(shared: &Shared, head: FrameHead) -> Vec<u8> {
    let numbers = shared.metrics.numbers(&shared.stats());
    answer_frame(head, 0, |out| encode_stats(out, &numbers.map(|(name, _, _, value)| (name, value))))
}

/// An answer whose body is far smaller than what a frame carries.
pub(crate) fn answer_frame(
    head: FrameHead,
    payload: u64,
    body: impl FnOnce(&mut Vec<u8>) -> Result<(), EncodeError>,
) -> Vec<u8> {
    let mut out = Vec::new();
    if let Err(error) = write_frame(&mut out, head.answer(Status::OK), payload, body) {
        log::error!("an answer does not fit its frame: {error}");
        let _ = write_frame(&mut out, head.answer(Status::INTERNAL), 0, |_| Ok(()));
    }
    out
}

/// What a client is told where there is no room.
pub(crate) fn status_of(refused: Refused) -> Status {
    match refused {
        Refused::Empty => Status::BAD_REQUEST,
        Refused::TooLarge { .. } => Status::TOO_LARGE,
        Refused::Full { .. } | Refused::Busy { .. } => Status::OUT_OF_MEMORY,
    }
}

/// Puts prefix and suffix together, in one piece of memory for all keys of a batch.
pub(crate) struct Names {
    name: Vec<u8>,
    prefix_bytes: usize,
    bytes_max: usize,
}

impl Names {
    pub(crate) fn new(shared: &Shared, prefix: &[u8]) -> Self {
        let bytes_max = shared.limits.key_bytes_max as usize;
        Self { name: prefix.to_vec(), prefix_bytes: prefix.len(), bytes_max }
    }

    /// The whole key; `None` if it is longer than any that is stored. Looking for such keys would cost: a long prefix
    /// is sent once and would be hashed for each of thousands of suffixes.
    pub(crate) fn of(&mut self, suffix: &[u8]) -> Option<&[u8]> {
        if self.prefix_bytes + suffix.len() > self.bytes_max {
            return None;
        }
        self.name.truncate(self.prefix_bytes);
        self.name.extend_from_slice(suffix);
        Some(&self.name)
    }
}
