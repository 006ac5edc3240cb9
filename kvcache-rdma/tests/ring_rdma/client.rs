//! A store of the ring whose values lie in slots.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvcache_core::BlockKey;
use kvcache_core::remote::{
    RemoteEnd, RemoteFailure, RemoteKey, RemoteOp, RemoteOutcome, RemoteStore, RemoteTransfer,
};
use kvcache_rdma::ring::{RingConfig, RingStore};
use kvcache_rdma::tcp::RingStats;

use super::slots::Slots;
use super::{PATIENCE, SPACE};

pub(crate) const DONE: RemoteOutcome = RemoteOutcome::Done;
pub(crate) const MISSING: RemoteOutcome = RemoteOutcome::Missing;

pub(crate) fn failed(reason: RemoteFailure) -> RemoteOutcome {
    RemoteOutcome::Failed(reason)
}

pub(crate) fn block(number: u64) -> BlockKey {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    bytes[8..].copy_from_slice(&number.to_le_bytes());
    BlockKey(bytes)
}

fn key(number: u64) -> RemoteKey {
    RemoteKey { space: SPACE, block: block(number) }
}

pub(crate) fn name(number: u64) -> [u8; RemoteKey::NAME_BYTES] {
    key(number).name()
}

pub(crate) fn pattern(number: u64, bytes: usize) -> Vec<u8> {
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        // Xorshift (Marsaglia, 2003).
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..bytes).map(|_| next()).collect()
}

pub(crate) struct Client {
    // Dropped before the slots.
    store: RingStore,
    slots: Arc<Slots>,
    next: u64,
}

impl Client {
    pub(crate) fn open(config: &RingConfig, slots: Arc<Slots>) -> Self {
        Self { store: RingStore::open(config).unwrap(), slots, next: 1 }
    }

    pub(crate) fn register(&self) {
        // SAFETY: the slots' memory is theirs until they are dropped.
        unsafe { self.store.register(Arc::clone(&self.slots) as _) }.unwrap();
    }

    /// Begins transfers of values with these numbers, in slots from 0 on.
    pub(crate) fn begin(
        &mut self,
        op: RemoteOp,
        numbers: Range<u64>,
        bytes: usize,
        patience: Duration,
    ) -> Vec<u64> {
        let first = self.next;
        let batch: Vec<RemoteTransfer> = numbers
            .enumerate()
            .map(|(slot, number)| RemoteTransfer {
                ticket: first + slot as u64,
                op,
                key: key(number),
                address: self.slots.address(slot),
                bytes,
            })
            .collect();
        self.next += batch.len() as u64;
        // SAFETY: slots that are kept, and touched only when all of a batch have ended or the store is gone.
        unsafe { self.store.submit(&batch, patience) };
        (first..self.next).collect()
    }

    /// How these ended, each once.
    pub(crate) fn ends(&self, tickets: &[u64]) -> Vec<RemoteOutcome> {
        let mut outcomes: HashMap<u64, RemoteOutcome> = HashMap::new();
        let mut ends: Vec<RemoteEnd> = Vec::new();
        let give_up = Instant::now() + Duration::from_secs(60);
        while outcomes.len() < tickets.len() {
            assert!(Instant::now() < give_up, "transfers never end");
            self.store.wait(Duration::from_secs(1));
            self.store.poll(&mut ends);
            for end in ends.drain(..) {
                assert!(tickets.contains(&end.ticket));
                assert_eq!(outcomes.insert(end.ticket, end.outcome), None, "ends once");
            }
        }
        tickets.iter().filter_map(|ticket| outcomes.get(ticket).copied()).collect()
    }

    pub(crate) fn run(&mut self, op: RemoteOp, numbers: Range<u64>, bytes: usize) -> Vec<RemoteOutcome> {
        let tickets = self.begin(op, numbers, bytes, PATIENCE);
        self.ends(&tickets)
    }

    pub(crate) fn put(&mut self, numbers: Range<u64>, bytes: usize) -> Vec<RemoteOutcome> {
        numbers
            .clone()
            .enumerate()
            .for_each(|(slot, number)| self.slots.write(slot, &pattern(number, bytes)));
        self.run(RemoteOp::Put, numbers, bytes)
    }

    pub(crate) fn get(&mut self, numbers: Range<u64>, bytes: usize) -> Vec<RemoteOutcome> {
        self.fill(0..(numbers.end - numbers.start) as usize, 0xee);
        let outcomes = self.run(RemoteOp::Get, numbers.clone(), bytes);
        for (slot, (number, outcome)) in numbers.zip(&outcomes).enumerate() {
            let found = self.content(slot);
            assert!(
                *outcome != DONE || found[..bytes] == pattern(number, bytes),
                "other bytes than were put"
            );
            assert!(found[bytes..].iter().all(|byte| *byte == 0xee), "nothing is written behind the value");
        }
        outcomes
    }

    pub(crate) fn fill(&self, slots: Range<usize>, byte: u8) {
        self.slots.fill(slots, byte);
    }

    pub(crate) fn content(&self, slot: usize) -> Vec<u8> {
        self.slots.content(slot)
    }

    pub(crate) fn cancel(&self, tickets: &[u64]) {
        self.store.cancel(tickets);
    }

    pub(crate) fn stats(&self) -> RingStats {
        self.store.stats()
    }
}
