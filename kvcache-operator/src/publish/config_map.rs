//! The ring in the ConfigMap `NAME-ring`, where engines, tools and the next operator find it.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};

use crate::api::Accepted;
use crate::apply::{FIELD_MANAGER, is_missing};
use crate::error::{Error, answered};
use crate::plan::{Role, metadata, names};

/// The ConfigMap with this text, which belongs to the cache and goes with it.
pub fn object(accepted: &Accepted, text: &str) -> ConfigMap {
    ConfigMap {
        metadata: metadata(accepted, names::ring(&accepted.name), Role::Cache),
        data: Some(BTreeMap::from([(names::RING_KEY.to_owned(), text.to_owned())])),
        ..ConfigMap::default()
    }
}

/// Writes the ConfigMap: creates it if `live`, the one that is there and is ours, is none, and changes exactly that one
/// otherwise. What others have added to it stays. Costs one request. Returns what was written.
///
/// # Errors
///
/// [`Error::Conflict`] if somebody else has written, made or deleted it meanwhile; what the API server says otherwise.
pub async fn publish(
    api: &Api<ConfigMap>,
    accepted: &Accepted,
    live: Option<&ConfigMap>,
    text: &str,
) -> Result<ConfigMap, Error> {
    let mut map = object(accepted, text);
    let name = names::ring(&accepted.name);
    let what = format!("publish the ring in ConfigMap {name}");
    let Some(live) = live else {
        let params = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        return answered(&what, api.create(&params, &map)).await;
    };
    // A patch that names a version is refused for any other: it is as safe as replacing the whole, and leaves the rest.
    map.metadata.resource_version.clone_from(&live.metadata.resource_version);
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    match answered(&what, api.patch(&name, &params, &Patch::Merge(&map))).await {
        // It was deleted since it was looked at.
        Err(Error::Api { source, .. }) if is_missing(&source) => Err(Error::Conflict { what }),
        written => written,
    }
}
