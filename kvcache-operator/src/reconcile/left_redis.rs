//! Each Redis that a cache has left, until its ring is gone from there.
//!
//! A cache whose spec names another Redis, or none any more, leaves the one of before; not sooner than its objects are
//! written, since until then it may have to stay. From then on its last accepted spec is the new one, so that where the
//! ring still is has to be noted elsewhere: in another annotation of the StatefulSet, which comes with the same write. An
//! operator that dies in between, or that has to wait for its turn, finds it there.

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::StatefulSet;
use kube::ResourceExt;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::Reconciler;
use super::store::{BUSY, Target, Trouble};
use crate::api::{Accepted, AsWritten};
use crate::error::Error;
use crate::mirror::CacheKey;
use crate::publish::turns::Urgency;

/// The annotation of the StatefulSet.
const LEFT: &str = "kvcache.orchestration.aibrix.ai/left-redis";

/// A Redis that a cache has left.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(super) struct LeftRedis {
    pub(super) target: Target,
    /// Seconds since 1970.
    since_unix_s: i64,
}

/// Notes on the servers' StatefulSet what is still to be left.
pub(super) fn note(set: &mut StatefulSet, left: &[LeftRedis]) {
    // Strings and a number are JSON whatever they are.
    if !left.is_empty()
        && let Ok(text) = serde_json::to_string(left)
    {
        set.annotations_mut().insert(LEFT.to_owned(), text);
    }
}

impl Reconciler {
    /// What is noted as left, whatever the spec of now says.
    pub(super) fn noted_left(&self, key: &CacheKey, listed: &AsWritten) -> Vec<LeftRedis> {
        let Some(set) = self.own_set(key, listed) else { return Vec::new() };
        let text = set.annotations().get(LEFT);
        let mut left: Vec<LeftRedis> =
            text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        left.truncate(LEFT_MAX);
        left
    }

    /// What is to be left once a spec is carried out: what was before, and the Redis of the last spec, if this one has
    /// another.
    pub(super) fn to_leave(
        &self,
        key: &CacheKey,
        mut left: Vec<LeftRedis>,
        last: Option<&Accepted>,
        now: &Accepted,
    ) -> Vec<LeftRedis> {
        if let Some(target) = last.and_then(Target::external)
            && !left.iter().any(|left| left.target.is_same_place(&target))
        {
            left.push(LeftRedis { target, since_unix_s: (self.clock)().as_second() });
        }
        if let Some(target) = Target::of(now) {
            left.retain(|left| !left.target.is_same_place(&target));
        }
        while left.len() > LEFT_MAX {
            let forgotten = left.remove(0);
            log::warn!(
                "{key}: too many Redis left at once: the ring stays in the {}",
                forgotten.target.server()
            );
        }
        left
    }

    /// Takes the ring away from where it is no longer wanted. A Redis that does not answer keeps it. Tells when to look
    /// again.
    ///
    /// # Errors
    ///
    /// Those of the API server.
    pub(super) async fn leave(
        &self,
        key: &CacheKey,
        listed: &AsWritten,
        now: &Accepted,
        left: &[LeftRedis],
    ) -> Result<Option<Instant>, Error> {
        let mut remaining = Vec::new();
        for redis in left {
            match self.take_away(key, &now.uid, &redis.target, Urgency::None).await {
                // It may be the Redis of now under another name: then the ring is to be written there again.
                Ok(true) => self.ask_again(key),
                Ok(false) => {
                    log::info!("{key}: the ring in the {} is not ours, and stays", redis.target.server())
                }
                // It answers soon, or is known to be down soon.
                Err(Trouble::Busy { .. }) if redis.may_wait((self.clock)()) => remaining.push(redis.clone()),
                Err(why) => log::warn!("{key}: the ring stays in the Redis of before: {why}"),
            }
        }
        if remaining == left {
            return Ok((!left.is_empty()).then(|| Instant::now() + self.jitter.spread(BUSY)));
        }
        self.write_objects(key, listed, now, &remaining).await?;
        // At once, with what is left now; unless the note stays because somebody else wrote it as well.
        let is_noted = self.noted_left(key, listed) == remaining;
        Ok(is_noted.then(Instant::now))
    }
}

impl LeftRedis {
    /// Whether it was left a short while ago. Nobody knows who wrote the time: one that is far ahead is as good as one of long
    /// ago.
    fn may_wait(&self, now: Timestamp) -> bool {
        now.as_second().saturating_sub(self.since_unix_s).unsigned_abs() < IN_LINE_S
    }
}

/// For how long a cache waits for its turn at a Redis that it has left.
const IN_LINE_S: u64 = 600;
/// More than anyone leaves within that time.
const LEFT_MAX: usize = 8;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Whoever may edit a StatefulSet can write any time there.
    #[test]
    fn a_time_that_cannot_be_is_no_reason_to_wait() {
        let now = Timestamp::from_second(1_800_000_000).expect("a time");
        for (since, waits) in [
            (now.as_second(), true),
            (now.as_second() - 599, true),
            (now.as_second() - 600, false),
            // A clock that is a little behind the one of before.
            (now.as_second() + 30, true),
            (now.as_second() + 3600, false),
            (i64::MAX, false),
            (0, false),
            (i64::MIN, false),
        ] {
            let target = json!({ "host": "redis.example", "port": 6379, "key": "k", "password": null });
            let left: LeftRedis = serde_json::from_value(json!({ "target": target, "since_unix_s": since }))
                .expect("as it is noted");
            assert_eq!(left.may_wait(now), waits, "{since}");
        }
    }
}
