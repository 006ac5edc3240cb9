//! Publishes the ring that follows from the pods.

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Resource, ResourceExt};
use kvcache_core::ring::RING_SLOTS;
use tokio::time::Instant;

use super::Reconciler;
use crate::api::{Accepted, AsWritten};
use crate::apply::{Place, is_controlled, look};
use crate::error::Error;
use crate::mirror::CacheKey;
use crate::plan::names;
use crate::plan::ring::{PublishedRing, RingChange, RingDecision, RingOptions, RingPod, decide};
use crate::plan::status::Ring;
use crate::publish::config_map;

/// The ring as it is published now.
pub(super) struct CurrentRing {
    pub(super) decision: RingDecision,
    /// When pods may have come of age, or been away for too long.
    pub(super) look_again: Option<Instant>,
}

impl CurrentRing {
    pub(super) fn summary(&self) -> Ring {
        summary(self.decision.version(), self.decision.member_count())
    }
}

/// What a status says of a ring.
pub(super) fn summary(version: u64, members: usize) -> Ring {
    Ring {
        version,
        members: u32::try_from(members).unwrap_or(u32::MAX),
        slots: if members == 0 { 0 } else { RING_SLOTS as u32 },
    }
}

impl Reconciler {
    /// Publishes the ring to its ConfigMap, if it is another one.
    ///
    /// # Errors
    ///
    /// Those of the API server; [`Error::Refused`] if the ConfigMap is somebody else's.
    pub(super) async fn publish_ring(
        &self,
        key: &CacheKey,
        listed: &AsWritten,
        running: &Accepted,
    ) -> Result<CurrentRing, Error> {
        let name = names::ring(&key.name);
        let api = self.api::<ConfigMap>(key);
        let (known, note) = self.stores.config_maps.noted(key, &name).unzip();
        let place = look(&api, &name, known, &running.uid).await?;
        let live = match place {
            Place::Free => None,
            Place::Ours(live) => Some(live),
            // The watch tells when it is gone.
            Place::Deleting => {
                return Err(Error::Conflict { what: format!("ConfigMap {name} is being deleted") });
            }
            Place::Foreign(foreign) => {
                let message = "rename the cache, or remove what stands in its way".to_owned();
                return Err(Error::Refused { what: foreign.to_string(), message });
            }
        };
        let seen = self.version_seen(key, listed);
        let published = match note {
            Some(note) => {
                note.map_or_else(PublishedRing::default, |ring| PublishedRing::clone(&ring)).seen(seen)
            }
            // No watch has told of it.
            None => {
                let text = live.as_ref().and_then(|live| live.data.as_ref()?.get(names::RING_KEY));
                PublishedRing::read(text.map(String::as_str), seen)
            }
        };
        let now = (self.clock)();
        let pods = self.servers(key, running);
        let decision = decide(&pods, &published, &ring_options(running), now);
        if decision.change != RingChange::None {
            let written = config_map::publish(&api, running, live.as_deref(), &decision.text()).await?;
            self.metrics.wrote();
            self.stores.config_maps.wrote(written);
        }
        if decision.change == RingChange::Ring {
            log::info!(
                "{key}: ring {}: {} servers, entered {:?}, left {:?}, {} slots moved",
                decision.version(),
                decision.member_count(),
                decision.entered,
                decision.left,
                decision.moved_slots
            );
        }
        let moved = match decision.change {
            RingChange::Ring => decision.moved_slots as u64,
            RingChange::None | RingChange::Memory => 0,
        };
        self.metrics.ring(&key.namespace, &key.name, decision.version(), decision.member_count(), moved, now);
        let look_again = decision.look_again.map(|at| self.instant(at));
        Ok(CurrentRing { decision, look_again })
    }

    /// The pods of the cache's StatefulSet, and no others that have its labels.
    pub(super) fn servers(&self, key: &CacheKey, running: &Accepted) -> Vec<RingPod> {
        let Some(set) = self.stores.stateful_sets.get(key, &names::servers(&key.name)) else {
            return Vec::new();
        };
        let Some(uid) = set.uid().filter(|_| is_controlled(set.meta(), &running.uid)) else {
            return Vec::new();
        };
        let mut pods = self.stores.pods.all_noted(key);
        pods.retain(|(pod, _)| is_controlled(pod.meta(), &uid));
        pods.iter().map(|(pod, port)| RingPod::of(pod, *port)).collect()
    }

    /// The highest version that the ring is known to have had.
    fn version_seen(&self, key: &CacheKey, listed: &AsWritten) -> u64 {
        let said = listed.cache.status.as_ref().and_then(|status| status.ring_version);
        let said = said.and_then(|version| u64::try_from(version).ok()).unwrap_or(0);
        said.max(self.published().get(key).map_or(0, |memory| memory.version_seen))
    }
}

fn ring_options(running: &Accepted) -> RingOptions {
    let headless = names::headless_service(&running.name);
    RingOptions {
        name: names::servers(&running.name),
        replicas: running.workload.replicas,
        port: running.ports.serve,
        domain: format!("{headless}.{}.svc", running.namespace),
        min_ready: running.ring.min_ready,
        not_ready_grace: running.ring.not_ready_grace,
    }
}
