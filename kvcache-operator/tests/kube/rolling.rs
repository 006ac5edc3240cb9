//! Servers are replaced by others of another make, one after the other, while an engine reads.

use k8s_openapi::api::core::v1::Pod;
use kube::api::Api;
use serde_json::json;

use crate::engine::{Engine, VALUES};
use crate::objects::NAMESPACE;
use crate::operator::Operator;
use crate::ring_history::Changes;
use crate::wait;
use crate::world::{World, cache};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_update_within_the_grace_moves_no_slot() {
    let Some(world) = World::start().await else { return };
    let operator = Operator::start(&world.plane, "operator", &[]).await;
    operator.leads(wait::LONG).await;
    let mut wanted = cache("kv");
    world.apply(&wanted).await;
    world.settled("kv").await;
    let engine = Engine::start(&world, "kv").await;
    let since = engine.ring().history().len() - 1;
    let before = world.kubelet.pods();

    wanted["spec"]["cache"]["env"] = json!([{"name": "GENERATION", "value": "2"}]);
    world.apply(&wanted).await;
    world.settled("kv").await;
    let pods = Api::<Pod>::namespaced(world.client.clone(), NAMESPACE);
    for (before, after) in before.iter().zip(world.kubelet.pods()) {
        assert_eq!(before.name, after.name);
        assert!(before.uid != after.uid && before.ip != after.ip, "{after:?}");
        let pod = pods.get(&after.name).await.expect("a pod");
        let env = pod.spec.expect("a spec").containers.remove(0).env.unwrap_or_default();
        assert!(env.iter().any(|variable| variable.name == "GENERATION"), "{env:?}");
    }
    let ends = world.kubelet.ends();
    assert_eq!(ends.iter().map(|end| end.name.as_str()).collect::<Vec<_>>(), ["kv-2", "kv-1", "kv-0"]);
    assert!(ends.iter().all(|end| end.exit_code == Some(0)), "{ends:?}");
    engine.has_all("after the update").await;
    let changes = engine.ring().history().changes_since(since);
    assert!(
        changes.iter().all(|slot| *slot == Changes { moves: 0, restarts: 1 }),
        "another address for each, once"
    );
    let outcome = engine.end(since).await;
    // All of it was in memory that is gone.
    assert!(outcome.lost > 0 && outcome.explained == VALUES, "{outcome:?}");
    operator.stop().await;
    world.kubelet.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_update_beyond_the_grace_moves_each_slot_once_and_back() {
    let Some(world) = World::start().await else { return };
    let operator = Operator::start(&world.plane, "operator", &[]).await;
    operator.leads(wait::LONG).await;
    let mut wanted = cache("kv");
    wanted["spec"]["server"]["ring"]["notReadyGraceSeconds"] = json!(1);
    world.apply(&wanted).await;
    world.settled("kv").await;
    let engine = Engine::start(&world, "kv").await;
    let since = engine.ring().history().len() - 1;

    wanted["spec"]["cache"]["image"] = json!("kvcache-server:next");
    world.apply(&wanted).await;
    // The controller goes on only when a server is ready again: each is away for as long as it is held.
    for name in ["kv-2", "kv-1", "kv-0"] {
        wait::until(&format!("{name} has ended"), wait::LONG, || {
            std::future::ready(world.kubelet.ends().iter().any(|end| end.name == name).then_some(()))
        })
        .await;
        world.kubelet.hold_readiness(name, true);
        wait::until(&format!("{name} has left the ring"), wait::LONG, || async {
            let ring = world.ring("kv").await?;
            (!ring.nodes.iter().any(|node| node.name == name)).then_some(())
        })
        .await;
        engine.has_all(&format!("without {name}")).await;
        world.kubelet.hold_readiness(name, false);
    }
    world.settled("kv").await;
    engine.has_all("after the update").await;
    let history = engine.ring().history();
    let changes = history.changes_since(since);
    assert_eq!(history.displaced_since(since), 0);
    assert!(changes.iter().all(|slot| *slot == Changes { moves: 2, restarts: 0 }), "each once and back");
    assert_eq!(history.len(), since + 1 + 6, "{:?}", history.members_since(since));
    let outcome = engine.end(since).await;
    assert!(outcome.lost > 0, "{outcome:?}");
    operator.stop().await;
    world.kubelet.stop().await;
}
