//! What a test of the operator starts with: a control plane with everything of `deploy/` but the operator itself, and a kubelet.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::api::{Api, DynamicObject, ListParams, Patch, PatchParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Client, ResourceExt};
use kvcache_core::ring::RingDocument;
use kvcache_operator::api::KVCache;
use serde_json::{Value, json};

use crate::control_plane::{ControlPlane, User, Wishes};
use crate::kubelet::{Kubelet, Settings};
use crate::objects::{NAMESPACE, namespace};
use crate::operator;
use crate::wait;

pub(crate) struct World {
    // In the order in which they end.
    pub(crate) kubelet: Kubelet,
    /// Of the admin.
    pub(crate) client: Client,
    pub(crate) plane: ControlPlane,
}

impl World {
    /// `None` where there is no control plane to test with, which is said then.
    pub(crate) async fn start() -> Option<Self> {
        let [definition] = deployed("crd/kvcaches.yaml").try_into().expect("one definition");
        let wishes = Wishes { users: vec![operator::account()], crds: vec![definition] };
        let plane = ControlPlane::start(&wishes).await?;
        let client = plane.client(&User::admin());
        namespace(&client).await;
        let of_operator =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": operator::NAMESPACE}});
        crate::objects::apply(&Api::<Namespace>::all(client.clone()), &of_operator).await;
        for object in deployed("base/rbac.yaml") {
            apply_any(&client, &object).await;
        }
        let kubelet =
            Kubelet::start(client.clone(), Settings::new(NAMESPACE, plane.folder().to_owned())).await;
        Some(Self { kubelet, client, plane })
    }

    pub(crate) fn caches(&self) -> Api<KVCache> {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    /// Applies a cache as a user does, and returns it.
    pub(crate) async fn apply(&self, cache: &Value) -> Value {
        let name = cache["metadata"]["name"].as_str().expect("a name");
        let params = PatchParams::apply("user").force();
        let applied = self.caches().patch(name, &params, &Patch::Apply(cache)).await;
        serde_json::to_value(applied.expect("accepted")).expect("JSON")
    }

    /// The ring that is published; `None` if there is none.
    pub(crate) async fn ring(&self, name: &str) -> Option<RingDocument> {
        let maps = Api::<ConfigMap>::namespaced(self.client.clone(), NAMESPACE);
        let map = maps.get_opt(&format!("{name}-ring")).await.ok().flatten()?;
        let text = map.data?.remove("ring.json")?;
        Some(RingDocument::from_json(text.as_bytes()).expect("a ring"))
    }

    /// Waits until all servers of a cache run as its spec asks for, are in the ring at their addresses, and its status says
    /// so. Returns the cache and the ring.
    ///
    /// # Panics
    ///
    /// If that does not come: with the last state.
    pub(crate) async fn settled(&self, name: &str) -> (Value, RingDocument) {
        let start = Instant::now();
        loop {
            let unsettled = match self.caches().get(name).await {
                Ok(cache) => {
                    let cache = serde_json::to_value(cache).expect("JSON");
                    let ring = self.ring(name).await;
                    match (self.unsettled(name, &cache, ring.as_ref()), ring) {
                        (None, Some(ring)) => return (cache, ring),
                        (why, ring) => format!("{why:?}: {}, ring {ring:?}", cache["status"]),
                    }
                }
                Err(error) => error.to_string(),
            };
            assert!(
                start.elapsed() < wait::LONG,
                "{name} does not settle, {unsettled}: {:?}",
                self.kubelet.pods()
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    fn unsettled(&self, name: &str, cache: &Value, ring: Option<&RingDocument>) -> Option<String> {
        let generation = &cache["metadata"]["generation"];
        let wanted = cache["spec"]["cache"]["replicas"].as_u64().unwrap_or(1);
        let expected: BTreeMap<String, String> =
            (0..wanted).map(|n| (format!("{name}-{n}"), String::new())).collect();
        let pods: BTreeMap<String, String> = (self.kubelet.pods().into_iter())
            .filter(|pod| pod.is_ready && expected.contains_key(&pod.name))
            .map(|pod| (pod.name, pod.ip.map(|ip| ip.to_string()).unwrap_or_default()))
            .collect();
        if !pods.keys().eq(expected.keys()) {
            return Some(format!("pods {pods:?}"));
        }
        if ring.map(members).as_ref() != Some(&pods) {
            return Some(format!("not the ring of {pods:?}"));
        }
        if cache["status"]["observedGeneration"] != *generation
            || cache["status"]["ringVersion"] != json!(ring?.version)
        {
            return Some("status of another time".to_owned());
        }
        let is_empty = wanted == 0;
        let expected = [
            ("Accepted", "True/Valid"),
            ("RingPublished", if is_empty { "True/EmptyRing" } else { "True/Published" }),
            ("Available", if is_empty { "False/NoServers" } else { "True/AllReady" }),
            ("Progressing", "False/Settled"),
        ];
        expected
            .iter()
            .find(|(kind, wanted)| condition(cache, kind) != *wanted)
            .map(|(kind, _)| kind.to_string())
    }

    /// Waits until a condition is `Status/Reason`, and returns its message.
    pub(crate) async fn says(&self, name: &str, kind: &str, expected: &str) -> String {
        wait::until(&format!("{name} has {kind} {expected}"), wait::LONG, || async {
            let cache = serde_json::to_value(self.caches().get(name).await.ok()?).expect("JSON");
            (condition(&cache, kind) == expected).then(|| message(&cache, kind))
        })
        .await
    }

    /// The reasons of the events about a cache, with their notes.
    pub(crate) async fn events(&self, name: &str) -> Vec<(String, String)> {
        let events = Api::<k8s_openapi::api::events::v1::Event>::namespaced(self.client.clone(), NAMESPACE);
        let list = events.list(&ListParams::default()).await.expect("a list");
        let about = |event: &k8s_openapi::api::events::v1::Event| {
            event.regarding.as_ref().is_some_and(|about| about.name.as_deref() == Some(name))
        };
        let events = list.items.into_iter().filter(about);
        events.map(|event| (event.reason.unwrap_or_default(), event.note.unwrap_or_default())).collect()
    }
}

/// A cache of ours with three servers that enter its ring after a second. Names are unique among pods.
pub(crate) fn cache(name: &str) -> Value {
    json!({
        "apiVersion": "orchestration.aibrix.ai/v1alpha1", "kind": "KVCache",
        "metadata": {
            "name": name, "namespace": NAMESPACE,
            "annotations": {"kvcache.orchestration.aibrix.ai/backend": "kvcache"},
        },
        "spec": {
            "cache": {"replicas": 3, "resources": {"limits": {"memory": "4Gi"}}},
            "server": {"ring": {"minReadySeconds": 1, "notReadyGraceSeconds": 60}},
        },
    })
}

/// A condition of a cache, as `Status/Reason`.
pub(crate) fn condition(cache: &Value, kind: &str) -> String {
    find(cache, kind)
        .map(|found| {
            let text = |field: &str| found[field].as_str().unwrap_or_default().to_owned();
            format!("{}/{}", text("status"), text("reason"))
        })
        .unwrap_or_default()
}

fn message(cache: &Value, kind: &str) -> String {
    find(cache, kind).and_then(|found| found["message"].as_str().map(str::to_owned)).unwrap_or_default()
}

fn find(cache: &Value, kind: &str) -> Option<Value> {
    let conditions = cache["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.into_iter().find(|condition| condition["type"] == kind)
}

/// The members of a ring, by name, with their hosts.
pub(crate) fn members(ring: &RingDocument) -> BTreeMap<String, String> {
    ring.nodes.iter().map(|node| (node.name.clone(), node.address.host().to_owned())).collect()
}

/// The documents of a file in `deploy/`.
pub(crate) fn deployed(path: &str) -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(path);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_saphyr::from_multiple(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Applies an object of any kind.
async fn apply_any(client: &Client, object: &Value) {
    let object: DynamicObject = serde_json::from_value(object.clone()).expect("an object");
    let types = object.types.as_ref().expect("a kind");
    let kind = ApiResource::from_gvk(&GroupVersionKind::try_from(types).expect("a group and a version"));
    let api = match object.namespace() {
        Some(namespace) => Api::<DynamicObject>::namespaced_with(client.clone(), &namespace, &kind),
        None => Api::all_with(client.clone(), &kind),
    };
    let params = PatchParams::apply("tests").force();
    api.patch(&object.name_any(), &params, &Patch::Apply(&object)).await.expect("accepted");
}
