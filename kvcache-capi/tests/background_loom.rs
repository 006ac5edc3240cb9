//! Every interleaving of callers, closers and a thread of the background, by loom. Its waits do not time out: an end that nobody is
//! woken for is a deadlock, which loom reports.

#![expect(clippy::unwrap_used, reason = "tests panic")]

#[path = "../src/background.rs"]
#[allow(dead_code, unreachable_pub)]
mod background;
#[path = "../src/defect.rs"]
#[allow(dead_code, unreachable_pub)]
mod defect;
#[path = "../src/status.rs"]
#[allow(dead_code, unreachable_pub)]
mod status;

mod sync {
    pub(crate) use loom::sync::atomic::{AtomicBool, Ordering};
    pub(crate) use loom::sync::{Arc, Condvar, Mutex, MutexGuard};
    pub(crate) use loom::thread;
    pub(crate) use std::sync::PoisonError;
}

/// The descriptor as something that loom knows, with a call that waits as `poll` does.
mod event_fd {
    use std::cell::RefCell;

    use loom::sync::{Arc, Condvar, Mutex};

    #[derive(Default)]
    pub(crate) struct Readable {
        is_set: Mutex<bool>,
        set: Condvar,
    }

    impl Readable {
        /// Waits until it is readable, and reads it.
        pub(crate) fn read(&self) {
            let mut is_set = self.is_set.lock().unwrap();
            while !*is_set {
                is_set = self.set.wait(is_set).unwrap();
            }
            *is_set = false;
        }
    }

    pub(crate) struct EventFd(Arc<Readable>);

    thread_local! {
        /// What was opened last, by a number that could not be one: a test has one at a time, on one thread of the system.
        static LAST: RefCell<Option<Arc<Readable>>> = const { RefCell::new(None) };
    }

    impl EventFd {
        pub(crate) fn new() -> std::io::Result<Self> {
            let readable = Arc::new(Readable::default());
            LAST.with(|last| last.replace(Some(readable.clone())));
            Ok(Self(readable))
        }

        pub(crate) fn set(&self) {
            *self.0.is_set.lock().unwrap() = true;
            self.0.set.notify_all();
        }

        pub(crate) fn number(&self) -> i32 {
            -1
        }
    }

    /// The descriptor that was opened last.
    pub(crate) fn opened() -> Arc<Readable> {
        LAST.with(RefCell::take).expect("one was opened, and taken once")
    }
}

use background::{Background, Progress, deadline};
use event_fd::Readable;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;
use status::kvc_status::{KVC_CANCELLED, KVC_INTERNAL};

const FOR_EVER_MS: u64 = 1_000_000_000;

fn opened() -> (Arc<Background>, Arc<Readable>) {
    let Ok(background) = Background::new(1, 4) else { unreachable!("there is no descriptor to be refused") };
    (Arc::new(background), event_fd::opened())
}

fn submit(background: &Background, work: impl FnOnce() -> usize + Send + 'static) -> u64 {
    let Ok(ticket) = background.submit(|| Ok(work())) else {
        unreachable!("few are out, and it is not closed")
    };
    ticket
}

/// The outcome of a ticket, or what ended it.
fn ended(background: &Background, ticket: u64) -> Result<usize, status::kvc_status> {
    match background.wait(ticket, deadline(FOR_EVER_MS)) {
        Progress::Ended(outcome) => outcome.map_err(|failure| failure.status),
        Progress::Pending => panic!("ticket {ticket} is pending"),
        Progress::Unknown => panic!("ticket {ticket} is unknown"),
    }
}

/// Two threads wait for work of two, each for its own.
#[test]
fn whoever_waits_is_woken() {
    loom::model(|| {
        let (background, _) = opened();
        let first = submit(&background, || 1);
        let other = thread::spawn({
            let background = background.clone();
            move || {
                let second = submit(&background, || 2);
                assert_eq!(ended(&background, second), Ok(2));
            }
        });
        assert_eq!(ended(&background, first), Ok(1));
        other.join().unwrap();
    });
}

/// Closing meanwhile: what had begun has its outcome, the rest is cancelled, nothing is done after the end, and nobody waits on.
#[test]
fn closing_ends_every_ticket() {
    loom::model(|| {
        let (background, _) = opened();
        let done = Arc::new(AtomicUsize::new(0));
        let work = {
            let done = done.clone();
            move || done.fetch_add(1, Ordering::Relaxed) + 1
        };
        let ticket = submit(&background, work);
        let waiter = thread::spawn({
            let background = background.clone();
            move || ended(&background, ticket)
        });
        background.close();
        let before = done.load(Ordering::Relaxed);
        let outcome = waiter.join().unwrap();
        assert_eq!(done.load(Ordering::Relaxed), before, "done after the end");
        assert_eq!(outcome, if before == 1 { Ok(1) } else { Err(KVC_CANCELLED) });
    });
}

/// A program that waits for its descriptor, reads it and then asks for a list hears of every end, however short its lists are.
#[test]
fn whoever_reads_the_event_first_misses_no_end() {
    loom::model(|| {
        let (background, readable) = opened();
        let tickets = [submit(&background, || 1), submit(&background, || 2)];
        let mut listed = Vec::new();
        while listed.len() < tickets.len() {
            readable.read();
            let mut places = [0];
            let count = background.list_ended(&mut places);
            listed.extend_from_slice(&places[..count]);
        }
        assert_eq!(listed, tickets);
        assert_eq!(tickets.map(|ticket| ended(&background, ticket)), [Ok(1), Ok(2)]);
    });
}

/// What comes after a panic is not done, and whoever has heard of it finds the defect noted.
#[test]
fn nothing_begins_after_a_panic() {
    loom::model(|| {
        let (background, _) = opened();
        // Without the words of a panic on the screen for every interleaving.
        let panics = submit(&background, || std::panic::resume_unwind(Box::new("planted")));
        let next = submit(&background, || 2);
        let other = thread::spawn({
            let background = background.clone();
            move || ended(&background, next)
        });
        assert_eq!(ended(&background, panics), Err(KVC_INTERNAL));
        assert!(background.defect().is_noted());
        assert_eq!(other.join().unwrap(), Err(KVC_INTERNAL));
    });
}
