//! The API server is away for a while, or its connections are: engines do not notice, and the operator goes on.

use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Service};
use kube::api::{Api, DeleteParams};
use rustix::process::Signal;
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::bridge::Asked;
use crate::engine::Engine;
use crate::objects::NAMESPACE;
use crate::operator::Operator;
use crate::wait;
use crate::world::{World, cache};

/// Whether all caches were asked for, or what has happened to them since. Other kinds come in their own time.
fn lists(asked: &Asked) -> bool {
    asked.target.starts_with(CACHES) && !asked.target.contains("watch=true")
}

fn watches(asked: &Asked) -> bool {
    asked.target.starts_with(CACHES) && asked.target.contains("watch=true")
}

const CACHES: &str = "/apis/orchestration.aibrix.ai/v1alpha1/kvcaches?";

/// Each watch comes back in its own time.
async fn is_there_again<K>(api: &Api<K>, name: &str)
where
    K: Clone + std::fmt::Debug + DeserializeOwned,
{
    wait::until(&format!("{name} is there again"), wait::LONG, || async {
        api.get_opt(name).await.ok().flatten().map(drop)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_go_on_after_a_cut_and_begin_anew_after_a_restart() {
    let Some(world) = World::start().await else { return };
    // A lease that is lost is another test's.
    let flags = ["--lease-seconds=120", "--renew-seconds=100"];
    let operator = Operator::start(&world.plane, "operator", &flags).await;
    operator.leads(wait::LONG).await;
    let mut wanted = cache("kv");
    world.apply(&wanted).await;
    world.settled("kv").await;
    let engine = Engine::start(&world, "kv").await;
    let since = engine.ring().history().len() - 1;
    let services = Api::<Service>::namespaced(world.client.clone(), NAMESPACE);
    let maps = Api::<ConfigMap>::namespaced(world.client.clone(), NAMESPACE);
    let pods = || world.kubelet.pods().len();

    // Cut off, it misses an edit and a deletion, and hears of both when it is back: from where it was.
    operator.bridge().cut();
    wanted["spec"]["cache"]["replicas"] = json!(4);
    world.apply(&wanted).await;
    services.delete("kv-headless-service", &DeleteParams::default()).await.expect("deleted");
    engine.has_all("while the operator is cut off").await;
    assert_eq!(pods(), 3, "nobody has heard of the edit");
    let before = operator.bridge().asked().len();
    operator.bridge().open();
    world.settled("kv").await;
    is_there_again(&services, "kv-headless-service").await;
    let since_then = operator.bridge().asked().split_off(before);
    assert!(since_then.iter().any(watches) && !since_then.iter().any(lists), "{since_then:#?}");

    // The API server is restarted. What happens before the operator is back is in no watch's history.
    operator.bridge().cut();
    world.plane.stop_api_server().await;
    engine.has_all("without an API server").await;
    world.plane.start_api_server().await;
    wanted["spec"]["cache"]["replicas"] = json!(2);
    world.apply(&wanted).await;
    services.delete("kv-headless-service", &DeleteParams::default()).await.expect("deleted");
    maps.delete("kv-connection", &DeleteParams::default()).await.expect("deleted");
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(pods(), 4, "nobody has heard of the edit");
    let (before, logged) = (operator.bridge().asked().len(), operator.log().len());
    operator.bridge().open();
    world.settled("kv").await;
    is_there_again(&services, "kv-headless-service").await;
    is_there_again(&maps, "kv-connection").await;
    let since_then = operator.bridge().asked().split_off(before);
    assert!(since_then.iter().any(lists), "{since_then:#?}");
    assert!(operator.log()[logged..].contains("too old resource version"), "{}", &operator.log()[logged..]);

    // And while it is connected: every request and every watch fails at once, for as long as it takes.
    world.plane.stop_api_server().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    world.plane.start_api_server().await;
    wanted["spec"]["cache"]["replicas"] = json!(3);
    world.apply(&wanted).await;
    world.settled("kv").await;
    assert_eq!(operator.end(), None);
    engine.has_all("at the end").await;
    engine.end(since).await;
    // Not everything was allowed: an API server that has just started does not know all roles yet.
    operator.signal(Signal::TERM);
    assert_eq!(operator.ended().await.code(), Some(0), "{}", operator.log());
    world.kubelet.stop().await;
}
