//! Both halves of a connector from settings, around an engine of one rank on the CPU, with a real server behind them.

#![expect(clippy::unwrap_used, reason = "tests panic")]

use std::time::{Duration, Instant};

use kvcache_assembly::{
    Cache, CacheSettings, GroupSettings, PlannerSettings, RankStore, RankStoreSettings, Remote,
    RemoteSettings,
};
use kvcache_core::planner::{Planner, RequestOptions};
use kvcache_core::store::{LayerBinding, PageLayout};
use kvcache_server::{Server, ServerConfig};

const NAMESPACE: [u8; 16] = [7; 16];
const SHARD: [u8; 16] = [9; 16];
const LAYERS: usize = 3;
const PAGE_BYTES: usize = 512;
const BLOCK_TOKENS: usize = 4;
/// A slot holds two of the engine's blocks.
const SLOT_BLOCKS: usize = 2;
const SLOT_BYTES: usize = LAYERS * SLOT_BLOCKS * PAGE_BYTES;
/// The engine has eight blocks; a prompt of four of them is two slots.
const BLOCKS: usize = 8;
const PROMPT: std::ops::Range<u32> = 100..116;
/// What the engine calls the salt of its prompts, behind the group.
const SALT: &[u8] = b"salt";

struct Engine {
    planner: Planner,
    store: RankStore,
    /// Pages of each layer, block by block. They outlive the store: dropped after it.
    tensors: Vec<Vec<u8>>,
    remote: Remote,
    since: Instant,
}

impl Engine {
    fn start(remote: &RemoteSettings) -> Self {
        let mut tensors = vec![vec![0u8; BLOCKS * PAGE_BYTES]; LAYERS];
        let layers = tensors.iter_mut().enumerate().map(|(layer, tensor)| LayerBinding {
            name: format!("layer {layer}"),
            group: 0,
            pages: PageLayout {
                base: tensor.as_mut_ptr() as usize,
                block_stride: PAGE_BYTES,
                block_count: BLOCKS,
                segments: 1,
                segment_stride: PAGE_BYTES,
                segment_bytes: PAGE_BYTES,
            },
        });
        let layers = layers.collect();
        let remote = remote.open().unwrap();
        let rank = RankStoreSettings {
            namespace: NAMESPACE,
            shard: SHARD,
            ..RankStoreSettings::new(layers, SLOT_BLOCKS, 16 * SLOT_BYTES as u64)
        };
        let store = rank.open(Some(&remote)).unwrap();
        let full = GroupSettings { kind: "full".to_owned(), block_tokens: BLOCK_TOKENS, window_tokens: 0 };
        let planner = PlannerSettings {
            key_source: "tokens".to_owned(),
            ..PlannerSettings::new(NAMESPACE, vec![full], SLOT_BLOCKS, BLOCK_TOKENS)
        };
        let planner = planner.open(Some(&remote)).unwrap();
        let mut engine = Self { planner, store, tensors, remote, since: Instant::now() };
        engine.report();
        engine
    }

    /// The engine computes a prompt into its first blocks, and its KV is stored.
    fn compute(&mut self, prompt: &[u32]) {
        let options =
            RequestOptions { prompt_tokens: prompt.len(), extra: SALT.to_vec(), ..RequestOptions::default() };
        self.planner.add_request("request", options);
        self.planner.extend_tokens("request", prompt.iter().copied());
        for (layer, tensor) in self.tensors.iter_mut().enumerate() {
            for (block, page) in tensor.chunks_exact_mut(PAGE_BYTES).enumerate() {
                page.fill(byte(layer, block));
            }
        }
        // Block 0 holds nothing, by its default number.
        let blocks: Vec<u32> = (1..=(prompt.len() / BLOCK_TOKENS) as u32).collect();
        assert!(self.planner.offload("request", prompt.len(), &[blocks]).job.is_some());
        self.planner.finish("request");
    }

    fn step(&mut self) {
        if let Some(plan) = self.planner.take_plan(1, self.since.elapsed()) {
            self.store.begin_step(&plan.encode(), None).unwrap();
            self.store
                .with(|store| {
                    store.start_loads();
                    (0..LAYERS).for_each(|layer| store.store_layer(layer, None));
                })
                .unwrap();
        }
        self.store.end_step(true, false, None).unwrap();
        self.store.with(|store| store.rest(Duration::from_millis(5))).unwrap();
        self.report();
    }

    fn report(&mut self) {
        if let Some(report) = self.store.with(|store| store.take_report()).unwrap() {
            self.planner.absorb(&report);
        }
    }

    fn number(&self, key: &str) -> u64 {
        let numbers = self.store.numbers().unwrap();
        numbers.iter().find(|number| number.key() == key).unwrap().value
    }

    /// Steps until all of `slots` slots are in L2.
    fn demote(&mut self, slots: usize) {
        let give_up = Instant::now() + Duration::from_secs(30);
        while self.number("l2_demoted_bytes") < (slots * SLOT_BYTES) as u64 {
            assert!(
                Instant::now() < give_up,
                "the slots did not get to L2: {:?}\n{:?}\n{:?}",
                self.remote.problems(),
                self.planner.stats(),
                self.store.numbers()
            );
            self.step();
        }
    }
}

fn byte(layer: usize, block: usize) -> u8 {
    (16 * layer + block + 1) as u8
}

/// One slot as the format says: layer by layer, the blocks of each one after the other.
fn slot(index: usize) -> Vec<u8> {
    let pages = (0..LAYERS).flat_map(|layer| (0..SLOT_BLOCKS).map(move |block| (layer, block)));
    pages.flat_map(|(layer, block)| [byte(layer, 1 + index * SLOT_BLOCKS + block); PAGE_BYTES]).collect()
}

fn remote(server: &Server) -> RemoteSettings {
    RemoteSettings {
        // Machines that run tests are busy.
        presence_wait_s: 5.0,
        timeout_s: 10.0,
        ..RemoteSettings::new(format!("tcp://{}", server.address()))
    }
}

/// A cache with an engine's fingerprints.
fn reader(server: &Server, block_bytes: usize, shard: [u8; 16]) -> Cache {
    CacheSettings {
        namespace_id: Some(NAMESPACE),
        shard_id: Some(shard),
        remote: Some(remote(server)),
        ..CacheSettings::new(block_bytes, 1 << 20)
    }
    .open()
    .unwrap()
}

/// docs/format.md: "Values in L2", and keys from tokens with the group in front of `extra`.
#[test]
fn a_cache_with_an_engines_fingerprints_reads_what_it_stored() {
    let server = Server::start(ServerConfig { capacity_bytes: 1 << 20, ..ServerConfig::default() }).unwrap();
    let mut engine = Engine::start(&remote(&server));
    let prompt: Vec<u32> = PROMPT.collect();
    engine.compute(&prompt);
    engine.demote(2);

    let extra = [&0u16.to_le_bytes()[..], SALT].concat();
    let cache = reader(&server, SLOT_BYTES, SHARD);
    let keys = cache.keys().of(&prompt, BLOCK_TOKENS * SLOT_BLOCKS, &extra).unwrap();
    assert_eq!(keys.len(), 2);
    let mut out = vec![0; 2 * SLOT_BYTES];
    assert_eq!(cache.core().get(&keys, &mut out).unwrap(), 2);
    assert!(out == [slot(0), slot(1)].concat(), "other bytes than the engine's");

    // Blocks of another length, or of another shard, are found by no key.
    for other in [reader(&server, SLOT_BYTES / 2, SHARD), reader(&server, SLOT_BYTES, [8; 16])] {
        assert_eq!(other.core().match_prefix(&keys), 0);
    }
    // After a reset the engine is alone with what it stores.
    engine.planner.reset();
    engine.step();
    engine.compute(&(200..216).collect::<Vec<u32>>());
    engine.demote(4);
    let later =
        cache.keys().of(&(200..216).collect::<Vec<u32>>(), BLOCK_TOKENS * SLOT_BLOCKS, &extra).unwrap();
    assert_eq!(cache.core().match_prefix(&later), 0);
    engine.store.close();
    server.stop();
}

#[test]
fn a_store_that_is_closed_says_so() {
    let server = Server::start(ServerConfig { capacity_bytes: 1 << 20, ..ServerConfig::default() }).unwrap();
    let engine = Engine::start(&remote(&server));
    let text = engine.store.describe();
    assert!(
        text.starts_with("L1 of 16 slots of 0.00 MiB, 0.00 GiB in private memory, 0 blocks found"),
        "{text}"
    );
    assert!(text.ends_with(", 2 copy threads"), "{text}");
    assert!(engine.store.problems().is_empty() && engine.store.warnings().is_empty());
    engine.store.close();
    engine.store.close();
    let closed = "the store is closed: the engine is shutting down";
    assert_eq!(engine.store.end_step(true, true, None).unwrap_err().to_string(), closed);
    assert_eq!(engine.store.numbers().unwrap_err().to_string(), closed);
    assert!(engine.store.device().is_none() && engine.store.fake().is_none());
}

#[test]
fn errors_name_the_setting_and_the_remedy() {
    let page = PageLayout {
        base: 4096,
        block_stride: PAGE_BYTES,
        block_count: 1,
        segments: 1,
        segment_stride: PAGE_BYTES,
        segment_bytes: PAGE_BYTES,
    };
    let layers = vec![LayerBinding { name: "layer".to_owned(), group: 0, pages: page }];
    let rank = RankStoreSettings { ranks: 4, copies: 2, ..RankStoreSettings::new(layers, 1, 4096) };
    let cases = [
        (RankStoreSettings { drill: "flood".to_owned(), ..rank.clone() }, "unknown drill"),
        (
            RankStoreSettings { device: Some("rocm:0".to_owned()), ..rank.clone() },
            "unknown device \"rocm:0\": use",
        ),
        (
            RankStoreSettings { drill: "fake_cuda".to_owned(), copy_path: "fast".to_owned(), ..rank.clone() },
            "unknown copy path \"fast\": use auto",
        ),
        (
            RankStoreSettings { capacity_bytes: 1000, ..rank.clone() },
            "capacity of 1000 bytes is below one slot of 512 bytes on each of 2 ranks: set capacity to at least 1024",
        ),
        (
            RankStoreSettings { capacity_bytes: 1 << 52, ..rank.clone() },
            "capacity of 4503599627370496 bytes is above this machine's memory of ",
        ),
    ];
    for (settings, start) in cases {
        let text = settings.open(None).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(text.starts_with(start), "{start:?}, not {text:?}");
    }

    let full = |kind: &str| GroupSettings { kind: kind.to_owned(), block_tokens: 4, window_tokens: 0 };
    let planner = PlannerSettings::new(NAMESPACE, vec![full("full")], 1, 4);
    let cases = [
        (
            PlannerSettings { groups: vec![full("half")], ..planner.clone() },
            "unknown group kind \"half\": use",
        ),
        (
            PlannerSettings { groups: vec![full("sliding")], ..planner.clone() },
            "group 0 is sliding and has window",
        ),
        (
            PlannerSettings { key_source: "hash".to_owned(), ..planner.clone() },
            "unknown key_source \"hash\": use",
        ),
        (
            PlannerSettings { key_source: "tokens".to_owned(), hash: "md5".to_owned(), ..planner.clone() },
            "unknown hash \"md5\": use",
        ),
        (
            PlannerSettings { load_mode: "lazy".to_owned(), ..planner.clone() },
            "unknown load_mode \"lazy\": use",
        ),
        (PlannerSettings { eviction: "fifo".to_owned(), ..planner.clone() }, "unknown eviction policy"),
        (
            PlannerSettings { fill_wait_s: -0.5, ..planner.clone() },
            "fill_wait_s is -0.5: give seconds from 0 up",
        ),
        (PlannerSettings { ranks: 0, ..planner.clone() }, "ranks is 0: give"),
    ];
    for (settings, start) in cases {
        let text = settings.open(None).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(text.starts_with(start), "{start:?}, not {text:?}");
    }
    assert!(planner.open(None).is_ok());
}
