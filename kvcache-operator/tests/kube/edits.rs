//! Edits that cannot be served: they are said, and what runs goes on.

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};

use crate::engine::Engine;
use crate::life::everything;
use crate::objects::{NAMESPACE, apply};
use crate::operator::Operator;
use crate::wait;
use crate::world::{World, cache, members};

/// What the servers are made from.
async fn stateful_set(world: &World) -> StatefulSet {
    let mut set =
        Api::<StatefulSet>::namespaced(world.client.clone(), NAMESPACE).get("kv").await.expect("a set");
    // Its controller may have something to say.
    (set.status, set.metadata.managed_fields, set.metadata.resource_version) = (None, None, None);
    set
}

/// Waits until a server has moved, and the ring with it.
async fn moves_and_is_followed(world: &World, name: &str) {
    let address = |pods: Vec<crate::kubelet::PodView>| {
        pods.into_iter().find(|pod| pod.name == name && pod.is_ready).and_then(|pod| pod.ip)
    };
    let before = address(world.kubelet.pods());
    world.kubelet.move_to_another_address(name);
    wait::until(&format!("the ring has {name} at its new address"), wait::LONG, || async {
        let now = address(world.kubelet.pods()).filter(|now| Some(*now) != before)?;
        (members(&world.ring("kv").await?)[name] == now.to_string()).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_edit_is_said_and_what_runs_goes_on() {
    let Some(world) = World::start().await else { return };
    let operator = Operator::start(&world.plane, "one", &["--leader-election=false"]).await;
    operator.leads(wait::LONG).await;
    let good = cache("kv");
    world.apply(&good).await;
    world.settled("kv").await;
    let engine = Engine::start(&world, "kv").await;
    let since = engine.ring().history().len() - 1;
    let before = stateful_set(&world).await;

    // What the schema knows to be wrong is not even stored.
    let mut wrong = good.clone();
    wrong["spec"]["cache"]["replicas"] = json!("three");
    let params = PatchParams::apply("user").force();
    let refused = world.caches().patch("kv", &params, &Patch::Apply(&wrong)).await.expect_err("no number");
    assert!(refused.to_string().contains("spec.cache.replicas"), "{refused}");

    // All or nothing: the replicas, which could be had, wait with the rest.
    let mut bad = good.clone();
    bad["spec"]["server"]["capacity"] = json!("32Gi");
    bad["spec"]["cache"]["replicas"] = json!(5);
    world.apply(&bad).await;
    let message = world.says("kv", "Accepted", "False/MemoryTooSmall").await;
    for said in ["spec.cache.resources.limits.memory", "4 GiB", "32 GiB", "lower spec.server.capacity"] {
        assert!(message.contains(said), "{message}");
    }
    world.says("kv", "Progressing", "False/Held").await;
    world.says("kv", "Available", "True/AllReady").await;
    wait::until("an event says so", wait::SHORT, || async {
        let events = world.events("kv").await;
        events
            .iter()
            .any(|(reason, note)| reason == "MemoryTooSmall" && message.starts_with(note))
            .then_some(())
    })
    .await;
    assert_eq!(stateful_set(&world).await, before);
    moves_and_is_followed(&world, "kv-1").await;

    // Nor does it need the memory of the operator that has seen the good one.
    operator.kill().await;
    let operator = Operator::start(&world.plane, "two", &["--leader-election=false"]).await;
    operator.leads(wait::LONG).await;
    moves_and_is_followed(&world, "kv-2").await;
    assert_eq!(stateful_set(&world).await, before);
    world.says("kv", "Accepted", "False/MemoryTooSmall").await;

    // A word that means nothing, and the name of a backend that another operator has.
    for (backend, moves) in [("kvcach", "kv-1"), ("vineyard", "kv-2")] {
        let mut other = bad.clone();
        other["metadata"]["annotations"]["kvcache.orchestration.aibrix.ai/backend"] = json!(backend);
        world.apply(&other).await;
        let message = world.says("kv", "Accepted", "False/UnknownBackend").await;
        assert!(message.contains(&format!("{backend:?} is not served here: write \"kvcache\"")), "{message}");
        moves_and_is_followed(&world, moves).await;
        world.says("kv", "Available", "True/AllReady").await;
        assert_eq!(stateful_set(&world).await, before);
    }

    world.apply(&good).await;
    world.settled("kv").await;
    let moved: Vec<_> = world.kubelet.pods().into_iter().map(|pod| (pod.name, pod.restarts)).collect();
    let expected =
        [("kv-0", 0), ("kv-1", 2), ("kv-2", 2)].map(|(name, restarts)| (name.to_owned(), restarts));
    assert_eq!(moved, expected, "the pods of the beginning");
    engine.has_all("at the end").await;
    engine.end(since).await;
    operator.stop().await;
    world.kubelet.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_somebody_elses_stays_theirs() {
    let Some(world) = World::start().await else { return };
    let operator = Operator::start(&world.plane, "operator", &["--leader-election=false"]).await;
    operator.leads(wait::LONG).await;
    let maps = Api::<ConfigMap>::namespaced(world.client.clone(), NAMESPACE);
    let theirs = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "kv-connection"},
        "data": {"theirs": "yes"}});
    let theirs = apply(&maps, &theirs).await;
    world.apply(&cache("kv")).await;
    let message = world.says("kv", "Accepted", "False/OwnedByOther").await;
    assert!(message.contains("ConfigMap kv-connection"), "{message}");
    assert_eq!(maps.get("kv-connection").await.expect("a map"), theirs);
    let names: Vec<Value> =
        everything(&world.client).await.into_iter().map(|(name, _)| json!(name)).collect();
    assert_eq!(json!(names), json!(["ConfigMap/kv-connection"]), "nothing is begun that cannot be finished");
    // What is under way may still see it deleted; after that nobody tells the operator, as the object has no label of a cache.
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    maps.delete("kv-connection", &DeleteParams::default()).await.expect("deleted");
    world.settled("kv").await;
    operator.stop().await;
    world.kubelet.stop().await;
}
