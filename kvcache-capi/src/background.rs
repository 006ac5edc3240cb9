//! Work that a cache does on threads of its own, by ticket.
//!
//! The work is a call that blocks, such as a get that asks L2. Its outcome is a value that is polled: the first look that
//! sees the end frees the ticket. A bounded number of tickets is out at a time, and threads are started with the first.
//! `tests/background_loom.rs` tries every interleaving of what is here.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::time::{Duration, Instant};

use super::defect::{Defect, broken};
use super::event_fd::EventFd;
use super::status::Failure;
use super::status::kvc_status::{KVC_BUSY, KVC_CANCELLED, KVC_SYSTEM};
use super::sync::thread::{self, JoinHandle};
use super::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// What a piece of work has made: a number of blocks.
pub(crate) type Outcome = Result<usize, Failure>;

/// The threads of one cache, and what they have to do.
pub(crate) struct Background {
    shared: Arc<Shared>,
    threads_max: usize,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

struct Shared {
    state: Mutex<State>,
    /// There is something to do, or nothing any more.
    work: Condvar,
    /// A ticket has ended.
    ended: Condvar,
    event: EventFd,
    tickets_max: usize,
    defect: Arc<Defect>,
}

#[derive(Default)]
struct State {
    queue: VecDeque<(u64, Work)>,
    /// Every ticket that is out: its outcome, if it has ended.
    tickets: HashMap<u64, Option<Outcome>>,
    /// Those that have ended and were not listed yet.
    unlisted: VecDeque<u64>,
    last: u64,
    is_closing: bool,
}

type Work = Box<dyn FnOnce() -> Outcome + Send>;

/// Where a ticket stands.
pub(crate) enum Progress {
    Pending,
    Ended(Outcome),
    Unknown,
}

impl Background {
    /// Nothing to do yet, and no thread.
    pub(crate) fn new(threads_max: usize, tickets_max: usize) -> io::Result<Self> {
        let (state, work, ended) = (Mutex::default(), Condvar::new(), Condvar::new());
        let defect = Arc::new(Defect::default());
        let shared = Shared { state, work, ended, event: EventFd::new()?, tickets_max, defect };
        Ok(Self { shared: Arc::new(shared), threads_max: threads_max.max(1), threads: Mutex::default() })
    }

    /// Where panics of the work are noted. Where one was, work that has not begun does not begin.
    pub(crate) fn defect(&self) -> Arc<Defect> {
        Arc::clone(&self.shared.defect)
    }

    /// Accepts work, or says why not: nothing has begun then.
    pub(crate) fn submit(&self, work: impl FnOnce() -> Outcome + Send + 'static) -> Result<u64, Failure> {
        self.start_thread()?;
        let mut state = self.shared.state();
        if state.is_closing {
            return Err(cancelled());
        }
        if state.tickets.len() >= self.shared.tickets_max {
            return Err(Failure::new(
                KVC_BUSY,
                format!(
                    "{} tickets are out, as many as \"async_tickets\" allows: poll until some have ended",
                    state.tickets.len()
                ),
            ));
        }
        state.last += 1;
        let ticket = state.last;
        state.tickets.insert(ticket, None);
        state.queue.push_back((ticket, Box::new(work)));
        drop(state);
        self.shared.work.notify_one();
        Ok(ticket)
    }

    /// One more thread, as long as there are fewer than allowed. Without any the work could never be done.
    fn start_thread(&self) -> Result<(), Failure> {
        let mut threads = lock(&self.threads);
        if threads.len() >= self.threads_max || self.shared.state().is_closing {
            return Ok(());
        }
        let shared = self.shared.clone();
        let name = format!("kvc-async-{}", threads.len());
        match thread::Builder::new().name(name).spawn(move || shared.run()) {
            Ok(thread) => threads.push(thread),
            Err(error) if threads.is_empty() => {
                let text = format!("cannot start a thread: {error}; raise the limit of threads");
                return Err(Failure::new(KVC_SYSTEM, text));
            }
            Err(error) => log::warn!("{} threads work in the background, not more: {error}", threads.len()),
        }
        Ok(())
    }

    /// Where a ticket stands; waits for its end until `give_up`.
    pub(crate) fn wait(&self, ticket: u64, give_up: Instant) -> Progress {
        let mut state = self.shared.state();
        loop {
            match state.tickets.get_mut(&ticket) {
                None => return Progress::Unknown,
                Some(outcome) => {
                    if let Some(outcome) = outcome.take() {
                        state.tickets.remove(&ticket);
                        // Few are: those that have ended since the last list.
                        state.unlisted.retain(|unlisted| *unlisted != ticket);
                        return Progress::Ended(outcome);
                    }
                }
            }
            let left = give_up.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Progress::Pending;
            }
            let waited = self.shared.ended.wait_timeout(state, left);
            (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Tickets that have ended, each listed once, oldest end first.
    pub(crate) fn list_ended(&self, places: &mut [u64]) -> usize {
        let mut state = self.shared.state();
        let count = state.unlisted.len().min(places.len());
        for (place, ticket) in places.iter_mut().zip(state.unlisted.drain(..count)) {
            *place = ticket;
        }
        if !state.unlisted.is_empty() {
            // Whoever read the event before this call would not hear of the rest.
            self.shared.event.set();
        }
        count
    }

    /// Readable when a ticket has ended.
    pub(crate) fn event_fd(&self) -> i32 {
        self.shared.event.number()
    }

    /// Ends everything: what has not begun is cancelled, what has is waited for. Nothing is accepted from now on.
    pub(crate) fn close(&self) {
        {
            let mut state = self.shared.state();
            state.is_closing = true;
            for (ticket, _) in std::mem::take(&mut state.queue) {
                state.tickets.insert(ticket, Some(Err(cancelled())));
                state.unlisted.push_back(ticket);
            }
        }
        self.shared.event.set();
        self.shared.work.notify_all();
        self.shared.ended.notify_all();
        let threads = std::mem::take(&mut *lock(&self.threads));
        for thread in threads {
            // Its panics are caught where the work is done.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn run(&self) {
        let mut state = self.state();
        loop {
            let Some((ticket, work)) = state.queue.pop_front() else {
                if state.is_closing {
                    return;
                }
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            drop(state);
            // Before the outcome is told: whoever has heard of the defect finds nothing that goes on.
            let outcome = if self.defect.is_noted() { Err(broken("cache")) } else { self.defect.catch(work) };
            state = self.state();
            state.tickets.insert(ticket, Some(outcome));
            state.unlisted.push_back(ticket);
            self.event.set();
            self.ended.notify_all();
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.close();
    }
}

/// What is behind a lock here is whole at every moment, so that a panic leaves nothing half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The time at which a wait of `timeout_ms` milliseconds ends.
pub(crate) fn deadline(timeout_ms: u64) -> Instant {
    // A year is for ever, and any clock can hold it.
    Instant::now() + Duration::from_millis(timeout_ms.min(365 * 24 * 3_600_000))
}

pub(crate) fn cancelled() -> Failure {
    Failure::new(KVC_CANCELLED, "the cache was closed before this began")
}
