//! Server-side apply of what should be, and only where something is missing.
//!
//! One field manager, with force: the fields that the operator wants are the operator's, all others are left to whom
//! they belong. An object of a wanted name that somebody else controls is never touched.

use std::fmt::{self, Debug};
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

/// What stands where a wanted object should be.
#[derive(Clone, PartialEq, Debug)]
pub enum Place<K> {
    /// Nothing.
    Free,
    /// Our object.
    Ours(Arc<K>),
    /// Our object, on its way out: to be created again once it is gone.
    Deleting,
    /// Somebody else's object. It is not to be touched.
    Foreign(Foreign),
}

/// An object that stands where one of ours should be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Foreign {
    /// Its kind.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Who controls it, as in `Deployment web`; nobody, if it was made by hand.
    pub controller: Option<String>,
}

impl Foreign {
    fn of<K: Object>(live: &K) -> Self {
        let mut owners = live.meta().owner_references.iter().flatten();
        let controller = owners.find(|reference| reference.controller == Some(true));
        Self {
            kind: K::kind(&()).into_owned(),
            name: live.name_any(),
            controller: controller.map(|reference| format!("{} {}", reference.kind, reference.name)),
        }
    }
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.controller {
            Some(owner) => write!(f, "{} {} is of {owner}", self.kind, self.name),
            None => write!(f, "{} {} is not of this cache", self.kind, self.name),
        }
    }
}

/// Kinds that are applied.
pub trait Object: Resource<DynamicType = ()> + Serialize + DeserializeOwned + Clone + Debug {}

impl<K: Resource<DynamicType = ()> + Serialize + DeserializeOwned + Clone + Debug> Object for K {}

/// Looks at the place of an object. `known` is the object as a watch told of it; without one the server is asked, since
/// watches tell only of objects with our labels. `owner` is the uid of the `KVCache`.
///
/// # Errors
///
/// Those of the API server.
pub async fn look<K: Object>(
    api: &Api<K>,
    name: &str,
    known: Option<Arc<K>>,
    owner: &str,
) -> Result<Place<K>, Error> {
    let live = match known {
        Some(known) => known,
        None => match answered(&format!("get {} {name}", K::kind(&())), api.get_opt(name)).await? {
            Some(live) => Arc::new(live),
            None => return Ok(Place::Free),
        },
    };
    Ok(if !is_controlled(live.meta(), owner) {
        Place::Foreign(Foreign::of(&*live))
    } else if live.meta().deletion_timestamp.is_some() {
        Place::Deleting
    } else {
        Place::Ours(live)
    })
}

/// Makes an object as wanted, where it is not. Returns what was written; `None` if nothing was, because all of it is
/// there, or because the place is not to be written to.
///
/// # Errors
///
/// Those of the API server; a conflict if the object is no longer the one that was looked at.
pub async fn apply<K: Object>(api: &Api<K>, wanted: &K, place: &Place<K>) -> Result<Option<K>, Error> {
    let mut patch = stamped(wanted)?;
    match place {
        Place::Free => {}
        Place::Ours(live) if satisfied(&patch, &json(&**live)?) => return Ok(None),
        // Not another object that took its place since.
        Place::Ours(live) => patch["metadata"]["uid"] = Value::from(live.uid()),
        Place::Deleting | Place::Foreign(_) => return Ok(None),
    }
    let (kind, name) = (K::kind(&()), wanted.name_any());
    let params = PatchParams::apply(FIELD_MANAGER).force();
    let patch = Patch::Apply(&patch);
    answered(&format!("apply {kind} {name}"), api.patch(&name, &params, &patch)).await.map(Some)
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
