//! Takes the ends of transfers to whoever began them.

use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::{Counters, transfers};
use crate::directory::Directory;
use crate::eviction::SlotId;
use crate::remote::{RemoteEnd, RemoteFailure, RemoteKey, RemoteOutcome, RemoteStore};
use crate::store::SlotMemory;

/// How long the thread sleeps when nothing ends; only its own end waits for this.
const WAIT: Duration = Duration::from_millis(50);

enum Route {
    /// To a caller that waits: the call, and the position in it.
    Call(u64, usize),
    /// A slot to be given back, and what it was sent as.
    Demotion(SlotId, RemoteKey),
}

struct Call {
    left: usize,
    outcomes: Vec<RemoteOutcome>,
}

#[derive(Default)]
struct Routes {
    open: HashMap<u64, Route>,
    calls: HashMap<u64, Call>,
    demoting: usize,
    next: u64,
    closing: bool,
}

struct Shared {
    store: Arc<dyn RemoteStore>,
    directory: Arc<Directory>,
    /// Keeps the slots where they are until nothing is on its way any more.
    _memory: Arc<dyn SlotMemory>,
    routes: Mutex<Routes>,
    ended: Condvar,
    counters: Arc<Counters>,
}

pub(super) struct Router {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Router {
    pub(super) fn start(
        store: Arc<dyn RemoteStore>,
        directory: Arc<Directory>,
        memory: Arc<dyn SlotMemory>,
        counters: Arc<Counters>,
    ) -> std::io::Result<Self> {
        let routes = Mutex::default();
        let shared =
            Arc::new(Shared { store, directory, _memory: memory, routes, ended: Condvar::new(), counters });
        let routing = shared.clone();
        let thread =
            std::thread::Builder::new().name("kvcache-l2".to_owned()).spawn(move || routing.run())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Fetches values and waits for all of them: their memory is the caller's again on return.
    pub(super) fn fetch(
        &self,
        names: &[RemoteKey],
        mut places: Vec<&mut [MaybeUninit<u8>]>,
        patience: Duration,
    ) -> Vec<RemoteOutcome> {
        let (call, first) = self.begin_call(names.len());
        // SAFETY: the places are borrowed until this function returns, which is after all ends were polled, and not
        // used before.
        unsafe { transfers::fetch(&*self.shared.store, first, names, &mut places, patience) };
        self.end_call(call)
    }

    /// Deletes values and waits for it.
    pub(super) fn delete(&self, names: &[RemoteKey], patience: Duration) -> Vec<RemoteOutcome> {
        let (call, first) = self.begin_call(names.len());
        transfers::delete(&*self.shared.store, first, names, patience);
        self.end_call(call)
    }

    fn begin_call(&self, count: usize) -> (u64, u64) {
        let mut routes = self.shared.routes.lock();
        let first = routes.next + 1;
        routes.next += count as u64 + 1;
        let call = routes.next;
        let outcomes = vec![RemoteOutcome::Failed(RemoteFailure::Cancelled); count];
        routes.calls.insert(call, Call { left: count, outcomes });
        routes.open.extend((first..).zip((0..count).map(|position| Route::Call(call, position))));
        (call, first)
    }

    fn end_call(&self, call: u64) -> Vec<RemoteOutcome> {
        let mut routes = self.shared.routes.lock();
        // Without a timeout: that every transfer ends a little after its patience is what a remote store promises, and
        // before it has, its memory must not be given back.
        self.shared
            .ended
            .wait_while(&mut routes, |routes| routes.calls.get(&call).is_some_and(|call| call.left > 0));
        routes.calls.remove(&call).map(|call| call.outcomes).unwrap_or_default()
    }

    /// Sends the first `bytes` bytes of each slot, of as many as may be on their way; gives the slots back when they have
    /// ended, and those of the others at once. How many these were.
    pub(super) fn demote(
        &self,
        blocks: &[(SlotId, RemoteKey, usize)],
        bytes: usize,
        demotions_max: usize,
        patience: Duration,
    ) -> usize {
        let (sent, first) = {
            let mut routes = self.shared.routes.lock();
            let sent = blocks.len().min(demotions_max.saturating_sub(routes.demoting));
            let first = routes.next + 1;
            routes.next += sent as u64;
            routes.demoting += sent;
            let demotions = blocks[..sent].iter().map(|(slot, name, _)| Route::Demotion(*slot, *name));
            routes.open.extend((first..).zip(demotions));
            (sent, first)
        };
        let (sent, dropped) = blocks.split_at(sent);
        if !sent.is_empty() {
            let values = sent.iter().map(|(_, name, address)| (*name, *address));
            // SAFETY: the slots are pinned or drained, thus written by nobody, until `route` gives them back at their ends;
            // the memory behind them lives as long as the thread, which outlives all transfers.
            unsafe { transfers::put(&*self.shared.store, first, values, bytes, patience) };
        }
        let dropped: Vec<SlotId> = dropped.iter().map(|(slot, ..)| *slot).collect();
        self.shared.directory.end_load(&dropped);
        dropped.len()
    }

    /// Waits until none of these is on its way to L2; asks for it to be soon.
    pub(super) fn settle(&self, names: &[RemoteKey], timeout: Duration) {
        let deadline = Instant::now() + timeout;
        let mut routes = self.shared.routes.lock();
        let concerned = |routes: &Routes| -> Vec<u64> {
            let demotions = routes.open.iter().filter_map(|(ticket, route)| match route {
                Route::Demotion(_, name) if names.contains(name) => Some(*ticket),
                _ => None,
            });
            demotions.collect()
        };
        let tickets = concerned(&routes);
        if tickets.is_empty() {
            return;
        }
        self.shared.store.cancel(&tickets);
        self.shared.ended.wait_while_until(&mut routes, |routes| !concerned(routes).is_empty(), deadline);
    }

    pub(super) fn demoting(&self) -> usize {
        self.shared.routes.lock().demoting
    }

    pub(super) fn wait_for_demotions(&self, timeout: Duration) -> bool {
        let mut routes = self.shared.routes.lock();
        self.shared.ended.wait_while_for(&mut routes, |routes| routes.demoting > 0, timeout);
        routes.demoting == 0
    }
}

impl Shared {
    fn run(&self) {
        let mut ends = Vec::new();
        loop {
            {
                let routes = self.routes.lock();
                if routes.closing && routes.open.is_empty() {
                    return;
                }
            }
            self.store.wait(WAIT);
            self.store.poll(&mut ends);
            if !ends.is_empty() {
                self.route(&ends);
                ends.clear();
            }
        }
    }

    fn route(&self, ends: &[RemoteEnd]) {
        let mut slots = Vec::new();
        let mut routes = self.routes.lock();
        for end in ends {
            match routes.open.remove(&end.ticket) {
                Some(Route::Call(call, position)) => {
                    if let Some(call) = routes.calls.get_mut(&call) {
                        call.outcomes[position] = end.outcome;
                        call.left -= 1;
                    }
                }
                Some(Route::Demotion(slot, _)) => {
                    slots.push(slot);
                    routes.demoting -= 1;
                    let done = end.outcome == RemoteOutcome::Done;
                    let counter = if done { &self.counters.demoted } else { &self.counters.demote_failed };
                    counter.fetch_add(1, Ordering::Relaxed);
                }
                None => {}
            }
        }
        // Before anybody who waits for demotions can look.
        self.directory.end_load(&slots);
        drop(routes);
        self.ended.notify_all();
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        let tickets: Vec<u64> = {
            let mut routes = self.shared.routes.lock();
            routes.closing = true;
            routes.open.keys().copied().collect()
        };
        self.shared.store.cancel(&tickets);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
