//! One look at one cache: observe, plan, apply, publish, say.
//!
//! Every look does the same from any state, and keeps nothing in memory that a later one needs to be right. It reads
//! from [`Stores`]; where all is as it should be it asks the API server for nothing.

pub mod finalizer;
mod last_accepted;
mod left_redis;
mod objects;
mod ring;
mod say;
mod store;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kube::{Api, Client, Resource};
use tokio::time::Instant;

use crate::api::{Accepted, AsWritten, Options, Problem, Reason, Refusal};
use crate::clock::{Clock, Jitter};
use crate::error::Error;
use crate::events::Events;
use crate::metrics::Metrics;
use crate::mirror::CacheKey;
use crate::plan::status::{StoreState, Verdict};
use crate::publish::turns::Turns;
use crate::queue::Next;
use crate::stores::Stores;

/// What all looks share.
pub struct Reconciler {
    client: Client,
    stores: Arc<Stores>,
    options: Options,
    settings: Settings,
    clock: Clock,
    jitter: Jitter,
    metrics: Arc<Metrics>,
    events: Events,
    turns: Turns,
    /// What was last published to each cache's Redis. Spares asking it again; forgetting it costs one question.
    published: Mutex<HashMap<CacheKey, store::Memory>>,
}

/// Times of a [`Reconciler`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// After how long a cache is looked at although nothing happened; spread by half as much again.
    pub resync: Duration,
    /// How long a cache that is deleted waits for its ring to be gone from a Redis that does not answer.
    pub farewell: Duration,
    /// How long it waits where the Redis answers to others, and has not come to this cache yet.
    pub farewell_in_line: Duration,
    /// How long a Redis has for an answer.
    pub patience: crate::publish::redis::Patience,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            resync: Duration::from_secs(300),
            farewell: Duration::from_secs(20),
            farewell_in_line: Duration::from_secs(600),
            patience: crate::publish::redis::Patience::default(),
        }
    }
}

impl Reconciler {
    /// One that writes through `client`. `identity` names it in events.
    pub fn new(
        client: Client,
        options: Options,
        settings: Settings,
        clock: Clock,
        identity: String,
        seed: u64,
    ) -> Self {
        Self {
            stores: Arc::default(),
            events: Events::new(client.clone(), identity),
            metrics: Arc::default(),
            jitter: Jitter::new(seed),
            turns: Turns::new(seed),
            published: Mutex::default(),
            client,
            options,
            settings,
            clock,
        }
    }

    /// The client.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The cluster's objects, as far as they are known.
    pub fn stores(&self) -> &Arc<Stores> {
        &self.stores
    }

    /// The counts.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// The clock.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Looks at a cache, and does what there is to do. Ends in bounded time.
    pub async fn look(&self, key: &CacheKey) -> Next {
        let started = Instant::now();
        let result = match tokio::time::timeout(LOOK, self.reconcile(key)).await {
            Ok(result) => result,
            Err(_) => Err(Error::TimedOut { what: "reconciliation".to_owned(), after: LOOK }),
        };
        self.metrics.reconciled(&key.namespace, &key.name, started.elapsed(), result.as_ref().err());
        match result {
            Ok(next) => next,
            Err(error @ Error::Conflict { .. }) => {
                log::debug!("{key}: {error}");
                Next::Conflict
            }
            Err(error) => {
                log::warn!("{key}: {error}");
                Next::Failed
            }
        }
    }

    async fn reconcile(&self, key: &CacheKey) -> Result<Next, Error> {
        let Some(listed) = self.stores.caches.get(key, &key.name) else {
            self.forget(key);
            return Ok(Next::Never);
        };
        if listed.meta().deletion_timestamp.is_some() {
            return self.say_farewell(key, &listed).await;
        }
        let last = self.last_accepted(key, &listed);
        let mut left = self.noted_left(key, &listed);
        let (verdict, blocked, written) = match listed.accept(&self.options) {
            // Of a cache that runs here it is an edit like any other: what runs goes on.
            Err(refusal) if refusal.is_unclaimed() && last.is_none() => {
                self.leave_to_others(key, &listed).await?;
                self.forget(key);
                self.say(key, &listed, &say::Seen::nothing(Verdict::Unclaimed(&refusal))).await?;
                return Ok(self.again(None));
            }
            Err(refusal) => (Err(refusal), Vec::new(), Ok(())),
            Ok(accepted) => {
                left = self.to_leave(key, left, last.as_ref(), &accepted);
                match self.write_objects(key, &listed, &accepted, &left).await {
                    Ok(blocked) => (Ok(accepted), blocked, Ok(())),
                    // What the API server refuses is the spec's fault, and its author is told.
                    Err(error @ Error::Refused { .. }) => {
                        (Err(refused_by_server(&error)), Vec::new(), Err(error))
                    }
                    // The ring does not wait for an API server that is slow with something else.
                    Err(error) => (Ok(accepted), Vec::new(), Err(error)),
                }
            }
        };
        // What runs is what was accepted last, if what is asked for now is not, or cannot be written: all of it, or all but
        // some objects.
        let written_last = written.as_ref().err().and_then(|_| self.last_accepted(key, &listed));
        let running: Option<&Accepted> = match &verdict {
            Ok(accepted) if blocked.is_empty() => written_last.as_ref().or(Some(accepted)),
            Ok(_) | Err(_) => last.as_ref(),
        };
        let mut seen = say::Seen::nothing(match &verdict {
            Ok(accepted) if blocked.is_empty() => Verdict::Accepted(accepted),
            Ok(accepted) => Verdict::Blocked(accepted, blocked.clone()),
            Err(refusal) => Verdict::Refused(refusal),
        });
        seen.write_failure = written.as_ref().err().and_then(worth_telling);
        let mut look_again = None;
        match running {
            Some(running) => {
                let ring = self.publish_ring(key, &listed, running).await;
                look_again = ring.as_ref().ok().and_then(|ring| ring.look_again);
                seen.store = self.last_store_state(key);
                let stored = match &ring {
                    Ok(ring) => {
                        seen.ring = Some(ring.summary());
                        self.publish_to_store(key, &listed, running, ring, &left).await
                    }
                    Err(error) => {
                        seen.ring_failure = Some(error.to_string());
                        Ok((seen.store.clone(), None))
                    }
                };
                match &stored {
                    Ok((state, again)) => {
                        seen.store = state.clone();
                        look_again = [look_again, *again].into_iter().flatten().min();
                    }
                    Err(error) => {
                        if let Some(why) = worth_telling(error) {
                            seen.store = StoreState::Failed(why);
                        }
                    }
                }
                self.say(key, &listed, &seen).await?;
                ring?;
                stored?;
            }
            None => self.say(key, &listed, &seen).await?,
        }
        written?;
        if let Ok(accepted) = &verdict
            && blocked.is_empty()
        {
            let again = self.leave(key, &listed, accepted, &left).await?;
            look_again = [look_again, again].into_iter().flatten().min();
        }
        // Objects that are somebody else's need not have our label, and then no watch tells when they are gone.
        let unblocked = (!blocked.is_empty()).then(|| Instant::now() + self.jitter.spread(BLOCKED));
        Ok(self.again([look_again, unblocked].into_iter().flatten().min()))
    }

    /// The next look, if nothing happens before.
    fn again(&self, at: Option<Instant>) -> Next {
        let resync = Instant::now() + self.jitter.spread(self.settings.resync);
        Next::At(at.map_or(resync, |at| at.min(resync)))
    }

    /// Drops what is known of a cache that is gone, or somebody else's.
    fn forget(&self, key: &CacheKey) {
        self.metrics.forget(&key.namespace, &key.name);
        self.stores.secret_users.note(key, []);
        self.published().remove(key);
    }

    fn api<K>(&self, key: &CacheKey) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), &key.namespace)
    }

    /// Caches themselves, readable or not.
    fn caches(&self, key: &CacheKey) -> Api<AsWritten> {
        Api::namespaced(self.client.clone(), &key.namespace)
    }

    /// The instant of a time of day.
    fn instant(&self, at: jiff::Timestamp) -> Instant {
        let wait = at.duration_since((self.clock)());
        Instant::now() + Duration::try_from(wait).unwrap_or_default()
    }

    fn last_store_state(&self, key: &CacheKey) -> StoreState {
        self.published().get(key).map_or(StoreState::NotConfigured, |memory| memory.state.clone())
    }

    fn published(&self) -> MutexGuard<'_, HashMap<CacheKey, store::Memory>> {
        // An entry is complete, whoever panicked.
        self.published.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a condition says of a failure. A conflict is none: the next look, a moment later, sees what the other wrote.
fn worth_telling(error: &Error) -> Option<String> {
    match error {
        Error::Conflict { .. } => None,
        other => Some(other.to_string()),
    }
}

fn refused_by_server(error: &Error) -> Refusal {
    let message = format!(
        "{error}; if the field cannot be changed, delete the StatefulSet with --cascade=orphan: it is made anew \
         around the pods that run"
    );
    let problem = Problem { field: "spec.cache".to_owned(), message };
    Refusal { reason: Reason::InvalidSpec, problems: vec![problem] }
}

/// Between two looks whether what is in the way is gone.
const BLOCKED: Duration = Duration::from_secs(15);
/// A look takes milliseconds. One whose API server or Redis does not answer must not keep a worker.
const LOOK: Duration = Duration::from_secs(60);
