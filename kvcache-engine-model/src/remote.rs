//! The servers behind L1: what they hold, and what is on its way from and to them.

use std::collections::{HashMap, VecDeque};

use kvcache_core::BlockKey;
use kvcache_core::directory::{Directory, FillId};
use kvcache_core::eviction::{EvictionPolicy, SlotId};
use kvcache_core::planner::Arrival;

use crate::block_pool::ContentId;
use crate::link::Link;
use crate::profile::{L2, Profile};

pub(crate) struct Remote {
    /// Blocks are independent of each other there.
    directory: Directory,
    l2: L2,
    slot_bytes: u64,
    receive: Link,
    send: Link,
    /// In the order in which they end.
    fetches: VecDeque<Fetch>,
    /// When each content that is being fetched is there.
    fetched_at: HashMap<ContentId, u64>,
    demotions: VecDeque<Demotion>,
    /// What has been stored in L1 and waits for its turn to be sent.
    candidates: VecDeque<(BlockKey, ContentId)>,
    candidates_max: usize,
    pub(crate) demoted_slots: u64,
    pub(crate) fetched_slots: u64,
}

struct Fetch {
    end_ns: u64,
    block: Fetched,
}

/// A block that is sent for.
#[derive(Clone, Copy)]
pub(crate) struct Fetched {
    pub(crate) slot: SlotId,
    pub(crate) fill: FillId,
    pub(crate) content: ContentId,
    /// For whom.
    pub(crate) arrival: Arrival,
}

struct Demotion {
    end_ns: u64,
    key: BlockKey,
    pinned: Vec<SlotId>,
}

/// Slots on their way to L2 at most, as the connector's default is.
const DEMOTING_MAX: usize = 64;

impl Remote {
    pub(crate) fn new(profile: &Profile, l2: L2, policy: Box<dyn EvictionPolicy>) -> Self {
        Self {
            directory: Directory::new(profile.l2_slots(), policy),
            l2,
            slot_bytes: profile.slot_bytes(),
            receive: Link::new(l2.get_gb_s),
            send: Link::new(l2.put_gb_s),
            fetches: VecDeque::new(),
            fetched_at: HashMap::new(),
            demotions: VecDeque::new(),
            candidates: VecDeque::new(),
            candidates_max: profile.l1_slots() as usize,
            demoted_slots: 0,
            fetched_slots: 0,
        }
    }

    pub(crate) fn has(&self, key: &BlockKey) -> bool {
        self.directory.slot_of(key).is_some()
    }

    /// When a content that is on its way is there.
    pub(crate) fn fetched_at(&self, content: ContentId) -> Option<u64> {
        self.fetched_at.get(&content).copied()
    }

    /// Slots on their way from L2.
    pub(crate) fn fetching(&self) -> usize {
        self.fetches.len()
    }

    /// When so many slots more would be there.
    pub(crate) fn would_end(&self, now_ns: u64, slots: usize) -> u64 {
        let bytes = self.slot_bytes * slots as u64;
        let fixed_us = self.l2.latency_us + self.l2.slot_us * slots as f64;
        self.receive.would_end(now_ns, bytes, fixed_us)
    }

    /// Notes that these are asked for.
    pub(crate) fn touch(&self, keys: &[BlockKey]) {
        self.directory.touch(keys);
    }

    /// Sends for a block, from `from_ns` on; when it is there.
    pub(crate) fn fetch(&mut self, from_ns: u64, block: Fetched) -> u64 {
        let end_ns = self.receive.transfer(from_ns, self.slot_bytes, self.l2.slot_us);
        self.fetches.push_back(Fetch { end_ns, block });
        self.fetched_at.insert(block.content, end_ns);
        end_ns
    }

    /// When the answer comes to what L2 has.
    pub(crate) fn asked_ns(&self, now_ns: u64) -> u64 {
        now_ns.saturating_add(crate::time::whole_ns(crate::time::from_us(self.l2.latency_us)))
    }

    /// A block that has come by now.
    pub(crate) fn come(&mut self, now_ns: u64) -> Option<Fetched> {
        let fetch = self.fetches.pop_front_if(|fetch| fetch.end_ns <= now_ns)?;
        self.fetched_at.remove(&fetch.block.content);
        self.fetched_slots += 1;
        Some(fetch.block)
    }

    /// Everything that L1 has just stored may go to L2. At the bound the oldest are given up.
    pub(crate) fn offer(&mut self, key: BlockKey, content: ContentId) {
        if self.candidates.len() >= self.candidates_max.max(1) {
            self.candidates.pop_front();
        }
        self.candidates.push_back((key, content));
    }

    /// Sends what waits, as far as it is still in L1 and not there already, and ends what has arrived.
    pub(crate) fn advance(&mut self, l1: &Directory, now_ns: u64) {
        loop {
            while let Some(demotion) = self.demotions.pop_front_if(|demotion| demotion.end_ns <= now_ns) {
                l1.end_load(&demotion.pinned);
                self.store(&demotion.key);
            }
            if self.demotions.len() >= DEMOTING_MAX || !self.send_next(l1, now_ns) {
                return;
            }
        }
    }

    /// Sends the next candidate; false if there is none.
    fn send_next(&mut self, l1: &Directory, now_ns: u64) -> bool {
        while let Some((key, _)) = self.candidates.pop_front() {
            if self.has(&key) {
                continue;
            }
            let pinned = l1.begin_load(&[key]);
            if pinned.is_empty() {
                continue;
            }
            let end_ns = self.send.transfer(now_ns, self.slot_bytes, self.l2.slot_us);
            self.demotions.push_back(Demotion { end_ns, key, pinned });
            return true;
        }
        false
    }

    fn store(&mut self, key: &BlockKey) {
        let reservation = self.directory.begin_offload(&[*key], 0, 1);
        let fills: Vec<_> = reservation.reserved.iter().map(|of| (of.slot, of.fill)).collect();
        self.demoted_slots += self.directory.complete_fills(&fills, true).len() as u64;
    }

    /// When something here happens next.
    pub(crate) fn next_ns(&self) -> Option<u64> {
        let fetch = self.fetches.front().map(|fetch| fetch.end_ns);
        let demotion = self.demotions.front().map(|demotion| demotion.end_ns);
        fetch.into_iter().chain(demotion).min()
    }
}
