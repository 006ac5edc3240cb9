//! The API server in memory behaves as the real one does, where the operator depends on it.

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, Service};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use kube::core::PartialObjectMeta;
use kube::runtime::watcher;
use kube::{Api, Client, Error, ResourceExt};
use serde_json::{Value, json};

use crate::support::api_server::{ApiServer, Fault, Faults, Key, Verb};

fn config_map(name: &str, data: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap", "data": data,
        "metadata": { "name": name, "namespace": "ns", "labels": { "app": name } },
    })
}

fn maps(client: &Client) -> Api<ConfigMap> {
    Api::namespaced(client.clone(), "ns")
}

async fn apply(client: &Client, manager: &str, data: Value) -> Result<ConfigMap, Error> {
    let params = PatchParams::apply(manager);
    maps(client).patch("a", &params, &Patch::Apply(config_map("a", data))).await
}

fn code(result: Result<impl std::fmt::Debug, Error>) -> u16 {
    match result {
        Err(Error::Api(status)) => status.code,
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test]
async fn applied_fields_that_are_left_out_go_away_unless_another_owns_them() {
    let server = ApiServer::new();
    let client = server.client("one");
    apply(&client, "one", json!({ "x": "1", "y": "1" })).await.unwrap();
    apply(&client, "two", json!({ "y": "1", "z": "2" })).await.unwrap();
    let left = apply(&client, "one", json!({})).await.unwrap();
    let data = left.data.unwrap();
    assert_eq!(data.keys().collect::<Vec<_>>(), ["y", "z"]);
    assert_eq!(server.managers(&Key::new("configmaps", "ns", "a"), &["f:data", "f:y"]), ["two"]);
}

#[tokio::test]
async fn a_field_of_another_manager_is_a_conflict_unless_forced() {
    let server = ApiServer::new();
    let client = server.client("one");
    apply(&client, "one", json!({ "x": "1" })).await.unwrap();
    assert_eq!(code(apply(&client, "two", json!({ "x": "2" })).await), 409);
    let params = PatchParams::apply("two").force();
    let patch = Patch::Apply(config_map("a", json!({ "x": "2" })));
    maps(&client).patch("a", &params, &patch).await.unwrap();
    let key = Key::new("configmaps", "ns", "a");
    assert_eq!(server.managers(&key, &["f:data", "f:x"]), ["two"]);
    // An ordinary write takes a field over as well.
    server.edit(&key, |object| object["data"]["x"] = json!("3"));
    assert_eq!(server.managers(&key, &["f:data", "f:x"]), ["test"]);
}

#[tokio::test]
async fn items_of_a_keyed_list_have_owners_of_their_own() {
    let server = ApiServer::new();
    let sets: Api<StatefulSet> = Api::namespaced(server.client("one"), "ns");
    let set = |containers: Value| {
        json!({
            "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": { "name": "a" },
            "spec": { "template": { "spec": { "containers": containers } } },
        })
    };
    let ours = set(json!([{ "name": "cache", "image": "one", "env": [{ "name": "A", "value": "1" }] }]));
    sets.patch("a", &PatchParams::apply("one"), &Patch::Apply(&ours)).await.unwrap();
    let theirs = set(json!([{ "name": "sidecar", "image": "two" }]));
    sets.patch("a", &PatchParams::apply("two"), &Patch::Apply(theirs)).await.unwrap();
    let ours = set(json!([{ "name": "cache", "image": "one" }]));
    let live = sets.patch("a", &PatchParams::apply("one"), &Patch::Apply(ours)).await.unwrap();
    let containers = live.spec.unwrap().template.spec.unwrap().containers;
    let names: Vec<&str> = containers.iter().map(|container| container.name.as_str()).collect();
    assert_eq!(names, ["cache", "sidecar"]);
    assert!(containers[0].env.as_ref().is_none_or(Vec::is_empty));
}

#[tokio::test]
async fn a_write_that_changes_nothing_makes_no_new_version() {
    let server = ApiServer::new();
    let client = server.client("one");
    let first = apply(&client, "one", json!({ "x": "1" })).await.unwrap();
    let again = apply(&client, "one", json!({ "x": "1" })).await.unwrap();
    assert_eq!(first.resource_version(), again.resource_version());
    let other = apply(&client, "one", json!({ "x": "2" })).await.unwrap();
    assert_ne!(first.resource_version(), other.resource_version());
}

#[tokio::test]
async fn an_old_resource_version_and_a_wrong_uid_are_conflicts() {
    let server = ApiServer::new();
    let client = server.client("one");
    let mut old = apply(&client, "one", json!({ "x": "1" })).await.unwrap();
    apply(&client, "one", json!({ "x": "2" })).await.unwrap();
    old.data = Some([("x".to_owned(), "3".to_owned())].into());
    assert_eq!(code(maps(&client).replace("a", &PostParams::default(), &old).await), 409);
    let mut patch = config_map("a", json!({ "x": "4" }));
    patch["metadata"]["uid"] = json!("another");
    let params = PatchParams::apply("one");
    assert_eq!(code(maps(&client).patch("a", &params, &Patch::Apply(patch)).await), 409);
    assert_eq!(
        code(
            maps(&client)
                .create(
                    &PostParams::default(),
                    &ConfigMap { metadata: old.metadata.clone(), ..Default::default() }
                )
                .await
        ),
        409
    );
}

#[tokio::test]
async fn status_and_the_rest_are_written_apart_and_only_the_rest_is_a_new_generation() {
    let server = ApiServer::new();
    let sets: Api<StatefulSet> = Api::namespaced(server.client("one"), "ns");
    let body = json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": { "name": "a" },
        "spec": { "replicas": 1 }, "status": { "replicas": 7 },
    });
    let params = PatchParams::apply("one");
    let live = sets.patch("a", &params, &Patch::Apply(&body)).await.unwrap();
    assert_eq!((live.metadata.generation, live.status.map(|status| status.replicas)), (Some(1), None));
    let live = sets.patch_status("a", &params, &Patch::Apply(&body)).await.unwrap();
    assert_eq!((live.metadata.generation, live.status.map(|status| status.replicas)), (Some(1), Some(7)));
    let body = json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": { "name": "a" }, "spec": { "replicas": 2 },
    });
    let live = sets.patch("a", &params, &Patch::Apply(&body)).await.unwrap();
    assert_eq!((live.metadata.generation, live.status.map(|status| status.replicas)), (Some(2), Some(7)));
}

#[tokio::test]
async fn defaults_and_canonical_amounts_are_added_to_what_was_asked_for() {
    let server = ApiServer::new();
    let services: Api<Service> = Api::namespaced(server.client("one"), "ns");
    let body = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "a" }, "spec": { "ports": [{ "port": 80 }] },
    });
    let live = services.patch("a", &PatchParams::apply("one"), &Patch::Apply(body)).await.unwrap();
    let spec = live.spec.unwrap();
    assert_eq!(spec.ports.unwrap()[0].protocol.as_deref(), Some("TCP"));
    assert!(spec.cluster_ip.is_some());
    let amounts = [
        ("1024Mi", "1Gi"),
        ("0.5", "500m"),
        ("1.0", "1"),
        ("1500Mi", "1500Mi"),
        ("1000m", "1"),
        ("1000", "1k"),
    ];
    for (written, kept) in amounts {
        let set = json!({
            "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": { "name": "a", "namespace": "ns" },
            "spec": { "template": { "spec": { "containers": [
                { "name": "c", "resources": { "limits": { "memory": written } } },
            ] } } },
        });
        let live = server.put(set);
        let container = &live["spec"]["template"]["spec"]["containers"][0];
        assert_eq!(container["resources"]["limits"]["memory"], kept, "{written}");
    }
}

#[tokio::test]
async fn deletion_waits_for_finalizers_and_takes_dependents_along() {
    let server = ApiServer::new();
    let client = server.client("one");
    let owner = server.put(config_map("a", json!({})));
    let mut dependent = config_map("b", json!({}));
    dependent["metadata"]["ownerReferences"] = json!([
        { "apiVersion": "v1", "kind": "ConfigMap", "name": "a", "uid": owner["metadata"]["uid"] },
    ]);
    server.put(dependent);
    let (a, b) = (Key::new("configmaps", "ns", "a"), Key::new("configmaps", "ns", "b"));
    server.edit(&a, |object| object["metadata"]["finalizers"] = json!(["ours"]));
    maps(&client).delete("a", &DeleteParams::default()).await.unwrap();
    assert!(server.get(&a).unwrap()["metadata"]["deletionTimestamp"].is_string());
    assert!(server.get(&b).is_some());
    let patch = json!({ "metadata": { "finalizers": null } });
    maps(&client).patch("a", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    assert_eq!((server.get(&a), server.get(&b)), (None, None));
}

#[tokio::test]
async fn lists_are_filtered_by_labels_and_fields() {
    let server = ApiServer::new();
    let maps = maps(&server.client("one"));
    for name in ["a", "b", "c"] {
        server.put(config_map(name, json!({})));
    }
    for (selector, expected) in [
        ("app=a", vec!["a"]),
        ("app!=a", vec!["b", "c"]),
        ("app in (a, c)", vec!["a", "c"]),
        ("app notin (a,c),app", vec!["b"]),
        ("!app", vec![]),
    ] {
        let list = maps.list(&ListParams::default().labels(selector)).await.unwrap();
        let names: Vec<String> = list.iter().map(ResourceExt::name_any).collect();
        assert_eq!(names, expected, "{selector}");
    }
    let list = maps.list(&ListParams::default().fields("metadata.name=b")).await.unwrap();
    assert_eq!(list.items.len(), 1);
    let metadata: Api<PartialObjectMeta<ConfigMap>> = Api::namespaced(server.client("one"), "ns");
    assert_eq!(metadata.list(&ListParams::default()).await.unwrap().items.len(), 3);
}

#[tokio::test]
async fn a_list_comes_in_pages_and_a_page_of_forgotten_history_is_gone() {
    let server = ApiServer::new();
    for name in ["a", "b", "c", "d", "e"] {
        server.put(config_map(name, json!({})));
    }
    let maps = maps(&server.client("one"));
    let mut params = ListParams::default().limit(2);
    let mut pages = Vec::new();
    let mut versions = std::collections::BTreeSet::new();
    loop {
        let page = maps.list(&params).await.unwrap();
        pages.push(page.items.iter().map(ResourceExt::name_any).collect::<Vec<_>>().concat());
        versions.extend(page.metadata.resource_version);
        // What comes meanwhile is for the watch, which begins at the version of the first page.
        server.put(config_map("x", json!({ "n": pages.len().to_string() })));
        match page.metadata.continue_ {
            Some(token) => params = params.continue_token(&token),
            None => break,
        }
    }
    assert_eq!(pages, ["ab", "cd", "ex"]);
    assert_eq!(versions.len(), 1);
    let first = maps.list(&ListParams::default().limit(2)).await.unwrap();
    server.put(config_map("y", json!({})));
    server.compact();
    let token = first.metadata.continue_.unwrap();
    assert_eq!(code(maps.list(&ListParams::default().limit(2).continue_token(&token)).await), 410);
}

#[tokio::test]
async fn a_watch_tells_changes_from_a_revision_on_and_labels_decide_what_is_an_addition() {
    let server = ApiServer::new();
    let maps = maps(&server.client("one"));
    let a = Key::new("configmaps", "ns", "a");
    server.put(config_map("before", json!({})));
    let from = server.revision().to_string();
    let params = WatchParams::default().labels("app=a");
    let mut watch = maps.watch(&params, &from).await.unwrap().boxed();
    let mut next = async || match watch.try_next().await.unwrap() {
        Some(WatchEvent::Added(object)) => format!("added {}", object.name_any()),
        Some(WatchEvent::Modified(object)) => format!("modified {}", object.name_any()),
        Some(WatchEvent::Deleted(object)) => format!("deleted {}", object.name_any()),
        Some(WatchEvent::Bookmark(_)) => "bookmark".to_owned(),
        other => format!("{other:?}"),
    };
    server.put(config_map("a", json!({})));
    server.edit(&a, |object| object["data"]["x"] = json!("1"));
    server.edit(&a, |object| object["metadata"]["labels"] = json!({}));
    assert_eq!(next().await, "added a");
    assert_eq!(next().await, "modified a");
    assert_eq!(next().await, "deleted a");
    server.edit(&a, |object| object["metadata"]["labels"] = json!({ "app": "a" }));
    server.delete(&a);
    assert_eq!(next().await, "added a");
    assert_eq!(next().await, "deleted a");
    server.put(config_map("other", json!({})));
    assert_eq!(next().await, "bookmark");
    server.cut_watches();
    assert_eq!(next().await, "None");
}

#[tokio::test]
async fn a_watch_from_forgotten_history_is_gone_and_a_watcher_lists_anew() {
    let server = ApiServer::new();
    let maps = maps(&server.client("one"));
    server.put(config_map("a", json!({})));
    let mut watch = Box::pin(watcher(maps.clone(), watcher::Config::default()));
    let mut next = async || match watch.next().await.unwrap() {
        Ok(watcher::Event::InitDone) => "listed".to_owned(),
        Ok(watcher::Event::Init) => "init".to_owned(),
        Ok(watcher::Event::Apply(object) | watcher::Event::InitApply(object)) => object.name_any(),
        Ok(watcher::Event::Delete(object)) => format!("deleted {}", object.name_any()),
        Err(error) => error.to_string(),
    };
    assert_eq!([next().await, next().await, next().await], ["init", "a", "listed"]);
    server.put(config_map("b", json!({})));
    assert_eq!(next().await, "b");
    server.inject(Faults::default().aimed(|call| call.verb == Verb::Watch, Fault::Gone, 1));
    server.cut_watches();
    assert!(next().await.contains("too old resource version"));
    assert_eq!([next().await, next().await, next().await, next().await], ["init", "a", "b", "listed"]);
    server.put(config_map("c", json!({})));
    server.compact();
    assert!(next().await.contains("too old resource version"));
}

#[tokio::test(start_paused = true)]
async fn faults_come_as_aimed_and_by_seed_and_the_log_has_every_request() {
    let server = ApiServer::new();
    let client = server.client("one");
    let patches = |fault| Faults::default().aimed(|call| call.verb == Verb::Patch, fault, 1);
    server.inject(patches(Fault::Error));
    assert_eq!(code(apply(&client, "one", json!({ "x": "1" })).await), 500);
    assert!(server.all("configmaps").is_empty());
    server.inject(patches(Fault::ErrorAfter));
    assert_eq!(code(apply(&client, "one", json!({ "x": "1" })).await), 500);
    assert_eq!(server.all("configmaps").len(), 1);
    server.inject(patches(Fault::Hang));
    let hung = apply(&client, "one", json!({ "x": "1" }));
    assert!(tokio::time::timeout(std::time::Duration::from_secs(60), hung).await.is_err());
    apply(&client, "one", json!({ "x": "1" })).await.unwrap();
    let log = server.requests();
    assert_eq!(log.len(), 4);
    assert_eq!(log[3].path, "/api/v1/namespaces/ns/configmaps/a");
    assert_eq!(log[3].query["fieldManager"], "one");
    assert_eq!(log[3].content_type.as_deref(), Some("application/apply-patch+yaml"));
    assert_eq!((log[3].client.as_str(), log[3].resource.as_str()), ("one", "configmaps"));

    let outcomes = async |seed| {
        server.inject(Faults::seeded(seed, 3));
        let mut codes = Vec::new();
        for _ in 0..30 {
            let maps = maps(&client);
            let get = maps.get("a");
            codes.push(
                tokio::time::timeout(std::time::Duration::from_secs(60), get)
                    .await
                    .is_ok_and(|get| get.is_ok()),
            );
        }
        codes
    };
    let first = outcomes(1).await;
    assert_eq!(first, outcomes(1).await, "a seed repeats");
    assert_ne!(first, outcomes(2).await, "seeds differ");
    assert!(first.contains(&false) && first.contains(&true));
}
