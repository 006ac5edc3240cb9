//! A CUDA device that is not there, for tests and drills: as lazy as a GPU may be, and stricter than one.
//!
//! On a GPU a missing wait is a wrong byte once a week. [`FakeDevice`] implements [`Driver`] on the CPU and makes such
//! mistakes show at once:
//!
//! - **Lazy.** Nothing runs when it is submitted. Work runs when somebody looks (an event is queried or synchronised, or a
//!   test says [`advance`](FakeDevice::advance)), in an order that a seed picks from all that CUDA allows: any stream's next
//!   operation, copies in parts, parts of several streams in turns. Events are CUDA's: a wait is for what the event stood
//!   for when the wait was submitted.
//! - **Strict.** What no GPU reports is a *violation*, collected as text: memory or descriptor arrays that go away or
//!   change before the end of the work that needs them, overlapping destinations, ranges that are partly somewhere else,
//!   host memory that is not pinned where it must be, the CPU's address of pinned memory given to a kernel, handles that are
//!   none.
//! - **Races.** Two accesses to the same bytes that no stream order, event or query orders are a violation, though all
//!   bytes came out right this time. The engine's own work takes part through [`engine_work`](FakeDevice::engine_work), the
//!   CPU's through [`host_reads`](FakeDevice::host_reads) and [`host_writes`](FakeDevice::host_writes). All threads of the
//!   host count as one.
//! - **Faults.** Calls fail when they are told to ([`inject`](FakeDevice::inject)); [`Call::Execute`] fails work that was
//!   accepted, which loses the context.
//!
//! # Memory
//!
//! Every address is one of the host's. [`add_device_memory`](FakeDevice::add_device_memory) declares the engine's tensors as
//! memory of the device; [`Driver::allocate_device`] adds its own. Host memory is pinned by [`Driver::allocate_host`] and
//! [`Driver::register_host`], which as on a GPU takes only what the process may write to; its address for kernels is another number, which nothing but a kernel takes. Whatever else the
//! process has is pageable: a copy of it runs at once, with all that is before it in its stream, and is
//! [counted](FakeDevice::pageable_copies).
//!
//! # Full streams
//!
//! A driver holds the caller whose stream has no room for another operation, until the GPU has come that far. So does the
//! fake where it is given a [depth](FakeOptions::queue_depth), and counts.
//!
//! # An engine on the CPU
//!
//! For a drill of the whole connector: [`FakeOptions::background`] starts a thread that runs what is pending, and
//! [`cpu_engine_stream`](FakeDevice::cpu_engine_stream) is the order of an engine that computes at once, so that it waits
//! where a GPU's stream would.
//!
//! [`Driver`]: crate::driver::Driver
//! [`Driver::allocate_device`]: crate::driver::Driver::allocate_device
//! [`Driver::allocate_host`]: crate::driver::Driver::allocate_host
//! [`Driver::register_host`]: crate::driver::Driver::register_host

mod background;
mod bytes;
mod calls;
mod clock;
mod faults;
mod launches;
mod mappings;
mod memory;
mod operation;
mod options;
mod races;
mod random;
mod ranges;
mod schedule;
mod state;
mod status;
mod streams;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};

use crate::driver::{DeviceInfo, Stream};
use memory::Place;
use operation::{Touched, Work};
use ranges::Ranges;
use state::{Order, State};
use streams::Kind;

pub use faults::When;
pub use options::FakeOptions;
pub use status::{Call, Status};

/// A device without hardware. See the [module documentation](self).
///
/// All methods may be called from any thread; each holds one lock, also while it runs work. Cost is of no concern here: a
/// step is O(what is pending).
pub struct FakeDevice {
    shared: Arc<Shared>,
    info: DeviceInfo,
    batch_copy: bool,
    strict: bool,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    /// Wakes the background thread.
    submitted: Condvar,
}

/// Tells the handles of one fake from those of another.
static SERIAL: AtomicU64 = AtomicU64::new(1);

impl FakeDevice {
    /// One with the defaults: everything supported, nothing fails.
    pub fn new(seed: u64) -> Arc<Self> {
        Self::options().seed(seed).build()
    }

    /// To choose more than the seed.
    pub fn options() -> FakeOptions {
        FakeOptions::default()
    }

    fn with(options: FakeOptions) -> Arc<Self> {
        let FakeOptions { seed, strict, background, batch_copy, queue_depth, device } = options;
        // Relaxed: only that the numbers differ matters.
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let state = Mutex::new(State::new(seed, serial, queue_depth));
        let shared = Arc::new(Shared { state, submitted: Condvar::new() });
        // Without threads there is still polling.
        let thread = background.then(|| background::start(&shared).ok()).flatten();
        Arc::new(Self { shared, info: device, batch_copy, strict, thread })
    }

    /// Declares `base..base + bytes` as memory of the device: an engine's tensor. It must not overlap other memory of the device
    /// or pinned memory.
    pub fn add_device_memory(&self, base: usize, bytes: usize) {
        self.with_state(|state| {
            if let Err(why) = state.memory.declare(base, bytes) {
                state.violation(format!("add_device_memory: {why}"));
            }
        });
    }

    /// Takes a declaration back, with nothing in flight on it.
    pub fn remove_device_memory(&self, base: usize) {
        self.with_state(|state| match state.memory.remove_declared(base) {
            Some(range) => state.release("removal", range),
            None => state.violation(format!("remove_device_memory: nothing was added at {base:#x}")),
        });
    }

    /// A stream of the engine, which only the engine may give back.
    pub fn engine_stream(&self) -> Stream {
        self.with_state(|state| state.streams.create(Kind::Engine))
    }

    /// The order of an engine that computes on the CPU. What is submitted to it has ended when the call returns: a wait runs
    /// what it waits for, a record is complete at once.
    pub fn cpu_engine_stream(&self) -> Stream {
        self.with_state(|state| state.streams.create(Kind::Cpu))
    }

    /// Whether the stream records a CUDA graph: then it takes no other work.
    pub fn set_capturing(&self, stream: Stream, capturing: bool) {
        self.with_state(|state| match state.streams.index_even_if_capturing(stream) {
            Some(index) => state.streams.streams[index].capturing = capturing,
            None => state.violation(format!("set_capturing: there is no such stream: {stream:?}")),
        });
    }

    /// Submits work of the engine: `work` runs when the stream's turn has come and touches the device's or pinned memory of
    /// these ranges. It must not call the device.
    pub fn engine_work(
        &self,
        stream: Stream,
        reads: Vec<Range<usize>>,
        writes: Vec<Range<usize>>,
        work: impl FnOnce() + Send + 'static,
    ) {
        self.with_state(|state| {
            let Ok(index) = state.stream(Call::Execute, stream) else { return };
            let on_cpu = state.streams.streams[index].kind == Kind::Cpu;
            for range in reads.iter().chain(&writes).filter(|range| !range.is_empty()) {
                match state.memory.place(range) {
                    Ok(Place::Device | Place::Pinned) => {}
                    _ if on_cpu => {}
                    Ok(Place::Pageable) => {
                        state.violation(format!("engine work on pageable memory at {:#x}", range.start));
                    }
                    Err(why) => state.violation(format!("engine work: {why}")),
                }
            }
            let touched = Touched { reads: Ranges::new(reads), writes: Ranges::new(writes) };
            if state.lost.is_none() {
                state.submit(index, "engine work", Work::Engine(Box::new(work)), touched, Order::default());
            }
        });
    }

    /// The CPU reads these bytes now. Whoever wrote them must be known to have ended.
    pub fn host_reads(&self, range: Range<usize>) {
        let reads = Ranges::new([range]);
        self.with_state(|state| state.host_access("read", Touched { reads, writes: Ranges::default() }));
    }

    /// The CPU writes these bytes now. Whoever reads or wrote them must be known to have ended.
    pub fn host_writes(&self, range: Range<usize>) {
        let writes = Ranges::new([range]);
        self.with_state(|state| state.host_access("write", Touched { reads: Ranges::default(), writes }));
    }

    /// Runs up to `steps` steps of whatever streams; how many there were to run. An operation takes one step or more.
    pub fn advance(&self, steps: usize) -> usize {
        self.with_state(|state| state.advance(steps))
    }

    /// Runs all that is pending.
    pub fn run_all(&self) {
        self.advance(usize::MAX);
    }

    /// Runs all that is pending; the violations so far.
    pub fn settle(&self) -> Vec<String> {
        self.run_all();
        self.violations()
    }

    /// Operations that were submitted and have not ended.
    pub fn pending(&self) -> usize {
        self.with_state(|state| state.streams.pending().count())
    }

    /// What the program has done wrong so far, the oldest first; the first 1,000 are kept.
    pub fn violations(&self) -> Vec<String> {
        self.shared.state.lock().violations.clone()
    }

    /// Makes calls of one kind fail. Several faults may be injected; the first that fits decides.
    pub fn inject(&self, call: Call, when: When, status: Status) {
        self.with_state(|state| state.faults.inject(call, when, status));
    }

    /// Forgets what was injected. A lost context stays lost.
    pub fn clear_faults(&self) {
        self.with_state(|state| state.faults.clear());
    }

    /// Calls of one kind that were not made to fail.
    pub fn calls(&self, call: Call) -> u64 {
        self.with_state(|state| state.calls.get(&call).copied().unwrap_or(0))
    }

    /// Copies whose host side was not pinned.
    pub fn pageable_copies(&self) -> u64 {
        self.with_state(|state| state.pageable_copies)
    }

    /// Calls that were held since their stream was [full](FakeOptions::queue_depth).
    pub fn blocked_submissions(&self) -> u64 {
        self.with_state(|state| state.blocked_submissions)
    }

    /// A digest of what has run in which order: equal for equal seeds and calls.
    pub fn schedule(&self) -> u64 {
        self.with_state(|state| state.schedule)
    }

    /// A call: the lock, the background thread's notice, and a panic where one is wanted.
    fn with_state<Value>(&self, call: impl FnOnce(&mut State) -> Value) -> Value {
        let mut state = self.shared.state.lock();
        let before = state.submitted;
        let value = call(&mut state);
        if state.submitted > before {
            self.shared.submitted.notify_one();
        }
        // A second panic while one unwinds would end the process.
        let report = self.strict && !std::thread::panicking();
        let found = if report { state.unreported() } else { Vec::new() };
        drop(state);
        assert!(found.is_empty(), "a CUDA program does what it must not: {}", found.join("; "));
        value
    }
}

impl Drop for FakeDevice {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        self.shared.state.lock().stopping = true;
        self.shared.submitted.notify_one();
        // It holds no lock that we need, and a panic of the engine's work has been printed.
        _ = thread.join();
    }
}
