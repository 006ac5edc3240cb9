//! Fingerprints: 16 bytes that cover everything which makes the bytes of a block different.
//!
//! The [`Namespace`] covers what all ranks of an engine share (model, weights, dtypes, parallel sizes, salt); the
//! [`ShardFingerprint`] what one rank's bytes depend on (layers, heads, resolved page layout). Fields are named and
//! hashed with their lengths, so that no two different lists of fields give the same fingerprint.

use std::fmt;

use crate::block_key::cut;

/// Separates caches whose blocks must never be mixed.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Namespace(pub [u8; 16]);

/// Separates shards of one namespace: distinct byte contents of the same tokens.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct ShardFingerprint(pub [u8; 16]);

impl Namespace {
    /// The namespace of a plain name, for callers that guarantee themselves what a name stands for.
    pub fn of_text(name: &str) -> Self {
        Self::of_fields([("name", name.as_bytes())])
    }

    /// The namespace of named fields. The order of fields matters.
    pub fn of_fields<'a>(fields: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> Self {
        Self(digest(b"namespace", fields))
    }
}

impl ShardFingerprint {
    /// The fingerprint of named fields. The order of fields matters.
    pub fn of_fields<'a>(fields: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> Self {
        Self(digest(b"shard", fields))
    }
}

fn digest<'a>(kind: &[u8], fields: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"aibrix-kvcache-1 fingerprint ");
    hasher.update(kind);
    for (name, value) in fields {
        for part in [name.as_bytes(), value] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
    }
    cut(hasher.finalize())
}

pub(crate) fn write_hex(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

impl fmt::Debug for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0)
    }
}

impl fmt::Debug for ShardFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_and_every_boundary_counts() {
        let of = |fields: &[(&str, &str)]| {
            Namespace::of_fields(fields.iter().map(|(name, value)| (*name, value.as_bytes())))
        };
        let variants = [
            of(&[("a", "bc")]),
            of(&[("ab", "c")]),
            of(&[("a", "b"), ("c", "")]),
            of(&[("a", ""), ("b", "c")]),
            of(&[("b", "c"), ("a", "")]),
            of(&[("a", "bd")]),
            of(&[]),
        ];
        for (i, a) in variants.iter().enumerate() {
            for b in &variants[i + 1..] {
                assert_ne!(a, b);
            }
        }
        assert_eq!(variants[0], of(&[("a", "bc")]));
        assert_ne!(ShardFingerprint::of_fields([("a", &b"bc"[..])]).0, variants[0].0);
    }
}
