//! Bytes arrive when somebody looks, in any order and in parts.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use kvcache_cuda::driver::{Driver, SourceOrder};
use kvcache_cuda::fake::{Call, FakeDevice};

use crate::program::{BYTES, Calls, Tensor, bytes, fill, filling};

#[test]
fn nothing_moves_before_somebody_looks() {
    for seed in 0..50 {
        let device = FakeDevice::new(seed);
        let tensor = Tensor::on(&device, 2 * BYTES);
        let stream = device.stream();
        let (first, second) = (device.pinned(1), device.pinned(2));
        device.copies(first, tensor.at(), stream).unwrap();
        let kept = device.batch(&[(second, tensor.at() + BYTES)], SourceOrder::Any, stream).unwrap();
        let event = device.recorded(stream);
        assert_eq!(bytes(tensor.at(), 2 * BYTES), [0; 2 * BYTES]);
        assert_eq!(device.pending(), 3);
        device.synchronize_event(event).unwrap();
        assert_eq!(bytes(tensor.at(), BYTES), [1; BYTES]);
        assert_eq!(bytes(tensor.at() + BYTES, BYTES), [2; BYTES]);
        assert_eq!((device.violations(), device.pageable_copies()), (vec![], 0));
        drop(kept);
    }
}

/// Of a batch and a copy on another stream, many states in between can be seen.
#[test]
fn copies_run_in_parts_in_any_order() {
    let mut seen = HashSet::new();
    let mut torn = 0;
    for seed in 0..200 {
        let device = FakeDevice::new(seed);
        let tensor = Tensor::on(&device, 4 * BYTES);
        let (one, two) = (device.stream(), device.stream());
        let from = device.pinned(1);
        let piece = |index| (from, tensor.at() + index * BYTES);
        let _kept = device.batch(&[piece(0), piece(1), piece(2)], SourceOrder::Stream, one).unwrap();
        device.copies(from, tensor.at() + 3 * BYTES, two).unwrap();
        while device.advance(1) > 0 {
            let arrived: Vec<u8> = (0..4).map(|index| bytes(piece(index).1, BYTES).iter().sum()).collect();
            torn += usize::from(arrived.iter().any(|sum| !matches!(*sum, 0 | 96)));
            seen.insert(arrived.iter().map(|sum| *sum == 96).collect::<Vec<_>>());
        }
    }
    assert!(torn > 50, "{torn}");
    assert!(seen.len() >= 14, "of 16 states: {}", seen.len());
}

/// With the order of the stream the source is read in its turn; without, at any time since the call.
#[test]
fn sources_are_read_in_their_turn_or_at_any_time() {
    for order in [SourceOrder::Stream, SourceOrder::Any] {
        let mut stale = 0;
        for seed in 0..50 {
            let device = FakeDevice::new(seed);
            let tensor = Tensor::on(&device, BYTES);
            let stream = device.stream();
            let from = device.pinned(0);
            let range = from..from + BYTES;
            device.engine_work(stream, vec![], vec![range.clone()], filling(range, 7));
            let _kept = device.batch(&[(from, tensor.at())], order, stream).unwrap();
            let violations = device.settle();
            stale += usize::from(bytes(tensor.at(), BYTES) != [7; BYTES]);
            assert_eq!(violations.is_empty(), order == SourceOrder::Stream, "{violations:?}");
        }
        assert_eq!(stale > 5, order == SourceOrder::Any, "{order:?}: {stale}");
    }
}

#[test]
fn copies_of_pageable_memory_run_at_once_with_all_before_them() {
    for seed in 0..50 {
        let device = FakeDevice::new(seed);
        let tensor = Tensor::on(&device, BYTES);
        let pageable = Tensor::new(BYTES);
        let (ours, engine) = (device.stream(), device.engine_stream());
        device.engine_work(engine, vec![], vec![tensor.range()], filling(tensor.range(), 9));
        device.wait_event(ours, device.recorded(engine)).unwrap();
        device.copies(tensor.at(), pageable.at(), ours).unwrap();
        assert_eq!(bytes(pageable.at(), BYTES), [9; BYTES]);
        assert_eq!((device.violations(), device.pageable_copies()), (vec![], 1));
    }
}

#[test]
fn equal_seeds_and_calls_give_equal_runs() {
    let run = |seed| {
        let device = FakeDevice::new(seed);
        let tensor = Tensor::on(&device, 8 * BYTES);
        let (one, two) = (device.stream(), device.stream());
        let from = device.pinned(1);
        for index in 0..4 {
            device.copies(from, tensor.at() + index * BYTES, one).unwrap();
            device.copies(from, tensor.at() + (4 + index) * BYTES, two).unwrap();
        }
        let event = device.recorded(one);
        let mut answers = 0;
        while !device.query_event(event).unwrap() {
            answers += 1;
        }
        device.run_all();
        ((answers, device.schedule()), device, tensor)
    };
    // All are kept, so that no two have the same addresses.
    let (first, second): (Vec<_>, Vec<_>) = ((0..20).map(run).collect(), (0..20).map(run).collect());
    let runs: HashSet<_> = first.iter().map(|(run, ..)| run).collect();
    assert_eq!(runs.len(), 20);
    assert!(first.iter().zip(&second).all(|((run, ..), (again, ..))| run == again));
}

/// Nobody asks the device for anything.
#[test]
fn a_background_thread_gets_on_with_it() {
    let device = FakeDevice::options().background(true).build();
    let tensor = Tensor::on(&device, BYTES);
    let stream = device.stream();
    for round in 1..=3 {
        let from = device.pinned(round);
        device.copies(from, tensor.at(), stream).unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while device.pending() > 0 {
            assert!(Instant::now() < deadline);
            std::thread::yield_now();
        }
        assert_eq!(bytes(tensor.at(), BYTES), [round; BYTES]);
    }
    assert_eq!((device.calls(Call::Copy), device.calls(Call::QueryEvent)), (3, 0));
}

#[test]
fn allocations_are_aligned_and_not_zero() {
    let device = FakeDevice::new(4);
    for _ in 0..20 {
        let on_device = device.allocate_device(BYTES).unwrap() as usize;
        assert_eq!(on_device % 256, 0);
        let host = device.allocate_host(BYTES).unwrap();
        assert_ne!(host.host as u64, host.device);
        for at in [on_device, host.host] {
            assert_ne!(bytes(at, BYTES), [0; BYTES]);
            fill(at, &[0; BYTES]);
        }
        device.free_device(on_device as u64);
        device.free_host(host.host);
    }
    assert_eq!(device.violations(), [""; 0]);
}
