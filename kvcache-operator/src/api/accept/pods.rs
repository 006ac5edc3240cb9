//! The servers' pods: the operator's own, or the user's template.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{PodSpec, PodTemplateSpec, Volume};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{containers, memory};
use crate::api::quantity::Amount;
use crate::api::refusal::Problems;
use crate::api::{
    Backend, InfiniStoreLink, KVCache, Options, Rdma, RuntimeSpec, ServerPod, ServerSpec, annotation,
};

/// AIBrix's resource definition puts this image of vineyard where `spec.cache` is left out.
const IMAGE_OF_AIBRIX_DEFAULT: &str = "aibrix/kvcache:20241120";
/// Devices of Volcano Engine need a network of the pod for them; AIBrix's controller asks for it under this name.
const VOLCANO_RDMA: &str = "vke.volcengine.com/rdma";
const VOLCANO_NETWORKS: &str = r#"[{"cniConf":{"name":"rdma"}}]"#;
/// InfiniStore's pool is private memory: what a container runtime gives to `/dev/shm` by default is enough. AIBrix
/// mounts it without a limit.
const INFINISTORE_SHARED_MEMORY_BYTES: u64 = 64 << 20;
/// AIBrix's default index, which suits Volcano Engine.
const GID_INDEX: i32 = 7;

/// A pod that the operator makes.
pub(super) fn built(
    cache: &KVCache,
    runtime: &RuntimeSpec,
    backend: Backend,
    options: &Options,
    problems: &mut Problems,
    notes: &mut Vec<String>,
) -> Option<ServerPod> {
    let env = containers::env("spec.cache.env", runtime.env.as_deref().unwrap_or_default(), problems);
    let resources = containers::resources("spec.cache.resources", runtime.resources.as_ref(), problems);
    let limits = resources.limits.as_ref();
    let memory = memory::divided(
        limits.and_then(|limits| limits.get("memory")),
        cache.spec.server.as_ref(),
        backend,
        problems,
        notes,
    );
    let device = limits.into_iter().flatten().find(|(name, amount)| {
        containers::is_rdma(name) && Amount::parse(amount).is_some_and(|amount| amount.units() > 0)
    });
    let rdma =
        device.map(|(name, _)| Rdma { resource: name.clone(), pod_networks: pod_networks(cache, name) });
    let image = image(runtime.image.as_deref(), backend, options, problems, notes);
    let pull_policy =
        containers::pull_policy("spec.cache.imagePullPolicy", runtime.image_pull_policy.as_deref(), problems);
    let infinistore = link(cache, backend, problems);
    let memory = memory?;
    Some(ServerPod {
        image,
        pull_policy,
        env,
        resources,
        capacity_bytes: memory.capacity_bytes,
        headroom_bytes: memory.headroom_bytes,
        shared_memory_bytes: (backend == Backend::InfiniStore).then_some(INFINISTORE_SHARED_MEMORY_BYTES),
        rdma,
        infinistore,
    })
}

fn image(
    asked: Option<&str>,
    backend: Backend,
    options: &Options,
    problems: &mut Problems,
    notes: &mut Vec<String>,
) -> String {
    let field = "spec.cache.image";
    let asked = asked.map(str::trim).filter(|image| !image.is_empty());
    match (asked, backend) {
        (Some(IMAGE_OF_AIBRIX_DEFAULT), Backend::KvCache) => {
            notes.push(format!(
                "{field} {IMAGE_OF_AIBRIX_DEFAULT} is AIBrix's default and not this operator's server"
            ));
            options.server_image.clone()
        }
        (Some(image), _) => {
            if image.contains(char::is_whitespace) {
                problems.add(field, format!("{image:?} has a blank in it: write registry/name:tag"));
            }
            image.to_owned()
        }
        (None, Backend::KvCache) => options.server_image.clone(),
        (None, Backend::InfiniStore) => {
            problems.add(field, "it is missing: name an image of InfiniStore, 0.2.32 or later");
            String::new()
        }
    }
}

/// The user's annotation, or the one that AIBrix's controller makes for Volcano Engine's devices.
fn pod_networks(cache: &KVCache, resource: &str) -> Option<String> {
    let annotated = cache.metadata.annotations.as_ref().and_then(|all| all.get(annotation::POD_NETWORKS));
    annotated.cloned().or_else(|| (resource == VOLCANO_RDMA).then(|| VOLCANO_NETWORKS.to_owned()))
}

/// What the annotations say of the link. An index of -1 or 0 means what it says; AIBrix makes 7 of both.
fn link(cache: &KVCache, backend: Backend, problems: &mut Problems) -> InfiniStoreLink {
    let default = InfiniStoreLink { link_type: "Ethernet".to_owned(), gid_index: GID_INDEX };
    if backend != Backend::InfiniStore {
        return default;
    }
    let annotated =
        |key| cache.metadata.annotations.as_ref().and_then(|all| all.get(key)).map(|text| text.trim());
    let link_type = match annotated(annotation::INFINISTORE_LINK_TYPE) {
        None | Some("") => default.link_type,
        Some(known @ ("Ethernet" | "IB")) => known.to_owned(),
        Some(other) => {
            let field = format!("metadata.annotations[{}]", annotation::INFINISTORE_LINK_TYPE);
            problems.add(field, format!("{other:?} is no link type: write Ethernet or IB"));
            default.link_type
        }
    };
    let gid_index = match annotated(annotation::INFINISTORE_GID_INDEX) {
        None | Some("") => default.gid_index,
        Some(text) => text.parse().ok().filter(|index| (-1..=255).contains(index)).unwrap_or_else(|| {
            let field = format!("metadata.annotations[{}]", annotation::INFINISTORE_GID_INDEX);
            problems
                .add(field, format!("{text:?} is no index: write 0 to 255, or -1 to let InfiniStore choose"));
            default.gid_index
        }),
    };
    InfiniStoreLink { link_type, gid_index }
}

/// A template that a StatefulSet can have, in the form in which it is stored.
///
/// Its server may have any name if it is the only container: AIBrix's sample calls it `infinistore`. Of several one
/// is called `kvcache-server` or like the backend.
pub(super) fn template(
    field: &str,
    template: &PodTemplateSpec,
    other_name: &str,
    problems: &mut Problems,
) -> Option<PodTemplateSpec> {
    let Some(spec) = &template.spec else {
        problems.add(
            format!("{field}.spec"),
            "it is missing: give the pod at least one container, or leave the template out",
        );
        return None;
    };
    let mut spec: PodSpec = spec.clone();
    let names: Vec<&str> = spec.containers.iter().map(|container| container.name.as_str()).collect();
    match names.as_slice() {
        [] => problems
            .add(format!("{field}.spec.containers"), "there is none: give the container of the server"),
        [_] => {}
        several if several.iter().any(|name| *name == SERVER_CONTAINER || *name == other_name) => {}
        several => problems.add(
            format!("{field}.spec.containers"),
            format!("none of {} is the server: call it {SERVER_CONTAINER}", several.join(", ")),
        ),
    }
    let initial = spec.init_containers.iter().flatten();
    unique(
        &format!("{field}.spec.containers"),
        names.into_iter().chain(initial.map(|c| c.name.as_str())),
        problems,
    );
    let volumes = spec.volumes.iter().flatten().map(|volume| volume.name.as_str());
    unique(&format!("{field}.spec.volumes"), volumes, problems);
    if let Some(policy) = spec.restart_policy.as_deref().filter(|policy| *policy != "Always") {
        problems.add(
            format!("{field}.spec.restartPolicy"),
            format!("{policy:?} does not go with servers that stay: leave it out"),
        );
    }
    for (index, container) in spec.containers.iter_mut().enumerate() {
        *container = containers::canonical(&format!("{field}.spec.containers[{index}]"), container, problems);
    }
    for (index, container) in spec.init_containers.iter_mut().flatten().enumerate() {
        *container =
            containers::canonical(&format!("{field}.spec.initContainers[{index}]"), container, problems);
    }
    for volume in spec.volumes.iter_mut().flatten() {
        canonical_size(volume);
    }
    // Whatever else stands in a pod's metadata is the API server's to say.
    let metadata = template.metadata.as_ref().map(|metadata| ObjectMeta {
        labels: metadata.labels.clone(),
        annotations: metadata.annotations.clone(),
        ..ObjectMeta::default()
    });
    Some(PodTemplateSpec { metadata, spec: Some(spec) })
}

/// The name that AIBrix gives to the server's container.
pub(crate) const SERVER_CONTAINER: &str = "kvcache-server";

fn unique<'a>(field: &str, names: impl Iterator<Item = &'a str>, problems: &mut Problems) {
    let mut seen = BTreeSet::new();
    for name in names {
        if !seen.insert(name) {
            problems.add(field, format!("two are called {name:?}: rename one of them"));
        }
    }
}

fn canonical_size(volume: &mut Volume) {
    let limit = volume.empty_dir.as_mut().and_then(|directory| directory.size_limit.as_mut());
    if let Some(limit) = limit
        && let Some(amount) = Amount::parse(limit)
    {
        *limit = amount.canonical();
    }
}

/// What a template makes moot.
pub(super) fn overruled(runtime: &RuntimeSpec, server: Option<&ServerSpec>) -> Option<String> {
    let given = [
        ("spec.cache.image", runtime.image.as_deref().is_some_and(|image| image != IMAGE_OF_AIBRIX_DEFAULT)),
        ("spec.cache.env", runtime.env.as_ref().is_some_and(|env| !env.is_empty())),
        ("spec.cache.resources", runtime.resources.is_some()),
        ("spec.server.capacity", server.is_some_and(|server| server.capacity.is_some())),
        ("spec.server.headroom", server.is_some_and(|server| server.headroom.is_some())),
    ];
    let fields: Vec<&str> = given.into_iter().filter(|(_, given)| *given).map(|(field, _)| field).collect();
    (!fields.is_empty())
        .then(|| format!("{} have no effect: spec.cache.template says it all", fields.join(", ")))
}
