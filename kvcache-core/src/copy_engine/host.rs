//! Copies with the host's CPUs: a small fixed pool of threads, and the callers who wait.
//!
//! The engine's own compute threads share the cores, so the pool must not fight them: it is small (it may be empty), its
//! threads may be bound to given CPUs and niced, and idle ones sleep. A batch is not split when it is submitted;
//! whoever works on it claims the next chunk under the batch's own lock and copies with no lock held. That keeps
//! `submit` at a queue push and at most one wake-up; a thread that wakes and finds more chunks than it takes wakes the next.

mod job;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::{CopyBatch, CopyEngine, CopyFailure, CopyState, InFlight, Rejected, Ticket};
use crate::thread_placement;
use job::Job;

/// How a [`HostCopyEngine`] is built.
#[derive(Clone, Debug)]
pub struct HostCopyConfig {
    /// Threads of the pool. With zero, copies are performed by callers of `wait` and `help` only.
    pub threads: usize,
    /// CPUs that the pool's threads may run on; empty means wherever the process may. Best effort: a CPU that the
    /// process may not use leaves the thread where it was.
    pub cpus: Vec<usize>,
    /// Niceness of the pool's threads, 0 to 19. Best effort.
    pub nice: i32,
    /// Bytes that are claimed at once. 512 KiB take about 40 us: short against a step, long against a claim.
    pub chunk_bytes: usize,
    /// Batches accepted and not yet reported, beyond which `submit` answers full.
    pub batches_max: usize,
    /// Bytes in flight beyond which `submit` answers full, unless nothing is in flight.
    pub bytes_max: usize,
}

impl Default for HostCopyConfig {
    fn default() -> Self {
        HostCopyConfig {
            threads: 1,
            cpus: Vec::new(),
            nice: 0,
            chunk_bytes: 512 << 10,
            batches_max: 4096,
            bytes_max: 4 << 30,
        }
    }
}

/// The [`CopyEngine`] of the host. See the module's head for how it works.
///
/// Dropping it abandons chunks that are not claimed yet and joins the pool's threads, which takes at most the time of
/// one chunk.
pub struct HostCopyEngine {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// What the pool's threads and the callers share.
struct Shared {
    queues: Mutex<Queues>,
    /// Pool threads sleep here until a batch is queued.
    work: Condvar,
    /// Waiters sleep here until a batch ends.
    ended: Condvar,
    /// Set once, at drop: threads leave after their current chunk. Relaxed: it publishes nothing else.
    stopping: AtomicBool,
    chunk_bytes: usize,
    batches_max: usize,
    bytes_max: usize,
}

/// Everything under the engine's lock. It is held for queue operations only, never while copying.
#[derive(Default)]
struct Queues {
    /// Batches that may have unclaimed chunks, oldest first.
    runnable: VecDeque<Arc<Job>>,
    /// Every batch whose end was not reported yet.
    by_ticket: HashMap<u64, Arc<Job>>,
    in_flight: InFlight,
    /// Pool threads asleep on `work` and not yet notified.
    idle_threads: usize,
    /// Callers asleep on `ended`.
    waiters: usize,
    next_ticket: u64,
    /// Loads that have ended since somebody asked, and how long they were being copied.
    loaded: (u64, Duration),
}

impl HostCopyEngine {
    /// Starts the pool.
    ///
    /// # Errors
    ///
    /// Fails when the system refuses a thread; those already started are joined.
    pub fn new(config: HostCopyConfig) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            queues: Mutex::new(Queues::default()),
            work: Condvar::new(),
            ended: Condvar::new(),
            stopping: AtomicBool::new(false),
            chunk_bytes: config.chunk_bytes.max(1),
            batches_max: config.batches_max.max(1),
            bytes_max: config.bytes_max,
        });
        let mut engine = HostCopyEngine { shared, threads: Vec::with_capacity(config.threads) };
        for index in 0..config.threads {
            let shared = Arc::clone(&engine.shared);
            let (cpus, nice) = (config.cpus.clone(), config.nice);
            let thread =
                std::thread::Builder::new().name(format!("kvcache-copy-{index}")).spawn(move || {
                    thread_placement::place(&cpus, nice);
                    shared.run();
                })?;
            engine.threads.push(thread);
        }
        Ok(engine)
    }

    /// Threads in the pool.
    pub fn thread_count(&self) -> usize {
        self.threads.len()
    }
}

impl CopyEngine for HostCopyEngine {
    fn name(&self) -> &'static str {
        "host"
    }

    unsafe fn submit(&self, batch: CopyBatch) -> Result<Ticket, Rejected> {
        if batch.fence.is_some() {
            return Err(Rejected::Unsupported(batch, "the host copy engine has no streams to wait for"));
        }
        let shared = &*self.shared;
        let bytes = batch.bytes();
        let mut queues = shared.queues.lock();
        let too_many_bytes = queues.in_flight.bytes.saturating_add(bytes) > shared.bytes_max;
        // The second count is for forgotten batches: they have no ticket, but are in flight.
        let batches = queues.by_ticket.len().max(queues.in_flight.batches);
        if batches >= shared.batches_max || (too_many_bytes && queues.in_flight.batches > 0) {
            return Err(Rejected::Full(batch));
        }
        let ticket = queues.next_ticket;
        queues.next_ticket += 1;
        // SAFETY: the caller of `submit` keeps the pieces' memory valid and unshared until the batch's end is
        // reported, which are the duties of `Job::new`.
        let job = Arc::new(unsafe { Job::new(ticket, batch, bytes) });
        queues.by_ticket.insert(ticket, Arc::clone(&job));
        if bytes > 0 {
            queues.in_flight.batches += 1;
            queues.in_flight.bytes += bytes;
            queues.runnable.push_back(job);
            shared.wake_one(queues);
        }
        Ok(Ticket(ticket))
    }

    fn poll(&self, ticket: Ticket) -> CopyState {
        self.shared.queues.lock().report(ticket)
    }

    fn wait(&self, ticket: Ticket, timeout: Duration) -> CopyState {
        let shared = &*self.shared;
        let Some(job) = shared.queues.lock().by_ticket.get(&ticket.0).cloned() else {
            return CopyState::Failed(CopyFailure::UnknownTicket(ticket));
        };
        // `None`: so far away that it never comes.
        let deadline = Instant::now().checked_add(timeout);
        let passed = || deadline.is_some_and(|deadline| Instant::now() >= deadline);
        while !passed() && shared.work_on(&job) > 0 {}
        let mut queues = shared.queues.lock();
        loop {
            let state = queues.report(ticket);
            if state.is_finished() || passed() {
                return state;
            }
            queues.waiters += 1;
            match deadline {
                Some(deadline) => drop(shared.ended.wait_until(&mut queues, deadline)),
                None => shared.ended.wait(&mut queues),
            }
            queues.waiters -= 1;
        }
    }

    fn help(&self, budget_bytes: usize) -> usize {
        let mut copied = 0;
        while copied < budget_bytes {
            let Some(job) = self.shared.queues.lock().oldest_runnable() else { break };
            copied += self.shared.work_on(&job);
        }
        copied
    }

    fn forget(&self, ticket: Ticket) {
        let mut queues = self.shared.queues.lock();
        queues.by_ticket.remove(&ticket.0);
    }

    fn in_flight(&self) -> InFlight {
        self.shared.queues.lock().in_flight
    }

    fn take_load_time(&self) -> (u64, Duration) {
        std::mem::take(&mut self.shared.queues.lock().loaded)
    }
}

impl Drop for HostCopyEngine {
    fn drop(&mut self) {
        {
            // Under the lock, so that no thread is between its look at the flag and its sleep.
            let _queues = self.shared.queues.lock();
            self.shared.stopping.store(true, Ordering::Relaxed);
            self.shared.work.notify_all();
        }
        for thread in self.threads.drain(..) {
            // A panic in a copy thread was already printed by its hook; there is nothing to add to it here.
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// The life of a pool thread.
    fn run(&self) {
        let mut queues = self.queues.lock();
        while !self.stopping.load(Ordering::Relaxed) {
            match queues.oldest_runnable() {
                Some(job) => {
                    // More than one chunk is left, or more than one batch: the next idle thread is welcome.
                    if queues.idle_threads > 0
                        && (queues.runnable.len() > 1 || job.has_more(self.chunk_bytes))
                    {
                        self.wake_one(queues);
                    } else {
                        drop(queues);
                    }
                    let mut copied = usize::MAX;
                    while copied > 0 && !self.stopping.load(Ordering::Relaxed) {
                        copied = self.work_on(&job);
                    }
                    queues = self.queues.lock();
                }
                None => {
                    queues.idle_threads += 1;
                    self.work.wait(&mut queues);
                }
            }
        }
    }

    /// Wakes one idle pool thread, if there is any, after letting go of the lock that it needs.
    fn wake_one(&self, mut queues: parking_lot::MutexGuard<'_, Queues>) {
        if queues.idle_threads > 0 {
            // Counted down by the waker: a second submit before the thread runs then wakes another one.
            queues.idle_threads -= 1;
            drop(queues);
            self.work.notify_one();
        }
    }

    /// Claims and copies one chunk of `job`; zero when nothing is left to claim.
    fn work_on(&self, job: &Job) -> usize {
        let copied = job.copy_chunk(self.chunk_bytes);
        if copied > 0 {
            self.arrived(job, copied);
        }
        copied
    }

    /// `copied` bytes of `job` have arrived; ends it if they were the last.
    fn arrived(&self, job: &Job, copied: usize) {
        if !job.account(copied) {
            return;
        }
        let mut queues = self.queues.lock();
        queues.in_flight.batches -= 1;
        queues.in_flight.bytes -= job.bytes();
        if let Some(time) = job.load_time() {
            queues.loaded.0 += job.bytes() as u64;
            queues.loaded.1 += time;
        }
        // Still queued when its waiter copied all of it.
        if let Some(index) = queues.runnable.iter().position(|queued| queued.ticket() == job.ticket()) {
            queues.runnable.remove(index);
        }
        // Not before: whoever is told of the end may ask what is in flight, or submit in its place.
        job.end();
        if queues.waiters > 0 {
            self.ended.notify_all();
        }
    }
}

impl Queues {
    /// The oldest batch with unclaimed chunks. Batches whose chunks are all claimed leave the queue here.
    fn oldest_runnable(&mut self) -> Option<Arc<Job>> {
        while let Some(job) = self.runnable.front() {
            if job.has_unclaimed() {
                return Some(Arc::clone(job));
            }
            self.runnable.pop_front();
        }
        None
    }

    fn report(&mut self, ticket: Ticket) -> CopyState {
        match self.by_ticket.get(&ticket.0) {
            None => CopyState::Failed(CopyFailure::UnknownTicket(ticket)),
            Some(job) if job.is_done() => {
                self.by_ticket.remove(&ticket.0);
                CopyState::Done
            }
            Some(_) => CopyState::Pending,
        }
    }
}

#[cfg(test)]
#[path = "host_tests.rs"]
mod tests;
