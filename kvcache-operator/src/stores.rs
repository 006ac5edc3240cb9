//! All that the operator knows of the cluster, and the watches that keep it current.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::StreamExt;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, Service, ServiceAccount};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::core::PartialObjectMeta;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::{Notify, watch};

use crate::api::label;
use crate::listed::Listed;
use crate::mirror::{CacheKey, Mirror, by_label, by_name};
use crate::queue::Queue;

/// The namespaces that are served.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Scope {
    /// All of them.
    All,
    /// One.
    Namespace(String),
}

impl Scope {
    /// The objects of one kind in these namespaces.
    pub fn api<K>(&self, client: &Client) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        match self {
            Self::All => Api::all(client.clone()),
            Self::Namespace(namespace) => Api::namespaced(client.clone(), namespace),
        }
    }
}

/// The cluster's objects, by cache.
#[derive(Debug)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Stores {
    pub caches: Mirror<Listed>,
    pub stateful_sets: Mirror<StatefulSet>,
    pub services: Mirror<Service>,
    pub config_maps: Mirror<ConfigMap>,
    pub budgets: Mirror<PodDisruptionBudget>,
    pub accounts: Mirror<ServiceAccount>,
    pub pods: Mirror<Pod>,
    pub secret_users: SecretUsers,
}

impl Default for Stores {
    fn default() -> Self {
        Self {
            caches: Mirror::new(by_name),
            stateful_sets: Mirror::new(by_label),
            services: Mirror::new(by_label),
            config_maps: Mirror::new(by_label),
            budgets: Mirror::new(by_label),
            accounts: Mirror::new(by_label),
            pods: Mirror::new(by_label),
            secret_users: SecretUsers::default(),
        }
    }
}

impl Stores {
    /// Keeps them current until it is dropped. Tells `ready` once all of them are filled.
    ///
    /// Labels select what is watched, so the operator neither reads nor keeps what is not of a cache. Of Secrets it sees
    /// names only.
    pub async fn follow(
        self: Arc<Self>,
        client: Client,
        scope: Scope,
        queue: Arc<Queue>,
        ready: watch::Sender<bool>,
    ) {
        let filled = Filled { missing: Mutex::new(KINDS), ready };
        let labelled = watcher::Config::default().labels(label::NAME);
        let all = watcher::Config::default();
        let (stores, filled, queue) = (&*self, &filled, &*queue);
        tokio::join!(
            follow(scope.api(&client), all.clone(), &stores.caches, trim, queue, filled),
            follow(scope.api(&client), labelled.clone(), &stores.stateful_sets, trim, queue, filled),
            follow(scope.api(&client), labelled.clone(), &stores.services, trim, queue, filled),
            follow(scope.api(&client), labelled.clone(), &stores.config_maps, trim, queue, filled),
            follow(scope.api(&client), labelled.clone(), &stores.budgets, trim, queue, filled),
            follow(scope.api(&client), labelled.clone(), &stores.accounts, trim, queue, filled),
            follow(scope.api(&client), labelled, &stores.pods, trim_pod, queue, filled),
            stores.secret_users.follow(scope.api(&client), all, queue),
        );
    }
}

async fn follow<K>(
    api: Api<K>,
    config: watcher::Config,
    mirror: &Mirror<K>,
    trim: fn(&mut K),
    queue: &Queue,
    filled: &Filled,
) where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    let mut events = watcher(api, config).default_backoff().boxed();
    let mut is_first = true;
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                let is_list_end = matches!(event, Event::InitDone);
                for key in mirror.observe(event.modify(trim)) {
                    queue.add(key);
                }
                if is_list_end && std::mem::take(&mut is_first) {
                    filled.one();
                }
            }
            Err(error) => log::warn!("watch of {}: {error}", K::plural(&())),
        }
    }
}

/// What nobody here reads.
fn trim<K: Resource>(object: &mut K) {
    object.meta_mut().managed_fields = None;
}

/// Of a pod, its status is read, and whose it is.
fn trim_pod(pod: &mut Pod) {
    trim(pod);
    pod.spec = None;
    if let Some(status) = &mut pod.status {
        status.init_container_statuses = None;
        status.ephemeral_container_statuses = None;
    }
}

/// Counts down the kinds whose first list is missing.
struct Filled {
    missing: Mutex<usize>,
    ready: watch::Sender<bool>,
}

impl Filled {
    fn one(&self) {
        let mut missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        *missing -= 1;
        if *missing == 0 {
            self.ready.send_replace(true);
        }
    }
}

/// Kinds that must be listed before anything is decided.
const KINDS: usize = 7;

/// Which caches read which Secrets, so that a Secret that comes or changes has its caches looked at, and no cache polls.
///
/// Secrets are watched, by their names, only once a cache reads one: where none does, the operator needs no right to
/// see any.
#[derive(Default, Debug)]
pub struct SecretUsers {
    inner: Mutex<HashMap<(String, String), BTreeSet<CacheKey>>>,
    first: Notify,
}

impl SecretUsers {
    /// Notes that a cache reads these Secrets of its namespace, and no others.
    pub fn note<'a>(&self, key: &CacheKey, secrets: impl IntoIterator<Item = &'a str>) {
        let wanted: BTreeSet<&str> = secrets.into_iter().collect();
        let mut users = self.lock();
        users.retain(|(namespace, name), keys| {
            if *namespace == key.namespace && !wanted.contains(name.as_str()) {
                keys.remove(key);
            }
            !keys.is_empty()
        });
        if !wanted.is_empty() {
            self.first.notify_one();
        }
        for name in wanted {
            users.entry((key.namespace.clone(), name.to_owned())).or_default().insert(key.clone());
        }
    }

    async fn follow(&self, api: Api<PartialObjectMeta<Secret>>, config: watcher::Config, queue: &Queue) {
        self.first.notified().await;
        let mut events = watcher(api, config).default_backoff().boxed();
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::Apply(secret) | Event::InitApply(secret) | Event::Delete(secret)) => {
                    let id = (secret.namespace().unwrap_or_default(), secret.name_any());
                    let users = self.lock().get(&id).cloned();
                    users.into_iter().flatten().for_each(|key| queue.add(key));
                }
                Ok(Event::Init | Event::InitDone) => {}
                Err(error) => log::warn!("watch of secrets: {error}"),
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(String, String), BTreeSet<CacheKey>>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
