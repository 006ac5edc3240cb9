//! What an engine needs to know of a cache, in one ConfigMap.
//!
//! | key | what it is |
//! |---|---|
//! | `KV_TRANSFER_CONFIG` | the argument of vLLM's `--kv-transfer-config` |
//! | `AIBRIX_KV_CACHE_OL_...` | AIBrix's variables, where there is a Redis without a password |
//! | `engine.yaml` | what to add to an engine's pod |
//!
//! Keys are names of variables, so that `envFrom` takes them all. The ring itself is in the ConfigMap `<name>-ring`,
//! which is mounted as a folder and then follows the ring without a restart.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ConfigMap, Container};
use serde_json::json;

use super::desired::{Role, metadata, names};
use crate::api::{Accepted, Backend, Metadata, Pods, REDIS_PORT, is_rdma};

/// Where an engine's pod has the ring's ConfigMap.
pub const RING_FOLDER: &str = "/etc/kvcache/ring";

pub(super) fn config_map(accepted: &Accepted) -> ConfigMap {
    let rdma = has_rdma(accepted);
    let mut data = BTreeMap::from([
        ("KV_TRANSFER_CONFIG".to_owned(), kv_transfer_config(rdma)),
        ("engine.yaml".to_owned(), engine(accepted)),
    ]);
    if let Some(url) = redis_url(accepted) {
        for (name, value) in [
            ("L2_CACHE_BACKEND", "INFINISTORE"),
            ("INFINISTORE_CONNECTION_TYPE", if rdma { "RDMA" } else { "TCP" }),
            ("META_SERVICE_BACKEND", "REDIS"),
            ("META_SERVICE_URL", url.as_str()),
            ("META_SERVICE_CLUSTER_META_KEY", accepted.ring.redis_key.as_str()),
        ] {
            data.insert(format!("AIBRIX_KV_CACHE_OL_{name}"), value.to_owned());
        }
    }
    ConfigMap {
        metadata: metadata(accepted, names::connection(&accepted.name), Role::Cache),
        data: Some(data),
        ..ConfigMap::default()
    }
}

/// Engines follow the table as it was published, so that engines of two versions agree on it.
fn kv_transfer_config(rdma: bool) -> String {
    let transport = if rdma { "&transport=rdma" } else { "" };
    let remote = format!("file://{RING_FOLDER}/{}?placement=published{transport}", names::RING_KEY);
    json!({
        "kv_connector": "AIBrixOffloadingConnectorV1Type3",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"remote": remote}
    })
    .to_string()
}

/// Redis, if engines can use it with nothing but these variables: a password has no place in a ConfigMap.
fn redis_url(accepted: &Accepted) -> Option<String> {
    match &accepted.metadata {
        Metadata::InCluster(redis) if redis.password.is_none() => {
            let (service, namespace) = (names::redis(&accepted.name), &accepted.namespace);
            Some(format!("redis://{service}.{namespace}.svc:{REDIS_PORT}"))
        }
        Metadata::External { host, port, password: None } if host.contains(':') => {
            Some(format!("redis://[{host}]:{port}"))
        }
        Metadata::External { host, port, password: None } => Some(format!("redis://{host}:{port}")),
        _ => None,
    }
}

/// Whether engines reach the servers over RDMA: where their pods have a device for it.
fn has_rdma(accepted: &Accepted) -> bool {
    match &accepted.workload.pods {
        Pods::Built(pod) => pod.rdma.is_some(),
        Pods::Template(template) => {
            let limits =
                |container: &Container| container.resources.as_ref().and_then(|all| all.limits.clone());
            let containers = template.spec.iter().flat_map(|spec| &spec.containers);
            containers.filter_map(limits).flatten().any(|(name, amount)| is_rdma(&name) && amount.0 != "0")
        }
    }
}

fn engine(accepted: &Accepted) -> String {
    let (connection, ring) = (names::connection(&accepted.name), names::ring(&accepted.name));
    let server = match accepted.backend {
        Backend::KvCache => "kvcache serve",
        Backend::InfiniStore => "InfiniStore",
    };
    format!(
        r#"# Add this to the pod of an engine in the namespace {namespace}. The servers are {server}.
containers:
- name: engine
  args: ["--kv-transfer-config", "$(KV_TRANSFER_CONFIG)"]
  envFrom:
  - configMapRef: {{name: {connection}}}
  volumeMounts:
  - {{name: kvcache-ring, mountPath: {RING_FOLDER}, readOnly: true}}
volumes:
- name: kvcache-ring
  configMap: {{name: {ring}, optional: true}}
"#,
        namespace = accepted.namespace,
    )
}
