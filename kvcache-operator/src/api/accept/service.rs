//! Ports: where servers listen, and what the headless service says of it.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{ContainerPort, ServicePort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::api::refusal::Problems;
use crate::api::{Pods, Ports, ServiceSpec};

/// Ports of AIBrix's InfiniStore; ours are the same.
const DEFAULT: Ports = Ports { serve: 12345, manage: 8088 };
/// Names of the port for clients and of the one for management. AIBrix's samples call the latter `admin`.
pub(crate) const SERVE: &str = "service";
pub(crate) const MANAGE: &str = "manage";
const MANAGE_TOO: &str = "admin";

/// Where the servers listen, and the service's ports.
///
/// The service has no address of its own, so that a port of it is the servers' port: the one called `service` (or the
/// only one) is where they serve, the one called `manage` or `admin` where they are managed.
pub(super) fn ports(
    service: Option<&ServiceSpec>,
    pods: Option<&Pods>,
    problems: &mut Problems,
    notes: &mut Vec<String>,
) -> (Ports, Vec<ServicePort>) {
    let Some(service) = service else { return (DEFAULT, by_default()) };
    if let Some(kind) = service.type_.as_deref().filter(|kind| !kind.is_empty() && *kind != "ClusterIP") {
        problems.add(
            "spec.service.type",
            format!(
                "{kind:?} cannot be: engines talk to each server by itself; leave it out, or write ClusterIP"
            ),
        );
    }
    if service.ports.is_empty() {
        return (DEFAULT, by_default());
    }
    check(&service.ports, problems);
    let declared = declared(pods);
    let mut listening = DEFAULT;
    let only = service.ports.len() == 1;
    let mut listed = Vec::with_capacity(service.ports.len());
    for (index, port) in service.ports.iter().enumerate() {
        let name = port.name.as_deref().unwrap_or_default();
        let field = format!("spec.service.ports[{index}].targetPort");
        let target = match port.target_port.as_ref().unwrap_or(&IntOrString::Int(port.port)) {
            IntOrString::Int(number) => *number,
            IntOrString::String(name) => match by_name(name, &declared) {
                Some(number) => number,
                None => {
                    problems.add(field, format!("no container has a port called {name:?}: give its number"));
                    continue;
                }
            },
        };
        let Some(target) = u16::try_from(target).ok().filter(|target| *target > 0) else {
            // Left out, it is the port itself, of which this has been said.
            if port.target_port.is_some() {
                problems.add(field, format!("{target} is no port: give 1 to 65535"));
            }
            continue;
        };
        match name {
            SERVE => listening.serve = target,
            MANAGE | MANAGE_TOO => listening.manage = target,
            _ if only => listening.serve = target,
            _ if matches!(pods, Some(Pods::Built(_))) => {
                notes.push(format!(
                    "{field}: no server listens on {target}; they do on those called {SERVE} and {MANAGE}"
                ));
            }
            _ => {}
        }
        listed.push(ServicePort {
            protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
            target_port: Some(port.target_port.clone().unwrap_or(IntOrString::Int(target.into()))),
            node_port: None,
            ..port.clone()
        });
    }
    if listening.serve == listening.manage {
        problems.add(
            "spec.service.ports",
            format!(
                "servers cannot serve and be managed on one port, {}: change one of them",
                listening.serve
            ),
        );
    }
    (listening, listed)
}

fn by_default() -> Vec<ServicePort> {
    let port = |name: &str, number: u16| ServicePort {
        name: Some(name.to_owned()),
        port: number.into(),
        protocol: Some("TCP".to_owned()),
        target_port: Some(IntOrString::Int(number.into())),
        ..ServicePort::default()
    };
    vec![port(SERVE, DEFAULT.serve), port(MANAGE, DEFAULT.manage)]
}

/// Ports that containers of a template declare.
fn declared(pods: Option<&Pods>) -> Vec<&ContainerPort> {
    let Some(Pods::Template(template)) = pods else { return Vec::new() };
    let containers = template.spec.iter().flat_map(|spec| &spec.containers);
    containers.flat_map(|container| container.ports.iter().flatten()).collect()
}

/// The number of a container's port. The operator's own containers have the two by their names.
fn by_name(name: &str, declared: &[&ContainerPort]) -> Option<i32> {
    let port = declared.iter().find(|port| port.name.as_deref() == Some(name));
    port.map(|port| port.container_port).or(match name {
        SERVE if declared.is_empty() => Some(DEFAULT.serve.into()),
        MANAGE if declared.is_empty() => Some(DEFAULT.manage.into()),
        _ => None,
    })
}

fn check(ports: &[ServicePort], problems: &mut Problems) {
    let (mut names, mut numbers) = (BTreeSet::new(), BTreeSet::new());
    for (index, port) in ports.iter().enumerate() {
        let field = format!("spec.service.ports[{index}]");
        let name = port.name.as_deref().unwrap_or_default();
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        if !(1..=65535).contains(&port.port) {
            problems.add(format!("{field}.port"), format!("{} is no port: give 1 to 65535", port.port));
        }
        if !["TCP", "UDP", "SCTP"].contains(&protocol) {
            problems.add(
                format!("{field}.protocol"),
                format!("{protocol:?} is unknown: leave it out, or write TCP"),
            );
        } else if protocol != "TCP" && (name == SERVE || ports.len() == 1) {
            problems
                .add(format!("{field}.protocol"), format!("servers speak TCP, not {protocol}: leave it out"));
        }
        if port.node_port.is_some_and(|number| number != 0) {
            problems
                .add(format!("{field}.nodePort"), "a headless service has no ports on nodes: leave it out");
        }
        if name.is_empty() && ports.len() > 1 {
            problems.add(format!("{field}.name"), format!("of several ports each has a name, as in {SERVE}"));
        } else if !names.insert(name) {
            problems
                .add(format!("{field}.name"), format!("two ports are called {name:?}: rename one of them"));
        }
        if !numbers.insert((port.port, protocol)) {
            problems
                .add(format!("{field}.port"), format!("{} is listed twice: change one of them", port.port));
        }
    }
    let both = [MANAGE, MANAGE_TOO].iter().all(|name| names.contains(name));
    if both {
        problems
            .add("spec.service.ports", format!("{MANAGE} and {MANAGE_TOO} are the same: keep one of them"));
    }
}
