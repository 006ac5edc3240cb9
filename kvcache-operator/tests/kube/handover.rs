//! Several operators, of which one works: what happens when that one ends, in each way in which it can.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::Lease;
use kube::api::Api;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::control_plane::ControlPlane;
use crate::operator::{self, Operator};
use crate::wait;
use crate::world::{World, cache};

/// Its lease outlasts its last renewal by ten seconds.
async fn start(plane: &ControlPlane, name: &str) -> Operator {
    let flags = ["--lease-seconds=10", "--renew-seconds=7", "--retry-seconds=1"];
    Operator::start(plane, name, &flags).await
}

/// Waits until it knows the cluster, and has not to do with it yet.
async fn stands_by(operator: &Operator) {
    wait::until("it stands by", wait::LONG, || async {
        let leads = operator.metric("kvcache_operator_leader").await?;
        (operator.is_ok("/readyz").await && leads == 0.0).then_some(())
    })
    .await;
    assert!(operator.writes().is_empty(), "{:#?}", operator.writes());
}

async fn scale(world: &World, wanted: &mut Value, replicas: u32) {
    wanted["spec"]["cache"]["replicas"] = json!(replicas);
    world.apply(wanted).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_operator_takes_over_and_only_then() {
    let Some(world) = World::start().await else { return };
    let leases = Api::<Lease>::namespaced(world.client.clone(), operator::NAMESPACE);
    let lease = async || {
        let spec = leases.get("kvcache-operator").await.expect("a lease").spec.expect("a spec");
        (spec.holder_identity.unwrap_or_default(), spec.lease_transitions.unwrap_or_default())
    };
    let first = start(&world.plane, "first").await;
    first.leads(wait::LONG).await;
    let second = start(&world.plane, "second").await;
    let mut wanted = cache("kv");
    world.apply(&wanted).await;
    world.settled("kv").await;
    stands_by(&second).await;
    let transitions = lease().await.1;

    // One that is killed tells nobody: the other waits until the lease has run out.
    let killed = Instant::now();
    first.kill().await;
    scale(&world, &mut wanted, 2).await;
    second.leads(wait::LONG).await;
    let took = killed.elapsed();
    assert!(took > Duration::from_secs(6), "after {took:?}");
    world.settled("kv").await;
    assert_eq!(lease().await, ("second".to_owned(), transitions + 1));

    // One that is asked to end finishes and gives the lease back: the other waits for nothing.
    let third = start(&world.plane, "third").await;
    stands_by(&third).await;
    scale(&world, &mut wanted, 3).await;
    let asked = Instant::now();
    second.stop().await;
    let ended = Instant::now();
    third.leads(wait::LONG).await;
    assert!(ended.elapsed() < Duration::from_secs(6), "{:?} and {:?}", ended - asked, ended.elapsed());
    world.settled("kv").await;
    assert_eq!(lease().await, ("third".to_owned(), transitions + 2));

    // One that sleeps through its lease finds itself deposed, and ends.
    let fourth = start(&world.plane, "fourth").await;
    stands_by(&fourth).await;
    third.signal(Signal::STOP);
    fourth.leads(wait::LONG).await;
    scale(&world, &mut wanted, 1).await;
    world.settled("kv").await;
    third.signal(Signal::CONT);
    assert_eq!(third.ended().await.code(), Some(1));
    assert!(third.log().contains("the lease was lost"), "{}", third.log());
    third.was_allowed_everything();

    // One that cannot reach the API server ends before its lease does.
    let fifth = start(&world.plane, "fifth").await;
    stands_by(&fifth).await;
    let cut = Instant::now();
    fourth.bridge().cut();
    assert_eq!(fourth.ended().await.code(), Some(1));
    assert!(cut.elapsed() < Duration::from_secs(10), "{:?}", cut.elapsed());
    assert_eq!(lease().await.0, "fourth");
    scale(&world, &mut wanted, 2).await;
    fifth.leads(wait::LONG).await;
    world.settled("kv").await;
    fifth.stop().await;
    world.kubelet.stop().await;
}
