//! Writes the objects of a cache, and deletes those that are no longer wanted.

use std::collections::BTreeSet;

use k8s_openapi::NamespaceResourceScope;
use kube::{Api, Resource, ResourceExt};

use super::left_redis::LeftRedis;
use super::{Reconciler, last_accepted, left_redis};
use crate::api::{Accepted, AsWritten};
use crate::apply::{FIELD_MANAGER, Object, Place, apply, is_controlled, look, remove};
use crate::error::Error;
use crate::metrics::Metrics;
use crate::mirror::{CacheKey, Mirror};
use crate::plan::{Desired, desired, names};

impl Reconciler {
    /// Makes a cache's objects as they should be, and notes what is still to be left. Returns what stands in the way; then
    /// nothing was written.
    ///
    /// # Errors
    ///
    /// The first of the API server's; all objects were tried.
    pub(super) async fn write_objects(
        &self,
        key: &CacheKey,
        listed: &AsWritten,
        accepted: &Accepted,
        left: &[LeftRedis],
    ) -> Result<Vec<String>, Error> {
        let stores = &*self.stores;
        let mut accounts = Kind::new(self.api(key), &stores.accounts, key, accepted);
        let mut services = Kind::new(self.api(key), &stores.services, key, accepted);
        let mut sets = Kind::new(self.api(key), &stores.stateful_sets, key, accepted);
        let mut budgets = Kind::new(self.api(key), &stores.budgets, key, accepted);
        let mut maps = Kind::new(self.api(key), &stores.config_maps, key, accepted);
        for object in desired(accepted) {
            match object {
                Desired::ServiceAccount(object) => accounts.wanted.push(*object),
                Desired::Service(object) => services.wanted.push(*object),
                Desired::StatefulSet(mut object) => {
                    if object.metadata.name.as_deref() == Some(&names::servers(&key.name)) {
                        last_accepted::note(&mut object, &listed.cache);
                        left_redis::note(&mut object, left);
                    }
                    sets.wanted.push(*object);
                }
                Desired::PodDisruptionBudget(object) => budgets.wanted.push(*object),
                Desired::ConfigMap(object) => maps.wanted.push(*object),
            }
        }
        let mut foreign = accounts.look().await?;
        foreign.extend(services.look().await?);
        foreign.extend(sets.look().await?);
        foreign.extend(budgets.look().await?);
        foreign.extend(maps.look().await?);
        if !foreign.is_empty() {
            return Ok(foreign);
        }
        let metrics = &*self.metrics;
        // What the servers refer to comes first.
        let results = [
            accounts.write(metrics).await,
            services.write(metrics).await,
            sets.write(metrics).await,
            budgets.write(metrics).await,
            maps.write(metrics).await,
        ];
        results.into_iter().collect::<Result<(), Error>>()?;
        // The ring is published by another hand.
        let ring = names::ring(&key.name);
        maps.prune(Some(&ring), metrics).await?;
        budgets.prune(None, metrics).await?;
        sets.prune(None, metrics).await?;
        services.prune(None, metrics).await?;
        accounts.prune(None, metrics).await?;
        Ok(Vec::new())
    }
}

/// The objects of one kind.
struct Kind<'a, K, N> {
    api: Api<K>,
    mirror: &'a Mirror<K, N>,
    key: &'a CacheKey,
    owner: &'a str,
    wanted: Vec<K>,
    places: Vec<Place<K>>,
}

impl<'a, K: Object + Resource<Scope = NamespaceResourceScope>, N: Clone> Kind<'a, K, N> {
    fn new(api: Api<K>, mirror: &'a Mirror<K, N>, key: &'a CacheKey, accepted: &'a Accepted) -> Self {
        Self { api, mirror, key, owner: &accepted.uid, wanted: Vec::new(), places: Vec::new() }
    }

    /// Looks at all places. Returns whose they are, where they are not ours.
    async fn look(&mut self) -> Result<Vec<String>, Error> {
        let mut foreign = Vec::new();
        for wanted in &self.wanted {
            let name = wanted.name_any();
            let place = look(&self.api, &name, self.mirror.get(self.key, &name), self.owner).await?;
            if let Place::Foreign(other) = &place {
                foreign.push(other.to_string());
            }
            self.places.push(place);
        }
        Ok(foreign)
    }

    async fn write(&self, metrics: &Metrics) -> Result<(), Error> {
        let mut result = Ok(());
        for (wanted, place) in self.wanted.iter().zip(&self.places) {
            match apply(&self.api, wanted, place).await {
                Ok(Some(written)) => {
                    metrics.wrote();
                    self.mirror.wrote(written);
                }
                Ok(None) => {}
                Err(error) => result = result.and(Err(error)),
            }
        }
        result
    }

    /// Deletes what this operator made for the cache and what is wanted no more.
    async fn prune(&self, but: Option<&str>, metrics: &Metrics) -> Result<(), Error> {
        let wanted: BTreeSet<String> = self.wanted.iter().map(ResourceExt::name_any).collect();
        for live in self.mirror.of(self.key) {
            let name = live.name_any();
            let is_ours =
                live.labels().get("app.kubernetes.io/managed-by").is_some_and(|by| by == FIELD_MANAGER)
                    && is_controlled(live.meta(), self.owner);
            let is_wanted = wanted.contains(&name) || but == Some(&name);
            if is_ours && !is_wanted && live.meta().deletion_timestamp.is_none() {
                remove(&self.api, &*live).await?;
                metrics.wrote();
                self.mirror.deleted(&live);
            }
        }
        Ok(())
    }
}
