//! Jobs that reach the same moment share batches, where the copy engine is better off with large ones.

use super::*;

const STREAM: Option<u64> = Some(7);

fn device(batch_bytes: usize) -> Rank {
    let rank = rank();
    rank.copies.behave(|behaviour| {
        (behaviour.streams, behaviour.lazy_streams, behaviour.batch_bytes) = (true, true, batch_bytes);
    });
    rank
}

impl Rank {
    fn step(&mut self, jobs: Vec<Job>) {
        self.store.begin_step(StepPlan { epoch: 1, jobs, ..StepPlan::default() }, STREAM);
        self.store.start_loads();
    }

    /// One job for each of `slots`, from the block of the same number, or into the block eight further.
    fn jobs(&mut self, kind: JobKind, slots: std::ops::Range<u32>) -> Vec<Job> {
        let block = |slot| if kind == JobKind::Offload { slot } else { slot + 8 };
        slots.map(|slot| self.job(kind, &[(slot, block(slot))])).collect()
    }

    fn set_all(&self, slots: std::ops::Range<u32>) {
        slots.for_each(|slot| self.set(slot, 100 * u64::from(slot)));
    }

    /// Offloads what `set_all` has set.
    fn fill_all(&mut self, slots: std::ops::Range<u32>) {
        self.set_all(slots.clone());
        let jobs = self.jobs(JobKind::Offload, slots);
        self.step(jobs);
        self.store.end_step(STREAM);
        self.finish();
        assert!(self.ended().iter().all(|end| end.ok));
        self.copies.batches();
    }

    /// Bytes of each batch since the last call, in pages.
    fn pages(&self) -> Vec<usize> {
        self.copies.batches().iter().map(|batch| batch.bytes() / PAGE).collect()
    }

    /// How the jobs that ended since the last call did, in the order of their ids.
    fn outcomes(&mut self) -> Vec<bool> {
        let mut ended = self.ended();
        ended.sort_by_key(|end| end.id);
        ended.iter().map(|end| end.ok).collect()
    }

    fn is_stored(&self, slot: u32) -> bool {
        self.slab.record(SlotId(slot)).is_some_and(|record| record.ready)
    }
}

#[test]
fn offloads_that_become_ready_together_go_in_one_batch() {
    for (batch_bytes, each_layer, in_the_end) in [
        (5 * PAGE, vec![5], vec![5]),
        // The bound: a batch that is large enough takes no more.
        (3 * PAGE, vec![3, 2], vec![3, 2]),
        // Too small for a batch of its own until the last layer.
        (1 << 20, vec![], vec![5 * LAYERS]),
        // Calls are free: each job and layer for itself.
        (0, vec![1; 5], vec![1; 5]),
    ] {
        let mut rank = device(batch_bytes);
        rank.set_all(0..5);
        let jobs = rank.jobs(JobKind::Offload, 0..5);
        rank.step(jobs);
        for layer in 0..LAYERS - 1 {
            rank.store.store_layer(layer, STREAM);
            assert_eq!(rank.pages(), each_layer, "{batch_bytes} bytes, layer {layer}");
        }
        rank.store.end_step(STREAM);
        assert_eq!(rank.pages(), in_the_end, "{batch_bytes} bytes");
        assert!(rank.ended().is_empty());
        rank.finish();
        assert_eq!(rank.outcomes(), [true; 5]);
        let stats = rank.store.stats();
        assert_eq!(stats.batches, rank.copies.counts().submitted);
        assert_eq!(stats.shared_batches > 0, batch_bytes > 0);
        assert_eq!(stats.offloaded_bytes, (5 * LAYERS * PAGE) as u64, "each job's bytes count once");
        // What is loaded again is what each job has stored.
        let loads = rank.jobs(JobKind::LoadAsync, 0..5);
        rank.step(loads);
        rank.store.end_step(STREAM);
        rank.finish();
        assert!((0..5).all(|slot| (0..LAYERS).all(|l| rank.holds(l, slot + 8, 100 * u64::from(slot)))));
    }
}

#[test]
fn a_batch_that_fails_fails_each_of_its_jobs_and_no_other() {
    let mut rank = device(3 * PAGE);
    let jobs = rank.jobs(JobKind::Offload, 0..5);
    rank.step(jobs);
    rank.copies.behave(|behaviour| behaviour.fail = 1000);
    // The first batch has jobs 0 to 2, the second the rest: it is submitted when copies do not fail any more.
    rank.copies.behave(|behaviour| behaviour.batches_max = 1);
    rank.store.store_layer(0, STREAM);
    assert_eq!(rank.pages(), [3]);
    rank.copies.behave(|behaviour| (behaviour.fail, behaviour.batches_max) = (0, 64));
    rank.store.end_step(STREAM);
    rank.finish();
    assert_eq!(rank.outcomes(), [false, false, false, true, true]);
    assert_eq!(rank.store.failures(), ["copy failed: planted"]);
    assert_eq!(
        (0..5).map(|slot| rank.is_stored(slot)).collect::<Vec<_>>(),
        [false, false, false, true, true]
    );
    rank.fill_all(0..3);
    assert!((0..5).all(|slot| rank.is_stored(slot)), "later ones work");
}

/// A slot that is not pinned, say: the jobs beside it are stored.
#[test]
fn what_the_copy_engine_does_not_take_fails_alone() {
    let mut rank = device(1 << 20);
    let address = |rank: &Rank, slot| rank.memory.slot_address(SlotId(slot)).unwrap();
    let bytes = rank.store.layout().slot_bytes();
    for slot in [0, 1, 3] {
        // SAFETY: slots of a slab that outlives the test.
        unsafe { rank.copies.register(address(&rank, slot), bytes) }.unwrap();
    }
    rank.copies.behave(|behaviour| behaviour.pinned_offloads = true);
    let jobs = rank.jobs(JobKind::Offload, 0..4);
    rank.step(jobs);
    rank.store.end_step(STREAM);
    assert_eq!(rank.pages(), [LAYERS; 3]);
    rank.finish();
    assert_eq!(rank.outcomes(), [true, true, false, true]);
    assert_eq!(rank.store.failures(), ["copy failed: offloads go to pinned memory only"]);
}

#[test]
fn a_job_with_an_impossible_block_takes_nothing_of_the_others_with_it() {
    let mut rank = device(1 << 20);
    rank.set_all(0..3);
    let good = rank.jobs(JobKind::Offload, 0..1);
    let bad = rank.job(JobKind::Offload, &[(1, 1), (5, 999)]);
    let jobs = good.into_iter().chain([bad]).chain(rank.jobs(JobKind::Offload, 2..3)).collect();
    rank.step(jobs);
    rank.store.end_step(STREAM);
    assert_eq!(rank.pages(), [2 * LAYERS]);
    rank.finish();
    assert_eq!(rank.outcomes(), [true, false, true]);
    assert_eq!(rank.store.stats().offloaded_bytes, (2 * LAYERS * PAGE) as u64);
}

/// Blocks and slots that are neighbours become one piece, whatever jobs they belong to.
#[test]
fn a_piece_that_a_bad_job_has_continued_ends_where_it_did() {
    let (base, slots) = (0x1000, 0x9000);
    let pages = PageLayout {
        base,
        block_stride: PAGE,
        block_count: 4,
        segments: 1,
        segment_stride: PAGE,
        segment_bytes: PAGE,
    };
    let binding = LayerBinding { name: "layer".into(), group: 0, pages };
    let layout = EngineLayout::new(vec![binding], 1).unwrap();
    let mut rank = rank();
    let mut running = |moves: &[(u32, u32)]| {
        let addresses = moves.iter().map(|(slot, _)| slots + *slot as usize * PAGE).collect();
        Running::new(rank.job(JobKind::Offload, moves), addresses)
    };
    let (first, bad, next) =
        (running(&[(0, 0)]), running(&[(1, 1), (2, 2), (3, 9)]), running(&[(1, 1), (3, 3)]));
    let mut pieces = Vec::new();
    assert_eq!(bad.add_pieces(0..1, &layout, &mut pieces), None);
    assert_eq!(pieces, []);
    assert_eq!(first.add_pieces(0..1, &layout, &mut pieces), Some(PAGE as u64));
    let alone = pieces.clone();
    assert_eq!(bad.add_pieces(0..1, &layout, &mut pieces), None);
    assert_eq!(pieces, alone);
    assert_eq!(next.add_pieces(0..1, &layout, &mut pieces), Some(2 * PAGE as u64));
    assert_eq!(pieces.iter().map(|piece| piece.bytes).collect::<Vec<_>>(), [2 * PAGE, PAGE]);
}

/// What the copy engine had no room for is submitted later, behind its own step's fence and no other.
#[test]
fn jobs_of_different_moments_share_nothing() {
    let mut rank = device(1 << 20);
    rank.copies.behave(|behaviour| behaviour.refuse = 1000);
    for slots in [0..2, 2..4] {
        let jobs = rank.jobs(JobKind::Offload, slots);
        rank.step(jobs);
        rank.store.end_step(STREAM);
    }
    rank.copies.behave(|behaviour| behaviour.refuse = 0);
    rank.store.collect();
    let batches = rank.copies.batches();
    let fences: Vec<_> = batches.iter().map(|b| LazyCopies::fenced_by(b).unwrap()).collect();
    assert_eq!(fences, [(7, 0), (7, 1)]);
    assert!(batches.iter().all(|batch| batch.bytes() == 2 * LAYERS * PAGE));
    rank.finish();
    assert_eq!(rank.outcomes(), [true; 4]);
}

#[test]
fn loads_of_a_step_share_batches_layer_by_layer_and_the_stream_waits_once() {
    let mut rank = device(4 * PAGE);
    rank.fill_all(0..4);
    let jobs = rank.jobs(JobKind::LoadLayerwise, 0..4);
    rank.step(jobs);
    assert_eq!(rank.pages(), [4, 4], "all jobs' first layer comes before any job's second");
    for layer in 0..LAYERS {
        rank.store.wait_layer(layer, STREAM);
        assert_eq!(rank.copies.ordered().len(), 1, "layer {layer}");
    }
    rank.store.end_step(STREAM);
    assert!(rank.ended().is_empty());
    rank.finish();
    assert_eq!(rank.outcomes(), [true; 4]);
    assert!((0..4).all(|slot| (0..LAYERS).all(|l| rank.holds(l, slot + 8, 100 * u64::from(slot)))));
}

#[test]
fn loads_that_share_a_failed_batch_are_errors_all() {
    for kind in [JobKind::LoadLayerwise, JobKind::LoadAsync] {
        let mut rank = device(1 << 20);
        rank.fill_all(0..3);
        rank.copies.behave(|behaviour| behaviour.fail = 1000);
        let jobs = rank.jobs(kind, 0..3);
        rank.step(jobs);
        assert_eq!(rank.pages(), [3 * LAYERS]);
        rank.copies.behave(|behaviour| behaviour.fail = 0);
        rank.store.wait_layer(LAYERS - 1, STREAM);
        rank.store.end_step(STREAM);
        rank.finish();
        assert_eq!(rank.store.take_load_errors(), [8, 9, 10]);
        assert_eq!(rank.outcomes(), [false; 3]);
        assert_eq!(rank.store.failures(), ["copy failed: planted"]);
    }
}

/// The end of a shared batch is told once by the copy engine, whoever asks for it: here a wait.
#[test]
fn finishing_and_draining_end_every_job_of_a_batch() {
    let mut rank = device(1 << 20);
    let jobs = rank.jobs(JobKind::Offload, 0..3);
    rank.step(jobs);
    rank.store.finish_copies(STREAM);
    assert_eq!((rank.outcomes(), rank.copies.in_flight().batches), (vec![true; 3], 0));
    let jobs = rank.jobs(JobKind::LoadAsync, 0..3).into_iter().chain(rank.jobs(JobKind::Offload, 4..7));
    let jobs = jobs.collect();
    rank.step(jobs);
    rank.store.drain(STREAM);
    assert_eq!((rank.outcomes(), rank.copies.in_flight().batches), (vec![true; 6], 0));
    assert!(!rank.store.is_busy());
}
