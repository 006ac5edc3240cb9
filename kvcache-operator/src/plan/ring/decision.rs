//! What [`decide`](super::decide) says.

use std::collections::BTreeMap;

use jiff::Timestamp;
use kvcache_core::ring::{RingDocument, ServerAddress};

use super::published::memory;

/// The ring to publish, and what is different about it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RingDecision {
    pub(super) servers: BTreeMap<String, ServerAddress>,
    pub(super) version: u64,
    pub(super) away_since: BTreeMap<String, Timestamp>,
    /// Whether it is to be written, and why.
    pub change: RingChange,
    /// When to ask again if nothing happens until then; always later than the time that was passed.
    pub look_again: Option<Timestamp>,
    /// Slots that had an owner and have another now, or none.
    pub moved_slots: usize,
    /// Members that were not in the ring before, by name.
    pub entered: Vec<String>,
    /// Members that are in the ring no more.
    pub left: Vec<String>,
    /// Members that have another address.
    pub readdressed: Vec<String>,
}

/// How the ring to publish differs from the published one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RingChange {
    /// Not at all: there is nothing to write.
    None,
    /// The ring is the same, of the same version. The ConfigMap is to be written, since the operator has to remember
    /// something in it; readers elsewhere need to know nothing.
    Memory,
    /// It is another ring, with a version higher than any that was seen.
    Ring,
}

impl RingDecision {
    /// The version of the ring.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// How many members it has.
    pub fn member_count(&self) -> usize {
        self.servers.len()
    }

    /// Members that keep their slots although their servers are not ready, by name.
    pub fn away(&self) -> Vec<&str> {
        self.away_since.keys().map(String::as_str).collect()
    }

    /// The ring. Readers elsewhere than in the ConfigMap have no use for its field
    /// [`AWAY_FIELD`](super::AWAY_FIELD). Cost: a slot table.
    pub fn document(&self) -> RingDocument {
        // There are no more servers than a ring may have, each has a name, and a map has no name twice.
        RingDocument::of(&self.servers, self.version, memory(&self.away_since)).unwrap_or_default()
    }

    /// Its text, for the ConfigMap: 70 KB and more.
    pub fn text(&self) -> String {
        self.document().to_json()
    }
}
