//! The members as readers see them, kept up to date by a thread that readers never wait for.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use parking_lot::{Condvar, Mutex};

use super::pause::Pauses;
use super::{
    FileSource, MemberList, MemberSnapshot, MemberSource, MembersError, MembersFrom, PlacementSource,
    Reading, RedisSource, RemoteUrl, SourceError,
};

/// How often a source is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RefreshConfig {
    /// Pause after a reading that succeeded, give or take an eighth.
    pub interval: Duration,
    /// Longest pause between readings that fail: pauses double from `interval` up to here, give or take an eighth.
    pub interval_max: Duration,
    /// Who decides which member holds what.
    pub placement: PlacementSource,
    /// Where the variation of the pauses starts, so that many clients do not ask at once and a run can be repeated.
    pub seed: u64,
}

impl RefreshConfig {
    /// Every second, whatever happens: a file costs nothing to read.
    pub fn for_file(placement: PlacementSource, seed: u64) -> Self {
        let second = Duration::from_secs(1);
        Self { interval: second, interval_max: second, placement, seed }
    }

    /// Every 2 seconds, and every 16 while Redis is down. AIBrix's clients ask every 30.
    pub fn for_redis(placement: PlacementSource, seed: u64) -> Self {
        Self { interval: Duration::from_secs(2), interval_max: Duration::from_secs(16), placement, seed }
    }
}

/// How refreshing goes. Counts from the start.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RefreshStatus {
    /// The generation of the current snapshot.
    pub generation: u64,
    /// Readings that succeeded, whether or not they brought another list.
    pub readings: u64,
    /// Readings that failed.
    pub failures: u64,
    /// Failures since the last reading that succeeded.
    pub failures_in_a_row: u64,
    /// What the last failure was, until a reading succeeds.
    pub last_error: Option<String>,
}

/// The current members of the ring. Clones share them; when the last is dropped, refreshing ends.
#[derive(Clone)]
pub struct Members {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
}

/// What readers and the refreshing thread share.
struct Shared {
    /// Read without a lock. Written by one thread only: the one that refreshes.
    current: ArcSwap<MemberSnapshot>,
    status: Mutex<Status>,
    /// Notified whenever `status` changes.
    changed: Condvar,
}

#[derive(Default)]
struct Status {
    refresh: RefreshStatus,
    ended: bool,
}

impl Members {
    /// Members that never change.
    ///
    /// # Errors
    ///
    /// Those of [`MemberSnapshot::new`].
    pub fn fixed(list: MemberList, placement: PlacementSource) -> Result<Self, MembersError> {
        let snapshot = MemberSnapshot::new(1, list, placement)?;
        let refresh = RefreshStatus { generation: 1, readings: 1, ..RefreshStatus::default() };
        Ok(Self::of(Shared::new(snapshot, refresh)))
    }

    /// The members that `source` names, read now and again on a thread of its own.
    ///
    /// Returns at once: until the first list is there, the snapshot is of generation 0 and has no members, so that
    /// everything is a miss. A source that fails leaves the last list in use, for as long as it takes.
    ///
    /// # Errors
    ///
    /// If the system starts no thread.
    pub fn watch(source: impl MemberSource, config: RefreshConfig) -> std::io::Result<Self> {
        let shared = Shared::new(MemberSnapshot::default(), RefreshStatus::default());
        let refreshed = shared.clone();
        std::thread::Builder::new()
            .name("kv-members".to_owned())
            // Not joined: resolving a name may take as long as the system likes, and nobody waits for this thread.
            .spawn(move || refresh(source, config, &refreshed))?;
        Ok(Self::of(shared))
    }

    /// The members of a `remote=`. `seed` varies the pauses between readings: see [`RefreshConfig::seed`].
    ///
    /// # Errors
    ///
    /// If the system starts no thread. What is wrong with a file or with Redis shows in [`Members::status`].
    pub fn open(url: &RemoteUrl, seed: u64) -> Result<Self, OpenError> {
        match &url.members {
            MembersFrom::Url(list) => Ok(Self::fixed(list.clone(), url.placement)?),
            MembersFrom::File(path) => {
                let config = RefreshConfig::for_file(url.placement, seed);
                Ok(Self::watch(FileSource::new(path), config)?)
            }
            MembersFrom::Redis(key) => {
                let config = RefreshConfig::for_redis(url.placement, seed);
                Ok(Self::watch(RedisSource::new(key.clone(), REDIS_TIMEOUT), config)?)
            }
        }
    }

    fn of(shared: Arc<Shared>) -> Self {
        Self { inner: Arc::new(Inner { shared }) }
    }

    /// The members of this moment. Takes no lock, allocates nothing, and never waits, whatever the source is doing.
    pub fn current(&self) -> Arc<MemberSnapshot> {
        self.inner.shared.current.load_full()
    }

    /// How refreshing goes.
    pub fn status(&self) -> RefreshStatus {
        self.inner.shared.status.lock().refresh.clone()
    }

    /// Waits until the status is as `wanted`, for `timeout` at most; whether it is. For threads that may wait: the one
    /// that connects to new members, command line tools and tests.
    pub fn wait_until(&self, timeout: Duration, wanted: impl Fn(&RefreshStatus) -> bool) -> bool {
        let shared = &*self.inner.shared;
        let deadline = Instant::now() + timeout;
        let mut status = shared.status.lock();
        while !wanted(&status.refresh) {
            if shared.changed.wait_until(&mut status, deadline).timed_out() {
                return wanted(&status.refresh);
            }
        }
        true
    }
}

impl fmt::Debug for Members {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Members").field("current", &self.current()).field("status", &self.status()).finish()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.status.lock().ended = true;
        self.shared.changed.notify_all();
    }
}

impl Shared {
    fn new(snapshot: MemberSnapshot, refresh: RefreshStatus) -> Arc<Self> {
        Arc::new(Self {
            current: ArcSwap::from_pointee(snapshot),
            status: Mutex::new(Status { refresh, ended: false }),
            changed: Condvar::new(),
        })
    }

    /// Takes in what a reading brought; how many have failed in a row.
    fn absorb(&self, reading: Result<Reading, SourceError>, placement: PlacementSource) -> u64 {
        let taken = reading.map_err(|error| error.to_string()).and_then(|reading| match reading {
            Reading::List(list) => self.replace(list, placement).map_err(|error| error.to_string()),
            Reading::Unchanged => Ok(()),
        });
        let generation = self.current.load().generation();
        let mut status = self.status.lock();
        let refresh = &mut status.refresh;
        match taken {
            Ok(()) => {
                refresh.readings += 1;
                refresh.failures_in_a_row = 0;
                refresh.last_error = None;
            }
            Err(error) => {
                refresh.failures += 1;
                refresh.failures_in_a_row += 1;
                refresh.last_error = Some(error);
            }
        }
        refresh.generation = generation;
        self.changed.notify_all();
        refresh.failures_in_a_row
    }

    /// Makes `list` the current one, with a table that is built here, before anybody sees it.
    fn replace(&self, list: MemberList, placement: PlacementSource) -> Result<(), MembersError> {
        let current = self.current.load();
        if current.generation() > 0 && *current.list() == list {
            return Ok(());
        }
        let snapshot = MemberSnapshot::new(current.generation() + 1, list, placement)?;
        self.current.store(Arc::new(snapshot));
        Ok(())
    }

    /// Waits for `pause`; whether to go on.
    fn rest(&self, pause: Duration) -> bool {
        let deadline = Instant::now() + pause;
        let mut status = self.status.lock();
        while !status.ended && !self.changed.wait_until(&mut status, deadline).timed_out() {}
        !status.ended
    }
}

/// The thread's whole life.
fn refresh(mut source: impl MemberSource, config: RefreshConfig, shared: &Shared) {
    let mut pauses = Pauses::new(config.interval, config.interval_max, config.seed);
    loop {
        let reading = source.read();
        let failures = shared.absorb(reading, config.placement);
        if !shared.rest(pauses.next(failures)) {
            return;
        }
    }
}

/// Why the members of a `remote=` are not kept.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The members make no ring.
    #[error(transparent)]
    Members(#[from] MembersError),
    /// No thread could be started.
    #[error("the system starts no thread to watch the members: {0}")]
    Thread(#[from] std::io::Error),
}

/// A reading of Redis that takes longer has failed.
const REDIS_TIMEOUT: Duration = Duration::from_secs(2);
