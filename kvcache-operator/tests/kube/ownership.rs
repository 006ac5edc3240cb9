//! A second manager of the same objects: its fields stay, the operator's come back, and nobody fights.

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Service;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};

use crate::objects::NAMESPACE;
use crate::operator::Operator;
use crate::wait;
use crate::world::{World, cache};

/// Whether a manager owns a field of an object's spec.
fn owns(set: &StatefulSet, manager: &str, field: &str) -> bool {
    let all = set.managed_fields().iter().filter(|entry| entry.manager.as_deref() == Some(manager));
    let mut fields = all.filter_map(|entry| entry.fields_v1.as_ref());
    fields.any(|fields| fields.0.pointer(&format!("/f:spec/f:{field}")).is_some())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_manager_keeps_its_fields_and_gives_ours_back() {
    let Some(world) = World::start().await else { return };
    let operator = Operator::start(&world.plane, "operator", &["--leader-election=false"]).await;
    operator.leads(wait::LONG).await;
    let mut wanted = cache("kv");
    world.apply(&wanted).await;
    world.settled("kv").await;
    let sets = Api::<StatefulSet>::namespaced(world.client.clone(), NAMESPACE);
    let theirs = |spec: Value| {
        json!({"apiVersion": "apps/v1", "kind": "StatefulSet",
            "metadata": {"name": "kv", "annotations": {"theirs/note": "kept"}, "labels": {"theirs/team": "models"}},
            "spec": spec})
    };
    let other = PatchParams::apply("gitops");
    sets.patch("kv", &other, &Patch::Apply(&theirs(json!(null)))).await.expect("nobody else's fields");
    let refused = sets.patch("kv", &other, &Patch::Apply(&theirs(json!({"replicas": 7})))).await;
    let refused = refused.expect_err("the operator's field").to_string();
    assert!(refused.contains("kvcache-operator") && refused.contains("replicas"), "{refused}");

    // By force it has it, for a moment. One write each time, however often.
    let writes =
        |operator: &Operator| operator.writes().iter().filter(|write| write.is_about("statefulsets")).count();
    let force = other.clone().force();
    for round in 1..=4 {
        let before = writes(&operator);
        sets.patch("kv", &force, &Patch::Apply(&theirs(json!({"replicas": 7})))).await.expect("forced");
        wait::until("the operator has its field back", wait::LONG, || async {
            let set = sets.get("kv").await.ok()?;
            (set.spec.as_ref()?.replicas == Some(3) && owns(&set, "kvcache-operator", "replicas"))
                .then_some(())
        })
        .await;
        world.settled("kv").await;
        assert_eq!(writes(&operator) - before, 1, "round {round}: {:#?}", operator.writes());
    }
    // What is edited by hand comes back as well, and what nobody wants to be otherwise stays.
    let before = writes(&operator);
    let by_hand = json!({"spec": {"template": {"spec": {"terminationGracePeriodSeconds": 7}}},
        "metadata": {"labels": {"kvcache.orchestration.aibrix.ai/role": "other"}}});
    sets.patch("kv", &PatchParams::default(), &Patch::Merge(&by_hand)).await.expect("edited");
    wait::until("what was edited is as before", wait::LONG, || async {
        let set = sets.get("kv").await.ok()?;
        let grace = set.spec.as_ref()?.template.spec.as_ref()?.termination_grace_period_seconds;
        (grace == Some(30) && set.labels()["kvcache.orchestration.aibrix.ai/role"] == "cache").then_some(())
    })
    .await;
    let services = Api::<Service>::namespaced(world.client.clone(), NAMESPACE);
    services.delete("kv-headless-service", &DeleteParams::default()).await.expect("deleted");
    wait::until("the service is there again", wait::LONG, || async {
        services.get_opt("kv-headless-service").await.ok().flatten().map(drop)
    })
    .await;
    world.settled("kv").await;
    assert_eq!(writes(&operator) - before, 1, "{:#?}", operator.writes());

    // An update of ours leaves theirs where they are.
    wanted["spec"]["cache"]["replicas"] = json!(2);
    world.apply(&wanted).await;
    world.settled("kv").await;
    let set = sets.get("kv").await.expect("a set");
    assert_eq!(set.annotations()["theirs/note"], "kept");
    assert_eq!(set.labels()["theirs/team"], "models");
    assert!(owns(&set, "kvcache-operator", "template") && !owns(&set, "gitops", "replicas"));
    let before = operator.writes().len();
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    assert_eq!(operator.writes().len(), before, "{:#?}", operator.writes());
    operator.stop().await;
    world.kubelet.stop().await;
}
