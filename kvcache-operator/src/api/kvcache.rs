//! The resource itself. Names and defaults of fields are AIBrix's, whatever they are called here.

use k8s_openapi::api::core::v1::ServicePort;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{KVCacheStatus, RuntimeSpec, ServerSpec, rules, schema};

/// A distributed KV cache: a ring of cache servers and what engines need to find it.
#[derive(CustomResource, Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "orchestration.aibrix.ai",
    version = "v1alpha1",
    kind = "KVCache",
    plural = "kvcaches",
    namespaced,
    status = "KVCacheStatus",
    derive = "Default",
    derive = "PartialEq",
    doc = "A ring of KV cache servers and what engines need to find it.",
    shortname = "kvc",
    scale(
        spec_replicas_path = ".spec.cache.replicas",
        status_replicas_path = ".status.current",
        label_selector_path = ".status.selector"
    ),
    printcolumn = r#"{"name":"Backend","type":"string","jsonPath":".status.backend","description":"What runs in the pods"}"#,
    printcolumn = r#"{"name":"Ready","type":"integer","jsonPath":".status.current","description":"Servers that are ready"}"#,
    printcolumn = r#"{"name":"Ring","type":"integer","jsonPath":".status.ringMembers","description":"Members of the published ring"}"#,
    printcolumn = r#"{"name":"Available","type":"string","jsonPath":".status.conditions[?(@.type==\"Available\")].status","description":"Whether engines can use it"}"#,
    printcolumn = r#"{"name":"Desired","type":"integer","jsonPath":".status.desired","description":"Servers that were asked for","priority":1}"#,
    printcolumn = r#"{"name":"Version","type":"integer","jsonPath":".status.ringVersion","description":"Version of the published ring","priority":1}"#,
    printcolumn = r#"{"name":"Accepted","type":"string","jsonPath":".status.conditions[?(@.type==\"Accepted\")].reason","description":"Why the spec is served, or is not","priority":1}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
#[schemars(transform = schema::without_null, extend("x-kubernetes-validations" = rules::spec()))]
pub struct KVCacheSpec {
    /// AIBrix's deployment mode. Nothing reads it: the annotation `kvcache.orchestration.aibrix.ai/backend` chooses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = "distributed"))]
    pub mode: Option<String>,
    /// Where the ring is published besides its ConfigMap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<MetadataSpec>,
    /// The cache servers.
    // Present even where it is left out, or the scale subresource has no replicas to show. AIBrix defaults an image
    // too, vineyard's: once stored nobody can tell it from one that was asked for, so it is not defaulted here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = {}))]
    pub cache: Option<RuntimeSpec>,
    /// AIBrix's watcher. Accepted, and starts nothing: the operator publishes the ring itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watcher: Option<RuntimeSpec>,
    /// The servers' service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceSpec>,
    /// Memory and ring of the cache servers. An addition to AIBrix's fields.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<ServerSpec>,
}

/// The stores that AIBrix's engines read the ring from.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MetadataSpec {
    /// Redis: the ring's JSON under one key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redis: Option<MetadataStore>,
    /// etcd, which only AIBrix's vineyard backend uses. Not served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etcd: Option<MetadataStore>,
}

/// A store that is there already, or one to run: exactly one of them.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules::metadata_store()))]
pub struct MetadataStore {
    /// One that somebody else runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_connection: Option<ExternalConnection>,
    /// One that the operator runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<RuntimeSpec>,
}

/// How to reach a store that somebody else runs.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules::external_connection()))]
pub struct ExternalConnection {
    /// `host:port`; an IPv6 address in brackets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 262))]
    pub address: Option<String>,
    /// The password's Secret in the same namespace: `secret` (then the key is `password`) or `secret/key`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 507))]
    pub password_secret_ref: Option<String>,
}

/// The servers' service, of the name `<name>-headless-service`.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules::service()))]
pub struct ServiceSpec {
    /// The service's type. Servers are found one by one, so that only `ClusterIP` is served.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = "ClusterIP"), length(max = 32))]
    pub type_: Option<String>,
    /// Its ports.
    #[schemars(schema_with = "schema::service_ports")]
    pub ports: Vec<ServicePort>,
}
