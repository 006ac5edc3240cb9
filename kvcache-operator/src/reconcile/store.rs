//! Publishes the ring to Redis, where engines of AIBrix look for it.

use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::{Api, ResourceExt};
use kvcache_core::ring::ServerAddress;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::Reconciler;
use super::left_redis::LeftRedis;
use super::ring::CurrentRing;
use crate::api::{Accepted, AsWritten, Metadata, REDIS_PORT, SecretKey, label};
use crate::error::{Error, answered};
use crate::mirror::CacheKey;
use crate::plan::names;
use crate::plan::status::StoreState;
use crate::publish::RingOwner;
use crate::publish::redis::{self, Published, RingKey};
use crate::publish::turns::{NotAsked, Urgency};

/// What is known of a cache's Redis since it was asked last.
pub(super) struct Memory {
    target: Target,
    /// The version that was published.
    version: u64,
    /// The highest version that was found there.
    pub(super) version_seen: u64,
    /// The Redis pods of then: one that was started anew has forgotten the ring.
    pods: Vec<String>,
    pub(super) state: StoreState,
    failures: u32,
    again: Instant,
}

/// A key in a Redis, and where its password is.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(super) struct Target {
    host: String,
    port: u16,
    key: String,
    password: Option<SecretKey>,
}

impl Target {
    /// Where a cache's ring is to be; `None` if only in its ConfigMap.
    pub(super) fn of(accepted: &Accepted) -> Option<Self> {
        let (host, port, password) = match &accepted.metadata {
            Metadata::None => return None,
            Metadata::External { host, port, password } => (host.clone(), *port, password.clone()),
            Metadata::InCluster(redis) => {
                let host = format!("{}.{}.svc", names::redis(&accepted.name), accepted.namespace);
                (host, REDIS_PORT, redis.password.clone())
            }
        };
        Some(Self { host, port, key: accepted.ring.redis_key.clone(), password })
    }

    /// The same, of a Redis that somebody else runs.
    pub(super) fn external(accepted: &Accepted) -> Option<Self> {
        Self::of(accepted).filter(|_| matches!(accepted.metadata, Metadata::External { .. }))
    }

    /// Whether two specs have their ring at the same place, whatever the password is.
    pub(super) fn is_same_place(&self, other: &Self) -> bool {
        (&self.host, self.port, &self.key) == (&other.host, other.port, &other.key)
    }

    pub(super) fn server(&self) -> String {
        format!("redis at {}:{}", self.host, self.port)
    }

    fn address(&self) -> Result<ServerAddress, Trouble> {
        ServerAddress::new(&self.host, self.port).map_err(|error| Trouble::Redis(error.to_string()))
    }

    fn ring_key(&self, server: &ServerAddress, password: Option<String>) -> RingKey {
        RingKey { server: server.clone(), password, key: self.key.clone() }
    }
}

/// Why a ring could not be brought to Redis, or be taken away.
pub(super) enum Trouble {
    Secret(String),
    Redis(String),
    /// The server did not answer to others, and is left alone until then.
    Down(Instant, String),
    /// Others ask it, and wait.
    Busy {
        /// Whether it did not answer lately either.
        is_down: bool,
    },
}

impl From<NotAsked> for Trouble {
    fn from(not_asked: NotAsked) -> Self {
        match not_asked {
            NotAsked::Down { until, why } => Self::Down(until, why),
            NotAsked::Busy { is_down } => Self::Busy { is_down },
        }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Secret(why) | Self::Redis(why) | Self::Down(_, why) => f.write_str(why),
            Self::Busy { .. } => f.write_str(NOT_ASKED),
        }
    }
}

impl Reconciler {
    /// Publishes the ring to the cache's Redis, if it has one and there is a reason to ask it. Tells what came of it, and
    /// when to ask again. `left` is where the ring may be as well.
    ///
    /// # Errors
    ///
    /// Those of the API server. What Redis says is a state.
    pub(super) async fn publish_to_store(
        &self,
        key: &CacheKey,
        listed: &AsWritten,
        running: &Accepted,
        ring: &CurrentRing,
        left: &[LeftRedis],
    ) -> Result<(StoreState, Option<Instant>), Error> {
        let target = Target::of(running);
        let secret = target.as_ref().and_then(|target| target.password.as_ref());
        self.stores.secret_users.note(key, secret.map(|secret| secret.secret.as_str()));
        if matches!(running.metadata, Metadata::External { .. }) || !left.is_empty() {
            // Before the first write there: whatever is left behind has somebody who takes it away.
            self.hold(key, listed).await?;
        } else {
            self.let_go(key, listed).await?;
        }
        let Some(target) = target else {
            self.published().remove(key);
            return Ok((StoreState::NotConfigured, None));
        };
        let pods = self.redis_pods(key);
        let version = ring.decision.version();
        let has_new_secret = self.stores.secret_users.take_news(key);
        let (mut version_seen, mut failures, mut urgency) = (0, 0, Urgency::None);
        let mut last_state = None;
        if let Some(memory) = self.published().get_mut(key) {
            let has_news = has_new_secret || memory.pods != pods;
            let is_same = memory.target == target && memory.version == version;
            if is_same && !has_news && Instant::now() < memory.again {
                return Ok((memory.state.clone(), Some(memory.again)));
            }
            // News are told once. If nothing comes of this look, the next one asks all the same.
            memory.again = Instant::now();
            version_seen = memory.version_seen;
            failures = memory.failures;
            if memory.target == target {
                last_state = Some(memory.state.clone());
            }
            if has_news {
                urgency = Urgency::Now;
            }
        }
        let (state, again) = match self.send(key, running, &target, ring, urgency).await? {
            Ok(Published::Written) => {
                self.metrics.wrote();
                (StoreState::Connected, self.jitter.spread(self.settings.resync))
            }
            Ok(Published::Unchanged) => (StoreState::Connected, self.jitter.spread(self.settings.resync)),
            Ok(Published::Superseded { version }) => {
                // The next ring is one that counts for more than what is there.
                version_seen = version_seen.max(version);
                (StoreState::Connected, SUPERSEDED)
            }
            Ok(Published::KeyInUse { owner }) => {
                let message = format!(
                    "key {:?} of {}:{} is in use by {owner}: set spec.server.ring.perClusterKey, or use another Redis",
                    target.key, target.host, target.port
                );
                (StoreState::KeyInUse(message), self.jitter.spread(KEY_IN_USE))
            }
            Err(Trouble::Secret(what)) => (StoreState::SecretMissing(what), self.settings.resync),
            Err(Trouble::Redis(why)) => {
                let wait = self.jitter.spread(backoff(failures));
                failures = failures.saturating_add(1);
                (StoreState::Unreachable(why), wait)
            }
            Err(Trouble::Down(until, why)) => {
                // Not all of its caches in the same moment.
                let wait = until.saturating_duration_since(Instant::now()) + self.jitter.spread(BUSY);
                (StoreState::Unreachable(why), wait)
            }
            Err(Trouble::Busy { .. }) => {
                let unknown = || StoreState::Unreachable(format!("{}: {NOT_ASKED}", target.server()));
                let again = Instant::now() + self.jitter.spread(BUSY);
                if let Some(memory) = self.published().get_mut(key) {
                    // Whatever the reason was to ask, it still is one.
                    memory.again = again;
                }
                return Ok((last_state.unwrap_or_else(unknown), Some(again)));
            }
        };
        if !matches!(state, StoreState::Unreachable(_)) {
            failures = 0;
        }
        let again = Instant::now() + again;
        let memory = Memory { target, version, version_seen, pods, state: state.clone(), failures, again };
        self.published().insert(key.clone(), memory);
        Ok((state, Some(again)))
    }

    /// Has the next look ask the cache's Redis, if it has one.
    pub(super) fn ask_again(&self, key: &CacheKey) {
        if let Some(memory) = self.published().get_mut(key) {
            memory.again = Instant::now();
        }
    }

    /// Where the ring was brought last, as far as this operator knows.
    pub(super) fn last_target(&self, key: &CacheKey) -> Option<Target> {
        self.published().get(key).map(|memory| memory.target.clone())
    }

    /// Removes the ring of the cache with this uid from a Redis. Whether it is gone; not if it is somebody else's.
    pub(super) async fn take_away(
        &self,
        key: &CacheKey,
        uid: &str,
        target: &Target,
        urgency: Urgency,
    ) -> Result<bool, Trouble> {
        let server = target.address()?;
        let turn = self.turns.turn(&server, urgency).await?;
        let password = match self.password(key, target.password.as_ref()).await {
            Ok(password) => password?,
            Err(error) => return Err(Trouble::Redis(error.to_string())),
        };
        let owner = owner(key, uid);
        let answer = redis::remove(&target.ring_key(&server, password), &owner, self.settings.patience).await;
        turn.heard(&answer);
        match answer {
            Ok(redis::Removed::Gone) => Ok(true),
            Ok(redis::Removed::NotOurs) => Ok(false),
            Err(error) => Err(Trouble::Redis(error.to_string())),
        }
    }

    async fn send(
        &self,
        key: &CacheKey,
        running: &Accepted,
        target: &Target,
        ring: &CurrentRing,
        urgency: Urgency,
    ) -> Result<Result<Published, Trouble>, Error> {
        let server = match target.address() {
            Ok(server) => server,
            Err(trouble) => return Ok(Err(trouble)),
        };
        // The Secret is read within the turn: many caches of a Redis that does not answer ask nobody for anything.
        let turn = match self.turns.turn(&server, urgency).await {
            Ok(turn) => turn,
            Err(not_asked) => return Ok(Err(not_asked.into())),
        };
        let password = match self.password(key, target.password.as_ref()).await? {
            Ok(password) => password,
            Err(trouble) => return Ok(Err(trouble)),
        };
        let ring_key = target.ring_key(&server, password);
        let document = ring.decision.document();
        let answer =
            redis::publish(&ring_key, &document, &owner(key, &running.uid), self.settings.patience).await;
        turn.heard(&answer);
        Ok(answer.map_err(|error| Trouble::Redis(error.to_string())))
    }

    async fn password(
        &self,
        key: &CacheKey,
        secret: Option<&SecretKey>,
    ) -> Result<Result<Option<String>, Trouble>, Error> {
        let Some(SecretKey { secret: name, key: field }) = secret else { return Ok(Ok(None)) };
        let api: Api<Secret> = self.api(key);
        let Some(secret) = answered(&format!("get Secret {name}"), api.get_opt(name)).await? else {
            let what = format!("Secret {name} is not in namespace {}", key.namespace);
            return Ok(Err(Trouble::Secret(what)));
        };
        let bytes = secret.data.and_then(|mut data| data.remove(field));
        Ok(match bytes.map(|bytes| String::from_utf8(bytes.0)) {
            Some(Ok(password)) => Ok(Some(password)),
            Some(Err(_)) => Err(Trouble::Secret(format!("key {field} of Secret {name} is not text"))),
            None => Err(Trouble::Secret(format!("Secret {name} has no key {field}"))),
        })
    }

    /// Which Redis pods run, and since when they are ready.
    fn redis_pods(&self, key: &CacheKey) -> Vec<String> {
        let of_redis = |pod: &Pod| pod.labels().get(label::ROLE).is_some_and(|role| role == "metadata");
        let pods = self.stores.pods.of(key);
        pods.iter()
            .filter(|pod| of_redis(pod))
            .map(|pod| format!("{:?} {:?}", pod.uid(), ready_since(pod)))
            .collect()
    }
}

fn ready_since(pod: &Pod) -> Option<Timestamp> {
    let mut conditions = pod.status.iter().flat_map(|status| &status.conditions).flatten();
    let ready = conditions.find(|condition| condition.type_ == "Ready" && condition.status == "True")?;
    Some(ready.last_transition_time.as_ref()?.0)
}

fn owner(key: &CacheKey, uid: &str) -> RingOwner {
    RingOwner { name: key.to_string(), uid: uid.to_owned() }
}

/// 2 s, 4 s, ... 128 s.
fn backoff(failures: u32) -> Duration {
    Duration::from_secs(2 << failures.min(6))
}

/// Long enough that another publisher, which should not be, cannot make this one turn in circles.
const SUPERSEDED: Duration = Duration::from_secs(1);
/// A server that others wait for is asked again.
pub(super) const BUSY: Duration = Duration::from_secs(1);
const NOT_ASKED: &str = "not asked yet: other caches ask it, and it does not answer at once";
/// Nothing tells when a key becomes free.
const KEY_IN_USE: Duration = Duration::from_secs(60);
