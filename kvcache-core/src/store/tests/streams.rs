//! A store whose engine computes on a device: streams wait, the calling thread does not.

use super::*;

const STREAM: Option<u64> = Some(7);

fn device() -> Rank {
    let rank = rank();
    rank.copies.behave(|behaviour| (behaviour.streams, behaviour.lazy_streams) = (true, true));
    rank
}

/// Puts a value into a slot.
fn fill(rank: &mut Rank, slot: u32, value: u64) {
    rank.set(15, value);
    let job = rank.job(JobKind::Offload, &[(slot, 15)]);
    rank.store.begin_step(StepPlan { epoch: 1, jobs: vec![job], ..StepPlan::default() }, STREAM);
    rank.store.end_step(STREAM);
    rank.finish();
    assert!(rank.ended().iter().all(|end| end.ok));
    rank.copies.batches();
}

fn begin(rank: &mut Rank, jobs: Vec<Job>) {
    rank.store.begin_step(StepPlan { epoch: 1, jobs, ..StepPlan::default() }, STREAM);
}

#[test]
fn a_stream_waits_for_each_layer_once_and_the_load_ends_after_the_step() {
    let mut rank = device();
    fill(&mut rank, 0, 100);
    let job = rank.job(JobKind::LoadLayerwise, &[(0, 3)]);
    begin(&mut rank, vec![job]);
    rank.store.start_loads();
    for layer in 0..LAYERS {
        rank.store.wait_layer(layer, STREAM);
        let ordered = rank.copies.ordered();
        assert_eq!(ordered.len(), 1, "layer {layer}");
        assert_eq!(ordered[0].1, 7);
        assert!(!rank.holds(layer, 3, 100), "nobody has waited for the copy itself");
    }
    let batches = rank.copies.batches();
    assert!(batches.iter().all(|batch| batch.urgent && LazyCopies::fenced_by(batch) == Some((7, 1))));
    rank.store.end_step(STREAM);
    assert!(rank.ended().is_empty() && rank.store.is_busy() && rank.store.stats().jobs_in_flight == 1);
    assert!(rank.store.take_load_errors().is_empty());
    rank.finish();
    assert!((0..LAYERS).all(|layer| rank.holds(layer, 3, 100)));
    assert!(rank.ended()[0].ok && !rank.store.is_busy());
}

/// Between the plan of a load and the step that sees its end lie whole steps: a clock that runs meanwhile would make a short load as
/// slow as a step, and the planner give up loading.
#[test]
fn the_time_of_a_load_is_what_the_device_takes_for_it() {
    for (byte_ns, known) in [(Some(3), true), (None, false)] {
        let mut rank = device();
        rank.copies.behave(|behaviour| behaviour.expected_byte_ns = byte_ns);
        fill(&mut rank, 0, 100);
        for kind in [JobKind::LoadLayerwise, JobKind::LoadAsync] {
            let job = rank.job(kind, &[(0, 3)]);
            begin(&mut rank, vec![job]);
            rank.store.start_loads();
            rank.store.wait_layer(LAYERS - 1, STREAM);
            rank.store.end_step(STREAM);
            std::thread::sleep(Duration::from_millis(2));
            rank.finish();
            let report = rank.store.take_report().unwrap();
            assert!(report.ended[0].ok);
            let bytes = if known { (LAYERS * PAGE) as u64 } else { 0 };
            assert_eq!((report.loaded_bytes, report.load_ns), (bytes, 3 * bytes), "{kind:?}");
        }
    }
}

#[test]
fn a_device_copies_without_threads_of_ours() {
    assert_eq!(rank().store.take_report().unwrap().hello.unwrap().copy_threads, 0);
    assert_eq!(device().store.take_report().unwrap().hello.unwrap().copy_threads, 1);
}

/// Hooks may be called from two streams; what waits for a batch is a stream, not the engine.
#[test]
fn each_stream_that_asks_for_a_layer_waits_for_it() {
    let mut rank = device();
    rank.copies.behave(|behaviour| behaviour.batch_bytes = LAYERS * PAGE);
    fill(&mut rank, 0, 100);
    let job = rank.job(JobKind::LoadLayerwise, &[(0, 3)]);
    begin(&mut rank, vec![job]);
    rank.store.start_loads();
    for (layer, stream) in [(0, 7), (1, 7), (1, 8), (2, 8)] {
        rank.store.wait_layer(layer, Some(stream));
    }
    let streams: Vec<u64> = rank.copies.ordered().iter().map(|(_, stream)| *stream).collect();
    assert_eq!(streams, [7, 8]);
    rank.store.wait_layer(LAYERS - 1, STREAM);
    rank.store.end_step(STREAM);
    rank.finish();
}

/// Blocks that a load overwrites may still be read by the step before: loads come after it, not after their own step.
#[test]
fn loads_come_after_what_the_stream_held_when_the_step_began() {
    let mut rank = device();
    fill(&mut rank, 0, 100);
    let loads = vec![rank.job(JobKind::LoadLayerwise, &[(0, 3)]), rank.job(JobKind::LoadAsync, &[(0, 4)])];
    let offload = rank.job(JobKind::Offload, &[(1, 5)]);
    begin(&mut rank, loads.into_iter().chain([offload]).collect());
    rank.store.start_loads();
    rank.store.wait_layer(LAYERS - 1, STREAM);
    rank.store.end_step(STREAM);
    let mut fences: Vec<_> = rank
        .copies
        .batches()
        .iter()
        .map(|batch| (batch.direction == Direction::Offload, batch.urgent, LazyCopies::fenced_by(batch)))
        .collect();
    fences.dedup();
    // The first fence was made for `fill`.
    assert_eq!(
        fences,
        [
            (false, true, Some((7, 1))),
            (false, false, Some((7, 1))),
            (false, true, Some((7, 1))),
            (true, false, Some((7, 2)))
        ]
    );
    rank.finish();
    assert!(rank.ended().iter().all(|end| end.ok));
}

#[test]
fn one_fence_serves_all_offloads_of_a_layer() {
    let mut rank = device();
    let jobs = (0..3).map(|slot| rank.job(JobKind::Offload, &[(slot, slot)])).collect();
    begin(&mut rank, jobs);
    rank.store.store_layer(0, STREAM);
    rank.store.store_layer(1, STREAM);
    let fences: Vec<_> = rank.copies.batches().iter().map(|b| LazyCopies::fenced_by(b).unwrap().1).collect();
    assert_eq!(fences, [0, 0, 0, 1, 1, 1]);
    rank.store.end_step(STREAM);
    rank.finish();
}

/// A call costs a device more than a few bytes do.
#[test]
fn layers_are_joined_until_a_batch_is_large_enough() {
    let mut rank = device();
    rank.copies.behave(|behaviour| behaviour.batch_bytes = 2 * PAGE + 1);
    rank.set(4, 500);
    let job = rank.job(JobKind::Offload, &[(2, 4)]);
    begin(&mut rank, vec![job]);
    let mut submitted = Vec::new();
    for layer in 0..LAYERS {
        rank.store.store_layer(layer, STREAM);
        submitted.push(rank.copies.batches().iter().map(CopyBatch::bytes).sum::<usize>() / PAGE);
    }
    assert_eq!(submitted, [0, 0, 3, 0, 0, 3], "three layers make a batch, and the last layer ends one");
    rank.store.end_step(STREAM);
    rank.finish();
    assert!(rank.ended()[0].ok);

    let load = rank.job(JobKind::LoadLayerwise, &[(2, 9)]);
    begin(&mut rank, vec![load]);
    rank.store.start_loads();
    assert_eq!(rank.copies.batches().iter().map(CopyBatch::bytes).collect::<Vec<_>>(), [3 * PAGE]);
    rank.copies.ordered();
    for (layer, waits) in [(0, 1), (1, 0), (2, 0), (3, 1), (4, 0), (5, 0)] {
        rank.store.wait_layer(layer, STREAM);
        assert_eq!(rank.copies.ordered().len(), waits, "layer {layer}");
    }
    rank.store.end_step(STREAM);
    rank.finish();
    assert!((0..LAYERS).all(|layer| rank.holds(layer, 9, 500)) && rank.ended()[0].ok);
}

#[test]
fn a_load_that_fails_at_once_is_an_error_of_its_step_and_leaves_nothing_moving() {
    let mut rank = device();
    fill(&mut rank, 0, 100);
    rank.copies.behave(|behaviour| behaviour.fail = 1000);
    let job = rank.job(JobKind::LoadLayerwise, &[(0, 3)]);
    begin(&mut rank, vec![job]);
    rank.store.start_loads();
    // One layer is missed.
    rank.store.wait_layer(LAYERS - 2, STREAM);
    rank.store.end_step(STREAM);
    assert_eq!(rank.store.take_load_errors(), [3]);
    assert_eq!(rank.copies.counts().submitted, LAYERS as u64 * 2, "fill and load");
    assert!(!rank.store.is_busy() && !rank.ended()[0].ok);
}

/// A stream that cannot wait (it records a graph, say) costs time, not the load.
#[test]
fn where_the_stream_cannot_wait_the_caller_does() {
    let mut rank = device();
    fill(&mut rank, 0, 100);
    rank.copies.behave(|behaviour| behaviour.refuses_order = true);
    let job = rank.job(JobKind::LoadLayerwise, &[(0, 3)]);
    begin(&mut rank, vec![job]);
    rank.store.start_loads();
    for layer in 0..LAYERS {
        rank.store.wait_layer(layer, STREAM);
        assert!(rank.holds(layer, 3, 100));
    }
    rank.store.end_step(STREAM);
    assert!(rank.ended()[0].ok && rank.store.take_load_errors().is_empty());
}

/// A device reports what it could not do later than the step: too late for the step, not too late to say so.
#[test]
fn a_load_that_fails_after_its_step_is_still_an_error_and_fails_offloads() {
    let mut rank = device();
    fill(&mut rank, 0, 100);
    rank.copies.behave(|behaviour| behaviour.fail = 1000);
    let job = rank.job(JobKind::LoadLayerwise, &[(0, 3)]);
    begin(&mut rank, vec![job]);
    rank.store.start_loads();
    rank.store.wait_layer(LAYERS - 1, STREAM);
    rank.store.end_step(STREAM);
    assert!(rank.store.take_load_errors().is_empty());
    rank.finish();
    assert_eq!(rank.store.take_load_errors(), [3]);
    assert_eq!(rank.store.failures(), ["copy failed: planted"]);
    rank.copies.behave(|behaviour| behaviour.fail = 0);
    let offload = rank.job(JobKind::Offload, &[(1, 3)]);
    begin(&mut rank, vec![offload]);
    rank.store.end_step(STREAM);
    rank.finish();
    assert_eq!(rank.ended().iter().map(|end| end.ok).collect::<Vec<_>>(), [false, false]);
}

/// Without a stream nobody knows when the bytes are there: shutting down in the middle of a step stores nothing.
#[test]
fn nothing_is_copied_that_cannot_be_ordered() {
    let mut rank = device();
    fill(&mut rank, 0, 100);
    let offload = rank.job(JobKind::Offload, &[(1, 3)]);
    begin(&mut rank, vec![offload]);
    rank.store.drain(None);
    assert!(rank.submitted().is_empty() && !rank.ended()[0].ok);
    let load = rank.job(JobKind::LoadAsync, &[(0, 3)]);
    rank.begin(vec![load]);
    rank.store.start_loads();
    rank.store.end_step(None);
    assert!(rank.submitted().is_empty() && rank.store.take_load_errors() == [3]);
}
