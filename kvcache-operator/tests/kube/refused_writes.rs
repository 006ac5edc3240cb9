//! The operator may not do what it has to: its cache says so, and an edit is tried at once when it may again.

use k8s_openapi::api::rbac::v1::ClusterRole;
use kube::api::{Api, Patch, PatchParams};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::operator::Operator;
use crate::wait;
use crate::world::{World, cache};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_right_that_is_missing_is_a_condition_until_it_is_given() {
    let Some(world) = World::start().await else { return };
    let operator = Operator::start(&world.plane, "operator", &["--leader-election=false"]).await;
    operator.leads(wait::LONG).await;
    let mut wanted = cache("kv");
    world.apply(&wanted).await;
    world.settled("kv").await;

    let roles = Api::<ClusterRole>::all(world.client.clone());
    let role = roles.get(kvcache_operator::rbac::NAME).await.expect("the operator's role");
    let all: Value = serde_json::to_value(&role.rules).expect("JSON");
    let mut less = all.clone();
    for rule in less.as_array_mut().expect("rules") {
        if rule["resources"].as_array().is_some_and(|kinds| kinds.contains(&json!("statefulsets"))) {
            rule["verbs"] = json!(["get", "list", "watch"]);
        }
    }
    assert_ne!(less, all);
    let give = async |rules: &Value| {
        let patch = Patch::Merge(json!({ "rules": rules }));
        roles.patch(kvcache_operator::rbac::NAME, &PatchParams::default(), &patch).await.expect("a role");
    };
    give(&less).await;
    // Roles take effect a moment after they are written: until then the edit may still be carried out.
    let mut refused = None;
    for _ in 0..20 {
        let replicas = wanted["spec"]["cache"]["replicas"].as_u64().expect("a number");
        wanted["spec"]["cache"]["replicas"] = json!(if replicas == 3 { 2 } else { 3 });
        world.apply(&wanted).await;
        let end = wait::until("the edit is carried out, or refused", wait::LONG, || async {
            let kv = serde_json::to_value(world.caches().get("kv").await.ok()?).expect("JSON");
            let is_of_now = kv["status"]["observedGeneration"] == kv["metadata"]["generation"];
            let progressing = kv["status"]["conditions"][4].clone();
            let is_end = ["WriteFailed", "Settled"].iter().any(|end| progressing["reason"] == *end);
            (is_of_now && is_end).then_some(progressing)
        })
        .await;
        if end["reason"] == "WriteFailed" {
            refused = end["message"].as_str().map(str::to_owned);
            break;
        }
    }
    let message = refused.expect("the role takes effect");
    for said in
        ["apply StatefulSet kv: forbidden (403)", "cannot patch resource \"statefulsets\"", "rbac.yaml"]
    {
        assert!(message.contains(said), "{message}");
    }
    assert_eq!(world.says("kv", "Accepted", "True/Valid").await, "the spec is served");
    let is_told = |events: Vec<(String, String)>| {
        events.iter().any(|(reason, note)| reason == "WriteFailed" && message.starts_with(note)).then_some(())
    };
    wait::until("an event says so", wait::SHORT, || async { is_told(world.events("kv").await) }).await;

    give(&all).await;
    wanted["spec"]["cache"]["replicas"] = json!(1);
    world.apply(&wanted).await;
    world.settled("kv").await;
    // It was not allowed everything.
    operator.signal(Signal::TERM);
    assert_eq!(operator.ended().await.code(), Some(0), "{}", operator.log());
    world.kubelet.stop().await;
}
