//! The container of a server: what it is told, what it may do, and how it is known to be well.

use k8s_openapi::api::core::v1::{
    Capabilities, Container, ContainerPort, EnvVar, EnvVarSource, HTTPGetAction, ObjectFieldSelector, Probe,
    ResourceRequirements, SecurityContext, TCPSocketAction, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::api::{Accepted, Backend, MANAGE_PORT_NAME, SERVE_PORT_NAME, SERVER_CONTAINER, ServerPod};

/// The volume behind `/dev/shm`.
pub(super) const SHARED_MEMORY: &str = "shared-mem";

pub(super) fn server_container(accepted: &Accepted, pod: &ServerPod) -> Container {
    let (command, args) = match accepted.backend {
        Backend::KvCache => ("kvcache", serve(accepted, pod)),
        Backend::InfiniStore => ("infinistore", infinistore(accepted, pod)),
    };
    let [startup, readiness, liveness] = probes(accepted.backend);
    Container {
        name: SERVER_CONTAINER.to_owned(),
        image: Some(pod.image.clone()),
        image_pull_policy: Some(pod.pull_policy.name().to_owned()),
        command: Some(vec![command.to_owned()]),
        args: Some(args),
        env: Some(env(accepted, pod)),
        ports: Some(vec![
            port(SERVE_PORT_NAME, accepted.ports.serve),
            port(MANAGE_PORT_NAME, accepted.ports.manage),
        ]),
        resources: Some(pod.resources.clone())
            .filter(|resources| *resources != ResourceRequirements::default()),
        startup_probe: Some(startup),
        readiness_probe: Some(readiness),
        liveness_probe: Some(liveness),
        security_context: Some(security(accepted.backend, pod)),
        volume_mounts: pod.shared_memory_bytes.map(|_| {
            vec![VolumeMount {
                name: SHARED_MEMORY.to_owned(),
                mount_path: "/dev/shm".to_owned(),
                ..VolumeMount::default()
            }]
        }),
        ..Container::default()
    }
}

/// Settings of `kvcache serve`. RDMA is off or required, never tried: a pod that asked for a device and has none that
/// works must not look well.
fn serve(accepted: &Accepted, pod: &ServerPod) -> Vec<String> {
    let mut args = vec![
        "serve".to_owned(),
        "--listen".to_owned(),
        format!("$(MY_POD_IP):{}", accepted.ports.serve),
        "--manage".to_owned(),
        format!("$(MY_POD_IP):{}", accepted.ports.manage),
        "--capacity".to_owned(),
        pod.capacity_bytes.to_string(),
        "--rdma".to_owned(),
    ];
    match &pod.rdma {
        None => args.push("off".to_owned()),
        Some(_) => args.extend([
            "required".to_owned(),
            "--rdma-max-connections".to_owned(),
            rdma_connections(pod.headroom_bytes).to_string(),
        ]),
    }
    args
}

/// Queue pairs that fit: each pins 6 MiB beside the blocks. They have half of the headroom, and are never more than
/// `kvcache serve` has by default.
fn rdma_connections(headroom_bytes: u64) -> u64 {
    const BYTES_EACH: u64 = 6 << 20;
    const MAX: u64 = 512;
    (headroom_bytes / 2 / BYTES_EACH).clamp(1, MAX)
}

/// Arguments of InfiniStore's server, as AIBrix gives them.
fn infinistore(accepted: &Accepted, pod: &ServerPod) -> Vec<String> {
    vec![
        format!("--service-port={}", accepted.ports.serve),
        format!("--manage-port={}", accepted.ports.manage),
        format!("--link-type={}", pod.infinistore.link_type),
        format!("--hint-gid-index={}", pod.infinistore.gid_index),
        // In GiB, of which the capacity is a multiple.
        format!("--prealloc-size={}", pod.capacity_bytes >> 30),
    ]
}

/// AIBrix's variables, then the user's. What the user names wins, and keeps its place among the user's: a variable may
/// refer to those before it.
fn env(accepted: &Accepted, pod: &ServerPod) -> Vec<EnvVar> {
    let field = |name: &str, path: &str| EnvVar {
        name: name.to_owned(),
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                field_path: path.to_owned(),
                ..ObjectFieldSelector::default()
            }),
            ..EnvVarSource::default()
        }),
        ..EnvVar::default()
    };
    let value = |name: &str, value: &str| EnvVar {
        name: name.to_owned(),
        value: Some(value.to_owned()),
        ..EnvVar::default()
    };
    let ours = [
        field("MY_HOST_NAME", "status.podIP"),
        field("MY_NODE_NAME", "spec.nodeName"),
        field("MY_POD_NAME", "metadata.name"),
        field("MY_POD_NAMESPACE", "metadata.namespace"),
        field("MY_POD_IP", "status.podIP"),
        field("MY_UID", "metadata.uid"),
        value("AIBRIX_KVCACHE_UID", &accepted.uid),
        value("AIBRIX_KVCACHE_NAME", &accepted.name),
        value("AIBRIX_KVCACHE_NAMESPACE", &accepted.namespace),
        value("AIBRIX_KVCACHE_BACKEND", accepted.backend.name()),
        value("AIBRIX_KVCACHE_RDMA_PORT", &accepted.ports.serve.to_string()),
        value("AIBRIX_KVCACHE_ADMIN_PORT", &accepted.ports.manage.to_string()),
    ];
    let is_users = |variable: &EnvVar| pod.env.iter().any(|users| users.name == variable.name);
    ours.into_iter().filter(|variable| !is_users(variable)).chain(pod.env.iter().cloned()).collect()
}

fn port(name: &str, number: u16) -> ContainerPort {
    ContainerPort {
        name: Some(name.to_owned()),
        container_port: number.into(),
        protocol: Some("TCP".to_owned()),
        ..ContainerPort::default()
    }
}

/// Startup, readiness and liveness. InfiniStore has no route for them, but listens only once its pool is there.
fn probes(backend: Backend) -> [Probe; 3] {
    let ask = |route: &str| match backend {
        Backend::KvCache => Probe {
            http_get: Some(HTTPGetAction {
                path: Some(route.to_owned()),
                port: IntOrString::String(MANAGE_PORT_NAME.to_owned()),
                ..HTTPGetAction::default()
            }),
            ..Probe::default()
        },
        Backend::InfiniStore => Probe {
            tcp_socket: Some(TCPSocketAction {
                port: IntOrString::String(SERVE_PORT_NAME.to_owned()),
                ..TCPSocketAction::default()
            }),
            ..Probe::default()
        },
    };
    let every = |probe: Probe, period_s: i32, timeout_s: i32, failures: i32| Probe {
        period_seconds: Some(period_s),
        timeout_seconds: Some(timeout_s),
        failure_threshold: Some(failures),
        ..probe
    };
    [
        // Pinning memory takes about a second for each GiB: ten minutes are enough for 512 GiB.
        every(ask("/readyz"), 2, 2, 300),
        every(ask("/readyz"), 5, 2, 2),
        // A server that is merely busy must not lose its blocks.
        every(ask("/healthz"), 10, 5, 6),
    ]
}

/// No right but that of pinning memory, and only where there is a device to pin it for. InfiniStore raises limits as
/// well, and nobody says that its image can do without writing to its root.
fn security(backend: Backend, pod: &ServerPod) -> SecurityContext {
    let added: &[&str] = match (backend, &pod.rdma) {
        (_, None) => &[],
        (Backend::KvCache, Some(_)) => &["IPC_LOCK"],
        (Backend::InfiniStore, Some(_)) => &["IPC_LOCK", "SYS_RESOURCE"],
    };
    SecurityContext {
        allow_privilege_escalation: Some(false),
        capabilities: Some(Capabilities {
            add: Some(added.iter().map(|&name| name.to_owned()).collect())
                .filter(|all: &Vec<_>| !all.is_empty()),
            drop: Some(vec!["ALL".to_owned()]),
        }),
        read_only_root_filesystem: (backend == Backend::KvCache).then_some(true),
        ..SecurityContext::default()
    }
}
