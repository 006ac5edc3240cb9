//! Whether a ring may take the place of the one that is stored.

use std::fmt;

use kvcache_core::ring::RingDocument;
use serde_json::Value;

/// The field of a stored ring that has the `uid` of the KVCache that it belongs to.
const UID_FIELD: &str = "kvcache_uid";
/// The field that has its namespace and name, for people and for messages.
const NAME_FIELD: &str = "kvcache";

/// The KVCache that a ring in Redis belongs to. Several may share one Redis, so the key alone says nothing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RingOwner {
    /// Its namespace and name, `NAMESPACE/NAME`.
    pub name: String,
    /// Its `metadata.uid`: a cache of the same name in another cluster, or one that was deleted, is another one.
    pub uid: String,
}

impl fmt::Display for RingOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (uid {})", self.name, self.uid)
    }
}

impl RingOwner {
    /// The text to store: the ring of `document` with its owner, without what only an operator wants to know.
    pub(super) fn text_of(&self, document: &RingDocument) -> String {
        let owned = [(UID_FIELD, &self.uid), (NAME_FIELD, &self.name)];
        let more = owned.into_iter().map(|(field, text)| (field.to_owned(), Value::from(text.as_str())));
        RingDocument { more: more.collect(), ..document.clone() }.to_json()
    }
}

/// What is stored under a key, seen by the one who wants to write there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Stored {
    /// Nothing, or nothing that is a ring: the key is free.
    Nothing,
    /// A ring of this cache, of this version; 0 if it has none.
    Ours { version: u64 },
    /// A ring of nobody: AIBrix's watcher says no owner.
    Nobodys { version: u64 },
    /// A ring of another cache.
    Others { owner: RingOwner },
}

impl Stored {
    /// What `stored` is to `owner`.
    pub(super) fn of(stored: Option<&[u8]>, owner: &RingOwner) -> Self {
        let Some(Ok(document)) = stored.map(RingDocument::from_json) else { return Self::Nothing };
        let field = |name: &str| document.more.get(name).and_then(Value::as_str);
        let version = document.version.unwrap_or(0);
        match field(UID_FIELD) {
            None => Self::Nobodys { version },
            Some(uid) if uid == owner.uid => Self::Ours { version },
            Some(uid) => {
                let name = field(NAME_FIELD).unwrap_or("an unnamed KVCache").to_owned();
                Self::Others { owner: RingOwner { name, uid: uid.to_owned() } }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn owner(uid: &str) -> RingOwner {
        RingOwner { name: "default/kv".to_owned(), uid: uid.to_owned() }
    }

    fn text(uid: &str, version: u64) -> String {
        let servers = BTreeMap::from([("kv-0".to_owned(), "10.0.0.7:12345".parse().expect("an address"))]);
        let memory = BTreeMap::from([("away_since_ms".to_owned(), Value::Null)]);
        owner(uid).text_of(&RingDocument::of(&servers, version, memory).expect("a ring"))
    }

    /// AIBrix's fields first, so that its readers see what they know; no memory of the operator.
    #[test]
    fn the_bytes_in_redis_are_golden() {
        assert_eq!(
            text("u-1", 7),
            r#"{"nodes":[{"name":"kv-0","addr":"10.0.0.7","port":12345,"slots":[{"start":0,"end":4095}]}],"version":7,"kvcache":"default/kv","kvcache_uid":"u-1"}"#
        );
    }

    #[test]
    fn who_stored_a_ring_is_known() {
        let stored = |stored: Option<&str>| Stored::of(stored.map(str::as_bytes), &owner("u-1"));
        assert_eq!(stored(None), Stored::Nothing);
        for nothing in ["", "{", "[]", r#"{"nodes":7}"#, "\u{0}"] {
            assert_eq!(stored(Some(nothing)), Stored::Nothing, "{nothing:?}");
        }
        assert_eq!(stored(Some(&text("u-1", 9))), Stored::Ours { version: 9 });
        assert_eq!(stored(Some(r#"{"nodes":[],"version":57}"#)), Stored::Nobodys { version: 57 });
        assert_eq!(stored(Some(r#"{"nodes":null}"#)), Stored::Nobodys { version: 0 });
        assert_eq!(stored(Some(&text("u-2", 1))), Stored::Others { owner: owner("u-2") });
        let unnamed =
            Stored::Others { owner: RingOwner { name: "an unnamed KVCache".into(), uid: "u-3".into() } };
        assert_eq!(stored(Some(r#"{"nodes":[],"version":57,"kvcache_uid":"u-3"}"#)), unnamed);
    }
}
