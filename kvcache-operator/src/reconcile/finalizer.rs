//! The one thing that a cache leaves outside the cluster: its ring in a Redis that somebody else runs.
//!
//! Only caches that have such a Redis get a finalizer. A Redis that does not answer keeps a cache from going for
//! [`Settings::farewell`](super::Settings::farewell) at most, and one that has many caches to answer to for
//! [`Settings::farewell_in_line`](super::Settings::farewell_in_line).

use jiff::SignedDuration;
use kube::Resource;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use std::time::Duration;
use tokio::time::Instant;

use super::Reconciler;
use super::store::{BUSY, Target, Trouble};
use crate::api::AsWritten;
use crate::apply::{FIELD_MANAGER, is_missing};
use crate::error::{Error, answered};
use crate::mirror::CacheKey;
use crate::publish::turns::Urgency;
use crate::queue::Next;

/// Kept while the cache's ring may be in a Redis of somebody else.
pub const FINALIZER: &str = "kvcache.orchestration.aibrix.ai/redis-ring";

impl Reconciler {
    /// Has the cache wait for us when it is deleted.
    pub(super) async fn hold(&self, key: &CacheKey, listed: &AsWritten) -> Result<(), Error> {
        let mut finalizers = listed.meta().finalizers.clone().unwrap_or_default();
        if finalizers.iter().any(|finalizer| finalizer == FINALIZER) {
            return Ok(());
        }
        finalizers.push(FINALIZER.to_owned());
        self.set_finalizers(key, listed, &finalizers).await
    }

    /// Has it wait no longer.
    pub(super) async fn let_go(&self, key: &CacheKey, listed: &AsWritten) -> Result<(), Error> {
        let mut finalizers = listed.meta().finalizers.clone().unwrap_or_default();
        let count = finalizers.len();
        finalizers.retain(|finalizer| finalizer != FINALIZER);
        if finalizers.len() == count {
            return Ok(());
        }
        self.set_finalizers(key, listed, &finalizers).await
    }

    /// Ends a cache that is being deleted. Its objects go with it; its ring in a Redis is taken away here.
    pub(super) async fn say_farewell(&self, key: &CacheKey, listed: &AsWritten) -> Result<Next, Error> {
        let is_held = is_held(listed);
        // An edit that nobody has seen before the cache was deleted may name another Redis than the one that has the ring.
        let specs = [self.last_accepted(key, listed), listed.accept(&self.options).ok()];
        let of_specs = specs.iter().flatten().filter_map(Target::external);
        let left = self.noted_left(key, listed).into_iter().map(|left| left.target);
        let mut places: Vec<Target> = Vec::new();
        for place in of_specs.chain(left).filter(|_| is_held) {
            if !places.iter().any(|known| known.is_same_place(&place)) {
                places.push(place);
            }
        }
        let uid = listed.meta().uid.clone().unwrap_or_default();
        for place in places {
            match self.take_away(key, &uid, &place, Urgency::Now).await {
                Ok(_) => {}
                Err(Trouble::Busy { is_down: false })
                    if self.may_wait(listed, self.settings.farewell_in_line) =>
                {
                    log::debug!("{key}: is deleted, and waits until its Redis has answered to others");
                    // Not all of them in the same moment, of which the Redis would answer to one.
                    return Ok(Next::At(Instant::now() + self.jitter.spread(BUSY)));
                }
                Err(why) if self.may_wait(listed, self.settings.farewell) => {
                    log::info!("{key}: is deleted, and its ring is still in Redis: {why}");
                    return Ok(Next::At(Instant::now() + self.jitter.spread(TRY_AGAIN)));
                }
                Err(why) => log::warn!("{key}: goes, and its ring stays in Redis: {why}"),
            }
        }
        self.forget(key);
        if is_held {
            self.let_go(key, listed).await?;
        }
        // The watch tells when it is gone; others may have finalizers too.
        Ok(self.again(None))
    }

    /// Ends what was done for a cache that may be another operator's now, and of which nothing runs here any more. Its ring
    /// is taken away from its Redis, if this operator has brought it there and the Redis answers.
    ///
    /// # Errors
    ///
    /// Those of the API server.
    pub(super) async fn leave_to_others(&self, key: &CacheKey, listed: &AsWritten) -> Result<(), Error> {
        if !is_held(listed) || self.has_noted(key, listed) {
            return Ok(());
        }
        let uid = listed.meta().uid.clone().unwrap_or_default();
        if let Some(place) = self.last_target(key)
            && let Err(why) = self.take_away(key, &uid, &place, Urgency::Now).await
        {
            log::warn!("{key}: is not served any more, and its ring stays in Redis: {why}");
        }
        self.let_go(key, listed).await
    }

    /// Whether a cache was deleted less than `longest` ago.
    fn may_wait(&self, listed: &AsWritten, longest: Duration) -> bool {
        let deleted = listed.meta().deletion_timestamp.as_ref().map(|time| time.0);
        let longest = SignedDuration::try_from(longest).unwrap_or(SignedDuration::ZERO);
        deleted.is_some_and(|deleted| (self.clock)().duration_since(deleted) < longest)
    }

    async fn set_finalizers(
        &self,
        key: &CacheKey,
        listed: &AsWritten,
        finalizers: &[String],
    ) -> Result<(), Error> {
        // The version makes this fail if somebody else has changed the list.
        let version = &listed.meta().resource_version;
        let patch = json!({ "metadata": { "resourceVersion": version, "finalizers": finalizers } });
        let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        let caches = self.caches(key);
        match answered("set finalizers", caches.patch(&key.name, &params, &Patch::Merge(patch))).await {
            // The answer to the removal of the last finalizer may be of an object that is gone; the watch knows.
            Ok(written) if written.meta().deletion_timestamp.is_some() => Ok(()),
            Ok(written) => {
                self.metrics.wrote();
                self.stores.caches.wrote(written);
                Ok(())
            }
            Err(Error::Api { source, .. }) if is_missing(&source) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

fn is_held(listed: &AsWritten) -> bool {
    listed.meta().finalizers.iter().flatten().any(|finalizer| finalizer == FINALIZER)
}

const TRY_AGAIN: Duration = Duration::from_secs(2);
