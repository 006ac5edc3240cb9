//! A cache's life when nothing goes wrong.

use kvcache_operator::reconcile::Settings;
use serde_json::{Value, json};

use crate::support::api_server::{Key, Verb};
use crate::support::cluster::{Cluster, NAMESPACE, cache_key, pass};
use crate::support::controllers;

#[tokio::test(start_paused = true)]
async fn a_cache_becomes_a_running_ring_and_says_so() {
    let cluster = Cluster::new();
    let operator = cluster.start("one");
    cluster.put_cache("kv", |_| {});
    pass(5).await;
    assert_eq!(cluster.condition("kv", "Available"), "False/NoServers", "not before they are ready for long");
    assert_eq!(cluster.ring("kv")["nodes"], json!([]), "an empty ring is published as one");
    pass(30).await;
    let members = cluster.members("kv");
    assert_eq!(members.keys().collect::<Vec<_>>(), ["kv-0", "kv-1", "kv-2"]);
    for (kind, expected) in [
        ("Accepted", "True/Valid"),
        ("MetadataReady", "True/NotConfigured"),
        ("RingPublished", "True/Published"),
        ("Available", "True/AllReady"),
        ("Progressing", "False/Settled"),
    ] {
        assert_eq!(cluster.condition("kv", kind), expected, "{kind}");
    }
    let status = &cluster.cache("kv")["status"];
    assert_eq!(
        (&status["current"], &status["desired"], &status["ringSlots"]),
        (&json!(3), &json!(3), &json!(4096))
    );
    assert_eq!(status["ringVersion"], cluster.ring("kv")["version"]);
    for (plural, name) in [
        ("statefulsets", "kv"),
        ("services", "kv-headless-service"),
        ("configmaps", "kv-connection"),
        ("poddisruptionbudgets", "kv"),
        ("serviceaccounts", "kv"),
    ] {
        let object = cluster.server.get(&Key::new(plural, NAMESPACE, name));
        let object = object.unwrap_or_else(|| panic!("no {plural}/{name}"));
        let owner = &object["metadata"]["ownerReferences"][0];
        assert_eq!(owner["uid"], cluster.cache("kv")["metadata"]["uid"], "{plural}/{name}");
        assert_eq!(owner["controller"], true, "{plural}/{name}");
    }
    let text = operator.reconciler.metrics().prometheus(cluster.server.now());
    assert!(text.contains("kvcache_operator_ring_members{namespace=\"models\",name=\"kv\"} 3"), "{text}");
    assert!(text.contains("kvcache_operator_leader 1"), "{text}");
    assert!(*operator.ready.borrow());
    assert_eq!(operator.stop().await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn a_cache_that_is_as_it_should_be_costs_no_request() {
    let cluster = Cluster::new();
    let operator = cluster.start("one");
    cluster.put_cache("kv", |_| {});
    cluster.put_cache("other", |cache| cache["spec"]["metadata"] = json!({ "redis": { "runtime": {} } }));
    pass(400).await;
    cluster.server.forget();
    let reconciles = |text: &str| {
        let line = text.lines().find(|line| line.starts_with("kvcache_operator_reconciles_total")).unwrap();
        line.split(' ').nth(1).unwrap().parse::<u64>().unwrap()
    };
    let before = reconciles(&operator.reconciler.metrics().prometheus(cluster.server.now()));
    pass(1500).await;
    let after = reconciles(&operator.reconciler.metrics().prometheus(cluster.server.now()));
    assert!(after >= before + 6, "{before} looks, then {after}");
    let mut requests = cluster.server.requests();
    // A watch lasts five minutes at most, whoever asks for it.
    requests.retain(|request| request.verb != Verb::Watch);
    assert!(requests.is_empty(), "{requests:#?}");
    // Nor does a watch that begins anew, with a list, write anything.
    cluster.server.put(json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "namespace": NAMESPACE, "name": "unrelated" },
    }));
    cluster.server.compact();
    cluster.server.cut_watches();
    pass(100).await;
    assert!(cluster.server.requests().iter().any(|request| request.verb == Verb::List));
    assert!(cluster.server.requests().iter().all(|request| !request.verb.writes()));
}

#[tokio::test(start_paused = true)]
async fn servers_come_and_go_with_the_replicas() {
    let cluster = Cluster::new();
    let _operator = cluster.start("one");
    cluster.put_cache("kv", |_| {});
    pass(60).await;
    let first = cluster.ring("kv")["version"].as_u64().unwrap();
    cluster.put_cache("kv", |cache| cache["spec"]["cache"]["replicas"] = json!(5));
    pass(60).await;
    assert_eq!(cluster.members("kv").len(), 5);
    cluster.put_cache("kv", |cache| cache["spec"]["cache"]["replicas"] = json!(1));
    pass(5).await;
    assert_eq!(cluster.members("kv").len(), 1, "what is scaled in leaves at once");
    cluster.put_cache("kv", |cache| cache["spec"]["cache"]["replicas"] = json!(0));
    pass(60).await;
    assert_eq!(cluster.ring("kv")["nodes"], json!([]));
    assert!(cluster.ring("kv")["version"].as_u64().unwrap() > first);
    assert_eq!(cluster.condition("kv", "Available"), "False/NoServers");
}

#[tokio::test(start_paused = true)]
async fn a_rolling_update_changes_addresses_and_moves_no_slot() {
    let cluster = Cluster::new();
    let _operator = cluster.start("one");
    cluster.put_cache("kv", |_| {});
    pass(60).await;
    let slots = |ring: &Value| -> Vec<Value> {
        ring["nodes"].as_array().unwrap().iter().map(|node| node["slots"].clone()).collect()
    };
    let before = (cluster.members("kv"), slots(&cluster.ring("kv")));
    cluster.put_cache("kv", |cache| cache["spec"]["cache"]["image"] = json!("kvcache-server:next"));
    for _ in 0..120 {
        pass(1).await;
        assert_eq!(slots(&cluster.ring("kv")), before.1, "no slot moves, at any time");
    }
    let after = cluster.members("kv");
    assert_eq!(after.keys().collect::<Vec<_>>(), before.0.keys().collect::<Vec<_>>());
    assert!(after.iter().all(|(name, address)| before.0[name] != *address), "{before:?} {after:?}");
    assert_eq!(cluster.condition("kv", "Progressing"), "False/Settled");
}

#[tokio::test(start_paused = true)]
async fn what_others_change_of_our_fields_comes_back_and_theirs_stays() {
    let cluster = Cluster::new();
    let _operator = cluster.start("one");
    cluster.put_cache("kv", |_| {});
    pass(60).await;
    let set = Key::new("statefulsets", NAMESPACE, "kv");
    let before = cluster.server.get(&set).unwrap();
    cluster.server.edit(&set, |set| {
        set["spec"]["replicas"] = json!(9);
        set["metadata"]["annotations"]["theirs"] = json!("kept");
    });
    cluster.server.delete(&Key::new("services", NAMESPACE, "kv-headless-service"));
    pass(60).await;
    let after = cluster.server.get(&set).unwrap();
    assert_eq!(after["spec"], before["spec"]);
    assert_eq!(after["metadata"]["annotations"]["theirs"], "kept");
    assert!(cluster.server.get(&Key::new("services", NAMESPACE, "kv-headless-service")).is_some());
}

#[tokio::test(start_paused = true)]
async fn objects_that_a_smaller_spec_does_not_need_are_deleted() {
    let cluster = Cluster::new();
    let _operator = cluster.start("one");
    cluster.put_cache("kv", |cache| cache["spec"]["metadata"] = json!({ "redis": { "runtime": {} } }));
    pass(60).await;
    let redis =
        [Key::new("statefulsets", NAMESPACE, "kv-redis"), Key::new("services", NAMESPACE, "kv-redis")];
    assert!(redis.iter().all(|key| cluster.server.get(key).is_some()));
    cluster.put_cache("kv", |_| {});
    pass(60).await;
    assert!(redis.iter().all(|key| cluster.server.get(key).is_none()));
    assert_eq!(cluster.members("kv").len(), 3);
    assert_eq!(cluster.condition("kv", "MetadataReady"), "True/NotConfigured");
}

#[tokio::test(start_paused = true)]
async fn a_deleted_cache_takes_all_its_objects_along() {
    let cluster = Cluster::new();
    let operator = cluster.start_with("one", false, Settings::default());
    cluster.put_cache("kv", |_| {});
    pass(60).await;
    assert!(cluster.server.delete(&cache_key("kv")));
    assert!(cluster.server.get(&cache_key("kv")).is_none(), "no finalizer without outside state");
    pass(60).await;
    for plural in
        ["statefulsets", "services", "configmaps", "serviceaccounts", "poddisruptionbudgets", "pods"]
    {
        assert!(cluster.server.all(plural).is_empty(), "{plural}");
    }
    let text = operator.reconciler.metrics().prometheus(cluster.server.now());
    assert!(!text.contains("name=\"kv\""), "{text}");
    // Another cache of the name begins anew.
    cluster.put_cache("kv", |_| {});
    pass(60).await;
    assert_eq!(cluster.members("kv").len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_replaced_has_its_new_address_in_the_ring() {
    let cluster = Cluster::new();
    let _operator = cluster.start("one");
    cluster.put_cache("kv", |_| {});
    pass(60).await;
    let before = cluster.members("kv");
    controllers::kill(&cluster.server, NAMESPACE, "kv-1");
    pass(5).await;
    let after = cluster.members("kv");
    assert_eq!(after["kv-0"], before["kv-0"]);
    assert_ne!(after["kv-1"], before["kv-1"]);
}
