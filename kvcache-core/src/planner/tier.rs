//! What the scheduler side knows of L2: who has been asked what, which slots are on their way from it, and which blocks are
//! to go there.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use super::PlannerConfig;
use super::counters::RemoteTierStats;
use super::fetch_room::{Arrival, FetchRoom};
use crate::BlockKey;
use crate::directory::{Directory, evictions_per_request_max};
use crate::eviction::SlotId;
use crate::remote::{Presence, PresenceAnswer, RemoteSpace};
use crate::report::RemoteShard;

/// Which blocks go to L2.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Ingestion {
    /// Every block, when it has been stored in L1.
    #[default]
    All,
    /// A block that has been used again after it was stored.
    Hot,
    /// A block that leaves L1.
    Evicted,
}

/// How a planner uses L2.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RemoteTierConfig {
    /// Which blocks go there.
    pub ingestion: Ingestion,
    /// The longest a request waits to hear what L2 has.
    pub presence_wait: Duration,
    /// The longest a request waits for blocks on their way from L2, from its first question on. The cost model may say
    /// less, where computing them is known to be quicker.
    pub fetch_wait: Duration,
    /// Slots that one fetch job brings: the first of them are ready while later ones are on their way.
    pub fetch_job_slots: usize,
    /// Slots on their way to L2 at most.
    pub demoting_max: usize,
    /// Drawn at random by the caller: after a reset it separates this engine's values from all others.
    pub nonce: u64,
}

impl Default for RemoteTierConfig {
    fn default() -> Self {
        Self {
            ingestion: Ingestion::All,
            presence_wait: Duration::from_millis(50),
            fetch_wait: Duration::from_secs(2),
            fetch_job_slots: 16,
            demoting_max: 64,
            nonce: 0,
        }
    }
}

/// How far a request has come with L2. It asks once, once more after a reset, and when there is room for what found none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum RemoteState {
    #[default]
    Fresh,
    Asked {
        question: u64,
        since: Duration,
    },
    /// What L2 has is on its way or waits for room, or it has nothing.
    Over,
}

/// What a question is about.
pub(super) enum Question {
    Request(String, Asked),
    Demotion(Vec<BlockKey>),
}

/// The keys of a question on behalf of a request: group and position of each, in the question's order.
pub(super) type Asked = Vec<(usize, usize)>;

/// How often something is fetched although that is measured to be slower than computing.
const TRY_AGAIN_AFTER: Duration = Duration::from_secs(5);

/// After so many fetch jobs in a row of which nothing came, L2 is left alone as one that is slow is: to ask for what cannot
/// be had takes slots from L1.
pub(super) const FAILED_IN_ROW_MAX: u32 = 16;

/// Servers have at least so long to say what they have: demotions wait for it, and nobody in particular.
const ANSWER_MIN: Duration = Duration::from_millis(20);

/// This slot's block is in L2 as well.
const IN_L2: u8 = 1;
/// This slot's block came from L2 and has not been used since.
const FRESH_FROM_L2: u8 = 2;

/// The requests that a fetch job is for.
#[derive(Default)]
pub(super) struct Waiters {
    /// They wait for it.
    pub(super) wanting: BTreeSet<String>,
    /// They have begun without it.
    pub(super) passed: BTreeSet<String>,
    /// Whether it was cancelled at a time when nobody wanted it.
    pub(super) cancelled: bool,
}

pub(super) struct Tier {
    pub(super) config: RemoteTierConfig,
    presence: Box<dyn Presence>,
    shards: Option<Vec<RemoteShard>>,
    /// Zero while values are shared with other engines: see [`RemoteSpace::new`].
    pub(super) generation: u64,
    next_question: u64,
    questions: HashMap<u64, Question>,
    answers: Vec<PresenceAnswer>,
    flags: Vec<u8>,
    /// By the number of a fetch job.
    pub(super) waiters: HashMap<u64, Waiters>,
    /// By key: the fetch job that brings it.
    pub(super) fetching: HashMap<BlockKey, u64>,
    /// Prefetches hold at most a quarter of the slots, so that they cannot starve what is stored and used now, nor each
    /// other.
    pub(super) room: FetchRoom,
    /// The names of those who queue for room.
    pub(super) queued: BTreeMap<Arrival, String>,
    /// Slots ever sent for, and those of them that have come or failed. They come about in the order of the jobs.
    pub(super) sent_for: u64,
    pub(super) come: u64,
    /// Fetch jobs in a row, but for those that nobody wanted, of which nothing came.
    pub(super) failed_in_row: u32,
    /// How many had come when somebody last looked, and since when it is so many.
    progress: (u64, Duration),
    candidates: VecDeque<BlockKey>,
    /// Slots on their way to L2, or asked about for that.
    pub(super) demoting: usize,
    /// When something was last fetched although that is measured to be slower than computing, or was first left out.
    tried_at: Option<Duration>,
    pub(super) counters: RemoteTierStats,
}

impl Tier {
    pub(super) fn new(config: RemoteTierConfig, presence: Box<dyn Presence>) -> Self {
        Self {
            config,
            presence,
            shards: None,
            generation: 0,
            next_question: 0,
            questions: HashMap::new(),
            answers: Vec::new(),
            flags: Vec::new(),
            waiters: HashMap::new(),
            fetching: HashMap::new(),
            room: FetchRoom::default(),
            queued: BTreeMap::new(),
            sent_for: 0,
            come: 0,
            failed_in_row: 0,
            progress: (0, Duration::ZERO),
            candidates: VecDeque::new(),
            demoting: 0,
            tried_at: None,
            counters: RemoteTierStats::default(),
        }
    }

    /// Every rank has reported. Without a way to L2 on each of them there is none.
    ///
    /// What was reset before a restart, by this engine or the one before it in these slabs, stays apart from the others'
    /// values: `epoch` says so.
    pub(super) fn start(
        &mut self,
        planner: &PlannerConfig,
        shards: Option<Vec<RemoteShard>>,
        slots: u32,
        epoch: u64,
    ) {
        self.shards = shards;
        self.flags = vec![0; slots as usize];
        self.room = FetchRoom::new(evictions_per_request_max(slots));
        if epoch > 0 {
            self.leave_the_others(epoch);
        }
        self.tell_spaces(planner);
    }

    fn leave_the_others(&mut self, epoch: u64) {
        let seed = [self.config.nonce.to_le_bytes(), epoch.to_le_bytes()].concat();
        self.generation = xxhash_rust::xxh3::xxh3_64(&seed).max(1);
    }

    pub(super) fn is_active(&self) -> bool {
        self.shards.is_some()
    }

    fn tell_spaces(&mut self, planner: &PlannerConfig) {
        let spaces: Vec<RemoteSpace> = self
            .shards
            .iter()
            .flatten()
            .map(|of| RemoteSpace::new(&planner.namespace, &of.shard, of.value_bytes, self.generation))
            .collect();
        if !spaces.is_empty() {
            self.presence.set_spaces(&spaces);
        }
    }

    /// Nothing that was stored before, here or by others, is asked for again.
    pub(super) fn reset(&mut self, planner: &PlannerConfig, epoch: u64) {
        self.leave_the_others(epoch);
        self.questions.clear();
        self.candidates.clear();
        self.flags.fill(0);
        self.fetching.clear();
        self.demoting = 0;
        self.tell_spaces(planner);
    }

    pub(super) fn ask(&mut self, about: Question, keys: &[BlockKey]) -> u64 {
        let question = self.next_question;
        self.next_question += 1;
        // What healthy servers have said must be there before the request stops waiting for the others. Who does not want to
        // wait at all may have an answer before his turn comes.
        self.presence.ask(question, keys, (self.config.presence_wait * 4 / 5).max(ANSWER_MIN));
        self.questions.insert(question, about);
        self.counters.asked_blocks += keys.len() as u64;
        question
    }

    /// The questions answered since the last call. Answers to those from before a reset are dropped.
    pub(super) fn take_answers(&mut self) -> Vec<(u64, Question, Vec<bool>)> {
        if self.questions.is_empty() {
            return Vec::new();
        }
        self.presence.poll(&mut self.answers);
        let questions = &mut self.questions;
        self.answers
            .drain(..)
            .filter_map(|answer| {
                let about = questions.remove(&answer.question)?;
                Some((answer.question, about, answer.present))
            })
            .collect()
    }

    /// Whether it is time to measure again what was found to be slow: networks and servers get better.
    pub(super) fn may_try_again(&mut self, now: Duration) -> bool {
        let due = now.saturating_sub(*self.tried_at.get_or_insert(now)) >= TRY_AGAIN_AFTER;
        if due {
            self.tried_at = Some(now);
        }
        due
    }

    pub(super) fn is_asked_anything(&self) -> bool {
        !self.questions.is_empty()
    }

    /// Slots on their way from L2.
    pub(super) fn fetching(&self) -> usize {
        self.fetching.len()
    }

    /// Looks at the clock if something has come since the last call.
    pub(super) fn note_progress(&mut self, now: Duration) {
        if self.progress.0 != self.come {
            self.progress = (self.come, now);
        }
    }

    /// Since when nothing has come.
    pub(super) fn silent_since(&self) -> Duration {
        self.progress.1
    }

    pub(super) fn forget_slot(&mut self, slot: SlotId) {
        if let Some(flags) = self.flags.get_mut(slot.index()) {
            *flags = 0;
        }
    }

    pub(super) fn note_fetched(&mut self, slot: SlotId) {
        if let Some(flags) = self.flags.get_mut(slot.index()) {
            *flags = IN_L2 | FRESH_FROM_L2;
        }
    }

    pub(super) fn note_demoted(&mut self, slot: SlotId) {
        if let Some(flags) = self.flags.get_mut(slot.index()) {
            *flags |= IN_L2;
        }
    }

    pub(super) fn is_in_l2(&self, slot: SlotId) -> bool {
        self.flags.get(slot.index()).is_some_and(|flags| flags & IN_L2 != 0)
    }

    /// These blocks left L1 because their slots were needed at once. Call before the slots are used for others.
    pub(super) fn note_evicted(&mut self, evicted: &[(SlotId, BlockKey)]) {
        if self.is_active() && self.config.ingestion == Ingestion::Evicted {
            let unsent = evicted.iter().filter(|(slot, _)| !self.is_in_l2(*slot)).count();
            self.counters.dropped_demotions += unsent as u64;
        }
    }

    /// Whether a slot's block is used for the first time since it came from L2.
    pub(super) fn use_from_l2(&mut self, slot: SlotId) -> bool {
        let Some(flags) = self.flags.get_mut(slot.index()) else { return false };
        let fresh = *flags & FRESH_FROM_L2 != 0;
        *flags &= !FRESH_FROM_L2;
        fresh
    }

    /// These blocks are worth having in L2.
    pub(super) fn suggest(&mut self, keys: impl Iterator<Item = BlockKey>) {
        for key in keys {
            if self.candidates.len() >= self.flags.len() {
                self.counters.dropped_demotions += 1;
            } else {
                self.candidates.push_back(key);
            }
        }
    }

    /// The next blocks to bring to L2 that are still here and not there yet.
    pub(super) fn next_candidates(&mut self, directory: &Directory, most: usize) -> Vec<BlockKey> {
        let mut keys = Vec::new();
        while keys.len() < most
            && let Some(key) = self.candidates.pop_front()
        {
            if directory.slot_of(&key).is_some_and(|slot| !self.is_in_l2(slot)) {
                keys.push(key);
            }
        }
        keys
    }

    pub(super) fn has_candidates(&self) -> bool {
        !self.candidates.is_empty()
    }
}
