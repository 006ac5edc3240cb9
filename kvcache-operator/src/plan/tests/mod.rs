//! The objects of caches: as they were agreed on (golden files), and what holds for all of them.

mod defects;
mod golden;
mod properties;

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{Desired, desired};
use crate::api::{Accepted, Backend, KVCache, Options, accept};

fn options() -> Options {
    Options {
        adopt: BTreeSet::from([Backend::InfiniStore]),
        server_image: "registry.example/kvcache:1.0".to_owned(),
        redis_image: "registry.example/redis:7".to_owned(),
    }
}

fn cache(backend: &str, spec: Value) -> KVCache {
    let annotations = json!({"kvcache.orchestration.aibrix.ai/backend": backend});
    serde_json::from_value(json!({
        "metadata": {
            "name": "prompts", "namespace": "models", "uid": "5c3a", "generation": 3, "annotations": annotations
        },
        "spec": spec
    }))
    .expect("a cache")
}

fn accepted(backend: &str, spec: Value) -> Accepted {
    accept(&cache(backend, spec), &options()).unwrap_or_else(|refusal| panic!("{refusal}"))
}

/// The objects as they are sent.
fn sent(accepted: &Accepted) -> Vec<Value> {
    desired(accepted).iter().map(|object| object.to_json().expect("JSON")).collect()
}

/// The object of this kind and name.
fn one(accepted: &Accepted, kind: &str, name: &str) -> Value {
    let found = desired(accepted).into_iter().find(|object| object.kind() == kind && object.name() == name);
    found.unwrap_or_else(|| panic!("no {kind} {name}")).to_json().expect("JSON")
}

/// The servers' only container.
fn container(accepted: &Accepted) -> Value {
    one(accepted, "StatefulSet", "prompts")["spec"]["template"]["spec"]["containers"][0].clone()
}

fn names(objects: &[Desired]) -> Vec<String> {
    objects.iter().map(|object| format!("{} {}", object.kind(), object.name())).collect()
}

/// A cache of each shape that there is.
fn shapes() -> Vec<(&'static str, Accepted)> {
    vec![
        (
            "kvcache",
            accepted(
                "kvcache",
                json!({"cache": {"replicas": 3, "resources": {"limits": {"memory": "40Gi"}}}}),
            ),
        ),
        (
            "kvcache_rdma_redis",
            accepted(
                "kvcache",
                json!({
                    "cache": {
                        "replicas": 2,
                        "image": "registry.example/kvcache:2.0",
                        "imagePullPolicy": "Always",
                        "env": [{"name": "RUST_LOG", "value": "debug"}],
                        "resources": {
                            "requests": {"cpu": "8000m", "memory": "64Gi"},
                            "limits": {"memory": "64Gi", "vke.volcengine.com/rdma": "1"}
                        }
                    },
                    "metadata": {"redis": {"runtime": {
                        "resources": {"limits": {"cpu": "1000m", "memory": "1Gi"}}
                    }}},
                    "service": {"ports": [
                        {"name": "service", "port": 7000, "targetPort": 7000},
                        {"name": "admin", "port": 7001, "targetPort": 7001}
                    ]},
                    "server": {"capacity": "48Gi", "ring": {"perClusterKey": true}}
                }),
            ),
        ),
        (
            "infinistore_as_aibrix",
            accepted(
                "infinistore",
                json!({
                    "metadata": {"redis": {"runtime": {"image": "registry.example/redis:7.4.2", "replicas": 1}}},
                    "service": {"type": "ClusterIP", "ports": [
                        {"name": "service", "port": 12345, "targetPort": 12345, "protocol": "TCP"},
                        {"name": "admin", "port": 8088, "targetPort": 8088, "protocol": "TCP"}
                    ]},
                    "watcher": {"image": "registry.example/kvcache-watcher:v0.3.0"},
                    "cache": {
                        "replicas": 1,
                        "image": "registry.example/infinistore:v0.2.42",
                        "resources": {
                            "requests": {"cpu": "10000m", "memory": "120Gi", "vke.volcengine.com/rdma": "1"},
                            "limits": {"cpu": "10000m", "memory": "120Gi", "vke.volcengine.com/rdma": "1"}
                        }
                    }
                }),
            ),
        ),
        (
            "infinistore_template_external_redis",
            accepted(
                "infinistore",
                json!({
                    "metadata": {"redis": {"externalConnection": {
                        "address": "redis.data:6379", "passwordSecretRef": "login/redis"
                    }}},
                    "cache": {"replicas": 3, "template": {
                        "metadata": {"labels": {"team": "models"}},
                        "spec": {"containers": [{
                            "name": "infinistore",
                            "image": "registry.example/infinistore:v0.2.42",
                            "command": ["infinistore"],
                            "args": ["--service-port=12345"],
                            "ports": [{"containerPort": 12345}],
                            "resources": {"limits": {"memory": "120Gi", "rdma/hca": 1}}
                        }]}
                    }}
                }),
            ),
        ),
        (
            "redis_with_password",
            accepted(
                "kvcache",
                json!({"metadata": {"redis": {"runtime": {"env": [{
                    "name": "REDIS_PASSWORD",
                    "valueFrom": {"secretKeyRef": {"name": "login", "key": "redis"}}
                }]}}}}),
            ),
        ),
    ]
}
