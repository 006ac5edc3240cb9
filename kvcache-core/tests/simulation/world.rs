//! An engine, its scheduler and its ranks, with a planner on one side and stores on the other; all of it on one thread
//! and decided by one seed.
//!
//! The engine is a model of vLLM's: a pool of blocks with reference counts and a prefix cache, chunked prefill, decode,
//! preemption, aborts, windows that slide, and a scheduler that may run a step ahead of what it knows of the last one.
//! A page's content is a word that says what computing it would have given, so that every load can be checked.
#![expect(clippy::unwrap_used, reason = "where the model of the engine is broken, the test has failed")]

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use kvcache_core::BlockKey;
use kvcache_core::block_key::HashAlgorithm;
use kvcache_core::copy_engine::CopyEngine;
use kvcache_core::directory::GroupKind;
use kvcache_core::eviction::{Candidate, EvictionPolicy, Lru, S3Fifo, SlotId};
use kvcache_core::fingerprint::Namespace;
use kvcache_core::plan::{JobId, JobKind, StepPlan};
use kvcache_core::planner::{GroupConfig, KeySource, Lookup, Planner, PlannerConfig, RequestOptions};
use kvcache_core::report::{JobEnd, Report};
use kvcache_core::store::{EngineLayout, LayerBinding, PageLayout, SlotMemory, Store, StoreConfig};

use super::fakes::fake_copies::{CopyBehaviour, LazyCopies};
use super::fakes::fake_memory::{Bytes, FakeMemory, MemoryBugs, Slab};
use super::fakes::random::{Random, mix};
use super::scenario::{Bug, Counts, Scenario};

type Violation = String;

/// Says what happens, with `KVCACHE_SIM_TRACE` set: for the replay of one seed.
macro_rules! trace {
    ($world:expr, $($arguments:tt)*) => {
        if $world.tracing {
            eprintln!("step {}: {}", $world.step, format_args!($($arguments)*));
        }
    };
}

pub(crate) struct World {
    scenario: Scenario,
    random: Random,
    bug: Option<Bug>,
    pub(crate) counts: Counts,
    now_ms: u64,
    step: u64,
    /// The weights: what is computed with others is different.
    weights: u64,
    pool: Vec<EngineBlock>,
    free: VecDeque<u32>,
    cached: HashMap<u64, u32>,
    requests: BTreeMap<u64, Request>,
    waiting: VecDeque<u64>,
    running: Vec<u64>,
    next_request: u64,
    planner: Planner,
    ranks: Vec<Rank>,
    reports: Vec<VecDeque<(u64, Report)>>,
    held: HashMap<JobId, Vec<u32>>,
    unprocessed: Option<Output>,
    reset_unsent: bool,
    faults_on: bool,
    /// Whether anything has happened since the last plan that may put something into the next.
    expects_plan: bool,
    /// Jobs whose ends were made up by a planted mistake.
    lied_about: BTreeSet<JobId>,
    tracing: bool,
}

#[derive(Clone, Default)]
struct EngineBlock {
    users: u32,
    cached_as: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Status {
    Waiting,
    Running,
    Loading,
}

struct Request {
    id: String,
    tokens: Vec<u32>,
    /// Hash of each prefix; one longer than the tokens.
    prefix: Vec<u64>,
    /// Tokens that are known by now: the prompt and what was decoded.
    visible: usize,
    computed: usize,
    /// Where the last scheduled chunk began.
    last_start: usize,
    tables: Vec<Vec<u32>>,
    /// The weights that each block was last written with.
    weights: Vec<u64>,
    incarnation: u32,
    status: Status,
    aborted: bool,
    next_tokens: usize,
    local: usize,
    external: usize,
    received: u32,
    load_failed: bool,
    options: RequestOptions,
}

struct Rank {
    slab: Arc<Slab>,
    memory: Arc<FakeMemory>,
    copies: Arc<LazyCopies>,
    store: Store,
    /// One tensor a layer.
    layers: Vec<Bytes>,
}

struct Scheduled {
    request: u64,
    incarnation: u32,
    start: usize,
    end: usize,
}

#[derive(Default)]
struct Output {
    scheduled: Vec<Scheduled>,
    received: Vec<(String, bool)>,
    errors: BTreeSet<u32>,
    mismatched: BTreeMap<(u64, u32), String>,
    reports: Vec<(usize, Report)>,
}

/// Forgets nothing it ever evicted, as one policy in the field did: metadata without a bound.
struct EndlessGhosts(Lru, Vec<BlockKey>);

impl EvictionPolicy for EndlessGhosts {
    fn name(&self) -> &'static str {
        "endless"
    }
    fn insert(&mut self, slot: SlotId, key: BlockKey) {
        self.1.push(key);
        self.0.insert(slot, key);
    }
    fn touch(&mut self, slot: SlotId) {
        self.0.touch(slot);
    }
    fn remove(&mut self, slot: SlotId) {
        self.0.remove(slot);
    }
    fn evict(&mut self, candidate: &mut dyn FnMut(SlotId) -> Candidate) -> Option<SlotId> {
        self.0.evict(candidate)
    }
    fn clear(&mut self) {
        self.0.clear();
    }
    fn len(&self) -> usize {
        self.0.len()
    }
    fn metadata_bytes(&self) -> usize {
        self.0.metadata_bytes() + self.1.capacity() * 16
    }
}

/// Evicts whatever is oldest, pinned or not.
struct IgnoresPins(Lru);

impl EvictionPolicy for IgnoresPins {
    fn name(&self) -> &'static str {
        "ignores pins"
    }
    fn insert(&mut self, slot: SlotId, key: BlockKey) {
        self.0.insert(slot, key);
    }
    fn touch(&mut self, slot: SlotId) {
        self.0.touch(slot);
    }
    fn remove(&mut self, slot: SlotId) {
        self.0.remove(slot);
    }
    fn evict(&mut self, _candidate: &mut dyn FnMut(SlotId) -> Candidate) -> Option<SlotId> {
        self.0.evict(&mut |_| Candidate::Leaf)
    }
    fn clear(&mut self) {
        self.0.clear();
    }
    fn len(&self) -> usize {
        self.0.len()
    }
    fn metadata_bytes(&self) -> usize {
        self.0.metadata_bytes()
    }
}

fn planner(scenario: &Scenario, bug: Option<Bug>) -> Planner {
    let config = PlannerConfig {
        namespace: Namespace::of_text("simulation"),
        groups: scenario
            .windows
            .iter()
            .map(|window| GroupConfig {
                kind: window.map_or(GroupKind::Full, |window_tokens| GroupKind::Sliding { window_tokens }),
                block_tokens: scenario.block_tokens,
            })
            .collect(),
        slot_blocks: scenario.slot_blocks,
        hash_tokens: scenario.block_tokens,
        key_source: if scenario.keys_from_tokens {
            KeySource::Tokens(HashAlgorithm::Xxh3)
        } else {
            KeySource::Engine
        },
        ranks: scenario.ranks as u32,
        null_block: 0,
        load_mode: scenario.load_mode,
        min_load_tokens: scenario.min_load_tokens,
        fill_wait: Duration::from_millis(scenario.fill_wait_ms),
        startup_wait: Duration::from_millis(scenario.startup_wait_ms),
        store_on_sight: scenario.store_on_sight,
        prompt_only: scenario.prompt_only,
        keep_hashes: scenario.keep_hashes,
    };
    let lru = scenario.lru;
    let policy = move |slots| -> Box<dyn EvictionPolicy> {
        match bug {
            Some(Bug::EndlessGhosts) => Box::new(EndlessGhosts(Lru::new(slots), Vec::new())),
            Some(Bug::EvictPinned) => Box::new(IgnoresPins(Lru::new(slots))),
            _ if lru => Box::new(Lru::new(slots)),
            _ => Box::new(S3Fifo::new(slots)),
        }
    };
    Planner::new(config, Box::new(policy))
}

impl World {
    pub(crate) fn new(seed: u64, scenario: Scenario, bug: Option<Bug>) -> Self {
        let mut random = Random::new(seed);
        let ranks =
            (0..scenario.ranks).map(|rank| Rank::new(rank, &scenario, bug, &mut random, None)).collect();
        let mut world = Self {
            planner: planner(&scenario, bug),
            pool: Vec::new(),
            free: VecDeque::new(),
            cached: HashMap::new(),
            requests: BTreeMap::new(),
            waiting: VecDeque::new(),
            running: Vec::new(),
            next_request: 0,
            ranks,
            reports: vec![VecDeque::new(); scenario.ranks],
            held: HashMap::new(),
            unprocessed: None,
            reset_unsent: false,
            faults_on: true,
            expects_plan: true,
            lied_about: BTreeSet::new(),
            tracing: std::env::var_os("KVCACHE_SIM_TRACE").is_some(),
            bug,
            counts: Counts::default(),
            now_ms: 0,
            step: 0,
            weights: 1,
            random,
            scenario,
        };
        world.empty_pool();
        world
    }

    /// Runs the scenario: operations with faults, then to the end without.
    pub(crate) fn run(&mut self) -> Result<(), Violation> {
        for _ in 0..self.scenario.operations {
            self.operation()?;
        }
        self.faults_on = false;
        for rank in &self.ranks {
            rank.copies.behave(|behaviour| {
                *behaviour = CopyBehaviour { batches_max: behaviour.batches_max, ..CopyBehaviour::default() };
            });
        }
        let mut steps = 0;
        while !self.is_idle() {
            self.engine_step()?;
            steps += 1;
            if steps > 3000 {
                return Err(format!(
                    "no end: {} waiting, {} running, {} requests, {} jobs in flight",
                    self.waiting.len(),
                    self.running.len(),
                    self.requests.len(),
                    self.planner.jobs_in_flight()
                ));
            }
        }
        self.check_drained()
    }

    fn is_idle(&self) -> bool {
        self.requests.is_empty()
            && self.unprocessed.as_ref().is_none_or(|output| output.reports.is_empty())
            && !self.planner.has_pending_work()
            && self.reports.iter().all(VecDeque::is_empty)
    }

    fn operation(&mut self) -> Result<(), Violation> {
        self.counts.operations += 1;
        let s = &self.scenario;
        let (abort, reset, crash, damage, grow) = (s.abort, s.reset, s.crash, s.damage, s.grow);
        if self.requests.len() < self.scenario.requests_max && self.random.chance(400) {
            self.submit_request();
        }
        if self.random.chance(abort) {
            self.abort();
        }
        if self.random.chance(reset) {
            self.reset();
        }
        if self.random.chance(damage) {
            self.damage();
        }
        if self.random.chance(grow) {
            let rank = self.random.below(self.ranks.len());
            let slots = self.random.between(1, 8) as u32;
            let memory = &self.ranks[rank].memory;
            self.counts.grown += u64::from(memory.usable_slots() < memory.slot_count());
            memory.grow(slots);
        }
        if self.random.chance(crash) && !self.reset_unsent {
            self.crash();
        }
        self.engine_step()
    }

    // ---- what users do

    pub(crate) fn submit_request(&mut self) {
        let s = &self.scenario;
        let document = self.random.below(s.documents);
        let shared = self.random.between(1, s.tokens_max - 4);
        let own = self.random.between(1, s.tokens_max - shared);
        let mut tokens: Vec<u32> =
            (0..shared).map(|i| mix((document as u64) << 32 | i as u64) as u32 % 50_000).collect();
        let salt = self.random.next();
        tokens.extend((0..own).map(|i| mix(salt ^ i as u64) as u32 % 50_000));
        let visible =
            if self.random.chance(500) { tokens.len() } else { self.random.between(1, tokens.len()) };
        let mut options = RequestOptions { prompt_tokens: visible, ..RequestOptions::default() };
        if self.random.chance(30) {
            options.skip_load = true;
        }
        if self.random.chance(30) {
            options.skip_store = true;
        }
        if self.random.chance(50) {
            options.max_load_tokens = self.random.below(tokens.len());
            options.max_store_tokens = self.random.below(tokens.len());
        }
        self.add(tokens, visible, options);
    }

    pub(crate) fn add(&mut self, tokens: Vec<u32>, visible: usize, options: RequestOptions) {
        let mut prefix = Vec::with_capacity(tokens.len() + 1);
        prefix.push(17);
        for token in &tokens {
            prefix.push(mix(prefix[prefix.len() - 1] ^ u64::from(*token)));
        }
        let number = self.next_request;
        self.next_request += 1;
        self.counts.requests += 1;
        let request = Request {
            id: format!("r{number}"),
            weights: vec![0; tokens.len() / self.scenario.block_tokens + 1],
            tokens,
            prefix,
            visible,
            computed: 0,
            last_start: 0,
            tables: vec![Vec::new(); self.scenario.windows.len()],
            incarnation: 0,
            status: Status::Waiting,
            aborted: false,
            next_tokens: 0,
            local: 0,
            external: 0,
            received: 0,
            load_failed: false,
            options,
        };
        self.requests.insert(number, request);
        self.waiting.push_back(number);
    }

    fn abort(&mut self) {
        if self.requests.is_empty() {
            return;
        }
        let pick = self.random.below(self.requests.len());
        let Some(number) = self.requests.keys().nth(pick).copied() else { return };
        self.counts.aborts += 1;
        let request = &mut self.requests.get_mut(&number).unwrap();
        self.planner.finish(&request.id);
        if request.status == Status::Loading {
            // The engine keeps the blocks until the load has ended.
            request.aborted = true;
            return;
        }
        self.give_up_blocks(number);
        self.requests.remove(&number);
        self.waiting.retain(|waiting| *waiting != number);
        self.running.retain(|running| *running != number);
    }

    fn reset(&mut self) {
        trace!(self, "reset");
        self.counts.resets += 1;
        self.counts.resets_with_jobs += u64::from(self.planner.jobs_in_flight() > 0);
        self.planner.reset();
        self.expects_plan = true;
        self.reset_unsent = true;
        self.weights += 1;
        self.cached.clear();
        for block in &mut self.pool {
            block.cached_as = None;
        }
        for request in self.requests.values_mut() {
            // As the connector does.
            request.next_tokens = 0;
        }
    }

    fn damage(&mut self) {
        let pick = self.random.below(self.ranks.len());
        let rank = &self.ranks[pick];
        // A slot that is verified is trusted until its load has ended.
        if rank.store.stats().jobs_in_flight == 0 {
            let slot = SlotId(self.random.below(rank.slab.slot_count()) as u32);
            self.counts.damaged += u64::from(rank.slab.damage(slot));
        }
    }

    /// SIGKILL: what is in the slabs stays, half-copied slots included; the users ask again.
    fn crash(&mut self) {
        trace!(self, "crash");
        self.counts.crashes += 1;
        let half = self.ranks.iter().any(|rank| rank.slab.half_filled() > 0);
        self.counts.crashes_while_copying += u64::from(half);
        let bug = self.bug;
        let ranks = std::mem::take(&mut self.ranks);
        for (index, rank) in ranks.into_iter().enumerate() {
            rank.memory.kill();
            rank.copies.kill();
            let slab = Arc::clone(&rank.slab);
            drop(rank);
            self.ranks.push(Rank::new(index, &self.scenario, bug, &mut self.random, Some(slab)));
        }
        self.planner = planner(&self.scenario, bug);
        self.expects_plan = true;
        self.unprocessed = None;
        self.held.clear();
        self.lied_about.clear();
        self.reports.iter_mut().for_each(VecDeque::clear);
        self.waiting.clear();
        self.running.clear();
        self.empty_pool();
        for (_, request) in std::mem::take(&mut self.requests) {
            if !request.aborted {
                let visible = request.visible;
                let options = RequestOptions { prompt_tokens: visible, ..request.options };
                self.add(request.tokens, visible, options);
            }
        }
    }

    // ---- the engine's blocks

    fn empty_pool(&mut self) {
        self.pool = vec![EngineBlock::default(); self.scenario.engine_blocks];
        self.free = (1..self.scenario.engine_blocks as u32).collect();
        self.cached.clear();
    }

    fn allocate(&mut self) -> Option<u32> {
        let block = self.free.pop_front()?;
        let entry = &mut self.pool[block as usize];
        if let Some(prefix) = entry.cached_as.take() {
            self.cached.remove(&prefix);
        }
        entry.users = 1;
        Some(block)
    }

    fn hold(&mut self, block: u32) {
        let Some(entry) = self.pool.get_mut(block as usize).filter(|_| block != 0) else { return };
        entry.users += 1;
        if entry.users == 1 {
            self.free.retain(|free| *free != block);
        }
    }

    fn let_go(&mut self, block: u32) {
        let Some(entry) = self.pool.get_mut(block as usize).filter(|_| block != 0) else { return };
        entry.users -= 1;
        if entry.users == 0 {
            self.free.push_back(block);
        }
    }

    fn give_up_blocks(&mut self, number: u64) {
        let Some(request) = self.requests.get_mut(&number) else { return };
        let tables = std::mem::replace(&mut request.tables, vec![Vec::new(); self.scenario.windows.len()]);
        for block in tables.into_iter().flatten().rev() {
            self.let_go(block);
        }
    }

    /// Makes room for `tokens` tokens in every group; false, with nothing changed, if there is none.
    fn grow_tables(&mut self, number: u64, tokens: usize, nulls: Option<usize>) -> bool {
        let blocks = tokens.div_ceil(self.scenario.block_tokens);
        let mut taken = Vec::new();
        for group in 0..self.scenario.windows.len() {
            let have = self.requests[&number].tables[group].len();
            for index in have..blocks {
                let null = nulls.is_some_and(|boundary| {
                    index < self.scenario.first_block(group, boundary) && index >= have
                });
                let Some(block) = (if null { Some(0) } else { self.allocate() }) else {
                    for (group, block) in taken.into_iter().rev() {
                        let table: &mut Vec<u32> = &mut self.requests.get_mut(&number).unwrap().tables[group];
                        table.pop();
                        self.let_go(block);
                    }
                    return false;
                };
                taken.push((group, block));
                self.requests.get_mut(&number).unwrap().tables[group].push(block);
            }
        }
        true
    }

    /// Whether all that loads and runs could grow to its end beside this request. Requests that load hold blocks and
    /// cannot be preempted: an engine that admitted them without this could fill up with them.
    fn leaves_room(&self, number: u64) -> bool {
        let blocks = |request: &Request| {
            request.tokens.len().div_ceil(self.scenario.block_tokens) * self.scenario.windows.len()
        };
        let active = self.requests.iter().filter(|(_, request)| request.status != Status::Waiting);
        let used: usize = active.map(|(_, request)| blocks(request)).sum();
        used == 0 || used + blocks(&self.requests[&number]) < self.pool.len()
    }

    fn preempt(&mut self, number: u64) {
        trace!(self, "{} is preempted", self.requests[&number].id);
        self.counts.preemptions += 1;
        self.give_up_blocks(number);
        let request = self.requests.get_mut(&number).unwrap();
        request.computed = 0;
        request.incarnation += 1;
        request.status = Status::Waiting;
        if self.random.chance(500) {
            request.next_tokens = 0;
        }
        self.running.retain(|running| *running != number);
        self.waiting.push_front(number);
    }

    /// Puts a request's full blocks into the engine's own cache.
    fn cache_blocks(&mut self, number: u64) {
        if !self.scenario.local_cache {
            return;
        }
        let request = &self.requests[&number];
        for index in 0..request.computed / self.scenario.block_tokens {
            // What was computed with other weights is not found again.
            if request.weights[index] != self.weights {
                break;
            }
            let (block, prefix) =
                (request.tables[0][index], request.prefix[(index + 1) * self.scenario.block_tokens]);
            let entry = &mut self.pool[block as usize];
            if entry.cached_as.is_none() && !self.cached.contains_key(&prefix) {
                entry.cached_as = Some(prefix);
                self.cached.insert(prefix, block);
            }
        }
    }

    // ---- a step of the scheduler

    pub(crate) fn engine_step(&mut self) -> Result<(), Violation> {
        self.step += 1;
        self.now_ms += 1 + self.random.below(3) as u64;
        if !self.scenario.ahead {
            self.process_output()?;
        }
        let scheduled = self.schedule()?;
        let now = Duration::from_millis(self.now_ms);
        let tokens = scheduled.iter().map(|s| s.end - s.start).sum();
        let plan = match (self.planner.take_plan(tokens, now), self.bug) {
            (None, Some(Bug::EmptyPlans)) => Some(StepPlan::default()),
            (plan, _) => plan,
        };
        if plan.is_some() && !self.expects_plan {
            return Err("a step without work has a plan".into());
        }
        self.expects_plan = false;
        self.reset_unsent &= self.planner.directory().is_none();
        for job in plan.iter().flat_map(|plan| &plan.jobs) {
            trace!(self, "{job:?}");
        }
        let plan = plan.map(|plan| plan.encode());
        if self.scenario.ahead {
            self.process_output()?;
        }
        let output = self.execute(plan, scheduled)?;
        self.unprocessed = Some(output);
        self.check()
    }

    fn schedule(&mut self) -> Result<Vec<Scheduled>, Violation> {
        let mut budget = self.scenario.step_tokens;
        let mut scheduled: Vec<Scheduled> = Vec::new();
        for number in self.running.clone() {
            if !self.running.contains(&number) {
                continue;
            }
            let request = &self.requests[&number];
            let left = request.visible - request.computed;
            if left == 0 || budget == 0 {
                continue;
            }
            let chunk = self.random.between(1, left.min(budget));
            self.slide(number);
            let end = self.requests[&number].computed + chunk;
            let fits = loop {
                if self.grow_tables(number, end, None) {
                    break true;
                }
                let victim = self.running[self.running.len() - 1];
                if scheduled.iter().any(|s| s.request == victim) {
                    break false;
                }
                self.preempt(victim);
                if victim == number {
                    break false;
                }
            };
            if fits {
                budget -= chunk;
                self.advance(number, chunk, &mut scheduled);
            }
        }
        let mut passed_over = VecDeque::new();
        while budget > 0 && self.running.len() < self.scenario.running_max {
            let Some(number) = self.waiting.pop_front() else { break };
            match self.admit(number, budget, &mut scheduled)? {
                Admission::Started(tokens) => budget -= tokens,
                Admission::AskAgain => passed_over.push_back(number),
                Admission::NoRoom => {
                    self.waiting.push_front(number);
                    break;
                }
            }
        }
        while let Some(number) = passed_over.pop_back() {
            self.waiting.push_front(number);
        }
        for step in &scheduled {
            let request = &self.requests[&step.request];
            trace!(self, "{} computes {}..{} on {:?}", request.id, step.start, step.end, request.tables);
            self.offload(step.request, step.end);
        }
        Ok(scheduled)
    }

    /// Blocks that have left the window go back to the pool.
    fn slide(&mut self, number: u64) {
        for group in 0..self.scenario.windows.len() {
            let first = self.scenario.first_block(group, self.requests[&number].computed);
            let first = first.min(self.requests[&number].tables[group].len());
            for index in 0..first {
                let block = &mut self.requests.get_mut(&number).unwrap().tables[group][index];
                let old = std::mem::replace(block, 0);
                self.let_go(old);
            }
        }
    }

    fn advance(&mut self, number: u64, chunk: usize, scheduled: &mut Vec<Scheduled>) {
        let (bt, weights) = (self.scenario.block_tokens, self.weights);
        let request = self.requests.get_mut(&number).unwrap();
        let (start, end) = (request.computed, request.computed + chunk);
        for index in start / bt..end.div_ceil(bt) {
            request.weights[index] = weights;
        }
        request.computed = end;
        request.last_start = start;
        if request.computed == request.visible && request.visible < request.tokens.len() {
            request.visible += 1;
        }
        scheduled.push(Scheduled { request: number, incarnation: request.incarnation, start, end });
        self.cache_blocks(number);
    }

    fn extend(&mut self, number: u64, tokens: usize) {
        let request = &self.requests[&number];
        let known = self.planner.known_hashes(&request.id);
        if self.scenario.keys_from_tokens {
            let new = request.tokens.get(known..tokens).unwrap_or_default();
            self.planner.extend_tokens(&request.id, new.iter().copied());
        } else {
            let hashes: Vec<[u8; 8]> = (known..tokens / self.scenario.block_tokens)
                .map(|block| request.prefix[(block + 1) * self.scenario.block_tokens].to_le_bytes())
                .collect();
            self.planner.extend_hashes(&request.id, hashes.iter().map(|hash| &hash[..]));
        }
    }

    fn admit(
        &mut self,
        number: u64,
        budget: usize,
        scheduled: &mut Vec<Scheduled>,
    ) -> Result<Admission, Violation> {
        let bt = self.scenario.block_tokens;
        let (id, visible) = (self.requests[&number].id.clone(), self.requests[&number].visible);
        self.planner.add_request(&id, self.requests[&number].options.clone());
        self.extend(number, visible);
        let mut local_blocks = Vec::new();
        if self.scenario.local_cache {
            let request = &self.requests[&number];
            while (local_blocks.len() + 1) * bt < visible
                && let Some(block) = self.cached.get(&request.prefix[(local_blocks.len() + 1) * bt])
            {
                local_blocks.push(*block);
            }
        }
        let local = local_blocks.len() * bt;
        let answer = self.planner.lookup(&id, local, visible, Duration::from_millis(self.now_ms));
        if self.planner.lookup(&id, local, visible, Duration::from_millis(self.now_ms)) != answer {
            return Err("two questions at once have two answers".into());
        }
        let (mut external, asynchronous) = match answer {
            Lookup::Wait => {
                self.counts.waits += 1;
                return Ok(Admission::AskAgain);
            }
            _ if self.bug == Some(Bug::WaitForEver) => return Ok(Admission::AskAgain),
            Lookup::Hit { tokens, asynchronous } => (tokens, asynchronous),
            Lookup::Miss(_) => (0, false),
        };
        if external > 0 && (external % bt > 0 || local + external >= visible) {
            return Err(format!("a hit of {external} tokens after {local} of {visible}"));
        }
        if external > 0 && self.faults_on && self.random.chance(30) {
            self.counts.declined += 1;
            external = 0;
        }
        for block in &local_blocks {
            self.hold(*block);
        }
        let weights = self.weights;
        let request = self.requests.get_mut(&number).unwrap();
        request.tables[0].clone_from(&local_blocks);
        let boundary = local + external;
        request.weights[..boundary / bt].fill(weights);
        let asynchronous = asynchronous && external > 0;
        if asynchronous && !self.leaves_room(number) {
            self.give_up_blocks(number);
            return Ok(Admission::NoRoom);
        }
        let chunk = if asynchronous { 0 } else { self.random.between(1, (visible - boundary).min(budget)) };
        if !self.grow_tables(number, boundary, (external > 0).then_some(boundary))
            || !self.grow_tables(number, boundary + chunk, None)
        {
            self.give_up_blocks(number);
            return Ok(Admission::NoRoom);
        }
        let request = self.requests.get_mut(&number).unwrap();
        self.planner.commit_load(&id, external, &request.tables);
        self.expects_plan |= external > 0;
        request.local = local;
        request.external = external;
        request.computed = boundary;
        request.received = 0;
        request.load_failed = false;
        self.counts.loads += u64::from(external > 0);
        self.counts.loaded_tokens += external as u64;
        if asynchronous {
            self.counts.async_loads += 1;
            request.status = Status::Loading;
            return Ok(Admission::Started(0));
        }
        request.status = Status::Running;
        self.running.push(number);
        self.advance(number, chunk, scheduled);
        Ok(Admission::Started(chunk))
    }

    fn offload(&mut self, number: u64, computed: usize) {
        if computed < self.requests[&number].next_tokens {
            return;
        }
        let lag = if self.random.chance(200) { self.scenario.block_tokens } else { 0 };
        self.extend(number, computed.saturating_sub(lag));
        let request = self.requests.get_mut(&number).unwrap();
        let mut tables = request.tables.clone();
        if self.faults_on && self.random.chance(self.scenario.bad_blocks) {
            let pick = self.random.below(tables[0].len());
            if let Some(block) = tables[0].get_mut(pick).filter(|block| **block != 0) {
                *block = 1_000_000;
                self.counts.bad_blocks += 1;
            }
        }
        let offloading = self.planner.offload(&request.id, computed, &tables);
        request.next_tokens = offloading.next_tokens;
        if let Some(job) = offloading.job {
            self.expects_plan = true;
            self.counts.offloads += 1;
            if self.bug != Some(Bug::IgnoreHolds) {
                for block in &offloading.held {
                    self.hold(*block);
                }
                self.held.insert(job, offloading.held);
            }
        }
    }

    // ---- a step of the workers

    fn execute(&mut self, plan: Option<Vec<u8>>, scheduled: Vec<Scheduled>) -> Result<Output, Violation> {
        let mut output = Output::default();
        let hooks_fire = !(self.faults_on && self.random.chance(self.scenario.lost_hooks));
        for index in 0..self.ranks.len() {
            let plan = match &plan {
                Some(bytes) => Some(StepPlan::decode(bytes).map_err(|error| error.to_string())?),
                None => None,
            };
            let loads = plan.iter().flat_map(|plan| &plan.jobs).any(|job| job.kind == JobKind::LoadLayerwise);
            self.counts.lost_hooks += u64::from(loads && !hooks_fire);
            self.lie(index, plan.as_ref());
            let rank = &mut self.ranks[index];
            if let Some(plan) = plan {
                rank.store.begin_step(plan);
            }
            rank.store.start_loads(None);
            let pieces = self.random.below(self.scenario.pieces_a_step[index] + 1);
            rank.copies.work(pieces);
            if !scheduled.is_empty() {
                self.forward(index, &scheduled, hooks_fire, &mut output)?;
            }
            let rank = &mut self.ranks[index];
            rank.store.end_step(None);
            rank.copies.work(pieces);
            let (received, failed) = rank.store.take_received();
            output.received.extend(received.into_iter().map(|id| {
                let bad = failed.contains(&id);
                (id, bad)
            }));
            let errors = rank.store.take_load_errors();
            self.counts.load_errors += errors.len() as u64;
            if self.bug != Some(Bug::SwallowErrors) {
                output.errors.extend(errors);
            }
            if let Some(report) = rank.store.take_report() {
                output.reports.push((index, report));
            }
            if let Some(conflict) = self.ranks[index].copies.conflict() {
                return Err(format!("rank {index}: {conflict}"));
            }
        }
        output.scheduled = scheduled;
        Ok(output)
    }

    /// Planted: ends are reported before the copies have ended.
    fn lie(&mut self, rank: usize, plan: Option<&StepPlan>) {
        let lies = |kind: JobKind| match self.bug {
            Some(Bug::ServeFilling) => kind == JobKind::Offload,
            Some(Bug::SkipPin) => kind != JobKind::Offload,
            _ => false,
        };
        let jobs = plan.iter().flat_map(|plan| &plan.jobs).filter(|job| lies(job.kind));
        let ended: Vec<JobEnd> = jobs.map(|job| JobEnd { id: job.id, ok: true }).collect();
        if !ended.is_empty() {
            self.lied_about.extend(ended.iter().map(|end| end.id));
            let usable_slots = self.ranks[rank].memory.usable_slots();
            let report = Report { rank: rank as u32, usable_slots, ended, ..Report::default() };
            self.reports[rank].push_back((self.step, report));
        }
    }

    fn queue_report(&mut self, rank: usize, mut report: Report) {
        // Real durations would make the run depend on the machine.
        report.load_ns = report.loaded_bytes * 10_000;
        report.ended.retain(|end| !self.lied_about.contains(&end.id));
        if self.bug == Some(Bug::LoseEnds) && self.random.chance(50) {
            report.ended.pop();
        }
        let delay = if self.faults_on && self.random.chance(self.scenario.report_delay) {
            self.counts.delayed_reports += 1;
            self.random.between(1, 5) as u64
        } else {
            0
        };
        let after = self.reports[rank].back().map_or(0, |(due, _)| *due);
        self.reports[rank].push_back(((self.step + delay).max(after), report));
    }

    fn forward(
        &mut self,
        index: usize,
        scheduled: &[Scheduled],
        hooks_fire: bool,
        output: &mut Output,
    ) -> Result<(), Violation> {
        let layers = self.scenario.layers;
        let waits_first = !self.scenario.hooks;
        if waits_first && hooks_fire {
            self.ranks[index].store.wait_layer(layers - 1);
        }
        for layer in 0..layers {
            if !waits_first && hooks_fire {
                self.ranks[index].store.wait_layer(layer);
            }
            self.compute(index, layer, scheduled, output)?;
            if !self.scenario.hooks || self.random.chance(100) {
                self.counts.lost_store_hooks += u64::from(self.ranks[index].store.has_fresh_offloads());
            } else {
                self.ranks[index].store.store_layer(layer, None);
            }
        }
        Ok(())
    }

    /// Attention of one layer: reads what is before a chunk and writes the chunk's pages.
    fn compute(
        &mut self,
        index: usize,
        layer: usize,
        scheduled: &[Scheduled],
        output: &mut Output,
    ) -> Result<(), Violation> {
        let bt = self.scenario.block_tokens;
        let group = layer % self.scenario.windows.len();
        let rank = &self.ranks[index];
        for step in scheduled {
            let request = &self.requests[&step.request];
            if request.incarnation != step.incarnation {
                // Rolled back after this step had been scheduled: whatever it computes is dropped.
                continue;
            }
            let table = &request.tables[group];
            let mut good = true;
            let seen = self.scenario.first_block(group, step.start);
            for (block, id) in table.iter().enumerate().take(step.start.div_ceil(bt)).skip(seen) {
                let tokens = ((block + 1) * bt).min(step.start);
                // The last block may have been begun with older weights and been marked with the new ones since.
                let weights = if block == step.start / bt { None } else { Some(request.weights[block]) };
                let expected = |weights| content(request.prefix[tokens], layer, index, weights);
                let found = rank.page(&self.scenario, layer, *id);
                let right = match weights {
                    Some(weights) => found == Some(expected(weights)),
                    None => (1..=self.weights).rev().any(|weights| found == Some(expected(weights))),
                };
                if !right {
                    good = false;
                    output.mismatched.entry((step.request, step.incarnation)).or_insert_with(|| {
                        format!(
                            "{} at tokens {}..{}: block {block} ({}) of layer {layer} on rank {index} holds {found:x?}",
                            request.id, step.start, step.end, *id
                        )
                    });
                }
                self.counts.pages_checked += 1;
            }
            for (block, id) in table.iter().enumerate().take(step.end.div_ceil(bt)).skip(step.start / bt) {
                let tokens = ((block + 1) * bt).min(step.end);
                let value = if good {
                    content(request.prefix[tokens], layer, index, request.weights[block])
                } else {
                    mix(self.step ^ 0xbad)
                };
                if rank.is_in_use(&self.scenario, layer, *id) {
                    return Err(format!("rank {index}: engine block {id} is computed while a copy uses it"));
                }
                rank.set_page(&self.scenario, layer, *id, value);
            }
        }
        Ok(())
    }

    // ---- what the scheduler learns

    fn process_output(&mut self) -> Result<(), Violation> {
        let Some(mut output) = self.unprocessed.take() else { return Ok(()) };
        if !output.errors.is_empty() {
            self.roll_back(&output.errors);
        }
        for ((number, incarnation), what) in &output.mismatched {
            if self.requests.get(number).is_some_and(|request| request.incarnation == *incarnation) {
                return Err(format!("other bytes than computed, and no error: {what}"));
            }
        }
        for (rank, report) in std::mem::take(&mut output.reports) {
            self.queue_report(rank, report);
        }
        self.absorb_reports()?;
        for (id, bad) in &output.received {
            let Some((number, request)) = self.requests.iter_mut().find(|(_, request)| request.id == *id)
            else {
                continue;
            };
            let number = *number;
            request.received += 1;
            request.load_failed |= bad;
            if request.received == self.scenario.ranks as u32 {
                self.resume(number);
            }
        }
        for step in &output.scheduled {
            if let Some(request) = self.requests.get(&step.request)
                && request.incarnation == step.incarnation
                && step.end == request.tokens.len()
            {
                self.planner.finish(&request.id);
                self.give_up_blocks(step.request);
                self.requests.remove(&step.request);
                self.running.retain(|running| *running != step.request);
                self.counts.finished += 1;
            }
        }
        Ok(())
    }

    fn resume(&mut self, number: u64) {
        let request = self.requests.get_mut(&number).unwrap();
        if request.aborted {
            self.give_up_blocks(number);
            self.requests.remove(&number);
            return;
        }
        request.status = Status::Running;
        if request.load_failed {
            self.counts.failed_async_loads += 1;
            if self.scenario.windows.len() > 1 {
                self.preempt(number);
                return;
            }
            request.computed = request.local;
        }
        self.running.push(number);
        self.cache_blocks(number);
    }

    /// Every request that has computed on a block that was not loaded begins again where the block is.
    fn roll_back(&mut self, errors: &BTreeSet<u32>) {
        let bt = self.scenario.block_tokens;
        trace!(self, "not loaded: {errors:?}");
        // Whoever has computed on them may be gone already, and what it computed is in the cache as well.
        self.cached.clear();
        self.pool.iter_mut().for_each(|block| block.cached_as = None);
        for number in self.running.clone() {
            let request = &self.requests[&number];
            let blocks = request.computed.div_ceil(bt);
            let first = request
                .tables
                .iter()
                .filter_map(|table| table.iter().take(blocks).position(|block| errors.contains(block)))
                .min();
            let Some(first) = first else { continue };
            self.counts.rolled_back += 1;
            let mut shared = false;
            for block in request.tables.iter().flat_map(|table| table.iter().skip(first)) {
                shared |= self.pool[*block as usize].users > 1;
            }
            if shared || self.scenario.windows.len() > 1 || self.random.chance(500) {
                self.preempt(number);
            } else {
                let request = self.requests.get_mut(&number).unwrap();
                request.incarnation += 1;
                // The step that was scheduled ahead is dropped as a whole.
                request.computed = request.last_start.min(first * bt);
            }
        }
    }

    fn absorb_reports(&mut self) -> Result<(), Violation> {
        for rank in 0..self.reports.len() {
            while self.reports[rank].front().is_some_and(|(due, _)| *due <= self.step) {
                let Some((_, report)) = self.reports[rank].pop_front() else { break };
                let report = Report::decode(&report.encode()).map_err(|error| error.to_string())?;
                self.expects_plan |= report.hello.is_some();
                for end in &report.ended {
                    trace!(self, "rank {rank} reports {end:?}");
                }
                for ended in self.planner.absorb(&report) {
                    // A load that failed makes a rank forget slots.
                    self.expects_plan = true;
                    if self.bug == Some(Bug::IgnoreHolds) {
                        continue;
                    }
                    let held = self.held.remove(&ended.id).unwrap_or_default();
                    if held != ended.released {
                        return Err(format!(
                            "{:?} releases {:?}, but held {held:?}",
                            ended.id, ended.released
                        ));
                    }
                    if self.bug == Some(Bug::DropRelease) && self.random.chance(100) {
                        continue;
                    }
                    for block in held {
                        self.let_go(block);
                    }
                }
                if self.random.chance(20) {
                    self.counts.repeated_reports += u64::from(!report.ended.is_empty());
                    let again = Report { hello: None, loaded_bytes: 0, ..report };
                    if !self.planner.absorb(&again).is_empty() {
                        return Err("a rank that repeats itself was counted twice".into());
                    }
                }
            }
        }
        self.planner.take_removed();
        Ok(())
    }

    // ---- what must always hold

    fn check(&mut self) -> Result<(), Violation> {
        let known = self.planner.stats().requests;
        if known > self.requests.len() {
            return Err(format!("the planner knows {known} requests, the engine {}", self.requests.len()));
        }
        if let Some(directory) = self.planner.directory() {
            let stats = directory.stats();
            let slots = stats.free + stats.filling + stats.ready + stats.draining + stats.unusable;
            if slots != stats.slot_count {
                return Err(format!("{slots} slots of {} are accounted for: {stats:?}", stats.slot_count));
            }
            if stats.metadata_bytes > 2048 + 128 * stats.slot_count {
                return Err(format!(
                    "{} bytes of metadata for {} slots",
                    stats.metadata_bytes, stats.slot_count
                ));
            }
            if self.step.is_multiple_of(16) {
                directory.check()?;
            }
        }
        Ok(())
    }

    fn check_drained(&mut self) -> Result<(), Violation> {
        if let Some(directory) = self.planner.directory() {
            directory.check()?;
            let stats = directory.stats();
            if stats.filling + stats.draining + stats.pinned > 0
                || stats.free + stats.ready + stats.unusable != stats.slot_count
            {
                return Err(format!("slots leak: {stats:?}"));
            }
            self.counts.evicted += stats.evicted;
            self.counts.refused += stats.refused;
            self.counts.stored += stats.stored;
        }
        self.counts.adopted += self.planner.stats().adopted_blocks;
        let used = self.pool.iter().filter(|block| block.users > 0).count();
        if used > 0 || !self.held.is_empty() {
            return Err(format!("{used} engine blocks are still held by {} jobs", self.held.len()));
        }
        for (index, rank) in self.ranks.iter().enumerate() {
            let stats = rank.store.stats();
            if stats.jobs_in_flight > 0 || rank.copies.in_flight().batches > 0 {
                return Err(format!("rank {index} still works: {stats:?}"));
            }
            let copies = rank.copies.counts();
            self.counts.copy_failures += copies.failed;
            self.counts.copies_full += copies.full;
            self.counts.overtaken += copies.overtaken;
        }
        Ok(())
    }
}

enum Admission {
    /// With so many tokens of this step.
    Started(usize),
    AskAgain,
    NoRoom,
}

/// What a page holds when the prefix up to its last token has been computed.
fn content(prefix: u64, layer: usize, rank: usize, weights: u64) -> u64 {
    mix(prefix ^ mix((layer as u64) << 40 | (rank as u64) << 32 | weights))
}

impl Rank {
    fn new(
        index: usize,
        scenario: &Scenario,
        bug: Option<Bug>,
        random: &mut Random,
        slab: Option<Arc<Slab>>,
    ) -> Self {
        let page_bytes = 8 * scenario.segments;
        let groups = scenario.windows.len();
        let layers: Vec<Bytes> =
            (0..scenario.layers).map(|_| Bytes::new(scenario.engine_blocks * page_bytes)).collect();
        for layer in &layers {
            (0..layer.words()).for_each(|word| layer.set_word(word, 0xdead));
        }
        let bindings = layers.iter().enumerate().map(|(layer, bytes)| LayerBinding {
            name: format!("layer {layer}"),
            group: (layer % groups) as u16,
            pages: PageLayout {
                base: bytes.address(),
                block_stride: 8,
                block_count: scenario.engine_blocks,
                segments: scenario.segments,
                segment_stride: 8 * scenario.engine_blocks,
                segment_bytes: 8,
            },
        });
        let layout = EngineLayout::new(bindings.collect(), scenario.slot_blocks).unwrap();
        let slab = slab.unwrap_or_else(|| Slab::new(scenario.slots[index], layout.slot_bytes()));
        let bugs = MemoryBugs {
            publish_before_copy: bug == Some(Bug::PublishEarly),
            forget_epoch: bug == Some(Bug::ForgetEpoch),
            trust_any_label: bug == Some(Bug::TrustAnyLabel),
        };
        let usable = if random.chance(300) { random.below(slab.slot_count() + 1) } else { slab.slot_count() };
        let memory = FakeMemory::new(&slab, usable as u32, bugs);
        let copies = Arc::new(LazyCopies::new(random.next(), scenario.copies));
        let config = StoreConfig {
            rank: index as u32,
            copy_threads: scenario.copy_threads,
            layers_ahead: random.between(0, 3),
            // No help that depends on the time, and no patience that a slow machine could exhaust.
            help_share: 0.0,
            help_least: Duration::ZERO,
            patience: Duration::from_secs(3600),
            skip_copies: false,
        };
        let store = Store::new(config, layout, Arc::clone(&memory) as _, Arc::clone(&copies) as _);
        Self { slab, memory, copies, store, layers }
    }

    fn word(scenario: &Scenario, block: u32, segment: usize) -> usize {
        segment * scenario.engine_blocks + block as usize
    }

    fn set_page(&self, scenario: &Scenario, layer: usize, block: u32, value: u64) {
        for segment in 0..scenario.segments {
            self.layers[layer].set_word(Self::word(scenario, block, segment), value ^ segment as u64);
        }
    }

    /// The value of a page; none if its parts do not belong together.
    fn page(&self, scenario: &Scenario, layer: usize, block: u32) -> Option<u64> {
        let value = |segment| self.layers[layer].word(Self::word(scenario, block, segment)) ^ segment as u64;
        (1..scenario.segments).all(|segment| value(segment) == value(0)).then(|| value(0))
    }

    fn is_in_use(&self, scenario: &Scenario, layer: usize, block: u32) -> bool {
        let address = self.layers[layer].address();
        (0..scenario.segments).any(|s| self.copies.touches(address + 8 * Self::word(scenario, block, s)))
    }
}
