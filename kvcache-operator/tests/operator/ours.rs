//! What the operator takes for its own, and what it knows without being told.

use kvcache_operator::api::AsWritten;
use kvcache_operator::mirror::CacheKey;
use kvcache_operator::reconcile::{Reconciler, Settings};
use serde_json::{Value, json};

use crate::support::api_server::{Key, Verb};
use crate::support::cluster::{Cluster, NAMESPACE, cache_key, pass};
use crate::support::controllers;

fn with_runtime(cache: &mut Value) {
    cache["spec"]["metadata"] = json!({ "redis": { "runtime": {} } });
}

fn owner(of: &Value) -> Value {
    json!([{
        "apiVersion": of["apiVersion"], "kind": of["kind"], "name": of["metadata"]["name"],
        "uid": of["metadata"]["uid"], "controller": true,
    }])
}

/// A service with the cache's label.
fn service(name: &str, managed_by: &str, owners: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "spec": { "ports": [{ "port": 1 }] },
        "metadata": {
            "namespace": NAMESPACE, "name": name, "ownerReferences": owners,
            "labels": {
                "kvcache.orchestration.aibrix.ai/name": "kv", "app.kubernetes.io/managed-by": managed_by,
            },
        },
    })
}

#[tokio::test(start_paused = true)]
async fn only_what_it_made_for_the_cache_is_deleted() {
    let cluster = Cluster::new();
    let _operator = cluster.start("one");
    let cache = cluster.put_cache("kv", with_runtime);
    pass(60).await;
    cluster.server.put(service("another-hand", "aibrix", owner(&cache)));
    cluster.server.put(service("copy", "kvcache-operator", json!([])));
    cluster.server.put(service("left-over", "kvcache-operator", owner(&cache)));
    cluster.put_cache("kv", |_| {});
    pass(60).await;
    let there = |name: &str| cluster.server.get(&Key::new("services", NAMESPACE, name)).is_some();
    assert_eq!((there("another-hand"), there("copy"), there("left-over")), (true, true, false));
    assert_eq!((there("kv-redis"), there("kv-headless-service")), (false, true));
}

#[tokio::test(start_paused = true)]
async fn what_is_on_its_way_out_is_deleted_once() {
    let cluster = Cluster::new();
    let _operator = cluster.start("one");
    cluster.put_cache("kv", with_runtime);
    pass(60).await;
    let redis = Key::new("services", NAMESPACE, "kv-redis");
    cluster.server.edit(&redis, |service| service["metadata"]["finalizers"] = json!(["test/slow"]));
    cluster.server.forget();
    cluster.put_cache("kv", |_| {});
    pass(900).await;
    assert!(cluster.server.get(&redis).is_some(), "somebody holds it");
    let mut deletions = cluster.server.writes();
    deletions.retain(|write| write.verb == Verb::Delete && write.resource == "services");
    assert_eq!(deletions.len(), 1, "{deletions:?}");
}

#[tokio::test(start_paused = true)]
async fn a_pod_of_somebody_else_is_no_server_whatever_its_name_and_labels() {
    let cluster = Cluster::without_controllers();
    let _operator = cluster.start("one");
    cluster.put_cache("kv", |_| {});
    pass(5).await;
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "namespace": NAMESPACE, "name": "kv-0",
            "labels": { "kvcache.orchestration.aibrix.ai/name": "kv", "kvcache.orchestration.aibrix.ai/role": "cache" },
        },
    });
    let ready = |server: &crate::support::api_server::ApiServer| {
        let since = server.now().to_string();
        let ready = json!([{ "type": "Ready", "status": "True", "lastTransitionTime": since }]);
        server.put_status(
            &Key::new("pods", NAMESPACE, "kv-0"),
            json!({ "podIP": "10.0.0.1", "conditions": ready }),
        );
    };
    let made = cluster.server.put(pod);
    ready(&cluster.server);
    pass(60).await;
    assert!(cluster.members("kv").is_empty());
    // The same one, as the StatefulSet makes it.
    let set = cluster.server.get(&Key::new("statefulsets", NAMESPACE, "kv")).unwrap();
    cluster.server.edit(&Key::of(&made), |pod| pod["metadata"]["ownerReferences"] = owner(&set));
    pass(60).await;
    assert_eq!(cluster.members("kv").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_was_accepted_for_another_cache_of_the_name_runs_nothing() {
    let cluster = Cluster::without_controllers();
    let operator = cluster.start("one");
    cluster.put_cache("kv", |_| {});
    pass(5).await;
    operator.stop().await.expect("an orderly end");
    // What is left of a cache that was deleted, while one of its name is made that is refused.
    let set = Key::new("statefulsets", NAMESPACE, "kv");
    cluster.server.edit(&set, |set| set["metadata"]["ownerReferences"][0]["uid"] = json!("gone"));
    cluster.server.delete(&Key::new("configmaps", NAMESPACE, "kv-ring"));
    cluster.put_cache("kv", |cache| cache["spec"]["cache"]["replicas"] = json!(-1));
    let _operator = cluster.start("two");
    pass(60).await;
    assert_eq!(cluster.condition("kv", "Accepted"), "False/InvalidSpec");
    assert_eq!(cluster.ring("kv"), Value::Null, "no ring of servers that are not its own");
}

#[tokio::test(start_paused = true)]
async fn a_ring_that_somebody_deleted_comes_back_as_a_later_one() {
    let cluster = Cluster::new();
    let _operator = cluster.start("one");
    cluster.put_cache("kv", |_| {});
    pass(60).await;
    let version = cluster.ring("kv")["version"].as_u64().expect("a version");
    cluster.server.delete(&Key::new("configmaps", NAMESPACE, "kv-ring"));
    pass(60).await;
    assert_eq!(cluster.members("kv").len(), 3);
    assert!(cluster.ring("kv")["version"].as_u64() > Some(version), "readers have seen that one");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_somebody_drains_leaves_at_once_and_comes_back_when_it_may() {
    let cluster = Cluster::new();
    let _operator = cluster.start("one");
    cluster.put_cache("kv", |_| {});
    pass(60).await;
    cluster.server.edit(&Key::new("pods", NAMESPACE, "kv-1"), |pod| {
        pod["metadata"]["annotations"]["kvcache.orchestration.aibrix.ai/drain"] = json!("true");
    });
    pass(5).await;
    assert_eq!(cluster.members("kv").into_keys().collect::<Vec<_>>(), ["kv-0", "kv-2"]);
    pass(600).await;
    assert_eq!(cluster.members("kv").len(), 2, "for as long as it is to");
    cluster.server.edit(&Key::new("pods", NAMESPACE, "kv-1"), |pod| {
        let annotations = pod["metadata"]["annotations"].as_object_mut().expect("annotations");
        annotations.remove("kvcache.orchestration.aibrix.ai/drain");
    });
    pass(5).await;
    assert_eq!(cluster.members("kv").len(), 3);
}

/// Were the new port published at once, clients would miss everything until the last server has it.
#[tokio::test(start_paused = true)]
async fn a_new_port_is_published_server_by_server() {
    let cluster = Cluster::without_controllers();
    let _operator = cluster.start("one");
    cluster.put_cache("kv", |_| {});
    pass(5).await;
    controllers::fill(&cluster.server);
    pass(30).await;
    let ports = || -> Vec<u64> {
        let ring = cluster.ring("kv");
        let nodes = ring["nodes"].as_array().cloned().unwrap_or_default();
        nodes.iter().filter_map(|node| node["port"].as_u64()).collect()
    };
    assert_eq!(ports(), [12345, 12345, 12345]);
    cluster.put_cache("kv", |cache| {
        cache["spec"]["service"]["ports"] =
            json!([{ "name": "service", "port": 12346, "targetPort": 12346 }]);
    });
    pass(30).await;
    assert_eq!(ports(), [12345, 12345, 12345], "no server has been told");
    for expected in [[12345, 12345, 12346], [12345, 12346, 12346], [12346, 12346, 12346]] {
        // One server goes, comes back, and is ready.
        for _ in 0..3 {
            assert!(controllers::step(&cluster.server));
            pass(5).await;
        }
        pass(30).await;
        assert_eq!(ports(), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn counts_of_an_older_template_say_nothing_of_the_new_one() {
    let cluster = Cluster::without_controllers();
    let _operator = cluster.start("one");
    cluster.put_cache("kv", |_| {});
    pass(5).await;
    controllers::fill(&cluster.server);
    pass(30).await;
    assert_eq!(cluster.condition("kv", "Progressing"), "False/Settled");
    cluster.put_cache("kv", |cache| cache["spec"]["cache"]["image"] = json!("next"));
    pass(5).await;
    assert_eq!(cluster.condition("kv", "Progressing"), "True/RollingUpdate", "no controller has looked yet");
}

#[tokio::test(start_paused = true)]
async fn what_is_to_be_known_of_a_spec_is_said_once() {
    let cluster = Cluster::new();
    let _operator = cluster.start("one");
    cluster.put_cache("kv", |cache| cache["spec"]["mode"] = json!("centralized"));
    pass(60).await;
    for server in ["kv-0", "kv-1", "kv-2"] {
        controllers::kill(&cluster.server, NAMESPACE, server);
        pass(60).await;
    }
    let mut said = cluster.server.requests();
    said.retain(|request| request.resource == "events" && request.body.to_string().contains("spec.mode"));
    assert_eq!(said.len(), 1, "{said:#?}");
}

/// Looks once, with what the API server has of the cache and nothing else from any watch.
async fn look(cluster: &Cluster, reconciler: &Reconciler) {
    let cache = AsWritten::from_value(cluster.cache("kv")).expect("a cache");
    reconciler.stores().caches.wrote(cache);
    reconciler.look(&CacheKey { namespace: NAMESPACE.to_owned(), name: "kv".to_owned() }).await;
}

#[tokio::test(start_paused = true)]
async fn what_it_wrote_it_knows_before_any_watch_tells_of_it() {
    let cluster = Cluster::without_controllers();
    let reconciler = cluster.reconciler("one", Settings::default());
    let key = CacheKey { namespace: NAMESPACE.to_owned(), name: "kv".to_owned() };
    cluster.put_cache("kv", with_runtime);
    look(&cluster, &reconciler).await;
    assert!(cluster.server.writes().len() > 8);
    cluster.put_cache("kv", |_| {});
    look(&cluster, &reconciler).await;
    let deletions = || cluster.server.writes().iter().filter(|write| write.verb == Verb::Delete).count();
    assert!(deletions() > 1);
    // Objects, ring, status and what was deleted.
    cluster.server.forget();
    reconciler.look(&key).await;
    assert_eq!(cluster.server.requests().len(), 0, "{:#?}", cluster.server.requests());
    assert_eq!(cluster.server.get(&cache_key("kv")).unwrap()["status"]["ringVersion"], 1);
}
