//! A put whose values are arriving.

use std::time::Instant;

use kvcache_wire::extension::{Batch, FrameHead, PutItem, Statuses, flags, write_frame};
use kvcache_wire::{Status, checksum};

use super::{Shared, status_of};
use crate::store::Reservation;

/// Receives the values of a put one after the other, each straight into the pool.
///
/// Memory is reserved when a value's turn comes, not for the whole request at once, and a value is published when its
/// last byte is there.
#[derive(Debug)]
pub(super) struct PutRequest {
    head: FrameHead,
    started: Instant,
    /// The key of the current value: what all keys begin with, then its own end.
    key: Vec<u8>,
    prefix_bytes: usize,
    /// The ends of all keys one after the other; an item knows where its own stops.
    suffixes: Vec<u8>,
    items: Vec<Pending>,
    statuses: Vec<Status>,
    /// Where the current value goes; `Err` if nowhere, with the reason.
    current: Result<Reservation, Status>,
    filled: u64,
    scratch: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
struct Pending {
    suffix_end: usize,
    fields: PutItem,
}

/// What values that cannot be stored are received into.
const SCRATCH_BYTES: usize = 64 << 10;

impl PutRequest {
    pub(super) fn new(
        shared: &Shared,
        head: FrameHead,
        batch: &Batch<'_, PutItem>,
        started: Instant,
    ) -> Self {
        let mut suffixes = Vec::new();
        let items = batch.items().map(|(fields, suffix)| {
            suffixes.extend_from_slice(suffix);
            Pending { suffix_end: suffixes.len(), fields }
        });
        let items: Vec<_> = items.collect();
        let mut request = Self {
            head,
            started,
            key: batch.prefix().to_vec(),
            prefix_bytes: batch.prefix().len(),
            suffixes,
            statuses: Vec::with_capacity(items.len()),
            items,
            current: Err(Status::INTERNAL),
            filled: 0,
            scratch: Vec::new(),
        };
        request.begin(shared);
        request
    }

    /// Whether every value is there.
    pub(super) fn is_complete(&self) -> bool {
        self.statuses.len() == self.items.len()
    }

    pub(super) fn started(&self) -> Instant {
        self.started
    }

    /// Where the next bytes go; never empty before the request is complete.
    pub(super) fn destination(&mut self) -> &mut [u8] {
        let left =
            self.items.get(self.statuses.len()).map_or(0, |item| item.fields.value_bytes - self.filled);
        match &mut self.current {
            Ok(reservation) => &mut reservation.bytes_mut()[self.filled as usize..],
            Err(_) => {
                let bytes = usize::try_from(left).unwrap_or(usize::MAX).min(SCRATCH_BYTES);
                if self.scratch.len() < bytes {
                    self.scratch.resize(bytes, 0);
                }
                &mut self.scratch[..bytes]
            }
        }
    }

    /// So many bytes have arrived there.
    pub(super) fn filled(&mut self, shared: &Shared, bytes: usize) {
        self.filled += bytes as u64;
        shared.metrics.received_bytes.add(bytes as u64);
        if self.items.get(self.statuses.len()).is_some_and(|item| self.filled == item.fields.value_bytes) {
            self.end_value(shared);
            self.begin(shared);
        }
    }

    /// The answer.
    pub(super) fn answer(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let head = self.head.answer(Status::OK);
        // Two bytes a key fit any body, so there is nothing to go wrong.
        let _ = write_frame(&mut out, head, 0, |out| {
            Statuses::encode(out, &self.statuses);
            Ok(())
        });
        out
    }

    /// Finds memory for the next value that has bytes; those that have none are answered at once.
    fn begin(&mut self, shared: &Shared) {
        self.filled = 0;
        while let Some(item) = self.items.get(self.statuses.len()) {
            let suffix_start = match self.statuses.len() {
                0 => 0,
                index => self.items[index - 1].suffix_end,
            };
            self.key.truncate(self.prefix_bytes);
            self.key.extend_from_slice(&self.suffixes[suffix_start..item.suffix_end]);
            let key = self.key.as_slice();
            let limits = &shared.limits;
            self.current = if key.len() > limits.key_bytes_max as usize
                || item.fields.value_bytes > limits.value_bytes_max
            {
                Err(Status::TOO_LARGE)
            } else {
                shared.store.reserve(key, item.fields.value_bytes).map_err(status_of)
            };
            if item.fields.value_bytes > 0 {
                return;
            }
            self.end_value(shared);
        }
    }

    /// Publishes the current value, or notes why not.
    fn end_value(&mut self, shared: &Shared) {
        let Some(item) = self.items.get(self.statuses.len()) else { return };
        let verify = self.head.flags & flags::VERIFY != 0;
        let status = match std::mem::replace(&mut self.current, Err(Status::INTERNAL)) {
            Err(status) => status,
            Ok(mut reservation) => {
                let expected = item.fields.checksum.filter(|_| verify);
                if expected.is_some_and(|expected| checksum(reservation.bytes_mut()) != expected) {
                    Status::CHECKSUM_MISMATCH
                } else {
                    shared.store.publish(reservation, item.fields.checksum);
                    Status::OK
                }
            }
        };
        if status.is_ok() {
            shared.metrics.puts.add(1)
        } else {
            shared.metrics.puts_refused.add(1)
        }
        self.statuses.push(status);
    }
}
