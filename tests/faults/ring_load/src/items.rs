//! Transfers in flight: each has memory of its own, must end once and in time, and is verified when it does.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use kvcache_core::remote::{RemoteEnd, RemoteFailure, RemoteOp, RemoteOutcome, RemoteStore, RemoteTransfer};

use crate::losses::Losses;
use crate::values::{Values, mixed};

/// What must never happen, counted.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Violations {
    /// A value was served that is not what was put.
    pub(crate) wrong_bytes: u64,
    /// An end of what had ended, or never was.
    pub(crate) unknown_ends: u64,
    /// An end after the deadline and its slack.
    pub(crate) late: u64,
    /// Memory was written after its transfer had ended.
    pub(crate) written_after_end: u64,
}

/// Ends of one operation.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ends {
    pub(crate) done: u64,
    pub(crate) missing: u64,
    pub(crate) failed: [u64; RemoteFailure::ALL.len()],
}

struct Item {
    /// Boxed: its address stays when the list grows.
    memory: Box<[u8]>,
    number: u64,
    op: RemoteOp,
    /// In flight since; `None` while it is free.
    since: Option<Instant>,
    ticket: u64,
    /// Whether the memory holds nothing but [`GUARD`]: its transfer failed, and nobody may write it any more.
    guarded: bool,
}

/// A bounded number of transfers.
pub(crate) struct Items {
    values: Values,
    patience: Duration,
    slack: Duration,
    items: Vec<Item>,
    /// The longest free one first, so that memory lies idle for a while and late writes to it show.
    free: VecDeque<usize>,
    in_flight_max: usize,
    pub(crate) submitted: u64,
    pub(crate) get: Ends,
    pub(crate) put: Ends,
    pub(crate) verified_bytes: u64,
    pub(crate) violations: Violations,
    /// Of a client that reads through; others choose at random.
    pub(crate) losses: Option<Losses>,
    /// Time from submission to end, of what has ended since it was last taken.
    pub(crate) latencies: Vec<Duration>,
}

/// What is in memory whose transfer has failed.
const GUARD: u8 = 0xee;

/// Latencies that are kept between two reports.
const LATENCIES_MAX: usize = 1 << 18;

impl Items {
    pub(crate) fn new(values: Values, in_flight_max: usize, patience: Duration, slack: Duration) -> Self {
        let bytes = values.bytes_max();
        let item = || Item {
            memory: vec![GUARD; bytes].into(),
            number: 0,
            op: RemoteOp::Get,
            since: None,
            ticket: 0,
            guarded: true,
        };
        let count = in_flight_max * 2;
        Self {
            values,
            patience,
            slack,
            items: (0..count).map(|_| item()).collect(),
            free: (0..count).collect(),
            in_flight_max,
            submitted: 0,
            get: Ends::default(),
            put: Ends::default(),
            verified_bytes: 0,
            violations: Violations::default(),
            losses: None,
            latencies: Vec::new(),
        }
    }

    /// Reads values in turn from now on, and puts those that are missing, as an engine does.
    pub(crate) fn read_through(&mut self) {
        self.losses = Some(Losses::new(self.values.clone()));
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.items.len() - self.free.len()
    }

    /// Transfers that could be submitted now.
    pub(crate) fn room(&self) -> usize {
        self.in_flight_max - self.in_flight()
    }

    pub(crate) fn ended(&self) -> u64 {
        self.submitted - self.in_flight() as u64
    }

    /// Age of the oldest transfer in flight.
    pub(crate) fn oldest(&self) -> Duration {
        self.items.iter().filter_map(|item| item.since).map(|since| since.elapsed()).max().unwrap_or_default()
    }

    /// Begins `count` transfers, which there must be room for: of `puts_per_cent` in a hundred puts, the others gets. One
    /// that reads through decides itself.
    pub(crate) fn submit(&mut self, store: &impl RemoteStore, count: usize, puts_per_cent: u64) {
        let mut batch = Vec::with_capacity(count);
        for index in self.free.drain(..count) {
            let ticket = self.submitted;
            self.submitted += 1;
            let random =
                mixed(self.values.seed.wrapping_add(mixed(ticket | u64::from(std::process::id()) << 40)));
            let item = &mut self.items[index];
            if item.guarded && item.memory.iter().any(|byte| *byte != GUARD) {
                self.violations.written_after_end += 1;
            }
            (item.number, item.op) = match &mut self.losses {
                Some(losses) => losses.next(),
                None if mixed(random) % 100 < puts_per_cent => (random % self.values.count, RemoteOp::Put),
                None => (random % self.values.count, RemoteOp::Get),
            };
            item.guarded = false;
            item.ticket = ticket;
            item.since = Some(Instant::now());
            let bytes = self.values.bytes(item.number);
            if item.op == RemoteOp::Put {
                self.values.fill(item.number, &mut item.memory[..bytes]);
            }
            batch.push(RemoteTransfer {
                // The item is found by it again.
                ticket: ticket << 20 | index as u64,
                op: item.op,
                key: self.values.key(item.number),
                address: item.memory.as_mut_ptr() as usize,
                bytes,
            });
        }
        // SAFETY: the memory of an item lives as long as `self`, which is dropped after the store, and nobody touches it
        // until its end was polled: only then it is free again.
        unsafe { store.submit(&batch, self.patience) };
    }

    /// Takes in an end.
    pub(crate) fn end(&mut self, end: RemoteEnd) {
        let (ticket, index) = (end.ticket >> 20, (end.ticket & 0xf_ffff) as usize);
        let item = self.items.get_mut(index).filter(|item| item.ticket == ticket);
        let Some((item, since)) = item.and_then(|item| item.since.take().map(|since| (item, since))) else {
            self.violations.unknown_ends += 1;
            return;
        };
        let took = since.elapsed();
        if took > self.patience + self.slack {
            self.violations.late += 1;
        }
        if self.latencies.len() < LATENCIES_MAX {
            self.latencies.push(took);
        }
        let ends = if item.op == RemoteOp::Put { &mut self.put } else { &mut self.get };
        let bytes = self.values.bytes(item.number);
        if let Some(losses) = &mut self.losses {
            losses.end(item.number, item.op, end.outcome);
        }
        match end.outcome {
            RemoteOutcome::Done => {
                ends.done += 1;
                if item.op == RemoteOp::Get {
                    self.verified_bytes += bytes as u64;
                    if !self.values.verify(item.number, &item.memory[..bytes]) {
                        self.violations.wrong_bytes += 1;
                    }
                }
            }
            RemoteOutcome::Missing => ends.missing += 1,
            RemoteOutcome::Failed(reason) => {
                ends.failed[reason as usize] += 1;
                // A put that still read this memory would store what no reader takes for right.
                item.memory.fill(GUARD);
                item.guarded = true;
            }
        }
        self.free.push_back(index);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Keeps what is submitted; the test ends it.
    #[derive(Default)]
    struct Held(Mutex<Vec<RemoteTransfer>>);

    impl RemoteStore for Held {
        unsafe fn submit(&self, batch: &[RemoteTransfer], _: Duration) {
            self.0.lock().expect("nobody panicked").extend(batch);
        }
        fn poll(&self, _: &mut Vec<RemoteEnd>) {}
        fn wait(&self, _: Duration) -> bool {
            false
        }
        fn cancel(&self, _: &[u64]) {}
    }

    impl Held {
        fn next(&self) -> RemoteTransfer {
            self.0.lock().expect("nobody panicked").remove(0)
        }
    }

    fn items(patience: Duration) -> Items {
        let values = Values { count: 5, lengths: vec![100], seed: 1 };
        Items::new(values, 4, patience, Duration::ZERO)
    }

    fn memory(transfer: &RemoteTransfer) -> &'static mut [u8] {
        // SAFETY: the tests' items outlive their transfers, and no two transfers in flight share memory.
        unsafe { std::slice::from_raw_parts_mut(transfer.address as *mut u8, transfer.bytes) }
    }

    fn ended(transfer: &RemoteTransfer, outcome: RemoteOutcome) -> RemoteEnd {
        RemoteEnd { ticket: transfer.ticket, outcome }
    }

    #[test]
    fn every_violation_is_seen() {
        let store = Held::default();
        let mut items = items(Duration::from_secs(3600));
        // Right bytes are none.
        items.submit(&store, 1, 0);
        let right = store.next();
        let number = items.items[0].number;
        items.values.clone().fill(number, memory(&right));
        items.end(ended(&right, RemoteOutcome::Done));
        assert_eq!((items.violations.wrong_bytes, items.verified_bytes, items.in_flight()), (0, 100, 0));
        items.end(ended(&right, RemoteOutcome::Done));
        assert_eq!(items.violations.unknown_ends, 1);
        items.submit(&store, 1, 0);
        let wrong = store.next();
        items.end(ended(&wrong, RemoteOutcome::Done));
        assert_eq!(items.violations.wrong_bytes, 1);
        items.submit(&store, 1, 100);
        let failed = store.next();
        items.end(ended(&failed, RemoteOutcome::Failed(RemoteFailure::TimedOut)));
        memory(&failed)[50] = 0;
        for _ in 0..2 {
            items.submit(&store, 4, 0);
            for _ in 0..4 {
                items.end(ended(&store.next(), RemoteOutcome::Missing));
            }
        }
        assert_eq!(items.violations.written_after_end, 1);
        assert_eq!((items.violations.late, items.ended(), items.submitted), (0, 11, 11));
    }

    #[test]
    fn what_is_late_is_seen() {
        let store = Held::default();
        let mut items = items(Duration::ZERO);
        items.submit(&store, 1, 0);
        let late = store.next();
        items.end(ended(&late, RemoteOutcome::Missing));
        assert_eq!(items.violations.late, 1);
    }
}
