//! The ring that is published, read back: its members, its version, and who is away since when.

use std::collections::BTreeMap;

use jiff::Timestamp;
use kvcache_core::ring::{RingDocument, ServerAddress};
use serde_json::Value;

/// The field of the document that has the members that are away, each with the milliseconds since 1970 since when.
pub const AWAY_FIELD: &str = "away_since_ms";

/// The ring that is published. What cannot be read is no reason to stop: it is replaced by a ring of a higher version.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PublishedRing {
    pub(super) text: Option<String>,
    pub(super) document: Option<RingDocument>,
    /// The highest version that was ever seen, here or elsewhere.
    pub(super) version_seen: u64,
    pub(super) away: BTreeMap<String, Timestamp>,
    unreadable: Option<String>,
}

impl PublishedRing {
    /// What the ConfigMap has, if there is one. `version_seen` is the highest version that this ring is known to have
    /// had anywhere: in the status of its resource, in Redis. 0 if none is known.
    pub fn read(text: Option<&str>, version_seen: u64) -> Self {
        let mut ring = Self { text: text.map(str::to_owned), version_seen, ..Self::default() };
        match text.map(|text| RingDocument::from_json(text.as_bytes())) {
            None => {}
            Some(Err(error)) => ring.unreadable = Some(error.to_string()),
            Some(Ok(document)) => {
                ring.version_seen = version_seen.max(document.version.unwrap_or(0));
                ring.away = document.more.get(AWAY_FIELD).map(times).unwrap_or_default();
                ring.document = Some(document);
            }
        }
        ring
    }

    /// Why the published text is no ring, if it is none.
    pub fn unreadable(&self) -> Option<&str> {
        self.unreadable.as_deref()
    }

    /// The members by name. One that is listed twice is the last of these.
    pub fn members(&self) -> BTreeMap<String, ServerAddress> {
        let nodes = self.document.iter().flat_map(|document| &document.nodes);
        nodes.map(|node| (node.name.clone(), node.address.clone())).collect()
    }
}

/// Times that are none are left out: their members are away from now on.
fn times(field: &Value) -> BTreeMap<String, Timestamp> {
    let time = |value: &Value| Timestamp::from_millisecond(value.as_i64()?).ok();
    let entries = field.as_object().into_iter().flatten();
    entries.filter_map(|(name, value)| Some((name.clone(), time(value)?))).collect()
}
