//! A cache's life from its first object to its last, with the operator as its role allows.

use std::collections::BTreeSet;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Service, ServiceAccount};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{Api, DeleteParams, ListParams};
use kube::core::NamespaceResourceScope;
use kube::{Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::engine::Engine;
use crate::objects::NAMESPACE;
use crate::operator::Operator;
use crate::wait;
use crate::world::{World, cache, condition};

/// The owners of all objects of one kind, by `kind/name`.
async fn owned<K>(client: &Client) -> Vec<(String, Option<String>)>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + DeserializeOwned,
{
    let list = Api::<K>::namespaced(client.clone(), NAMESPACE).list(&ListParams::default()).await;
    let owner = |object: &K| {
        let owners = object.owner_references();
        assert!(owners.len() <= 1, "{owners:?}");
        owners.first().map(|owner| format!("{}/{}", owner.kind, owner.name))
    };
    let named = |object: &K| (format!("{}/{}", K::kind(&()), object.name_any()), owner(object));
    list.expect("a list").items.iter().map(named).collect()
}

/// Everything in the namespace, with its owner.
pub(crate) async fn everything(client: &Client) -> Vec<(String, Option<String>)> {
    let mut all = owned::<StatefulSet>(client).await;
    all.extend(owned::<Service>(client).await);
    all.extend(owned::<ConfigMap>(client).await);
    all.extend(owned::<ServiceAccount>(client).await);
    all.extend(owned::<PodDisruptionBudget>(client).await);
    all.extend(owned::<Pod>(client).await);
    // Every namespace has one in clusters of later than 1.20.
    all.retain(|(name, _)| name != "ConfigMap/kube-root-ca.crt");
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cache_becomes_a_ring_that_an_engine_uses_and_leaves_nothing() {
    let Some(world) = World::start().await else { return };
    let operator = Operator::start(&world.plane, "operator", &["--lease-seconds=15"]).await;
    operator.leads(wait::LONG).await;
    assert!(operator.is_ok("/healthz").await && operator.is_ok("/readyz").await);

    world.apply(&cache("kv")).await;
    let (stored, ring) = world.settled("kv").await;
    let of_cache = Some("KVCache/kv".to_owned());
    let expected: BTreeSet<_> = [
        ("StatefulSet/kv", of_cache.clone()),
        ("Service/kv-headless-service", of_cache.clone()),
        ("ConfigMap/kv-connection", of_cache.clone()),
        ("ConfigMap/kv-ring", of_cache.clone()),
        ("ServiceAccount/kv", of_cache.clone()),
        ("PodDisruptionBudget/kv", of_cache),
        ("Pod/kv-0", Some("StatefulSet/kv".to_owned())),
        ("Pod/kv-1", Some("StatefulSet/kv".to_owned())),
        ("Pod/kv-2", Some("StatefulSet/kv".to_owned())),
    ]
    .map(|(name, owner)| (name.to_owned(), owner))
    .into();
    assert_eq!(everything(&world.client).await.into_iter().collect::<BTreeSet<_>>(), expected);
    let status = &stored["status"];
    let numbers = json!([status["current"], status["desired"], status["ringMembers"], status["ringSlots"]]);
    assert_eq!(numbers, json!([3, 3, 3, 4096]));
    assert_eq!(condition(&stored, "MetadataReady"), "True/NotConfigured");
    assert_eq!(status["backend"], "kvcache");
    assert!(ring.nodes.iter().all(|node| node.address.port() == 12_345), "{ring:?}");
    assert_eq!(stored["metadata"].get("finalizers"), None, "nothing of it is outside of the cluster");
    let said = operator.metric("kvcache_operator_ring_members{namespace=\"caches\",name=\"kv\"}").await;
    assert_eq!(said, Some(3.0));

    let engine = Engine::start(&world, "kv").await;
    let since = engine.ring().history().len() - 1;
    let report = engine.has_all("while nothing changes").await;
    assert_eq!(report["servers"].as_object().map(serde_json::Map::len), Some(3), "{report}");
    // A server that crashes is back with its slots, and without its blocks.
    let writes = operator.writes().len();
    world.kubelet.crash("kv-1");
    wait::until("the server is back", wait::LONG, || {
        let pods = world.kubelet.pods();
        std::future::ready(pods.iter().any(|pod| pod.restarts == 1 && pod.is_ready).then_some(()))
    })
    .await;
    world.settled("kv").await;
    engine.has_all("after a crash").await;
    let history = engine.ring().history();
    assert_eq!((history.len(), history.displaced_since(since)), (since + 1, 0), "the ring stays as it is");
    let new: Vec<_> = operator.writes().split_off(writes);
    assert!(new.iter().all(|write| write.is_about("status") || write.is_about("kv-ring")), "{new:#?}");

    // Nothing happens, so nothing is written.
    let writes = operator.writes().len();
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    assert_eq!(operator.writes().len(), writes, "{:#?}", operator.writes());

    world.caches().delete("kv", &DeleteParams::background()).await.expect("deleted");
    wait::until("nothing is left", wait::LONG, || async {
        (everything(&world.client).await.is_empty() && world.kubelet.pods().is_empty()).then_some(())
    })
    .await;
    operator.stop().await;
    // Whoever leaves says so: the next one need not wait for the lease to run out.
    let next = Operator::start(&world.plane, "next", &[]).await;
    next.leads(wait::SHORT).await;
    assert!(world.caches().list(&ListParams::default()).await.expect("a list").items.is_empty());
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    assert_eq!(everything(&world.client).await, []);
    next.stop().await;
    drop(engine);
    world.kubelet.stop().await;
}
