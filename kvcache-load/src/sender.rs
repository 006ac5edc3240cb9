//! Sends single requests at their times, within the bounds of the run.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use hyper_util::client::legacy::connect::Connect;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use crate::body::{Bodies, Prepared};
use crate::client::Client;
use crate::failure::Failure;
use crate::record::Record;
use crate::source::Indexed;

/// The bounds of a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) in_flight_max: usize,
    pub(crate) retries_max: u32,
    pub(crate) warmup: u64,
    /// Nothing is sent from then on.
    pub(crate) deadline: Option<Instant>,
}

/// Sends requests and passes on what becomes of them.
pub(crate) struct Sender<C> {
    client: Client<C>,
    bodies: Arc<Bodies>,
    limits: Limits,
    started: Instant,
    in_flight: Semaphore,
    records: mpsc::Sender<Record>,
    counts: Arc<Counts>,
}

/// What is counted where requests are sent. Each is a lone number, so that no order between them matters.
#[derive(Debug)]
pub(crate) struct Counts {
    sent: AtomicU64,
    /// Requests that were due, those of the warmup left out, and when the first and the last of them were.
    due: AtomicU64,
    due_first_us: AtomicU64,
    due_last_us: AtomicU64,
    /// A request was not sent because the time was over.
    cut: AtomicBool,
}

impl Default for Counts {
    fn default() -> Self {
        let [sent, due, due_last_us] = [const { AtomicU64::new(0) }; 3];
        Self { sent, due, due_first_us: AtomicU64::new(u64::MAX), due_last_us, cut: AtomicBool::new(false) }
    }
}

impl Counts {
    /// Requests a second that were due, from the first to the last, sent or not; `None` below two.
    pub(crate) fn offered_per_s(&self) -> Option<f64> {
        let count = self.due.load(Ordering::Relaxed);
        let (first, last) =
            (self.due_first_us.load(Ordering::Relaxed), self.due_last_us.load(Ordering::Relaxed));
        // Between n times there are n - 1 gaps.
        (last > first).then(|| (count - 1) as f64 / ((last - first) as f64 / 1e6))
    }

    fn count_due(&self, due_us: u64) {
        self.due.fetch_add(1, Ordering::Relaxed);
        self.due_first_us.fetch_min(due_us, Ordering::Relaxed);
        self.due_last_us.fetch_max(due_us, Ordering::Relaxed);
    }

    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    pub(crate) fn is_cut(&self) -> bool {
        self.cut.load(Ordering::Relaxed)
    }
}

impl<C: Connect + Clone + Send + Sync + 'static> Sender<C> {
    pub(crate) fn new(
        client: Client<C>,
        bodies: Arc<Bodies>,
        limits: Limits,
        started: Instant,
        records: mpsc::Sender<Record>,
    ) -> Self {
        let in_flight = Semaphore::new(limits.in_flight_max.min(Semaphore::MAX_PERMITS));
        Self { client, bodies, limits, started, in_flight, records, counts: Arc::default() }
    }

    pub(crate) fn counts(&self) -> Arc<Counts> {
        Arc::clone(&self.counts)
    }

    /// Requests under way at a time.
    pub(crate) fn in_flight_max(&self) -> usize {
        self.limits.in_flight_max
    }

    /// Microseconds from the start of the run.
    pub(crate) fn now_us(&self) -> u64 {
        self.started.elapsed().as_micros() as u64
    }

    /// Waits until `us` microseconds from the start, which is `None` if the time is over before.
    pub(crate) async fn until(&self, us: u64) -> Option<()> {
        self.in_time(sleep_until(self.started + Duration::from_micros(us))).await
    }

    /// What `future` gives, or `None` if the time is over before it is ready.
    pub(crate) async fn in_time<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        let Some(deadline) = self.limits.deadline else { return Some(future.await) };
        let result = if Instant::now() < deadline { timeout_at(deadline, future).await.ok() } else { None };
        if result.is_none() {
            self.counts.cut.store(true, Ordering::Relaxed);
        }
        result
    }

    /// Sends a request when it is due and reads its answer. Returns when it has ended; `None` if the time was over
    /// before it was sent.
    pub(crate) async fn send(&self, indexed: Indexed, due_us: u64) -> Option<u64> {
        let Indexed { index, request } = indexed;
        let bodies = Arc::clone(&self.bodies);
        // On another thread, since writing a long prompt would hold up the clock of the answers under way.
        let (request, prepared) = tokio::task::spawn_blocking(move || {
            let prepared = bodies.prepare(&request);
            (request, prepared)
        })
        .await
        .ok()?;
        self.until(due_us).await?;
        let is_warmup = index < self.limits.warmup;
        if !is_warmup {
            self.counts.count_due(due_us);
        }
        // Never closed.
        let permit = self.in_time(self.in_flight.acquire()).await?.ok()?;
        self.counts.sent.fetch_add(1, Ordering::Relaxed);
        let sent_us = self.now_us();
        let (retries, outcome) = self.answered(&prepared).await;
        let ended_us = self.now_us();
        drop(permit);
        let record = Record {
            index,
            input_tokens: request.content.input_tokens(),
            session_id: request.session_id,
            turn: request.turn,
            class: request.class,
            is_warmup,
            due_us,
            sent_us,
            ended_us,
            retries,
            asked_tokens: prepared.asked_tokens,
            outcome,
        };
        // Whoever counts them has gone: the run is being stopped.
        self.records.send(record).await.ok()?;
        Some(ended_us)
    }

    /// Sends until there is an answer, a failure that a second try would not mend, or no try left.
    async fn answered(&self, prepared: &Prepared) -> (u32, Result<crate::Answered, Failure>) {
        let mut retries = 0;
        loop {
            let outcome = self.client.send(prepared, || self.now_us()).await;
            let Err(Failure::Status { code: 429 | 503, retry_after, .. }) = &outcome else {
                return (retries, outcome);
            };
            if retries == self.limits.retries_max {
                return (retries, outcome);
            }
            let wait = retry_after.unwrap_or(Duration::from_secs(1 << retries.min(6))).min(RETRY_AFTER_MAX);
            sleep(wait).await;
            retries += 1;
        }
    }
}

/// A server that wants to be asked again tomorrow is asked again in a minute.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);
