//! A ring that is a hash map, with faults, for tests of caches over it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::*;
use crate::block_cache::BlockCache;
use crate::eviction::Lru;
use crate::fakes::fake_memory::{FakeMemory, MemoryBugs, Slab};
use crate::fakes::random::mix;
use crate::remote::{RemoteEnd, RemoteFailure, RemoteOp, RemoteTransfer};

pub(in crate::block_cache) const BLOCK_BYTES: usize = 64;
pub(in crate::block_cache) const SOON: Duration = Duration::from_secs(20);

/// Values and manners that several caches share.
#[derive(Default)]
pub(in crate::block_cache) struct FakeRing {
    pub(in crate::block_cache) values: Mutex<HashMap<RemoteKey, Vec<u8>>>,
    /// Every so many thousandth transfer fails.
    pub(in crate::block_cache) faulty: Mutex<(u32, u64)>,
    /// While true nothing ends, and questions are not answered.
    pub(in crate::block_cache) stuck: Mutex<bool>,
    /// Done before the next get.
    pub(in crate::block_cache) before_get: Mutex<Option<Box<dyn FnOnce() + Send>>>,
    /// Done before the next answer of what is present.
    pub(in crate::block_cache) before_answer: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

#[derive(Default)]
pub(in crate::block_cache) struct FakeStore {
    ring: Arc<FakeRing>,
    waiting: Mutex<Vec<RemoteTransfer>>,
    ends: Mutex<Vec<RemoteEnd>>,
    submitted: Condvar,
}

impl FakeStore {
    fn of(ring: &Arc<FakeRing>) -> Arc<Self> {
        Arc::new(Self { ring: ring.clone(), ..Self::default() })
    }

    /// Transfers happen when they are polled: as late as can be.
    fn work(&self) {
        if *self.ring.stuck.lock() {
            return;
        }
        for transfer in std::mem::take(&mut *self.waiting.lock()) {
            let outcome = self.transfer(&transfer);
            self.ends.lock().push(RemoteEnd { ticket: transfer.ticket, outcome });
        }
    }

    fn transfer(&self, transfer: &RemoteTransfer) -> RemoteOutcome {
        let mut values = self.ring.values.lock();
        let mut faulty = self.ring.faulty.lock();
        faulty.1 = mix(faulty.1);
        let fails = faulty.1 % 1000 < u64::from(faulty.0);
        match transfer.op {
            RemoteOp::Put if !fails => {
                // SAFETY: the cache promised at `submit` that the slot is readable and not written until the end is polled.
                let value =
                    unsafe { std::slice::from_raw_parts(transfer.address as *const u8, transfer.bytes) };
                values.insert(transfer.key, value.to_vec());
                RemoteOutcome::Done
            }
            RemoteOp::Get => {
                if let Some(something) = self.ring.before_get.lock().take() {
                    something();
                }
                let Some(value) = values.get(&transfer.key) else { return RemoteOutcome::Missing };
                // SAFETY: the cache promised at `submit` that the place is writable and its alone until the end is polled.
                let place =
                    unsafe { std::slice::from_raw_parts_mut(transfer.address as *mut u8, transfer.bytes) };
                if fails {
                    place.fill(0xbb);
                    return RemoteOutcome::Failed(RemoteFailure::Corrupt);
                }
                place.copy_from_slice(value);
                RemoteOutcome::Done
            }
            RemoteOp::Delete if values.remove(&transfer.key).is_none() => RemoteOutcome::Missing,
            RemoteOp::Delete => RemoteOutcome::Done,
            RemoteOp::Put => RemoteOutcome::Failed(RemoteFailure::Refused),
        }
    }
}

impl RemoteStore for FakeStore {
    unsafe fn submit(&self, batch: &[RemoteTransfer], _patience: Duration) {
        self.waiting.lock().extend(batch);
        self.submitted.notify_all();
    }

    fn poll(&self, ended: &mut Vec<RemoteEnd>) {
        self.work();
        ended.append(&mut self.ends.lock());
    }

    fn wait(&self, timeout: Duration) -> bool {
        let mut waiting = self.waiting.lock();
        let nothing = |waiting: &mut Vec<RemoteTransfer>| waiting.is_empty() || *self.ring.stuck.lock();
        self.submitted.wait_while_for(&mut waiting, nothing, timeout.min(Duration::from_millis(5)));
        true
    }

    fn cancel(&self, tickets: &[u64]) {
        let mut waiting = self.waiting.lock();
        let cancelled = waiting.extract_if(.., |transfer| tickets.contains(&transfer.ticket));
        let outcome = RemoteOutcome::Failed(RemoteFailure::Cancelled);
        self.ends.lock().extend(cancelled.map(|transfer| RemoteEnd { ticket: transfer.ticket, outcome }));
    }
}

pub(in crate::block_cache) struct FakePresence {
    ring: Arc<FakeRing>,
    spaces: Vec<RemoteSpace>,
    asked: Vec<(u64, Vec<BlockKey>)>,
}

impl Presence for FakePresence {
    fn set_spaces(&mut self, spaces: &[RemoteSpace]) {
        self.spaces = spaces.to_vec();
    }

    fn ask(&mut self, question: u64, keys: &[BlockKey], _patience: Duration) {
        self.asked.push((question, keys.to_vec()));
    }

    fn poll(&mut self, answers: &mut Vec<PresenceAnswer>) {
        if *self.ring.stuck.lock() {
            return;
        }
        if let Some(something) = self.ring.before_answer.lock().take() {
            something();
        }
        let values = self.ring.values.lock();
        let has = |block: &BlockKey| {
            self.spaces.iter().all(|space| values.contains_key(&RemoteKey { space: *space, block: *block }))
        };
        answers.extend(
            self.asked
                .drain(..)
                .map(|(question, keys)| PresenceAnswer { question, present: keys.iter().map(has).collect() }),
        );
    }
}

pub(in crate::block_cache) fn cache(
    ring: &Arc<FakeRing>,
    slots: u32,
    change: impl FnOnce(&mut L2Config),
) -> BlockCache {
    cache_with(ring, slots, |cache| cache, change)
}

/// As [`cache`], and what is below L2 as `prepare` makes it.
pub(in crate::block_cache) fn cache_with(
    ring: &Arc<FakeRing>,
    slots: u32,
    prepare: impl FnOnce(BlockCache) -> BlockCache,
    change: impl FnOnce(&mut L2Config),
) -> BlockCache {
    let slab = Slab::new(slots, BLOCK_BYTES);
    let memory = FakeMemory::new(&slab, slots, MemoryBugs::default());
    let mut config = L2Config::new(Namespace::of_text("test"));
    // A test on a busy machine must not take lateness for absence.
    config.match_timeout = SOON;
    config.demotions_max = 1000;
    change(&mut config);
    let presence = FakePresence { ring: ring.clone(), spaces: Vec::new(), asked: Vec::new() };
    let cache = prepare(BlockCache::new(memory, Box::new(Lru::new(slots)), None, BLOCK_BYTES));
    cache.with_l2(config, FakeStore::of(ring), Box::new(presence)).unwrap()
}
