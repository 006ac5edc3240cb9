//! What L2 takes of the engine's thread, in CPU time: `cargo bench -p kvcache-benches --bench l2_engine_thread`
//!
//! Two engines without a model take the same steps in turn, one with an L2 over TCP and one with L1 alone; both have planner
//! and store on one thread, as a single-process engine has. A request enters every so many steps, half of whose prompt is
//! new; the other half was stored by an earlier request and has left L1. What the engine with L2 takes more is L2's.

use std::sync::Arc;
use std::time::Duration;

use kvcache_core::copy_engine::{HostCopyConfig, HostCopyEngine};
use kvcache_core::directory::GroupKind;
use kvcache_core::eviction::Lru;
use kvcache_core::fingerprint::{Namespace, ShardFingerprint};
use kvcache_core::planner::{
    GroupConfig, KeySource, LoadMode, Planner, PlannerConfig, RemoteTierConfig, RequestOptions,
};
use kvcache_core::slab::{Slab, SlabConfig};
use kvcache_core::store::{
    EngineLayout, LayerBinding, PageLayout, RemoteLink, SlabSlots, Store, StoreConfig,
};
use kvcache_rdma::members::{Member, MemberList, Members, PlacementSource};
use kvcache_rdma::ring::{RingConfig, RingPresence, RingStore};
use kvcache_server::{Server, ServerConfig};

const BLOCK_TOKENS: usize = 16;
const PAGE_BYTES: usize = 64 << 10;
/// Blocks of a prompt: 512 tokens.
const BLOCKS: usize = 32;
const SLOTS: usize = 96;
const REQUESTS: u64 = 300;
/// Steps from one request to the next.
const STEPS: u32 = 20;

fn main() {
    // `cargo test` runs benches as well: then it is enough that they build.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let server = Server::start(ServerConfig { capacity_bytes: 1 << 30, ..ServerConfig::default() })
        .expect("a server on the loopback interface");
    let (mut with, mut without) = (Engine::new(Some(&server)), Engine::new(None));
    let (mut busy, mut every) = (Vec::new(), Vec::new());
    for request in 0..REQUESTS {
        for step in 0..STEPS {
            let l2 = with.step(request, step);
            let l1 = without.step(request, step);
            let more = (l2.as_nanos() as f64 - l1.as_nanos() as f64) / 1e3;
            every.push(more);
            if step < 4 {
                busy.push(more);
            }
            // A forward pass, during which L2 goes on.
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    let stats = with.planner.stats().remote.expect("an L2");
    println!("{} blocks came from L2, {} went there", stats.fetched_blocks, stats.demoted_blocks);
    assert!(stats.fetched_blocks > 0 && stats.demoted_blocks > 0, "L2 had nothing to do");
    println!(
        "| CPU time that a step takes more, µs | median | 90 % | 99 % | mean | target |\n|---|---|---|---|---|---|"
    );
    row("any step", &mut every);
    row("the first steps of a request", &mut busy);
}

fn row(name: &str, values: &mut [f64]) {
    values.sort_unstable_by(f64::total_cmp);
    let at = |share: f64| values[((values.len() - 1) as f64 * share) as usize];
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    println!("| {name} | {:.1} | {:.1} | {:.1} | {mean:.1} | ≤ 20 |", at(0.5), at(0.9), at(0.99));
}

struct Engine {
    planner: Planner,
    store: Store,
    /// The engine's KV cache.
    _pages: Vec<u8>,
    now: Duration,
}

impl Engine {
    fn new(server: Option<&Server>) -> Self {
        let pages = vec![1; (BLOCKS + 1) * PAGE_BYTES];
        let layer = LayerBinding {
            name: "layer".into(),
            group: 0,
            pages: PageLayout {
                base: pages.as_ptr() as usize,
                block_stride: PAGE_BYTES,
                block_count: BLOCKS + 1,
                segments: 1,
                segment_stride: PAGE_BYTES,
                segment_bytes: PAGE_BYTES,
            },
        };
        let layout = EngineLayout::new(vec![layer], 1).expect("a valid layout");
        let slab = Slab::open(&SlabConfig::anonymous(layout.slot_bytes(), SLOTS)).expect("a few megabytes");
        while slab.usable_slots() < SLOTS {
            std::thread::sleep(Duration::from_millis(1));
        }
        let memory = Arc::new(SlabSlots::new(slab, false));
        let copies = HostCopyEngine::new(HostCopyConfig { threads: 0, ..HostCopyConfig::default() });
        let copies = Arc::new(copies.expect("no thread is started"));
        // Copies are the same in both: all of them within the step.
        let config = StoreConfig { help_least: Duration::from_secs(10), ..StoreConfig::default() };
        let mut store = Store::new(config, layout, memory, copies);
        let mut planner = Planner::new(planner_config(), Box::new(|slots| Box::new(Lru::new(slots))));
        if let Some(server) = server {
            let ring = ring(server);
            store = store.with_remote(RemoteLink {
                store: Arc::new(RingStore::open(&ring).expect("a client")),
                namespace: Namespace::of_text("bench"),
                shard: ShardFingerprint([1; 16]),
                patience: Duration::from_secs(2),
                in_flight_max: 32,
            });
            let presence = RingPresence::open(&ring).expect("a client");
            let tier =
                RemoteTierConfig { fetch_wait: Duration::from_millis(8), ..RemoteTierConfig::default() };
            planner = planner.with_remote(tier, Box::new(presence));
        }
        if let Some(report) = store.take_report() {
            planner.absorb(&report);
        }
        Self { planner, store, _pages: pages, now: Duration::from_secs(1) }
    }

    /// One step of the engine; the thread's CPU time in planner and store.
    fn step(&mut self, request: u64, step: u32) -> Duration {
        let began = thread_time();
        self.now += Duration::from_millis(1);
        let id = format!("{request}");
        let blocks = vec![(1..=BLOCKS as u32).collect::<Vec<u32>>()];
        if step == 0 {
            self.planner.add_request(&id, RequestOptions::default());
            // The first half is that of a request of a while ago.
            let hash = |block: usize| {
                let document = if block < BLOCKS / 2 { request % 20 } else { 1000 + request };
                [document.to_le_bytes(), (block as u64).to_le_bytes()].concat()
            };
            let hashes: Vec<Vec<u8>> = (0..BLOCKS).map(hash).collect();
            self.planner.extend_hashes(&id, hashes.iter().map(|hash| &hash[..]));
            self.planner.prefetch(&id, BLOCKS * BLOCK_TOKENS, self.now);
        }
        if (1..10).contains(&step) {
            // Both ask as often; what they hear differs.
            let answer = self.planner.lookup(&id, 0, BLOCKS * BLOCK_TOKENS, self.now);
            std::hint::black_box(answer);
            if step == 9 {
                // Loading is L1's work, and only one of them has something to load: both decline.
                self.planner.commit_load(&id, 0, &blocks);
            }
        }
        if step == 10 {
            self.planner.offload(&id, BLOCKS * BLOCK_TOKENS, &blocks);
        }
        if step == STEPS - 1 {
            self.planner.finish(&id);
        }
        if let Some(plan) = self.planner.take_plan(1, self.now) {
            self.store.begin_step(plan, None);
        }
        self.store.start_loads();
        self.store.end_step(None);
        if let Some(report) = self.store.take_report() {
            self.planner.absorb(&report);
        }
        thread_time() - began
    }
}

fn planner_config() -> PlannerConfig {
    PlannerConfig {
        namespace: Namespace::of_text("bench"),
        groups: vec![GroupConfig { kind: GroupKind::Full, block_tokens: BLOCK_TOKENS }],
        slot_blocks: 1,
        hash_tokens: BLOCK_TOKENS,
        key_source: KeySource::Engine,
        ranks: 1,
        null_block: 0,
        load_mode: LoadMode::Auto,
        min_load_tokens: 0,
        fill_wait: Duration::from_millis(5),
        startup_wait: Duration::from_secs(2),
        store_on_sight: 1,
        prompt_only: false,
        keep_hashes: false,
    }
}

fn ring(server: &Server) -> RingConfig {
    let address = server.address().to_string().parse().expect("an address");
    let list = MemberList::new(vec![Member::at(address)]).expect("one member");
    RingConfig::new(Members::fixed(list, PlacementSource::Computed).expect("a ring"))
}

/// CPU time of this thread: what other threads take of the machine meanwhile does not count.
fn thread_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the clock exists on Linux, and the pointer is to a local.
    let status = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    assert_eq!(status, 0, "the thread's clock cannot be read");
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
