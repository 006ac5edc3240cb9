//! Errors that are asked for, and what they leave behind.

use kvcache_cuda::driver::{
    Arguments, DeviceInfo, Driver, DriverError, LaunchShape, Priority, SourceOrder, Stream,
};
use kvcache_cuda::fake::{Call, FakeDevice, Status, When};
use kvcache_cuda::kernels::{Kernel, PieceCopy};

use crate::launches::SHAPE;
use crate::program::{BYTES, Calls, Tensor, bytes};

fn code<Value: std::fmt::Debug>(result: Result<Value, DriverError>) -> i32 {
    result.unwrap_err().code
}

#[test]
fn every_call_can_fail_once_and_says_which_it_was() {
    let empty = Arguments::Pieces(PieceCopy::new(0, &[], 16).unwrap());
    type Attempt<'a> = Box<dyn Fn(&FakeDevice) -> Result<(), DriverError> + 'a>;
    let attempts: [(Call, &str, Attempt<'_>); 13] = [
        (
            Call::CreateStream,
            "cuStreamCreateWithPriority",
            Box::new(|d| d.create_stream(Priority::Low).map(drop)),
        ),
        (Call::CheckStream, "cuStreamGetCtx", Box::new(|d| d.check_stream(Stream(0)))),
        (Call::CreateEvent, "cuEventCreate", Box::new(|d| d.create_event().map(drop))),
        (Call::RecordEvent, "cuEventRecord", Box::new(|d| d.record_event(d.create_event()?, Stream(0)))),
        (Call::WaitEvent, "cuStreamWaitEvent", Box::new(|d| d.wait_event(Stream(0), d.create_event()?))),
        (Call::QueryEvent, "cuEventQuery", Box::new(|d| d.query_event(d.create_event()?).map(drop))),
        (Call::SynchronizeEvent, "cuEventSynchronize", Box::new(|d| d.synchronize_event(d.create_event()?))),
        (Call::AllocateDevice, "cuMemAlloc", Box::new(|d| d.allocate_device(1).map(drop))),
        (Call::AllocateHost, "cuMemHostAlloc", Box::new(|d| d.allocate_host(1).map(drop))),
        (Call::Copy, "cuMemcpyAsync", {
            Box::new(|d| {
                d.copies(d.allocate_host(BYTES)?.host, d.allocate_device(BYTES)? as usize, Stream(0))
            })
        }),
        (Call::CopyBatch, "cuMemcpyBatchAsync", {
            Box::new(|d| {
                let (from, to) = (d.allocate_host(BYTES)?.host, d.allocate_device(BYTES)? as usize);
                let stream = d.create_stream(Priority::High)?;
                d.batch(&[(from, to)], SourceOrder::Any, stream).map(|kept| {
                    d.run_all();
                    drop(kept);
                })
            })
        }),
        (Call::LoadKernels, "cuModuleLoadData", Box::new(|d| d.load_kernels())),
        (Call::Launch, "cuLaunchKernel", {
            Box::new(|d| {
                d.load_kernels()?;
                // SAFETY: there is nothing to copy.
                unsafe { d.launch(Kernel::CopyPieces, &empty, SHAPE, Stream(0)) }
            })
        }),
    ];
    for (call, function, attempt) in attempts {
        let device = FakeDevice::new(1);
        device.inject(call, When::Nth(1), Status::LAUNCH_OUT_OF_RESOURCES);
        attempt(&device).unwrap();
        let error = attempt(&device).unwrap_err();
        let text = format!("{function} failed: CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES (701)");
        assert_eq!(error.to_string(), text);
        attempt(&device).unwrap();
        assert_eq!(device.calls(call), 2);
        assert_eq!(device.settle(), [""; 0]);
    }
}

#[test]
fn faults_last_as_long_as_they_say() {
    let device = FakeDevice::new(1);
    let failures = |count: usize| (0..count).filter(|_| device.load_kernels().is_err()).count();
    device.inject(Call::LoadKernels, When::From(2), Status::NO_BINARY_FOR_GPU);
    assert_eq!(failures(10), 8);
    device.clear_faults();
    assert_eq!(failures(10), 0);
    device.inject(Call::LoadKernels, When::Chance(0.25), Status::NO_BINARY_FOR_GPU);
    let some = failures(1000);
    assert!((200..300).contains(&some), "{some}");
}

#[test]
fn pinning_stops_at_a_limit() {
    let device = FakeDevice::new(1);
    device.inject(Call::RegisterHost, When::AfterBytes(250), Status::OUT_OF_MEMORY);
    let slab = Tensor::new(1000);
    // SAFETY: the slab outlives the device.
    let register = |offset, bytes| unsafe { device.register_host(slab.at() + offset, bytes) };
    assert_ne!(register(0, 100).unwrap(), slab.at() as u64);
    assert_eq!(code(register(100, 200)), 2);
    register(300, 150).unwrap();
    assert_eq!(code(register(500, 1)), 2);
    device.clear_faults();
    assert_eq!(code(register(50, 10)), 712);
    assert_eq!(code(register(500, 0)), 1);
    assert_eq!(device.violations(), [""; 0]);
}

#[test]
fn the_devices_memory_ends() {
    let info = DeviceInfo { memory_bytes: 1000, ..FakeDevice::new(0).device().clone() };
    let device = FakeDevice::options().device(info).build();
    let first = device.allocate_device(600).unwrap();
    assert_eq!(code(device.allocate_device(401)), 2);
    device.allocate_device(400).unwrap();
    device.free_device(first);
    device.allocate_device(600).unwrap();
    assert_eq!(code(device.allocate_device(0)), 1);
    assert_eq!(code(device.allocate_host(0)), 1);
    assert_eq!(device.violations(), [""; 0]);
}

#[test]
fn an_old_driver_has_no_batches_and_the_default_stream_takes_none() {
    let device = FakeDevice::options().batch_copy(false).build();
    assert!(!device.has_batch_copy());
    assert_eq!(device.device().driver_version, 12_040);
    let batch = |device: &FakeDevice, stream| {
        let (from, to) = (device.pinned(1), device.allocate_device(BYTES).unwrap() as usize);
        code(device.batch(&[(from, to)], SourceOrder::Any, stream))
    };
    assert_eq!(batch(&device, device.stream()), 801);
    let info = DeviceInfo { host_addresses_are_shared: false, ..FakeDevice::new(0).device().clone() };
    let device = FakeDevice::options().device(info).build();
    assert!(!device.has_batch_copy());
    assert_eq!(batch(&device, device.stream()), 801);
    assert_eq!(batch(&FakeDevice::new(0), Stream(0)), 1);
}

#[test]
fn launches_of_no_shape_are_refused() {
    let device = FakeDevice::new(1);
    device.load_kernels().unwrap();
    let empty = Arguments::Pieces(PieceCopy::new(0, &[], 16).unwrap());
    let launch = |blocks, threads| {
        // SAFETY: there is nothing to copy.
        unsafe { device.launch(Kernel::CopyPieces, &empty, LaunchShape { blocks, threads }, Stream(0)) }
    };
    for (blocks, threads) in [(0, 32), (1, 0), (1, 16), (1, 48), (1, 544)] {
        assert_eq!(code(launch(blocks, threads)), 1);
    }
    launch(1, 512).unwrap();
}

/// The error is seen later, by whoever calls, and for good.
#[test]
fn work_that_fails_loses_the_context() {
    for seed in 0..30 {
        let device = FakeDevice::new(seed);
        device.inject(Call::Execute, When::Nth(1), Status::ILLEGAL_ADDRESS);
        let tensor = Tensor::on(&device, 3 * BYTES);
        let stream = device.stream();
        let from = device.pinned(1);
        // The engine's work is not what fails.
        device.engine_work(stream, vec![], vec![tensor.range()], || ());
        for index in 0..3 {
            device.copies(from, tensor.at() + index * BYTES, stream).unwrap();
        }
        let event = device.recorded(stream);
        let error = device.synchronize_event(event).unwrap_err();
        assert_eq!(error.to_string(), "cuEventSynchronize failed: CUDA_ERROR_ILLEGAL_ADDRESS (700)");
        let arrived = |index: usize| bytes(tensor.at() + index * BYTES, BYTES);
        assert_eq!(arrived(0), [1; BYTES]);
        assert!(arrived(1) != [1; BYTES] && arrived(1) != [0; BYTES], "undefined");
        assert_eq!(arrived(2), [0; BYTES]);
        assert_eq!(device.pending(), 0);
        device.clear_faults();
        assert_eq!(code(device.query_event(event)), 700);
        assert_eq!(code(device.create_stream(Priority::Low)), 700);
        assert_eq!(code(device.copies(from, tensor.at(), stream)), 700);
        // Nothing runs any more: everything may go.
        device.free_host(from);
        device.destroy_event(event);
        device.destroy_stream(stream);
        device.remove_device_memory(tensor.at());
        assert_eq!(device.violations(), [""; 0]);
    }
}

/// What somebody's recording of a graph refuses has not happened, and what is in flight goes on.
#[test]
fn refusals_on_account_of_a_recording_end_nothing() {
    let statuses = [
        Status::STREAM_CAPTURE_UNSUPPORTED,
        Status::STREAM_CAPTURE_INVALIDATED,
        Status::STREAM_CAPTURE_IMPLICIT,
    ];
    for (seed, status) in (0..30).zip(statuses.into_iter().cycle()) {
        let device = FakeDevice::new(seed);
        let tensor = Tensor::on(&device, 3 * BYTES);
        let (stream, from) = (device.stream(), device.pinned(1));
        for index in 0..3 {
            device.copies(from, tensor.at() + index * BYTES, stream).unwrap();
        }
        let event = device.recorded(stream);
        let (pending, schedule) = (device.pending(), device.schedule());
        device.inject(Call::QueryEvent, When::From(0), status);
        device.inject(Call::RegisterHost, When::Nth(0), status);
        for _ in 0..100 {
            let error = device.query_event(event).unwrap_err();
            assert!(error.is_transient() && !error.loses_context(), "{error}");
        }
        let slab = Tensor::new(BYTES);
        // SAFETY: the slab outlives its registration.
        let register = || unsafe { device.register_host(slab.at(), BYTES) };
        assert_eq!(code(register()), status.code);
        assert_eq!((device.pending(), device.schedule()), (pending, schedule), "nothing ran, nothing ended");
        register().unwrap();
        device.unregister_host(slab.at());
        device.clear_faults();
        while !device.query_event(event).unwrap() {}
        device.host_reads(tensor.range());
        assert!(bytes(tensor.at(), 3 * BYTES) == [1; 3 * BYTES]);
        assert_eq!(device.settle(), [""; 0]);
    }
}

/// As the kernel refuses to pin pages that a device might write to, and the program may not.
#[test]
fn memory_that_is_not_mapped_writable_cannot_be_pinned() {
    const PAGE: usize = 4096;
    let device = FakeDevice::new(1);
    let pages = Pages::new(3 * PAGE);
    // SAFETY: the pages outlive the device's use of them.
    let register = |offset, bytes| unsafe { device.register_host(pages.0 + offset, bytes) };
    register(0, 3 * PAGE).unwrap();
    device.unregister_host(pages.0);
    for protection in [libc::PROT_READ, libc::PROT_NONE, libc::PROT_READ | libc::PROT_EXEC] {
        pages.protect(PAGE, PAGE, protection);
        assert_eq!(code(register(PAGE, PAGE)), 1);
        assert_eq!(code(register(0, 3 * PAGE)), 1, "a part of it");
        assert_eq!(code(register(PAGE - 1, 2)), 1, "one byte of it");
    }
    register(0, PAGE).unwrap();
    device.unregister_host(pages.0);
    // SAFETY: nothing is read or written; the kernel maps nothing there.
    assert_eq!(code(unsafe { device.register_host(PAGE, PAGE) }), 1);
    assert_eq!(device.settle(), [""; 0]);
}

/// Anonymous memory of its own mapping.
struct Pages(usize, usize);

impl Pages {
    fn new(bytes: usize) -> Self {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping, wherever the kernel puts it.
        let at = unsafe {
            libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0)
        };
        assert_ne!(at, libc::MAP_FAILED);
        Self(at as usize, bytes)
    }

    fn protect(&self, offset: usize, bytes: usize, protection: i32) {
        // SAFETY: a part of the mapping, to which nothing refers.
        assert_eq!(unsafe { libc::mprotect((self.0 + offset) as *mut _, bytes, protection) }, 0);
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: the mapping of `new`, to which nothing refers any more.
        assert_eq!(unsafe { libc::munmap(self.0 as *mut _, self.1) }, 0);
    }
}
