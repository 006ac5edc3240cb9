//! Kubernetes' objects of a cache, one function each.

mod redis;
mod server_container;
mod servers;

use k8s_openapi::api::core::v1::{Service, ServiceAccount, ServiceSpec};
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

pub(super) use redis::{redis, redis_service};
pub(super) use servers::servers;

use super::desired::{Role, label_selector, metadata, names, selecting};
use crate::api::Accepted;

/// The servers' account. They never talk to the API server, so it has no token and no rights.
pub(super) fn account(accepted: &Accepted) -> ServiceAccount {
    ServiceAccount {
        metadata: metadata(accepted, names::servers(&accepted.name), Role::Cache),
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    }
}

/// The servers' names in DNS. Only those that are ready are published: who connects by this name wants to be served,
/// and the ring does not need it.
pub(super) fn headless_service(accepted: &Accepted) -> Service {
    Service {
        metadata: metadata(accepted, names::headless_service(&accepted.name), Role::Cache),
        spec: Some(ServiceSpec {
            type_: Some("ClusterIP".to_owned()),
            cluster_ip: Some("None".to_owned()),
            ports: Some(accepted.service_ports.clone()),
            selector: Some(selecting(&accepted.name, Role::Cache)),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

/// One server at a time may be evicted: each takes its share of the cache with it. A lone server may be, too, or its
/// node could never be drained.
pub(super) fn disruption_budget(accepted: &Accepted) -> PodDisruptionBudget {
    PodDisruptionBudget {
        metadata: metadata(accepted, names::servers(&accepted.name), Role::Cache),
        spec: Some(PodDisruptionBudgetSpec {
            max_unavailable: Some(IntOrString::Int(1)),
            selector: Some(label_selector(&accepted.name, Role::Cache)),
            ..PodDisruptionBudgetSpec::default()
        }),
        ..PodDisruptionBudget::default()
    }
}
