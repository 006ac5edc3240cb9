//! Work that a cache does on threads of its own, by ticket.
//!
//! The work is a call that blocks, such as a get that asks L2. Its outcome is a value that is polled: the first look that
//! sees the end frees the ticket. A bounded number of tickets is out at a time, and threads are started with the first.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::event_fd::EventFd;
use crate::status::Failure;
use crate::status::kvc_status::{KVC_BUSY, KVC_CANCELLED, KVC_INTERNAL, KVC_SYSTEM};

/// What a piece of work has made: a number of blocks.
type Outcome = Result<usize, Failure>;

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
        let shared = Shared { state, work, ended, event: EventFd::new()?, tickets_max };
        Ok(Self { shared: Arc::new(shared), threads_max: threads_max.max(1), threads: Mutex::default() })
    }

    /// Accepts work, or says why not: nothing has begun then.
    pub(crate) fn submit(&self, work: impl FnOnce() -> Outcome + Send + 'static) -> Result<u64, Failure> {
        self.start_thread()?;
        let mut state = self.shared.state.lock();
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
        let mut threads = self.threads.lock();
        if threads.len() >= self.threads_max || self.shared.state.lock().is_closing {
            return Ok(());
        }
        let shared = self.shared.clone();
        let name = format!("kvc-async-{}", threads.len());
        match std::thread::Builder::new().name(name).spawn(move || shared.run()) {
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
        let mut state = self.shared.state.lock();
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
            if Instant::now() >= give_up {
                return Progress::Pending;
            }
            self.shared.ended.wait_until(&mut state, give_up);
        }
    }

    /// Tickets that have ended, each listed once, oldest end first.
    pub(crate) fn list_ended(&self, places: &mut [u64]) -> usize {
        let mut state = self.shared.state.lock();
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
            let mut state = self.shared.state.lock();
            state.is_closing = true;
            for (ticket, _) in std::mem::take(&mut state.queue) {
                state.tickets.insert(ticket, Some(Err(cancelled())));
                state.unlisted.push_back(ticket);
            }
        }
        self.shared.event.set();
        self.shared.work.notify_all();
        self.shared.ended.notify_all();
        for thread in std::mem::take(&mut *self.threads.lock()) {
            // Its panics are caught where the work is done.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn run(&self) {
        let mut state = self.state.lock();
        loop {
            let Some((ticket, work)) = state.queue.pop_front() else {
                if state.is_closing {
                    return;
                }
                self.work.wait(&mut state);
                continue;
            };
            drop(state);
            let outcome = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
                std::mem::forget(panic);
                Err(Failure::new(KVC_INTERNAL, "a defect of this library was caught, please report it"))
            });
            state = self.state.lock();
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

/// The time at which a wait of `timeout_ms` milliseconds ends.
pub(crate) fn deadline(timeout_ms: u64) -> Instant {
    // A year is for ever, and any clock can hold it.
    Instant::now() + Duration::from_millis(timeout_ms.min(365 * 24 * 3_600_000))
}

fn cancelled() -> Failure {
    Failure::new(KVC_CANCELLED, "the cache was closed before this began")
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn ended(background: &Background, ticket: u64) -> Outcome {
        match background.wait(ticket, deadline(10_000)) {
            Progress::Ended(outcome) => outcome,
            Progress::Pending => panic!("ticket {ticket} is pending"),
            Progress::Unknown => panic!("ticket {ticket} is unknown"),
        }
    }

    #[test]
    fn an_outcome_is_told_once() {
        let background = Background::new(2, 8).unwrap();
        let ticket = background.submit(|| Ok(7)).unwrap();
        assert_eq!(ended(&background, ticket).unwrap(), 7);
        assert!(matches!(background.wait(ticket, Instant::now()), Progress::Unknown));
        assert_eq!(background.list_ended(&mut [0; 4]), 0, "what was seen is not listed");
    }

    /// As many as allowed are out, seen or not; what waits is pending, and ends are listed in their order.
    #[test]
    fn tickets_are_bounded_and_listed() {
        let background = Background::new(1, 2).unwrap();
        let (go, waiting) = mpsc::channel::<()>();
        let first = background.submit(move || waiting.recv().map(|()| 1).map_err(|_| cancelled())).unwrap();
        let second = background.submit(|| Ok(2)).unwrap();
        assert_eq!(background.submit(|| Ok(3)).unwrap_err().status, KVC_BUSY);
        assert!(matches!(background.wait(first, Instant::now()), Progress::Pending));
        go.send(()).unwrap();
        assert_eq!(ended(&background, second).unwrap(), 2);
        let mut places = [0; 4];
        assert_eq!(background.list_ended(&mut places), 1);
        assert_eq!(places[0], first);
        assert!(background.submit(|| Ok(3)).unwrap() > second);
        assert_eq!(ended(&background, first).unwrap(), 1);
    }

    #[test]
    fn closing_cancels_what_has_not_begun_and_waits_for_the_rest() {
        let background = Background::new(1, 8).unwrap();
        let (began, has_begun) = mpsc::channel();
        let (go, waiting) = mpsc::channel::<()>();
        let running = background
            .submit(move || {
                began.send(()).map_err(|_| cancelled())?;
                waiting.recv().map(|()| 1).map_err(|_| cancelled())
            })
            .unwrap();
        let queued = background.submit(|| Ok(2)).unwrap();
        has_begun.recv().unwrap();
        std::thread::scope(|scope| {
            let closing = scope.spawn(|| background.close());
            assert_eq!(ended(&background, queued).unwrap_err().status, KVC_CANCELLED);
            assert!(!closing.is_finished(), "it waits for what has begun");
            go.send(()).unwrap();
        });
        assert_eq!(ended(&background, running).unwrap(), 1);
        assert_eq!(background.submit(|| Ok(3)).unwrap_err().status, KVC_CANCELLED);
    }

    /// A program that has read the event and has too few places is woken again for the rest.
    #[test]
    fn what_did_not_fit_a_list_is_heard_of_again() {
        let background = Background::new(1, 8).unwrap();
        for number in 0..3 {
            background.submit(move || Ok(number)).unwrap();
        }
        while background.shared.state.lock().unlisted.len() < 3 {
            std::thread::yield_now();
        }
        let is_set = || {
            let mut events = 0u64;
            // SAFETY: eight bytes of a number that lives through the call.
            unsafe { libc::read(background.event_fd(), (&raw mut events).cast(), 8) == 8 }
        };
        assert!(is_set() && !is_set());
        assert_eq!(background.list_ended(&mut [0; 2]), 2);
        assert!(is_set(), "one is left");
        assert_eq!(background.list_ended(&mut [0; 2]), 1);
        assert!(!is_set(), "none is left");
    }

    #[test]
    fn a_panic_is_an_outcome() {
        let background = Background::new(1, 8).unwrap();
        let ticket = background.submit(|| panic!("planted")).unwrap();
        assert_eq!(ended(&background, ticket).unwrap_err().status, KVC_INTERNAL);
        let next = background.submit(|| Ok(1)).unwrap();
        assert_eq!(ended(&background, next).unwrap(), 1, "the thread lives on");
    }
}
