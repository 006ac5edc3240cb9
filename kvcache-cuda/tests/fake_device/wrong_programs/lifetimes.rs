//! What goes away while it is needed, and handles that are none.

use std::sync::Arc;

use kvcache_cuda::driver::{Descriptors, Driver, Event, SourceOrder};
use kvcache_cuda::fake::FakeDevice;

use super::{end, expect};
use crate::program::{BYTES, Calls, Tensor, bytes};

#[test]
fn arrays_are_kept_until_the_end_of_a_batch() {
    expect("its arrays were freed before its end", |device, wrong| {
        let (tensor, stream) = (device.allocate_device(BYTES).unwrap(), device.stream());
        let kept = device.batch(&[(device.pinned(1), tensor as usize)], SourceOrder::Any, stream).unwrap();
        if !wrong {
            end(device, stream);
        }
        drop(kept);
    });
}

#[test]
fn arrays_stay_as_they_were() {
    expect("its arrays changed before its end", |device, wrong| {
        let (tensor, stream) = (device.allocate_device(BYTES).unwrap(), device.stream());
        let mut sizes = vec![BYTES];
        let size = sizes.as_mut_ptr();
        let arrays =
            Descriptors { destinations: vec![tensor], sources: vec![device.pinned(1) as u64], sizes };
        let kept = Arc::new(arrays);
        // SAFETY: the memory lives as long as the device, which reads no more than the arrays said at the call.
        unsafe { device.copy_batch(&kept, SourceOrder::Stream, stream) }.unwrap();
        if wrong {
            // SAFETY: the vector was not moved to other memory, and nobody else looks at it now.
            unsafe { size.write(BYTES / 2) };
        }
        end(device, stream);
    });
}

#[test]
fn memory_is_kept_until_the_end_of_what_needs_it() {
    for kind in 0..4 {
        expect(
            ["free_device of", "free_host of", "unregister_host of", "removal of"][kind],
            |device, wrong| {
                let stream = device.stream();
                let (tensor, slot) = (Tensor::new(BYTES), Tensor::new(BYTES));
                let (mut dst, mut src) = (device.allocate_device(BYTES).unwrap() as usize, device.pinned(3));
                if kind == 2 {
                    src = slot.at();
                    // SAFETY: the tensor outlives the registration.
                    unsafe { device.register_host(src, BYTES) }.unwrap();
                }
                if kind == 3 {
                    dst = tensor.at();
                    device.add_device_memory(dst, BYTES);
                }
                device.copies(src, dst, stream).unwrap();
                if !wrong {
                    end(device, stream);
                }
                match kind {
                    0 => device.free_device(dst as u64),
                    1 => device.free_host(src),
                    2 => device.unregister_host(src),
                    _ => device.remove_device_memory(dst),
                }
                device.run_all();
            },
        );
    }
}

/// It may not even be mapped any more.
#[test]
fn memory_that_went_away_is_not_touched() {
    for begun in [false, true] {
        let device = FakeDevice::new(1);
        let slot = Tensor::new(BYTES);
        // SAFETY: the tensor outlives the registration.
        unsafe { device.register_host(slot.at(), BYTES) }.unwrap();
        let page = device.allocate_device(BYTES).unwrap() as usize;
        let before = bytes(page, BYTES);
        device.copies(slot.at(), page, device.stream()).unwrap();
        device.advance(usize::from(begun));
        device.unregister_host(slot.at());
        assert!(device.settle()[0].starts_with("unregister_host of"));
        assert_eq!(bytes(page, BYTES), before);
    }
}

/// That the work has ended is not enough: the host must know.
#[test]
fn memory_is_freed_by_those_who_know_of_the_end() {
    expect("race: free_host (host) and copy", |device, wrong| {
        let (tensor, stream) = (device.allocate_device(BYTES).unwrap(), device.stream());
        let from = device.pinned(1);
        device.copies(from, tensor as usize, stream).unwrap();
        let event = device.recorded(stream);
        device.run_all();
        if !wrong {
            while !device.query_event(event).unwrap() {}
        }
        device.free_host(from);
    });
}

#[test]
fn freed_memory_is_not_used() {
    expect("was freed", |device, wrong| {
        let (tensor, stream) = (device.allocate_device(BYTES).unwrap(), device.stream());
        let from = device.pinned(1);
        let free = || device.free_host(from);
        if wrong {
            free();
        }
        assert_eq!(device.copies(from, tensor as usize, stream).is_err(), wrong);
        end(device, stream);
        if !wrong {
            free();
        }
    });
}

#[test]
fn memory_is_freed_once_and_as_what_it_is() {
    type Free = fn(&FakeDevice, usize);
    let frees: [(&str, Free); 4] = [
        ("free_device: nothing", |device, at| device.free_device(at as u64)),
        ("free_host: nothing", FakeDevice::free_host),
        ("unregister_host: nothing", FakeDevice::unregister_host),
        ("remove_device_memory: nothing", FakeDevice::remove_device_memory),
    ];
    for (index, (text, free)) in frees.into_iter().enumerate() {
        let memory = Tensor::new(BYTES);
        expect(text, |device, wrong| {
            let at = match index {
                0 => device.allocate_device(BYTES).unwrap() as usize,
                1 => device.pinned(1),
                2 => {
                    // SAFETY: the tensor outlives the device.
                    unsafe { device.register_host(memory.at(), BYTES) }.unwrap();
                    memory.at()
                }
                _ => {
                    device.add_device_memory(memory.at(), BYTES);
                    memory.at()
                }
            };
            free(device, at);
            if wrong {
                free(device, at);
            }
        });
    }
}

#[test]
fn streams_and_events_are_used_while_they_are_there() {
    expect("a stream that was destroyed", |device, wrong| {
        let (stream, other) = (device.stream(), device.stream());
        device.destroy_stream(stream);
        assert_eq!(
            device.record_event(device.create_event().unwrap(), if wrong { stream } else { other }).is_err(),
            wrong
        );
    });
    expect("there is no such event", |device, wrong| {
        let event = device.recorded(device.stream());
        if wrong {
            device.destroy_event(event);
        }
        assert_eq!(device.query_event(event).is_err(), wrong);
    });
    expect("RecordEvent: there is no such event", |device, wrong| {
        let event = device.create_event().unwrap();
        if wrong {
            device.destroy_event(event);
        }
        assert_eq!(device.record_event(event, device.stream()).is_err(), wrong);
        assert_eq!(device.pending(), usize::from(!wrong));
    });
    expect("destroy_event: there is no such event", |device, wrong| {
        let event = device.create_event().unwrap();
        device.destroy_event(event);
        if wrong {
            device.destroy_event(event);
        }
    });
    expect("destroy_event: there is no such event", |device, wrong| {
        let event = device.create_event().unwrap();
        device.destroy_event(if wrong { Event(17) } else { event });
    });
    expect("a stream of another device", |device, wrong| {
        let other = FakeDevice::new(0);
        let stream = if wrong { other.stream() } else { device.stream() };
        assert_eq!(device.record_event(device.create_event().unwrap(), stream).is_err(), wrong);
    });
    expect("the stream records a graph", |device, wrong| {
        let stream = device.engine_stream();
        device.set_capturing(stream, true);
        device.set_capturing(stream, wrong);
        let event = device.create_event().unwrap();
        assert_eq!(device.wait_event(stream, event).is_err(), wrong);
    });
    expect("belongs to the engine", |device, wrong| {
        device.destroy_stream(if wrong { device.engine_stream() } else { device.stream() });
    });
}
