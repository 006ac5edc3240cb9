//! The ring that is published, read back: its members, its version, and who is away since when.
//!
//! A ring's text has 70 KB, and all but a few hundred bytes of it follow from the names of its members. So it is read once,
//! when it comes, and what is kept of it is who the members are and whether the rest of the text is as it should be.

use std::collections::BTreeMap;

use jiff::Timestamp;
use kvcache_core::ring::{RingDocument, ServerAddress};
use serde_json::Value;

/// The field of the document that has the members that are away, each with the milliseconds since 1970 since when.
pub const AWAY_FIELD: &str = "away_since_ms";

/// The ring that is published. What cannot be read is no reason to stop: it is replaced by a ring of a higher version.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PublishedRing {
    /// By name. One that is listed twice is the last of these.
    pub(super) members: BTreeMap<String, ServerAddress>,
    /// The version that the text has.
    pub(super) version: Option<u64>,
    /// The highest version that was ever seen, here or elsewhere.
    pub(super) version_seen: u64,
    pub(super) away: BTreeMap<String, Timestamp>,
    /// Whether the nodes are those that [`RingDocument::of`] makes of the members, slot by slot.
    pub(super) is_in_order: bool,
    /// Whether the text is, byte by byte, the one that is written for these members, this version and those away.
    pub(super) is_as_written: bool,
    unreadable: Option<String>,
}

impl PublishedRing {
    /// What the ConfigMap has, if there is one. `version_seen` is the highest version that this ring is known to have
    /// had anywhere: in the status of its resource, in Redis. 0 if none is known.
    ///
    /// Cost: reading the text and making one of the same members to compare with.
    pub fn read(text: Option<&str>, version_seen: u64) -> Self {
        let Some(text) = text else { return Self { version_seen, ..Self::default() } };
        let document = match RingDocument::from_json(text.as_bytes()) {
            Ok(document) => document,
            Err(error) => {
                return Self { version_seen, unreadable: Some(error.to_string()), ..Self::default() };
            }
        };
        let members: BTreeMap<String, ServerAddress> =
            document.nodes.iter().map(|node| (node.name.clone(), node.address.clone())).collect();
        let away = document.more.get(AWAY_FIELD).map(times).unwrap_or_default();
        let version = document.version;
        // More members than a ring may have are none that this operator has written.
        let ours = RingDocument::of(&members, version.unwrap_or(0), memory(&away)).ok();
        Self {
            version_seen: version_seen.max(version.unwrap_or(0)),
            is_in_order: ours.as_ref().is_some_and(|ours| ours.nodes == document.nodes),
            is_as_written: ours.is_some_and(|ours| ours.to_json() == text),
            members,
            version,
            away,
            unreadable: None,
        }
    }

    /// The same ring, of which this version was seen elsewhere.
    #[must_use]
    pub fn seen(&self, version: u64) -> Self {
        Self { version_seen: self.version_seen.max(version), ..self.clone() }
    }

    /// Why the published text is no ring, if it is none.
    pub fn unreadable(&self) -> Option<&str> {
        self.unreadable.as_deref()
    }

    /// The members by name.
    pub fn members(&self) -> &BTreeMap<String, ServerAddress> {
        &self.members
    }

    /// The version that the text has; 0 if it has none.
    pub fn version(&self) -> u64 {
        self.version.unwrap_or(0)
    }
}

/// What the document says of members that are away.
pub(super) fn memory(away: &BTreeMap<String, Timestamp>) -> BTreeMap<String, Value> {
    if away.is_empty() {
        return BTreeMap::new();
    }
    let times = away.iter().map(|(name, since)| (name.clone(), since.as_millisecond().into()));
    BTreeMap::from([(AWAY_FIELD.to_owned(), Value::Object(times.collect()))])
}

/// Times that are none are left out: their members are away from now on.
fn times(field: &Value) -> BTreeMap<String, Timestamp> {
    let time = |value: &Value| Timestamp::from_millisecond(value.as_i64()?).ok();
    let entries = field.as_object().into_iter().flatten();
    entries.filter_map(|(name, value)| Some((name.clone(), time(value)?))).collect()
}
