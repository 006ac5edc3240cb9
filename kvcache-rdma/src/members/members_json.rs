//! Lists of members as JSON, in a file or in Redis.
//!
//! Two forms are read. Ours names members by address, or by name and address:
//!
//! ```json
//! {"members": ["10.0.0.7:12345", {"name": "kv-1", "address": "10.0.0.8:12345"}], "version": 3}
//! ```
//!
//! AIBrix's is what its watcher publishes: `addr` and `port` of each node, its name, and ranges of slots with both
//! ends included. Unknown fields are ignored, so that publishers may add to it.
//!
//! ```json
//! {"nodes": [{"name": "kv-0", "addr": "10.0.0.7", "port": 12345, "slots": [{"start": 0, "end": 4095}]}], "version": 7}
//! ```

use kvcache_core::ring::SlotRange;
use serde::Deserialize;

use super::{Member, MemberList, MembersError, ServerAddress};

/// Largest text that is read. A ring of 4096 members with a range for every slot is a tenth of it.
pub(super) const TEXT_BYTES_MAX: usize = 4 << 20;

impl MemberList {
    /// The list in this JSON text. `null` or an empty array in place of the members is a list of nobody.
    ///
    /// # Errors
    ///
    /// If the text is no JSON of either form, is longer than 4 MiB, or its members make no list.
    pub fn from_json(text: &[u8]) -> Result<Self, MembersJsonError> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(MembersJsonError::TooLong { bytes: text.len() });
        }
        let document: Document = serde_json::from_slice(text).map_err(MembersJsonError::Json)?;
        let members = match (document.members, document.nodes) {
            (Some(members), None) => numbered(members.unwrap_or_default(), OurMember::member)?,
            (None, Some(nodes)) => numbered(nodes.unwrap_or_default(), Node::member)?,
            (Some(_), Some(_)) => return Err(MembersJsonError::BothForms),
            (None, None) => return Err(MembersJsonError::NeitherForm),
        };
        Ok(Self::published(members, document.version)?)
    }
}

/// Why a text is no list of members.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MembersJsonError {
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
    #[error("{bytes} bytes are too long for a list of members, at most {TEXT_BYTES_MAX} are read")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// Its members make no list.
    #[error(transparent)]
    Members(#[from] MembersError),
}

const EXAMPLE: &str = r#"{"members": ["10.0.0.7:12345"]}"#;

#[derive(Deserialize)]
struct Document {
    // The outer option is whether the field is there; Go writes an empty list as null.
    #[serde(default, deserialize_with = "present")]
    members: Option<Option<Vec<OurMember>>>,
    #[serde(default, deserialize_with = "present")]
    nodes: Option<Option<Vec<Node>>>,
    version: Option<u64>,
}

fn present<'de, T: Deserialize<'de>, D: serde::Deserializer<'de>>(field: D) -> Result<Option<T>, D::Error> {
    T::deserialize(field).map(Some)
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "a member is \"host:port\" or {\"name\": …, \"address\": \"host:port\"}")]
enum OurMember {
    Address(String),
    Named { name: Option<String>, address: String },
}

type Published = (Member, Option<Vec<SlotRange>>);

impl OurMember {
    fn member(self) -> Result<Published, super::ServerAddressError> {
        let (name, address) = match self {
            Self::Address(address) => (None, address),
            Self::Named { name, address } => (name, address),
        };
        Ok((named(name, address.parse()?), None))
    }
}

#[derive(Deserialize)]
struct Node {
    name: Option<String>,
    addr: String,
    port: u16,
    slots: Option<Vec<Range>>,
}

#[derive(Deserialize)]
struct Range {
    start: u32,
    end: u32,
}

impl Node {
    fn member(self) -> Result<Published, super::ServerAddressError> {
        let ranges =
            |slots: Vec<Range>| slots.iter().map(|r| SlotRange { start: r.start, end: r.end }).collect();
        Ok((named(self.name, ServerAddress::new(&self.addr, self.port)?), self.slots.map(ranges)))
    }
}

fn named(name: Option<String>, address: ServerAddress) -> Member {
    match name {
        Some(name) => Member { name, address },
        None => Member::at(address),
    }
}

fn numbered<T>(
    entries: Vec<T>,
    read: impl Fn(T) -> Result<Published, super::ServerAddressError>,
) -> Result<Vec<Published>, MembersError> {
    let numbered = entries.into_iter().enumerate();
    numbered
        .map(|(index, entry)| {
            read(entry).map_err(|source| MembersError::Address { position: index + 1, source })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Vec<String> {
        let list = MemberList::from_json(text.as_bytes()).unwrap();
        list.members().iter().map(|member| format!("{}={}", member.name, member.address)).collect()
    }

    #[test]
    fn our_form_names_members_or_not() {
        assert_eq!(
            names(
                r#"{"members": ["10.0.0.8:1", {"name": "kv-1", "address": "[::1]:2"}, {"address": "h:3"}]}"#
            ),
            ["10.0.0.8:1=10.0.0.8:1", "h:3=h:3", "kv-1=[::1]:2"]
        );
    }

    /// As AIBrix's watcher writes it, with a field that only newer ones have.
    #[test]
    fn the_form_of_aibrix_is_read_as_it_is() {
        let text = r#"{"nodes":[{"name":"kv-0","addr":"10.0.0.7","port":12345,"slots":[{"start":5,"end":9},{"start":4090,"end":3}]},
                      {"addr":"10.0.0.8","port":12345,"rack":"b","slots":null}],"version":7,"cluster":"x"}"#;
        assert_eq!(names(text), ["10.0.0.8:12345=10.0.0.8:12345", "kv-0=10.0.0.7:12345"]);
        let list = MemberList::from_json(text.as_bytes()).unwrap();
        assert_eq!(list.version(), Some(7));
        let ranges = [SlotRange { start: 5, end: 9 }, SlotRange { start: 4090, end: 3 }];
        assert_eq!(list.ranges(), Some(&[vec![], ranges.to_vec()][..]));
    }

    #[test]
    fn nobody_is_a_list_too() {
        for text in [r#"{"nodes":[]}"#, r#"{"nodes":null,"version":3}"#, r#"{"members":[]}"#] {
            assert!(MemberList::from_json(text.as_bytes()).unwrap().is_empty(), "{text}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_text_is_said() {
        let error = |text: &str| MemberList::from_json(text.as_bytes()).unwrap_err().to_string();
        let remedy = r#"; write {"members": ["10.0.0.7:12345"]}"#;
        assert_eq!(
            error("{\"members\": [\"a"),
            format!("not a list of members: EOF while parsing a string at line 1 column 15{remedy}")
        );
        assert_eq!(
            error(""),
            format!("not a list of members: EOF while parsing a value at line 1 column 0{remedy}")
        );
        assert_eq!(error("{}"), format!("the JSON object has neither \"members\" nor \"nodes\"{remedy}"));
        assert_eq!(
            error(r#"{"members":[],"nodes":[]}"#),
            "the JSON object has both \"members\" and \"nodes\": keep one of them"
        );
        assert!(
            error(r#"{"members":[17]}"#).contains("a member is \"host:port\" or"),
            "{}",
            error(r#"{"members":[17]}"#)
        );
        assert!(error(r#"{"nodes":[{"addr":"h","port":70000}]}"#).contains("expected u16"));
        assert_eq!(
            error(r#"{"members":["a:1","b"]}"#),
            "member 2: \"b\" is not a server's address: the port is missing; write host:port, as in 10.0.0.7:12345"
        );
        assert_eq!(
            error(r#"{"nodes":[{"name":"a","addr":"h","port":1},{"name":"a","addr":"i","port":1}]}"#),
            "the ring names \"a\" twice: each server is listed once"
        );
        let long = vec![b' '; TEXT_BYTES_MAX + 1];
        assert_eq!(
            MemberList::from_json(&long).unwrap_err().to_string(),
            "4194305 bytes are too long for a list of members, at most 4194304 are read"
        );
    }
}
