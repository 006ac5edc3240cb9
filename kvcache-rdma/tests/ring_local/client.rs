//! A store with what its transfers need.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kvcache_core::BlockKey;
use kvcache_core::remote::{
    RemoteEnd, RemoteKey, RemoteOp, RemoteOutcome, RemoteSpace, RemoteStore, RemoteTransfer,
};
use kvcache_rdma::members::{Member, MemberList, Members, PlacementSource};
use kvcache_rdma::ring::{RingConfig, RingStore};
use kvcache_rdma::tcp::RingStats;

pub(crate) const SPACE: RemoteSpace = RemoteSpace([0xcd; 16]);
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
pub(crate) const DONE: RemoteOutcome = RemoteOutcome::Done;

pub(crate) fn config(server: SocketAddr) -> RingConfig {
    let list = MemberList::new(vec![Member::at(server.to_string().parse().unwrap())]).unwrap();
    RingConfig::new(Members::fixed(list, PlacementSource::Computed).unwrap())
}

pub(crate) fn block(number: u64) -> BlockKey {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    bytes[8..].copy_from_slice(&number.to_le_bytes());
    BlockKey(bytes)
}

pub(crate) fn key(number: u64) -> RemoteKey {
    RemoteKey { space: SPACE, block: block(number) }
}

/// Bytes that differ from value to value and from place to place.
pub(crate) fn pattern(number: u64, bytes: usize) -> Vec<u8> {
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..bytes).map(|_| next()).collect()
}

pub(crate) struct Client {
    store: RingStore,
    next: AtomicU64,
}

impl Client {
    pub(crate) fn open(config: &RingConfig) -> Self {
        Self { store: RingStore::open(config).unwrap(), next: AtomicU64::new(1) }
    }

    /// Waits until memory is shared, which a first request leads to.
    pub(crate) fn until_local(&self) {
        self.until_served(|| {
            let _ = self.get(u64::MAX..u64::MAX, 1);
            let mut probe = [(u64::MAX, vec![0])];
            let _ = self.run(RemoteOp::Get, &mut probe, PATIENCE);
            self.stats().connections.values().all(|(_, connection)| connection.shared_memory)
        });
    }

    /// Waits until `true`: for what follows from time alone, as a reconnection does.
    pub(crate) fn until_served(&self, mut is_so: impl FnMut() -> bool) {
        let give_up = Instant::now() + Duration::from_secs(60);
        while !is_so() {
            assert!(Instant::now() < give_up, "never happens: {:#?}", self.stats());
            std::thread::yield_now();
        }
    }

    /// The same of the client's counters and what they lead to.
    pub(crate) fn until(&self, what: &str, mut is_so: impl FnMut(&RingStats) -> bool) {
        let give_up = Instant::now() + Duration::from_secs(60);
        while !is_so(&self.stats()) {
            assert!(Instant::now() < give_up, "{what} never happens: {:#?}", self.stats());
            std::thread::yield_now();
        }
    }

    pub(crate) fn stats(&self) -> RingStats {
        self.store.stats()
    }

    /// Moves all values and waits for their ends.
    pub(crate) fn run(
        &self,
        op: RemoteOp,
        values: &mut [(u64, Vec<u8>)],
        patience: Duration,
    ) -> Vec<RemoteOutcome> {
        self.run_and(op, values, patience, |_| {})
    }

    /// The same, but every so many-th one is cancelled after so many turns of this thread.
    pub(crate) fn run_cancelling(
        &self,
        op: RemoteOp,
        values: &mut [(u64, Vec<u8>)],
        turns: u32,
        every: usize,
    ) -> Vec<RemoteOutcome> {
        self.run_and(op, values, PATIENCE, |tickets| {
            (0..turns * 20).for_each(|_| std::thread::yield_now());
            let some: Vec<u64> = tickets.step_by(every).collect();
            self.store.cancel(&some);
        })
    }

    fn run_and(
        &self,
        op: RemoteOp,
        values: &mut [(u64, Vec<u8>)],
        patience: Duration,
        meanwhile: impl FnOnce(std::ops::Range<u64>),
    ) -> Vec<RemoteOutcome> {
        let first = self.next.fetch_add(values.len() as u64, Ordering::SeqCst);
        let transfer = |(ticket, (number, value)): (u64, &mut (u64, Vec<u8>))| RemoteTransfer {
            ticket,
            op,
            key: key(*number),
            address: value.as_mut_ptr() as usize,
            bytes: value.len(),
        };
        let batch: Vec<RemoteTransfer> = (first..).zip(values.iter_mut()).map(transfer).collect();
        // SAFETY: the values are borrowed exclusively until all ends were polled, below.
        unsafe { self.store.submit(&batch, patience) };
        meanwhile(first..first + values.len() as u64);
        let mut outcomes = vec![None; values.len()];
        let mut ends: Vec<RemoteEnd> = Vec::new();
        let give_up = Instant::now() + patience + Duration::from_secs(60);
        while outcomes.iter().any(Option::is_none) {
            assert!(Instant::now() < give_up, "transfers never end");
            self.store.wait(Duration::from_secs(1));
            self.store.poll(&mut ends);
            for end in ends.drain(..) {
                let place = &mut outcomes[(end.ticket - first) as usize];
                assert_eq!(place.replace(end.outcome), None, "ends once");
            }
        }
        outcomes.into_iter().flatten().collect()
    }

    pub(crate) fn put(&self, numbers: std::ops::Range<u64>, bytes: usize) -> Vec<RemoteOutcome> {
        let mut values: Vec<_> = numbers.map(|number| (number, pattern(number, bytes))).collect();
        self.run(RemoteOp::Put, &mut values, PATIENCE)
    }

    /// What is done has the bytes that [`put`](Self::put) puts.
    pub(crate) fn get(&self, numbers: std::ops::Range<u64>, bytes: usize) -> Vec<RemoteOutcome> {
        let mut values: Vec<_> = numbers.map(|number| (number, vec![0xee; bytes])).collect();
        let outcomes = self.run(RemoteOp::Get, &mut values, PATIENCE);
        for ((number, value), outcome) in values.iter().zip(&outcomes) {
            if *outcome == DONE {
                assert!(*value == pattern(*number, bytes), "other bytes than were put");
            }
        }
        outcomes
    }
}
