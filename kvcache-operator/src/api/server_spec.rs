//! What AIBrix's fields cannot say of the cache servers.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{rules, schema};

/// Memory and ring of the cache servers.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules::server()))]
pub struct ServerSpec {
    /// Memory of one server for blocks, such as `32Gi`. Left out: nine tenths of the memory limit, as in AIBrix, less
    /// if the headroom needs more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::quantity")]
    pub capacity: Option<Quantity>,
    /// Memory that a server needs beside the blocks; `512Mi` if left out. Capacity and headroom fit into the limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::quantity")]
    pub headroom: Option<Quantity>,
    /// When a pod enters the ring and leaves it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ring: Option<RingSpec>,
}

/// When a pod enters the ring and leaves it.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RingSpec {
    /// Seconds for which a pod is ready before it gets slots; 10 if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 3600))]
    pub min_ready_seconds: Option<u32>,
    /// Seconds for which a pod that is not ready, restarts or is gone keeps its slots; 60 if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 86400))]
    pub not_ready_grace_seconds: Option<u32>,
    /// Publishes to `kvcache_nodes/<namespace>/<name>` in Redis instead of AIBrix's `kvcache_nodes`, so that several
    /// caches share one Redis.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_cluster_key: Option<bool>,
}
