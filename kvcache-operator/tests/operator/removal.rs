//! The one thing outside the cluster: a ring in somebody else's Redis.

use std::time::Duration;

use kvcache_operator::mirror::CacheKey;
use kvcache_operator::reconcile::Settings;
use kvcache_operator::reconcile::finalizer::FINALIZER;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::support::api_server::{Fault, Faults, Key, Verb};
use crate::support::cluster::{Cluster, NAMESPACE, cache_key, pass};
use crate::support::redis::Redis;

/// A Redis that takes connections and says nothing. Its address.
async fn silent_redis() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("the loopback interface");
    let address = listener.local_addr().expect("bound").to_string();
    (listener, address)
}

fn with_redis(address: &str) -> impl Fn(&mut Value) {
    move |cache| {
        cache["spec"]["metadata"] = json!({ "redis": { "externalConnection": { "address": address } } });
    }
}

/// The same, each cache under a key of its own.
fn with_own_key(address: &str) -> impl Fn(&mut Value) {
    move |cache| {
        with_redis(address)(cache);
        cache["spec"]["server"] = json!({ "ring": { "perClusterKey": true } });
    }
}

/// One of many caches.
fn name(number: usize) -> String {
    format!("kv-{number}")
}

/// Of how many of them the ring is in a Redis.
fn stored(redis: &Redis, count: usize) -> usize {
    let keys = (0..count).map(|number| format!("kvcache_nodes/{NAMESPACE}/{}", name(number)));
    keys.filter(|key| redis.get(key).is_some()).count()
}

#[tokio::test(start_paused = true)]
async fn a_redis_that_hangs_is_said_and_keeps_a_deleted_cache_for_a_while_only() {
    let (_listener, address) = silent_redis().await;
    let cluster = Cluster::new();
    let _operator = cluster.start("one");
    cluster.put_cache("kv", with_redis(&address));
    pass(120).await;
    assert_eq!(cluster.members("kv").len(), 3, "the ConfigMap does not wait for it");
    assert_eq!(cluster.condition("kv", "MetadataReady"), "False/Unreachable");
    assert_eq!(cluster.condition("kv", "Available"), "True/AllReady");
    assert_eq!(cluster.cache("kv")["metadata"]["finalizers"], json!([FINALIZER]));
    cluster.server.delete(&cache_key("kv"));
    pass(15).await;
    assert!(cluster.server.get(&cache_key("kv")).is_some(), "it tries more than once");
    pass(Settings::default().farewell.as_secs() + 5).await;
    assert!(cluster.server.get(&cache_key("kv")).is_none(), "but not for ever");
    assert!(cluster.server.all("statefulsets").is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_cache_that_no_longer_uses_redis_has_no_finalizer() {
    let (_listener, address) = silent_redis().await;
    let cluster = Cluster::new();
    let _operator = cluster.start("one");
    cluster.put_cache("kv", with_redis(&address));
    pass(60).await;
    cluster.put_cache("kv", |_| {});
    pass(60).await;
    assert_eq!(cluster.cache("kv")["metadata"]["finalizers"].as_array().map_or(0, Vec::len), 0);
    assert_eq!(cluster.condition("kv", "MetadataReady"), "True/NotConfigured");
    // An edit that is refused does not let go of what was accepted.
    cluster.put_cache("kv", with_redis(&address));
    pass(60).await;
    cluster.put_cache("kv", |cache| {
        with_redis("nowhere")(cache);
        cache["spec"]["cache"]["replicas"] = json!(-1);
    });
    pass(60).await;
    assert_eq!(cluster.cache("kv")["metadata"]["finalizers"], json!([FINALIZER]));
}

#[tokio::test(start_paused = true)]
async fn a_missing_secret_is_waited_for_and_not_asked_for() {
    let (_listener, address) = silent_redis().await;
    let cluster = Cluster::new();
    let _operator = cluster.start("one");
    cluster.put_cache("kv", |cache| {
        with_redis(&address)(cache);
        cache["spec"]["metadata"]["redis"]["externalConnection"]["passwordSecretRef"] = json!("login/word");
    });
    pass(60).await;
    assert_eq!(cluster.condition("kv", "MetadataReady"), "False/SecretMissing");
    let gets = || cluster.server.requests().iter().filter(|request| request.resource == "secrets").count();
    let before = gets();
    pass(240).await;
    assert!(gets() <= before + 2, "{before} requests for it, then {}", gets());
    let secret = |data: Value| {
        json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": { "namespace": NAMESPACE, "name": "login" }, "data": data,
        })
    };
    cluster.server.put(secret(json!({})));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(cluster.cache("kv").to_string().contains("has no key word"));
    cluster.server.put(secret(json!({ "word": "c2VjcmV0" })));
    pass(10).await;
    assert_eq!(cluster.condition("kv", "MetadataReady"), "False/Unreachable", "it was asked, and hangs");
}

#[tokio::test(start_paused = true)]
async fn a_secret_that_could_not_be_read_is_read_again_soon() {
    let (_listener, address) = silent_redis().await;
    let cluster = Cluster::without_controllers();
    cluster.server.put(json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": { "namespace": NAMESPACE, "name": "login" },
        "data": { "password": "c2VjcmV0" },
    }));
    let _operator = cluster.start("one");
    pass(5).await;
    cluster.server.inject(Faults::default().aimed(
        |call| call.verb == Verb::Get && call.resource.plural == "secrets",
        Fault::Error,
        3,
    ));
    cluster.put_cache("kv", |cache| {
        with_redis(&address)(cache);
        cache["spec"]["metadata"]["redis"]["externalConnection"]["passwordSecretRef"] = json!("login");
    });
    pass(20).await;
    assert_eq!(cluster.condition("kv", "MetadataReady"), "False/Unreachable", "it was asked, and hangs");
}

/// The Redis of before said that all is well, so that it is not asked for minutes without a reason.
#[tokio::test(start_paused = true)]
async fn a_changed_secret_that_could_not_be_read_is_read_again_soon() {
    let redis = Redis::start().await;
    let cluster = Cluster::without_controllers();
    let secret = |password: &str| {
        json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": { "namespace": NAMESPACE, "name": "login" },
            "data": { "password": password },
        })
    };
    cluster.server.put(secret("c2VjcmV0"));
    let _operator = cluster.start("one");
    cluster.put_cache("kv", |cache| {
        with_redis(&redis.address)(cache);
        cache["spec"]["metadata"]["redis"]["externalConnection"]["passwordSecretRef"] = json!("login");
    });
    pass(60).await;
    assert_eq!(cluster.condition("kv", "MetadataReady"), "True/Connected");
    let asked = redis.connections();
    cluster.server.inject(Faults::default().aimed(
        |call| call.verb == Verb::Get && call.resource.plural == "secrets",
        Fault::Error,
        2,
    ));
    cluster.server.put(secret("b3RoZXI="));
    pass(20).await;
    assert_eq!(redis.connections(), asked + 1, "with the new password");
    assert_eq!(cluster.condition("kv", "MetadataReady"), "True/Connected");
}

#[tokio::test(start_paused = true)]
async fn the_ring_is_in_redis_while_the_cache_is_there() {
    let redis = Redis::start().await;
    let cluster = Cluster::new();
    let _operator = cluster.start("one");
    cluster.put_cache("kv", with_redis(&redis.address));
    pass(60).await;
    assert_eq!(cluster.condition("kv", "MetadataReady"), "True/Connected");
    let stored = |redis: &Redis| -> Value {
        redis.get("kvcache_nodes").map_or(Value::Null, |text| serde_json::from_str(&text).expect("JSON"))
    };
    assert_eq!(stored(&redis)["nodes"], cluster.ring("kv")["nodes"]);
    assert_eq!(stored(&redis)["version"], cluster.ring("kv")["version"]);
    cluster.put_cache("kv", |cache| {
        with_redis(&redis.address)(cache);
        cache["spec"]["cache"]["replicas"] = json!(2);
    });
    pass(10).await;
    assert_eq!(stored(&redis)["nodes"].as_array().map(Vec::len), Some(2));
    redis.forget();
    pass(600).await;
    assert_eq!(stored(&redis)["nodes"], cluster.ring("kv")["nodes"], "a Redis that forgot is told again");
    cluster.server.delete(&cache_key("kv"));
    pass(5).await;
    assert!(cluster.server.get(&cache_key("kv")).is_none(), "no reason to wait");
    assert_eq!(redis.get("kvcache_nodes"), None);
    // Finalizers are a list that others write to as well: each write is of the list that was seen.
    let mut writes = cluster.server.writes();
    writes.retain(|write| write.resource == "kvcaches");
    assert_eq!(writes.len(), 2, "one comes, and goes");
    assert!(writes.iter().all(|write| write.body["metadata"]["resourceVersion"].is_string()), "{writes:?}");
}

#[tokio::test(start_paused = true)]
async fn a_cache_that_is_deleted_while_its_spec_is_refused_takes_its_ring_along() {
    let redis = Redis::start().await;
    let cluster = Cluster::new();
    let _operator = cluster.start("one");
    cluster.put_cache("kv", with_redis(&redis.address));
    pass(60).await;
    assert!(redis.get("kvcache_nodes").is_some());
    cluster.put_cache("kv", |cache| {
        with_redis("nowhere")(cache);
        cache["spec"]["cache"]["replicas"] = json!(-1);
    });
    pass(30).await;
    assert!(redis.get("kvcache_nodes").is_some(), "what runs is as before");
    cluster.server.delete(&cache_key("kv"));
    pass(30).await;
    assert_eq!(redis.get("kvcache_nodes"), None);
}

#[tokio::test(start_paused = true)]
async fn a_redis_is_asked_when_there_is_a_reason_and_not_at_every_look() {
    let redis = Redis::start().await;
    let cluster = Cluster::new();
    let operator = cluster.start("one");
    cluster.put_cache("kv", with_redis(&redis.address));
    cluster.server.put(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "namespace": NAMESPACE, "name": "its-redis", "labels": {
            "kvcache.orchestration.aibrix.ai/name": "kv", "kvcache.orchestration.aibrix.ai/role": "metadata",
        } },
    }));
    pass(60).await;
    assert_eq!(cluster.condition("kv", "MetadataReady"), "True/Connected");
    let asked = redis.connections();
    let key = CacheKey { namespace: NAMESPACE.to_owned(), name: "kv".to_owned() };
    for _ in 0..5 {
        operator.reconciler.look(&key).await;
    }
    assert_eq!(redis.connections(), asked);
    // Its pod was restarted, and what was in memory is gone.
    redis.forget();
    let ready = json!([{ "type": "Ready", "status": "True", "lastTransitionTime": cluster.server.now().to_string() }]);
    cluster.server.put_status(&Key::new("pods", NAMESPACE, "its-redis"), json!({ "conditions": ready }));
    pass(5).await;
    assert!(redis.get("kvcache_nodes").is_some(), "no resync is waited for");
}

#[tokio::test(start_paused = true)]
async fn a_redis_whose_pod_is_back_is_not_kept_waiting() {
    let address = "127.0.0.77:16379";
    let cluster = Cluster::new();
    let _operator = cluster.start("one");
    cluster.put_cache("kv", with_redis(address));
    let pod = |name: &str| {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "namespace": NAMESPACE, "name": name, "labels": {
                "kvcache.orchestration.aibrix.ai/name": "kv", "kvcache.orchestration.aibrix.ai/role": "metadata",
            } },
        })
    };
    // It is asked ever more seldom.
    pass(400).await;
    assert_eq!(cluster.condition("kv", "MetadataReady"), "False/Unreachable");
    let redis = Redis::start_at(address).await;
    cluster.server.put(pod("its-redis"));
    pass(5).await;
    assert!(redis.get("kvcache_nodes").is_some());
    assert_eq!(cluster.condition("kv", "MetadataReady"), "True/Connected");
}

#[tokio::test(start_paused = true)]
async fn caches_that_leave_a_slow_redis_together_leave_nothing_behind() {
    const CACHES: usize = 4;
    let redis = Redis::start().await;
    let cluster = Cluster::without_controllers();
    let _operator = cluster.start("one");
    for number in 0..CACHES {
        cluster.put_cache(&name(number), with_own_key(&redis.address));
    }
    pass(30).await;
    assert_eq!(stored(&redis, CACHES), CACHES);
    redis.answer_after(Duration::from_millis(100));
    (0..CACHES).for_each(|number| drop(cluster.put_cache(&name(number), |_| {})));
    pass(30).await;
    assert_eq!(stored(&redis, CACHES), 0);
}

/// Caches that have their rings in one slow Redis, each under its own key, deleted together. How many rings are left.
async fn deleted_together(count: usize, settings: Settings) -> usize {
    let redis = Redis::start().await;
    let cluster = Cluster::without_controllers();
    let _operator = cluster.start_with("one", false, settings);
    for number in 0..count {
        cluster.put_cache(&name(number), with_own_key(&redis.address));
    }
    pass(60).await;
    assert_eq!(stored(&redis, count), count);
    redis.answer_after(Duration::from_millis(150));
    (0..count).for_each(|number| assert!(cluster.server.delete(&cache_key(&name(number)))));
    pass(120).await;
    assert!(cluster.server.all("kvcaches").is_empty(), "none stays for ever");
    stored(&redis, count)
}

/// Five answers each: all of them take longer than a cache waits for a Redis that does not answer.
#[tokio::test(start_paused = true)]
async fn many_caches_that_are_deleted_together_leave_nothing_in_a_slow_redis() {
    assert_eq!(deleted_together(60, Settings::default()).await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_cache_that_is_deleted_does_not_stand_in_line_for_ever() {
    let settings = Settings { farewell_in_line: Duration::from_secs(10), ..Settings::default() };
    let left = deleted_together(60, settings).await;
    assert!((10..50).contains(&left), "{left} rings are left");
}

#[tokio::test(start_paused = true)]
async fn a_version_that_redis_has_seen_already_is_surpassed() {
    let redis = Redis::start().await;
    redis.set("kvcache_nodes", r#"{"nodes":[],"version":5000}"#);
    let cluster = Cluster::new();
    let _operator = cluster.start("one");
    cluster.put_cache("kv", with_redis(&redis.address));
    pass(60).await;
    assert!(cluster.ring("kv")["version"].as_u64().is_some_and(|version| version > 5000));
    let stored: Value = serde_json::from_str(&redis.get("kvcache_nodes").expect("a ring")).expect("JSON");
    assert_eq!(stored["version"], cluster.ring("kv")["version"]);
    assert_eq!(stored["nodes"].as_array().map(Vec::len), Some(3));
}

#[tokio::test(start_paused = true)]
async fn of_two_caches_with_one_key_the_second_is_told_and_writes_nothing() {
    let redis = Redis::start().await;
    let cluster = Cluster::new();
    let _operator = cluster.start("one");
    cluster.put_cache("first", with_redis(&redis.address));
    pass(60).await;
    cluster.put_cache("second", with_redis(&redis.address));
    pass(60).await;
    assert_eq!(cluster.condition("first", "MetadataReady"), "True/Connected");
    assert_eq!(cluster.condition("second", "MetadataReady"), "False/KeyInUse");
    assert!(cluster.cache("second").to_string().contains("models/first"));
    assert_eq!(cluster.members("second").len(), 3, "its ConfigMap has its ring all the same");
    let stored: Value = serde_json::from_str(&redis.get("kvcache_nodes").expect("a ring")).expect("JSON");
    assert_eq!(stored["nodes"], cluster.ring("first")["nodes"]);
    // With a key of its own it is at home there too.
    cluster.put_cache("second", with_own_key(&redis.address));
    pass(30).await;
    assert_eq!(cluster.condition("second", "MetadataReady"), "True/Connected");
    assert!(redis.get("kvcache_nodes/models/second").is_some());
    // The second one's end takes nothing of the first one's.
    cluster.server.delete(&cache_key("second"));
    pass(30).await;
    assert_eq!(redis.get("kvcache_nodes/models/second"), None);
    assert!(redis.get("kvcache_nodes").is_some());
}

#[tokio::test(start_paused = true)]
async fn a_cache_that_moves_to_another_redis_leaves_none_behind() {
    let (first, second) = (Redis::start().await, Redis::start().await);
    let cluster = Cluster::new();
    let _operator = cluster.start("one");
    cluster.put_cache("kv", with_redis(&first.address));
    pass(60).await;
    cluster.put_cache("kv", with_redis(&second.address));
    pass(60).await;
    assert_eq!(first.get("kvcache_nodes"), None);
    assert!(second.get("kvcache_nodes").is_some());
    cluster.put_cache("kv", |_| {});
    pass(60).await;
    assert_eq!(second.get("kvcache_nodes"), None);
}

/// As where an address is replaced by a name: it is another place by its name, and the same Redis.
#[tokio::test(start_paused = true)]
async fn a_cache_that_names_its_redis_in_another_way_keeps_its_ring_there() {
    let redis = Redis::start_at("0.0.0.0:0").await;
    let cluster = Cluster::new();
    let _operator = cluster.start("one");
    for host in ["127.0.0.1", "127.0.0.2"] {
        cluster.put_cache("kv", with_redis(&redis.address.replace("0.0.0.0", host)));
        pass(60).await;
        assert_eq!(cluster.condition("kv", "MetadataReady"), "True/Connected");
        assert!(redis.get("kvcache_nodes").is_some(), "{host}: engines look for it there");
    }
    assert_eq!(redis.removals(), 1, "nothing tells that it is the same");
}

/// It is another operator's from then on, and may be deleted when this one is not there any more.
#[tokio::test(start_paused = true)]
async fn a_cache_that_is_let_go_leaves_no_ring_and_waits_for_nobody() {
    let redis = Redis::start().await;
    let cluster = Cluster::new();
    let _operator = cluster.start("one");
    cluster.put_cache("kv", with_redis(&redis.address));
    pass(60).await;
    cluster.put_cache("kv", |cache| {
        with_redis(&redis.address)(cache);
        cache["metadata"]["annotations"]["kvcache.orchestration.aibrix.ai/backend"] = json!("vineyard");
    });
    pass(60).await;
    assert!(redis.get("kvcache_nodes").is_some(), "its servers run");
    assert_eq!(cluster.cache("kv")["metadata"]["finalizers"], json!([FINALIZER]));
    cluster.server.delete(&Key::new("statefulsets", NAMESPACE, "kv"));
    pass(60).await;
    assert_eq!(cluster.condition("kv", "Accepted"), "False/UnknownBackend");
    assert_eq!(redis.get("kvcache_nodes"), None);
    assert_eq!(cluster.cache("kv")["metadata"]["finalizers"].as_array().map_or(0, Vec::len), 0);
}

/// Edited while no operator ran, and deleted before one did.
#[tokio::test(start_paused = true)]
async fn a_cache_that_is_deleted_after_an_unseen_edit_takes_its_ring_along() {
    let (first, second) = (Redis::start().await, Redis::start().await);
    let cluster = Cluster::new();
    let operator = cluster.start("one");
    cluster.put_cache("kv", with_redis(&first.address));
    pass(60).await;
    assert!(first.get("kvcache_nodes").is_some());
    operator.stop().await.expect("a graceful end");
    cluster.put_cache("kv", with_redis(&second.address));
    cluster.server.delete(&cache_key("kv"));
    let _operator = cluster.start("two");
    pass(30).await;
    assert!(first.get("kvcache_nodes").is_none());
    assert!(cluster.server.get(&cache_key("kv")).is_none());
}

/// The edit names another Redis, and cannot be carried out.
#[tokio::test(start_paused = true)]
async fn a_move_to_another_redis_that_is_in_somebodys_way_leaves_the_ring_where_it_was() {
    let (first, second) = (Redis::start().await, Redis::start().await);
    let cluster = Cluster::new();
    let _operator = cluster.start("one");
    cluster.put_cache("kv", with_redis(&first.address));
    pass(60).await;
    let connection = Key::new("configmaps", NAMESPACE, "kv-connection");
    cluster.server.delete(&connection);
    cluster.server.put(json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "namespace": NAMESPACE, "name": "kv-connection" },
    }));
    cluster.put_cache("kv", with_redis(&second.address));
    pass(60).await;
    assert_eq!(cluster.condition("kv", "Accepted"), "False/OwnedByOther");
    assert!(first.get("kvcache_nodes").is_some(), "what runs is found where it was");
    assert!(second.get("kvcache_nodes").is_none());
}

/// The API server refuses what the new spec makes, or fails.
#[tokio::test(start_paused = true)]
async fn a_move_to_another_redis_that_cannot_be_written_leaves_the_ring_where_it_was() {
    for (fault, condition, said) in [
        (Fault::Invalid, "Accepted", "False/InvalidSpec"),
        (Fault::Forbidden, "Progressing", "False/WriteFailed"),
    ] {
        let (first, second) = (Redis::start().await, Redis::start().await);
        let cluster = Cluster::new();
        let _operator = cluster.start("one");
        cluster.put_cache("kv", with_redis(&first.address));
        pass(60).await;
        cluster.server.inject(Faults::default().aimed(
            |call| call.verb == Verb::Patch && call.resource.plural == "statefulsets",
            fault,
            usize::MAX,
        ));
        cluster.put_cache("kv", |cache| {
            with_redis(&second.address)(cache);
            cache["spec"]["cache"]["image"] = json!("next");
        });
        pass(60).await;
        assert_eq!(cluster.condition("kv", condition), said);
        assert_eq!(cluster.condition("kv", "MetadataReady"), "True/Connected");
        assert!(first.get("kvcache_nodes").is_some(), "{fault:?}: what runs is found where it was");
        assert_eq!(first.removals(), 0, "{fault:?}: and was so all the time");
        assert!(second.get("kvcache_nodes").is_none(), "{fault:?}");
        cluster.server.heal();
        pass(120).await;
        assert!(first.get("kvcache_nodes").is_none(), "{fault:?}");
        assert!(second.get("kvcache_nodes").is_some(), "{fault:?}");
        assert_eq!(first.removals(), 1, "{fault:?}");
        let set = cluster.server.get(&Key::new("statefulsets", NAMESPACE, "kv")).expect("a set");
        assert!(!set.to_string().contains("left-redis"), "nothing is left to be done: {set}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_operator_that_dies_between_a_move_and_its_end_is_followed_by_one_that_ends_it() {
    let (first, second) = (Redis::start().await, Redis::start().await);
    let cluster = Cluster::new();
    let operator = cluster.start("one");
    cluster.put_cache("kv", with_redis(&first.address));
    pass(60).await;
    first.answer_after(Duration::from_millis(500));
    cluster.put_cache("kv", with_redis(&second.address));
    pass(1).await;
    assert!(second.get("kvcache_nodes").is_some(), "the move is made");
    assert!(first.get("kvcache_nodes").is_some(), "and not ended");
    operator.kill();
    let operator = cluster.start("two");
    pass(10).await;
    assert!(first.get("kvcache_nodes").is_none());
    // To no Redis: whoever deletes the cache meanwhile is kept until the ring is gone.
    second.answer_after(Duration::from_millis(500));
    cluster.put_cache("kv", |_| {});
    pass(1).await;
    operator.kill();
    assert!(second.get("kvcache_nodes").is_some());
    cluster.server.delete(&cache_key("kv"));
    assert!(cluster.server.get(&cache_key("kv")).is_some());
    let _operator = cluster.start("three");
    pass(10).await;
    assert!(second.get("kvcache_nodes").is_none());
    assert!(cluster.server.get(&cache_key("kv")).is_none());
}

/// Their own ring and status do not stand in line with them.
#[tokio::test(start_paused = true)]
async fn caches_that_wait_to_leave_a_busy_redis_are_told_of_and_scaled_meanwhile() {
    const CACHES: usize = 40;
    let redis = Redis::start().await;
    let cluster = Cluster::without_controllers();
    let _operator = cluster.start("one");
    for number in 0..CACHES {
        cluster.put_cache(&name(number), with_own_key(&redis.address));
    }
    pass(60).await;
    redis.answer_after(Duration::from_millis(200));
    for number in 0..CACHES {
        cluster.put_cache(&name(number), |cache| cache["spec"]["cache"]["replicas"] = json!(2));
    }
    pass(8).await;
    assert!(redis.removals() < CACHES / 2, "{} have left", redis.removals());
    for number in 0..CACHES {
        let cache = cluster.cache(&name(number));
        assert_eq!(cache["status"]["observedGeneration"], cache["metadata"]["generation"], "{number}");
        assert_eq!(cluster.condition(&name(number), "MetadataReady"), "True/NotConfigured");
        assert_eq!(cache["status"]["desired"], json!(2));
    }
    pass(120).await;
    assert_eq!(redis.removals(), CACHES);
    assert!((0..CACHES).all(|number| {
        cluster.cache(&name(number))["metadata"]["finalizers"].as_array().is_none_or(Vec::is_empty)
    }));
}
