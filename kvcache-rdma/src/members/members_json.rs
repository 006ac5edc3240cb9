//! Lists of members as JSON, in a file or in Redis: [`RingDocument`] has both forms of it.

use kvcache_core::ring::{RingDocument, RingDocumentError};

use super::{Member, MemberList, MembersError};

impl MemberList {
    /// The list in this JSON text. `null` or an empty array in place of the members is a list of nobody.
    ///
    /// # Errors
    ///
    /// If [`RingDocument::from_json`] refuses the text, or its members make no list.
    pub fn from_json(text: &[u8]) -> Result<Self, MembersJsonError> {
        let RingDocument { nodes, version, .. } = RingDocument::from_json(text)?;
        let members = nodes.into_iter();
        let members =
            members.map(|node| (Member { name: node.name, address: node.address }, node.slots)).collect();
        Ok(Self::published(members, version)?)
    }
}

/// Why a text is no list of members.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MembersJsonError {
    /// It is no document of a ring.
    #[error(transparent)]
    Document(#[from] RingDocumentError),
    /// Its members make no list.
    #[error(transparent)]
    Members(#[from] MembersError),
}

#[cfg(test)]
mod tests {
    use kvcache_core::ring::SlotRange;

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
    fn what_is_no_document_and_what_is_no_list_is_refused() {
        let error = |text: &str| MemberList::from_json(text.as_bytes()).unwrap_err().to_string();
        assert_eq!(
            error("{}"),
            r#"the JSON object has neither "members" nor "nodes"; write {"members": ["10.0.0.7:12345"]}"#
        );
        assert_eq!(
            error(r#"{"nodes":[{"name":"a","addr":"h","port":1},{"name":"a","addr":"i","port":1}]}"#),
            "the ring names \"a\" twice: each server is listed once"
        );
        assert_eq!(
            error(r#"{"nodes":[{"name":"a","addr":"h","port":1},{"name":"b","addr":"h","port":1}]}"#),
            "members \"a\" and \"b\" both listen on h:1: each server is listed once"
        );
    }
}
