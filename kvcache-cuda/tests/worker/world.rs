//! An engine with paged layers on a device, and the scheduler side in a few lines.
//!
//! A page's content follows from its key and layer, so that every read can be checked where it happens: in the stream.

#![expect(clippy::unwrap_used, reason = "where the model of the engine is broken, the test has failed")]

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use kvcache_core::BlockKey;
use kvcache_core::copy_engine::CopyEngine;
use kvcache_core::directory::FillId;
use kvcache_core::eviction::SlotId;
use kvcache_core::plan::{EngineHash, Job, JobId, JobKind, StepPlan, Transfer};
use kvcache_core::slab::{Slab, SlabConfig};
use kvcache_core::store::{
    EngineLayout, LayerBinding, PageLayout, PinnedSlots, SlabSlots, SlotMemory, Store, StoreConfig,
};
use kvcache_cuda::driver::Stream;
use kvcache_cuda::engine::{CopyPath, CudaCopyConfig, CudaCopyEngine};
use kvcache_cuda::fake::{Call, FakeDevice, Status, When};

use crate::buggy::{Bug, Buggy};

/// What a run has seen.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(crate) struct Outcome {
    pub(crate) violations: Vec<String>,
    /// Reads that found something else than they should.
    pub(crate) wrong: Vec<String>,
    pub(crate) loads: usize,
    pub(crate) offloads: usize,
    pub(crate) load_errors: usize,
    /// Steps without hooks, as a replayed CUDA graph has none.
    pub(crate) graphs: usize,
    /// Steps that began while earlier ones had not ended.
    pub(crate) behind: usize,
    /// Loads into blocks that the step before has used.
    pub(crate) reused: usize,
    /// Batches that copy for several jobs.
    pub(crate) shared: u64,
}

const PAGE: usize = 96;
const BLOCKS: u32 = 24;
const SLOTS: usize = 12;

const LAYER_BYTES: usize = BLOCKS as usize * PAGE;
/// A run must not depend on where memory happens to lie.
const ALIGNMENT: usize = 4096;

/// A layer's pages.
struct Layer(Box<[u8]>);

impl Layer {
    fn new() -> Self {
        Self(vec![0u8; LAYER_BYTES + ALIGNMENT].into())
    }

    fn base(&self) -> usize {
        (self.0.as_ptr() as usize).next_multiple_of(ALIGNMENT)
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}

/// The first bytes of a page. Never zero, which is what memory holds at first.
fn content(key: u8, layer: usize) -> u8 {
    key.wrapping_mul(8).wrapping_add(layer as u8) | 0x80
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum SlotState {
    Free,
    /// A job fills it.
    Filling,
    Ready(u8),
    /// So many jobs load from it.
    Pinned(u8, u32),
}

struct Loading {
    slots: Vec<usize>,
    blocks: Vec<u32>,
    request: String,
    is_async: bool,
}

struct Offloading {
    slot: usize,
    block: u32,
    key: u8,
}

struct World {
    random: Random,
    store: Store,
    fake: Arc<FakeDevice>,
    stream: Stream,
    layers: Vec<Layer>,
    slots: Vec<SlotState>,
    slot_addresses: Vec<usize>,
    free_blocks: BTreeSet<u32>,
    used_before: BTreeSet<u32>,
    loading: BTreeMap<u64, Loading>,
    offloading: BTreeMap<u64, Offloading>,
    number: u64,
    wrong: Arc<Mutex<BTreeMap<(usize, u32), String>>>,
    /// Reads that are known to have found nothing, by step and block.
    excused: BTreeSet<(usize, u32)>,
    outcome: Outcome,
}

pub(crate) fn run(seed: u64, bug: Option<Bug>) -> Outcome {
    let mut world = World::new(seed, bug);
    let steps = 10 + world.random.below(20);
    for step in 0..steps {
        world.step(step);
    }
    world.finish()
}

impl World {
    fn new(seed: u64, bug: Option<Bug>) -> Self {
        let mut random = Random(seed);
        let fake = FakeDevice::options().seed(seed).batch_copy(random.chance(80)).build();
        let path =
            [None, Some(CopyPath::DmaBatch), Some(CopyPath::Dma), Some(CopyPath::Kernel)][random.below(4)];
        let config = CudaCopyConfig {
            path,
            calibrate: false,
            kernel_chunk_bytes: 32,
            batches_max: 1 + random.below(16),
            bytes_max: [1, 1000, 1 << 30][random.below(3)],
            call_bytes: [PAGE, 1 << 20][random.below(2)],
            batch_bytes: [0, 2 * PAGE, 1 << 20][random.below(3)],
            ..CudaCopyConfig::default()
        };
        let engine = Arc::new(CudaCopyEngine::new(Arc::clone(&fake) as _, config).unwrap());
        let buggy =
            bug.map(|bug| Arc::new(Buggy { inner: Arc::clone(&engine) as _, bug, slots: OnceLock::new() }));
        let copies: Arc<dyn CopyEngine> = match &buggy {
            Some(buggy) => Arc::clone(buggy) as _,
            None => engine,
        };
        let layers: Vec<Layer> = (0..2 + random.below(4)).map(|_| Layer::new()).collect();
        let bindings = layers.iter().map(|layer| {
            fake.add_device_memory(layer.base(), LAYER_BYTES);
            let pages = PageLayout {
                base: layer.base(),
                block_stride: PAGE,
                block_count: BLOCKS as usize,
                segments: 1,
                segment_stride: PAGE,
                segment_bytes: PAGE,
            };
            LayerBinding { name: "layer".into(), group: 0, pages }
        });
        let layout = EngineLayout::new(bindings.collect(), 1).unwrap();
        let slab = Slab::open(&SlabConfig::anonymous(layout.slot_bytes(), SLOTS)).unwrap();
        let inner = Arc::new(SlabSlots::new(slab, false));
        let memory = Arc::new(PinnedSlots::new(inner, Arc::clone(&copies)).unwrap());
        while memory.is_growing() {
            std::thread::sleep(Duration::from_micros(100));
        }
        assert_eq!(memory.usable_slots() as usize, SLOTS);
        let slot_addresses: Vec<usize> =
            (0..SLOTS as u32).map(|slot| memory.slot_address(SlotId(slot)).unwrap()).collect();
        if let Some(buggy) = buggy {
            let _ = buggy.slots.set(slot_addresses.clone());
        }
        let config = StoreConfig { layers_ahead: random.below(3), ..StoreConfig::default() };
        let store = Store::new(config, layout, memory, copies);
        if random.chance(30) {
            // Refused calls: another path takes over, or the batch fails before any of it is on its way.
            let call = [Call::CopyBatch, Call::Launch, Call::Copy, Call::WaitEvent][random.below(4)];
            fake.inject(call, When::Chance(0.1), Status::INVALID_VALUE);
        }
        let stream = fake.engine_stream();
        Self {
            random,
            store,
            stream,
            fake,
            layers,
            slots: vec![SlotState::Free; SLOTS],
            slot_addresses,
            free_blocks: (0..BLOCKS).collect(),
            used_before: BTreeSet::new(),
            loading: BTreeMap::new(),
            offloading: BTreeMap::new(),
            number: 0,
            wrong: Arc::default(),
            excused: BTreeSet::new(),
            outcome: Outcome::default(),
        }
    }

    fn take_block(&mut self) -> Option<u32> {
        let at = self.random.below(self.free_blocks.len().max(1));
        let block = self.free_blocks.iter().nth(at).copied()?;
        self.free_blocks.remove(&block);
        Some(block)
    }

    fn page(&self, layer: usize, block: u32) -> Range<usize> {
        let start = self.layers[layer].base() + block as usize * PAGE;
        start..start + PAGE
    }

    fn job(&mut self, kind: JobKind, moves: &[(usize, u8, u32)]) -> Job {
        self.number += 1;
        let transfers = moves.iter().map(|(slot, key, block)| Transfer {
            slot: SlotId(*slot as u32),
            fill: FillId(self.number),
            group: 0,
            key: BlockKey([*key; 16]),
            parent: BlockKey::default(),
            engine_hash: EngineHash::default(),
            blocks: vec![*block],
        });
        Job {
            id: JobId { epoch: 0, number: self.number },
            kind,
            request: format!("r{}", self.number),
            transfers: transfers.collect(),
            lost_blocks: Vec::new(),
        }
    }

    /// A job that loads some ready slots into free blocks.
    fn plan_load(&mut self, is_async: bool) -> Option<(Job, Vec<(u32, u8)>)> {
        let ready = |state: &SlotState| matches!(state, SlotState::Ready(_) | SlotState::Pinned(..));
        let candidates: Vec<usize> = (0..SLOTS).filter(|slot| ready(&self.slots[*slot])).collect();
        let mut moves = Vec::new();
        for slot in candidates {
            if !self.random.chance(40) {
                continue;
            }
            let Some(block) = self.take_block() else { break };
            let (key, pins) = match self.slots[slot] {
                SlotState::Ready(key) => (key, 0),
                SlotState::Pinned(key, pins) => (key, pins),
                _ => continue,
            };
            self.slots[slot] = SlotState::Pinned(key, pins + 1);
            self.outcome.reused += usize::from(self.used_before.contains(&block));
            moves.push((slot, key, block));
        }
        if moves.is_empty() {
            return None;
        }
        let kind = if is_async { JobKind::LoadAsync } else { JobKind::LoadLayerwise };
        let job = self.job(kind, &moves);
        let loading = Loading {
            slots: moves.iter().map(|(slot, ..)| *slot).collect(),
            blocks: moves.iter().map(|(.., block)| *block).collect(),
            request: job.request.clone(),
            is_async,
        };
        self.loading.insert(job.id.number, loading);
        self.outcome.loads += 1;
        Some((job, moves.into_iter().map(|(_, key, block)| (block, key)).collect()))
    }

    fn plan_offload(&mut self) -> Option<(Job, u32, u8)> {
        let can = |state: &SlotState| matches!(state, SlotState::Free | SlotState::Ready(_));
        let candidates: Vec<usize> = (0..SLOTS).filter(|slot| can(&self.slots[*slot])).collect();
        let slot = *candidates.get(self.random.below(candidates.len().max(1)))?;
        let block = self.take_block()?;
        let key = self.random.below(16) as u8;
        self.slots[slot] = SlotState::Filling;
        let job = self.job(JobKind::Offload, &[(slot, key, block)]);
        self.offloading.insert(job.id.number, Offloading { slot, block, key });
        self.outcome.offloads += 1;
        Some((job, block, key))
    }

    fn step(&mut self, step: usize) {
        let handle = Some(self.stream.0);
        self.outcome.behind += usize::from(self.fake.pending() > 0);
        let (mut jobs, mut reads, mut writes) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..self.random.below(3) {
            if let Some((job, blocks)) = self.plan_load(false) {
                jobs.push(job);
                reads.extend(blocks);
            }
        }
        if self.random.chance(30)
            && let Some((job, _)) = self.plan_load(true)
        {
            jobs.push(job);
        }
        for _ in 0..self.random.below(6) {
            if let Some((job, block, key)) = self.plan_offload() {
                jobs.push(job);
                writes.push((block, key));
            }
        }
        // Blocks that are computed and not kept: the next step may have them while this one is still computed.
        let scratch: Vec<u32> = (0..self.random.below(3)).filter_map(|_| self.take_block()).collect();
        writes.extend(scratch.iter().map(|block| (*block, 200)));

        let settled = self.number;
        self.store.begin_step(StepPlan { epoch: 1, settled, jobs, ..StepPlan::default() }, handle);
        self.store.start_loads();
        let is_graph = self.random.chance(30);
        self.outcome.graphs += usize::from(is_graph);
        let last = self.layers.len() - 1;
        if is_graph {
            self.store.wait_layer(last, handle);
        }
        for layer in 0..=last {
            if !is_graph {
                self.store.wait_layer(layer, handle);
            }
            self.compute(step, layer, &reads, &writes);
            if !is_graph && self.random.chance(90) {
                self.store.store_layer(layer, handle);
            }
        }
        self.store.end_step(handle);
        let ran = self.random.below(40);
        self.fake.advance(ran);

        for block in self.store.take_load_errors() {
            self.outcome.load_errors += 1;
            // Told a step later at most: nothing has been reported in between.
            self.excused.extend([(step, block), (step.saturating_sub(1), block)]);
        }
        // What a step has read is free when the CPU is done with it, whatever the stream is doing.
        self.used_before = reads.iter().map(|(block, _)| *block).chain(scratch).collect();
        self.free_blocks.extend(&self.used_before);
        for loading in self.loading.values_mut().filter(|loading| !loading.is_async) {
            loading.blocks.clear();
        }
        self.absorb();
    }

    /// One layer in the stream: reads what was loaded, writes what is computed.
    fn compute(&mut self, step: usize, layer: usize, reads: &[(u32, u8)], writes: &[(u32, u8)]) {
        let pages = |blocks: &[(u32, u8)]| -> Vec<Range<usize>> {
            blocks.iter().map(|(block, _)| self.page(layer, *block)).collect()
        };
        let (read, written) = (pages(reads), pages(writes));
        let checks: Vec<_> = read.iter().cloned().zip(reads.to_vec()).collect();
        let fills: Vec<_> = written.iter().cloned().zip(writes.to_vec()).collect();
        let wrong = Arc::clone(&self.wrong);
        self.fake.engine_work(self.stream, read, written, move || {
            for (page, (block, key)) in checks {
                let wanted = content(key, layer);
                // SAFETY: a page of the device's memory, which outlives the run; only the fake's operations touch it.
                let is_whole =
                    page.clone().all(|at| unsafe { std::ptr::read_volatile(at as *const u8) } == wanted);
                if !is_whole {
                    let what = format!("step {step}, layer {layer}, block {block}: not what key {key} is");
                    wrong.lock().unwrap().entry((step, block)).or_insert(what);
                }
            }
            for (page, (_, key)) in fills {
                for at in page {
                    // SAFETY: as above.
                    unsafe { std::ptr::write_volatile(at as *mut u8, content(key, layer)) };
                }
            }
        });
    }

    /// The scheduler side hears of ends.
    fn absorb(&mut self) {
        let (received, _) = self.store.take_received();
        for end in self.store.take_report().map(|report| report.ended).unwrap_or_default() {
            if let Some(loading) = self.loading.remove(&end.id.number) {
                for slot in loading.slots {
                    let SlotState::Pinned(key, pins) = self.slots[slot] else {
                        panic!("slot {slot} is not pinned")
                    };
                    self.slots[slot] =
                        if pins == 1 { SlotState::Ready(key) } else { SlotState::Pinned(key, pins - 1) };
                }
                assert_eq!(loading.is_async, received.contains(&loading.request));
                self.free_blocks.extend(loading.blocks);
            } else if let Some(offloading) = self.offloading.remove(&end.id.number) {
                self.slots[offloading.slot] =
                    if end.ok { SlotState::Ready(offloading.key) } else { SlotState::Free };
                self.free_blocks.insert(offloading.block);
            } else {
                panic!("job {:?} ends twice", end.id);
            }
        }
    }

    fn finish(mut self) -> Outcome {
        self.store.drain(Some(self.stream.0));
        for block in self.store.take_load_errors() {
            self.excused.extend((0..100).map(|step| (step, block)));
        }
        self.absorb();
        assert!(self.loading.is_empty() && self.offloading.is_empty(), "jobs never end");
        assert_eq!(self.store.stats().jobs_in_flight, 0);
        self.outcome.shared = self.store.stats().shared_batches;
        self.fake.clear_faults();
        self.outcome.violations = self.fake.settle();
        let wrong = std::mem::take(&mut *self.wrong.lock().unwrap());
        self.outcome.wrong = wrong
            .into_iter()
            .filter(|(place, _)| !self.excused.contains(place))
            .map(|(_, what)| what)
            .collect();
        for slot in 0..SLOTS {
            let SlotState::Ready(key) = self.slots[slot] else { continue };
            let start = self.slot_addresses[slot];
            self.fake.host_reads(start..start + self.layers.len() * PAGE);
            for layer in 0..self.layers.len() {
                let page = start + layer * PAGE..start + (layer + 1) * PAGE;
                // SAFETY: a slot of the slab, which the store keeps; nothing is in flight.
                let is_whole = page
                    .into_iter()
                    .all(|at| unsafe { std::ptr::read_volatile(at as *const u8) } == content(key, layer));
                if !is_whole {
                    self.outcome.wrong.push(format!("slot {slot}, layer {layer}: not what key {key} is"));
                }
            }
        }
        let World { store, fake, outcome, layers, .. } = self;
        drop(store);
        let violations = fake.settle();
        drop(layers);
        Outcome { violations, ..outcome }
    }
}
