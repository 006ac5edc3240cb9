//! What cannot be served, and what must not be touched.

use serde_json::{Value, json};

use crate::support::api_server::{Key, Verb};
use crate::support::cluster::{Cluster, NAMESPACE, pass};
use crate::support::controllers;

#[tokio::test(start_paused = true)]
async fn a_bad_edit_tears_nothing_down_and_the_ring_goes_on_even_in_a_new_operator() {
    let cluster = Cluster::new();
    let operator = cluster.start("one");
    cluster.put_cache("kv", |_| {});
    pass(60).await;
    let objects = |cluster: &Cluster| {
        let mut state = cluster.state();
        state.retain(|name, _| !name.starts_with("kvcaches/") && !name.ends_with("-ring"));
        state
    };
    let before = objects(&cluster);
    let bad = |cache: &mut Value| {
        cache["spec"]["cache"]["replicas"] = json!(5);
        cache["spec"]["cache"]["resources"]["limits"]["memory"] = json!("1Mi");
    };
    cluster.put_cache("kv", bad);
    pass(60).await;
    assert!(
        cluster.condition("kv", "Accepted").starts_with("False/"),
        "{}",
        cluster.condition("kv", "Accepted")
    );
    assert_eq!(cluster.condition("kv", "Progressing"), "False/Held");
    assert_eq!(cluster.condition("kv", "Available"), "True/AllReady");
    assert_eq!(objects(&cluster), before);
    controllers::kill(&cluster.server, NAMESPACE, "kv-1");
    let address = cluster.members("kv")["kv-1"].clone();
    pass(60).await;
    assert_ne!(cluster.members("kv")["kv-1"], address, "the ring follows the pods");

    operator.kill();
    let _next = cluster.start("two");
    controllers::kill(&cluster.server, NAMESPACE, "kv-2");
    let address = cluster.members("kv")["kv-2"].clone();
    pass(60).await;
    assert_ne!(
        cluster.members("kv")["kv-2"],
        address,
        "and so it does for an operator that never saw it accepted"
    );
    assert_eq!(objects(&cluster), before);
    cluster.put_cache("kv", |cache| cache["spec"]["cache"]["replicas"] = json!(4));
    pass(60).await;
    assert_eq!(cluster.condition("kv", "Accepted"), "True/Valid");
    assert_eq!(cluster.members("kv").len(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_cache_of_another_operator_gets_one_condition_and_one_event() {
    let cluster = Cluster::new();
    let _operator = cluster.start("one");
    for backend in [json!("vineyard"), json!("infinistore"), Value::Null] {
        cluster.server.forget();
        cluster.put_cache("kv", |cache| {
            set_backend(cache, &backend);
        });
        pass(1000).await;
        assert_eq!(cluster.condition("kv", "Accepted"), "False/UnknownBackend", "{backend}");
        assert!(cluster.server.all("statefulsets").is_empty());
        assert!(cluster.server.all("configmaps").is_empty());
    }
    assert_eq!(cluster.server.all("events").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_object_of_somebody_else_is_never_touched_and_is_named() {
    for (kind, api, name) in [
        ("Service", "v1", "kv-headless-service"),
        ("StatefulSet", "apps/v1", "kv"),
        ("ServiceAccount", "v1", "kv"),
        ("ConfigMap", "v1", "kv-connection"),
        ("ConfigMap", "v1", "kv-ring"),
    ] {
        let cluster = Cluster::new();
        let theirs = cluster.server.put(json!({
            "apiVersion": api, "kind": kind,
            "metadata": { "namespace": NAMESPACE, "name": name, "labels": { "app": "theirs" } },
        }));
        let _operator = cluster.start("one");
        cluster.put_cache("kv", |_| {});
        pass(700).await;
        let key = Key::of(&theirs);
        let mut now = cluster.server.get(&key).unwrap();
        let mut before = theirs.clone();
        // The controller of StatefulSets looks at all of them.
        for object in [&mut now, &mut before] {
            object["status"] = Value::Null;
            object["metadata"]["resourceVersion"] = Value::Null;
        }
        assert_eq!(now, before, "{kind} {name}");
        let cache = cluster.cache("kv").to_string();
        assert!(cache.contains(&format!("{kind} {name}")), "{kind} {name} is not named: {cache}");
        assert!(
            !cluster.condition("kv", "Accepted").starts_with("True") || name == "kv-ring",
            "{kind} {name}"
        );
        // Once it is out of the way the cache comes up, without an edit.
        cluster.server.delete(&key);
        pass(60).await;
        assert_eq!(cluster.condition("kv", "Accepted"), "True/Valid", "{kind} {name}");
        assert_eq!(cluster.members("kv").len(), 3, "{kind} {name}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_ring_of_what_runs_goes_on_while_somebody_elses_object_is_in_the_way() {
    let cluster = Cluster::new();
    let _operator = cluster.start("one");
    cluster.put_cache("kv", |_| {});
    pass(60).await;
    let connection = Key::new("configmaps", NAMESPACE, "kv-connection");
    cluster.server.delete(&connection);
    cluster.server.put(json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": { "namespace": NAMESPACE, "name": "kv-connection", "labels": { "app": "theirs" } },
    }));
    controllers::kill(&cluster.server, NAMESPACE, "kv-1");
    let address = cluster.members("kv")["kv-1"].clone();
    pass(60).await;
    assert_eq!(cluster.condition("kv", "Accepted"), "False/OwnedByOther");
    assert_ne!(cluster.members("kv")["kv-1"], address);
    assert_eq!(cluster.members("kv").len(), 3);
    // What is asked for now is not what runs.
    cluster.put_cache("kv", |cache| cache["spec"]["cache"]["replicas"] = json!(2));
    pass(60).await;
    assert_eq!(cluster.members("kv").len(), 3);
}

fn set_backend(cache: &mut Value, backend: &Value) {
    let annotations = cache["metadata"]["annotations"].as_object_mut().expect("annotations");
    match backend {
        Value::Null => drop(annotations.remove("kvcache.orchestration.aibrix.ai/backend")),
        name => drop(annotations.insert("kvcache.orchestration.aibrix.ai/backend".to_owned(), name.clone())),
    }
}

/// A word that means nothing, no word, and backends of another operator: what runs are our servers all the same.
#[tokio::test(start_paused = true)]
async fn a_running_cache_whose_backend_is_edited_away_runs_on_and_is_told_the_remedy() {
    for (backend, remedy) in [
        (json!("kvcach"), "\"kvcach\" is not served here: write \"kvcache\""),
        (Value::Null, "the annotation is missing, which means vineyard to AIBrix: write \"kvcache\""),
        (json!("vineyard"), "\"vineyard\" is not served here: write \"kvcache\""),
        (json!("infinistore"), "--adopt-backends infinistore"),
    ] {
        let cluster = Cluster::new();
        let mut operator = cluster.start("one");
        cluster.put_cache("kv", |_| {});
        pass(60).await;
        let set = Key::new("statefulsets", NAMESPACE, "kv");
        let before = cluster.server.get(&set).expect("a set");
        cluster.put_cache("kv", |cache| {
            set_backend(cache, &backend);
            cache["spec"]["cache"]["replicas"] = json!(7);
        });
        // The second time for an operator that never saw it accepted.
        for server in ["kv-1", "kv-2"] {
            pass(60).await;
            controllers::kill(&cluster.server, NAMESPACE, server);
            let address = cluster.members("kv")[server].clone();
            pass(60).await;
            assert_ne!(cluster.members("kv")[server], address, "{backend}: the ring follows the pods");
            assert_eq!(cluster.condition("kv", "Accepted"), "False/UnknownBackend", "{backend}");
            assert_eq!(cluster.condition("kv", "Progressing"), "False/Held", "{backend}");
            assert_eq!(cluster.condition("kv", "Available"), "True/AllReady", "{backend}");
            let said = cluster.cache("kv")["status"]["conditions"][0]["message"].clone();
            assert!(said.as_str().is_some_and(|said| said.contains(remedy)), "{said}");
            assert_eq!(cluster.server.get(&set).expect("a set")["spec"], before["spec"], "{backend}");
            operator.kill();
            operator = cluster.start("two");
        }
        cluster.put_cache("kv", |_| {});
        pass(1).await;
        assert_eq!(cluster.condition("kv", "Accepted"), "True/Valid", "{backend}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_cache_of_another_backend_is_let_go_with_the_servers_that_ran_for_it() {
    let cluster = Cluster::new();
    let operator = cluster.start("one");
    cluster.put_cache("kv", |_| {});
    pass(60).await;
    let is_told = || operator.reconciler.metrics().prometheus(cluster.server.now()).contains(r#"name="kv""#);
    cluster.put_cache("kv", |cache| set_backend(cache, &json!("infinistore")));
    pass(60).await;
    assert!(is_told());
    // Whoever serves it now makes a set of that name.
    let set = Key::new("statefulsets", NAMESPACE, "kv");
    let mut theirs = cluster.server.get(&set).expect("a set");
    cluster.server.delete(&set);
    pass(10).await;
    for field in ["annotations", "uid", "resourceVersion", "managedFields"] {
        theirs["metadata"][field] = Value::Null;
    }
    cluster.server.put(theirs);
    cluster.server.forget();
    pass(600).await;
    assert_eq!(cluster.condition("kv", "Accepted"), "False/UnknownBackend");
    assert_eq!(cluster.cache("kv")["status"]["conditions"].as_array().map(Vec::len), Some(1));
    assert!(!is_told());
    let writes = cluster.server.writes();
    assert!(writes.iter().all(|write| write.client != "one"), "{writes:#?}");
}

#[tokio::test(start_paused = true)]
async fn a_malformed_cache_says_so_and_hides_no_other() {
    let cluster = Cluster::new();
    // A schema that is older than the types lets it through.
    cluster.put_cache("broken", |cache| cache["spec"]["service"]["ports"] = json!("9600"));
    let _operator = cluster.start("one");
    cluster.put_cache("kv", |_| {});
    pass(60).await;
    assert_eq!(cluster.members("kv").len(), 3);
    assert_eq!(cluster.condition("broken", "Accepted"), "False/InvalidSpec");
    assert!(cluster.cache("broken").to_string().contains("9600"));
    let events = cluster.server.all("events").len();
    cluster.server.forget();
    pass(1000).await;
    assert!(cluster.server.requests().iter().all(|request| request.verb == Verb::Watch), "said once");
    assert_eq!(cluster.server.all("events").len(), events);
    cluster.put_cache("broken", |_| {});
    pass(60).await;
    assert_eq!(cluster.members("broken").len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_template_that_the_server_refuses_is_the_specs_fault() {
    use crate::support::api_server::{Fault, Faults};
    let cluster = Cluster::new();
    let _operator = cluster.start("one");
    cluster.put_cache("kv", |_| {});
    pass(60).await;
    let before = cluster.server.get(&Key::new("statefulsets", NAMESPACE, "kv")).unwrap();
    let refuse = |call: &crate::support::api_server::Call| {
        call.verb == Verb::Patch && call.resource.plural == "statefulsets"
    };
    cluster.server.inject(Faults::default().aimed(refuse, Fault::Invalid, usize::MAX));
    cluster.put_cache("kv", |cache| cache["spec"]["cache"]["image"] = json!("next"));
    pass(60).await;
    assert_eq!(cluster.condition("kv", "Accepted"), "False/InvalidSpec");
    assert_eq!(
        cluster.server.get(&Key::new("statefulsets", NAMESPACE, "kv")).unwrap()["spec"],
        before["spec"]
    );
    assert_eq!(cluster.members("kv").len(), 3);
    let tries = cluster.server.writes().len();
    pass(600).await;
    assert!(cluster.server.writes().len() < tries + 30, "it is tried again, but not all the time");
    cluster.server.heal();
    pass(200).await;
    assert_eq!(cluster.condition("kv", "Accepted"), "True/Valid");
}
