mod load_time;
mod moments;
mod probe;
mod remote;
mod streams;

use super::*;
use crate::BlockKey;
use crate::copy_engine::{CopyBatch, Direction};
use crate::directory::FillId;
use crate::eviction::SlotId;
use crate::fakes::fake_copies::LazyCopies;
use crate::fakes::fake_memory::{Bytes, FakeMemory, MemoryBugs, Slab};
use crate::plan::{EngineHash, Job, JobId, JobKind, StepPlan, Transfer};

const LAYERS: usize = 6;
const BLOCKS: usize = 16;
const PAGE: usize = 16;

/// A rank with six layers, eight slots and copies that happen when the test says so.
struct Rank {
    store: Store,
    copies: Arc<LazyCopies>,
    memory: Arc<FakeMemory>,
    slab: Arc<Slab>,
    layers: Vec<Bytes>,
    jobs: u64,
}

fn rank() -> Rank {
    rank_with(StoreConfig {
        layers_ahead: 1,
        help_share: 0.0,
        help_least: Duration::ZERO,
        ..StoreConfig::default()
    })
}

fn rank_with(config: StoreConfig) -> Rank {
    let layers: Vec<Bytes> = (0..LAYERS).map(|_| Bytes::new(BLOCKS * PAGE)).collect();
    let bindings = layers.iter().map(|bytes| LayerBinding {
        name: "layer".into(),
        group: 0,
        pages: PageLayout {
            base: bytes.address(),
            block_stride: PAGE,
            block_count: BLOCKS,
            segments: 1,
            segment_stride: PAGE,
            segment_bytes: PAGE,
        },
    });
    let layout = EngineLayout::new(bindings.collect(), 1).unwrap();
    let slab = Slab::new(8, layout.slot_bytes());
    let memory = FakeMemory::new(&slab, 8, MemoryBugs::default());
    let copies = Arc::new(LazyCopies::new(1, crate::fakes::fake_copies::CopyBehaviour::default()));
    copies.behave(|behaviour| behaviour.lazy = 1000);
    copies.keep_batches();
    let store = Store::new(config, layout, Arc::clone(&memory) as _, Arc::clone(&copies) as _);
    Rank { store, copies, memory, slab, layers, jobs: 0 }
}

fn key(slot: u32) -> BlockKey {
    BlockKey([slot as u8 + 1; 16])
}

impl Rank {
    fn job(&mut self, kind: JobKind, moves: &[(u32, u32)]) -> Job {
        self.jobs += 1;
        let transfers = moves.iter().map(|(slot, block)| Transfer {
            slot: SlotId(*slot),
            fill: FillId(self.jobs),
            group: 0,
            key: key(*slot),
            parent: BlockKey::default(),
            engine_hash: EngineHash::default(),
            blocks: vec![*block],
        });
        Job {
            id: JobId { epoch: 0, number: self.jobs },
            kind,
            request: format!("r{}", self.jobs),
            transfers: transfers.collect(),
            lost_blocks: Vec::new(),
        }
    }

    fn begin(&mut self, jobs: Vec<Job>) {
        self.begin_settled(jobs, 0);
    }

    fn begin_settled(&mut self, jobs: Vec<Job>, settled: u64) {
        self.store.begin_step(StepPlan { epoch: 1, settled, jobs, ..StepPlan::default() }, None);
    }

    fn set(&self, block: u32, value: u64) {
        for (layer, bytes) in self.layers.iter().enumerate() {
            bytes.set_word(block as usize * PAGE / 8, value + layer as u64);
        }
    }

    fn holds(&self, layer: usize, block: u32, value: u64) -> bool {
        self.layers[layer].word(block as usize * PAGE / 8) == value + layer as u64
    }

    /// Puts a value into a slot, through a step of its own.
    fn fill(&mut self, slot: u32, value: u64) {
        self.set(15, value);
        let job = self.job(JobKind::Offload, &[(slot, 15)]);
        self.begin(vec![job]);
        self.store.end_step(None);
        self.finish();
        assert!(self.ended().iter().all(|end| end.ok));
        self.copies.batches();
    }

    fn finish(&mut self) {
        while self.store.stats().jobs_in_flight > 0 {
            self.copies.work(100);
            self.store.collect();
        }
    }

    fn ended(&mut self) -> Vec<JobEnd> {
        self.store.take_report().map(|report| report.ended).unwrap_or_default()
    }

    fn layer_of(&self, address: usize) -> usize {
        self.layers
            .iter()
            .position(|b| (b.address()..b.address() + BLOCKS * PAGE).contains(&address))
            .unwrap()
    }

    /// Layers of the batches accepted since the last call, by direction.
    fn submitted(&self) -> Vec<(Direction, usize)> {
        let batches = self.copies.batches();
        batches
            .iter()
            .map(|batch| {
                let piece = batch.pieces[0];
                let address = if batch.direction == Direction::Load { piece.dst } else { piece.src };
                (batch.direction, self.layer_of(address))
            })
            .collect()
    }
}

#[test]
fn a_layer_is_there_when_its_wait_returns_and_later_ones_run_ahead_within_the_bound() {
    let mut rank = rank();
    rank.fill(0, 100);
    let job = rank.job(JobKind::LoadLayerwise, &[(0, 3)]);
    rank.begin(vec![job]);
    assert!(rank.store.has_layerwise_loads());
    rank.store.start_loads();
    assert_eq!(rank.submitted(), [(Direction::Load, 0), (Direction::Load, 1)]);
    for layer in 0..LAYERS {
        rank.store.wait_layer(layer, None);
        assert!(rank.holds(layer, 3, 100));
        let next = (layer + 2 <= LAYERS).then_some(()).filter(|()| layer > 0 && layer + 1 < LAYERS);
        assert_eq!(
            rank.submitted(),
            next.map(|()| (Direction::Load, layer + 1)).into_iter().collect::<Vec<_>>()
        );
        if layer + 1 < LAYERS {
            assert!(!rank.holds(layer + 1, 3, 100), "nothing copies the next layer but its own wait");
        }
    }
    rank.store.end_step(None);
    assert_eq!(rank.ended(), [JobEnd::whole(JobId { epoch: 0, number: 2 }, true)]);
    assert!(rank.store.take_load_errors().is_empty());
    assert_eq!(rank.store.stats().loaded_bytes, (LAYERS * PAGE) as u64);
}

#[test]
fn a_layer_is_offloaded_when_it_is_computed_and_lost_hooks_are_caught_up() {
    let mut rank = rank();
    rank.set(4, 500);
    let job = rank.job(JobKind::Offload, &[(2, 4)]);
    rank.begin(vec![job]);
    assert!(rank.store.has_fresh_offloads());
    rank.store.store_layer(0, None);
    assert_eq!(rank.submitted(), [(Direction::Offload, 0)]);
    rank.store.store_layer(2, None);
    assert_eq!(rank.submitted(), [(Direction::Offload, 1), (Direction::Offload, 2)], "layer 1 is caught up");
    assert!(!rank.slab.record(SlotId(2)).unwrap().ready, "filling is written before the first byte");
    rank.store.end_step(None);
    assert_eq!(rank.submitted().len(), 3);
    rank.copies.work(3);
    rank.store.collect();
    assert_eq!(rank.ended(), [], "it is reported when the last byte has arrived");
    assert!(!rank.slab.record(SlotId(2)).unwrap().ready);
    rank.finish();
    assert!(rank.slab.record(SlotId(2)).unwrap().ready);
    assert!(rank.ended()[0].ok);
}

#[test]
fn a_load_that_nobody_waited_for_is_an_error() {
    for waited in [None, Some(LAYERS - 2)] {
        let mut rank = rank();
        rank.fill(0, 100);
        let load = rank.job(JobKind::LoadLayerwise, &[(0, 3)]);
        let offload = rank.job(JobKind::Offload, &[(1, 3)]);
        rank.begin(vec![load, offload]);
        rank.store.start_loads();
        if let Some(layer) = waited {
            rank.store.wait_layer(layer, None);
        } else {
            rank.store.store_layer(0, None);
            assert!(rank.submitted().iter().all(|(direction, _)| *direction == Direction::Load));
        }
        rank.store.end_step(None);
        rank.finish();
        assert_eq!(rank.store.take_load_errors(), [3]);
        assert!(rank.ended().iter().all(|end| !end.ok));
        assert_eq!(rank.copies.conflict(), None);
    }
}

#[test]
fn one_wait_for_the_last_layer_is_enough_for_a_forward_without_hooks() {
    let mut rank = rank();
    rank.fill(0, 100);
    let job = rank.job(JobKind::LoadLayerwise, &[(0, 3)]);
    rank.begin(vec![job]);
    rank.store.start_loads();
    rank.store.wait_layer(LAYERS - 1, None);
    assert!((0..LAYERS).all(|layer| rank.holds(layer, 3, 100)));
    rank.store.end_step(None);
    assert!(rank.ended()[0].ok);
}

/// The copy engine holds the ended batches of other jobs until they are polled: they must not block a layer for ever.
#[test]
fn a_full_copy_engine_delays_a_layer_and_never_stalls_it() {
    let mut rank = rank();
    for slot in 0..3 {
        rank.fill(slot, 100 * u64::from(slot));
    }
    rank.copies.behave(|behaviour| behaviour.batches_max = 2);
    let offload = rank.job(JobKind::Offload, &[(5, 9)]);
    rank.begin(vec![offload]);
    rank.store.end_step(None);
    rank.copies.work(100);
    let loads = (0..3).map(|slot| rank.job(JobKind::LoadLayerwise, &[(slot, slot)])).collect();
    rank.begin(loads);
    rank.store.start_loads();
    for layer in 0..LAYERS {
        rank.store.wait_layer(layer, None);
        assert!((0..3).all(|slot| rank.holds(layer, slot, 100 * u64::from(slot))));
    }
    rank.store.end_step(None);
    assert!(rank.store.take_load_errors().is_empty() && rank.copies.counts().full > 0);
    rank.finish();
    assert!(rank.ended().iter().all(|end| end.ok));
}

/// What is computed after a failed load may stand on it, also in steps that were planned before anybody knew.
#[test]
fn a_failed_load_fails_offloads_until_it_is_settled() {
    let mut rank = rank();
    rank.fill(0, 100);
    rank.copies.behave(|behaviour| behaviour.fail = 1000);
    let load = rank.job(JobKind::LoadLayerwise, &[(0, 3)]);
    let (failed, other) = (load.id.number, rank.job(JobKind::Offload, &[(1, 4)]));
    rank.begin(vec![load, other]);
    rank.store.start_loads();
    rank.store.wait_layer(LAYERS - 1, None);
    rank.copies.behave(|behaviour| behaviour.fail = 0);
    rank.store.end_step(None);
    assert_eq!(rank.store.take_load_errors(), [3]);
    let ahead = rank.job(JobKind::Offload, &[(2, 4)]);
    rank.begin_settled(vec![ahead], failed);
    rank.store.end_step(None);
    let after = rank.job(JobKind::Offload, &[(3, 4)]);
    rank.begin_settled(vec![after], failed + 1);
    rank.store.end_step(None);
    rank.finish();
    let ok: Vec<bool> = rank.ended().iter().map(|end| end.ok).collect();
    assert_eq!(ok, [false, false, false, true]);
    assert!(rank.slab.record(SlotId(1)).is_none() && rank.slab.record(SlotId(2)).is_none());
}

#[test]
fn an_asynchronous_load_is_received_when_it_has_ended_well_or_not() {
    for fail in [0, 1000] {
        let mut rank = rank();
        rank.fill(0, 100);
        rank.copies.behave(|behaviour| behaviour.fail = fail);
        let job = rank.job(JobKind::LoadAsync, &[(0, 3)]);
        let request = job.request.clone();
        rank.begin(vec![job]);
        rank.store.start_loads();
        rank.store.end_step(None);
        assert_eq!(rank.store.take_received().0, Vec::<String>::new());
        rank.finish();
        let (received, failed) = rank.store.take_received();
        assert_eq!(received, std::slice::from_ref(&request));
        assert_eq!(failed, if fail > 0 { vec![request] } else { vec![] });
        assert_eq!(rank.store.take_load_errors(), if fail > 0 { vec![3] } else { vec![] });
        assert_eq!(rank.ended()[0].ok, fail == 0);
    }
}

#[test]
fn a_slot_with_another_key_is_never_copied() {
    let mut rank = rank();
    rank.fill(0, 100);
    rank.fill(1, 200);
    rank.slab.damage(SlotId(1));
    for (slot, block) in [(1, 4), (2, 5), (7, 6)] {
        for kind in [JobKind::LoadLayerwise, JobKind::LoadAsync] {
            let job = rank.job(kind, &[(0, 3), (slot, block)]);
            rank.begin(vec![job]);
            rank.store.start_loads();
            rank.store.wait_layer(LAYERS - 1, None);
            rank.store.end_step(None);
            assert_eq!(rank.store.take_load_errors(), [3, block], "all of the job is an error");
            assert!(!rank.ended()[0].ok);
        }
    }
    assert_eq!(rank.submitted(), [], "nothing was copied");
}

#[test]
fn lost_and_impossible_blocks_are_errors() {
    let mut rank = rank();
    rank.fill(0, 100);
    let mut job = rank.job(JobKind::LoadLayerwise, &[(0, 3)]);
    job.lost_blocks = vec![8];
    rank.begin(vec![job]);
    rank.store.wait_layer(LAYERS - 1, None);
    rank.store.end_step(None);
    assert_eq!(rank.store.take_load_errors(), [3, 8]);
    let bad = rank.job(JobKind::Offload, &[(1, 3), (2, 999)]);
    let unusable = rank.job(JobKind::Offload, &[(3, 3), (99, 4)]);
    let settled = rank.jobs + 1;
    rank.begin_settled(vec![bad, unusable], settled);
    rank.store.end_step(None);
    rank.finish();
    assert!(rank.ended().iter().all(|end| !end.ok));
    assert!((1..4).all(|slot| rank.slab.record(SlotId(slot)).is_none()));
}

#[test]
fn forgotten_slots_and_older_epochs_are_not_warm() {
    let mut rank = rank();
    rank.fill(0, 1);
    rank.fill(1, 2);
    rank.store.begin_step(StepPlan { epoch: 1, forgotten: vec![SlotId(0)], ..StepPlan::default() }, None);
    assert_eq!(rank.memory.warm_slots().len(), 1);
    rank.store.begin_step(StepPlan { epoch: 2, ..StepPlan::default() }, None);
    assert_eq!((rank.memory.warm_slots().len(), rank.memory.epoch()), (0, 2));
}

#[test]
fn help_is_bounded_by_its_budget() {
    let config = StoreConfig { help_share: 0.0, help_least: Duration::ZERO, ..StoreConfig::default() };
    let mut idle = rank_with(config);
    let job = idle.job(JobKind::Offload, &[(0, 1)]);
    idle.begin(vec![job]);
    idle.store.end_step(None);
    assert_eq!(idle.copies.in_flight().batches, LAYERS, "no budget, no help");
    let mut busy = rank_with(StoreConfig { help_least: Duration::from_secs(3600), ..config });
    let job = busy.job(JobKind::Offload, &[(0, 1)]);
    busy.begin(vec![job]);
    busy.store.end_step(None);
    assert_eq!(busy.copies.in_flight().batches, 0, "a step's offloads end with it");
}

#[test]
fn a_drain_leaves_no_copy_behind() {
    let mut rank = rank();
    rank.fill(0, 100);
    rank.copies.behave(|behaviour| behaviour.batches_max = 2);
    let jobs = vec![
        rank.job(JobKind::LoadAsync, &[(0, 1)]),
        rank.job(JobKind::Offload, &[(1, 2)]),
        rank.job(JobKind::Offload, &[(2, 4)]),
    ];
    rank.begin(jobs);
    rank.store.drain(None);
    assert_eq!((rank.store.stats().jobs_in_flight, rank.copies.in_flight().batches), (0, 0));
    assert!(rank.ended().iter().all(|end| end.ok));
}

/// The negative control of end-to-end tests: success is claimed and nothing is loaded.
#[test]
fn the_drill_reports_loads_and_copies_nothing() {
    let config = StoreConfig {
        skip_copies: true,
        help_share: 0.0,
        help_least: Duration::ZERO,
        ..StoreConfig::default()
    };
    let mut rank = rank_with(config);
    rank.fill(0, 100);
    let jobs = vec![rank.job(JobKind::LoadLayerwise, &[(0, 3)]), rank.job(JobKind::LoadAsync, &[(0, 4)])];
    rank.begin(jobs);
    rank.store.start_loads();
    rank.store.wait_layer(LAYERS - 1, None);
    rank.store.end_step(None);
    assert!(rank.ended().iter().all(|end| end.ok) && rank.submitted().is_empty());
    assert_eq!(rank.store.take_received().0.len(), 1);
}

#[test]
fn a_report_says_hello_once_and_nothing_when_there_is_nothing_to_say() {
    let mut rank = rank();
    let hello = rank.store.take_report().unwrap().hello.unwrap();
    assert_eq!((hello.slot_count, hello.slot_bytes), (8, (LAYERS * PAGE) as u64));
    assert_eq!(rank.store.take_report(), None);
    rank.fill(0, 1);
    assert_eq!(rank.store.take_report(), None);
}

/// What is submitted after the hooks, since the copy engine was full, still waits for the engine's stream.
#[test]
fn late_submissions_are_ordered_after_the_step_s_stream() {
    let mut rank = rank();
    rank.copies.behave(|behaviour| (behaviour.batches_max, behaviour.streams) = (1, true));
    let job = rank.job(JobKind::Offload, &[(0, 1)]);
    rank.begin(vec![job]);
    rank.store.store_layer(0, Some(77));
    rank.store.end_step(Some(77));
    rank.finish();
    let batches = rank.copies.batches();
    assert_eq!(batches.len(), LAYERS);
    let fenced = |batch: &CopyBatch| LazyCopies::fenced_by(batch).is_some_and(|(stream, _)| stream == 77);
    assert!(batches.iter().all(|batch| fenced(batch) && batch.streaming));
}
