//! What the caller's threads and the lanes share: units that wait, values that have ended, how the server is doing.

use std::collections::{HashSet, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kvcache_core::remote::{RemoteEnd, RemoteFailure, RemoteOutcome};

use super::config::VerbsClientConfig;
use super::unit::Unit;
use crate::verbs::wait::Wake;

/// Shared by a client and its lanes.
pub(super) struct SharedQueue {
    state: Mutex<State>,
    ended: Condvar,
    /// One for each lane.
    wakes: Vec<Wake>,
    backoff_min: Duration,
    backoff_max: Duration,
    items_max: usize,
}

struct State {
    waiting: VecDeque<Unit>,
    ends: Vec<RemoteEnd>,
    /// Values that were taken and whose end was not polled yet.
    items_open: usize,
    lanes_up: usize,
    failures: u32,
    /// Until then nobody tries to reach the server.
    left_alone_until: Option<Instant>,
    stopping: bool,
}

impl SharedQueue {
    pub(super) fn new(config: &VerbsClientConfig, wakes: Vec<Wake>) -> Self {
        let state = State {
            waiting: VecDeque::new(),
            ends: Vec::new(),
            items_open: 0,
            lanes_up: 0,
            failures: 0,
            left_alone_until: None,
            stopping: false,
        };
        Self {
            state: Mutex::new(state),
            ended: Condvar::new(),
            wakes,
            backoff_min: config.backoff_min,
            backoff_max: config.backoff_max,
            items_max: config.items_max,
        }
    }

    pub(super) fn wake_of(&self, lane: usize) -> &Wake {
        &self.wakes[lane]
    }

    /// Takes units of the caller; or ends them at once, when there is too much or the server is left alone.
    pub(super) fn submit(&self, units: Vec<Unit>, refused: Vec<RemoteEnd>, now: Instant) {
        let mut state = self.lock();
        state.items_open += refused.len();
        state.ends.extend(refused);
        let unreachable = state.lanes_up == 0 && state.left_alone_until.is_some_and(|until| now < until);
        for unit in units {
            let failure = if state.items_open + unit.items.len() > self.items_max {
                Some(RemoteFailure::Overloaded)
            } else {
                unreachable.then_some(RemoteFailure::Unreachable)
            };
            state.items_open += unit.items.len();
            match failure {
                Some(failure) => unit.end(RemoteOutcome::Failed(failure), &mut state.ends),
                None => state.waiting.push_back(unit),
            }
        }
        self.wake_all(state);
    }

    /// The next unit to begin. Those that are late end instead.
    pub(super) fn take(&self, now: Instant) -> Option<Unit> {
        let mut state = self.lock();
        while let Some(unit) = state.waiting.pop_front() {
            if now < unit.deadline {
                return Some(unit);
            }
            unit.end(TIMED_OUT, &mut state.ends);
            self.ended.notify_all();
        }
        None
    }

    /// Whether a lane has something to do: units that wait, unless the server is left alone.
    pub(super) fn has_work(&self) -> bool {
        !self.lock().waiting.is_empty()
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.lock().stopping
    }

    /// How long a lane must not try to connect.
    pub(super) fn left_alone_for(&self, now: Instant) -> Duration {
        self.lock().left_alone_until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now))
    }

    pub(super) fn lane_is_up(&self) {
        let mut state = self.lock();
        state.lanes_up += 1;
        state.failures = 0;
        state.left_alone_until = None;
    }

    /// A lane went down with these units in flight. They are tried once more, unless they are late.
    pub(super) fn lane_is_down(&self, units: Vec<Unit>, now: Instant) {
        let mut state = self.lock();
        state.lanes_up -= 1;
        for mut unit in units {
            if now >= unit.deadline {
                unit.end(TIMED_OUT, &mut state.ends);
            } else if unit.retried {
                unit.end(UNREACHABLE, &mut state.ends);
            } else {
                unit.retried = true;
                state.waiting.push_front(unit);
            }
        }
        self.wake_all(state);
    }

    /// The server could not be reached: unless another lane is up, nothing waits for it.
    pub(super) fn connecting_failed(&self, now: Instant) {
        let mut state = self.lock();
        let doubled = self.backoff_min.saturating_mul(1 << state.failures.min(16)).min(self.backoff_max);
        state.failures = state.failures.saturating_add(1);
        // Between a half and the whole, so that clients do not come back together.
        let jitter = f64::from(RandomState::new().hash_one(state.failures) as u32) / f64::from(u32::MAX);
        state.left_alone_until = Some(now + doubled.mul_f64(0.5 + jitter / 2.0));
        if state.lanes_up == 0 {
            for unit in std::mem::take(&mut state.waiting) {
                unit.end(UNREACHABLE, &mut state.ends);
            }
        }
        self.wake_all(state);
    }

    /// Records ends.
    pub(super) fn end(&self, ends: &mut Vec<RemoteEnd>) {
        if !ends.is_empty() {
            self.lock().ends.append(ends);
            self.ended.notify_all();
        }
    }

    /// Moves ends to the caller.
    pub(super) fn poll(&self, ended: &mut Vec<RemoteEnd>, now: Instant) {
        let mut state = self.lock();
        state.expire(now);
        state.items_open -= state.ends.len();
        ended.append(&mut state.ends);
    }

    /// Sleeps until something has ended.
    pub(super) fn wait(&self, timeout: Duration) -> bool {
        let until = Instant::now().checked_add(timeout);
        let mut state = self.lock();
        loop {
            let now = Instant::now();
            state.expire(now);
            if !state.ends.is_empty() {
                return true;
            }
            let left = until.map_or(timeout, |until| until.saturating_duration_since(now));
            if left.is_zero() {
                return false;
            }
            // Those that wait may become late while no lane looks at them.
            let first = state.waiting.iter().map(|unit| unit.deadline).min();
            let left = first.map_or(left, |first| left.min(first.saturating_duration_since(now)));
            state = self.ended.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Ends values that were not begun; those in flight end by themselves.
    pub(super) fn cancel(&self, tickets: &[u64]) {
        let tickets: HashSet<u64> = tickets.iter().copied().collect();
        let mut state = self.lock();
        let State { waiting, ends, .. } = &mut *state;
        for unit in waiting.iter_mut() {
            unit.items.retain(|item| {
                let keep = !tickets.contains(&item.ticket);
                if !keep {
                    let outcome = RemoteOutcome::Failed(RemoteFailure::Cancelled);
                    ends.push(RemoteEnd { ticket: item.ticket, outcome });
                }
                keep
            });
        }
        waiting.retain(|unit| !unit.items.is_empty());
        self.ended.notify_all();
    }

    pub(super) fn stop(&self) {
        let mut state = self.lock();
        state.stopping = true;
        self.wake_all(state);
    }

    fn wake_all(&self, state: MutexGuard<'_, State>) {
        drop(state);
        self.ended.notify_all();
        self.wakes.iter().for_each(Wake::wake);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn expire(&mut self, now: Instant) {
        while let Some(index) = self.waiting.iter().position(|unit| unit.deadline <= now) {
            if let Some(unit) = self.waiting.remove(index) {
                unit.end(TIMED_OUT, &mut self.ends);
            }
        }
    }
}

const TIMED_OUT: RemoteOutcome = RemoteOutcome::Failed(RemoteFailure::TimedOut);
const UNREACHABLE: RemoteOutcome = RemoteOutcome::Failed(RemoteFailure::Unreachable);
