//! Events as "CUDA Driver API", sections "Event Management" and "Stream Management", has them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use kvcache_cuda::driver::{Driver, Stream};
use kvcache_cuda::fake::FakeDevice;

use crate::program::Calls;

const SEEDS: std::ops::Range<u64> = 0..50;

/// Notes, when it runs, how many such works have run before it.
fn note(device: &FakeDevice, stream: Stream, count: &Arc<AtomicUsize>) -> Arc<AtomicUsize> {
    let place = Arc::new(AtomicUsize::new(usize::MAX));
    let (count, noted) = (Arc::clone(count), Arc::clone(&place));
    device.engine_work(stream, vec![], vec![], move || {
        noted.store(count.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
    });
    place
}

fn place(noted: &AtomicUsize) -> usize {
    noted.load(Ordering::Relaxed)
}

#[test]
fn work_of_one_stream_runs_in_its_order_and_a_wait_orders_two() {
    let mut other_order_without_wait = 0;
    for seed in SEEDS {
        for wait in [true, false] {
            let device = FakeDevice::new(seed);
            let (ours, engine) = (device.stream(), device.engine_stream());
            let count = Arc::new(AtomicUsize::new(0));
            let first = note(&device, engine, &count);
            let second = note(&device, engine, &count);
            let event = device.recorded(engine);
            if wait {
                device.wait_event(ours, event).unwrap();
            }
            let after = note(&device, ours, &count);
            device.run_all();
            assert!(place(&first) < place(&second));
            if wait {
                assert!(place(&second) < place(&after), "seed {seed}");
            } else {
                other_order_without_wait += usize::from(place(&after) < place(&second));
            }
            assert_eq!(device.violations(), [""; 0]);
        }
    }
    assert!(other_order_without_wait > 5, "streams are not ordered: {other_order_without_wait}");
}

/// The legacy default stream waits for blocking streams only; ours are none.
#[test]
fn streams_do_not_wait_for_the_legacy_default_stream() {
    let mut orders = [0, 0];
    for seed in SEEDS {
        let device = FakeDevice::new(seed);
        let count = Arc::new(AtomicUsize::new(0));
        let legacy = note(&device, Stream(0), &count);
        let ours = note(&device, device.stream(), &count);
        device.run_all();
        orders[usize::from(place(&legacy) < place(&ours))] += 1;
    }
    assert!(orders[0] > 5 && orders[1] > 5, "{orders:?}");
}

#[test]
fn a_wait_is_for_what_the_event_stood_for_at_the_call() {
    let mut overtaken = 0;
    for seed in SEEDS {
        let device = FakeDevice::new(seed);
        let (ours, engine) = (device.stream(), device.engine_stream());
        let count = Arc::new(AtomicUsize::new(0));
        let before = note(&device, engine, &count);
        let event = device.recorded(engine);
        device.wait_event(ours, event).unwrap();
        let waiting = note(&device, ours, &count);
        let later = note(&device, engine, &count);
        // Changes nothing for the wait, and neither does the end of the event.
        device.record_event(event, engine).unwrap();
        device.destroy_event(event);
        device.run_all();
        assert!(place(&before) < place(&waiting));
        overtaken += usize::from(place(&waiting) < place(&later));
    }
    assert!(overtaken > 5, "the wait is not for later work: {overtaken}");
}

#[test]
fn an_event_that_was_never_recorded_is_complete_and_no_wait() {
    let device = FakeDevice::new(1);
    let (ours, engine) = (device.stream(), device.engine_stream());
    let event = device.create_event().unwrap();
    assert_eq!(device.query_event(event), Ok(true));
    device.synchronize_event(event).unwrap();
    device.wait_event(ours, event).unwrap();
    assert_eq!(device.pending(), 0);
    // Recorded after the wait: still no wait.
    device.record_event(event, engine).unwrap();
    let done = device.recorded(ours);
    device.synchronize_event(done).unwrap();
    assert_eq!(device.violations(), [""; 0]);
}

/// However often it was asked for before.
#[test]
fn recording_again_makes_an_event_pending_again() {
    let device = FakeDevice::new(3);
    let stream = device.stream();
    let event = device.recorded(stream);
    device.synchronize_event(event).unwrap();
    let mut pending = 0;
    for round in 0..60 {
        let count = Arc::new(AtomicUsize::new(0));
        (0..5).for_each(|_| drop(note(&device, stream, &count)));
        device.record_event(event, stream).unwrap();
        assert_eq!(device.pending(), 6);
        let first = device.query_event(event).unwrap();
        pending += usize::from(round >= 30 && !first);
        device.synchronize_event(event).unwrap();
        assert_eq!((device.pending(), count.load(Ordering::Relaxed)), (0, 5));
    }
    assert!(pending > 10, "{pending}");
}

#[test]
fn polling_makes_progress_and_sees_pending_first() {
    let mut pending = 0;
    for seed in SEEDS {
        let device = FakeDevice::new(seed);
        let stream = device.stream();
        let count = Arc::new(AtomicUsize::new(0));
        (0..20).for_each(|_| drop(note(&device, stream, &count)));
        let event = device.recorded(stream);
        let mut queries = 0;
        while !device.query_event(event).unwrap() {
            queries += 1;
            assert!(queries < 16, "seed {seed}");
        }
        assert_eq!(count.load(Ordering::Relaxed), 20);
        pending += usize::from(queries > 0);
    }
    assert!(pending > 10, "{pending}");
}

#[test]
fn a_destroyed_streams_work_still_runs() {
    let device = FakeDevice::new(5);
    let stream = device.stream();
    let count = Arc::new(AtomicUsize::new(0));
    note(&device, stream, &count);
    let event = device.recorded(stream);
    device.destroy_stream(stream);
    device.synchronize_event(event).unwrap();
    assert_eq!((count.load(Ordering::Relaxed), device.violations()), (1, vec![]));
}

#[test]
fn a_cpu_engines_stream_is_done_when_the_call_returns() {
    for seed in SEEDS {
        let device = FakeDevice::new(seed);
        let (ours, cpu) = (device.stream(), device.cpu_engine_stream());
        let count = Arc::new(AtomicUsize::new(0));
        let copied = note(&device, ours, &count);
        let event = device.recorded(ours);
        assert_eq!(place(&copied), usize::MAX);
        device.wait_event(cpu, event).unwrap();
        assert_eq!(place(&copied), 0);
        let computed = note(&device, cpu, &count);
        assert_eq!(place(&computed), 1);
        let event = device.recorded(cpu);
        assert_eq!(device.pending(), 0);
        assert_eq!(device.query_event(event), Ok(true));
    }
}

#[test]
fn streams_that_cannot_be_used_here_are_refused_by_name() {
    let (device, other) = (FakeDevice::new(0), FakeDevice::new(0));
    let refused = |stream| device.check_stream(stream).unwrap_err().name;
    assert_eq!(device.check_stream(Stream(0)), Ok(()));
    let engine = device.engine_stream();
    assert_eq!(device.check_stream(engine), Ok(()));
    device.set_capturing(engine, true);
    assert_eq!(refused(engine), "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED");
    device.set_capturing(engine, false);
    assert_eq!(device.check_stream(engine), Ok(()));
    assert_eq!(refused(other.engine_stream()), "CUDA_ERROR_INVALID_CONTEXT");
    assert_eq!(refused(Stream(2)), "CUDA_ERROR_INVALID_HANDLE");
    let ours = device.stream();
    device.destroy_stream(ours);
    assert_eq!(refused(ours), "CUDA_ERROR_INVALID_HANDLE");
    // To ask is no mistake.
    assert_eq!(device.violations(), [""; 0]);
}
