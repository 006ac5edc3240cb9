//! What the requests of clients with shared memory do.

use std::sync::Arc;
use std::time::Instant;

use kvcache_wire::extension::{
    Batch, CommitItem, FrameHead, FrameOp, GetItem, LeasedRoom, LeasedRooms, LeasedValue, LeasedValues,
    Numbers, Statuses,
};
use kvcache_wire::{DecodeError, Status};

use super::Leases;
use super::leases::NoRoom;
use crate::metrics::Operation;
use crate::session::{Names, Shared, answer_frame, status_of};
use crate::store::Value;

/// Handles a request about leases. The answer is empty where nobody waits for one.
///
/// # Errors
///
/// A body that cannot be read: the connection must end.
pub(crate) fn handle(
    shared: &Shared,
    leases: &mut Leases,
    head: FrameHead,
    body: &[u8],
) -> Result<(Operation, Vec<u8>), DecodeError> {
    let keys_max = shared.limits.keys_max;
    Ok(match head.op {
        FrameOp::Lease => (Operation::Get, lease(shared, leases, head, &Batch::decode(body, keys_max)?)),
        FrameOp::Reserve => {
            (Operation::Other, reserve(shared, leases, head, &Numbers::decode(body, keys_max)?))
        }
        FrameOp::Commit => (Operation::Put, commit(shared, leases, head, &Batch::decode(body, keys_max)?)),
        _ => {
            Numbers::decode(body, keys_max)?.iter().for_each(|lease| leases.release(lease));
            (Operation::Other, Vec::new())
        }
    })
}

fn lease(shared: &Shared, leases: &mut Leases, head: FrameHead, batch: &Batch<'_, GetItem>) -> Vec<u8> {
    let mut names = Names::new(shared, batch.prefix());
    let mut values: Vec<Arc<Value>> = Vec::new();
    let mut retries = 0;
    let mut answers = Vec::with_capacity(batch.len());
    let mut pinned_bytes = 0;
    for (item, suffix) in batch.items() {
        let Some(value) = names.of(suffix).and_then(|key| shared.store.get(key)) else {
            answers.push(LeasedValue::without_value(Status::NOT_FOUND));
            continue;
        };
        let value_bytes = value.len_bytes();
        let status = if value_bytes > item.value_bytes_max {
            Status::TOO_LARGE
        } else if leases.may_pin(&value, pinned_bytes) {
            Status::OK
        } else {
            retries += 1;
            Status::RETRY
        };
        let (checksum, offset_bytes) = (shared.store.checksum_of(&value), value.offset_bytes());
        answers.push(LeasedValue { status, value_bytes, checksum, offset_bytes });
        if status.is_ok() {
            pinned_bytes += value.footprint_bytes();
            values.push(value);
        }
    }
    shared.store.touch(&values);
    let metrics = &shared.metrics;
    metrics.hits.add(values.len() as u64);
    // Who is told to ask again does so, and is counted then.
    metrics.misses.add((answers.len() - values.len() - retries) as u64);
    metrics.shared_read_bytes.add(values.iter().map(|value| value.len_bytes()).sum());
    let lease = leases.pin(values, Instant::now());
    answer_frame(head, 0, |out| {
        LeasedValues::encode(out, lease, &answers);
        Ok(())
    })
}

fn reserve(shared: &Shared, leases: &mut Leases, head: FrameHead, lengths: &Numbers<'_>) -> Vec<u8> {
    let room = |bytes| {
        let found = if bytes > shared.limits.value_bytes_max {
            Err(Status::TOO_LARGE)
        } else {
            leases.reserve(&shared.store, bytes).map_err(|why| match why {
                NoRoom::Refused(refused) => status_of(refused),
                NoRoom::TooMuch => Status::RETRY,
                NoRoom::NoMemory => Status::OUT_OF_MEMORY,
            })
        };
        match found {
            Ok((lease, offset_bytes)) => LeasedRoom { status: Status::OK, lease, offset_bytes },
            Err(status) => {
                shared.metrics.puts_refused.add(u64::from(status != Status::RETRY));
                LeasedRoom::refused(status)
            }
        }
    };
    let rooms: Vec<LeasedRoom> = lengths.iter().map(room).collect();
    answer_frame(head, 0, |out| {
        LeasedRooms::encode(out, &rooms);
        Ok(())
    })
}

fn commit(shared: &Shared, leases: &mut Leases, head: FrameHead, batch: &Batch<'_, CommitItem>) -> Vec<u8> {
    let mut names = Names::new(shared, batch.prefix());
    let mut publish = |item: CommitItem, suffix: &[u8]| {
        // The lease ends in any case: the client holds the value no longer.
        let room = leases.take_room(item.lease).ok_or(Status::NOT_FOUND)?;
        let (key, bytes) = (names.of(suffix).ok_or(Status::TOO_LARGE)?, room.len_bytes());
        shared.store.publish(room.for_key(key).map_err(status_of)?, Some(item.checksum));
        shared.metrics.shared_written_bytes.add(bytes);
        Ok(())
    };
    let statuses: Vec<Status> =
        batch.items().map(|(item, suffix)| publish(item, suffix).err().unwrap_or(Status::OK)).collect();
    let stored = statuses.iter().filter(|status| status.is_ok()).count();
    shared.metrics.puts.add(stored as u64);
    shared.metrics.puts_refused.add((statuses.len() - stored) as u64);
    answer_frame(head, 0, |out| {
        Statuses::encode(out, &statuses);
        Ok(())
    })
}
