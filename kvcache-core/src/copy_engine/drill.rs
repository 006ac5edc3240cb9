//! A copy engine that is slow or fails on purpose, for drills and end-to-end tests.
//!
//! It performs every copy through the engine that it wraps, but one batch after the other on its own thread, at a given
//! rate, and fails as many loads as it is told to. Since bytes move when their time has come and not before, a caller
//! that does not wait reads what was there before. It logs when each batch was copied.

use std::collections::{HashMap, VecDeque};
use std::str::FromStr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::{CopyBatch, CopyEngine, CopyFailure, CopyState, Direction, Fence, InFlight, Rejected, Ticket};

/// What to break.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Drill {
    /// Copies take at least this long.
    pub bytes_per_second: Option<f64>,
    /// The first so many load batches fail without copying anything.
    pub fail_loads: u32,
    /// Offload batches fail likewise.
    pub fail_offloads: u32,
    /// Loads are claimed and not performed (by the Store).
    pub claim_hits_load_nothing: bool,
    /// Log batches and layer hooks.
    pub timeline: bool,
    /// Streams do not wait for copies, as if the waits had been forgotten.
    pub skip_waits: bool,
    /// No more memory than this can be pinned.
    pub pin_bytes_max: Option<usize>,
    /// A CUDA device that is none copies (chosen by whoever makes the copy engine).
    pub fake_cuda: bool,
}

impl Drill {
    /// Whether copies go through a [`DrillEngine`].
    pub fn changes_copies(&self) -> bool {
        *self != Self { fake_cuda: self.fake_cuda, ..Self::default() }
    }
}

/// A drill that is not known.
#[derive(Debug, thiserror::Error)]
#[error(
    "unknown drill {0:?}: use claim_hits_load_nothing, timeline, copy_bytes_per_s=N, fail_loads=N, fail_offloads=N, \
     pin_bytes_max=N, fake_cuda or skip_waits, separated by commas, or leave it out"
)]
pub struct UnknownDrill(String);

impl FromStr for Drill {
    type Err = UnknownDrill;

    fn from_str(text: &str) -> Result<Self, UnknownDrill> {
        let mut drill = Self::default();
        for item in text.split(',').map(str::trim).filter(|item| !item.is_empty()) {
            let unknown = || UnknownDrill(item.to_owned());
            let (name, value) = item.split_once('=').unwrap_or((item, ""));
            match name {
                "claim_hits_load_nothing" if value.is_empty() => drill.claim_hits_load_nothing = true,
                "timeline" if value.is_empty() => drill.timeline = true,
                "skip_waits" if value.is_empty() => drill.skip_waits = true,
                "fake_cuda" if value.is_empty() => drill.fake_cuda = true,
                "copy_bytes_per_s" => {
                    let rate = value.parse::<f64>().ok().filter(|rate| *rate > 0.0);
                    drill.bytes_per_second = Some(rate.ok_or_else(unknown)?);
                }
                "pin_bytes_max" => drill.pin_bytes_max = Some(value.parse().map_err(|_| unknown())?),
                "fail_loads" => drill.fail_loads = value.parse().map_err(|_| unknown())?,
                "fail_offloads" => drill.fail_offloads = value.parse().map_err(|_| unknown())?,
                _ => return Err(unknown()),
            }
        }
        Ok(drill)
    }
}

/// When a batch was copied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Copied {
    /// The batch.
    pub ticket: Ticket,
    /// Its direction.
    pub direction: Direction,
    /// When its turn came.
    pub began: Instant,
    /// When its last byte had arrived.
    pub ended: Instant,
}

/// The engine. See the [module documentation](self).
pub struct DrillEngine {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    inner: Arc<dyn CopyEngine>,
    drill: Drill,
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<(Ticket, CopyBatch)>,
    states: HashMap<Ticket, CopyState>,
    forgotten: Vec<Ticket>,
    log: Vec<Copied>,
    in_flight: InFlight,
    loaded: (u64, Duration),
    next: u64,
    failed: [u32; 2],
    /// What is pinned, by address.
    pinned: HashMap<usize, usize>,
    armed: bool,
    stopping: bool,
}

impl DrillEngine {
    /// Wraps an engine.
    ///
    /// # Errors
    /// If the system refuses a thread.
    pub fn new(inner: Arc<dyn CopyEngine>, drill: Drill) -> std::io::Result<Self> {
        let shared =
            Arc::new(Shared { inner, drill, queue: Mutex::new(Queue::default()), changed: Condvar::new() });
        let worker = Arc::clone(&shared);
        let thread =
            std::thread::Builder::new().name("kvcache-drill".to_owned()).spawn(move || worker.run())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Begins to break things. Before, copies are performed as they should be.
    pub fn arm(&self) {
        self.shared.queue.lock().armed = true;
    }

    /// Every batch copied so far, in order.
    pub fn log(&self) -> Vec<Copied> {
        self.shared.queue.lock().log.clone()
    }
}

impl Shared {
    fn run(&self) {
        let mut queue = self.queue.lock();
        loop {
            let Some((ticket, batch)) = queue.waiting.pop_front() else {
                if queue.stopping {
                    return;
                }
                self.changed.wait(&mut queue);
                continue;
            };
            let armed = queue.armed;
            let (limit, count) = match batch.direction {
                Direction::Load => (self.drill.fail_loads, &mut queue.failed[0]),
                Direction::Offload => (self.drill.fail_offloads, &mut queue.failed[1]),
            };
            let fails = armed && *count < limit;
            *count += u32::from(fails);
            drop(queue);
            let (bytes, direction, began) = (batch.bytes(), batch.direction, Instant::now());
            if let Some(rate) = self.drill.bytes_per_second.filter(|_| armed) {
                std::thread::sleep(Duration::from_secs_f64(bytes as f64 / rate));
            }
            let state = if fails {
                CopyState::Failed(CopyFailure::Other("drill".to_owned()))
            } else {
                self.copy(batch)
            };
            let ended = Instant::now();
            queue = self.queue.lock();
            queue.in_flight.batches -= 1;
            queue.in_flight.bytes -= bytes;
            queue.log.push(Copied { ticket, direction, began, ended });
            // With what the drill adds. An engine that is asked what it expects keeps to that.
            if direction == Direction::Load && state == CopyState::Done && !self.inner.has_streams() {
                queue.loaded.0 += bytes as u64;
                queue.loaded.1 += ended - began;
            }
            match queue.forgotten.iter().position(|forgotten| *forgotten == ticket) {
                Some(position) => drop(queue.forgotten.swap_remove(position)),
                None => drop(queue.states.insert(ticket, state)),
            }
            self.changed.notify_all();
        }
    }

    fn copy(&self, batch: CopyBatch) -> CopyState {
        // SAFETY: the duties of our own `submit` hold until this batch's end is reported, which comes after this.
        match unsafe { self.inner.submit(batch) } {
            Ok(ticket) => loop {
                match self.inner.wait(ticket, Duration::from_secs(1)) {
                    CopyState::Pending => {}
                    state => return state,
                }
            },
            Err(_) => {
                CopyState::Failed(CopyFailure::Other("the wrapped engine rejected the batch".to_owned()))
            }
        }
    }
}

impl CopyEngine for DrillEngine {
    fn name(&self) -> &'static str {
        "drill"
    }

    unsafe fn submit(&self, batch: CopyBatch) -> Result<Ticket, Rejected> {
        let mut queue = self.shared.queue.lock();
        let ticket = Ticket(queue.next);
        queue.next += 1;
        queue.in_flight.batches += 1;
        queue.in_flight.bytes += batch.bytes();
        queue.states.insert(ticket, CopyState::Pending);
        queue.waiting.push_back((ticket, batch));
        self.shared.changed.notify_all();
        Ok(ticket)
    }

    fn poll(&self, ticket: Ticket) -> CopyState {
        let mut queue = self.shared.queue.lock();
        match queue.states.get(&ticket) {
            None => CopyState::Failed(CopyFailure::UnknownTicket(ticket)),
            Some(CopyState::Pending) => CopyState::Pending,
            Some(_) => queue.states.remove(&ticket).unwrap_or(CopyState::Pending),
        }
    }

    fn wait(&self, ticket: Ticket, timeout: Duration) -> CopyState {
        let deadline = Instant::now() + timeout;
        let mut queue = self.shared.queue.lock();
        while queue.states.get(&ticket) == Some(&CopyState::Pending) {
            if self.shared.changed.wait_until(&mut queue, deadline).timed_out() {
                return CopyState::Pending;
            }
        }
        queue.states.remove(&ticket).unwrap_or(CopyState::Failed(CopyFailure::UnknownTicket(ticket)))
    }

    fn forget(&self, ticket: Ticket) {
        let mut queue = self.shared.queue.lock();
        if queue.states.remove(&ticket) == Some(CopyState::Pending) {
            queue.forgotten.push(ticket);
        }
    }

    fn in_flight(&self) -> InFlight {
        self.shared.queue.lock().in_flight
    }

    fn has_streams(&self) -> bool {
        self.shared.inner.has_streams()
    }

    fn fence(&self, stream: u64) -> Result<Fence, CopyFailure> {
        self.shared.inner.fence(stream)
    }

    /// Waits itself: the batch may not have reached the engine that the stream could wait for.
    fn order_after(&self, ticket: Ticket, _stream: u64) -> Result<(), CopyFailure> {
        if self.shared.drill.skip_waits {
            return Ok(());
        }
        let mut queue = self.shared.queue.lock();
        while queue.states.get(&ticket) == Some(&CopyState::Pending) {
            self.shared.changed.wait(&mut queue);
        }
        match queue.states.get(&ticket) {
            Some(CopyState::Failed(failure)) => Err(failure.clone()),
            _ => Ok(()),
        }
    }

    fn take_load_time(&self) -> (u64, Duration) {
        std::mem::take(&mut self.shared.queue.lock().loaded)
    }

    fn expected_time(&self, batch: &CopyBatch) -> Option<Duration> {
        self.shared.inner.expected_time(batch)
    }

    fn batch_bytes(&self) -> usize {
        self.shared.inner.batch_bytes()
    }

    unsafe fn register(&self, base: usize, bytes: usize) -> Result<(), CopyFailure> {
        let mut queue = self.shared.queue.lock();
        let pinned: usize = queue.pinned.values().sum();
        if self.shared.drill.pin_bytes_max.is_some_and(|most| pinned.saturating_add(bytes) > most) {
            return Err(CopyFailure::Other("drill: no more memory can be pinned".to_owned()));
        }
        queue.pinned.insert(base, bytes);
        drop(queue);
        // SAFETY: the caller's duties are the same.
        unsafe { self.shared.inner.register(base, bytes) }
    }

    fn unregister(&self, base: usize) {
        self.shared.queue.lock().pinned.remove(&base);
        self.shared.inner.unregister(base);
    }
}

impl Drop for DrillEngine {
    fn drop(&mut self) {
        self.shared.queue.lock().stopping = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread is its own; there is nothing left to do here.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::copy_engine::{HostCopyConfig, HostCopyEngine, Piece};

    #[test]
    fn drills_are_read_and_unknown_ones_named() {
        let fake: Drill = "fake_cuda".parse().unwrap();
        assert!(fake.fake_cuda && !fake.changes_copies());
        assert!("fake_cuda,skip_waits".parse::<Drill>().unwrap().changes_copies());
        assert_eq!("pin_bytes_max=7".parse::<Drill>().unwrap().pin_bytes_max, Some(7));
        let drill: Drill = "copy_bytes_per_s=1e6, fail_loads=2,timeline".parse().unwrap();
        assert_eq!(
            drill,
            Drill { bytes_per_second: Some(1e6), fail_loads: 2, timeline: true, ..Drill::default() }
        );
        assert!("claim_hits_load_nothing".parse::<Drill>().unwrap().claim_hits_load_nothing);
        for bad in ["explode", "fail_loads=x", "copy_bytes_per_s=0", "timeline=1"] {
            let error = bad.parse::<Drill>().unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("unknown drill {bad:?}: use claim_hits_load_nothing")),
                "{error}"
            );
        }
    }

    #[test]
    fn bytes_move_in_order_and_failed_batches_move_none() {
        let inner = HostCopyEngine::new(HostCopyConfig { threads: 0, ..HostCopyConfig::default() }).unwrap();
        let drill = Drill { fail_loads: 1, bytes_per_second: Some(1e5), ..Drill::default() };
        let engine = DrillEngine::new(Arc::new(inner), drill).unwrap();
        engine.arm();
        let source = vec![7u8; 1000];
        let mut targets = [vec![0u8; 1000], vec![0u8; 1000]];
        let mut tickets = Vec::new();
        for target in &mut targets {
            let piece =
                Piece { src: source.as_ptr() as usize, dst: target.as_mut_ptr() as usize, bytes: 1000 };
            let batch = CopyBatch {
                pieces: vec![piece],
                direction: Direction::Load,
                fence: None,
                streaming: false,
                urgent: false,
            };
            // SAFETY: the vectors live and are left alone until both ends were seen below.
            tickets.push(unsafe { engine.submit(batch) }.unwrap());
        }
        assert!(matches!(
            engine.wait(tickets[0], Duration::from_secs(60)),
            CopyState::Failed(CopyFailure::Other(_))
        ));
        assert_eq!(engine.wait(tickets[1], Duration::from_secs(60)), CopyState::Done);
        let (loaded_bytes, time) = engine.take_load_time();
        assert!(
            loaded_bytes == 1000 && time >= Duration::from_millis(10),
            "as slow as the drill makes it: {time:?}"
        );
        assert_eq!(targets, [vec![0u8; 1000], vec![7u8; 1000]]);
        let log = engine.log();
        assert_eq!(log.iter().map(|copied| copied.ticket).collect::<Vec<_>>(), tickets);
        assert!(log[0].ended <= log[1].began);
        assert_eq!(engine.in_flight(), InFlight::default());
        assert!(matches!(engine.poll(tickets[1]), CopyState::Failed(CopyFailure::UnknownTicket(_))));
    }
}
