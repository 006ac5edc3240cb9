//! Copies and batches that no driver promises to do.

use std::sync::Arc;

use kvcache_cuda::driver::{Descriptors, Driver, SourceOrder};
use kvcache_cuda::fake::FakeDevice;

use super::{end, expect};
use crate::program::{BYTES, Calls, Tensor, fill};

#[test]
fn ranges_lie_within_one_allocation() {
    expect("is beyond the end of an allocation", |device, wrong| {
        let tensor = device.allocate_device(BYTES).unwrap() as usize;
        let at = tensor + usize::from(wrong);
        assert_eq!(device.copies(device.pinned(1), at, device.stream()).is_err(), wrong);
    });
    // A tensor that ends earlier than the copy; two that lie side by side.
    let tensor = Tensor::new(2 * BYTES);
    expect("crosses the border", |device, wrong| {
        device.add_device_memory(tensor.at(), BYTES);
        if !wrong {
            device.add_device_memory(tensor.at() + BYTES, BYTES);
        }
        assert_eq!(device.copies(device.pinned(1), tensor.at() + BYTES / 2, device.stream()).is_err(), wrong);
    });
    // One that begins later than the copy.
    expect("crosses the border", |device, wrong| {
        device.add_device_memory(tensor.at() + BYTES, BYTES);
        let at = tensor.at() + if wrong { BYTES / 2 } else { BYTES };
        assert_eq!(device.copies(device.pinned(1), at, device.stream()).is_err(), wrong);
    });
    // Registrations that lie side by side stay two.
    expect("crosses the border", |device, wrong| {
        for half in 0..2 {
            // SAFETY: the tensor outlives the device.
            unsafe { device.register_host(tensor.at() + half * BYTES, BYTES) }.unwrap();
        }
        let to = device.allocate_device(BYTES).unwrap() as usize;
        let at = tensor.at() + if wrong { BYTES / 2 } else { BYTES };
        assert_eq!(device.copies(at, to, device.stream()).is_err(), wrong);
    });
}

#[test]
fn declarations_do_not_overlap() {
    let tensor = Tensor::new(2 * BYTES);
    expect("add_device_memory: ", |device, wrong| {
        device.add_device_memory(tensor.at(), BYTES);
        device.add_device_memory(tensor.at() + BYTES - usize::from(wrong), BYTES);
    });
}

#[test]
fn copies_take_the_hosts_address_of_pinned_memory() {
    expect("only kernels take", |device, wrong| {
        let pinned = device.allocate_host(BYTES).unwrap();
        let to = device.allocate_device(BYTES).unwrap() as usize;
        let from = if wrong { pinned.device as usize } else { pinned.host };
        assert_eq!(device.copies(from, to, device.stream()).is_err(), wrong);
    });
}

#[test]
fn the_copies_of_a_batch_are_apart() {
    let batch = |device: &FakeDevice, pieces: &[(usize, usize)], wrong: bool| {
        let stream = device.stream();
        let kept = device.batch(pieces, SourceOrder::Stream, stream);
        assert_eq!(kept.is_err(), wrong);
        end(device, stream);
    };
    expect("two destinations overlap", |device, wrong| {
        let (from, to) = (device.pinned(1), device.allocate_device(2 * BYTES).unwrap() as usize);
        batch(device, &[(from, to), (from, to + BYTES - usize::from(wrong))], wrong);
    });
    expect("a source overlaps a destination", |device, wrong| {
        let (from, to) = (device.pinned(1), device.allocate_device(3 * BYTES).unwrap() as usize);
        batch(device, &[(from, to), (to + BYTES - usize::from(wrong), to + 2 * BYTES)], wrong);
    });
}

#[test]
fn the_arrays_of_a_batch_are_of_one_length_and_without_zeros() {
    for (text, sizes) in [
        ("copy 1 has no bytes", vec![BYTES, 0]),
        ("2 destinations, 2 sources and 1 sizes", vec![BYTES]),
        ("2 destinations, 2 sources and 0 sizes", vec![]),
    ] {
        expect(text, |device, wrong| {
            let (from, to) = (device.pinned(1) as u64, device.allocate_device(2 * BYTES).unwrap());
            let arrays = Arc::new(Descriptors {
                destinations: vec![to, to + BYTES as u64],
                sources: vec![from; 2],
                sizes: if wrong { sizes.clone() } else { vec![BYTES; 2] },
            });
            let stream = device.stream();
            // SAFETY: the memory and the arrays live to the end of the work.
            let submitted = unsafe { device.copy_batch(&arrays, SourceOrder::Any, stream) };
            assert_eq!(submitted.is_err(), wrong);
            end(device, stream);
        });
    }
}

#[test]
fn the_host_side_of_a_batch_is_pinned() {
    let pageable = Tensor::new(BYTES);
    expect("the source of copy 0 is not pinned", |device, wrong| {
        let stream = device.stream();
        let to = device.allocate_device(BYTES).unwrap() as usize;
        let from = if wrong { pageable.at() } else { device.pinned(1) };
        let kept = device.batch(&[(from, to)], SourceOrder::Any, stream);
        assert_eq!(kept.is_err(), wrong);
        end(device, stream);
    });
}

#[test]
fn only_sources_of_the_host_are_read_at_any_time() {
    expect("copy 0 reads the device's memory out of the stream's order", |device, wrong| {
        let stream = device.stream();
        let from = device.allocate_device(BYTES).unwrap() as usize;
        let order = if wrong { SourceOrder::Any } else { SourceOrder::Stream };
        let kept = device.batch(&[(from, device.pinned(0))], order, stream);
        assert_eq!(kept.is_err(), wrong);
        end(device, stream);
    });
}

/// Without a word to the fake, as a program would.
#[test]
fn sources_stay_unchanged() {
    expect("the bytes that it reads", |device, wrong| {
        let stream = device.stream();
        let (from, to) = (device.pinned(1), device.allocate_device(BYTES).unwrap() as usize);
        device.copies(from, to, stream).unwrap();
        if !wrong {
            end(device, stream);
        }
        fill(from + 5, &[2]);
    });
}
