//! Server-side apply of what should be, and only where something is missing.
//!
//! One field manager, with force: the fields that the operator wants are the operator's, all others are left to whom
//! they belong. An object of a wanted name that somebody else controls is never touched.

use std::fmt::Debug;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use xxhash_rust::xxh3::xxh3_64;

use crate::error::{Error, answered};
use crate::satisfied::satisfied;

/// Who owns the fields that the operator writes.
pub const FIELD_MANAGER: &str = "kvcache-operator";

/// Digest of what was applied last. A field that is no longer wanted shows in it, and nowhere else.
pub const APPLIED: &str = "kvcache.orchestration.aibrix.ai/applied";

/// What became of a wanted object.
#[derive(Clone, PartialEq, Debug)]
pub enum Outcome<K> {
    /// It was there as wanted; nothing was written.
    Unchanged,
    /// It was written, and is like this now.
    Written(Box<K>),
    /// It is being deleted: to be created again once it is gone.
    Deleting,
    /// Somebody else's object has its name. It was not touched.
    Foreign(Foreign),
}

/// An object that stands where one of ours should be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Foreign {
    /// Its kind.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Who controls it, as `kind/name`; nobody, if it was made by hand.
    pub controller: Option<String>,
}

/// Kinds that are applied.
pub trait Object: Resource<DynamicType = ()> + Serialize + DeserializeOwned + Clone + Debug {}

impl<K: Resource<DynamicType = ()> + Serialize + DeserializeOwned + Clone + Debug> Object for K {}

/// Makes an object as wanted, where it is not.
///
/// `live` is the object as the caller knows it; without one, the server is asked, so that a foreign object is noticed
/// before anything is written. `owner` is the uid of the `KVCache`.
///
/// # Errors
///
/// Those of the API server; a conflict if the object is no longer the one that was looked at.
pub async fn apply<K: Object>(
    api: &Api<K>,
    wanted: &K,
    live: Option<Arc<K>>,
    owner: &str,
) -> Result<Outcome<K>, Error> {
    let name = wanted.name_any();
    let kind = K::kind(&());
    let live = match live {
        Some(live) => Some(live),
        None => {
            let get = answered(&format!("get {kind} {name}"), api.get_opt(&name)).await?;
            get.map(Arc::new)
        }
    };
    let mut patch = stamped(wanted)?;
    if let Some(live) = live {
        if !is_controlled(live.meta(), owner) {
            return Ok(Outcome::Foreign(foreign(&*live)));
        }
        if live.meta().deletion_timestamp.is_some() {
            return Ok(Outcome::Deleting);
        }
        if satisfied(&patch, &json(&*live)?) {
            return Ok(Outcome::Unchanged);
        }
        // Not another object that took its place since.
        patch["metadata"]["uid"] = Value::from(live.uid());
    }
    let params = PatchParams::apply(FIELD_MANAGER).force();
    let written =
        answered(&format!("apply {kind} {name}"), api.patch(&name, &params, &Patch::Apply(&patch))).await?;
    Ok(Outcome::Written(Box::new(written)))
}

/// Deletes an object that is no longer wanted, if it is still the one that was looked at. Gone already is as good.
///
/// # Errors
///
/// Those of the API server.
pub async fn remove<K: Object>(api: &Api<K>, live: &K) -> Result<(), Error> {
    let (kind, name) = (K::kind(&()), live.name_any());
    let params = DeleteParams {
        preconditions: Some(Preconditions { uid: live.uid(), resource_version: None }),
        ..DeleteParams::background()
    };
    match answered(&format!("delete {kind} {name}"), api.delete(&name, &params)).await {
        Err(Error::Api { source, .. }) if is_missing(&source) => Ok(()),
        other => other.map(drop),
    }
}

/// Whether an object's controller is the one with this uid.
pub fn is_controlled(metadata: &ObjectMeta, owner: &str) -> bool {
    let mut owners = metadata.owner_references.iter().flatten();
    owners.any(|reference| reference.controller == Some(true) && reference.uid == owner)
}

/// Whether the server says that there is no such object.
pub(crate) fn is_missing(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

fn foreign<K: Object>(live: &K) -> Foreign {
    let mut owners = live.meta().owner_references.iter().flatten();
    let controller = owners.find(|reference| reference.controller == Some(true));
    Foreign {
        kind: K::kind(&()).into_owned(),
        name: live.name_any(),
        controller: controller.map(|reference| format!("{}/{}", reference.kind, reference.name)),
    }
}

/// An object with the digest of itself.
fn stamped<K: Object>(wanted: &K) -> Result<Value, Error> {
    let mut value = json(wanted)?;
    let digest = format!("{:016x}", xxh3_64(value.to_string().as_bytes()));
    // Empty maps are left out of objects.
    let annotations = &mut value["metadata"]["annotations"];
    if annotations.is_null() {
        *annotations = Value::Object(serde_json::Map::new());
    }
    annotations[APPLIED] = Value::from(digest);
    Ok(value)
}

fn json<K: Object>(object: &K) -> Result<Value, Error> {
    let what = || format!("{} {}", K::kind(&()), object.name_any());
    serde_json::to_value(object).map_err(|source| Error::Json { what: what(), source })
}
