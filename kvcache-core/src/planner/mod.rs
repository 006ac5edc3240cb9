//! The scheduler side: turns what the engine says of its requests into plans, and reports into residency.
//!
//! An engine's scheduler asks the same few questions for every request (how much of this prompt can you restore? here
//! are its blocks; here is how far it has been computed) and gets answers at once: nothing in here blocks, waits or does
//! I/O, and time is an argument. The [`Planner`] owns the [`Directory`], numbers the jobs, holds their slots until every
//! rank has acknowledged them, and counts why there was no hit.

mod config;
mod cost;
mod counters;
mod demotion;
mod fetch_room;
mod jobs;
mod loads;
mod offloads;
mod prefetch;
mod request;
mod startup;
mod tier;
mod waiting;

#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::time::Duration;

pub use config::PlannerConfigError;
pub use cost::CostModel;
pub use counters::{MissReason, PlannerStats, RemoteTierStats};
pub use fetch_room::{Arrival, FetchRoom};
pub use request::{KeySource, RequestOptions};
pub use tier::{Ingestion, RemoteTierConfig};

use crate::directory::{Directory, GroupKind, Residency};
use crate::eviction::{EvictionPolicy, SlotId};
use crate::fingerprint::Namespace;
use crate::plan::{EngineHash, JobId, JobKind, StepPlan, Transfer};
use crate::remote::Presence;
use crate::report::Report;
use counters::Counters;
use jobs::{JobTable, Pending};
use request::Request;
use startup::Startup;
use tier::{RemoteState, Tier};

/// One KV cache group of the engine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GroupConfig {
    /// What a hit needs of it.
    pub kind: GroupKind,
    /// Tokens of one engine block of this group.
    pub block_tokens: usize,
}

/// How loads are ordered against the forward pass.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum LoadMode {
    /// Between steps when the load is long compared with a step and other requests can run meanwhile, else layer by
    /// layer within the step.
    #[default]
    Auto,
    /// Always layer by layer within the step. Needs a single group: a failed load of several has no way back.
    Layerwise,
    /// Always between steps.
    Async,
}

/// What a planner needs to know of its engine and its user.
#[derive(Clone, Debug)]
pub struct PlannerConfig {
    /// Separates keys; see [`Namespace`].
    pub namespace: Namespace,
    /// The engine's groups, in its order.
    pub groups: Vec<GroupConfig>,
    /// Engine blocks in a slot.
    pub slot_blocks: usize,
    /// Tokens that one engine hash covers.
    pub hash_tokens: usize,
    /// Where keys come from.
    pub key_source: KeySource,
    /// Ranks that report.
    pub ranks: u32,
    /// The engine's block id that stands for "no block".
    pub null_block: u32,
    /// How to load.
    pub load_mode: LoadMode,
    /// Do not load fewer tokens than this.
    pub min_load_tokens: usize,
    /// The longest a request waits for blocks that are being filled, from its first question on.
    pub fill_wait: Duration,
    /// The longest a request waits for the ranks' slabs after a start.
    pub startup_wait: Duration,
    /// Store a block when its prefix is seen for this many times; 1 stores at once.
    pub store_on_sight: u8,
    /// Store blocks of the prompt only, not of the answer.
    pub prompt_only: bool,
    /// Keep the engine's hash of each slot, for events: 33 bytes a slot.
    pub keep_hashes: bool,
}

/// Makes the eviction policy for a number of slots, once that number is known.
pub type PolicyFactory = Box<dyn Fn(u32) -> Box<dyn EvictionPolicy> + Send>;

/// The answer to "how much of this prompt can you restore?".
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lookup {
    /// Ask again in the next step.
    Wait,
    /// This many tokens beyond the engine's own can be loaded.
    Hit {
        /// Tokens, a multiple of the engine's block.
        tokens: usize,
        /// Between steps (`true`) or within the step.
        asynchronous: bool,
    },
    /// Nothing to load.
    Miss(MissReason),
}

/// What [`Planner::offload`] did.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Offloading {
    /// The job, if anything is copied.
    pub job: Option<JobId>,
    /// Engine blocks that must not be reused before the job's end is in [`Ended::released`].
    pub held: Vec<u32>,
    /// Slots of the request that the job fills: `(group, slot index within the request)`.
    pub slots: Vec<(u16, usize)>,
    /// Nothing new can be offloaded before this many tokens of the request are computed.
    pub next_tokens: usize,
}

/// A job that has been reported by every rank.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ended {
    /// The job.
    pub id: JobId,
    /// Engine blocks that [`Planner::offload`] held for it.
    pub released: Vec<u32>,
    /// Of an offload: positions in [`Offloading::slots`] whose block is a hit now.
    pub stored: Vec<usize>,
}

/// The scheduler side of the cache. See the [module documentation](self).
pub struct Planner {
    config: PlannerConfig,
    policy: PolicyFactory,
    directory: Option<Directory>,
    startup: Startup,
    requests: HashMap<String, Request>,
    next_arrival: Arrival,
    jobs: JobTable,
    plan: StepPlan,
    /// Bumped by every reset; part of job ids.
    epoch: u32,
    /// The epoch written into slot records: grows over restarts.
    slot_epoch: u64,
    /// Whether the ranks have not been told the epoch yet.
    epoch_unsent: bool,
    /// The engine hash of each slot's block, if kept and if the block was stored.
    hashes: Vec<EngineHash>,
    removed: Vec<EngineHash>,
    cost: CostModel,
    counters: Counters,
    sight: request::SightGate,
    scratch: Vec<Vec<Residency>>,
    activity: u64,
    remote: Option<Tier>,
    /// When a question last made it look at what L2 has answered.
    polled_at: Option<Duration>,
}

impl Planner {
    /// A planner that waits for the ranks' first reports. `config` must pass [`PlannerConfig::check`].
    pub fn new(config: PlannerConfig, policy: PolicyFactory) -> Self {
        let startup = Startup::new(config.ranks);
        let scratch = vec![Vec::new(); config.groups.len()];
        Self {
            config,
            policy,
            directory: None,
            startup,
            requests: HashMap::new(),
            next_arrival: 0,
            jobs: JobTable::default(),
            plan: StepPlan::default(),
            epoch: 0,
            slot_epoch: 0,
            epoch_unsent: false,
            hashes: Vec::new(),
            removed: Vec::new(),
            cost: CostModel::default(),
            counters: Counters::default(),
            sight: request::SightGate::default(),
            scratch,
            activity: 0,
            remote: None,
            polled_at: None,
        }
    }

    /// The same planner with an L2. It is used if every rank reports that it has a way to it.
    #[must_use]
    pub fn with_remote(mut self, config: RemoteTierConfig, presence: Box<dyn Presence>) -> Self {
        self.remote = Some(Tier::new(config, presence));
        self
    }

    /// The engine's groups.
    pub fn groups(&self) -> usize {
        self.config.groups.len()
    }

    /// Ranks that report, numbered from 0.
    pub fn ranks(&self) -> u32 {
        self.config.ranks
    }

    /// Whether keys come from tokens, and not from the engine's hashes.
    pub fn takes_tokens(&self) -> bool {
        matches!(self.config.key_source, KeySource::Tokens(_))
    }

    /// Tokens in one engine block of `group`.
    pub fn block_tokens(&self, group: usize) -> usize {
        self.config.groups[group].block_tokens
    }

    /// Tokens in a slot of `group`.
    pub fn slot_tokens(&self, group: usize) -> usize {
        self.config.groups[group].block_tokens * self.config.slot_blocks
    }

    /// A request enters. Known ids are left as they are.
    pub fn add_request(&mut self, id: &str, options: RequestOptions) {
        if !self.requests.contains_key(id) {
            let request = Request::new(&self.config, options, self.next_arrival);
            self.next_arrival += 1;
            self.requests.insert(id.to_owned(), request);
        }
    }

    /// How many engine hashes of a request are known; [`extend_hashes`](Self::extend_hashes) continues there.
    pub fn known_hashes(&self, id: &str) -> usize {
        self.requests.get(id).map_or(0, |request| request.known_units())
    }

    /// Appends engine hashes of a request, or derives nothing if its keys come from tokens.
    pub fn extend_hashes<'a>(&mut self, id: &str, hashes: impl Iterator<Item = &'a [u8]>) {
        if let Some(request) = self.requests.get_mut(id) {
            request.extend_hashes(&self.config, hashes);
        }
    }

    /// Appends tokens of a request whose keys come from tokens; `tokens` continues after those given before.
    pub fn extend_tokens(&mut self, id: &str, tokens: impl Iterator<Item = u32>) {
        if let Some(request) = self.requests.get_mut(id) {
            request.extend_tokens(tokens);
        }
    }

    /// The request will not be asked about again. Its jobs go on until every rank has acknowledged them.
    pub fn finish(&mut self, id: &str) {
        if let Some(mut request) = self.requests.remove(id) {
            self.touch(&request.take_hits());
            self.leave_fetches(id, true);
            self.leave_room(request.arrival);
        }
    }

    /// Takes the plan of this step; `None` if there is nothing to do. `scheduled_tokens` feeds the cost model.
    pub fn take_plan(&mut self, scheduled_tokens: usize, now: Duration) -> Option<StepPlan> {
        self.cost.observe_step(scheduled_tokens, now);
        self.poll_remote(now);
        self.call_for_fetches(now);
        self.plan_demotions();
        if self.plan.is_empty() && !self.must_send_epoch() {
            return None;
        }
        self.epoch_unsent &= self.directory.is_none();
        self.plan.epoch = self.slot_epoch;
        // The jobs of this very plan count as begun.
        self.plan.settled = self.jobs.settled();
        self.plan.generation = self.remote.as_ref().map_or(0, |tier| tier.generation);
        Some(std::mem::take(&mut self.plan))
    }

    /// Takes in one rank's report. Returns the jobs that have now been reported by every rank.
    pub fn absorb(&mut self, report: &Report) -> Vec<Ended> {
        if self.startup.absorb(report) {
            self.start();
        }
        if let Some(directory) = &self.directory {
            directory.limit_usable(self.startup.usable_slots());
        }
        self.cost.observe_load(report.loaded_bytes, Duration::from_nanos(report.load_ns));
        self.cost.observe_fetch(report.fetched_bytes, Duration::from_nanos(report.fetch_ns));
        let mut ended = Vec::new();
        for end in &report.ended {
            if let Some(pending) = self.jobs.report(end, report.rank, self.config.ranks) {
                ended.push(self.end(end.id, pending));
            }
        }
        ended
    }

    fn end(&mut self, id: JobId, pending: Pending) -> Ended {
        self.activity += 1;
        let mut stored = Vec::new();
        if let Some(directory) = &self.directory {
            directory.end_load(&pending.pinned);
        }
        match pending.kind {
            JobKind::Fetch => self.end_fetch(id.number, &pending),
            JobKind::Demote => self.end_demotion(id.epoch, &pending),
            JobKind::Offload => stored = self.end_offload(&pending),
            JobKind::LoadLayerwise | JobKind::LoadAsync if pending.failed => {
                self.end_failed_load(id, &pending);
            }
            JobKind::LoadLayerwise | JobKind::LoadAsync => {}
        }
        Ended { id, released: pending.held, stored }
    }

    fn start(&mut self) {
        let slot_count = self.startup.slot_count();
        let directory = Directory::new(slot_count, (self.policy)(slot_count));
        directory.limit_usable(self.startup.usable_slots());
        // A reset before the start counts on top of what the slabs have seen: nothing in them is adopted then.
        let was_reset = self.slot_epoch > 0;
        self.slot_epoch += self.startup.epoch();
        // A rank that missed a reset must learn of it, or a later start would take its old blocks for current ones.
        self.epoch_unsent |= self.startup.lowest_epoch() < self.slot_epoch;
        self.activity += 1;
        if self.config.keep_hashes {
            self.hashes = vec![EngineHash::default(); slot_count as usize];
        }
        self.sight = request::SightGate::new(slot_count as usize);
        directory.start_fills_above(self.startup.highest_fill());
        let (mut agreed, doubtful) = self.startup.agree();
        if was_reset {
            agreed.clear();
        }
        let adopted: HashSet<SlotId> = directory.adopt(&agreed).iter().map(|block| block.slot).collect();
        self.counters.adopted_blocks = adopted.len() as u64;
        self.plan.forgotten.extend(doubtful);
        self.plan
            .forgotten
            .extend(agreed.iter().map(|block| block.slot).filter(|slot| !adopted.contains(slot)));
        self.directory = Some(directory);
        if let Some(tier) = &mut self.remote {
            tier.start(&self.config, self.startup.remote_shards(), slot_count, self.slot_epoch);
        }
    }

    /// Forgets every block, here and for restarts: what was computed before is not served after. Work under way ends in
    /// peace and is dropped. A request that has begun to compute stores nothing any more, unless it begins anew and
    /// asks again. Returns the new epoch for slot records, which the next plan carries to the ranks.
    pub fn reset(&mut self) -> u64 {
        self.epoch += 1;
        self.slot_epoch += 1;
        self.epoch_unsent = true;
        self.activity += 1;
        for job in &mut self.plan.jobs {
            // Not sent yet: it would be executed under the new epoch, and its bytes are of the old one.
            let transfers = std::mem::take(&mut job.transfers);
            if job.kind.is_load() {
                let blocks = transfers.into_iter().flat_map(|transfer| transfer.blocks);
                job.lost_blocks.extend(blocks.filter(|block| *block != Transfer::SKIP));
            }
        }
        if let Some(directory) = &self.directory {
            directory.clear();
        }
        for hash in &mut self.hashes {
            if !hash.as_bytes().is_empty() {
                self.removed.push(std::mem::take(hash));
            }
        }
        for request in self.requests.values_mut() {
            request.offloaded.fill(0);
            request.hits.iter_mut().for_each(Vec::clear);
            request.refused = None;
            request.stale = true;
            request.remote = RemoteState::Fresh;
            request.joined = false;
            request.sent_for = 0;
            request.questions = 0;
        }
        if let Some(tier) = &mut self.remote {
            let held = tier.room.clear();
            tier.queued.clear();
            if let Some(directory) = &self.directory {
                directory.end_load(&held);
            }
            let old = self.epoch - 1;
            let fetches = tier.waiters.drain().map(|(number, _)| JobId { epoch: old, number });
            self.plan.cancelled.extend(fetches);
            self.plan.cancelled.sort_unstable();
            tier.reset(&self.config, self.slot_epoch);
        }
        self.slot_epoch
    }

    /// Before the start the ranks' epochs are not known, so that there is none to move them to.
    fn must_send_epoch(&self) -> bool {
        self.epoch_unsent && self.directory.is_some()
    }

    /// Whether the engine has to keep stepping for jobs to end.
    pub fn has_pending_work(&self) -> bool {
        let remote =
            self.remote.as_ref().is_some_and(|tier| tier.is_asked_anything() || tier.has_candidates());
        !self.jobs.is_empty() || !self.plan.is_empty() || self.must_send_epoch() || remote
    }

    /// Jobs that are not acknowledged by every rank.
    pub fn jobs_in_flight(&self) -> usize {
        self.jobs.len()
    }

    /// Engine hashes of blocks that left since the last call, if hashes are kept.
    pub fn take_removed(&mut self) -> Vec<EngineHash> {
        std::mem::take(&mut self.removed)
    }

    /// The directory, once every rank has reported.
    pub fn directory(&self) -> Option<&Directory> {
        self.directory.as_ref()
    }

    /// Grows whenever [`stats`](Self::stats) may have changed: cheap to ask in every step.
    pub fn activity(&self) -> u64 {
        self.activity
    }

    /// Verifies what is known of L2's fetches against a recount; for tests. Linear in the slots that are used.
    ///
    /// # Errors
    /// The first broken invariant, in words.
    pub fn check(&self) -> Result<(), String> {
        let (Some(tier), Some(directory)) = (&self.remote, &self.directory) else { return Ok(()) };
        let waiting: HashSet<Arrival> =
            self.requests.values().filter(|request| !request.begun).map(|request| request.arrival).collect();
        tier.room.check(tier.fetching(), |arrival| waiting.contains(&arrival))?;
        if !tier.room.queued().eq(tier.queued.keys().copied()) {
            return Err(format!("{:?} queue for room as {:?}", tier.queued, tier.room));
        }
        let fetched: usize = self.jobs.fetched_keys(self.epoch).count();
        if tier.fetching() > fetched {
            return Err(format!("{} slots are on their way, and jobs bring {fetched}", tier.fetching()));
        }
        let pinned: HashSet<SlotId> = self.jobs.pinned().chain(tier.room.slots()).collect();
        let ready = pinned.iter().filter(|slot| directory.key_of(**slot).is_some()).count();
        if ready != directory.stats().pinned {
            return Err(format!("{ready} slots are in use, {} are pinned", directory.stats().pinned));
        }
        Ok(())
    }

    /// Everything counted so far.
    pub fn stats(&self) -> PlannerStats {
        self.counters.snapshot(
            self.directory.as_ref().map(Directory::stats),
            self.jobs.len(),
            self.requests.len(),
            self.remote.as_ref().map(|tier| tier.counters),
        )
    }
}

/// A slot's block is gone: what events report, if the block was reported as stored.
fn note_removed(hashes: &mut [EngineHash], removed: &mut Vec<EngineHash>, slot: SlotId) {
    if let Some(hash) = hashes.get_mut(slot.index())
        && !hash.as_bytes().is_empty()
    {
        removed.push(std::mem::take(hash));
    }
}
