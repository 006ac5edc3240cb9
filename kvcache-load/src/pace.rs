//! When requests are sent.

use std::collections::{HashMap, VecDeque};
use std::num::NonZeroUsize;
use std::sync::Arc;

use hyper_util::client::legacy::connect::Connect;
use kvcache_workload::InvalidParameter;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

use crate::error::Error;
use crate::sender::Sender;
use crate::source::{Indexed, Source};

/// When requests are sent. A turn of a session is never sent before the earlier one has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pace {
    /// At their timestamps, however long answers take: an open loop. A turn whose earlier one has not ended by then
    /// is due when that has. The first request is sent at once.
    Timestamps,
    /// Sessions begin at the timestamps of their first requests, later turns are due `think_ms` after the end of the
    /// earlier one. Needs memory for all requests.
    Think,
    /// So many sessions are served at a time, the next one as soon as one has ended: a closed loop. Later turns are due
    /// `think_ms` after the end of the earlier one. Needs memory for all requests.
    Closed(NonZeroUsize),
}

impl Pace {
    /// Whether requests come however long answers take.
    pub(crate) fn is_open(self) -> bool {
        !matches!(self, Self::Closed(_))
    }

    pub(crate) fn concurrency(self) -> Option<usize> {
        match self {
            Self::Closed(concurrency) => Some(concurrency.get()),
            Self::Timestamps | Self::Think => None,
        }
    }
}

/// Sends all requests of `source`; returns when all have ended, or could not be sent in time.
pub(crate) async fn drive<C>(sender: Arc<Sender<C>>, source: Source, pace: Pace) -> Result<(), Error>
where
    C: Connect + Clone + Send + Sync + 'static,
{
    let mut tasks = JoinSet::new();
    let result = match pace {
        Pace::Timestamps => at_timestamps(&sender, source, &mut tasks).await,
        Pace::Think => begin_at_timestamps(&sender, source, &mut tasks).await,
        Pace::Closed(concurrency) => so_many_at_a_time(&sender, source, concurrency.get(), &mut tasks).await,
    };
    // Also after an error: what is under way is answered all the same.
    while tasks.join_next().await.is_some() {}
    result
}

/// A request that was read.
struct Job {
    indexed: Indexed,
    due_us: u64,
    /// What bounds the number of requests that were read and have not ended.
    _place: OwnedSemaphorePermit,
}

/// The turns that wait for the end of an earlier one. Sessions of which none is under way are not in it.
type Waiting = Arc<Mutex<HashMap<String, VecDeque<Job>>>>;

async fn at_timestamps<C>(
    sender: &Arc<Sender<C>>,
    mut source: Source,
    tasks: &mut JoinSet<()>,
) -> Result<(), Error>
where
    C: Connect + Clone + Send + Sync + 'static,
{
    let places = sender.in_flight_max().saturating_add(WAITING_MAX).min(Semaphore::MAX_PERMITS);
    let places = Arc::new(Semaphore::new(places));
    let waiting = Waiting::default();
    let mut clock = TraceClock::default();
    while let Some(indexed) = source.next().await? {
        let due_us = clock.due_us(&indexed)?;
        let Some(()) = sender.until(due_us.saturating_sub(AHEAD_US)).await else { break };
        // Never closed.
        let Some(Ok(place)) = sender.in_time(Arc::clone(&places).acquire_owned()).await else { break };
        while tasks.try_join_next().is_some() {}
        let job = Job { indexed, due_us, _place: place };
        if let Some(session_id) = &job.indexed.request.session_id {
            let mut waiting = waiting.lock();
            if let Some(turns) = waiting.get_mut(session_id) {
                turns.push_back(job);
                continue;
            }
            waiting.insert(session_id.clone(), VecDeque::new());
        }
        tasks.spawn(turns(Arc::clone(sender), Arc::clone(&waiting), job));
    }
    Ok(())
}

/// Sends a request and then the turns of its session that have come meanwhile.
async fn turns<C>(sender: Arc<Sender<C>>, waiting: Waiting, mut job: Job)
where
    C: Connect + Clone + Send + Sync + 'static,
{
    let session_id = job.indexed.request.session_id.clone();
    loop {
        let ended_us = sender.send(job.indexed, job.due_us).await;
        let Some(session_id) = &session_id else { return };
        let mut waiting = waiting.lock();
        match waiting.get_mut(session_id).and_then(VecDeque::pop_front) {
            Some(next) => job = next,
            None => {
                waiting.remove(session_id);
                return;
            }
        }
        // Not sent in time: those after it will not be either.
        job.due_us = job.due_us.max(ended_us.unwrap_or(0));
    }
}

async fn begin_at_timestamps<C>(
    sender: &Arc<Sender<C>>,
    source: Source,
    tasks: &mut JoinSet<()>,
) -> Result<(), Error>
where
    C: Connect + Clone + Send + Sync + 'static,
{
    let mut clock = TraceClock::default();
    for turns in source.sessions().await? {
        // A session is never empty.
        let Some(first) = turns.first() else { continue };
        let due_us = clock.due_us(first)?;
        let Some(()) = sender.until(due_us.saturating_sub(AHEAD_US)).await else { break };
        while tasks.try_join_next().is_some() {}
        let sender = Arc::clone(sender);
        tasks.spawn(async move {
            // Whether the time was over is counted where that is found.
            session(&sender, turns, due_us).await;
        });
    }
    Ok(())
}

async fn so_many_at_a_time<C>(
    sender: &Arc<Sender<C>>,
    source: Source,
    concurrency: usize,
    tasks: &mut JoinSet<()>,
) -> Result<(), Error>
where
    C: Connect + Clone + Send + Sync + 'static,
{
    let sessions = source.sessions().await?;
    let places = concurrency.min(sessions.len());
    let sessions = Arc::new(Mutex::new(sessions.into_iter()));
    for _ in 0..places {
        let (sender, sessions) = (Arc::clone(sender), Arc::clone(&sessions));
        tasks.spawn(async move {
            loop {
                let Some(turns) = sessions.lock().next() else { return };
                let due_us = sender.now_us();
                if session(&sender, turns, due_us).await.is_none() {
                    return;
                }
            }
        });
    }
    Ok(())
}

/// Sends the turns of a session, each after a pause for thought. `None` if the time was over before.
async fn session<C>(sender: &Sender<C>, turns: Vec<Indexed>, mut due_us: u64) -> Option<()>
where
    C: Connect + Clone + Send + Sync + 'static,
{
    for (turn, indexed) in turns.into_iter().enumerate() {
        if turn > 0 {
            due_us = due_us.saturating_add(microseconds(indexed.request.think_ms.unwrap_or(0.0)));
        }
        due_us = sender.send(indexed, due_us).await?;
    }
    Some(())
}

/// Times of a workload as times of the run, which begins with the first request.
#[derive(Default)]
struct TraceClock {
    first_ms: Option<f64>,
}

impl TraceClock {
    fn due_us(&mut self, indexed: &Indexed) -> Result<u64, InvalidParameter> {
        let Some(time_ms) = indexed.request.timestamp_ms else {
            return Err(InvalidParameter::new(format!(
                "request {} (from 0) has no timestamp to go by; give a rate, as poisson:2, or a concurrency",
                indexed.index
            )));
        };
        Ok(microseconds(time_ms - *self.first_ms.get_or_insert(time_ms)))
    }
}

/// At most a year: further than any run goes, and no sum of two is too large for a clock.
fn microseconds(ms: f64) -> u64 {
    ((ms * 1000.0).round() as u64).min(365 * 86_400 * 1_000_000)
}

/// Requests that were read while in-flight ones fill their bound, and turns that wait for earlier ones.
const WAITING_MAX: usize = 16_384;

/// How long before it is due a request is made ready.
const AHEAD_US: u64 = 500_000;
