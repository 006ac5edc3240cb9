//! Servers are added and taken away while an engine reads.

use std::time::{Duration, Instant};

use k8s_openapi::api::autoscaling::v1::Scale;
use kube::api::{Patch, PatchParams};
use serde_json::json;

use crate::engine::{Engine, VALUES};
use crate::operator::Operator;
use crate::wait;
use crate::world::{World, cache};

/// What `kubectl scale` and any autoscaler do.
async fn scale(world: &World, replicas: i32) {
    let patch = json!({"spec": {"replicas": replicas}});
    let scale: Scale = world
        .caches()
        .patch_scale("kv", &PatchParams::default(), &Patch::Merge(&patch))
        .await
        .map(|scale| serde_json::from_value(serde_json::to_value(scale).expect("JSON")).expect("a scale"))
        .expect("scaled");
    assert_eq!(scale.spec.and_then(|spec| spec.replicas), Some(replicas));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scaling_out_and_in_costs_no_more_than_the_moved_slots() {
    let Some(world) = World::start().await else { return };
    let operator = Operator::start(&world.plane, "operator", &[]).await;
    operator.leads(wait::LONG).await;
    world.apply(&cache("kv")).await;
    world.settled("kv").await;
    let scaled = world.caches().get_scale("kv").await.expect("a scale");
    let status = scaled.status.expect("a status");
    assert_eq!(status.replicas, 3);
    assert!(
        status.selector.is_some_and(|selector| selector.contains("kvcache.orchestration.aibrix.ai/name=kv"))
    );
    let engine = Engine::start(&world, "kv").await;
    let since = engine.ring().history().len() - 1;

    for replicas in [5, 2, 4] {
        let asked = Instant::now();
        scale(&world, replicas).await;
        let (_, ring) = world.settled("kv").await;
        assert_eq!(ring.nodes.len(), replicas as usize);
        assert!(asked.elapsed() < GRACE, "what is scaled in leaves at once, without a grace");
        engine.has_all(&format!("with {replicas} servers")).await;
    }
    let history = engine.ring().history();
    // Each server enters and leaves once, in whatever order pods become ready.
    let members = history.members_since(since);
    let sizes: Vec<usize> = members.iter().map(Vec::len).collect();
    assert!(
        sizes.iter().skip_while(|size| **size < 5).skip_while(|size| **size > 2).all(|size| *size <= 4),
        "{sizes:?}"
    );
    assert!((4..=6).contains(&(history.len() - since)), "{members:?}");
    let moved = history.changes_since(since).iter().filter(|slot| slot.moves > 0).count();
    let outcome = engine.end(since).await;
    eprintln!("{moved} slots moved at least once; {outcome:?} of {VALUES} values");
    assert!(outcome.lost > 0 && outcome.lost <= outcome.explained, "{outcome:?}");
    operator.stop().await;
    world.kubelet.stop().await;
}

/// As [`cache`] has it.
const GRACE: Duration = Duration::from_secs(60);
