//! The servers' StatefulSet.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetSpec, StatefulSetUpdateStrategy};
use k8s_openapi::api::core::v1::{
    EmptyDirVolumeSource, PodSecurityContext, PodSpec, PodTemplateSpec, SeccompProfile,
    TopologySpreadConstraint, Volume,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::server_container::{SHARED_MEMORY, server_container};
use crate::api::{Accepted, Backend, Pods, ServerPod, annotation, of_bytes};
use crate::plan::desired::{Role, label_selector, metadata, names, pod_labels, selecting};

/// The servers.
///
/// They know nothing of each other, so they start and stop side by side; a rolling update still goes one by one. Its
/// service gives them names, and its pods keep theirs over a restart: a name is what the ring places blocks by.
pub(in crate::plan) fn servers(accepted: &Accepted) -> StatefulSet {
    let template = match &accepted.workload.pods {
        Pods::Built(pod) => built(accepted, pod),
        Pods::Template(template) => labelled(accepted, template, Role::Cache),
    };
    StatefulSet {
        metadata: metadata(accepted, names::servers(&accepted.name), Role::Cache),
        spec: Some(StatefulSetSpec {
            // At most 4096.
            replicas: i32::try_from(accepted.workload.replicas).ok(),
            service_name: Some(names::headless_service(&accepted.name)),
            pod_management_policy: Some("Parallel".to_owned()),
            update_strategy: Some(StatefulSetUpdateStrategy {
                type_: Some("RollingUpdate".to_owned()),
                ..StatefulSetUpdateStrategy::default()
            }),
            selector: label_selector(&accepted.name, Role::Cache),
            template,
            ..StatefulSetSpec::default()
        }),
        ..StatefulSet::default()
    }
}

/// The user's template with the labels that its pods are found by.
pub(super) fn labelled(accepted: &Accepted, template: &PodTemplateSpec, role: Role) -> PodTemplateSpec {
    let mut template = template.clone();
    let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
    labels.extend(selecting(&accepted.name, role));
    template
}

fn built(accepted: &Accepted, pod: &ServerPod) -> PodTemplateSpec {
    let mut annotations = BTreeMap::from([
        ("prometheus.io/scrape".to_owned(), "true".to_owned()),
        ("prometheus.io/port".to_owned(), accepted.ports.manage.to_string()),
        ("prometheus.io/path".to_owned(), "/metrics".to_owned()),
    ]);
    if let Some(networks) = pod.rdma.as_ref().and_then(|rdma| rdma.pod_networks.clone()) {
        annotations.insert(annotation::POD_NETWORKS.to_owned(), networks);
    }
    let shared_memory = pod.shared_memory_bytes.map(|bytes| Volume {
        name: SHARED_MEMORY.to_owned(),
        empty_dir: Some(EmptyDirVolumeSource {
            medium: Some("Memory".to_owned()),
            size_limit: Some(of_bytes(bytes)),
        }),
        ..Volume::default()
    });
    PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: Some(pod_labels(&accepted.name, Role::Cache)),
            annotations: Some(annotations),
            ..ObjectMeta::default()
        }),
        spec: Some(PodSpec {
            service_account_name: Some(names::servers(&accepted.name)),
            automount_service_account_token: Some(false),
            // Variables for every service of the namespace: nothing reads them, and they can be thousands.
            enable_service_links: Some(false),
            termination_grace_period_seconds: Some(TERMINATION_GRACE_S),
            security_context: Some(security(accepted.backend, pod)),
            topology_spread_constraints: Some(vec![TopologySpreadConstraint {
                max_skew: 1,
                topology_key: "kubernetes.io/hostname".to_owned(),
                // Rather two servers on a node than one that waits.
                when_unsatisfiable: "ScheduleAnyway".to_owned(),
                label_selector: Some(label_selector(&accepted.name, Role::Cache)),
                ..TopologySpreadConstraint::default()
            }]),
            containers: vec![server_container(accepted, pod)],
            volumes: shared_memory.map(|volume| vec![volume]),
            ..PodSpec::default()
        }),
    }
}

/// `kvcache serve` drains by itself when it is told to end: it is not ready any more, tells its clients, finishes what
/// runs for five seconds and exits. The rest is for a machine that is slow. A hook before that would only make
/// updates longer: a server that ends takes its blocks with it, however long it waits.
const TERMINATION_GRACE_S: i64 = 30;

/// The user that distroless images call `nonroot`.
const USER: i64 = 65532;

/// Ours need no right of root's, but for RDMA: Kubernetes gives a capability to root alone, and pinning memory needs
/// `IPC_LOCK`. So they are root without any other capability then. InfiniStore's image says which user it wants.
fn security(backend: Backend, pod: &ServerPod) -> PodSecurityContext {
    let seccomp = SeccompProfile { type_: "RuntimeDefault".to_owned(), ..SeccompProfile::default() };
    let (user, non_root) = match (backend, &pod.rdma) {
        (Backend::KvCache, None) => (Some(USER), Some(true)),
        (Backend::KvCache, Some(_)) => (Some(0), None),
        (Backend::InfiniStore, _) => (None, None),
    };
    PodSecurityContext {
        run_as_user: user,
        run_as_group: user,
        run_as_non_root: non_root,
        seccomp_profile: Some(seccomp),
        ..PodSecurityContext::default()
    }
}
