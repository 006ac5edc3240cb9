use std::sync::atomic::AtomicUsize;

use proptest::prelude::*;

use super::*;
use crate::copy_engine::{Direction, Fence, Piece};

const LONG: Duration = Duration::from_secs(20);

fn engine(threads: usize, chunk_bytes: usize) -> HostCopyEngine {
    HostCopyEngine::new(HostCopyConfig { threads, chunk_bytes, nice: 5, ..HostCopyConfig::default() })
        .unwrap()
}

/// Source and destination that live as long as the test, and the batch that copies between them.
struct Buffers {
    src: Vec<u8>,
    dst: Vec<u8>,
}

impl Buffers {
    fn new(bytes: usize) -> Self {
        let src = (0..bytes).map(|index| (index * 31 + index / 251) as u8).collect();
        Buffers { src, dst: vec![0xEE; bytes] }
    }

    /// The whole buffer in pieces of `piece_bytes`.
    fn batch(&mut self, piece_bytes: usize, streaming: bool) -> CopyBatch {
        let (src, dst) = (self.src.as_ptr() as usize, self.dst.as_mut_ptr() as usize);
        let pieces = (0..self.src.len())
            .step_by(piece_bytes)
            .map(|at| Piece { src: src + at, dst: dst + at, bytes: piece_bytes.min(self.src.len() - at) })
            .collect();
        CopyBatch { pieces, direction: Direction::Offload, fence: None, streaming, urgent: false }
    }
}

fn submit(engine: &HostCopyEngine, batch: CopyBatch) -> Ticket {
    // SAFETY: every test keeps its buffers until the batch's end, or joins the engine before it drops them.
    unsafe { engine.submit(batch) }.unwrap()
}

#[test]
fn a_caller_alone_completes_its_batch_without_pool_threads() {
    let engine = engine(0, 1000);
    let mut buffers = Buffers::new(10_000);
    let ticket = submit(&engine, buffers.batch(3000, false));
    assert_eq!(engine.poll(ticket), CopyState::Pending);
    assert_eq!(engine.in_flight(), InFlight { batches: 1, bytes: 10_000 });
    assert_eq!(engine.wait(ticket, LONG), CopyState::Done);
    assert_eq!(buffers.src, buffers.dst);
    assert_eq!(engine.in_flight(), InFlight::default());
}

#[test]
fn the_end_is_reported_once() {
    let engine = engine(0, 64);
    let mut buffers = Buffers::new(100);
    let ticket = submit(&engine, buffers.batch(100, false));
    assert_eq!(engine.wait(ticket, LONG), CopyState::Done);
    let unknown = CopyState::Failed(CopyFailure::UnknownTicket(ticket));
    assert_eq!(engine.poll(ticket), unknown);
    assert_eq!(engine.wait(ticket, LONG), unknown);
}

#[test]
fn help_copies_the_oldest_batch_first_and_keeps_to_its_budget() {
    let engine = engine(0, 100);
    let (mut first, mut second) = (Buffers::new(1000), Buffers::new(1000));
    let older = submit(&engine, first.batch(1000, false));
    let newer = submit(&engine, second.batch(1000, false));
    assert_eq!(engine.help(250), 300);
    assert_eq!(first.dst[..300], first.src[..300]);
    assert!(first.dst[300..].iter().chain(&second.dst).all(|&byte| byte == 0xEE));
    assert_eq!(engine.help(usize::MAX), 1700);
    assert_eq!(engine.help(usize::MAX), 0);
    assert_eq!((engine.poll(older), engine.poll(newer)), (CopyState::Done, CopyState::Done));
}

#[test]
fn a_load_takes_the_time_of_its_copies_and_not_that_between_them() {
    let engine = engine(0, 100);
    let pause = Duration::from_millis(200);
    let (mut load, mut offload) = (Buffers::new(1000), Buffers::new(1000));
    let ticket = submit(&engine, CopyBatch { direction: Direction::Load, ..load.batch(1000, false) });
    std::thread::sleep(pause);
    engine.help(100);
    std::thread::sleep(pause);
    assert_eq!(engine.take_load_time(), (0, Duration::ZERO), "it has not ended");
    assert_eq!(engine.wait(ticket, LONG), CopyState::Done);
    let ticket = submit(&engine, offload.batch(1000, false));
    assert_eq!(engine.wait(ticket, LONG), CopyState::Done);
    let (bytes, time) = engine.take_load_time();
    assert_eq!(bytes, 1000, "of the load alone");
    assert!(time > Duration::ZERO && time < pause, "{time:?}");
    assert_eq!(engine.take_load_time(), (0, Duration::ZERO), "told once");
}

#[test]
fn beyond_a_bound_the_batch_comes_back_untouched() {
    let config = HostCopyConfig { threads: 0, batches_max: 2, bytes_max: 1500, ..HostCopyConfig::default() };
    let engine = HostCopyEngine::new(config).unwrap();
    let mut buffers: Vec<_> = (0..4).map(|_| Buffers::new(1000)).collect();
    let [first, second, third, fourth] = &mut buffers[..] else { unreachable!() };
    let oversized = first.batch(1, false).pieces.iter().cycle().take(2000).copied().collect();
    let oversized = CopyBatch { pieces: oversized, ..first.batch(1, false) };
    // SAFETY: the buffers live on; what is refused is not copied.
    let full = |batch: CopyBatch| unsafe { engine.submit(batch.clone()) } == Err(Rejected::Full(batch));

    let ticket = submit(&engine, oversized);
    assert!(full(second.batch(10, false)), "bytes are at their bound");
    assert_eq!(engine.wait(ticket, LONG), CopyState::Done);
    let tickets =
        [submit(&engine, second.batch(1000, false)), submit(&engine, third.batch(1000, false).truncated())];
    assert!(full(fourth.batch(1000, false).truncated()), "batches are at their bound");
    engine.help(usize::MAX);
    assert!(full(fourth.batch(1000, false)), "ends that nobody polled hold memory");
    assert!(tickets.iter().all(|&ticket| engine.poll(ticket) == CopyState::Done));
    submit(&engine, fourth.batch(1000, false));
}

impl CopyBatch {
    fn truncated(mut self) -> Self {
        self.pieces[0].bytes = 10;
        self
    }
}

#[test]
fn a_fence_is_refused() {
    let engine = engine(0, 64);
    let batch = CopyBatch {
        pieces: Vec::new(),
        direction: Direction::Load,
        fence: Some(Fence::new(7)),
        streaming: false,
        urgent: false,
    };
    // SAFETY: nothing to copy.
    let refused = unsafe { engine.submit(batch.clone()) };
    assert!(matches!(refused, Err(Rejected::Unsupported(returned, _)) if returned == batch));
}

#[test]
fn empty_batches_and_empty_pieces_end_at_once() {
    let engine = engine(0, 64);
    let empty = CopyBatch {
        pieces: Vec::new(),
        direction: Direction::Load,
        fence: None,
        streaming: true,
        urgent: false,
    };
    let ticket = submit(&engine, empty);
    assert_eq!(engine.in_flight(), InFlight::default());
    assert_eq!(engine.poll(ticket), CopyState::Done);

    let mut buffers = Buffers::new(100);
    let mut batch = buffers.batch(50, false);
    let nothing = Piece { src: 8, dst: 8, bytes: 0 };
    batch.pieces = std::iter::repeat_n(nothing, 2000).chain(batch.pieces).chain([nothing]).collect();
    let ticket = submit(&engine, batch);
    assert_eq!(engine.wait(ticket, LONG), CopyState::Done);
    assert_eq!(buffers.src, buffers.dst);
}

#[test]
fn a_wait_ends_at_its_timeout_while_another_thread_holds_the_last_chunk() {
    let engine = engine(0, 64);
    let mut buffers = Buffers::new(64);
    let ticket = submit(&engine, buffers.batch(64, false));
    assert_eq!(engine.wait(ticket, Duration::ZERO), CopyState::Pending);
    // Claimed but never accounted for: as if its copier was descheduled.
    let job = engine.shared.queues.lock().by_ticket[&ticket.0].clone();
    assert_eq!(job.copy_chunk(64), 64);
    assert_eq!(engine.wait(ticket, Duration::from_millis(20)), CopyState::Pending);
    engine.shared.arrived(&job, 64);
    assert_eq!(engine.poll(ticket), CopyState::Done);
}

#[test]
fn a_waiter_wakes_when_another_thread_finishes() {
    let engine = engine(0, 64);
    let mut buffers = Buffers::new(64);
    let ticket = submit(&engine, buffers.batch(64, false));
    let job = engine.shared.queues.lock().by_ticket[&ticket.0].clone();
    assert_eq!(job.copy_chunk(64), 64);
    let started = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(50));
            engine.shared.arrived(&job, 64);
        });
        assert_eq!(engine.wait(ticket, LONG), CopyState::Done);
    });
    assert!(started.elapsed() < LONG / 2, "woken by the timeout alone");
    assert_eq!(engine.in_flight(), InFlight::default());
}

#[test]
fn forgotten_batches_run_to_their_end_and_leave_nothing() {
    let engine = engine(0, 64);
    let mut buffers = Buffers::new(1000);
    let ticket = submit(&engine, buffers.batch(100, false));
    engine.forget(ticket);
    assert_eq!(engine.in_flight().bytes, 1000);
    engine.help(usize::MAX);
    assert_eq!(engine.in_flight(), InFlight::default());
    assert_eq!(buffers.src, buffers.dst);
    let queues = engine.shared.queues.lock();
    assert!(queues.by_ticket.is_empty() && queues.runnable.is_empty());
}

#[test]
fn dropping_the_engine_joins_its_threads_with_work_queued() {
    let mut buffers = Buffers::new(1 << 20);
    let mut batch = buffers.batch(1 << 20, false);
    // 100 GB take seconds. One thread, so the repeated destination is not shared.
    batch.pieces = vec![batch.pieces[0]; 100_000];
    let engine = engine(1, 64 << 10);
    let ticket = submit(&engine, batch);
    let job = engine.shared.queues.lock().by_ticket[&ticket.0].clone();
    while job.has_more(job.bytes() - 1) {
        std::thread::yield_now();
    }
    let started = Instant::now();
    drop(engine);
    assert!(started.elapsed() < Duration::from_secs(1), "the queue was drained instead of abandoned");
}

/// Four submitters against pools of several sizes: every byte arrives, every batch ends once, nothing is left over.
#[test]
fn many_callers_share_one_engine() {
    for threads in [0, 1, 3] {
        let engine = engine(threads, 700);
        let ended = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for caller in 0..4_usize {
                let (engine, ended) = (&engine, &ended);
                scope.spawn(move || {
                    for round in 0..200 {
                        let mut buffers = Buffers::new(1 + (round * 97 + caller * 13) % 9000);
                        let ticket = submit(engine, buffers.batch(1 + round * 7, round % 2 == 0));
                        if round % 3 == 0 {
                            while engine.poll(ticket) == CopyState::Pending {
                                engine.help(1000);
                                std::thread::yield_now();
                            }
                        } else {
                            assert_eq!(engine.wait(ticket, LONG), CopyState::Done);
                        }
                        ended.fetch_add(1, Ordering::Relaxed);
                        assert_eq!(buffers.src, buffers.dst);
                    }
                });
            }
        });
        assert_eq!(ended.into_inner(), 800);
        assert_eq!(engine.in_flight(), InFlight::default());
        let queues = engine.shared.queues.lock();
        assert!(queues.by_ticket.is_empty() && queues.runnable.is_empty());
    }
}

proptest! {
    /// Any cut of a buffer into pieces, any chunk size: the destination is the source.
    #[test]
    fn any_pieces_and_chunks_copy_every_byte(
        cuts in prop::collection::vec(0..5000_usize, 0..40), chunk_bytes in 1..6000_usize, streaming: bool
    ) {
        let engine = engine(0, chunk_bytes);
        let mut buffers = Buffers::new(cuts.iter().sum());
        let mut batch = buffers.batch(usize::MAX >> 1, streaming);
        if let Some(whole) = batch.pieces.pop() {
            let mut at = 0;
            batch.pieces.extend(cuts.iter().map(|&bytes| {
                at += bytes;
                Piece { src: whole.src + at - bytes, dst: whole.dst + at - bytes, bytes }
            }));
        }
        let ticket = submit(&engine, batch);
        prop_assert_eq!(engine.wait(ticket, LONG), CopyState::Done);
        prop_assert_eq!(buffers.src, buffers.dst);
    }
}
