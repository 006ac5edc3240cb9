//! Accesses that nothing orders.

use kvcache_cuda::driver::Driver;
use kvcache_cuda::fake::FakeDevice;

use super::{end, expect};
use crate::program::{BYTES, Calls, filling};

#[test]
fn a_copy_waits_for_the_engines_work() {
    expect("race: copy", |device, wrong| {
        let (ours, engine) = (device.stream(), device.engine_stream());
        let page = device.allocate_device(BYTES).unwrap() as usize;
        let range = page..page + BYTES;
        // Recorded before the work, the event does not stand for it.
        let early = device.recorded(engine);
        device.engine_work(engine, vec![], vec![range.clone()], filling(range, 4));
        let event = if wrong { early } else { device.recorded(engine) };
        device.wait_event(ours, event).unwrap();
        // Now even the bytes come out right, and it is still wrong.
        device.run_all();
        device.copies(page, device.pinned(0), ours).unwrap();
    });
}

#[test]
fn the_engine_waits_for_a_load() {
    expect("race: ", |device, wrong| {
        let (ours, engine) = (device.stream(), device.engine_stream());
        let page = device.allocate_device(BYTES).unwrap() as usize;
        device.copies(device.pinned(4), page, ours).unwrap();
        let event = device.recorded(ours);
        if !wrong {
            device.wait_event(engine, event).unwrap();
        }
        device.engine_work(engine, vec![page..page + BYTES, 0..0], vec![], || ());
    });
}

#[test]
fn the_cpu_reads_what_it_knows_to_have_arrived() {
    expect("race: read (host)", |device, wrong| {
        let stream = device.stream();
        let page = device.allocate_device(BYTES).unwrap() as usize;
        let slot = device.pinned(0);
        device.copies(page, slot, stream).unwrap();
        let event = device.recorded(stream);
        if wrong {
            // Ended, which an answer would have told.
            device.run_all();
        } else {
            while !device.query_event(event).unwrap() {}
        }
        device.host_reads(slot..slot + BYTES);
    });
}

#[test]
fn the_cpu_writes_no_slot_that_is_being_read() {
    expect("ordered by nothing", |device, wrong| {
        let stream = device.stream();
        let (page, slot) = (device.allocate_device(BYTES).unwrap() as usize, device.pinned(0));
        device.copies(slot, page, stream).unwrap();
        if !wrong {
            end(device, stream);
        }
        device.host_writes(slot..slot + BYTES);
    });
}

#[test]
fn each_pair_is_named() {
    let device = FakeDevice::new(2);
    let page = device.allocate_device(BYTES).unwrap() as usize;
    for _ in 0..3 {
        device.copies(device.pinned(0), page, device.stream()).unwrap();
    }
    let violations = device.settle();
    assert_eq!(violations.len(), 3, "{violations:#?}");
}

#[test]
fn reading_together_is_no_race() {
    let device = FakeDevice::new(2);
    let slot = device.pinned(0);
    for _ in 0..3 {
        let page = device.allocate_device(BYTES).unwrap() as usize;
        device.copies(slot, page, device.stream()).unwrap();
        device.host_reads(slot..slot + BYTES);
    }
    assert_eq!(device.settle(), [""; 0]);
}
