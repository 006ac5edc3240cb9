//! Tells of a look: status and events.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Resource;
use kube::api::{Patch, PatchParams};
use serde_json::json;

use super::Reconciler;
use super::ring::summary;
use crate::api::{AsWritten, KVCache, KVCacheStatus};
use crate::apply::FIELD_MANAGER;
use crate::error::{Error, answered};
use crate::mirror::CacheKey;
use crate::plan::names;
use crate::plan::status::{Observation, Ring, Servers, StoreState, Verdict, status};

/// What a look found that the stores do not show.
pub(super) struct Seen<'a> {
    verdict: Verdict<'a>,
    /// The ring that is published; `None` if this look does not know it.
    pub(super) ring: Option<Ring>,
    pub(super) ring_failure: Option<String>,
    /// Why objects are not as they should be.
    pub(super) write_failure: Option<String>,
    pub(super) store: StoreState,
}

impl<'a> Seen<'a> {
    pub(super) fn nothing(verdict: Verdict<'a>) -> Self {
        let store = StoreState::NotConfigured;
        Self { verdict, ring: None, ring_failure: None, write_failure: None, store }
    }
}

impl Reconciler {
    /// Writes the status if it says something new, and then an event for each condition that does.
    ///
    /// # Errors
    ///
    /// Those of the API server. Events are only tried.
    pub(super) async fn say(&self, key: &CacheKey, listed: &AsWritten, seen: &Seen<'_>) -> Result<(), Error> {
        let observation = Observation {
            name: &key.name,
            generation: listed.meta().generation.unwrap_or(0),
            verdict: seen.verdict.clone(),
            write_failure: seen.write_failure.clone(),
            servers: self.observed_servers(key, listed, &seen.verdict),
            ring: seen.ring.or_else(|| self.observed_ring(key)),
            ring_failure: seen.ring_failure.clone(),
            store: seen.store.clone(),
        };
        let before = listed.cache.status.as_ref();
        let after = status(before, &observation, (self.clock)());
        if before == Some(&after) {
            return Ok(());
        }
        let patch = json!({
            "apiVersion": KVCache::api_version(&()), "kind": KVCache::kind(&()),
            // Not the status of another cache that has the name by now.
            "metadata": { "name": key.name, "uid": listed.meta().uid },
            "status": after,
        });
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let patch = Patch::Apply(&patch);
        let caches = self.caches(key);
        let written = answered("apply status", caches.patch_status(&key.name, &params, &patch)).await?;
        self.metrics.wrote();
        // The answer has what others wrote meanwhile, too. That is news for the watch to bring: entered here, nobody would
        // look at it.
        if written.asked_for() == listed.asked_for() {
            self.stores.caches.wrote(written);
        }
        let about = reference(key, listed);
        self.events.publish(conditions(before), conditions(Some(&after)), &about).await;
        let is_new_generation =
            before.and_then(|status| status.observed_generation) != after.observed_generation;
        if let Verdict::Accepted(accepted) = &seen.verdict
            && is_new_generation
        {
            self.events.note(&accepted.notes, &about).await;
        }
        Ok(())
    }

    fn observed_servers(&self, key: &CacheKey, listed: &AsWritten, verdict: &Verdict<'_>) -> Servers {
        let set = self.stores.stateful_sets.get(key, &names::servers(&key.name));
        let owner = listed.meta().uid.as_deref().unwrap_or_default();
        let set = set.filter(|set| crate::apply::is_controlled(set.meta(), owner));
        let runs = set.as_ref().and_then(|set| set.spec.as_ref()?.replicas);
        let status = set.as_ref().and_then(|set| set.status.as_ref());
        let count = |count: Option<i32>| count.and_then(|count| u32::try_from(count).ok()).unwrap_or(0);
        // A count that the controller made for an older template says nothing of today's.
        let generation = set.as_ref().and_then(|set| set.metadata.generation);
        let is_current = status.is_some_and(|status| status.observed_generation == generation);
        Servers {
            wanted: match verdict {
                Verdict::Accepted(accepted) => accepted.workload.replicas,
                Verdict::Refused(_) | Verdict::Unclaimed(_) | Verdict::Blocked(..) => count(runs),
            },
            present: count(status.map(|status| status.replicas)),
            ready: count(status.and_then(|status| status.ready_replicas)),
            current: count(status.filter(|_| is_current).and_then(|status| status.updated_replicas)),
        }
    }

    /// The ring that readers see.
    fn observed_ring(&self, key: &CacheKey) -> Option<Ring> {
        let (_, ring) = self.stores.config_maps.noted(key, &names::ring(&key.name))?;
        let ring = ring.filter(|ring| ring.unreadable().is_none())?;
        Some(summary(ring.version(), ring.members().len()))
    }
}

fn reference(key: &CacheKey, listed: &AsWritten) -> ObjectReference {
    ObjectReference {
        api_version: Some(KVCache::api_version(&()).into_owned()),
        kind: Some(KVCache::kind(&()).into_owned()),
        namespace: Some(key.namespace.clone()),
        name: Some(key.name.clone()),
        uid: listed.meta().uid.clone(),
        ..ObjectReference::default()
    }
}

fn conditions(
    status: Option<&KVCacheStatus>,
) -> &[k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition] {
    status.and_then(|status| status.conditions.as_deref()).unwrap_or_default()
}
