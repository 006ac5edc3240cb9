//! The objects of a cache, each complete for server-side apply.
//!
//! They are a function of what was accepted and of nothing else: the same cache gives the same objects, byte for byte.
//! The ring's ConfigMap is not among them, since it follows the pods.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, Service, ServiceAccount};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};
use kube::Resource;

use super::{connection, objects};
use crate::api::{Accepted, KVCache, Metadata, label};

/// An object as it should be.
#[derive(Clone, PartialEq, Debug)]
pub enum Desired {
    /// The account of the servers, which may do nothing.
    ServiceAccount(Box<ServiceAccount>),
    /// The headless service of the servers, or the service of Redis.
    Service(Box<Service>),
    /// The servers, or Redis.
    StatefulSet(Box<StatefulSet>),
    /// How many servers may be evicted at a time.
    PodDisruptionBudget(Box<PodDisruptionBudget>),
    /// What engines need to know.
    ConfigMap(Box<ConfigMap>),
}

/// All objects of a cache, those first that others refer to.
pub fn desired(accepted: &Accepted) -> Vec<Desired> {
    let mut all = vec![
        Desired::ServiceAccount(Box::new(objects::account(accepted))),
        Desired::Service(Box::new(objects::headless_service(accepted))),
    ];
    if let Metadata::InCluster(redis) = &accepted.metadata {
        all.push(Desired::Service(Box::new(objects::redis_service(accepted))));
        all.push(Desired::StatefulSet(Box::new(objects::redis(accepted, redis))));
    }
    all.push(Desired::StatefulSet(Box::new(objects::servers(accepted))));
    all.push(Desired::PodDisruptionBudget(Box::new(objects::disruption_budget(accepted))));
    all.push(Desired::ConfigMap(Box::new(connection::config_map(accepted))));
    all
}

impl Desired {
    /// Name, labels and owner.
    pub fn metadata(&self) -> &ObjectMeta {
        match self {
            Self::ServiceAccount(object) => &object.metadata,
            Self::Service(object) => &object.metadata,
            Self::StatefulSet(object) => &object.metadata,
            Self::PodDisruptionBudget(object) => &object.metadata,
            Self::ConfigMap(object) => &object.metadata,
        }
    }

    /// The kind, as in manifests.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::ServiceAccount(_) => "ServiceAccount",
            Self::Service(_) => "Service",
            Self::StatefulSet(_) => "StatefulSet",
            Self::PodDisruptionBudget(_) => "PodDisruptionBudget",
            Self::ConfigMap(_) => "ConfigMap",
        }
    }

    /// The object's name.
    pub fn name(&self) -> &str {
        self.metadata().name.as_deref().unwrap_or_default()
    }

    /// The whole object with `apiVersion` and `kind`, as it is sent.
    ///
    /// # Errors
    ///
    /// None that these types could give: their keys are strings.
    pub fn to_json(&self) -> Result<serde_json::Value, serde_json::Error> {
        match self {
            Self::ServiceAccount(object) => serde_json::to_value(object),
            Self::Service(object) => serde_json::to_value(object),
            Self::StatefulSet(object) => serde_json::to_value(object),
            Self::PodDisruptionBudget(object) => serde_json::to_value(object),
            Self::ConfigMap(object) => serde_json::to_value(object),
        }
    }
}

/// Names of a cache's objects. Those that engines use are AIBrix's.
pub mod names {
    /// The servers' StatefulSet, their ServiceAccount and their PodDisruptionBudget.
    pub fn servers(cache: &str) -> String {
        cache.to_owned()
    }

    /// The servers' service.
    pub fn headless_service(cache: &str) -> String {
        format!("{cache}-headless-service")
    }

    /// Redis: its StatefulSet and its service.
    pub fn redis(cache: &str) -> String {
        format!("{cache}-redis")
    }

    /// The ConfigMap of the ring.
    pub fn ring(cache: &str) -> String {
        format!("{cache}-ring")
    }

    /// The key in it.
    pub const RING_KEY: &str = "ring.json";

    /// The ConfigMap for engines.
    pub fn connection(cache: &str) -> String {
        format!("{cache}-connection")
    }
}

/// What an object is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Role {
    /// The servers.
    Cache,
    /// The store of the ring.
    Metadata,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::Cache => "cache",
            Self::Metadata => "metadata",
        }
    }
}

/// Labels that select a cache's pods of a role. A StatefulSet keeps them for ever, so they are AIBrix's two.
pub(crate) fn selecting(cache: &str, role: Role) -> BTreeMap<String, String> {
    [(label::NAME, cache), (label::ROLE, role.name())]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into()
}

pub(crate) fn label_selector(cache: &str, role: Role) -> LabelSelector {
    LabelSelector { match_labels: Some(selecting(cache, role)), ..LabelSelector::default() }
}

/// The selector of a cache's servers, as text: for the scale subresource, and to list pods.
pub fn selector(cache: &str) -> String {
    let labels = selecting(cache, Role::Cache);
    labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

/// Labels of pods. The operator's version is not among them: a new operator must not restart caches.
pub(crate) fn pod_labels(cache: &str, role: Role) -> BTreeMap<String, String> {
    let mut labels = selecting(cache, role);
    for (key, value) in [
        ("app.kubernetes.io/name", "kvcache"),
        ("app.kubernetes.io/instance", cache),
        ("app.kubernetes.io/component", role.name()),
        ("app.kubernetes.io/managed-by", "kvcache-operator"),
    ] {
        labels.insert(key.to_owned(), value.to_owned());
    }
    labels
}

/// Metadata of an object of a cache: its labels, and the cache as its owner, with which it goes.
pub(crate) fn metadata(accepted: &Accepted, name: String, role: Role) -> ObjectMeta {
    let mut labels = pod_labels(&accepted.name, role);
    labels.insert("app.kubernetes.io/version".to_owned(), env!("CARGO_PKG_VERSION").to_owned());
    ObjectMeta {
        name: Some(name),
        namespace: Some(accepted.namespace.clone()),
        labels: Some(labels),
        owner_references: Some(vec![OwnerReference {
            api_version: KVCache::api_version(&()).into_owned(),
            kind: KVCache::kind(&()).into_owned(),
            name: accepted.name.clone(),
            uid: accepted.uid.clone(),
            controller: Some(true),
            block_owner_deletion: Some(true),
        }]),
        ..ObjectMeta::default()
    }
}
