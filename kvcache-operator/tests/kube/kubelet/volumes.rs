//! What a container takes from secrets and config maps: as variables, and as files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{ConfigMap, Container, Pod, Secret, Volume};
use kube::{Api, Client};

use super::invocation::{Fetched, Refusal};

/// Values by kind, name of the object and key.
pub(super) type Keys = BTreeMap<(&'static str, String, String), String>;

/// A mounted volume: its path in the container, and where that is in truth.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Mount {
    pub(super) path: String,
    pub(super) folder: PathBuf,
}

/// Fetches what the container refers to, and makes its volumes in `folder`.
pub(super) async fn fetch(
    client: &Client,
    pod: &Pod,
    container: &Container,
    folder: &Path,
) -> Result<Fetched, Refusal> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let mut fetched = Fetched::default();
    for source in container.env.iter().flatten().filter_map(|variable| variable.value_from.as_ref()) {
        let named = [
            source.secret_key_ref.as_ref().map(|source| ("Secret", &source.name)),
            source.config_map_key_ref.as_ref().map(|source| ("ConfigMap", &source.name)),
        ];
        for (kind, name) in named.into_iter().flatten() {
            let values = values(client, namespace, kind, name).await?.unwrap_or_default();
            fetched.keys.extend(values.into_iter().filter_map(|(key, value)| {
                Some(((kind, name.clone(), key), String::from_utf8(value).ok()?))
            }));
        }
    }
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_ref());
    for mount in container.volume_mounts.iter().flatten() {
        let volume = volumes.into_iter().flatten().find(|volume| volume.name == mount.name);
        let volume = volume.ok_or_else(|| Refusal::config(format!("there is no volume {:?}", mount.name)))?;
        let place = folder.join("volumes").join(&volume.name);
        std::fs::create_dir_all(&place).map_err(|error| Refusal::config(error.to_string()))?;
        fill(client, namespace, volume, &place).await?;
        fetched.mounts.push(Mount { path: mount.mount_path.clone(), folder: place });
    }
    // The longer path is the inner one.
    fetched.mounts.sort_by_key(|mount| std::cmp::Reverse(mount.path.len()));
    Ok(fetched)
}

async fn fill(client: &Client, namespace: &str, volume: &Volume, place: &Path) -> Result<(), Refusal> {
    let (kind, name) = match volume {
        Volume { empty_dir: Some(_), .. } => return Ok(()),
        Volume { secret: Some(source), .. } => ("Secret", source.secret_name.clone().unwrap_or_default()),
        Volume { config_map: Some(source), .. } => ("ConfigMap", source.name.clone()),
        _ => return Err(Refusal::config(format!("volume {:?} is of a kind not known here", volume.name))),
    };
    let values = values(client, namespace, kind, &name).await?;
    let values = values.ok_or_else(|| Refusal::config(format!("{kind} {name:?} not found")))?;
    for (key, value) in values {
        std::fs::write(place.join(key), value).map_err(|error| Refusal::config(error.to_string()))?;
    }
    Ok(())
}

async fn values(
    client: &Client,
    namespace: &str,
    kind: &str,
    name: &str,
) -> Result<Option<BTreeMap<String, Vec<u8>>>, Refusal> {
    let failed = |error: kube::Error| Refusal::config(format!("{kind} {name:?}: {error}"));
    if kind == "Secret" {
        let secret =
            Api::<Secret>::namespaced(client.clone(), namespace).get_opt(name).await.map_err(failed)?;
        return Ok(secret.map(|secret| {
            let data = secret.data.unwrap_or_default();
            data.into_iter().map(|(key, value)| (key, value.0)).collect()
        }));
    }
    let map = Api::<ConfigMap>::namespaced(client.clone(), namespace).get_opt(name).await.map_err(failed)?;
    Ok(map.map(|map| {
        let data = map.data.unwrap_or_default();
        data.into_iter().map(|(key, value)| (key, value.into_bytes())).collect()
    }))
}
