//! A Redis of many caches that does not answer costs the others nothing.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::support::api_server::Key;
use crate::support::cluster::{Cluster, NAMESPACE, cache_key, pass};
use crate::support::controllers;

fn with_redis(address: &str) -> impl Fn(&mut Value) {
    move |cache| {
        cache["spec"]["metadata"] = json!({ "redis": { "externalConnection": { "address": address } } });
    }
}

/// Makes a cache every few seconds, and wants each to be served within one.
async fn assert_quick(cluster: &Cluster, prefix: &str) {
    for round in 0..6 {
        let name = format!("{prefix}-{round}");
        cluster.put_cache(&name, |_| {});
        pass(1).await;
        let set = cluster.server.get(&Key::new("statefulsets", NAMESPACE, &name));
        assert!(set.is_some(), "{name} waits for a Redis that is not its own");
        cluster.server.delete(&cache_key(&name));
        tokio::time::sleep(Duration::from_millis(1700)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_redis_that_does_not_answer_holds_up_no_other_cache() {
    const BAD: usize = 12;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("the loopback interface");
    let address = listener.local_addr().expect("bound").to_string();
    let cluster = Cluster::without_controllers();
    // It has four workers.
    let _operator = cluster.start("one");
    let name = |number| format!("bad-{number}");
    (0..BAD).for_each(|number| drop(cluster.put_cache(&name(number), with_redis(&address))));
    assert_quick(&cluster, "early").await;
    pass(200).await;
    for number in 0..BAD {
        assert_eq!(cluster.condition(&name(number), "MetadataReady"), "False/Unreachable");
    }
    // All rings change, which is to be told to a Redis at once, if there is any use in that.
    controllers::fill(&cluster.server);
    assert_quick(&cluster, "later").await;
    for number in 0..BAD {
        assert_eq!(cluster.members(&name(number)).len(), 3, "the ConfigMap does not wait for it");
    }
    // All of them leave, some for no Redis and some for good.
    for number in 0..BAD {
        match number % 2 {
            0 => drop(cluster.put_cache(&name(number), |_| {})),
            _ => drop(cluster.server.delete(&cache_key(&name(number)))),
        }
    }
    assert_quick(&cluster, "last").await;
    pass(30).await;
    for number in 0..BAD {
        match number % 2 {
            0 => assert_eq!(cluster.condition(&name(number), "MetadataReady"), "True/NotConfigured"),
            _ => assert!(cluster.server.get(&cache_key(&name(number))).is_none(), "{number} stays"),
        }
    }
}

/// Every cache waits for its turn there, again and again. What it would need a turn for it does not ask for before.
#[tokio::test(start_paused = true)]
async fn caches_that_wait_for_a_dead_redis_do_not_ask_for_its_password_meanwhile() {
    const CACHES: usize = 30;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("the loopback interface");
    let address = listener.local_addr().expect("bound").to_string();
    let cluster = Cluster::without_controllers();
    cluster.server.put(json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": { "namespace": NAMESPACE, "name": "login" },
        "data": { "password": "c2VjcmV0" },
    }));
    let _operator = cluster.start("one");
    let name = |number| format!("kv-{number}");
    (0..CACHES).for_each(|number| {
        cluster.put_cache(&name(number), |cache| {
            with_redis(&address)(cache);
            cache["spec"]["metadata"]["redis"]["externalConnection"]["passwordSecretRef"] = json!("login");
        });
    });
    pass(120).await;
    // All of them go, which is a reason to ask a Redis that is known to be dead.
    (0..CACHES).for_each(|number| assert!(cluster.server.delete(&cache_key(&name(number)))));
    pass(30).await;
    assert!(cluster.server.all("kvcaches").is_empty());
    let reads = cluster.server.requests().iter().filter(|request| request.resource == "secrets").count();
    // One for each question that lasts until it is given up, and these follow one another.
    assert!((2..40).contains(&reads), "{reads} reads of one Secret");
}
