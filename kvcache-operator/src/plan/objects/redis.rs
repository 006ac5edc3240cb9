//! A Redis for AIBrix's engines: one pod that holds one key.
//!
//! AIBrix runs it as a bare pod, which is gone with its node. Here a StatefulSet brings it back. It keeps nothing over a
//! restart, and need not: the operator publishes the ring again as soon as the key is missing.
//!
//! It has no password unless the cache's `runtime.env` takes `REDIS_PASSWORD` from a Secret. AIBrix's engines are
//! configured without one, so that making one up would cut them off; what the key holds is no secret, but whoever can
//! write it can redirect engines, so that a NetworkPolicy or a password is in order where the cluster is shared.

use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetSpec, StatefulSetUpdateStrategy};
use k8s_openapi::api::core::v1::{
    Capabilities, Container, ContainerPort, PodSecurityContext, PodSpec, PodTemplateSpec, Probe,
    ResourceRequirements, SeccompProfile, SecurityContext, Service, ServicePort, ServiceSpec,
    TCPSocketAction,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::servers::labelled;
use crate::api::{Accepted, REDIS_PASSWORD, REDIS_PORT, RedisRuntime, SERVE_PORT_NAME};
use crate::plan::desired::{Role, label_selector, metadata, names, pod_labels, selecting};

/// Redis, as one pod.
pub(in crate::plan) fn redis(accepted: &Accepted, redis: &RedisRuntime) -> StatefulSet {
    let template = match &redis.template {
        Some(template) => labelled(accepted, template, Role::Metadata),
        None => built(accepted, redis),
    };
    StatefulSet {
        metadata: metadata(accepted, names::redis(&accepted.name), Role::Metadata),
        spec: Some(StatefulSetSpec {
            replicas: Some(1),
            service_name: Some(names::redis(&accepted.name)),
            update_strategy: Some(StatefulSetUpdateStrategy {
                type_: Some("RollingUpdate".to_owned()),
                ..StatefulSetUpdateStrategy::default()
            }),
            selector: label_selector(&accepted.name, Role::Metadata),
            template,
            ..StatefulSetSpec::default()
        }),
        ..StatefulSet::default()
    }
}

/// Where engines find it.
pub(in crate::plan) fn redis_service(accepted: &Accepted) -> Service {
    Service {
        metadata: metadata(accepted, names::redis(&accepted.name), Role::Metadata),
        spec: Some(ServiceSpec {
            type_: Some("ClusterIP".to_owned()),
            ports: Some(vec![ServicePort {
                name: Some(SERVE_PORT_NAME.to_owned()),
                port: REDIS_PORT.into(),
                protocol: Some("TCP".to_owned()),
                target_port: Some(IntOrString::Int(REDIS_PORT.into())),
                ..ServicePort::default()
            }]),
            selector: Some(selecting(&accepted.name, Role::Metadata)),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

fn built(accepted: &Accepted, redis: &RedisRuntime) -> PodTemplateSpec {
    PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: Some(pod_labels(&accepted.name, Role::Metadata)),
            ..ObjectMeta::default()
        }),
        spec: Some(PodSpec {
            service_account_name: Some(names::servers(&accepted.name)),
            automount_service_account_token: Some(false),
            enable_service_links: Some(false),
            security_context: Some(PodSecurityContext {
                run_as_non_root: Some(true),
                run_as_user: Some(USER),
                run_as_group: Some(USER),
                seccomp_profile: Some(SeccompProfile {
                    type_: "RuntimeDefault".to_owned(),
                    ..SeccompProfile::default()
                }),
                ..PodSecurityContext::default()
            }),
            containers: vec![container(redis)],
            ..PodSpec::default()
        }),
    }
}

/// The user of Redis's own images.
const USER: i64 = 999;

fn container(redis: &RedisRuntime) -> Container {
    // Without a password, Redis as it is built from its sources would listen to its own pod alone.
    let access = match redis.password {
        Some(_) => ["--requirepass".to_owned(), format!("$({REDIS_PASSWORD})")],
        None => ["--protected-mode".to_owned(), "no".to_owned()],
    };
    let port = ["--port".to_owned(), REDIS_PORT.to_string()];
    let keep_nothing = ["--save", "", "--appendonly", "no"].map(str::to_owned);
    // It listens when it can answer, as there is nothing to be read from a disk.
    let listens = |period_s: i32, failures: i32| Probe {
        tcp_socket: Some(TCPSocketAction {
            port: IntOrString::String(PORT_NAME.to_owned()),
            ..TCPSocketAction::default()
        }),
        period_seconds: Some(period_s),
        timeout_seconds: Some(2),
        failure_threshold: Some(failures),
        ..Probe::default()
    };
    Container {
        name: "redis".to_owned(),
        image: Some(redis.image.clone()),
        image_pull_policy: Some(redis.pull_policy.name().to_owned()),
        command: Some(vec!["redis-server".to_owned()]),
        args: Some(port.into_iter().chain(access).chain(keep_nothing).collect()),
        env: Some(redis.env.clone()).filter(|env| !env.is_empty()),
        ports: Some(vec![ContainerPort {
            name: Some(PORT_NAME.to_owned()),
            container_port: REDIS_PORT.into(),
            protocol: Some("TCP".to_owned()),
            ..ContainerPort::default()
        }]),
        resources: Some(redis.resources.clone())
            .filter(|resources| *resources != ResourceRequirements::default()),
        readiness_probe: Some(listens(5, 2)),
        liveness_probe: Some(listens(10, 6)),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            capabilities: Some(Capabilities {
                drop: Some(vec!["ALL".to_owned()]),
                ..Capabilities::default()
            }),
            read_only_root_filesystem: Some(true),
            ..SecurityContext::default()
        }),
        ..Container::default()
    }
}

const PORT_NAME: &str = "redis";
