//! One case for each way in which a resource can be wrong, and the samples that must be right.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::*;
use crate::api::{Metadata, Ports, PullPolicy, SecretKey, ServerPod};

fn options() -> Options {
    Options {
        adopt: BTreeSet::from([Backend::InfiniStore]),
        server_image: "registry.example/kvcache:1.0".to_owned(),
        redis_image: "registry.example/redis:7".to_owned(),
    }
}

/// A cache of our backend with 4 GiB, and `spec` laid over it.
fn cache(spec: Value) -> KVCache {
    let mut object = json!({
        "metadata": {
            "name": "prompts", "namespace": "models", "uid": "u-1", "generation": 3,
            "annotations": {"kvcache.orchestration.aibrix.ai/backend": "kvcache"}
        },
        "spec": {"cache": {"replicas": 3, "resources": {"limits": {"memory": "4Gi"}}}}
    });
    lay_over(&mut object["spec"], spec);
    serde_json::from_value(object).expect("a cache")
}

fn lay_over(below: &mut Value, above: Value) {
    match (below, above) {
        (Value::Object(below), Value::Object(above)) => {
            for (key, value) in above {
                lay_over(below.entry(key).or_insert(Value::Null), value);
            }
        }
        (below, above) => *below = above,
    }
}

fn infinistore(spec: Value) -> KVCache {
    let mut cache = cache(spec);
    cache
        .metadata
        .annotations
        .get_or_insert_default()
        .insert(annotation::BACKEND.to_owned(), "infinistore".to_owned());
    cache.spec.cache.get_or_insert_default().image = Some("infinistore:1".to_owned());
    cache
}

fn accepted(cache: &KVCache) -> Accepted {
    accept(cache, &options()).unwrap_or_else(|refusal| panic!("{refusal}"))
}

fn built(cache: &KVCache) -> ServerPod {
    match accepted(cache).workload.pods {
        Pods::Built(pod) => *pod,
        Pods::Template(template) => panic!("{template:?}"),
    }
}

fn refusal(cache: &KVCache) -> Refusal {
    accept(cache, &options()).expect_err("a refusal")
}

#[test]
fn a_short_spec_is_filled_in() {
    let accepted = accepted(&cache(json!({})));
    assert_eq!((accepted.namespace.as_str(), accepted.name.as_str()), ("models", "prompts"));
    assert_eq!((accepted.uid.as_str(), accepted.generation), ("u-1", 3));
    assert_eq!((accepted.backend, accepted.workload.replicas), (Backend::KvCache, 3));
    assert_eq!(accepted.ports, Ports { serve: 12345, manage: 8088 });
    assert_eq!(accepted.metadata, Metadata::None);
    assert_eq!(accepted.ring.min_ready, Duration::from_secs(10));
    assert_eq!(accepted.ring.not_ready_grace, Duration::from_secs(60));
    assert_eq!(accepted.ring.redis_key, "kvcache_nodes");
    assert_eq!(accepted.notes, Vec::<String>::new());
    let Pods::Built(pod) = accepted.workload.pods else { panic!("a template") };
    assert_eq!(
        (pod.image.as_str(), pod.pull_policy),
        ("registry.example/kvcache:1.0", PullPolicy::IfNotPresent)
    );
    assert_eq!(pod.capacity_bytes, (4 << 30) - (512 << 20), "nine tenths would leave too little");
    assert_eq!(pod.rdma, None);
}

/// Every wrong spec: the field, and a part of the message that tells what to do.
#[test]
fn what_cannot_work_is_refused_by_its_field_with_a_remedy() {
    let huge = "a".repeat(200_000);
    for (spec, field, remedy) in [
        (json!({"cache": {"replicas": -1}}), "spec.cache.replicas", "give 0 (no servers) or more"),
        (json!({"cache": {"replicas": 4097}}), "spec.cache.replicas", "at most 4096"),
        (json!({"cache": {"image": "a b"}}), "spec.cache.image", "registry/name:tag"),
        (json!({"cache": {"imagePullPolicy": "Sometimes"}}), "spec.cache.imagePullPolicy", "IfNotPresent"),
        (json!({"cache": {"env": [{"name": ""}]}}), "spec.cache.env[0].name", "take letters"),
        (json!({"cache": {"env": [{"name": "1A"}]}}), "spec.cache.env[0].name", "take letters"),
        (
            json!({"cache": {"env": [{"name": "A", "value": "1", "valueFrom": {"fieldRef": {"fieldPath": "x"}}}]}}),
            "spec.cache.env[0]",
            "keep one of them",
        ),
        (
            json!({"cache": {"resources": {"limits": {"cpu": "many"}}}}),
            "spec.cache.resources.limits[cpu]",
            "write 500m",
        ),
        (
            json!({"cache": {"resources": {"limits": {"cpu": "-1"}}}}),
            "spec.cache.resources.limits[cpu]",
            "write 500m",
        ),
        (
            json!({"cache": {"resources": {"requests": {"memory": "5Gi"}}}}),
            "spec.cache.resources.requests[memory]",
            "give request and limit the same value",
        ),
        (
            json!({"cache": {"resources": {"requests": {"rdma/hca": 1}}}}),
            "spec.cache.resources.requests[rdma/hca]",
            "needs a limit",
        ),
        (
            json!({"cache": {"resources": {"requests": {"rdma/hca": 1}, "limits": {"rdma/hca": 2}}}}),
            "spec.cache.resources.requests[rdma/hca]",
            "devices are not shared",
        ),
        (json!({"server": {"capacity": "lots"}}), "spec.server.capacity", "write 32Gi"),
        (json!({"server": {"capacity": "400m"}}), "spec.server.capacity", "write Mi"),
        (json!({"server": {"headroom": "-1"}}), "spec.server.headroom", "at least 0"),
        (
            json!({"server": {"ring": {"minReadySeconds": 3601}}}),
            "spec.server.ring.minReadySeconds",
            "at most 3600",
        ),
        (
            json!({"server": {"ring": {"notReadyGraceSeconds": 86401}}}),
            "spec.server.ring.notReadyGraceSeconds",
            "at most 86400",
        ),
        (json!({"metadata": {}}), "spec.metadata", "give it redis"),
        (json!({"metadata": {"etcd": {}}}), "spec.metadata.etcd", "use spec.metadata.redis"),
        (json!({"metadata": {"redis": {}}}), "spec.metadata.redis", "neither externalConnection nor runtime"),
        (
            json!({"metadata": {"redis": {"runtime": {}, "externalConnection": {"address": "a:1"}}}}),
            "spec.metadata.redis",
            "both externalConnection and runtime",
        ),
        (
            json!({"metadata": {"redis": {"runtime": {"replicas": 3}}}}),
            "spec.metadata.redis.runtime.replicas",
            "externalConnection to a replicated one",
        ),
        (
            json!({"metadata": {"redis": {"runtime": {"env": [{"name": "REDIS_PASSWORD", "value": "x"}]}}}}),
            "spec.metadata.redis.runtime.env[REDIS_PASSWORD]",
            "secretKeyRef",
        ),
        (
            json!({"metadata": {"redis": {"runtime": {"template": {"spec": {"containers": []}}}}}}),
            "spec.metadata.redis.runtime.template.spec.containers",
            "give the container",
        ),
        (json!({"service": {"type": "NodePort", "ports": [{"port": 1}]}}), "spec.service.type", "ClusterIP"),
        (json!({"service": {"ports": [{"port": 0}]}}), "spec.service.ports[0].port", "1 to 65535"),
        (
            json!({"service": {"ports": [{"port": 1, "targetPort": 70000}]}}),
            "spec.service.ports[0].targetPort",
            "1 to 65535",
        ),
        (
            json!({"service": {"ports": [{"port": 1, "targetPort": "web"}]}}),
            "spec.service.ports[0].targetPort",
            "give its number",
        ),
        (
            json!({"service": {"ports": [{"port": 1, "protocol": "tcp"}]}}),
            "spec.service.ports[0].protocol",
            "TCP",
        ),
        (
            json!({"service": {"ports": [{"port": 1, "protocol": "UDP"}]}}),
            "spec.service.ports[0].protocol",
            "TCP",
        ),
        (
            json!({"service": {"ports": [{"port": 1, "nodePort": 30000}]}}),
            "spec.service.ports[0].nodePort",
            "leave it out",
        ),
        (
            json!({"service": {"ports": [{"port": 1, "name": "a"}, {"port": 2}]}}),
            "spec.service.ports[1].name",
            "each has a name",
        ),
        (
            json!({"service": {"ports": [{"port": 1, "name": "a"}, {"port": 2, "name": "a"}]}}),
            "spec.service.ports[1].name",
            "rename",
        ),
        (
            json!({"service": {"ports": [{"port": 1, "name": "a"}, {"port": 1, "name": "b"}]}}),
            "spec.service.ports[1].port",
            "listed twice",
        ),
        (
            json!({"service": {"ports": [{"port": 8088, "name": "service"}]}}),
            "spec.service.ports",
            "serve and be managed on one port",
        ),
        (
            json!({"service": {"ports": [{"port": 1, "name": "manage"}, {"port": 2, "name": "admin"}]}}),
            "spec.service.ports",
            "keep one of them",
        ),
        (json!({"cache": {"template": {}}}), "spec.cache.template.spec", "leave the template out"),
        (
            json!({"cache": {"template": {"spec": {"containers": [{"name": "a"}, {"name": "b"}]}}}}),
            "spec.cache.template.spec.containers",
            "call it kvcache-server",
        ),
        (
            json!({"cache": {"template": {"spec": {"containers": [{"name": "kvcache-server"}, {"name": "kvcache-server"}]}}}}),
            "spec.cache.template.spec.containers",
            "rename one of them",
        ),
        (
            json!({"cache": {"template": {"spec": {"containers": [{"name": "a"}], "volumes": [{"name": "v"}, {"name": "v"}]}}}}),
            "spec.cache.template.spec.volumes",
            "rename one of them",
        ),
        (
            json!({"cache": {"template": {"spec": {"containers": [{"name": "a"}], "restartPolicy": "Never"}}}}),
            "spec.cache.template.spec.restartPolicy",
            "leave it out",
        ),
        (
            json!({"cache": {"template": {"spec": {"containers": [{"name": "a", "ports": [
                {"containerPort": 1}, {"containerPort": 1, "protocol": "TCP"}]}]}}}}),
            "spec.cache.template.spec.containers[0].ports[1].containerPort",
            "listed twice",
        ),
        (json!({"cache": {"env": [{"name": "=", "value": huge}]}}), "spec.cache.env[0].name", "take letters"),
    ] {
        let refusal = refusal(&cache(spec.clone()));
        let [problem] = refusal.problems.as_slice() else { panic!("{field}: {refusal}") };
        assert_eq!(problem.field, field, "{refusal}");
        assert!(problem.message.contains(remedy), "{field}: {}", problem.message);
        let expected = match field {
            "spec.metadata.etcd" => Reason::UnsupportedMetadata,
            _ => Reason::InvalidSpec,
        };
        assert_eq!(refusal.reason, expected, "{field}");
        assert!(!refusal.is_unclaimed());
        assert!(refusal.to_string().len() < 1000, "a message that fits into a condition");
    }
}

#[test]
fn addresses_and_secrets_of_an_external_redis_are_read() {
    let external = |address: &str, secret: Option<&str>| {
        cache(
            json!({"metadata": {"redis": {"externalConnection": {"address": address, "passwordSecretRef": secret}}}}),
        )
    };
    for (address, secret, host, password) in [
        ("redis.data:6379", None, "redis.data", None),
        ("10.0.0.7:6379", Some("login"), "10.0.0.7", Some(("login", "password"))),
        ("[fd00::7]:6379", Some("login/redis"), "fd00::7", Some(("login", "redis"))),
        ("redis:6379", Some(""), "redis", None),
    ] {
        let accepted = accepted(&external(address, secret));
        let password =
            password.map(|(secret, key)| SecretKey { secret: secret.to_owned(), key: key.to_owned() });
        assert_eq!(accepted.metadata, Metadata::External { host: host.to_owned(), port: 6379, password });
    }
    for address in [
        "",
        "redis",
        "redis:",
        ":6379",
        "redis:0",
        "redis:65536",
        "redis:+1",
        "redis://r:6379",
        "fd00::7:6379",
        "[x]:1",
        "a b:1",
        "a/b:1",
    ] {
        let refusal = refusal(&external(address, None));
        assert_eq!(refusal.problems[0].field, "spec.metadata.redis.externalConnection.address", "{address}");
        assert!(refusal.problems[0].message.contains("write host:port"), "{refusal}");
    }
    for secret in ["/key", "a/", "a/b/c", "A", "a b", "a/k y", "-a", "a."] {
        let refusal = refusal(&external("redis:6379", Some(secret)));
        assert_eq!(
            refusal.problems[0].field, "spec.metadata.redis.externalConnection.passwordSecretRef",
            "{secret}"
        );
        assert!(refusal.problems[0].message.contains("secret/key"), "{refusal}");
    }
}

#[test]
fn memory_is_divided_between_blocks_and_the_rest() {
    let memory = |limit: &str, server: Value| {
        let pod =
            built(&cache(json!({"cache": {"resources": {"limits": {"memory": limit}}}, "server": server})));
        (pod.capacity_bytes, pod.headroom_bytes)
    };
    let (gib, mib) = (1 << 30, 1 << 20);
    assert_eq!(memory("120Gi", json!({})), (108 * gib, 12 * gib), "nine tenths, as in AIBrix");
    assert_eq!(memory("1Gi", json!({})), (512 * mib, 512 * mib), "the headroom first");
    assert_eq!(memory("513Mi", json!({})), (mib, 512 * mib));
    assert_eq!(memory("40Gi", json!({"capacity": "32Gi"})), (32 * gib, 8 * gib));
    assert_eq!(
        memory("40Gi", json!({"capacity": "39Gi", "headroom": "1Gi"})),
        (39 * gib, gib),
        "to the last byte"
    );
    assert_eq!(memory("1Gi", json!({"headroom": "0"})), (gib / 10 * 9 + 3, gib - gib / 10 * 9 - 3));
}

#[test]
fn memory_that_does_not_fit_is_refused_with_the_arithmetic() {
    for (limit, server, says) in [
        (
            "32Gi",
            json!({"capacity": "32Gi"}),
            "32 GiB is too small: 32 GiB for blocks (at least 1Mi) and 512 MiB for everything else are 32.5 GiB: raise \
             the limit to 33280Mi, or lower spec.server.capacity to 32256Mi at most",
        ),
        (
            "512Mi",
            json!({}),
            "512 MiB is too small: 1 MiB for blocks (at least 1Mi) and 512 MiB for everything else are 513 MiB: raise \
             the limit to 513Mi",
        ),
        ("400m", json!({}), "raise the limit to 513Mi"),
        // One byte too many.
        ("40Gi", json!({"capacity": "39Gi", "headroom": "1073741825"}), "raise the limit to 42949672961"),
        ("1Gi", json!({"capacity": "8E", "headroom": "8E"}), "raise the limit to"),
    ] {
        let spec = json!({"cache": {"resources": {"limits": {"memory": limit}}}, "server": server});
        let refusal = refusal(&cache(spec));
        assert_eq!(refusal.reason, Reason::MemoryTooSmall);
        assert_eq!(refusal.problems[0].field, "spec.cache.resources.limits.memory");
        assert!(refusal.problems[0].message.contains(says), "{refusal}");
    }
}

#[test]
fn infinistore_gets_whole_gib() {
    let capacity = |limit: &str, server: Value| {
        built(&infinistore(json!({"cache": {"resources": {"limits": {"memory": limit}}}, "server": server})))
            .capacity_bytes
            >> 30
    };
    assert_eq!([capacity("120Gi", json!({})), capacity("30Gi", json!({}))], [108, 27], "AIBrix's samples");
    assert_eq!(capacity("2Gi", json!({})), 1, "one at least");
    assert_eq!(capacity("10Gi", json!({"capacity": "5000Mi"})), 4);
    let refusal = refusal(&infinistore(json!({"cache": {"resources": {"limits": {"memory": "1Gi"}}}})));
    assert_eq!(refusal.reason, Reason::MemoryTooSmall);
}

#[test]
fn without_a_limit_a_gib_is_kept_and_said() {
    let mut cache = cache(json!({}));
    cache.spec.cache = None;
    let accepted = accepted(&cache);
    assert_eq!(accepted.workload.replicas, 1);
    assert!(accepted.notes[0].contains("1 GiB"), "{:?}", accepted.notes);
    assert_eq!(built(&cache).capacity_bytes, 1 << 30);
}

#[test]
fn no_servers_may_be_asked_for() {
    assert_eq!(accepted(&cache(json!({"cache": {"replicas": 0}}))).workload.replicas, 0);
}

#[test]
fn everything_that_is_wrong_is_said_at_once() {
    let refusal = refusal(&cache(json!({
        "cache": {"replicas": -1, "resources": {"limits": {"memory": "1Mi"}}},
        "metadata": {"etcd": {}}
    })));
    assert_eq!(refusal.problems.len(), 3, "{refusal}");
    assert_eq!(refusal.reason, Reason::InvalidSpec, "of several kinds, the most general");
}

#[test]
fn backends_of_others_are_left_alone() {
    let of = |backend: Option<&str>, adopt: bool| {
        let mut cache = infinistore(json!({"cache": {"replicas": -1}}));
        let annotations = cache.metadata.annotations.get_or_insert_default();
        match backend {
            Some(backend) => annotations.insert(annotation::BACKEND.to_owned(), backend.to_owned()),
            None => annotations.remove(annotation::BACKEND),
        };
        let options = Options { adopt: if adopt { options().adopt } else { BTreeSet::new() }, ..options() };
        accept(&cache, &options).expect_err("a refusal")
    };
    for (backend, adopt, remedy) in [
        (None, true, "write \"kvcache\""),
        (Some("vineyard"), true, "\"vineyard\" is not served here"),
        (Some("hpkv"), true, "\"hpkv\" is not served here"),
        (Some("infinistore"), false, "--adopt-backends infinistore"),
    ] {
        let refusal = of(backend, adopt);
        assert!(refusal.is_unclaimed());
        assert_eq!(refusal.problems.len(), 1, "the rest is not this operator's to judge: {refusal}");
        assert_eq!(
            refusal.problems[0].field,
            "metadata.annotations[kvcache.orchestration.aibrix.ai/backend]"
        );
        assert!(refusal.problems[0].message.contains(remedy), "{refusal}");
    }
    assert!(!of(Some("infinistore"), true).is_unclaimed());
    assert!(!of(Some("kvcache"), false).is_unclaimed());
}

#[test]
fn names_that_no_service_can_have_are_refused() {
    let named = |name: &str| {
        let mut cache = cache(json!({}));
        cache.metadata.name = Some(name.to_owned());
        accept(&cache, &options())
    };
    let longest = "a".repeat(46);
    assert_eq!(format!("{longest}-headless-service").len(), 63);
    assert!(named(&longest).is_ok());
    for name in [format!("{longest}a"), "1a".to_owned(), "a.b".to_owned(), "a-".to_owned(), String::new()] {
        let refusal = named(&name).expect_err(&name);
        assert_eq!(refusal.problems[0].field, "metadata.name", "{name}");
    }
}

/// Defect 9 of AIBrix: -1 and 0 became 7.
#[test]
fn defect_9_gid_indexes_of_minus_one_and_zero_are_honoured() {
    let annotated = |text: &str| {
        let mut cache = infinistore(json!({}));
        let annotations = cache.metadata.annotations.get_or_insert_default();
        annotations.insert(annotation::INFINISTORE_GID_INDEX.to_owned(), text.to_owned());
        cache
    };
    for (text, index) in [("-1", -1), ("0", 0), ("3", 3), ("", 7)] {
        assert_eq!(built(&annotated(text)).infinistore.gid_index, index, "{text:?}");
    }
    for text in ["-2", "256", "seven", "1.0"] {
        let refusal = refusal(&annotated(text));
        assert!(refusal.problems[0].field.ends_with("hint-gid-index]"), "{refusal}");
    }
}

#[test]
fn link_types_are_infinistores() {
    let mut cache = infinistore(json!({}));
    let annotations = cache.metadata.annotations.get_or_insert_default();
    annotations.insert(annotation::INFINISTORE_LINK_TYPE.to_owned(), "IB".to_owned());
    assert_eq!(built(&cache).infinistore.link_type, "IB");
    let annotations = cache.metadata.annotations.get_or_insert_default();
    annotations.insert(annotation::INFINISTORE_LINK_TYPE.to_owned(), "ethernet".to_owned());
    assert!(refusal(&cache).problems[0].field.ends_with("link-type]"));
}

#[test]
fn infinistore_needs_an_image() {
    let mut cache = infinistore(json!({}));
    cache.spec.cache.get_or_insert_default().image = None;
    assert_eq!(refusal(&cache).problems[0].field, "spec.cache.image");
}

/// AIBrix's resource definition fills it in where `spec.cache` is left out.
#[test]
fn the_image_of_aibrix_default_is_not_taken_for_a_wish() {
    let cache = cache(json!({"cache": {"image": "aibrix/kvcache:20241120"}}));
    assert_eq!(built(&cache).image, "registry.example/kvcache:1.0");
    assert_eq!(accepted(&cache).notes.len(), 1);
}

#[test]
fn amounts_are_stored_as_the_api_server_writes_them() {
    let pod = built(&cache(json!({"cache": {"resources": {
        "limits": {"cpu": "10000m", "memory": "4096Mi", "vke.volcengine.com/rdma": 1},
        "requests": {"cpu": "0.5"}
    }}})));
    let written = serde_json::to_value(&pod.resources).expect("JSON");
    let limits = json!({"cpu": "10", "memory": "4Gi", "vke.volcengine.com/rdma": "1"});
    assert_eq!(written, json!({"limits": limits, "requests": {"cpu": "500m"}}));
}

#[test]
fn rdma_is_found_by_its_resource_whoever_sells_it() {
    let rdma = |name: &str, count: u32| {
        built(&cache(json!({"cache": {"resources": {"limits": {name: count}}}}))).rdma
    };
    let volcano = rdma("vke.volcengine.com/rdma", 1).expect("RDMA");
    assert_eq!(volcano.pod_networks.as_deref(), Some(r#"[{"cniConf":{"name":"rdma"}}]"#));
    let mellanox = rdma("rdma/hca_shared_devices_a", 1).expect("RDMA");
    assert_eq!((mellanox.resource.as_str(), mellanox.pod_networks), ("rdma/hca_shared_devices_a", None));
    assert_eq!(rdma("vke.volcengine.com/rdma", 0), None, "none of it is none");
    assert_eq!(rdma("nvidia.com/gpu", 1), None);
}

#[test]
fn of_two_variables_of_one_name_the_last_counts() {
    let pod = built(&cache(json!({"cache": {"env": [
        {"name": "A", "value": "1"}, {"name": "B", "value": ""}, {"name": "A", "value": "2"}
    ]}})));
    let written = serde_json::to_value(&pod.env).expect("JSON");
    assert_eq!(written, json!([{"name": "B"}, {"name": "A", "value": "2"}]));
}

#[test]
fn ports_follow_the_service() {
    let ports = |ports: Value| accepted(&cache(json!({"service": {"ports": ports}})));
    let aibrix = ports(
        json!([{"name": "service", "port": 12345}, {"name": "admin", "port": 8089, "targetPort": 9090}]),
    );
    assert_eq!(aibrix.ports, Ports { serve: 12345, manage: 9090 });
    let written = serde_json::to_value(&aibrix.service_ports).expect("JSON");
    assert_eq!(
        written,
        json!([
            {"name": "service", "port": 12345, "targetPort": 12345, "protocol": "TCP"},
            {"name": "admin", "port": 8089, "targetPort": 9090, "protocol": "TCP"}
        ])
    );
    assert_eq!(ports(json!([{"port": 7000}])).ports.serve, 7000, "the only one");
    assert_eq!(ports(json!([{"port": 7000, "targetPort": "service"}])).ports.serve, 12345);
    let other = ports(json!([{"name": "service", "port": 1}, {"name": "web", "port": 80}]));
    assert!(other.notes[0].contains("no server listens on 80"), "{:?}", other.notes);
}

#[test]
fn wishes_without_effect_are_named() {
    let mut cache = cache(json!({
        "mode": "centralized", "watcher": {}, "server": {"ring": {"perClusterKey": true}}
    }));
    let annotations = cache.metadata.annotations.get_or_insert_default();
    annotations.insert(annotation::MODE.to_owned(), "vineyard".to_owned());
    annotations.insert(annotation::INFINISTORE_GID_INDEX.to_owned(), "x".to_owned());
    let accepted = accepted(&cache);
    assert_eq!(accepted.notes.len(), 5, "{:#?}", accepted.notes);
    assert_eq!(accepted.backend, Backend::KvCache, "no mode decides");
}

#[test]
fn a_template_stands_for_itself() {
    let cache = cache(json!({
        "cache": {"image": "unused", "template": {
            "metadata": {"labels": {"a": "b"}, "annotations": {"c": "d"}, "name": "x", "creationTimestamp": null},
            "spec": {
                "containers": [{
                    "name": "anything",
                    "env": [{"name": "A", "value": ""}],
                    "ports": [{"containerPort": 7000, "name": "kv"}],
                    "resources": {"limits": {"cpu": "1000m"}}
                }],
                "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "1024Mi"}}]
            }
        }},
        "service": {"ports": [{"name": "service", "port": 7001, "targetPort": "kv"}]}
    }));
    let accepted = accepted(&cache);
    assert_eq!(accepted.ports.serve, 7000, "found by its name");
    assert_eq!(
        accepted.notes,
        ["spec.cache.image, spec.cache.resources have no effect: spec.cache.template says it all"]
    );
    let Pods::Template(template) = accepted.workload.pods else { panic!("no template") };
    assert_eq!(
        serde_json::to_value(template).expect("JSON"),
        json!({
            "metadata": {"labels": {"a": "b"}, "annotations": {"c": "d"}},
            "spec": {
                "containers": [{
                    "name": "anything",
                    "env": [{"name": "A"}],
                    "ports": [{"containerPort": 7000, "name": "kv", "protocol": "TCP"}],
                    "resources": {"limits": {"cpu": "1"}}
                }],
                "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}}]
            }
        })
    );
}

#[test]
fn the_ring_of_a_refused_cache_has_its_options() {
    let mut refused = cache(json!({
        "cache": {"replicas": -1},
        "server": {"ring": {"minReadySeconds": 5, "notReadyGraceSeconds": 999_999, "perClusterKey": true}}
    }));
    let ring = ring_options(&refused);
    assert_eq!((ring.min_ready, ring.not_ready_grace), (Duration::from_secs(5), Duration::from_secs(60)));
    assert_eq!(ring.redis_key, "kvcache_nodes/models/prompts");
    refused.spec.server = None;
    assert_eq!(ring_options(&refused).redis_key, "kvcache_nodes");
}
