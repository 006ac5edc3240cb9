//! Environment, resources and ports of containers, in the form in which the API server stores them.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Container, EnvVar, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::api::PullPolicy;
use crate::api::quantity::Amount;
use crate::api::refusal::Problems;

type Amounts = BTreeMap<String, Quantity>;

/// The environment, each name once: of two the last counts, as in a container. Server-side apply refuses a list that
/// names one twice.
pub(super) fn env(field: &str, env: &[EnvVar], problems: &mut Problems) -> Vec<EnvVar> {
    let mut kept: Vec<EnvVar> = Vec::with_capacity(env.len());
    for (index, variable) in env.iter().enumerate() {
        let name = &variable.name;
        if name.is_empty() || name.contains('=') || name.starts_with(|c: char| c.is_ascii_digit()) {
            problems.add(
                format!("{field}[{index}].name"),
                format!(
                    "{name:?} is no name of a variable: take letters, digits and _, not starting with a digit"
                ),
            );
        }
        // The API server leaves out an empty value; what is applied does so too, to be equal to what is stored.
        let variable =
            EnvVar { value: variable.value.clone().filter(|value| !value.is_empty()), ..variable.clone() };
        if variable.value.is_some() && variable.value_from.is_some() {
            problems.add(
                format!("{field}[{index}]"),
                format!("{name} has both value and valueFrom: keep one of them"),
            );
        }
        kept.retain(|other| other.name != *name);
        kept.push(variable);
    }
    kept
}

/// Requests and limits with quantities in canonical form.
pub(super) fn resources(
    field: &str,
    resources: Option<&ResourceRequirements>,
    problems: &mut Problems,
) -> ResourceRequirements {
    let Some(resources) = resources else { return ResourceRequirements::default() };
    let limits = amounts(&format!("{field}.limits"), resources.limits.as_ref(), problems);
    let requests = amounts(&format!("{field}.requests"), resources.requests.as_ref(), problems);
    for (name, request) in requests.iter().flatten() {
        let limit = limits.as_ref().and_then(|limits| limits.get(name));
        let (Some(asked), allowed) = (Amount::parse(request), limit.and_then(Amount::parse)) else {
            continue;
        };
        let order = allowed.map(|allowed| asked.cmp_amount(allowed));
        let problem = match order {
            Some(order) if order.is_gt() => Some("is more than the limit"),
            // Devices are whole: Kubernetes lets nobody have a share of what another one may take.
            Some(order) if is_device(name) && order.is_lt() => {
                Some("differs from the limit, and devices are not shared")
            }
            None if is_device(name) => Some("needs a limit of the same number"),
            _ => None,
        };
        if let Some(problem) = problem {
            let limit = limit.map_or("none", |limit| limit.0.as_str());
            problems.add(
                format!("{field}.requests[{name}]"),
                format!("{} {problem} ({limit}): give request and limit the same value", request.0),
            );
        }
    }
    ResourceRequirements { limits, requests, ..resources.clone() }
}

fn is_device(name: &str) -> bool {
    name.contains('/')
}

/// Whether this is a limit on RDMA devices: `vke.volcengine.com/rdma`, `rdma/hca_shared_devices_a` and their like.
pub(crate) fn is_rdma(name: &str) -> bool {
    is_device(name) && name.to_ascii_lowercase().contains("rdma")
}

fn amounts(field: &str, amounts: Option<&Amounts>, problems: &mut Problems) -> Option<Amounts> {
    let amounts = amounts?.iter().map(|(name, quantity)| {
        let amount = Amount::parse(quantity).filter(|amount| !amount.is_negative());
        if amount.is_none() {
            problems.add(
                format!("{field}[{name}]"),
                format!("{:?} is no amount: write 500m, 2 or 32Gi", quantity.0),
            );
        }
        (name.clone(), amount.map_or_else(|| quantity.clone(), Amount::canonical))
    });
    Some(amounts.collect::<Amounts>()).filter(|amounts| !amounts.is_empty())
}

/// The policy by its name; what is left out is `IfNotPresent`, as in AIBrix.
pub(super) fn pull_policy(field: &str, name: Option<&str>, problems: &mut Problems) -> PullPolicy {
    let known = [PullPolicy::Always, PullPolicy::IfNotPresent, PullPolicy::Never];
    match name.filter(|name| !name.is_empty()) {
        None => PullPolicy::default(),
        Some(name) => known.into_iter().find(|policy| policy.name() == name).unwrap_or_else(|| {
            problems.add(field, format!("{name:?} is none of Always, IfNotPresent and Never"));
            PullPolicy::default()
        }),
    }
}

/// A container of a template, in the form in which it is stored.
pub(super) fn canonical(field: &str, container: &Container, problems: &mut Problems) -> Container {
    let mut container = container.clone();
    container.env = container.env.map(|all| env(&format!("{field}.env"), &all, problems));
    if let Some(asked) = container.resources.take() {
        container.resources = Some(resources(&format!("{field}.resources"), Some(&asked), problems));
    }
    let mut seen = BTreeSet::new();
    for (index, port) in container.ports.iter_mut().flatten().enumerate() {
        // Server-side apply of older API servers needs it spelled out: it is a part of the port's identity.
        let protocol = port.protocol.get_or_insert_with(|| "TCP".to_owned());
        if !seen.insert((port.container_port, protocol.clone())) {
            problems.add(
                format!("{field}.ports[{index}].containerPort"),
                format!("{} is listed twice: keep one of them", port.container_port),
            );
        }
    }
    container
}
