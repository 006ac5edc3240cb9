//! The resource's definition: its shape, its defaults, and each of its rules accepted and refused.
#![expect(clippy::unwrap_used, reason = "tests panic")]

#[path = "support/admission.rs"]
mod admission;

use admission::{admit, schema};
use kube::CustomResourceExt;
use kube::core::cel::{ScopeContext, analyze_rule, compile_schema};
use kvcache_operator::api::KVCache;
use serde_json::{Value, json};

/// A resource with this spec.
fn resource(spec: Value) -> Value {
    json!({
        "apiVersion": "orchestration.aibrix.ai/v1alpha1",
        "kind": "KVCache",
        "metadata": { "name": "cache", "namespace": "default" },
        "spec": spec
    })
}

fn accepted(spec: Value) -> Value {
    match admit(&resource(spec.clone()), None) {
        Ok(stored) => stored["spec"].clone(),
        Err(problems) => panic!("{spec} is refused: {problems:?}"),
    }
}

/// The spec is refused for one reason, whose text has all of `words`.
#[track_caller]
fn refused(spec: Value, words: &[&str]) {
    let problems = admit(&resource(spec.clone()), None).expect_err("it is accepted");
    assert_eq!(problems.len(), 1, "{spec}: {problems:?}");
    for word in words {
        assert!(problems[0].contains(word), "{word:?} is missing in {:?}", problems[0]);
    }
}

#[test]
fn what_is_left_out_is_filled_in_as_aibrix_does_but_for_the_image() {
    assert_eq!(
        accepted(json!({})),
        json!({ "mode": "distributed", "cache": { "replicas": 1, "imagePullPolicy": "IfNotPresent" } })
    );
    let stored = accepted(json!({
        "metadata": { "redis": { "runtime": { "image": "redis" } } },
        "service": { "ports": [{ "port": 12345 }] }
    }));
    assert_eq!(stored["metadata"]["redis"]["runtime"]["replicas"], 1);
    assert_eq!(
        stored["service"],
        json!({ "type": "ClusterIP", "ports": [{ "port": 12345, "protocol": "TCP" }] })
    );
}

#[test]
fn a_field_with_nothing_behind_it_is_left_out() {
    let spec = json!({ "server": null, "metadata": null, "cache": { "replicas": null, "resources": null } });
    assert_eq!(accepted(spec), accepted(json!({})));
}

#[test]
fn a_pod_template_keeps_everything() {
    let template =
        json!({ "metadata": { "annotations": { "a": "b" } }, "spec": { "containers": [{ "x": [1] }] } });
    let stored = accepted(json!({ "cache": { "template": template } }));
    assert_eq!(stored["cache"]["template"], template);
}

#[test]
fn replicas() {
    for count in [0, 1, 500, 4096] {
        accepted(json!({ "cache": { "replicas": count } }));
    }
    refused(json!({ "cache": { "replicas": -1 } }), &["spec.cache.replicas", "-1", "at least 0"]);
    refused(json!({ "cache": { "replicas": 4097 } }), &["spec.cache.replicas", "4097", "at most 4096"]);
    refused(json!({ "watcher": { "replicas": -2 } }), &["spec.watcher.replicas", "-2"]);
}

#[test]
fn the_policy_of_pulling() {
    for policy in ["", "Always", "IfNotPresent", "Never"] {
        accepted(json!({ "cache": { "imagePullPolicy": policy } }));
    }
    refused(
        json!({ "cache": { "imagePullPolicy": "Sometimes" } }),
        &["spec.cache.imagePullPolicy", "Sometimes", "give Always, IfNotPresent or Never"],
    );
}

fn memory(limit: Value, server: Value) -> Value {
    json!({ "cache": { "resources": { "limits": { "memory": limit } } }, "server": server })
}

#[test]
fn capacity_and_headroom_fit_into_the_limit() {
    accepted(memory(json!("33Gi"), json!({ "capacity": "32Gi", "headroom": "1Gi" })));
    accepted(memory(json!("32768.5Mi"), json!({ "capacity": "32Gi", "headroom": "512Ki" })));
    // 512 MiB of headroom, and numbers without a unit.
    accepted(memory(json!(1_073_741_824), json!({ "capacity": 536_870_912 })));
    accepted(memory(json!("1G"), json!({ "capacity": "463129088" })));
    refused(
        memory(json!("33Gi"), json!({ "capacity": "32Gi", "headroom": "1025Mi" })),
        &["spec.server.capacity", "32Gi", "1025Mi", "33Gi", "raise the limit, or lower the capacity"],
    );
    refused(memory(json!("1G"), json!({ "capacity": "463129089" })), &["463129089", "512Mi", "1G"]);
    accepted(memory(json!("1Gi"), json!({ "capacity": "1Gi", "headroom": "0" })));
}

#[test]
fn a_limit_leaves_room_for_blocks() {
    accepted(memory(json!("513Mi"), json!({})));
    accepted(memory(json!("65Mi"), json!({ "headroom": "64Mi" })));
    refused(
        memory(json!("512Mi"), json!({})),
        &[
            "spec.cache.resources",
            "limits.memory 512Mi is too small",
            "raise the limit, or lower the headroom",
        ],
    );
    refused(memory(json!("64Mi"), json!({ "headroom": "64Mi" })), &["64Mi", "too small"]);
}

#[test]
fn memory_of_what_is_not_ours_is_not_judged() {
    // A template says it all, and without our block another backend may run with less.
    let mut spec = memory(json!("1Gi"), json!({ "capacity": "2Gi" }));
    spec["cache"]["template"] = json!({ "spec": {} });
    accepted(spec);
    accepted(json!({ "cache": { "resources": { "limits": { "memory": "256Mi" } } } }));
    accepted(
        json!({ "cache": { "resources": { "limits": { "cpu": "2" } } }, "server": { "capacity": "2Gi" } }),
    );
    accepted(json!({ "cache": { "resources": {} }, "server": { "capacity": "2Gi" } }));
}

#[test]
fn amounts_of_our_block() {
    accepted(json!({ "server": { "capacity": "1Mi", "headroom": 0 } }));
    refused(json!({ "server": { "capacity": "32m" } }), &["spec.server.capacity", "32m", "at least 1Mi"]);
    refused(json!({ "server": { "capacity": "-1Gi" } }), &["-1Gi", "at least 1Mi"]);
    refused(json!({ "server": { "headroom": "-1" } }), &["spec.server.headroom", "-1", "0 or more"]);
    refused(json!({ "server": { "ring": { "minReadySeconds": 3601 } } }), &["minReadySeconds", "3601"]);
    refused(json!({ "server": { "ring": { "notReadyGraceSeconds": -1 } } }), &["notReadyGraceSeconds", "-1"]);
}

fn redis(redis: Value) -> Value {
    json!({ "metadata": { "redis": redis } })
}

fn external(connection: Value) -> Value {
    redis(json!({ "externalConnection": connection }))
}

#[test]
fn one_store_is_named_exactly() {
    accepted(redis(json!({ "runtime": {} })));
    accepted(external(json!({ "address": "redis:6379" })));
    accepted(json!({ "metadata": { "etcd": { "runtime": { "replicas": 3 } } } }));
    refused(redis(json!({})), &["spec.metadata.redis", "neither", "give externalConnection"]);
    refused(
        redis(json!({ "runtime": {}, "externalConnection": { "address": "redis:6379" } })),
        &["spec.metadata.redis", "both given", "keep one"],
    );
    refused(json!({ "metadata": { "etcd": {} } }), &["spec.metadata.etcd", "neither"]);
}

#[test]
fn addresses() {
    for address in
        ["redis:6379", "redis.example.com:1", "10.0.0.1:65535", "[fd00::1]:6379", "my_redis-0:6379"]
    {
        accepted(external(json!({ "address": address })));
    }
    for address in
        ["", "redis", "redis://redis:6379", "redis:", ":6379", "fd00::1:6379", "redis:6379/0", "a b:1"]
    {
        let shown = if address.is_empty() { "missing" } else { address };
        refused(
            external(json!({ "address": address })),
            &["spec.metadata.redis.externalConnection", shown, "write host:port"],
        );
    }
    refused(external(json!({})), &["missing", "write host:port"]);
    for address in ["redis:0", "redis:65536", "redis:99999"] {
        refused(
            external(json!({ "address": address })),
            &["externalConnection.address", address, "1 and 65535"],
        );
    }
}

#[test]
fn references_to_secrets() {
    for reference in ["", "redis", "redis-auth.v1/password", "r/some_KEY.txt"] {
        accepted(external(json!({ "address": "redis:6379", "passwordSecretRef": reference })));
    }
    for reference in ["Redis", "redis/", "/password", "a/b/c", "-redis", "redis key"] {
        refused(
            external(json!({ "address": "redis:6379", "passwordSecretRef": reference })),
            &["externalConnection.passwordSecretRef", reference, "secret/key"],
        );
    }
}

fn ports(ports: Value) -> Value {
    json!({ "service": { "ports": ports } })
}

#[test]
fn ports_of_the_service() {
    accepted(ports(json!([{ "port": 12345 }])));
    accepted(ports(json!([{ "name": "a", "port": 53, "protocol": "UDP" }, { "name": "b", "port": 53 }])));
    for target in [json!("service"), json!(65535), json!("8088")] {
        accepted(ports(json!([{ "port": 1, "targetPort": target }])));
    }
    for port in [-1, 0, 65536] {
        refused(ports(json!([{ "port": port }])), &["spec.service.ports[0].port", &port.to_string()]);
        refused(
            ports(json!([{ "port": 1, "targetPort": port }])),
            &["spec.service.ports", "targetPort", &port.to_string(), "give 1 to 65535"],
        );
    }
    refused(
        ports(json!([{ "name": "a", "port": 8088 }, { "name": "b", "port": 8088, "protocol": "TCP" }])),
        &["spec.service.ports", "two ports have one number", "keep one"],
    );
    for (one, other) in [(json!("a"), json!("a")), (json!("a"), json!("")), (json!("a"), Value::Null)] {
        refused(
            ports(json!([{ "name": one, "port": 1 }, { "name": other, "port": 2 }])),
            &["spec.service.ports", "name each differently"],
        );
    }
    refused(ports(json!([{ "port": 1, "protocol": "http" }])), &["spec.service.ports", "http", "write TCP"]);
    refused(ports(json!([])), &["spec.service.ports"]);
    refused(json!({ "service": {} }), &["spec.service.ports", "Required"]);
    let many: Vec<Value> = (1..=33).map(|port| json!({ "name": format!("p{port}"), "port": port })).collect();
    accepted(ports(json!(many[..32])));
    refused(ports(json!(many)), &["spec.service.ports"]);
}

#[test]
fn types_of_the_service() {
    for kind in ["", "ClusterIP", "NodePort"] {
        accepted(json!({ "service": { "type": kind, "ports": [{ "port": 1 }] } }));
    }
    refused(
        json!({ "service": { "type": "ExternalName", "ports": [{ "port": 1 }] } }),
        &["spec.service.type", "ExternalName", "ClusterIP"],
    );
}

#[test]
fn every_change_of_a_spec_is_possible() {
    // Nothing that is made from the spec is immutable, and the backend, which is an annotation, is invisible here.
    let old =
        resource(json!({ "metadata": { "redis": { "runtime": {} } }, "server": { "capacity": "1Gi" } }));
    let new = resource(external(json!({ "address": "redis:6379" })));
    assert!(admit(&new, Some(&old)).is_ok());
}

/// Every node of the schema, with its path.
fn nodes<'a>(schema: &'a Value, path: &str, visit: &mut impl FnMut(&'a Value, &str)) {
    visit(schema, path);
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        nodes(field, &format!("{path}.{name}"), visit);
    }
    for (key, suffix) in [("items", "[]"), ("additionalProperties", "{}")] {
        if let Some(inner) = schema.get(key) {
            nodes(inner, &format!("{path}{suffix}"), visit);
        }
    }
}

#[test]
fn the_schema_is_structural() {
    let schema = schema();
    let mut seen = 0;
    nodes(&schema, "", &mut |node, path| {
        seen += 1;
        let is_open = node["x-kubernetes-int-or-string"] == true;
        assert_eq!(node["type"].is_string(), !is_open, "type of {path}");
        for junctor in ["anyOf", "oneOf", "allOf", "not", "$ref", "definitions", "nullable"] {
            let is_there = node.get(junctor).is_some_and(|value| *value != json!(false));
            assert!(!is_there || path == ".status", "{junctor} at {path}");
        }
        assert!(
            !(node.get("properties").is_some() && node.get("additionalProperties").is_some()),
            "both at {path}"
        );
        let format = node["format"].as_str().unwrap_or("int32");
        assert!(["int32", "int64", "date-time"].contains(&format), "{format} at {path}");
    });
    assert!(seen > 60, "{seen} nodes");
}

#[test]
fn rules_are_cheap_and_read_what_is_there() {
    let schema = schema();
    let mut rules = 0;
    nodes(&schema, "", &mut |node, path| {
        let compiled = compile_schema(node);
        assert!(!compiled.has_errors(), "{path}: {:?}", compiled.compilation_errors());
        for rule in node["x-kubernetes-validations"].as_array().into_iter().flatten() {
            rules += 1;
            let expressions = [&rule["rule"], &rule["messageExpression"]];
            assert_ne!(rule["message"].is_string(), rule["messageExpression"].is_string(), "{rule}");
            for text in expressions.into_iter().filter_map(Value::as_str) {
                // The text of an integer is without bound to the API server's estimate, which refuses the definition.
                for shown in text.replace("substring(", "").split("string(").skip(1) {
                    let field = shown.split(')').next().unwrap().rsplit('.').next().unwrap();
                    let is_bounded =
                        ["capacity", "headroom", "targetPort", "limits['memory']"].contains(&field);
                    assert!(is_bounded, "{field} in {text}");
                }
                let mut warnings = analyze_rule(text, &compiled, ScopeContext::CrdValidation);
                // It takes the variables of `all` and its like for unknown ones.
                warnings.retain(|warning| !["'p'", "'q'"].iter().any(|name| warning.message.contains(name)));
                assert_eq!(warnings, [], "{path}");
                // kubectl prints them, and the API server takes no line breaks in a message.
                assert!(!text.contains('\n') && !text.contains("  "), "{text}");
            }
        }
    });
    assert!(rules > 15, "{rules} rules");
}

#[test]
fn columns_and_scale() {
    let definition = serde_json::to_value(KVCache::crd()).unwrap();
    let version = &definition["spec"]["versions"][0];
    let columns = version["additionalPrinterColumns"].as_array().unwrap();
    let always: Vec<&str> = columns
        .iter()
        .filter(|column| column["priority"].as_i64().unwrap_or(0) == 0)
        .map(|column| column["name"].as_str().unwrap())
        .collect();
    assert_eq!(always, ["Backend", "Ready", "Ring", "Available", "Age"]);
    assert_eq!(
        version["subresources"],
        json!({
            "status": {},
            "scale": {
                "specReplicasPath": ".spec.cache.replicas",
                "statusReplicasPath": ".status.current",
                "labelSelectorPath": ".status.selector"
            }
        })
    );
    assert_eq!(definition["spec"]["names"]["shortNames"], json!(["kvc"]));
    // A column that names no field stays empty without a word.
    for column in columns {
        let path = column["jsonPath"].as_str().unwrap();
        let schema = schema();
        let mut node = &schema;
        let plain = path.split('[').next().unwrap().trim_start_matches('.');
        for part in plain.split('.').filter(|_| !path.starts_with(".metadata")) {
            node = &node["properties"][part];
            assert!(node.is_object(), "{path}: no {part}");
        }
    }
}

#[test]
fn the_definition_is_small_enough_for_any_client() {
    // `kubectl apply` without --server-side keeps a copy in an annotation, of 262,144 bytes at most.
    let bytes = serde_json::to_vec(&KVCache::crd()).unwrap().len();
    assert!(bytes < 64 << 10, "{bytes} bytes");
}
