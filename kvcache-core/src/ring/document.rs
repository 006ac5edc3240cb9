//! A ring as JSON: what is published once and read by clients, tools and operators alike.
//!
//! The form is AIBrix's, so that its clients read what we write: each node's name, its address as `addr` and `port`, and
//! its slots as ranges with both ends included. Other fields at the top are kept as they are and mean nothing to
//! readers of the ring, so that a publisher can remember in its document what it has to.
//!
//! ```json
//! {"nodes":[{"name":"kv-0","addr":"10.0.0.7","port":12345,"slots":[{"start":0,"end":4095}]}],"version":7}
//! ```
//!
//! A shorter form for hand-written files is read as well, and never written:
//!
//! ```json
//! {"members": ["10.0.0.7:12345", {"name": "kv-1", "address": "10.0.0.8:12345"}], "version": 3}
//! ```

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{MemberListError, RingSlot, ServerAddress, ServerAddressError, SlotRange, SlotTable};

/// The servers of a ring as a document lists them, with whatever else it holds.
///
/// What is read is taken as it is: names may be there twice and ranges may be faulty. What [`RingDocument::of`] makes
/// is neither.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RingDocument {
    /// The servers, in the order of the document.
    pub nodes: Vec<RingNode>,
    /// Counts the changes of the ring, as its publisher sees them.
    pub version: Option<u64>,
    /// Further fields at the top.
    pub more: BTreeMap<String, Value>,
}

/// A server as a document lists it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RingNode {
    /// What places it on the ring; the text of its address where the document gives no name.
    pub name: String,
    /// Where it listens.
    pub address: ServerAddress,
    /// The slots that the publisher gave to it, if it says so.
    pub slots: Option<Vec<SlotRange>>,
}

impl RingDocument {
    /// Longest text that is read, 4 MiB. A ring of 4096 members with a range for every slot is a quarter of it.
    pub const TEXT_BYTES_MAX: usize = 4 << 20;

    /// The document of these servers, by name, with the ranges of their [`SlotTable`]: no range wraps around, none
    /// overlaps another, and all slots are in them. No servers are an empty ring, which is a document too.
    ///
    /// # Errors
    ///
    /// Those of [`SlotTable::new`] but for the empty list.
    pub fn of(
        servers: &BTreeMap<String, ServerAddress>,
        version: u64,
        more: BTreeMap<String, Value>,
    ) -> Result<Self, MemberListError> {
        let mut ranges: Vec<Vec<SlotRange>> = vec![Vec::new(); servers.len()];
        if !servers.is_empty() {
            // The indices of the table are those of the map: both go by the bytes of the names.
            let table = SlotTable::new(&servers.keys().collect::<Vec<_>>())?;
            for slot in RingSlot::all() {
                let index = slot.index() as u32;
                let own = &mut ranges[table.owner(slot)];
                match own.last_mut() {
                    Some(range) if range.end + 1 == index => range.end = index,
                    _ => own.push(SlotRange { start: index, end: index }),
                }
            }
        }
        let node = |((name, address), slots): ((&String, &ServerAddress), _)| RingNode {
            name: name.clone(),
            address: address.clone(),
            slots: Some(slots),
        };
        Ok(Self { nodes: servers.iter().zip(ranges).map(node).collect(), version: Some(version), more })
    }

    /// Reads either form. `null` or an empty array in place of the servers is a ring of nobody.
    ///
    /// # Errors
    ///
    /// If the text is no JSON of either form, is longer than [`Self::TEXT_BYTES_MAX`], or an address is none.
    pub fn from_json(text: &[u8]) -> Result<Self, RingDocumentError> {
        if text.len() > Self::TEXT_BYTES_MAX {
            return Err(RingDocumentError::TooLong { bytes: text.len() });
        }
        let read: ReadDocument = serde_json::from_slice(text).map_err(RingDocumentError::Json)?;
        let nodes = match (read.members, read.nodes) {
            (Some(members), None) => numbered(members.unwrap_or_default(), ReadMember::node)?,
            (None, Some(nodes)) => numbered(nodes.unwrap_or_default(), ReadNode::node)?,
            (Some(_), Some(_)) => return Err(RingDocumentError::BothForms),
            (None, None) => return Err(RingDocumentError::NeitherForm),
        };
        Ok(Self { nodes, version: read.version, more: read.more })
    }

    /// The document in AIBrix's form, on one line: equal documents have equal bytes. The names of [`Self::more`] must
    /// not be those of the document's own fields, which would be there twice.
    pub fn to_json(&self) -> String {
        debug_assert!(!["nodes", "members", "version"].iter().any(|own| self.more.contains_key(*own)));
        let nodes = self.nodes.iter().map(|node| WrittenNode {
            name: &node.name,
            addr: node.address.host(),
            port: node.address.port(),
            slots: node.slots.as_deref(),
        });
        let written = WrittenDocument { nodes: nodes.collect(), version: self.version, more: &self.more };
        // Maps have text as keys and nothing in it can refuse to be written, so there is no error to hand on.
        serde_json::to_string(&written).unwrap_or_default()
    }
}

/// Why a text is no ring.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RingDocumentError {
    /// It is no JSON, or a field has another type.
    #[error("not a list of members: {0}; write {EXAMPLE}")]
    Json(#[source] serde_json::Error),
    /// It has neither of the fields that list members.
    #[error("the JSON object has neither \"members\" nor \"nodes\"; write {EXAMPLE}")]
    NeitherForm,
    /// It has both.
    #[error("the JSON object has both \"members\" and \"nodes\": keep one of them")]
    BothForms,
    /// It is too long to be a list of members.
    #[error(
        "{bytes} bytes are too long for a list of members, at most {} are read",
        RingDocument::TEXT_BYTES_MAX
    )]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// An address cannot be read.
    #[error("member {position}: {source}")]
    Address {
        /// Its place in the list, counted from 1.
        position: usize,
        /// What is wrong with it.
        source: ServerAddressError,
    },
}

const EXAMPLE: &str = r#"{"members": ["10.0.0.7:12345"]}"#;

#[derive(Serialize)]
struct WrittenDocument<'a> {
    nodes: Vec<WrittenNode<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<u64>,
    #[serde(flatten)]
    more: &'a BTreeMap<String, Value>,
}

#[derive(Serialize)]
struct WrittenNode<'a> {
    name: &'a str,
    addr: &'a str,
    port: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    slots: Option<&'a [SlotRange]>,
}

#[derive(Deserialize)]
struct ReadDocument {
    // The outer option is whether the field is there; Go writes an empty list as null.
    #[serde(default, deserialize_with = "present")]
    members: Option<Option<Vec<ReadMember>>>,
    #[serde(default, deserialize_with = "present")]
    nodes: Option<Option<Vec<ReadNode>>>,
    version: Option<u64>,
    #[serde(flatten)]
    more: BTreeMap<String, Value>,
}

fn present<'de, T: Deserialize<'de>, D: serde::Deserializer<'de>>(field: D) -> Result<Option<T>, D::Error> {
    T::deserialize(field).map(Some)
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "a member is \"host:port\" or {\"name\": …, \"address\": \"host:port\"}")]
enum ReadMember {
    Address(String),
    Named { name: Option<String>, address: String },
}

impl ReadMember {
    fn node(self) -> Result<RingNode, ServerAddressError> {
        let (name, address) = match self {
            Self::Address(address) => (None, address),
            Self::Named { name, address } => (name, address),
        };
        Ok(RingNode::named(name, address.parse()?, None))
    }
}

#[derive(Deserialize)]
struct ReadNode {
    name: Option<String>,
    addr: String,
    port: u16,
    slots: Option<Vec<SlotRange>>,
}

impl ReadNode {
    fn node(self) -> Result<RingNode, ServerAddressError> {
        Ok(RingNode::named(self.name, ServerAddress::new(&self.addr, self.port)?, self.slots))
    }
}

impl RingNode {
    fn named(name: Option<String>, address: ServerAddress, slots: Option<Vec<SlotRange>>) -> Self {
        Self { name: name.unwrap_or_else(|| address.to_string()), address, slots }
    }
}

fn numbered<T>(
    entries: Vec<T>,
    read: impl Fn(T) -> Result<RingNode, ServerAddressError>,
) -> Result<Vec<RingNode>, RingDocumentError> {
    let numbered = entries.into_iter().enumerate();
    numbered
        .map(|(index, entry)| {
            read(entry).map_err(|source| RingDocumentError::Address { position: index + 1, source })
        })
        .collect()
}
