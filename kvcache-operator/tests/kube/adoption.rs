//! A cache of AIBrix's controller is taken over: its StatefulSet has fields that cannot be changed, so it is deleted by hand
//! while its pods go on.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams};
use serde_json::{Value, json};

use crate::objects::{NAMESPACE, apply};
use crate::operator::Operator;
use crate::wait;
use crate::world::{World, cache};

/// A StatefulSet as AIBrix's controller makes it (`pkg/controller/kvcache/backends/infinistore.go`): its labels, its selector,
/// its owner, and no name of a service. InfiniStore itself does not run here; what runs in the pods does not matter.
fn stateful_set_of_aibrix(cache: &Value) -> Value {
    let labels = json!({
        "kvcache.orchestration.aibrix.ai/name": "kv", "kvcache.orchestration.aibrix.ai/role": "cache",
    });
    json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet",
        "metadata": {
            "name": "kv", "labels": labels, "ownerReferences": [{
                "apiVersion": "orchestration.aibrix.ai/v1alpha1", "kind": "KVCache", "name": "kv",
                "uid": cache["metadata"]["uid"], "controller": true, "blockOwnerDeletion": true,
            }],
        },
        "spec": {
            "replicas": 3, "selector": { "matchLabels": labels },
            "template": { "metadata": { "labels": labels }, "spec": { "containers": [{
                "name": "kvcache-server", "image": "redis:7.4", "args": ["--save", ""],
                "readinessProbe": { "tcpSocket": { "port": 6379 } },
            }] } },
        },
    })
}

/// The pods' uids and whose they are, by name.
async fn pods(world: &World) -> BTreeMap<String, (String, Option<String>)> {
    let api = Api::<Pod>::namespaced(world.client.clone(), NAMESPACE);
    let list = api.list(&ListParams::default()).await.expect("a list").items;
    list.into_iter()
        .map(|pod| {
            let owner = pod.owner_references().first().map(|owner| owner.uid.clone());
            (pod.name_any(), (pod.uid().expect("a uid"), owner))
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_that_aibrix_left_are_adopted_and_replaced_one_by_one() {
    if std::env::var_os("KUBE_BIN").is_some() && std::env::var_os("REDIS_SERVER").is_none() {
        eprintln!("SKIPPED, nothing was tested: REDIS_SERVER names no redis-server");
        return;
    }
    let Some(world) = World::start().await else { return };
    let stored = world.apply(&cache("kv")).await;
    let sets = Api::<StatefulSet>::namespaced(world.client.clone(), NAMESPACE);
    apply(&sets, &stateful_set_of_aibrix(&stored)).await;
    wait::until("the pods of before are ready", wait::LONG, || {
        let ready = world.kubelet.pods().iter().filter(|pod| pod.is_ready).count();
        std::future::ready((ready == 3).then_some(()))
    })
    .await;
    let before = pods(&world).await;

    // The operator cannot change it, says so, and what to do.
    let operator = Operator::start(&world.plane, "operator", &["--leader-election=false"]).await;
    operator.leads(wait::LONG).await;
    let message = world.says("kv", "Accepted", "False/InvalidSpec").await;
    assert!(message.contains("apply StatefulSet kv: refused"), "{message}");
    assert!(message.contains("delete the StatefulSet with --cascade=orphan"), "{message}");
    assert_eq!(pods(&world).await, before);

    let set = sets.get("kv").await.expect("a set").uid();
    let orphan =
        DeleteParams { propagation_policy: Some(kube::api::PropagationPolicy::Orphan), ..Default::default() };
    sets.delete("kv", &orphan).await.expect("deleted");
    // The pods of before are the new set's, by their labels and their names: none is started anew at once.
    let new = wait::until("there is a set of the operator's", wait::LONG, || async {
        sets.get_opt("kv")
            .await
            .ok()
            .flatten()
            .and_then(|now| now.uid())
            .filter(|now| Some(now) != set.as_ref())
    })
    .await;
    wait::until("the first of the pods of before has been adopted", wait::LONG, || async {
        let (uid, owner) = pods(&world).await.remove("kv-0")?;
        (uid == before["kv-0"].0 && owner.as_deref() == Some(new.as_str())).then_some(())
    })
    .await;

    // They are of another template, so a rolling update replaces them, the highest first.
    world.settled("kv").await;
    let after = pods(&world).await;
    assert!(after.keys().eq(before.keys()), "{after:?}");
    for (name, (uid, owner)) in &after {
        assert_ne!(*uid, before[name].0, "{name}");
        assert_eq!(owner.as_deref(), Some(new.as_str()), "{name}");
    }
    let ends: Vec<String> = world.kubelet.ends().into_iter().map(|end| end.name).collect();
    assert_eq!(ends, ["kv-2", "kv-1", "kv-0"]);
    operator.stop().await;
    world.kubelet.stop().await;
}
