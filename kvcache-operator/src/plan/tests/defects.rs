//! Defects of AIBrix's controller that objects can have, by their number in its list: each is shown to be absent.

use super::*;

#[test]
fn defect_8_environment_of_the_user_reaches_the_server() {
    let of = |env: Value| {
        container(&accepted("infinistore", json!({"cache": {"image": "i", "env": env}})))["env"].clone()
    };
    let ours = of(json!([])).as_array().expect("a list").len();
    let env = of(json!([{"name": "A", "value": "1"}, {"name": "B", "value": "$(A)$(MY_POD_IP)"}]));
    let env = env.as_array().expect("a list");
    assert_eq!(env.len(), ours + 2);
    assert_eq!(
        env[ours..],
        [json!({"name": "A", "value": "1"}), json!({"name": "B", "value": "$(A)$(MY_POD_IP)"})]
    );
    let replaced = of(json!([{"name": "MY_POD_IP", "value": "0.0.0.0"}]));
    let replaced = replaced.as_array().expect("a list");
    assert_eq!(replaced.len(), ours, "what the user names wins, and is there once");
    assert_eq!(replaced[ours - 1], json!({"name": "MY_POD_IP", "value": "0.0.0.0"}));
}

#[test]
fn defect_9_infinistore_is_told_the_gid_index_that_was_asked_for() {
    for index in ["-1", "0", "3"] {
        let mut cache = cache("infinistore", json!({"cache": {"image": "i"}}));
        let annotations = cache.metadata.annotations.get_or_insert_default();
        let key = "infinistore.kvcache.orchestration.aibrix.ai/hint-gid-index";
        annotations.insert(key.to_owned(), index.to_owned());
        let args = container(&accept(&cache, &options()).expect("it is fine"))["args"].clone();
        let expected = Value::from(format!("--hint-gid-index={index}"));
        assert!(args.as_array().expect("a list").contains(&expected), "{args}");
    }
}

#[test]
fn defect_10_redis_comes_back_with_its_node_and_is_known_to_be_ready() {
    let redis = |shape: &str| {
        let shapes = shapes();
        let (_, accepted) = shapes.iter().find(|(name, _)| *name == shape).expect("a shape");
        assert!(!names(&desired(accepted)).iter().any(|name| name.starts_with("Pod ")));
        one(accepted, "StatefulSet", "prompts-redis")["spec"]["template"]["spec"]["containers"][0].clone()
    };
    let open = redis("infinistore_as_aibrix");
    assert!(open["readinessProbe"]["tcpSocket"].is_object(), "{open}");
    assert!(open["livenessProbe"]["tcpSocket"].is_object(), "{open}");
    let args = |container: &Value| {
        let args = container["args"].as_array().expect("a list").iter();
        args.map(|arg| arg.as_str().expect("a text").to_owned()).collect::<Vec<_>>()
    };
    assert!(!args(&open).contains(&"--requirepass".to_owned()), "AIBrix's engines have no password to give");
    let closed = redis("redis_with_password");
    let position = args(&closed).iter().position(|arg| arg == "--requirepass").expect("a password");
    assert_eq!(args(&closed)[position + 1], "$(REDIS_PASSWORD)", "the Secret's content is in no object");
    let reference = &closed["env"][0]["valueFrom"]["secretKeyRef"];
    assert_eq!(reference, &json!({"name": "login", "key": "redis"}));
}

#[test]
fn defect_11_everything_goes_with_its_cache_and_no_foreign_account_is_used() {
    for (shape, accepted) in shapes() {
        for object in sent(&accepted) {
            let owners = object["metadata"]["ownerReferences"].as_array().expect("owners");
            let expected = json!({
                "apiVersion": "orchestration.aibrix.ai/v1alpha1", "kind": "KVCache", "name": "prompts", "uid": "5c3a",
                "controller": true, "blockOwnerDeletion": true
            });
            assert_eq!(owners, &[expected], "{shape}: {}", object["kind"]);
        }
        let objects = names(&desired(&accepted));
        // The servers' account is the cache's own, and nobody needs rights.
        assert!(objects.contains(&"ServiceAccount prompts".to_owned()));
        assert!(!objects.iter().any(|name| name.starts_with("Role")));
    }
    let account = one(&shapes()[0].1, "ServiceAccount", "prompts");
    assert_eq!(account["automountServiceAccountToken"], false);
}

#[test]
fn defect_12_every_change_of_the_spec_changes_the_objects_and_pods_have_names_and_probes() {
    let spec = |change: fn(&mut Value)| {
        let mut spec = json!({
            "cache": {"replicas": 2, "image": "i:1", "resources": {"limits": {"memory": "4Gi"}}},
            "service": {"ports": [{"name": "service", "port": 12345}, {"name": "manage", "port": 8088}]}
        });
        change(&mut spec);
        one(&accepted("kvcache", spec), "StatefulSet", "prompts")
    };
    let before = spec(|_| ());
    type Change = fn(&mut Value);
    let changes: [(&str, Change); 7] = [
        ("image", |spec| spec["cache"]["image"] = json!("i:2")),
        ("replicas", |spec| spec["cache"]["replicas"] = json!(3)),
        ("limits", |spec| spec["cache"]["resources"]["limits"]["memory"] = json!("8Gi")),
        ("env", |spec| spec["cache"]["env"] = json!([{"name": "A", "value": "1"}])),
        ("capacity", |spec| spec["server"] = json!({"capacity": "1Gi"})),
        ("port", |spec| spec["service"]["ports"][0]["port"] = json!(12346)),
        ("pull policy", |spec| spec["cache"]["imagePullPolicy"] = json!("Always")),
    ];
    for (what, change) in changes {
        assert_ne!(spec(change), before, "{what}");
    }
    assert_eq!(before["spec"]["serviceName"], "prompts-headless-service");
    let container = &before["spec"]["template"]["spec"]["containers"][0];
    for (probe, path) in
        [("startupProbe", "/readyz"), ("readinessProbe", "/readyz"), ("livenessProbe", "/healthz")]
    {
        assert_eq!(container[probe]["httpGet"]["path"], path);
        assert_eq!(container[probe]["httpGet"]["port"], "manage");
    }
}

#[test]
fn defect_14_there_is_never_more_than_one_redis_behind_a_service() {
    let refused = |replicas: i32| {
        let spec = json!({"metadata": {"redis": {"runtime": {"replicas": replicas}}}});
        accept(&cache("kvcache", spec), &options()).expect_err("a refusal").problems[0].field.clone()
    };
    for replicas in [3, 0, -1] {
        assert_eq!(refused(replicas), "spec.metadata.redis.runtime.replicas");
    }
    let etcd = cache("kvcache", json!({"metadata": {"etcd": {"runtime": {"replicas": 3}}}}));
    let refusal = accept(&etcd, &options()).expect_err("a refusal");
    assert_eq!(refusal.reason, crate::api::Reason::UnsupportedMetadata);
    for (shape, accepted) in shapes() {
        let redis = desired(&accepted).into_iter().filter(|object| object.name() == "prompts-redis");
        for object in redis.filter(|object| object.kind() == "StatefulSet") {
            assert_eq!(object.to_json().expect("JSON")["spec"]["replicas"], 1, "{shape}");
        }
    }
}

#[test]
fn defect_15_without_metadata_nothing_points_at_a_store_that_is_not_there() {
    let accepted = accepted("kvcache", json!({}));
    assert_eq!(
        names(&desired(&accepted)),
        [
            "ServiceAccount prompts",
            "Service prompts-headless-service",
            "StatefulSet prompts",
            "PodDisruptionBudget prompts",
            "ConfigMap prompts-connection"
        ]
    );
    let text = serde_json::to_string(&sent(&accepted)).expect("JSON");
    assert!(!text.contains("redis") && !text.contains("etcd"), "{text}");
}
