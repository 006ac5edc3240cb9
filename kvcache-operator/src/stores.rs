//! All that the operator knows of the cluster, and the watches that keep it current.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, PodStatus, Secret, Service, ServiceAccount};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::core::PartialObjectMeta;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::{Notify, watch};

use crate::api::{AsWritten, AskedFor, annotation, label};
use crate::mirror::{CacheKey, Mirror, by_label, by_name};
use crate::plan::names;
use crate::plan::ring::{PublishedRing, serve_port};
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
    pub caches: Mirror<AsWritten>,
    pub stateful_sets: Mirror<StatefulSet>,
    pub services: Mirror<Service>,
    pub config_maps: Mirror<ConfigMap, Option<Arc<PublishedRing>>>,
    pub budgets: Mirror<PodDisruptionBudget>,
    pub accounts: Mirror<ServiceAccount>,
    pub pods: Mirror<Pod, Option<u16>>,
    pub secret_users: SecretUsers,
}

impl Default for Stores {
    fn default() -> Self {
        Self {
            caches: Mirror::new(by_name, trim),
            stateful_sets: Mirror::new(by_label, trim),
            services: Mirror::new(by_label, trim),
            config_maps: Mirror::new(by_label, trim_config_map),
            budgets: Mirror::new(by_label, trim),
            accounts: Mirror::new(by_label, trim),
            pods: Mirror::new(by_label, trim_pod),
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
        // A page is in memory as a whole, and a ring has 70 KB.
        let rings = labelled.clone().page_size(RINGS_IN_A_PAGE);
        let (stores, filled, queue) = (&*self, &filled, &*queue);
        let tell = |key| queue.add(key);
        let mut asked = HashMap::new();
        let tell_of_cache = |key| tell_of_cache(key, &stores.caches, &mut asked, queue);
        tokio::join!(
            follow(scope.api(&client), all.clone(), &stores.caches, tell_of_cache, filled),
            follow(scope.api(&client), labelled.clone(), &stores.stateful_sets, tell, filled),
            follow(scope.api(&client), labelled.clone(), &stores.services, tell, filled),
            follow(scope.api(&client), rings, &stores.config_maps, tell, filled),
            follow(scope.api(&client), labelled.clone(), &stores.budgets, tell, filled),
            follow(scope.api(&client), labelled.clone(), &stores.accounts, tell, filled),
            follow(scope.api(&client), labelled, &stores.pods, tell, filled),
            stores.secret_users.follow(scope.api(&client), all, queue),
        );
    }
}

/// Has a cache looked at: at once, if it asks for something else than when it was told of last.
fn tell_of_cache(
    key: CacheKey,
    caches: &Mirror<AsWritten>,
    asked: &mut HashMap<CacheKey, AskedFor>,
    queue: &Queue,
) {
    let asks = caches.get(&key, &key.name).map(|cache| cache.asked_for());
    let before = match &asks {
        Some(asks) => asked.insert(key.clone(), asks.clone()),
        None => asked.remove(&key),
    };
    if asks == before { queue.add(key) } else { queue.add_anew(key) }
}

async fn follow<K, N: Clone>(
    api: Api<K>,
    config: watcher::Config,
    mirror: &Mirror<K, N>,
    mut tell: impl FnMut(CacheKey),
    filled: &Filled,
) where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    let mut is_first = true;
    let mut watch = Watch::new(api, config);
    loop {
        let Some(event) = watch.next().await else { continue };
        let is_list_end = matches!(event, Event::InitDone);
        mirror.observe(event).into_iter().for_each(&mut tell);
        if is_list_end && std::mem::take(&mut is_first) {
            filled.one();
        }
    }
}

/// A watch that begins anew where a list is never answered: the client waits for one without end.
struct Watch<K> {
    api: Api<K>,
    config: watcher::Config,
    events: BoxStream<'static, watcher::Result<Event<K>>>,
    is_listing: bool,
}

impl<K> Watch<K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    fn new(api: Api<K>, config: watcher::Config) -> Self {
        let events = watcher(api.clone(), config.clone()).default_backoff().boxed();
        Self { api, config, events, is_listing: true }
    }

    /// The next event; `None` after an error, which is logged.
    async fn next(&mut self) -> Option<Event<K>> {
        let next = self.events.next();
        let next = match self.is_listing {
            true => tokio::time::timeout(LIST, next).await,
            // Silence is what a watch of things that do not change is made of.
            false => Ok(next.await),
        };
        match next {
            Ok(Some(Ok(event))) => {
                match event {
                    Event::Init => self.is_listing = true,
                    Event::InitDone => self.is_listing = false,
                    Event::InitApply(_) | Event::Apply(_) | Event::Delete(_) => {}
                }
                return Some(event);
            }
            Ok(Some(Err(error))) => log::warn!("watch of {}: {error}", K::plural(&())),
            Ok(None) | Err(_) => {
                log::warn!("list of {}: no answer; asks again", K::plural(&()));
                *self = Self::new(self.api.clone(), self.config.clone());
            }
        }
        None
    }
}

/// What nobody here reads.
fn trim<K: Resource>(object: &mut K) {
    object.meta_mut().managed_fields = None;
}

/// Of a ring, what its text says is kept, and not the text.
fn trim_config_map(map: &mut ConfigMap) -> Option<Arc<PublishedRing>> {
    trim(map);
    let text = map.data.as_mut()?.remove(names::RING_KEY)?;
    Some(Arc::new(PublishedRing::read(Some(&text), 0)))
}

/// Of a pod, whose it is is read, its address, and whether it is ready. Of its spec nothing is kept but where it serves.
fn trim_pod(pod: &mut Pod) -> Option<u16> {
    trim(pod);
    let port = serve_port(pod);
    pod.spec = None;
    if let Some(annotations) = &mut pod.metadata.annotations {
        annotations.retain(|name, _| name == annotation::DRAIN);
    }
    if let Some(status) = pod.status.take() {
        let mut conditions = status.conditions.unwrap_or_default();
        conditions.retain(|condition| condition.type_ == "Ready");
        conditions.shrink_to_fit();
        let conditions = Some(conditions);
        pod.status = Some(PodStatus { pod_ip: status.pod_ip, conditions, ..PodStatus::default() });
    }
    port
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

const RINGS_IN_A_PAGE: u32 = 50;
/// Kinds that must be listed before anything is decided.
const KINDS: usize = 7;
/// Longer than any list takes, and any pause after an error.
const LIST: Duration = Duration::from_secs(90);

/// Which caches read which Secrets, so that a Secret that comes or changes has its caches looked at, and no cache polls.
///
/// Secrets are watched, by their names, only once a cache reads one: where none does, the operator needs no right to
/// see any.
#[derive(Default, Debug)]
pub struct SecretUsers {
    inner: Mutex<Users>,
    first: Notify,
}

#[derive(Default, Debug)]
struct Users {
    by_secret: HashMap<(String, String), BTreeSet<CacheKey>>,
    /// Caches one of whose Secrets has changed.
    news: BTreeSet<CacheKey>,
}

impl SecretUsers {
    /// Notes that a cache reads these Secrets of its namespace, and no others.
    pub fn note<'a>(&self, key: &CacheKey, secrets: impl IntoIterator<Item = &'a str>) {
        let wanted: BTreeSet<&str> = secrets.into_iter().collect();
        let mut users = self.lock();
        if wanted.is_empty() {
            users.news.remove(key);
        }
        users.by_secret.retain(|(namespace, name), keys| {
            if *namespace == key.namespace && !wanted.contains(name.as_str()) {
                keys.remove(key);
            }
            !keys.is_empty()
        });
        if !wanted.is_empty() {
            self.first.notify_one();
        }
        for name in wanted {
            users.by_secret.entry((key.namespace.clone(), name.to_owned())).or_default().insert(key.clone());
        }
    }

    async fn follow(&self, api: Api<PartialObjectMeta<Secret>>, config: watcher::Config, queue: &Queue) {
        self.first.notified().await;
        let mut watch = Watch::new(api, config);
        loop {
            let Some(Event::Apply(secret) | Event::InitApply(secret) | Event::Delete(secret)) =
                watch.next().await
            else {
                continue;
            };
            let id = (secret.namespace().unwrap_or_default(), secret.name_any());
            let mut users = self.lock();
            let keys = users.by_secret.get(&id).cloned().unwrap_or_default();
            users.news.extend(keys.iter().cloned());
            drop(users);
            keys.into_iter().for_each(|key| queue.add(key));
        }
    }

    /// Whether a Secret of the cache has changed since the last call.
    pub fn take_news(&self, key: &CacheKey) -> bool {
        self.lock().news.remove(key)
    }

    fn lock(&self) -> MutexGuard<'_, Users> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
