//! From a resource as anyone may write it to one that can be served, or to everything that is wrong with it.

mod backend;
mod containers;
mod identity;
mod memory;
mod metadata;
mod pods;
mod service;
#[cfg(test)]
mod tests;

use std::time::Duration;

pub(crate) use containers::is_rdma;
pub(crate) use metadata::REDIS_PASSWORD;
pub(crate) use pods::SERVER_CONTAINER;
pub(crate) use service::{MANAGE as MANAGE_PORT_NAME, SERVE as SERVE_PORT_NAME};

use super::refusal::Problems;
use super::{
    Accepted, Backend, KVCache, MetadataSpec, Options, Pods, Reason, Refusal, RingOptions, RuntimeSpec,
    Workload, annotation,
};

/// Checks a cache and fills in what it leaves out.
///
/// # Errors
///
/// [`Refusal`] with everything that is wrong. Its reason is [`Reason::UnknownBackend`] where the cache is not this
/// operator's at all; then nothing else was looked at.
pub fn accept(cache: &KVCache, options: &Options) -> Result<Accepted, Refusal> {
    let mut problems = Problems::default();
    let Some(backend) = backend::claimed(cache, &options.adopt, &mut problems) else {
        return Err(refused(problems));
    };
    let mut notes = Vec::new();
    let spec = &cache.spec;
    let name = identity::name(cache, &mut problems);
    let none = RuntimeSpec::default();
    let runtime = spec.cache.as_ref().unwrap_or(&none);
    let replicas = replicas(runtime, &mut problems);
    let pods = match &runtime.template {
        Some(template) => {
            pods::template("spec.cache.template", template, backend.name(), &mut problems).map(|template| {
                notes.extend(pods::overruled(runtime, spec.server.as_ref()));
                Pods::Template(Box::new(template))
            })
        }
        None => pods::built(cache, runtime, backend, options, &mut problems, &mut notes)
            .map(|pod| Pods::Built(Box::new(pod))),
    };
    let (ports, service_ports) =
        service::ports(spec.service.as_ref(), pods.as_ref(), &mut problems, &mut notes);
    let metadata = metadata::store(spec.metadata.as_ref(), options, &mut problems);
    let ring = ring_options(cache);
    check_ring(cache, &mut problems);
    notes.extend(without_effect(cache, backend));
    match (problems.into_refusal(), pods) {
        (None, Some(pods)) => Ok(Accepted {
            namespace: cache.metadata.namespace.clone().unwrap_or_default(),
            name,
            uid: cache.metadata.uid.clone().unwrap_or_default(),
            generation: cache.metadata.generation.unwrap_or_default(),
            backend,
            workload: Workload { replicas, pods },
            ports,
            service_ports,
            metadata,
            ring,
            notes,
        }),
        (Some(refusal), _) => Err(refusal),
        // Pods are missing only together with a problem; said anyway rather than assumed.
        (None, None) => Err(refused(Problems::default())),
    }
}

/// How the ring of a cache follows its pods, even if the rest of the spec is refused: the ring of what runs goes on.
/// What is out of bounds counts as left out.
pub fn ring_options(cache: &KVCache) -> RingOptions {
    let ring = cache.spec.server.as_ref().and_then(|server| server.ring.clone()).unwrap_or_default();
    let seconds = |wanted: Option<u32>, default: u32, max: u32| {
        Duration::from_secs(wanted.filter(|seconds| *seconds <= max).unwrap_or(default).into())
    };
    let metadata = &cache.metadata;
    let redis_key = match (ring.per_cluster_key, &metadata.namespace, &metadata.name) {
        (Some(true), Some(namespace), Some(name)) => format!("{REDIS_KEY}/{namespace}/{name}"),
        _ => REDIS_KEY.to_owned(),
    };
    RingOptions {
        min_ready: seconds(ring.min_ready_seconds, MIN_READY_S, MIN_READY_S_MAX),
        not_ready_grace: seconds(ring.not_ready_grace_seconds, NOT_READY_GRACE_S, NOT_READY_GRACE_S_MAX),
        redis_key,
    }
}

/// The key that AIBrix's engines read.
const REDIS_KEY: &str = "kvcache_nodes";
const MIN_READY_S: u32 = 10;
const MIN_READY_S_MAX: u32 = 3600;
const NOT_READY_GRACE_S: u32 = 60;
const NOT_READY_GRACE_S_MAX: u32 = 86_400;

fn check_ring(cache: &KVCache, problems: &mut Problems) {
    let ring = cache.spec.server.as_ref().and_then(|server| server.ring.clone()).unwrap_or_default();
    for (field, seconds, max) in [
        ("minReadySeconds", ring.min_ready_seconds, MIN_READY_S_MAX),
        ("notReadyGraceSeconds", ring.not_ready_grace_seconds, NOT_READY_GRACE_S_MAX),
    ] {
        if let Some(seconds) = seconds.filter(|seconds| *seconds > max) {
            problems.add(
                format!("spec.server.ring.{field}"),
                format!("{seconds} is too long: give at most {max} seconds"),
            );
        }
    }
}

/// Servers that are asked for. None at all is a wish like any other, since autoscalers and people scale to zero; the
/// ring is then published empty.
fn replicas(runtime: &RuntimeSpec, problems: &mut Problems) -> u32 {
    let asked = runtime.replicas.unwrap_or(1);
    let max = kvcache_core::ring::MEMBERS_MAX;
    match u32::try_from(asked) {
        Ok(replicas) if replicas as usize <= max => replicas,
        Ok(_) => {
            let message = format!(
                "{asked} servers are more than the ring has slots: give at most {max}, with more memory each"
            );
            problems.add("spec.cache.replicas", message);
            1
        }
        Err(_) => {
            problems.add("spec.cache.replicas", format!("{asked} is negative: give 0 (no servers) or more"));
            1
        }
    }
}

/// Wishes that are accepted for the sake of AIBrix's YAML and do nothing.
fn without_effect(cache: &KVCache, backend: Backend) -> Vec<String> {
    let annotated = |key| cache.metadata.annotations.as_ref().and_then(|all| all.get(key));
    let mut notes = Vec::new();
    if let Some(mode) = annotated(annotation::MODE) {
        notes.push(format!(
            "the annotation {} ({mode:?}) has no effect: {} decides",
            annotation::MODE,
            annotation::BACKEND
        ));
    }
    if cache.spec.mode.as_deref().is_some_and(|mode| mode != "distributed") {
        notes.push(format!("spec.mode has no effect: the annotation {} decides", annotation::BACKEND));
    }
    if cache.spec.watcher.is_some() {
        notes.push("spec.watcher starts nothing: the operator publishes the ring itself".to_owned());
    }
    for key in [annotation::INFINISTORE_LINK_TYPE, annotation::INFINISTORE_GID_INDEX] {
        if backend != Backend::InfiniStore && annotated(key).is_some() {
            notes
                .push(format!("the annotation {key} has no effect: it is InfiniStore's, and {backend} runs"));
        }
    }
    let redis = cache.spec.metadata.as_ref().is_some_and(|MetadataSpec { redis, .. }| redis.is_some());
    let ring = cache.spec.server.as_ref().and_then(|server| server.ring.as_ref());
    if !redis && ring.is_some_and(|ring| ring.per_cluster_key.is_some()) {
        notes.push("spec.server.ring.perClusterKey has no effect without spec.metadata.redis".to_owned());
    }
    notes
}

fn refused(problems: Problems) -> Refusal {
    problems.into_refusal().unwrap_or_else(|| Refusal { reason: Reason::InvalidSpec, problems: Vec::new() })
}
