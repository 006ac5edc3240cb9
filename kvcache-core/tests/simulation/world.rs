//! An engine, its scheduler and its ranks, with a planner on one side and stores on the other; all of it on one thread
//! and decided by one seed.
//!
//! The engine is a model of vLLM's: a pool of blocks with reference counts and a prefix cache, chunked prefill, decode,
//! preemption, aborts, windows that slide, and a scheduler that may run a step ahead of what it knows of the last one.
//! A page's content is a word that says what computing it would have given, so that every load can be checked.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use kvcache_core::BlockKey;
use kvcache_core::block_key::HashAlgorithm;
use kvcache_core::copy_engine::CopyEngine;
use kvcache_core::directory::GroupKind;
use kvcache_core::eviction::{Candidate, EvictionPolicy, Lru, PolicyRegistry, SlotId};
use kvcache_core::fingerprint::{Namespace, ShardFingerprint};
use kvcache_core::plan::{JobId, JobKind, StepPlan};
use kvcache_core::planner::{
    GroupConfig, KeySource, Lookup, Planner, PlannerConfig, RemoteTierConfig, RequestOptions,
};
use kvcache_core::report::{JobEnd, Report};
use kvcache_core::store::{
    EngineLayout, LayerBinding, PageLayout, RemoteLink, SlotMemory, Store, StoreConfig,
};

use super::fakes::fake_copies::{CopyBehaviour, LazyCopies};
use super::fakes::fake_memory::{Bytes, FakeMemory, MemoryBugs, Slab};
use super::fakes::fake_ring::{FakePresence, FakeRemote, FakeServers};
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

mod invariants;
mod outputs;
mod pool;
mod scheduler;
mod users;
mod workers;

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
    servers: Arc<FakeServers>,
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
    remote: Arc<FakeRemote>,
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

fn planner(scenario: &Scenario, bug: Option<Bug>, servers: &Arc<FakeServers>, nonce: u64) -> Planner {
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
    let policy_name = scenario.policy;
    let policy = move |slots| -> Box<dyn EvictionPolicy> {
        match bug {
            Some(Bug::EndlessGhosts) => Box::new(EndlessGhosts(Lru::new(slots), Vec::new())),
            Some(Bug::EvictPinned) => Box::new(IgnoresPins(Lru::new(slots))),
            _ => PolicyRegistry::with_builtin().build(policy_name, slots).expect("built in"),
        }
    };
    let planner = Planner::new(config, Box::new(policy));
    let Some(ingestion) = scenario.remote else { return planner };
    let config = RemoteTierConfig {
        ingestion,
        presence_wait: Duration::from_millis(20),
        fetch_wait: Duration::from_millis(scenario.fetch_wait_ms),
        fetch_job_slots: scenario.fetch_job_slots,
        demoting_max: scenario.demoting_max,
        nonce,
    };
    planner.with_remote(config, FakePresence::new(servers))
}

impl World {
    pub(crate) fn new(seed: u64, scenario: Scenario, bug: Option<Bug>) -> Self {
        let mut random = Random::new(seed);
        let servers = FakeServers::new(random.next(), scenario.ring.clone());
        servers.behave(|servers| {
            servers.trust_bytes = bug == Some(Bug::TrustRemoteBytes);
            servers.ignore_space = bug == Some(Bug::ShareAfterReset);
            servers.lose_ends = if bug == Some(Bug::LoseRemoteEnds) { 50 } else { 0 };
            servers.write_late = bug == Some(Bug::WriteLate);
        });
        let mut ranks: Vec<Rank> = Vec::new();
        for rank in 0..scenario.ranks {
            let slab = ranks.first().filter(|_| scenario.replicas).map(|first| Arc::clone(&first.slab));
            ranks.push(Rank::new(rank, &scenario, bug, &mut random, slab, &servers));
        }
        let mut world = Self {
            planner: planner(&scenario, bug, &servers, random.next()),
            servers,
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
        self.servers.heal();
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
        if self.random.chance(self.scenario.servers_change) {
            self.counts.servers_changed += 1;
            self.servers.accident();
        }
        if self.random.chance(self.scenario.members_change) {
            self.counts.members_changed += 1;
            self.servers.change_members();
        }
        if self.random.chance(self.scenario.servers_lose) {
            self.servers.lose_values();
        }
        if self.random.chance(crash) && !self.reset_unsent {
            self.crash();
        }
        self.engine_step()
    }
}

enum Admission {
    /// With so many tokens of this step.
    Started(usize),
    AskAgain,
    NoRoom,
}

/// What a page holds when the prefix up to its last token has been computed. Replicas hold the same.
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
        servers: &Arc<FakeServers>,
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
        let layout = EngineLayout::new(bindings.collect(), scenario.slot_blocks).expect("a valid layout");
        let slab = slab.unwrap_or_else(|| Slab::new(scenario.slots[index], layout.slot_bytes()));
        let bugs = MemoryBugs {
            publish_before_copy: bug == Some(Bug::PublishEarly),
            forget_epoch: bug == Some(Bug::ForgetEpoch),
            trust_any_label: bug == Some(Bug::TrustAnyLabel),
            keep_void: bug == Some(Bug::KeepVoid),
        };
        let usable = if scenario.slow_pinning || random.chance(300) {
            random.below(slab.slot_count() + 1)
        } else {
            slab.slot_count()
        };
        let memory = if scenario.replicas && index > 0 {
            FakeMemory::replica(&slab, usable as u32, bugs)
        } else {
            FakeMemory::new(&slab, usable as u32, bugs)
        };
        if scenario.slow_pinning {
            memory.pin_slowly();
        }
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
            timeline: false,
        };
        let remote = FakeRemote::new(servers);
        let mut store = Store::new(config, layout, Arc::clone(&memory) as _, Arc::clone(&copies) as _);
        if scenario.remote.is_some() {
            store = store.with_remote(RemoteLink {
                store: Arc::clone(&remote) as _,
                namespace: Namespace::of_text("simulation"),
                shard: ShardFingerprint([scenario.shard(index) as u8; 16]),
                patience: Duration::from_millis(scenario.remote_patience_ms),
                in_flight_max: scenario.remote_in_flight_max,
            });
        }
        Self { slab, memory, copies, remote, store, layers }
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
