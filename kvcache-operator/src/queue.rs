//! Which cache to look at next, and when.
//!
//! Every cache is in the queue at most once and is looked at by one worker at a time. News while it is being looked at
//! make it due again. Failures wait longer each time, each cache for itself; news do not shorten that wait, unless the
//! cache asks for something else than what failed.
//!
//! Nothing is kept before it is opened: an operator that does not lead hears of caches that come and go, and looks at none.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use crate::clock::Jitter;
use crate::mirror::CacheKey;

/// What a look at a cache asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Next {
    /// To be looked at again at this time, or when something changes before.
    At(Instant),
    /// Somebody changed an object meanwhile: again at once, or soon if that happens repeatedly.
    Conflict,
    /// Something failed: again after a while, longer each time.
    Failed,
    /// The cache is gone.
    Never,
}

/// The queue. Bounded by the number of caches.
#[derive(Debug)]
pub struct Queue {
    inner: Mutex<Inner>,
    changed: Notify,
    jitter: Jitter,
}

#[derive(Default, Debug)]
struct Inner {
    due: HashMap<CacheKey, Instant>,
    order: BTreeSet<(Instant, CacheKey)>,
    running: HashMap<CacheKey, News>,
    failures: HashMap<CacheKey, u32>,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
enum State {
    /// Nobody looks at caches yet.
    #[default]
    Idle,
    Open,
    /// Nobody does any more.
    Closed,
}

/// What came while a cache is being looked at.
#[derive(Clone, Copy, Default, Debug)]
struct News {
    /// When the cache is due again because of it.
    at: Option<Instant>,
    /// Whether something else is asked for than what is being looked at.
    is_asked_anew: bool,
}

impl Queue {
    /// An empty one, not open yet. The seed decides the jitter of retries.
    pub fn new(seed: u64) -> Self {
        Self { inner: Mutex::default(), changed: Notify::new(), jitter: Jitter::new(seed) }
    }

    /// Keeps what is added from now on. What there is to look at already is to be added after that.
    pub fn open(&self) {
        self.lock().state = State::Open;
    }

    /// Has a cache looked at as soon as a worker is free.
    pub fn add(&self, key: CacheKey) {
        self.lock().add(key, Instant::now());
        self.changed.notify_one();
    }

    /// Has a cache looked at as soon as a worker is free, whatever failed before: it asks for something else now, or is to
    /// go.
    pub fn add_anew(&self, key: CacheKey) {
        let mut inner = self.lock();
        inner.failures.remove(&key);
        if let Some(news) = inner.running.get_mut(&key) {
            news.is_asked_anew = true;
        }
        inner.add(key, Instant::now());
        drop(inner);
        self.changed.notify_one();
    }

    /// The next cache that is due; waits for one. `None` after [`close`](Self::close).
    pub async fn next(&self) -> Option<CacheKey> {
        loop {
            // Made before the look, so that no change between look and wait is missed.
            let changed = self.changed.notified();
            let first = {
                let mut inner = self.lock();
                if inner.state == State::Closed {
                    return None;
                }
                let now = Instant::now();
                match inner.order.first() {
                    Some((at, _)) if *at <= now => {
                        let (_, key) = inner.order.pop_first().unwrap_or_else(|| unreachable!("just seen"));
                        inner.due.remove(&key);
                        inner.running.insert(key.clone(), News::default());
                        // Another worker may take another one.
                        self.changed.notify_one();
                        return Some(key);
                    }
                    Some((at, _)) => Some(*at),
                    None => None,
                }
            };
            match first {
                Some(at) => tokio::select! { () = changed => {}, () = sleep_until(at) => {} },
                None => changed.await,
            }
        }
    }

    /// Ends a look at a cache.
    pub fn done(&self, key: CacheKey, next: Next) {
        let mut inner = self.lock();
        let news = inner.running.remove(&key).unwrap_or_default();
        let now = Instant::now();
        // What failed is not what is asked for any more.
        let next = if news.is_asked_anew && next == Next::Failed { Next::At(now) } else { next };
        let at = match next {
            Next::At(at) => {
                inner.failures.remove(&key);
                Some(at)
            }
            Next::Never => {
                inner.failures.remove(&key);
                None
            }
            Next::Conflict | Next::Failed => {
                let failures = inner.failures.entry(key.clone()).or_default();
                *failures = failures.saturating_add(1);
                let is_first_conflict = next == Next::Conflict && *failures == 1;
                Some(if is_first_conflict { now } else { now + self.jitter.spread(backoff(*failures)) })
            }
        };
        // News do not shorten the wait after a failure: a broken object that changes often is not tried more often.
        let news_at = if next == Next::Failed { None } else { news.at };
        if let Some(at) = [at, news_at].into_iter().flatten().min() {
            inner.add(key, at);
        }
        drop(inner);
        self.changed.notify_one();
    }

    /// No cache is handed out any more.
    pub fn close(&self) {
        self.lock().state = State::Closed;
        self.changed.notify_waiters();
        self.changed.notify_one();
    }

    /// Caches that are due, or waiting for their time because of a failure.
    pub fn depth(&self) -> usize {
        let inner = self.lock();
        let now = Instant::now();
        inner.order.iter().take_while(|(at, _)| *at <= now).count()
            + inner.due.iter().filter(|(key, at)| **at > now && inner.failures.contains_key(*key)).count()
    }

    /// Whether nothing is due and nothing is being looked at.
    pub fn is_idle(&self) -> bool {
        let inner = self.lock();
        let now = Instant::now();
        inner.running.is_empty() && inner.order.first().is_none_or(|(at, _)| *at > now)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every change of it is complete before anything can panic.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn add(&mut self, key: CacheKey, at: Instant) {
        if self.state != State::Open {
            return;
        }
        if let Some(news) = self.running.get_mut(&key) {
            news.at = Some(news.at.map_or(at, |before| before.min(at)));
            return;
        }
        if let Some(before) = self.due.get(&key) {
            // A cache that failed waits, whatever happens meanwhile.
            if *before <= at || self.failures.contains_key(&key) {
                return;
            }
            self.order.remove(&(*before, key.clone()));
        }
        self.due.insert(key.clone(), at);
        self.order.insert((at, key));
    }
}

/// 0.25 s, 0.5 s, 1 s, ... 64 s.
fn backoff(failures: u32) -> Duration {
    Duration::from_millis(250) * (1 << failures.saturating_sub(1).min(8))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> CacheKey {
        CacheKey { namespace: "ns".to_owned(), name: name.to_owned() }
    }

    fn open_queue() -> Queue {
        let queue = Queue::new(1);
        queue.open();
        queue
    }

    async fn within(queue: &Queue, seconds: u64) -> Option<CacheKey> {
        tokio::time::timeout(Duration::from_secs(seconds), queue.next()).await.ok().flatten()
    }

    #[tokio::test(start_paused = true)]
    async fn news_while_a_cache_is_looked_at_bring_it_back_once() {
        let queue = open_queue();
        queue.add(key("a"));
        queue.add(key("a"));
        assert_eq!(within(&queue, 1).await, Some(key("a")));
        queue.add(key("a"));
        queue.add(key("a"));
        assert_eq!(within(&queue, 1).await, None, "one look at a time");
        let later = Instant::now() + Duration::from_secs(100);
        queue.done(key("a"), Next::At(later));
        assert_eq!(within(&queue, 1).await, Some(key("a")));
        queue.done(key("a"), Next::At(later));
        assert_eq!(within(&queue, 50).await, None);
        assert_eq!(within(&queue, 60).await, Some(key("a")), "and at its time");
        queue.done(key("a"), Next::Never);
        assert_eq!(within(&queue, 1000).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn an_operator_that_does_not_lead_keeps_no_names() {
        let queue = Queue::new(1);
        (0..1000).for_each(|number| queue.add(key(&number.to_string())));
        queue.add_anew(key("a"));
        assert_eq!((queue.depth(), queue.is_idle()), (0, true));
        queue.open();
        assert_eq!(within(&queue, 10).await, None);
        queue.add(key("a"));
        assert_eq!(within(&queue, 0).await, Some(key("a")));
        queue.close();
        queue.done(key("a"), Next::Failed);
        assert_eq!(within(&queue, 1000).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn failures_wait_longer_each_time_whatever_happens_meanwhile() {
        let queue = open_queue();
        queue.add(key("a"));
        let mut waits = Vec::new();
        for _ in 0..12 {
            let from = Instant::now();
            within(&queue, 1000).await.unwrap();
            waits.push(from.elapsed().as_secs_f64());
            queue.add(key("a"));
            queue.done(key("a"), Next::Failed);
            queue.add(key("a"));
        }
        assert_eq!(queue.depth(), 1);
        for (index, wait) in waits.iter().enumerate().skip(1) {
            let base = 0.25 * f64::from(1 << (index - 1).min(8));
            assert!((base..=1.51 * base).contains(wait), "{index}: {wait} s, base {base} s");
        }
        within(&queue, 1000).await.unwrap();
        queue.done(key("a"), Next::At(Instant::now() + Duration::from_secs(1000)));
        queue.add(key("a"));
        assert!(within(&queue, 0).await.is_some(), "a success ends it");
        queue.done(key("a"), Next::Failed);
        within(&queue, 1).await.unwrap();
        queue.done(key("a"), Next::Never);
        queue.add(key("a"));
        assert!(within(&queue, 0).await.is_some());
        queue.done(key("a"), Next::Failed);
        let from = Instant::now();
        within(&queue, 1).await.unwrap();
        assert!(from.elapsed() < Duration::from_millis(400), "another cache of the name has failed once");
    }

    #[tokio::test(start_paused = true)]
    async fn a_cache_that_asks_for_something_else_waits_for_no_failure_of_before() {
        let queue = open_queue();
        queue.add(key("a"));
        for _ in 0..12 {
            within(&queue, 1000).await.unwrap();
            queue.done(key("a"), Next::Failed);
        }
        queue.add(key("a"));
        assert_eq!(within(&queue, 60).await, None);
        queue.add_anew(key("a"));
        assert_eq!(within(&queue, 0).await, Some(key("a")));
        // Whatever becomes of this look, something else was asked for meanwhile.
        queue.add_anew(key("a"));
        queue.add(key("a"));
        queue.done(key("a"), Next::Failed);
        assert_eq!(within(&queue, 0).await, Some(key("a")));
        queue.done(key("a"), Next::Failed);
        assert_eq!(within(&queue, 0).await, None);
        assert_eq!(within(&queue, 1).await, Some(key("a")), "and failures count from the beginning");
        queue.done(key("a"), Next::Never);
        assert_eq!(within(&queue, 1000).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn whatever_is_due_is_taken_while_any_worker_is_free() {
        let queue = std::sync::Arc::new(open_queue());
        let seen = std::sync::Arc::new(Mutex::new(Vec::new()));
        for name in ["late", "early"] {
            queue.add(key(name));
            within(&queue, 0).await.unwrap();
        }
        let start = Instant::now();
        for _ in 0..3 {
            let (queue, seen) = (queue.clone(), seen.clone());
            tokio::spawn(async move {
                while let Some(key) = queue.next().await {
                    seen.lock().unwrap().push((key.name, start.elapsed().as_secs()));
                    tokio::time::sleep(Duration::from_secs(1000)).await;
                }
            });
        }
        // Each of these wakes another worker, and all are busy or wait for the first of them when the next is due.
        tokio::task::yield_now().await;
        queue.done(key("late"), Next::At(start + Duration::from_secs(10)));
        tokio::task::yield_now().await;
        queue.done(key("early"), Next::At(start + Duration::from_secs(5)));
        tokio::task::yield_now().await;
        queue.add(key("now"));
        tokio::time::sleep(Duration::from_secs(20)).await;
        let seen: Vec<(String, u64)> = seen.lock().unwrap().clone();
        assert_eq!(seen, [("now".to_owned(), 0), ("early".to_owned(), 5), ("late".to_owned(), 10)]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_conflict_is_tried_again_at_once_and_the_next_ones_are_not() {
        let queue = open_queue();
        queue.add(key("a"));
        within(&queue, 1).await.unwrap();
        queue.done(key("a"), Next::Conflict);
        let from = Instant::now();
        within(&queue, 1).await.unwrap();
        assert_eq!(from.elapsed(), Duration::ZERO);
        queue.done(key("a"), Next::Conflict);
        within(&queue, 10).await.unwrap();
        assert!(from.elapsed() >= Duration::from_millis(500));
    }

    #[tokio::test(start_paused = true)]
    async fn several_workers_share_the_caches_and_all_end_when_it_closes() {
        let queue = std::sync::Arc::new(open_queue());
        let work = |queue: std::sync::Arc<Queue>| async move {
            let mut seen = 0;
            while let Some(key) = queue.next().await {
                seen += 1;
                tokio::time::sleep(Duration::from_secs(1)).await;
                queue.done(key, Next::Never);
            }
            seen
        };
        let workers: Vec<_> = (0..4).map(|_| tokio::spawn(work(queue.clone()))).collect();
        (0..40).for_each(|number| queue.add(key(&number.to_string())));
        tokio::time::sleep(Duration::from_millis(10_500)).await;
        assert!(queue.is_idle());
        queue.close();
        let mut seen = Vec::new();
        for worker in workers {
            seen.push(worker.await.unwrap());
        }
        assert_eq!(seen, [10, 10, 10, 10]);
    }
}
