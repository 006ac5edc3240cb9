//! Whatever fails on the way, and whenever the operator dies, the end is the same.

use serde_json::{Value, json};

use crate::support::api_server::{Fault, Faults, Key, Verb};
use crate::support::cluster::{Cluster, NAMESPACE, cache_key, pass};
use crate::support::controllers;
use crate::support::redis::Redis;

/// A history with all kinds of changes in it, a step at a time.
fn change(cluster: &Cluster, step: u64) {
    match step {
        0 => drop(cluster.put_cache("kv", |_| {})),
        1 => drop(cluster.put_cache("other", |cache| cache["spec"]["cache"]["replicas"] = json!(2))),
        2 => drop(cluster.put_cache("kv", |cache| cache["spec"]["cache"]["replicas"] = json!(4))),
        3 => drop(cluster.put_cache("other", |cache| cache["spec"]["cache"]["image"] = json!("next"))),
        4 => drop(cluster.put_cache("kv", |cache| cache["spec"]["cache"]["replicas"] = json!(-1))),
        5 if cluster.server.all("pods").len() > 2 => {
            let pod =
                cluster.server.all("pods")[0]["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            controllers::kill(&cluster.server, NAMESPACE, &pod);
        }
        6 => drop(cluster.put_cache("kv", |cache| {
            cache["spec"]["cache"]["env"] = json!([{ "name": "A", "value": "1" }]);
        })),
        7 => drop(cluster.put_cache("kv", |_| {})),
        _ => {}
    }
}

const STEPS: u64 = 8;

/// What the history ends in when nothing fails.
async fn expected() -> std::collections::BTreeMap<String, Value> {
    let cluster = Cluster::new();
    let _operator = cluster.start("one");
    for step in 0..STEPS {
        change(&cluster, step);
        pass(20).await;
    }
    pass(600).await;
    let state = cluster.state();
    assert_eq!(cluster.members("kv").len(), 3);
    assert_eq!(cluster.members("other").len(), 3);
    state
}

fn assert_same(
    state: &std::collections::BTreeMap<String, Value>,
    expected: &std::collections::BTreeMap<String, Value>,
    seed: u64,
) {
    let names = |state: &std::collections::BTreeMap<String, Value>| state.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(state), names(expected), "seed {seed}");
    for (name, object) in expected {
        assert_eq!(&state[name], object, "{name}, seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn faults_by_seed_end_in_the_same_state() {
    let expected = expected().await;
    for seed in 0..8 {
        let cluster = Cluster::new();
        let _operator = cluster.start("one");
        cluster.server.inject(Faults::seeded(seed, 4));
        for step in 0..STEPS {
            change(&cluster, step);
            pass(20).await;
            match seed % 4 {
                0 => cluster.server.cut_watches(),
                1 => cluster.server.compact(),
                _ => {}
            }
        }
        pass(60).await;
        cluster.server.heal();
        pass(900).await;
        assert_same(&cluster.state(), &expected, seed);
        // And then there is nothing left to write.
        cluster.server.forget();
        pass(900).await;
        assert_eq!(cluster.server.writes().len(), 0, "seed {seed}: {:#?}", cluster.server.writes());
    }
}

#[tokio::test(start_paused = true)]
async fn an_operator_that_dies_at_random_points_ends_in_the_same_state() {
    let expected = expected().await;
    for seed in 0..8_u64 {
        let cluster = Cluster::new();
        // Answers take time, so that deaths fall between a request and its answer too.
        cluster.server.take(std::time::Duration::from_millis(30));
        let mut operator = cluster.start("one");
        let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        for step in 0..STEPS {
            change(&cluster, step);
            for _ in 0..4 {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                tokio::time::sleep(std::time::Duration::from_millis(random % 9000)).await;
                operator.kill();
                operator = cluster.start("one");
            }
        }
        pass(600).await;
        assert_same(&cluster.state(), &expected, seed);
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_written_twice() {
    let cluster = Cluster::new();
    cluster.server.take(std::time::Duration::from_millis(20));
    let _operator = cluster.start("one");
    for step in 0..STEPS {
        change(&cluster, step);
        pass(60).await;
    }
    let mut last = std::collections::HashMap::new();
    for write in cluster.server.writes() {
        let before = last.insert((write.verb, write.path.clone(), write.name.clone()), write.body.clone());
        assert_ne!(before.as_ref(), Some(&write.body), "{:?} {} again", write.verb, write.path);
    }
}

#[tokio::test(start_paused = true)]
async fn a_first_conflict_costs_no_wait() {
    let cluster = Cluster::new();
    let _operator = cluster.start("one");
    pass(5).await;
    cluster.server.inject(Faults::default().aimed(
        |call| call.verb == Verb::Patch && call.resource.plural == "statefulsets",
        Fault::Conflict,
        1,
    ));
    cluster.put_cache("kv", |_| {});
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    assert_eq!(cluster.server.all("statefulsets").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_ring_that_could_not_be_published_is_tried_again_soon() {
    let cluster = Cluster::without_controllers();
    let _operator = cluster.start("one");
    pass(5).await;
    cluster.server.inject(Faults::default().aimed(
        |call| call.verb == Verb::Create && call.resource.plural == "configmaps",
        Fault::Error,
        3,
    ));
    cluster.put_cache("kv", |_| {});
    pass(10).await;
    assert!(cluster.ring("kv").is_object());
    assert_eq!(cluster.condition("kv", "RingPublished"), "True/EmptyRing");
}

#[tokio::test(start_paused = true)]
async fn one_cache_whose_requests_fail_holds_up_no_other() {
    let cluster = Cluster::new();
    let _operator = cluster.start("one");
    cluster.server.inject(Faults::default().aimed(
        |call| call.verb.writes() && call.name.as_deref().is_some_and(|name| name.starts_with("bad")),
        Fault::Hang,
        usize::MAX,
    ));
    for number in 0..3 {
        cluster.put_cache(&format!("bad-{number}"), |_| {});
    }
    pass(30).await;
    cluster.put_cache("kv", |_| {});
    pass(60).await;
    assert_eq!(cluster.members("kv").len(), 3);
}

#[tokio::test(start_paused = true)]
async fn failures_are_counted_for_their_cache_and_go_with_it() {
    let cluster = Cluster::new();
    let operator = cluster.start("one");
    cluster.server.inject(Faults::default().aimed(
        |call| call.verb == Verb::Patch && call.name.as_deref() == Some("bad"),
        Fault::Forbidden,
        usize::MAX,
    ));
    cluster.put_cache("kv", |_| {});
    cluster.put_cache("bad", |_| {});
    pass(30).await;
    let counts = || {
        let text = operator.reconciler.metrics().prometheus(cluster.server.now());
        let lines =
            text.lines().filter(|line| line.starts_with("kvcache_operator_cache_reconcile_errors_total{"));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let found = counts();
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].contains(r#"{namespace="models",name="bad",reason="forbidden"} "#), "{found:?}");
    cluster.server.delete(&cache_key("bad"));
    pass(30).await;
    assert_eq!(counts(), Vec::<String>::new());
}

/// What a condition says.
fn message(cluster: &Cluster, name: &str, kind: &str) -> String {
    let cache = cluster.cache(name);
    let conditions = cache["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let found = conditions.iter().find(|condition| condition["type"] == kind);
    found.and_then(|found| found["message"].as_str()).unwrap_or_default().to_owned()
}

#[tokio::test(start_paused = true)]
async fn an_object_that_cannot_be_written_is_said_with_the_servers_answer() {
    for (fault, answer) in [
        (Fault::Forbidden, "forbidden (403): injected; give the operator the rights"),
        (Fault::Error, "500 InternalError: injected"),
        (Fault::Hang, "no answer within 8 s"),
    ] {
        let cluster = Cluster::new();
        let _operator = cluster.start("one");
        cluster.put_cache("kv", |_| {});
        pass(60).await;
        cluster.server.inject(Faults::default().aimed(
            |call| call.verb == Verb::Patch && call.resource.plural == "statefulsets",
            fault,
            usize::MAX,
        ));
        cluster.put_cache("kv", |cache| cache["spec"]["cache"]["replicas"] = json!(5));
        pass(60).await;
        assert_eq!(cluster.condition("kv", "Progressing"), "False/WriteFailed");
        let said = message(&cluster, "kv", "Progressing");
        assert!(said.starts_with("apply StatefulSet kv: ") && said.contains(answer), "{said}");
        assert_eq!(cluster.condition("kv", "Accepted"), "True/Valid", "the spec is not at fault");
        // Said once, however often it is tried.
        cluster.server.forget();
        pass(600).await;
        let requests = cluster.server.requests();
        assert!(requests.iter().any(|request| request.resource == "statefulsets"), "it is tried again");
        assert!(!requests.iter().any(|request| request.resource == "kvcaches/status"));
        cluster.server.heal();
        pass(200).await;
        assert_eq!(cluster.condition("kv", "Progressing"), "False/Settled");
        assert_eq!(cluster.members("kv").len(), 5);
    }
}

#[tokio::test(start_paused = true)]
async fn what_keeps_a_redis_from_being_asked_is_said() {
    let cluster = Cluster::new();
    let _operator = cluster.start("one");
    cluster.server.inject(Faults::default().aimed(
        |call| call.verb == Verb::Get && call.resource.plural == "secrets",
        Fault::Forbidden,
        usize::MAX,
    ));
    cluster.put_cache("kv", |cache| {
        cache["spec"]["metadata"] = json!({ "redis": { "externalConnection": {
            "address": "127.0.0.1:1", "passwordSecretRef": "login",
        } } });
    });
    pass(60).await;
    assert_eq!(cluster.condition("kv", "MetadataReady"), "False/PublishFailed");
    let said = message(&cluster, "kv", "MetadataReady");
    assert!(said.starts_with("get Secret login: forbidden (403): injected"), "{said}");
    assert_eq!(cluster.members("kv").len(), 3);
}

/// A cache whose objects could not be written for so long that it waits a minute and more for the next try.
async fn failing_for_long(cluster: &Cluster, edit: impl FnOnce(&mut Value)) {
    cluster.put_cache("kv", edit);
    pass(60).await;
    assert_eq!(cluster.members("kv").len(), 3);
    cluster.server.inject(Faults::default().aimed(
        |call| call.verb == Verb::Patch && call.resource.plural == "statefulsets",
        Fault::Forbidden,
        usize::MAX,
    ));
    cluster.server.edit(&cache_key("kv"), |cache| cache["spec"]["cache"]["replicas"] = json!(4));
    let tries = || cluster.server.writes().iter().filter(|write| write.resource == "statefulsets").count();
    loop {
        let before = tries();
        pass(50).await;
        if tries() == before {
            break;
        }
    }
    cluster.server.heal();
}

#[tokio::test(start_paused = true)]
async fn a_mended_spec_does_not_wait_for_the_failures_of_the_one_before() {
    let cluster = Cluster::new();
    let _operator = cluster.start("one");
    failing_for_long(&cluster, |_| {}).await;
    cluster.server.edit(&cache_key("kv"), |cache| cache["spec"]["cache"]["replicas"] = json!(5));
    pass(1).await;
    let set = cluster.server.get(&Key::new("statefulsets", NAMESPACE, "kv")).expect("a set");
    assert_eq!(set["spec"]["replicas"], json!(5));
}

#[tokio::test(start_paused = true)]
async fn a_deletion_does_not_wait_for_the_failures_before_it() {
    let redis = Redis::start().await;
    let cluster = Cluster::new();
    let _operator = cluster.start("one");
    let address = redis.address.clone();
    failing_for_long(&cluster, move |cache| {
        cache["spec"]["metadata"] = json!({ "redis": { "externalConnection": { "address": address } } });
    })
    .await;
    assert!(redis.get("kvcache_nodes").is_some());
    cluster.server.delete(&cache_key("kv"));
    pass(1).await;
    assert_eq!(redis.get("kvcache_nodes"), None);
    assert!(cluster.server.get(&cache_key("kv")).is_none());
}
