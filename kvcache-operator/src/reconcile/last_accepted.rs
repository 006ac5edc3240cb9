//! The spec that was last accepted, kept with what runs because of it.
//!
//! When an edit is refused, what runs stays as it is and its ring goes on being published. What runs is known from an
//! annotation of the StatefulSet, so that an operator which starts while a spec is refused knows it too.
//!
//! That holds for an edit of the backend too, to a word that means nothing or to the name of another operator's: the
//! servers that run are ours until their StatefulSet is gone, or is another's.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::StatefulSet;
use kube::{Resource, ResourceExt};
use serde::{Deserialize, Serialize};

use super::Reconciler;
use crate::api::{Accepted, AsWritten, KVCache, KVCacheSpec, accept, annotation};
use crate::apply::is_controlled;
use crate::mirror::CacheKey;
use crate::plan::names;

/// The annotation of the StatefulSet.
const ACCEPTED: &str = "kvcache.orchestration.aibrix.ai/accepted";

#[derive(Serialize, Deserialize)]
struct LastAccepted {
    annotations: BTreeMap<String, String>,
    spec: KVCacheSpec,
}

/// Notes on the servers' StatefulSet from which spec it was made.
pub(super) fn note(set: &mut StatefulSet, cache: &KVCache) {
    let annotations = cache.annotations().iter().filter(|(key, _)| annotation::is_read(key));
    let last = LastAccepted {
        annotations: annotations.map(|(key, value)| (key.clone(), value.clone())).collect(),
        spec: cache.spec.clone(),
    };
    // A spec came from JSON and goes back; one too large for an annotation is only forgotten.
    if let Ok(text) = serde_json::to_string(&last)
        && text.len() <= ANNOTATION_BYTES_MAX
    {
        set.annotations_mut().insert(ACCEPTED.to_owned(), text);
    }
}

impl Reconciler {
    /// The cache as it was accepted last; `None` if it never was, or if that cannot be served any more.
    pub(super) fn last_accepted(&self, key: &CacheKey, listed: &AsWritten) -> Option<Accepted> {
        let set = self.own_set(key, listed)?;
        let last: LastAccepted = serde_json::from_str(set.annotations().get(ACCEPTED)?).ok()?;
        let mut cache = KVCache::new(&key.name, last.spec);
        cache.metadata = listed.meta().clone();
        cache.metadata.annotations = Some(last.annotations);
        accept(&cache, &self.options).ok()
    }

    /// Whether there is a spec that was accepted once, even if it cannot be served any more.
    pub(super) fn has_noted(&self, key: &CacheKey, listed: &AsWritten) -> bool {
        self.own_set(key, listed).is_some_and(|set| set.annotations().contains_key(ACCEPTED))
    }

    /// The servers' StatefulSet, if it is the cache's.
    pub(super) fn own_set(&self, key: &CacheKey, listed: &AsWritten) -> Option<Arc<StatefulSet>> {
        let set = self.stores.stateful_sets.get(key, &names::servers(&key.name))?;
        is_controlled(set.meta(), listed.meta().uid.as_deref()?).then_some(set)
    }
}

/// All annotations of an object together have 256 KiB.
const ANNOTATION_BYTES_MAX: usize = 128 << 10;
