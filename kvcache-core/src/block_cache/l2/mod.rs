//! L2 of a block cache: blocks that other caches of the same namespace stored, and that this one stores for them.
//!
//! A miss in L1 asks the ring, within a time that is bounded; whatever goes wrong there is a miss. Blocks are *demoted*
//! in the background straight from their slots, which stay pinned until the transfer has ended: a bounded number at a
//! time, and what does not fit is left out and counted. One thread takes the ends of transfers to whoever waits for them.

mod router;
#[cfg(test)]
pub(super) mod test_ring;
#[cfg(test)]
mod tests;
mod transfers;

use std::collections::HashSet;
use std::mem::MaybeUninit;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};

use crate::BlockKey;
use crate::directory::Directory;
use crate::eviction::SlotId;
use crate::fingerprint::{Namespace, ShardFingerprint};
use crate::planner::Ingestion;
use crate::remote::{Presence, PresenceAnswer, RemoteKey, RemoteOutcome, RemoteSpace, RemoteStore};
use crate::store::SlotMemory;
use router::Router;

/// How a block cache uses L2.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct L2Config {
    /// Whose blocks they are: caches with another name share nothing with this one.
    pub namespace: Namespace,
    /// Which of an engine's shards the blocks are, to share with that engine. `None` shares with block caches of blocks this
    /// long.
    pub shard: Option<ShardFingerprint>,
    /// Which blocks go there.
    pub ingestion: Ingestion,
    /// How long a match waits for the servers.
    pub match_timeout: Duration,
    /// How long a get or a delete waits for them.
    pub fetch_timeout: Duration,
    /// How long a demotion may take in the background; its slot is pinned that long.
    pub demote_timeout: Duration,
    /// Blocks on their way to L2, at most. More are left out.
    pub demotions_max: usize,
}

impl L2Config {
    /// Every block is demoted, 64 at a time, in 10 s; a match waits 50 ms at most and a get 2 s.
    pub fn new(namespace: Namespace) -> Self {
        Self {
            namespace,
            shard: None,
            ingestion: Ingestion::All,
            match_timeout: Duration::from_millis(50),
            fetch_timeout: Duration::from_secs(2),
            demote_timeout: Duration::from_secs(10),
            demotions_max: 64,
        }
    }
}

/// What a cache has done with L2.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct L2Stats {
    /// Questions about presence.
    pub questions: u64,
    /// Those that were not answered in time: only L1 counted.
    pub questions_late: u64,
    /// Blocks fetched and verified.
    pub fetched: u64,
    /// Blocks asked for that no server has.
    pub missing: u64,
    /// Blocks asked for that did not come: late, damaged, unreachable.
    pub fetch_failed: u64,
    /// Blocks stored.
    pub demoted: u64,
    /// Blocks that a server refused, or that did not arrive in time.
    pub demote_failed: u64,
    /// Blocks left out because too many were on their way.
    pub demote_dropped: u64,
    /// Blocks on their way now.
    pub demoting: usize,
}

#[derive(Default)]
struct Counters {
    questions: AtomicU64,
    questions_late: AtomicU64,
    fetched: AtomicU64,
    missing: AtomicU64,
    fetch_failed: AtomicU64,
    demoted: AtomicU64,
    demote_failed: AtomicU64,
    demote_dropped: AtomicU64,
}

pub(super) struct L2 {
    config: L2Config,
    block_bytes: usize,
    directory: Arc<Directory>,
    memory: Arc<dyn SlotMemory>,
    router: Router,
    presence: Mutex<Asking>,
    /// Locked from before blocks are pinned in L1 until they are on their way: what was pinned before a clearing must not go
    /// where blocks go after it, nor the other way round.
    space: RwLock<RemoteSpace>,
    /// Blocks that were demoted because they are hot, so that they are not again and again. Emptied when it is larger than
    /// several times L1.
    hot: Mutex<HashSet<BlockKey>>,
    counters: Arc<Counters>,
}

struct Asking {
    presence: Box<dyn Presence>,
    next: u64,
}

impl L2 {
    pub(super) fn open(
        config: L2Config,
        store: Arc<dyn RemoteStore>,
        mut presence: Box<dyn Presence>,
        directory: Arc<Directory>,
        memory: Arc<dyn SlotMemory>,
        block_bytes: usize,
    ) -> std::io::Result<Self> {
        let space = space_of(&config, block_bytes, 0);
        presence.set_spaces(&[space]);
        let counters = Arc::new(Counters::default());
        let router = Router::start(store, directory.clone(), memory.clone(), counters.clone())?;
        Ok(Self {
            config,
            block_bytes,
            directory,
            memory,
            router,
            presence: Mutex::new(Asking { presence, next: 0 }),
            space: RwLock::new(space),
            hot: Mutex::default(),
            counters,
        })
    }

    /// How many of `keys`, from the first on, are present in L2 or in L1. One round trip a server.
    pub(super) fn match_prefix(&self, keys: &[BlockKey]) -> usize {
        let Some(present) = self.ask(keys) else { return 0 };
        let here = |key: &BlockKey| self.directory.slot_of(key).is_some();
        keys.iter().zip(present).take_while(|(key, there)| *there || here(key)).count()
    }

    fn ask(&self, keys: &[BlockKey]) -> Option<Vec<bool>> {
        let give_up = Instant::now() + self.config.match_timeout;
        self.counters.questions.fetch_add(1, Ordering::Relaxed);
        let answer = self.presence.try_lock_until(give_up).and_then(|mut asking| {
            asking.next += 1;
            let question = asking.next;
            let mut answers: Vec<PresenceAnswer> = Vec::new();
            asking.presence.ask(question, keys, give_up.saturating_duration_since(Instant::now()));
            loop {
                asking.presence.poll(&mut answers);
                // Others are answers to questions that were given up.
                if let Some(answer) = answers.drain(..).find(|answer| answer.question == question) {
                    return Some(answer.present);
                }
                // A little longer than asked for: the answer then says at least what is known.
                let left = (give_up + self.config.match_timeout / 4).checked_duration_since(Instant::now())?;
                asking.presence.wait(left);
            }
        });
        if answer.is_none() {
            self.counters.questions_late.fetch_add(1, Ordering::Relaxed);
        }
        answer
    }

    /// Where blocks are stored now.
    pub(super) fn space(&self) -> RemoteSpace {
        *self.space.read()
    }

    /// Does `store` unless L1 was cleared since blocks were stored in `space`, or is meanwhile.
    pub(super) fn unless_cleared(&self, space: RemoteSpace, store: impl FnOnce()) {
        let current = self.space.read();
        if *current == space {
            store();
        }
    }

    /// Fetches blocks from `space` into `places`; whether each is there. Those that are not may hold anything.
    pub(super) fn fetch(
        &self,
        space: RemoteSpace,
        keys: &[BlockKey],
        places: Vec<&mut [MaybeUninit<u8>]>,
    ) -> Vec<bool> {
        let outcomes = self.router.fetch(&names(space, keys), places, self.config.fetch_timeout);
        for outcome in &outcomes {
            let counter = match outcome {
                RemoteOutcome::Done => &self.counters.fetched,
                RemoteOutcome::Missing => &self.counters.missing,
                RemoteOutcome::Failed(_) => &self.counters.fetch_failed,
            };
            counter.fetch_add(1, Ordering::Relaxed);
        }
        outcomes.iter().map(|outcome| *outcome == RemoteOutcome::Done).collect()
    }

    /// Whether each block was removed. Waits for demotions of these blocks first: they would put them back.
    pub(super) fn delete(&self, keys: &[BlockKey]) -> Vec<bool> {
        let names = names(self.space(), keys);
        let mut hot = self.hot.lock();
        keys.iter().for_each(|key| {
            hot.remove(key);
        });
        drop(hot);
        self.router.settle(&names, self.config.fetch_timeout);
        let outcomes = self.router.delete(&names, self.config.fetch_timeout);
        outcomes.iter().map(|outcome| *outcome == RemoteOutcome::Done).collect()
    }

    /// Clears L1 by `clear_l1`. From then on nothing is found in L2 that was stored before, by this cache or by others, nor
    /// shared with others.
    pub(super) fn clear(&self, clear_l1: impl FnOnce()) {
        // No other cache may come to the same number by chance: the address of a fresh allocation, the time, the process.
        let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let parts = (clock.map_or(0, |now| now.as_nanos() as u64), std::process::id());
        let generation =
            xxhash_rust::xxh3::xxh3_64_with_seed(&parts.0.to_le_bytes(), u64::from(parts.1)).max(1);
        let space = space_of(&self.config, self.block_bytes, generation);
        {
            // Blocks are demoted under the name of the space in which they were in L1: see `send`.
            let mut current = self.space.write();
            clear_l1();
            *current = space;
        }
        // Of several that clear at a time, the one who comes last here says what is so.
        let mut asking = self.presence.lock();
        let current = *self.space.read();
        asking.presence.set_spaces(&[current]);
        drop(asking);
        self.hot.lock().clear();
    }

    /// `keys` were stored in L1 just now.
    pub(super) fn stored(&self, keys: &[BlockKey]) {
        if self.config.ingestion == Ingestion::All {
            self.demote(keys);
        }
        self.filled();
    }

    /// Blocks were stored in L1, from wherever.
    pub(super) fn filled(&self) {
        if self.config.ingestion == Ingestion::Evicted {
            self.evict_ahead();
        }
    }

    /// `keys` were found in L1, and used.
    pub(super) fn used(&self, keys: &[BlockKey]) {
        if self.config.ingestion != Ingestion::Hot {
            return;
        }
        let mut hot = self.hot.lock();
        if hot.len() > 4 * self.memory.slot_count() as usize {
            hot.clear();
        }
        let fresh: Vec<BlockKey> = keys.iter().copied().filter(|key| hot.insert(*key)).collect();
        drop(hot);
        self.demote(&fresh);
    }

    fn demote(&self, keys: &[BlockKey]) {
        let space = self.space.read();
        let pinned = keys.iter().filter_map(|key| {
            let slot = *self.directory.begin_load(std::slice::from_ref(key)).first()?;
            Some((slot, *key))
        });
        self.send(*space, pinned.collect());
    }

    /// Keeps a sixteenth of the slots free, so that what must leave L1 leaves it before its slot is needed.
    fn evict_ahead(&self) {
        let space = self.space.read();
        let wanted = (self.memory.usable_slots() as usize / 16).max(1).min(self.config.demotions_max);
        let free = self.directory.free_slots() + self.router.demoting();
        if free < wanted {
            self.send(*space, self.directory.evict_ahead(wanted - free));
        }
    }

    /// Sends blocks whose slots nobody else writes until they are given back.
    fn send(&self, space: RemoteSpace, blocks: Vec<(SlotId, BlockKey)>) {
        let mut sent = Vec::with_capacity(blocks.len());
        for (slot, block) in blocks {
            // What an earlier process left may be damaged, and is not spread before it was verified.
            let address = self.memory.slot_address(slot);
            let good = self.directory.key_of(slot).is_none_or(|key| key == block)
                && self.memory.may_demote(slot, &block);
            match address.filter(|_| good) {
                Some(address) => sent.push((slot, RemoteKey { space, block }, address)),
                None => self.directory.end_load(&[slot]),
            }
        }
        let bytes = self.block_bytes;
        let dropped = self.router.demote(&sent, bytes, self.config.demotions_max, self.config.demote_timeout);
        self.counters.demote_dropped.fetch_add(dropped as u64, Ordering::Relaxed);
    }

    pub(super) fn stats(&self) -> L2Stats {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        L2Stats {
            questions: of(&self.counters.questions),
            questions_late: of(&self.counters.questions_late),
            fetched: of(&self.counters.fetched),
            missing: of(&self.counters.missing),
            fetch_failed: of(&self.counters.fetch_failed),
            demoted: of(&self.counters.demoted),
            demote_failed: of(&self.counters.demote_failed),
            demote_dropped: of(&self.counters.demote_dropped),
            demoting: self.router.demoting(),
        }
    }

    /// Waits until no block is on its way to L2, for `timeout` at most; whether none is.
    pub(super) fn flush(&self, timeout: Duration) -> bool {
        self.router.wait_for_demotions(timeout)
    }
}

fn names(space: RemoteSpace, keys: &[BlockKey]) -> Vec<RemoteKey> {
    keys.iter().map(|block| RemoteKey { space, block: *block }).collect()
}

fn space_of(config: &L2Config, block_bytes: usize, generation: u64) -> RemoteSpace {
    let shard = config
        .shard
        .unwrap_or_else(|| ShardFingerprint::of_fields([("block_bytes", &block_bytes.to_le_bytes()[..])]));
    RemoteSpace::new(&config.namespace, &shard, block_bytes as u64, generation)
}
