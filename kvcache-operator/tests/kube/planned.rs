//! What the operator plans, before a real API server, and run by real controllers: without the operator itself.

use std::collections::BTreeSet;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Service, ServiceAccount};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use kube::{Client, CustomResourceExt, ResourceExt};
use kvcache_operator::api::{KVCache, Options, accept};
use kvcache_operator::apply::{apply, look};
use kvcache_operator::plan::{Desired, desired, names};
use serde_json::json;

use crate::control_plane::{ControlPlane, User, Wishes};
use crate::kubelet::{Kubelet, Settings};
use crate::objects::{NAMESPACE, namespace};
use crate::wait;

/// A cache as a user of AIBrix writes it, but for the backend.
fn cache() -> KVCache {
    let cache = json!({
        "apiVersion": "orchestration.aibrix.ai/v1alpha1", "kind": "KVCache",
        "metadata": {"name": "kv", "annotations": {"kvcache.orchestration.aibrix.ai/backend": "kvcache"}},
        "spec": {
            "metadata": {"redis": {"runtime": {"image": "redis:7.4"}}},
            "cache": {"replicas": 3, "image": "kvcache:test", "resources": {"limits": {"cpu": "1", "memory": "4Gi"}}},
        },
    });
    serde_json::from_value(cache).expect("a cache")
}

/// Applies an object; whether it was written.
async fn made(client: &Client, object: &Desired, owner: &str) -> bool {
    macro_rules! apply {
        ($object:expr) => {{
            let api = Api::namespaced(client.clone(), NAMESPACE);
            let place = look(&api, object.name(), None, owner).await.expect("an answer");
            apply(&api, &**$object, &place).await.expect("no conflict").is_some()
        }};
    }
    match object {
        Desired::ServiceAccount(object) => apply!(object),
        Desired::Service(object) => apply!(object),
        Desired::StatefulSet(object) => apply!(object),
        Desired::PodDisruptionBudget(object) => apply!(object),
        Desired::ConfigMap(object) => apply!(object),
    }
}

/// Names of what there is of one kind.
async fn there_is<K>(client: &Client) -> Option<BTreeSet<String>>
where
    K: kube::Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned,
{
    let api = Api::<K>::namespaced(client.clone(), NAMESPACE);
    let list = api.list(&ListParams::default()).await.ok()?;
    Some(list.items.iter().map(ResourceExt::name_any).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn planned_objects_are_accepted_run_and_go_with_their_cache() {
    let definition = serde_json::to_value(KVCache::crd()).expect("JSON");
    let Some(plane) = ControlPlane::start(&Wishes { crds: vec![definition], ..Wishes::default() }).await
    else {
        return;
    };
    let client = plane.client(&User::admin());
    namespace(&client).await;
    let settings = Settings::new(NAMESPACE, plane.folder().to_owned());
    let has_redis = settings.programs.redis.is_some();
    let kubelet = Kubelet::start(client.clone(), settings).await;

    let caches = Api::<KVCache>::namespaced(client.clone(), NAMESPACE);
    let cache = caches.create(&PostParams::default(), &cache()).await.expect("accepted");
    let options = Options {
        adopt: BTreeSet::new(),
        server_image: "kvcache:test".to_owned(),
        redis_image: "redis:7.4".to_owned(),
    };
    let accepted = accept(&cache, &options).expect("a right cache");
    let wanted = desired(&accepted);
    assert!(wanted.len() >= 7);
    for object in &wanted {
        assert!(made(&client, object, &accepted.uid).await);
    }

    let expected = if has_redis { 4 } else { 3 };
    wait::until("all pods are ready", wait::LONG, || {
        std::future::ready(
            (kubelet.pods().iter().filter(|pod| pod.is_ready).count() == expected).then_some(()),
        )
    })
    .await;
    let names: BTreeSet<String> = kubelet.pods().into_iter().map(|pod| pod.name).collect();
    assert_eq!(names, ["kv-0", "kv-1", "kv-2", "kv-redis-0"].map(str::to_owned).into());
    let budgets = Api::<PodDisruptionBudget>::namespaced(client.clone(), NAMESPACE);
    let status = wait::until("the budget counts the servers", wait::LONG, || async {
        budgets.get("kv").await.ok()?.status.filter(|status| status.current_healthy == Some(3))
    })
    .await;
    assert_eq!((status.expected_pods, status.disruptions_allowed), (Some(3), Some(1)));

    // What the server added is not taken for a difference.
    for object in &wanted {
        assert!(!made(&client, object, &accepted.uid).await, "{} {}", object.kind(), object.name());
    }

    caches.delete("kv", &DeleteParams::background()).await.expect("deleted");
    wait::until("the garbage collector has removed all of it", wait::LONG, || async {
        let is_empty = there_is::<Pod>(&client).await?.is_empty()
            && there_is::<StatefulSet>(&client).await?.is_empty()
            && there_is::<Service>(&client).await?.is_empty()
            && there_is::<ServiceAccount>(&client).await?.is_empty()
            && there_is::<PodDisruptionBudget>(&client).await?.is_empty()
            && !there_is::<ConfigMap>(&client).await?.contains(&names::connection("kv"));
        is_empty.then_some(())
    })
    .await;
    wait::until("the kubelet has no pods", wait::SHORT, || {
        std::future::ready(kubelet.pods().is_empty().then_some(()))
    })
    .await;
    kubelet.stop().await;
}
