//! What goes over the wire: the exact requests of a reconciliation.

use kvcache_operator::rbac;
use serde_json::json;

use crate::support::api_server::{Logged, Verb};
use crate::support::cluster::{Cluster, NAMESPACE, cache_key, pass};

/// A request in a line: verb, path, and how it is applied.
fn line(request: &Logged) -> String {
    let query: Vec<String> = request.query.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let content = request.content_type.as_deref().filter(|_| request.verb.writes()).unwrap_or_default();
    format!("{} {} {} {}", request.verb.name(), request.path, query.join("&"), content).trim_end().to_owned()
}

#[tokio::test(start_paused = true)]
async fn the_first_look_at_a_cache_sends_these_requests() {
    let cluster = Cluster::new();
    let _operator = cluster.start("one");
    pass(5).await;
    cluster.server.forget();
    cluster.put_cache("kv", |_| {});
    tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    let requests: Vec<String> =
        cluster.server.requests().iter().filter(|request| request.verb != Verb::Watch).map(line).collect();
    let apply = "fieldManager=kvcache-operator&force=true application/apply-patch+yaml";
    let expected: Vec<String> = [
        "get /api/v1/namespaces/models/serviceaccounts/kv",
        "get /api/v1/namespaces/models/services/kv-headless-service",
        "get /apis/apps/v1/namespaces/models/statefulsets/kv",
        "get /apis/policy/v1/namespaces/models/poddisruptionbudgets/kv",
        "get /api/v1/namespaces/models/configmaps/kv-connection",
        "patch /api/v1/namespaces/models/serviceaccounts/kv APPLY",
        "patch /api/v1/namespaces/models/services/kv-headless-service APPLY",
        "patch /apis/apps/v1/namespaces/models/statefulsets/kv APPLY",
        "patch /apis/policy/v1/namespaces/models/poddisruptionbudgets/kv APPLY",
        "patch /api/v1/namespaces/models/configmaps/kv-connection APPLY",
        "get /api/v1/namespaces/models/configmaps/kv-ring",
        "create /api/v1/namespaces/models/configmaps fieldManager=kvcache-operator application/json",
        "patch /apis/orchestration.aibrix.ai/v1alpha1/namespaces/models/kvcaches/kv/status APPLY",
    ]
    .iter()
    .map(|line| line.replace("APPLY", apply))
    .collect();
    let without_events: Vec<String> = requests.into_iter().filter(|line| !line.contains("/events")).collect();
    assert_eq!(without_events[..expected.len().min(without_events.len())], expected);
}

#[tokio::test(start_paused = true)]
async fn every_object_is_applied_whole_with_its_owner_and_never_with_what_the_server_says() {
    let cluster = Cluster::new();
    let _operator = cluster.start("one");
    cluster.put_cache("kv", |cache| cache["spec"]["metadata"] = json!({ "redis": { "runtime": {} } }));
    pass(60).await;
    cluster.put_cache("kv", |cache| cache["spec"]["cache"]["replicas"] = json!(2));
    pass(60).await;
    let writes = cluster.server.writes();
    assert!(writes.len() > 8);
    for write in writes {
        if write.verb == Verb::Delete {
            assert!(write.body["preconditions"]["uid"].is_string(), "{write:?}");
            continue;
        }
        assert_eq!(write.query["fieldManager"], "kvcache-operator", "{write:?}");
        assert!(write.path.contains(&format!("/namespaces/{NAMESPACE}/")), "{write:?}");
        assert!(write.body["metadata"].get("managedFields").is_none(), "{write:?}");
        let version = &write.body["metadata"]["resourceVersion"];
        match (write.verb, write.name.as_deref()) {
            // The ring alone is written only as the one that was looked at.
            (Verb::Create, Some("kv-ring")) => assert!(version.is_null(), "{write:?}"),
            (Verb::Patch, Some("kv-ring")) => assert!(version.is_string(), "{write:?}"),
            (verb, _) => {
                assert_eq!(verb, Verb::Patch, "{write:?}");
                assert_eq!(write.content_type.as_deref(), Some("application/apply-patch+yaml"), "{write:?}");
                assert_eq!(write.query["force"], "true", "{write:?}");
                assert!(version.is_null(), "{write:?}");
                assert!(write.body["metadata"].get("creationTimestamp").is_none(), "{write:?}");
            }
        }
        let is_status = write.resource.ends_with("/status");
        assert_eq!(write.body.get("status").is_some(), is_status, "{write:?}");
        // A cache that was made anew under the name has a status of its own.
        assert!(!is_status || write.body["metadata"]["uid"].is_string(), "{write:?}");
        if !is_status {
            assert_eq!(write.body["metadata"]["ownerReferences"][0]["controller"], true, "{write:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn rings_are_listed_in_small_pages() {
    let cluster = Cluster::without_controllers();
    for number in 0..60 {
        let name = format!("kv-{number:02}");
        cluster.server.put(json!({
            "apiVersion": "v1", "kind": "ConfigMap", "data": { "ring.json": r#"{"nodes":[],"version":1}"# },
            "metadata": {
                "namespace": NAMESPACE, "name": format!("{name}-ring"),
                "labels": { "kvcache.orchestration.aibrix.ai/name": name },
            },
        }));
    }
    let operator = cluster.start("one");
    pass(5).await;
    let mut lists = cluster.server.requests();
    lists.retain(|request| request.verb == Verb::List && request.resource == "configmaps");
    assert_eq!(lists.len(), 2, "{lists:?}");
    assert!(lists.iter().all(|list| list.query["limit"] == "50"));
    assert_eq!(operator.reconciler.stores().config_maps.keys().len(), 60);
}

/// Everything that the operator does to a cluster in its life, in the words of RBAC.
async fn verbs_in_use() -> std::collections::BTreeSet<(String, String, &'static str)> {
    let cluster = Cluster::new();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("the loopback interface");
    let address = listener.local_addr().expect("bound").to_string();
    let operator = cluster.start_elected("one");
    cluster.put_cache("kv", |cache| {
        cache["spec"]["metadata"] = json!({ "redis": { "externalConnection": {
            "address": address, "passwordSecretRef": "login",
        } } });
    });
    pass(60).await;
    cluster.put_cache("kv", |cache| cache["spec"]["metadata"] = json!({ "redis": { "runtime": {} } }));
    pass(60).await;
    cluster.put_cache("kv", |cache| cache["spec"]["cache"]["replicas"] = json!(-1));
    pass(60).await;
    cluster.put_cache("kv", |_| {});
    pass(60).await;
    cluster.server.delete(&cache_key("kv"));
    pass(60).await;
    operator.stop().await.expect("an orderly end");
    let requests = cluster.server.requests();
    requests.into_iter().map(|request| (request.group, request.resource, request.verb.name())).collect()
}

#[tokio::test(start_paused = true)]
async fn only_these_verbs_are_used() {
    let used = verbs_in_use().await;
    for (group, resource, verb) in &used {
        assert!(
            rbac::allows(group, resource, verb),
            "{group}/{resource} {verb} is not in the table of rights"
        );
        // Applying what is not there is creating.
        let is_made = *verb == "patch" && rbac::allows(group, resource, "delete");
        assert!(!is_made || rbac::allows(group, resource, "create"), "{group}/{resource} create");
    }
    let used: Vec<String> =
        used.into_iter().map(|(group, resource, verb)| format!("{group}/{resource} {verb}")).collect();
    let object =
        |resource: &str| ["delete", "get", "list", "patch", "watch"].map(|verb| format!("{resource} {verb}"));
    let read = |resource: &str| ["list", "watch"].map(|verb| format!("{resource} {verb}"));
    let mut expected: Vec<String> = [
        "/configmaps create",
        "/secrets get",
        "events.k8s.io/events create",
        "events.k8s.io/events patch",
        "coordination.k8s.io/leases create",
        "coordination.k8s.io/leases get",
        "coordination.k8s.io/leases update",
        "orchestration.aibrix.ai/kvcaches patch",
        "orchestration.aibrix.ai/kvcaches/status patch",
    ]
    .map(str::to_owned)
    .into();
    expected.extend(
        read("/pods").into_iter().chain(read("/secrets")).chain(read("orchestration.aibrix.ai/kvcaches")),
    );
    for resource in ["/services", "apps/statefulsets"] {
        expected.extend(object(resource));
    }
    // Of these none is ever wanted no more while its cache is there.
    for resource in ["/configmaps", "/serviceaccounts", "policy/poddisruptionbudgets"] {
        expected.extend(object(resource).into_iter().filter(|line| !line.ends_with("delete")));
    }
    expected.sort();
    assert_eq!(used, expected);
}
