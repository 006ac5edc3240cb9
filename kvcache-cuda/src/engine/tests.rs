//! The engine on the fake device. What must hold on every path is in `programs`.

mod programs;

use super::*;
use crate::fake::{Call, FakeDevice, FakeOptions, Status, When};

const PAGE: usize = 4096;
const FOREVER: Duration = Duration::from_secs(60);

/// Memory that starts at a page, filled with a pattern of its own.
struct Memory {
    bytes: Box<[u8]>,
    start: usize,
    length: usize,
}

impl Memory {
    fn new(pages: usize, seed: u8) -> Self {
        let mut bytes = vec![0u8; (pages + 1) * PAGE].into_boxed_slice();
        let start = bytes.as_ptr().align_offset(PAGE);
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte = (index as u8).wrapping_mul(31) ^ (index >> 8) as u8 ^ seed;
        }
        Self { bytes, start, length: pages * PAGE }
    }

    fn address(&self) -> usize {
        self.bytes.as_ptr() as usize + self.start
    }

    /// A copy of the bytes, which the fake device changes behind the compiler's back.
    fn read(&self, at: usize, bytes: usize) -> Vec<u8> {
        assert!(at + bytes <= self.length);
        // SAFETY: within the allocation; nothing runs on the fake while the test's only thread is here.
        (0..bytes)
            .map(|i| unsafe { std::ptr::read_volatile((self.address() + at + i) as *const u8) })
            .collect()
    }
}

/// A device, its memory and pinned memory of the host.
struct Rig {
    engine: CudaCopyEngine,
    fake: Arc<FakeDevice>,
    host: Memory,
    device: Memory,
}

fn quiet() -> CudaCopyConfig {
    CudaCopyConfig { calibrate: false, ..CudaCopyConfig::default() }
}

fn rig(config: CudaCopyConfig) -> Rig {
    rig_on(FakeDevice::options().seed(1).strict(true), config)
}

fn rig_on(options: FakeOptions, config: CudaCopyConfig) -> Rig {
    let fake = options.build();
    let (host, device) = (Memory::new(64, 1), Memory::new(64, 99));
    fake.add_device_memory(device.address(), device.length);
    let engine = CudaCopyEngine::new(Arc::clone(&fake) as _, config).unwrap();
    // SAFETY: the memory outlives the engine: fields are dropped in order.
    unsafe { engine.register(host.address(), host.length) }.unwrap();
    Rig { engine, fake, host, device }
}

impl Rig {
    /// `(host, device, bytes)`, as offsets.
    fn batch(&self, direction: Direction, places: &[(usize, usize, usize)]) -> CopyBatch {
        let pieces = places.iter().map(|(host, device, bytes)| {
            let (host, device) = (self.host.address() + host, self.device.address() + device);
            match direction {
                Direction::Load => Piece { src: host, dst: device, bytes: *bytes },
                Direction::Offload => Piece { src: device, dst: host, bytes: *bytes },
            }
        });
        CopyBatch { pieces: pieces.collect(), direction, fence: None, streaming: false, urgent: false }
    }

    fn submit(&self, batch: CopyBatch) -> Result<Ticket, Rejected> {
        // SAFETY: the rig's memory lives, and tests do not touch it before they have seen the end.
        unsafe { self.engine.submit(batch) }
    }

    fn wait(&self, ticket: Ticket) -> CopyState {
        self.engine.wait(ticket, FOREVER)
    }
}

#[test]
fn nothing_waits_and_ends_are_reported_once() {
    let rig = rig(quiet());
    let ticket = rig.submit(rig.batch(Direction::Load, &[(0, 0, 10_000)])).unwrap();
    assert_eq!(rig.engine.in_flight(), InFlight { batches: 1, bytes: 10_000 });
    assert_ne!(rig.device.read(0, 10_000), rig.host.read(0, 10_000));
    assert_eq!(rig.wait(ticket), CopyState::Done);
    assert_eq!(rig.device.read(0, 10_000), rig.host.read(0, 10_000));
    assert_eq!(rig.engine.poll(ticket), CopyState::Failed(CopyFailure::UnknownTicket(ticket)));
    assert_eq!(rig.engine.in_flight(), InFlight::default());
    let empty = rig.submit(rig.batch(Direction::Load, &[(0, 0, 0)])).unwrap();
    assert_eq!(rig.engine.poll(empty), CopyState::Done);
}

#[test]
fn offloads_and_other_loads_are_bounded_and_urgent_loads_are_not() {
    let rig = rig(CudaCopyConfig { bytes_max: 10_000, ..quiet() });
    let load = |host, urgent| CopyBatch { urgent, ..rig.batch(Direction::Load, &[(host, host, 6000)]) };
    let first = rig.submit(load(0, false)).unwrap();
    assert!(matches!(rig.submit(load(6000, false)), Err(Rejected::Full(_))));
    let offload = |at| rig.batch(Direction::Offload, &[(at, at, 20_000)]);
    let large = rig.submit(offload(40_000)).unwrap();
    assert!(matches!(rig.submit(offload(60_000)), Err(Rejected::Full(_))), "each way has its own bound");
    let urgent = [rig.submit(load(12_000, true)).unwrap(), rig.submit(load(18_000, true)).unwrap()];
    for ticket in urgent.into_iter().chain([first, large]) {
        assert_eq!(rig.wait(ticket), CopyState::Done);
    }
    let rig = self::rig(CudaCopyConfig { batches_max: 2, ..quiet() });
    let tickets: Vec<Ticket> =
        (0..2).map(|i| rig.submit(rig.batch(Direction::Load, &[(i * 100, i * 100, 100)])).unwrap()).collect();
    let more = || CopyBatch { urgent: true, ..rig.batch(Direction::Load, &[(300, 300, 100)]) };
    rig.fake.run_all();
    assert!(matches!(rig.submit(more()), Err(Rejected::Full(_))), "an end that nobody has seen counts");
    assert_eq!(rig.wait(tickets[0]), CopyState::Done);
    let more = rig.submit(more()).unwrap();
    rig.engine.forget(tickets[1]);
    rig.engine.forget(more);
    rig.fake.run_all();
    for at in 0..5 {
        // Nobody polls the lane in which these are forgotten.
        let forgotten = rig.submit(rig.batch(Direction::Offload, &[(at * 100, at * 100, 100)])).unwrap();
        rig.engine.forget(forgotten);
        rig.fake.run_all();
    }
}

#[test]
fn a_forgotten_batch_runs_and_leaves_nothing() {
    let rig = rig(quiet());
    let forgotten = rig.submit(rig.batch(Direction::Load, &[(0, 0, 100)])).unwrap();
    rig.engine.forget(forgotten);
    assert!(matches!(rig.engine.poll(forgotten), CopyState::Failed(CopyFailure::UnknownTicket(_))));
    let next = rig.submit(rig.batch(Direction::Load, &[(100, 100, 100)])).unwrap();
    assert_eq!(rig.wait(next), CopyState::Done);
    assert_eq!(rig.engine.in_flight(), InFlight::default());
    assert_eq!(rig.device.read(0, 200), rig.host.read(0, 200));
}

/// A path that the driver refuses costs a remark, not a byte.
#[test]
fn what_the_driver_refuses_goes_the_plain_way_from_then_on() {
    for (path, call) in [(CopyPath::DmaBatch, Call::CopyBatch), (CopyPath::Kernel, Call::Launch)] {
        let rig = rig(CudaCopyConfig { path: Some(path), call_bytes: 4096, ..quiet() });
        rig.fake.inject(call, When::From(1), Status::INVALID_VALUE);
        // The first refusals may be due to the moment.
        for _ in 0..2 {
            let ticket = rig.submit(rig.batch(Direction::Load, &[(0, 0, 3000), (4000, 4000, 3000)])).unwrap();
            assert_eq!(rig.wait(ticket), CopyState::Done);
            assert!(rig.engine.paths().contains(&path) && rig.engine.remarks().is_empty());
        }
        let places: Vec<_> = (0..8).map(|i| (i * 5000, i * 7000, 3000)).collect();
        for direction in [Direction::Load, Direction::Offload, Direction::Load] {
            let ticket = rig.submit(rig.batch(direction, &places)).unwrap();
            assert_eq!(rig.wait(ticket), CopyState::Done);
            for (host, device, bytes) in &places {
                assert_eq!(rig.device.read(*device, *bytes), rig.host.read(*host, *bytes));
            }
        }
        assert!(!rig.engine.paths().contains(&path));
        let remark = rig.engine.remarks().join("\n");
        assert!(
            remark.contains(&format!("{} is not used any more: ", path.name()))
                && remark.contains("CUDA_ERROR_INVALID_VALUE (1)"),
            "{remark}"
        );
    }
}

#[test]
fn a_device_that_lacks_something_is_slower_and_says_so() {
    let fake = FakeDevice::options().batch_copy(false).strict(true).build();
    fake.inject(Call::LoadKernels, When::From(0), Status::NO_BINARY_FOR_GPU);
    let engine = CudaCopyEngine::new(Arc::clone(&fake) as _, CudaCopyConfig::default()).unwrap();
    assert_eq!(engine.paths(), [CopyPath::Dma]);
    let remarks = engine.remarks();
    assert!(remarks[0].contains("the driver is of CUDA 12.4"), "{remarks:?}");
    assert!(remarks[1].contains("CUDA_ERROR_NO_BINARY_FOR_GPU (209)"), "{remarks:?}");
    assert_eq!(engine.choice().rates().len(), 2 * 7, "the plain path is measured");

    let fake = FakeDevice::options().strict(true).build();
    fake.inject(Call::AllocateDevice, When::From(0), Status::OUT_OF_MEMORY);
    let engine = CudaCopyEngine::new(Arc::clone(&fake) as _, CudaCopyConfig::default()).unwrap();
    assert_eq!(engine.paths(), [CopyPath::DmaBatch, CopyPath::Dma]);
    let remarks = engine.remarks();
    assert!(remarks.iter().all(|remark| remark.contains("CUDA_ERROR_OUT_OF_MEMORY (2)")), "{remarks:?}");
    assert!(remarks[1].contains("rules of thumb") && engine.choice().rates().is_empty());

    // Plain copies that fail leave nothing to copy with.
    let fake = FakeDevice::options().batch_copy(false).strict(true).build();
    fake.inject(Call::LoadKernels, When::From(0), Status::NO_BINARY_FOR_GPU);
    fake.inject(Call::Copy, When::From(3), Status::INVALID_VALUE);
    let error = CudaCopyEngine::new(Arc::clone(&fake) as _, CudaCopyConfig::default()).unwrap_err();
    assert_eq!(error.to_string(), "cuMemcpyAsync failed: CUDA_ERROR_INVALID_VALUE (1)");
    assert_eq!(fake.settle(), Vec::<String>::new());
}

#[test]
fn streams_that_cannot_be_made_are_an_error_that_leaves_nothing_behind() {
    let fake = FakeDevice::options().strict(true).build();
    fake.inject(Call::CreateStream, When::Nth(2), Status::OUT_OF_MEMORY);
    let error = CudaCopyEngine::new(Arc::clone(&fake) as _, quiet()).unwrap_err();
    assert_eq!(error.to_string(), "cuStreamCreateWithPriority failed: CUDA_ERROR_OUT_OF_MEMORY (2)");
    assert_eq!(fake.settle(), Vec::<String>::new());
}

#[test]
fn every_path_is_tried_and_measured_at_the_start() {
    let rig = rig(CudaCopyConfig::default());
    for path in CopyPath::ALL {
        let rates = rig.engine.choice().rates().iter().filter(|rate| rate.path == path);
        assert_eq!(rates.count(), 2 * 7, "{path:?}");
    }
    assert_eq!((rig.engine.remarks(), rig.fake.pending()), (Vec::new(), 0));
    assert_eq!(rig.engine.counts(), [], "measuring is not counted");
}

/// What the device says after a call was accepted ends everything, and is told by its own name.
#[test]
fn a_lost_context_fails_what_is_in_flight_and_what_comes() {
    let rig = rig_on(FakeDevice::options().seed(3), quiet());
    let stream = rig.fake.engine_stream();
    let tickets: Vec<Ticket> =
        (0..3).map(|i| rig.submit(rig.batch(Direction::Load, &[(i * 100, i * 100, 100)])).unwrap()).collect();
    rig.fake.inject(Call::Execute, When::Nth(1), Status::ILLEGAL_ADDRESS);
    rig.fake.run_all();
    let illegal = |state: CopyState| match state {
        CopyState::Failed(failure) => failure.to_string().ends_with("CUDA_ERROR_ILLEGAL_ADDRESS (700)"),
        _ => false,
    };
    assert_eq!(rig.engine.lost(), None, "nobody has looked");
    for ticket in &tickets {
        assert!(illegal(rig.engine.poll(*ticket)));
    }
    assert_eq!(rig.engine.lost().unwrap().code, 700);
    let later = rig.submit(rig.batch(Direction::Offload, &[(0, 0, 10)])).unwrap();
    let failure = rig.engine.order_after(later, stream.0).unwrap_err().to_string();
    assert!(failure.ends_with("(700)"), "{failure}");
    assert!(illegal(rig.engine.poll(later)));
    assert!(rig.engine.fence(stream.0).is_err());
    assert_eq!(rig.engine.in_flight(), InFlight::default());
}

/// What somebody else's graph forbids for a moment, and what is no error of the copies, ends nothing early.
#[test]
fn an_end_is_told_when_it_has_come_whatever_a_query_says() {
    for status in [Status::STREAM_CAPTURE_UNSUPPORTED, Status::INVALID_VALUE] {
        let rig = rig(quiet());
        let ticket = rig.submit(rig.batch(Direction::Load, &[(0, 0, 9000)])).unwrap();
        rig.fake.inject(Call::QueryEvent, When::Nth(0), status);
        let first = rig.engine.poll(ticket);
        if status == Status::INVALID_VALUE {
            // It waited: there was nothing else to learn from.
            assert_eq!(rig.fake.pending(), 0);
        } else {
            assert_eq!(first, CopyState::Pending);
        }
        assert!(first == CopyState::Done || rig.wait(ticket) == CopyState::Done);
        assert_eq!((rig.device.read(0, 9000), rig.engine.lost()), (rig.host.read(0, 9000), None));
    }
}

#[test]
fn single_copies_are_bounded_before_the_stream_is_full() {
    let rig = rig(CudaCopyConfig { path: Some(CopyPath::Dma), calls_max: 10, ..quiet() });
    let many: Vec<_> = (0..20).map(|i| (i * 100, i * 100, 50)).collect();
    let first = rig.submit(rig.batch(Direction::Offload, &many)).unwrap();
    let next = || rig.batch(Direction::Offload, &[(5000, 5000, 10)]);
    assert!(matches!(rig.submit(next()), Err(Rejected::Full(_))));
    assert_eq!(rig.wait(first), CopyState::Done);
    let next = rig.submit(next()).unwrap();
    assert_eq!(rig.wait(next), CopyState::Done);
}

/// A stream holds about a thousand operations. A call beyond that would hold the engine's thread until the GPU has come so far.
#[test]
fn no_call_waits_for_room_in_a_stream() {
    // The batches that were accepted, and whether a call had to wait.
    let fill = |path, direction, pieces: usize, calls_max| {
        let options = FakeDevice::options().seed(1).strict(true).queue_depth(1024);
        let config = CudaCopyConfig { path: Some(path), calls_max, batches_max: usize::MAX, ..quiet() };
        let rig = rig_on(options, config);
        let fence = rig.engine.fence(rig.fake.engine_stream().0).unwrap();
        let places: Vec<_> = (0..pieces).map(|i| (i * 100, i * 100, 50)).collect();
        let batch = || CopyBatch { fence: Some(fence.clone()), ..rig.batch(direction, &places) };
        let mut accepted = 0;
        while rig.fake.blocked_submissions() == 0 && rig.submit(batch()).is_ok() {
            accepted += 1;
        }
        (accepted, rig.fake.blocked_submissions() > 0)
    };
    let bound = quiet().calls_max;
    for direction in [Direction::Load, Direction::Offload] {
        for path in CopyPath::ALL {
            for pieces in [1, 5, 300] {
                let (accepted, has_waited) = fill(path, direction, pieces, bound);
                let what = format!("{path:?}, {direction:?}, {pieces} pieces: {accepted} batches");
                assert!(!has_waited, "{what}");
                // Tables are as many as they are, so that not each of them goes by the kernel.
                assert!(accepted >= bound / (pieces.max(2) + 2) && accepted <= bound / 3, "{what}");
            }
            assert!(fill(path, direction, 1, usize::MAX).1, "without the bound it waits");
        }
    }
}

/// Whoever gives memory back while a copy is on its way must not pull its pages away.
#[test]
fn memory_is_unpinned_after_the_copies_on_it() {
    let rig = rig(quiet());
    let ticket = rig.submit(rig.batch(Direction::Load, &[(0, 0, 9000)])).unwrap();
    rig.engine.unregister(rig.host.address());
    assert_eq!(rig.engine.poll(ticket), CopyState::Done);
    assert_eq!(rig.fake.settle(), Vec::<String>::new());
}

/// A call that fails in the middle of a batch: what was accepted is waited for before the failure is told.
#[test]
fn a_batch_that_was_accepted_in_part_ends_when_that_part_has() {
    let rig = rig(CudaCopyConfig { path: Some(CopyPath::Dma), ..quiet() });
    rig.fake.inject(Call::Copy, When::Nth(2), Status::OUT_OF_MEMORY);
    let batch = rig.batch(Direction::Load, &[(0, 0, 10), (20, 20, 10), (40, 40, 10)]);
    let ticket = rig.submit(batch).unwrap();
    assert_eq!(rig.engine.in_flight().batches, 1);
    let CopyState::Failed(failure) = rig.wait(ticket) else { panic!("it succeeds") };
    assert_eq!(failure.to_string(), "cuMemcpyAsync failed: CUDA_ERROR_OUT_OF_MEMORY (2)");
    assert_eq!(rig.fake.pending(), 0);
    let next = rig.submit(rig.batch(Direction::Load, &[(0, 0, 100)])).unwrap();
    assert_eq!(rig.wait(next), CopyState::Done, "the next one is not concerned");
}

#[test]
fn memory_that_is_not_pinned_is_loaded_slowly_and_never_written() {
    let rig = rig(quiet());
    let pageable = Memory::new(2, 7);
    let piece = Piece { src: pageable.address(), dst: rig.device.address(), bytes: 5000 };
    let load = CopyBatch { pieces: vec![piece], ..rig.batch(Direction::Load, &[]) };
    let ticket = rig.submit(load).unwrap();
    assert_eq!(rig.wait(ticket), CopyState::Done);
    assert_eq!((rig.device.read(0, 5000), rig.engine.pageable_batches()), (pageable.read(0, 5000), 1));
    let piece = Piece { src: rig.device.address(), dst: pageable.address(), bytes: 5000 };
    let offload = CopyBatch { pieces: vec![piece], ..rig.batch(Direction::Offload, &[]) };
    let rejected = rig.submit(offload).unwrap_err();
    assert_eq!(rejected.reason(), "offloads go to pinned memory only");
    // Memory that was pinned once is not any more.
    rig.engine.unregister(rig.host.address());
    assert!(rig.submit(rig.batch(Direction::Offload, &[(0, 0, 10)])).is_err());
}

#[test]
fn refused_pinning_names_the_driver_s_reason() {
    let rig = rig(quiet());
    rig.fake.inject(Call::RegisterHost, When::AfterBytes(PAGE as u64), Status::OUT_OF_MEMORY);
    let memory = Memory::new(4, 0);
    // SAFETY: the memory lives to the end of the test, and is unregistered below.
    unsafe { rig.engine.register(memory.address(), PAGE) }.unwrap();
    // SAFETY: as above.
    let error = unsafe { rig.engine.register(memory.address() + PAGE, PAGE) }.unwrap_err();
    assert_eq!(error.to_string(), "cuMemHostRegister failed: CUDA_ERROR_OUT_OF_MEMORY (2)");
    rig.engine.unregister(memory.address());
}

/// A stream that cannot be waited for, or that would record our work into a graph, is refused before anything happens.
#[test]
fn streams_that_cannot_be_used_are_refused() {
    let rig = rig(quiet());
    let other = FakeDevice::new(2).engine_stream();
    let capturing = rig.fake.engine_stream();
    rig.fake.set_capturing(capturing, true);
    let ticket = rig.submit(rig.batch(Direction::Load, &[(0, 0, 10)])).unwrap();
    for stream in [other, capturing] {
        let fence = rig.engine.fence(stream.0).unwrap_err();
        let order = rig.engine.order_after(ticket, stream.0).unwrap_err();
        assert!(matches!(fence, CopyFailure::Driver { .. }) && fence == order, "{fence} {order}");
    }
    let batch = CopyBatch { fence: Some(Fence::new(1u8)), ..rig.batch(Direction::Load, &[(0, 0, 10)]) };
    assert_eq!(rig.submit(batch).unwrap_err().reason(), "the fence is one of another copy engine");
}

#[test]
fn dropping_the_engine_waits_for_its_copies() {
    let Rig { engine, fake, host, device } = rig(quiet());
    let piece = Piece { src: host.address(), dst: device.address(), bytes: 9000 };
    let (pieces, direction) = (vec![piece], Direction::Load);
    let batch = CopyBatch { pieces, direction, fence: None, streaming: false, urgent: true };
    // SAFETY: the memory outlives the engine.
    unsafe { engine.submit(batch) }.unwrap();
    drop(engine);
    assert_eq!(fake.pending(), 0);
    assert_eq!(device.read(0, 9000), host.read(0, 9000));
    fake.remove_device_memory(device.address());
    assert_eq!(fake.settle(), Vec::<String>::new());
}

/// The end of a load is seen too late to tell its time, so the engine says what it measured at the start.
#[test]
fn the_time_of_a_batch_follows_from_what_was_measured() {
    for (calibrate, path) in [(true, None), (true, Some(CopyPath::Dma)), (false, None)] {
        let rig = rig(CudaCopyConfig { calibrate, path, ..CudaCopyConfig::default() });
        let pieces = (0..16).map(|i| Piece { src: 0, dst: i << 20, bytes: 4 << 10 }).collect();
        let batch =
            CopyBatch { pieces, direction: Direction::Load, fence: None, streaming: false, urgent: true };
        let bytes = batch.bytes() as f64;
        let rates = rig.engine.choice().rates().iter();
        let here = rates.filter(|rate| (rate.piece_bytes, rate.count) == (4 << 10, 16));
        let times: Vec<_> = here
            .filter(|rate| rate.direction == Direction::Load && path.is_none_or(|path| rate.path == path))
            .map(|rate| bytes / rate.bytes_per_second)
            .collect();
        let expected = rig.engine.expected_time(&batch).map(|time| time.as_secs_f64());
        assert_eq!(expected.is_some(), calibrate);
        assert!(expected.is_none_or(|time| times.iter().any(|one| (time / one - 1.0).abs() < 1e-3)));
    }
}
