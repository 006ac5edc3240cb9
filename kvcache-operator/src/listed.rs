//! A `KVCache` as it comes from the API server, readable or not.
//!
//! A schema can be older or weaker than the types here. One object that does not parse must not hide all others from a
//! list, and its own status must say what is wrong with it.

use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::api::{KVCache, KVCacheStatus};

/// A listed `KVCache`.
#[derive(Clone, Debug)]
pub struct Listed(pub Result<Box<KVCache>, Malformed>);

/// One that does not parse.
#[derive(Clone, Debug)]
pub struct Malformed {
    /// Its metadata, which the API server vouches for.
    pub metadata: ObjectMeta,
    /// Its status, if that parses.
    pub status: Option<KVCacheStatus>,
    /// What is wrong.
    pub error: String,
}

impl Listed {
    /// The status, as far as there is one.
    pub fn status(&self) -> Option<&KVCacheStatus> {
        match &self.0 {
            Ok(cache) => cache.status.as_ref(),
            Err(malformed) => malformed.status.as_ref(),
        }
    }
}

impl<'de> Deserialize<'de> for Listed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut value = Value::deserialize(deserializer)?;
        let error = match KVCache::deserialize(&value) {
            Ok(cache) => return Ok(Self(Ok(Box::new(cache)))),
            Err(error) => error.to_string(),
        };
        let metadata = ObjectMeta::deserialize(value["metadata"].take()).map_err(serde::de::Error::custom)?;
        let status = KVCacheStatus::deserialize(value["status"].take()).ok();
        Ok(Self(Err(Malformed { metadata, status, error })))
    }
}

impl Resource for Listed {
    type DynamicType = ();
    type Scope = <KVCache as Resource>::Scope;

    fn kind((): &()) -> Cow<'_, str> {
        KVCache::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        KVCache::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        KVCache::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        KVCache::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        match &self.0 {
            Ok(cache) => &cache.metadata,
            Err(malformed) => &malformed.metadata,
        }
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        match &mut self.0 {
            Ok(cache) => &mut cache.metadata,
            Err(malformed) => &mut malformed.metadata,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_malformed_one_keeps_its_name_and_its_status() {
        let listed: Listed = serde_json::from_value(json!({
            "apiVersion": "orchestration.aibrix.ai/v1alpha1", "kind": "KVCache",
            "metadata": { "name": "a", "namespace": "ns", "generation": 3 },
            "spec": { "service": { "ports": 9600 } },
            "status": { "observedGeneration": 2 },
        }))
        .unwrap();
        assert_eq!(listed.meta().name.as_deref(), Some("a"));
        assert_eq!(listed.status().and_then(|status| status.observed_generation), Some(2));
        let malformed = listed.0.unwrap_err();
        assert!(malformed.error.contains("9600"), "{}", malformed.error);
        let good = json!({
            "apiVersion": "orchestration.aibrix.ai/v1alpha1", "kind": "KVCache",
            "metadata": { "name": "b" }, "spec": {},
        });
        assert!(serde_json::from_value::<Listed>(good).unwrap().0.is_ok());
    }
}
