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
mod jobs;
mod prefetch;
mod request;
mod startup;
mod tier;

#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::time::Duration;

pub use config::PlannerConfigError;
pub use cost::CostModel;
pub use counters::{MissReason, PlannerStats, RemoteTierStats};
pub use request::{KeySource, RequestOptions};
pub use tier::{Ingestion, RemoteTierConfig};

use crate::BlockKey;
use crate::directory::{
    Directory, FillId, GroupKind, GroupMatch, GroupPrefix, Residency, evictions_per_request_max, match_groups,
};
use crate::eviction::{EvictionPolicy, SlotId};
use crate::fingerprint::Namespace;
use crate::plan::{EngineHash, Job, JobId, JobKind, StepPlan, Transfer};
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

    /// Tokens in a slot of `group`.
    pub fn slot_tokens(&self, group: usize) -> usize {
        self.config.groups[group].block_tokens * self.config.slot_blocks
    }

    /// A request enters. Known ids are left as they are.
    pub fn add_request(&mut self, id: &str, options: RequestOptions) {
        if !self.requests.contains_key(id) {
            let request = Request::new(&self.config, options);
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

    /// How many tokens beyond `local_tokens` can be restored for a request of `total_tokens`, at least one of which is
    /// left to compute. May be asked any number of times: it changes nothing but the request's waiting clock.
    pub fn lookup(&mut self, id: &str, local_tokens: usize, total_tokens: usize, now: Duration) -> Lookup {
        // Once at a time, so that two questions at once have one answer.
        if self.polled_at != Some(now) {
            self.polled_at = Some(now);
            self.poll_remote(now);
        }
        self.ask_remote(id, total_tokens, now);
        self.join_fetches(id);
        let answer = if self.waits_for_presence(id, now) {
            Lookup::Wait
        } else {
            self.decide(id, local_tokens, total_tokens, now)
        };
        if let Some(request) = self.requests.get_mut(id) {
            if answer == Lookup::Wait {
                request.first_asked.get_or_insert(now);
            }
            request.answer = Some(answer);
            request.local_tokens = local_tokens;
            request.total_tokens = total_tokens;
            // Whoever asks has computed nothing beyond `local_tokens` yet.
            request.stale = false;
            request.begun = false;
        }
        answer
    }

    fn decide(&mut self, id: &str, local_tokens: usize, total_tokens: usize, now: Duration) -> Lookup {
        let Some(request) = self.requests.get_mut(id) else { return Lookup::Miss(MissReason::Unknown) };
        if request.options.skip_load {
            return Lookup::Miss(MissReason::OptOut);
        }
        let Some(directory) = &self.directory else {
            let waited = now.saturating_sub(*request.first_asked.get_or_insert(now));
            return if waited < self.config.startup_wait {
                Lookup::Wait
            } else {
                Lookup::Miss(MissReason::NotReady)
            };
        };
        let limit = total_tokens.saturating_sub(1).min(request.options.max_load_tokens);
        let found = prefix_match(directory, &self.config, request, limit, &mut self.scratch);
        let tokens = found.ready_tokens.saturating_sub(local_tokens);
        if found.pending_tokens > found.ready_tokens.max(local_tokens) {
            let waited = now.saturating_sub(*request.first_asked.get_or_insert(now));
            let worth = self.cost.compute_time(found.pending_tokens - found.ready_tokens.max(local_tokens));
            let most = match &self.remote {
                Some(tier) if request.joined => tier.config.fetch_wait,
                _ => self.config.fill_wait,
            };
            if waited < worth.unwrap_or(most).min(most) {
                return Lookup::Wait;
            }
            if tokens == 0 {
                return Lookup::Miss(MissReason::Late);
            }
        }
        if tokens == 0 {
            return Lookup::Miss(request.reason_at(directory, &self.config, local_tokens, limit));
        }
        if tokens < self.config.min_load_tokens {
            return Lookup::Miss(MissReason::TooShort);
        }
        let slots: usize = (0..self.config.groups.len())
            .map(|group| tokens.div_ceil(self.config.groups[group].block_tokens))
            .sum();
        let bytes = slots as u64 * self.startup.slot_bytes() / self.config.slot_blocks as u64;
        if self.cost.loading_is_slower(bytes, tokens) {
            return Lookup::Miss(MissReason::BreakEven);
        }
        let asynchronous = match self.config.load_mode {
            LoadMode::Async => true,
            LoadMode::Layerwise => self.config.groups.len() > 1,
            LoadMode::Auto => {
                self.config.groups.len() > 1
                    || (self.startup.copy_threads() > 0 && self.cost.is_long_beside_a_step(bytes))
            }
        };
        Lookup::Hit { tokens, asynchronous }
    }

    /// The engine has allocated `blocks` (per group, the request's whole table) and counts on `external_tokens` being
    /// loaded; zero if it counts on nothing. Starts the load with the next plan; whether it runs between steps.
    pub fn commit_load(&mut self, id: &str, external_tokens: usize, blocks: &[Vec<u32>]) -> bool {
        let Some(request) = self.requests.get_mut(id) else { return false };
        let Some(answer) = request.answer.take() else { return false };
        request.begun = true;
        self.activity += 1;
        let asked_tokens = request.total_tokens.saturating_sub(request.local_tokens);
        self.counters.queried_tokens += asked_tokens as u64;
        if external_tokens == 0 {
            let reason = match answer {
                Lookup::Miss(reason) => reason,
                Lookup::Wait => MissReason::Late,
                Lookup::Hit { .. } => MissReason::Declined,
            };
            self.counters.miss(reason, asked_tokens);
            return false;
        }
        self.counters.hit_tokens += external_tokens as u64;
        self.counters.hits += 1;
        let asynchronous = !matches!(answer, Lookup::Hit { asynchronous: false, .. });
        let kind = if asynchronous { JobKind::LoadAsync } else { JobKind::LoadLayerwise };
        let local = request.local_tokens;
        let boundary = local + external_tokens;
        let mut job = Job {
            id: self.jobs.next_id(self.epoch),
            kind,
            request: id.to_owned(),
            transfers: Vec::new(),
            lost_blocks: Vec::new(),
        };
        let mut pinned = Vec::new();
        let mut from_l2 = 0;
        for (group, blocks) in blocks.iter().enumerate().take(self.config.groups.len()) {
            let spec = self.config.groups[group];
            let slot_tokens = spec.block_tokens * self.config.slot_blocks;
            let first = spec.kind.first_slot(slot_tokens, boundary).max(local / slot_tokens);
            let last = boundary.div_ceil(slot_tokens).min(request.keys[group].len());
            let keys = &request.keys[group];
            let wanted = keys.get(first..last).unwrap_or_default();
            let slots =
                self.directory.as_ref().map(|directory| directory.begin_load(wanted)).unwrap_or_default();
            pinned.extend_from_slice(&slots);
            request.hits[group].extend(first..first + slots.len());
            for (index, slot) in (first..).zip(&slots) {
                if let Some(tier) = &mut self.remote
                    && tier.use_from_l2(*slot)
                    && group == 0
                {
                    let tokens = (index * slot_tokens).max(local)..((index + 1) * slot_tokens).min(boundary);
                    from_l2 += tokens.len();
                }
            }
            for (position, slot_index) in (first..boundary.div_ceil(slot_tokens)).enumerate() {
                let range = slot_index * self.config.slot_blocks..(slot_index + 1) * self.config.slot_blocks;
                let ids = range.map(|block| {
                    let wanted = block * spec.block_tokens >= local && block * spec.block_tokens < boundary;
                    blocks.get(block).copied().filter(|id| wanted && *id != self.config.null_block)
                });
                let ids: Vec<u32> = ids.map(|id| id.unwrap_or(Transfer::SKIP)).collect();
                match slots.get(position).zip(wanted.get(position)) {
                    Some((slot, key)) => job.transfers.push(Transfer {
                        slot: *slot,
                        fill: FillId(0),
                        group: group as u16,
                        key: *key,
                        parent: BlockKey::default(),
                        engine_hash: EngineHash::default(),
                        blocks: ids,
                    }),
                    None => job.lost_blocks.extend(ids.into_iter().filter(|id| *id != Transfer::SKIP)),
                }
            }
        }
        request.remote_tokens = from_l2;
        if let Some(tier) = &mut self.remote {
            tier.counters.hit_tokens += from_l2 as u64;
        }
        // A job with lost blocks fails without having looked at the others, which are as good as they were.
        let keys = if job.lost_blocks.is_empty() {
            job.transfers.iter().map(|t| t.key).collect()
        } else {
            Vec::new()
        };
        self.jobs.begin(job.id, Pending { pinned, keys, ..Pending::new(kind, id) });
        self.plan.jobs.push(job);
        asynchronous
    }

    /// How many tokens of the request's last load came from L2 for it, rather than having been in L1.
    pub fn remote_tokens(&self, id: &str) -> usize {
        self.requests.get(id).map_or(0, |request| request.remote_tokens)
    }

    /// Offloads what is new of a request's first `computed_tokens` tokens, whose KV is complete after this step.
    ///
    /// `blocks` is the request's whole block table, per group. The caller keeps [`Offloading::held`] from being reused.
    pub fn offload(&mut self, id: &str, computed_tokens: usize, blocks: &[Vec<u32>]) -> Offloading {
        let mut out = Offloading { next_tokens: usize::MAX, ..Offloading::default() };
        let (Some(request), Some(directory)) = (self.requests.get_mut(id), &self.directory) else {
            out.next_tokens = computed_tokens.saturating_add(1);
            return out;
        };
        if request.options.skip_store {
            let hits = request.take_hits();
            self.touch(&hits);
            return out;
        }
        if request.stale {
            out.next_tokens = computed_tokens.saturating_add(self.config.groups[0].block_tokens);
            return out;
        }
        let cap = request.options.max_store_tokens.min(if self.config.prompt_only {
            request.options.prompt_tokens
        } else {
            usize::MAX
        });
        let limit = computed_tokens.min(cap);
        let share = evictions_per_request_max(self.startup.slot_count());
        let mut job = Job {
            id: self.jobs.peek_id(self.epoch),
            kind: JobKind::Offload,
            request: id.to_owned(),
            transfers: Vec::new(),
            lost_blocks: Vec::new(),
        };
        for (group, table) in blocks.iter().enumerate().take(self.config.groups.len()) {
            let slot_blocks = self.config.slot_blocks;
            let slot_tokens = self.config.groups[group].block_tokens * slot_blocks;
            let keys = &request.keys[group];
            let full = (limit / slot_tokens).min(keys.len());
            let mut from = request.offloaded[group].min(full);
            // What has slid out of a window can no longer be copied: skip to the first slot whose blocks all exist.
            let is_whole = |slot: usize| {
                table
                    .get(slot * slot_blocks..(slot + 1) * slot_blocks)
                    .is_some_and(|ids| !ids.contains(&self.config.null_block))
            };
            let gate = self.config.store_on_sight;
            let sighted = &mut request.sighted[group];
            while gate > 1 && sighted.len() < full {
                sighted.push(self.sight.passes(&keys[sighted.len()], gate));
            }
            let wanted = |slot: usize| is_whole(slot) && (gate <= 1 || sighted[slot]);
            while from < full && !wanted(from) {
                from += 1;
            }
            // Blocks after one that is not wanted would lie behind a hole: they are passed over with it.
            let until = (from..full).find(|slot| !wanted(*slot)).unwrap_or(full);
            out.next_tokens = out.next_tokens.min((full + 1) * slot_tokens);
            request.offloaded[group] = full;
            if from == until {
                continue;
            }
            if request.over_share {
                directory.leave_out(&keys[from..until]);
                continue;
            }
            let left = share.saturating_sub(request.evicted);
            let reservation = directory.begin_offload(&keys[..until], from, left);
            request.evicted += reservation.evicted.len();
            request.over_share = reservation.over_share;
            request.hits[group].extend(&reservation.hits);
            self.counters.already_stored += reservation.present as u64;
            for (slot, _) in &reservation.evicted {
                note_removed(&mut self.hashes, &mut self.removed, *slot);
            }
            if let Some(tier) = &mut self.remote {
                tier.note_evicted(&reservation.evicted);
            }
            for reserved in &reservation.reserved {
                if let Some(tier) = &mut self.remote {
                    tier.forget_slot(reserved.slot);
                }
                let ids = table[reserved.index * slot_blocks..(reserved.index + 1) * slot_blocks].to_vec();
                out.held.extend_from_slice(&ids);
                out.slots.push((group as u16, reserved.index));
                let engine_hash = request.engine_hash(group, reserved.index);
                job.transfers.push(Transfer {
                    slot: reserved.slot,
                    fill: reserved.fill,
                    group: group as u16,
                    key: keys[reserved.index],
                    parent: reserved.index.checked_sub(1).map_or(BlockKey::default(), |parent| keys[parent]),
                    engine_hash,
                    blocks: ids,
                });
            }
            // A refused block is tried again once the request has grown by another slot.
            if let Some(refused) = reservation.refused_from
                && !reservation.over_share
            {
                request.offloaded[group] = refused;
            }
        }
        if out.next_tokens > cap {
            out.next_tokens = usize::MAX;
        }
        // With the last slot of what it asked for: chunks that come later would outlive the heads again.
        let hits = if out.next_tokens > request.total_tokens { request.take_hits() } else { Vec::new() };
        if !job.transfers.is_empty() {
            self.activity += 1;
            job.id = self.jobs.next_id(self.epoch);
            out.job = Some(job.id);
            let fills = job.transfers.iter().map(|transfer| (transfer.slot, transfer.fill)).collect();
            let mut pending =
                Pending { fills, hits, held: out.held.clone(), ..Pending::new(JobKind::Offload, id) };
            if self.config.keep_hashes {
                pending.hashes = job.transfers.iter().map(|transfer| transfer.engine_hash).collect();
            }
            self.jobs.begin(job.id, pending);
            self.plan.jobs.push(job);
        } else {
            self.touch(&hits);
        }
        out
    }

    /// The request will not be asked about again. Its jobs go on until every rank has acknowledged them.
    pub fn finish(&mut self, id: &str) {
        if let Some(mut request) = self.requests.remove(id) {
            self.touch(&request.take_hits());
            self.leave_fetches(id);
        }
    }

    /// Takes the plan of this step; `None` if there is nothing to do. `scheduled_tokens` feeds the cost model.
    pub fn take_plan(&mut self, scheduled_tokens: usize, now: Duration) -> Option<StepPlan> {
        self.cost.observe_step(scheduled_tokens, now);
        self.poll_remote(now);
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

    /// Positions of the fills that are hits now.
    fn end_offload(&mut self, pending: &Pending) -> Vec<usize> {
        let Some(directory) = &self.directory else { return Vec::new() };
        let ready = directory.complete_fills(&pending.fills, !pending.failed);
        let mut stored = Vec::new();
        let mut left = ready.iter().peekable();
        for (position, (slot, _)) in pending.fills.iter().enumerate() {
            if left.next_if_eq(&slot).is_some() {
                stored.push(position);
                if let (Some(kept), Some(hash)) =
                    (self.hashes.get_mut(slot.index()), pending.hashes.get(position))
                {
                    *kept = *hash;
                }
            }
        }
        self.counters.stored_blocks += stored.len() as u64;
        self.counters.failed_stores += (pending.fills.len() - stored.len()) as u64;
        self.touch(&pending.hits);
        self.suggest_stored(&ready);
        stored
    }

    fn end_failed_load(&mut self, id: JobId, pending: &Pending) {
        self.counters.failed_loads += 1;
        // What could not be loaded once is not offered again.
        if let Some(directory) = &self.directory
            && id.epoch == self.epoch
        {
            for (slot, _) in directory.delete(&pending.keys) {
                self.plan.forgotten.push(slot);
                note_removed(&mut self.hashes, &mut self.removed, slot);
            }
        }
        // What the request computes instead is stored again.
        if let Some(request) = self.requests.get_mut(&pending.request) {
            request.offloaded.fill(0);
            // In the slots that the failed blocks have left.
            request.over_share = false;
        }
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
            request.over_share = false;
            request.stale = true;
            request.remote = RemoteState::Fresh;
            request.joined = false;
        }
        if let Some(tier) = &mut self.remote {
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

/// The boundaries of a request's resident prefix.
fn prefix_match(
    directory: &Directory,
    config: &PlannerConfig,
    request: &Request,
    limit: usize,
    scratch: &mut [Vec<Residency>],
) -> GroupMatch {
    if let ([group], [keys]) = (&config.groups[..], &request.keys[..])
        && group.kind == GroupKind::Full
    {
        let slot_tokens = group.block_tokens * config.slot_blocks;
        let found = directory.match_prefix(&keys[..keys.len().min(limit / slot_tokens)]);
        return GroupMatch {
            ready_tokens: found.ready * slot_tokens,
            pending_tokens: (found.ready + found.pending) * slot_tokens,
        };
    }
    for (keys, residency) in request.keys.iter().zip(scratch.iter_mut()) {
        directory.residency(keys, residency);
    }
    let groups: Vec<GroupPrefix<'_>> = config
        .groups
        .iter()
        .zip(scratch.iter())
        .map(|(group, residency)| GroupPrefix {
            kind: group.kind,
            slot_tokens: group.block_tokens * config.slot_blocks,
            residency,
        })
        .collect();
    match_groups(&groups, limit)
}
