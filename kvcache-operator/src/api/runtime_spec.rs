//! How a component's pods run, as AIBrix describes it for servers, stores and watcher alike.

use k8s_openapi::api::core::v1::{EnvVar, PodTemplateSpec, ResourceRequirements};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{rules, schema};

/// The pods of a component.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules::runtime()))]
pub struct RuntimeSpec {
    /// How many pods; 1 if left out.
    // The default is stored, and belongs to no manager: whoever leaves replicas out can let an autoscaler set them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    // The ring has 4096 slots, and each server needs one.
    #[schemars(extend("default" = 1), range(min = 0, max = 4096))]
    pub replicas: Option<i32>,
    /// The container's image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// `Always`, `IfNotPresent` (if left out) or `Never`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = "IfNotPresent"), length(max = 32))]
    pub image_pull_policy: Option<String>,
    /// Environment of the container, besides what the operator sets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::env")]
    pub env: Option<Vec<EnvVar>>,
    /// Requests and limits of the container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::resources")]
    pub resources: Option<ResourceRequirements>,
    /// A whole pod template. Replaces all of the above but the count of pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::pod_template")]
    pub template: Option<PodTemplateSpec>,
}
