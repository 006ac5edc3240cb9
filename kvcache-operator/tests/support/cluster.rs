//! A cluster in which operators run.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use kvcache_operator::api::Options;
use kvcache_operator::clock::Clock;
use kvcache_operator::leader;
use kvcache_operator::operator::{Ended, Plan, run};
use kvcache_operator::reconcile::{Reconciler, Settings};
use kvcache_operator::stores::Scope;
use serde_json::{Value, json};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use super::api_server::{ApiServer, Key};
use super::controllers;

/// The namespace of all caches here.
pub const NAMESPACE: &str = "models";

/// An API server with controllers. They run until it is dropped.
pub struct Cluster {
    pub server: ApiServer,
    controllers: Option<JoinHandle<()>>,
}

impl Cluster {
    pub fn new() -> Self {
        let server = ApiServer::new();
        let behind = server.clone();
        let controllers = tokio::spawn(async move {
            let mut settled = None;
            loop {
                // Where nothing has changed there is nothing to do.
                if settled != Some(behind.revision()) {
                    let changed = controllers::step(&behind);
                    settled = (!changed).then(|| behind.revision());
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
        Self { server, controllers: Some(controllers) }
    }

    /// An API server alone: no pods come up by themselves.
    pub fn without_controllers() -> Self {
        Self { server: ApiServer::new(), controllers: None }
    }

    /// Creates a cache of three servers, or replaces its spec, after an edit.
    pub fn put_cache(&self, name: &str, edit: impl FnOnce(&mut Value)) -> Value {
        let mut cache = json!({
            "apiVersion": "orchestration.aibrix.ai/v1alpha1", "kind": "KVCache",
            "metadata": {
                "name": name, "namespace": NAMESPACE,
                "annotations": { "kvcache.orchestration.aibrix.ai/backend": "kvcache" },
            },
            "spec": {
                "cache": { "replicas": 3, "resources": { "limits": { "memory": "4Gi" } } },
                "service": { "ports": [{ "name": "service", "port": 12345, "protocol": "TCP", "targetPort": 12345 }] },
            },
        });
        if let Some(known) = self.server.get(&cache_key(name)) {
            cache["metadata"]["finalizers"] = known["metadata"]["finalizers"].clone();
        }
        edit(&mut cache);
        self.server.put(cache)
    }

    pub fn cache(&self, name: &str) -> Value {
        self.server.get(&cache_key(name)).expect("the cache")
    }

    /// A condition of a cache, as `Status/Reason`; empty if there is none.
    pub fn condition(&self, name: &str, kind: &str) -> String {
        let cache = self.cache(name);
        let conditions = cache["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let found = conditions.iter().find(|condition| condition["type"] == kind);
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        found
            .map(|found| format!("{}/{}", text(&found["status"]), text(&found["reason"])))
            .unwrap_or_default()
    }

    /// The published ring; null if there is none.
    pub fn ring(&self, name: &str) -> Value {
        let map = self.server.get(&Key::new("configmaps", NAMESPACE, &format!("{name}-ring")));
        let text = map.and_then(|map| map["data"]["ring.json"].as_str().map(str::to_owned));
        text.map(|text| serde_json::from_str(&text).expect("JSON")).unwrap_or_default()
    }

    /// The members of the published ring, by name, with their addresses.
    pub fn members(&self, name: &str) -> BTreeMap<String, String> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let ring = self.ring(name);
        let nodes = ring["nodes"].as_array().cloned().unwrap_or_default();
        nodes.iter().map(|node| (text(&node["name"]), text(&node["addr"]))).collect()
    }

    /// Kind and name of all objects but pods and events, and what of them must be the same wherever a history ends in
    /// the same place: all but what counts or tells time.
    pub fn state(&self) -> BTreeMap<String, Value> {
        let mut all = BTreeMap::new();
        let caches = self.server.all("kvcaches");
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let uids: Vec<(String, String)> = caches
            .iter()
            .map(|cache| (text(&cache["metadata"]["uid"]), text(&cache["metadata"]["name"])))
            .collect();
        for plural in
            ["kvcaches", "statefulsets", "services", "configmaps", "serviceaccounts", "poddisruptionbudgets"]
        {
            for object in self.server.all(plural) {
                let mut object = with_names(&object, &uids);
                for field in ["uid", "resourceVersion", "creationTimestamp", "generation"] {
                    object["metadata"][field] = Value::Null;
                }
                for owner in object["metadata"]["ownerReferences"].as_array_mut().into_iter().flatten() {
                    owner["uid"] = Value::Null;
                }
                object["metadata"]["annotations"]["kvcache.orchestration.aibrix.ai/applied"] = Value::Null;
                object["status"]["ringVersion"] = Value::Null;
                object["status"]["observedGeneration"] = Value::Null;
                for condition in object["status"]["conditions"].as_array_mut().into_iter().flatten() {
                    condition["lastTransitionTime"] = Value::Null;
                    condition["observedGeneration"] = Value::Null;
                }
                for field in ["clusterIP", "clusterIPs"] {
                    object["spec"][field] = Value::Null;
                }
                if let Some(ring) = object["data"]["ring.json"].as_str() {
                    let mut ring: Value = serde_json::from_str(ring).expect("JSON");
                    ring["version"] = Value::Null;
                    // Addresses are as new as the pods.
                    for node in ring["nodes"].as_array_mut().into_iter().flatten() {
                        node["addr"] = Value::Null;
                    }
                    object["data"]["ring.json"] = ring;
                }
                let name = object["metadata"]["name"].as_str().unwrap_or_default();
                all.insert(format!("{plural}/{name}"), object);
            }
        }
        all
    }

    /// Starts an operator that leads without a lease.
    pub fn start(&self, name: &str) -> Running {
        self.start_with(name, false, Settings::default())
    }

    /// Starts an operator that stands for election.
    pub fn start_elected(&self, name: &str) -> Running {
        self.start_with(name, true, Settings::default())
    }

    pub fn start_with(&self, name: &str, is_elected: bool, settings: Settings) -> Running {
        let reconciler = Arc::new(self.reconciler(name, settings));
        let election = is_elected.then(|| {
            let settings = leader::Settings {
                name: "kvcache-operator".to_owned(),
                identity: name.to_owned(),
                duration: Duration::from_secs(15),
                renew_within: Duration::from_secs(10),
                retry: Duration::from_secs(2),
            };
            (NAMESPACE.to_owned(), settings)
        });
        let plan = Plan { scope: Scope::All, election, workers: 4, seed: 7 };
        let (ready, is_ready) = watch::channel(false);
        let (stop, stopped) = oneshot::channel();
        let stop_future = async { drop(stopped.await) };
        let task = tokio::spawn(run(Arc::clone(&reconciler), plan, ready, stop_future));
        Running { reconciler, task, stop: Some(stop), ready: is_ready }
    }

    pub fn reconciler(&self, name: &str, settings: Settings) -> Reconciler {
        let options = Options {
            adopt: BTreeSet::new(),
            server_image: "kvcache-server:test".to_owned(),
            redis_image: "redis:test".to_owned(),
        };
        let server = self.server.clone();
        let clock: Clock = Arc::new(move || server.now());
        Reconciler::new(self.server.client(name), options, settings, clock, name.to_owned(), 7)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(controllers) = &self.controllers {
            controllers.abort();
        }
    }
}

/// An object with names instead of uids, wherever these stand.
fn with_names(object: &Value, uids: &[(String, String)]) -> Value {
    let text = uids.iter().fold(object.to_string(), |text, (uid, name)| text.replace(uid, name));
    serde_json::from_str(&text).expect("JSON")
}

pub fn cache_key(name: &str) -> Key {
    Key::new("kvcaches", NAMESPACE, name)
}

/// An operator that runs.
pub struct Running {
    pub reconciler: Arc<Reconciler>,
    pub task: JoinHandle<Result<(), Ended>>,
    stop: Option<oneshot::Sender<()>>,
    pub ready: watch::Receiver<bool>,
}

impl Running {
    /// Ends it as SIGTERM does.
    pub async fn stop(mut self) -> Result<(), Ended> {
        drop(self.stop.take());
        (&mut self.task).await.expect("no panic")
    }

    /// Ends it as SIGKILL does: at once, and nobody is told.
    pub fn kill(self) {
        self.task.abort();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Lets time pass.
pub async fn pass(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}
