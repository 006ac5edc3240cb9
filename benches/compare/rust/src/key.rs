//! Keys of numbered blocks, and how all caches hash them.

use std::hash::{BuildHasherDefault, Hasher};

use kvcache_core::BlockKey;

/// A key for a numbered block, spread like the hash that it would be (SplitMix64, Steele, Lea and Flood, *Fast splittable
/// pseudorandom number generators*, OOPSLA 2014).
pub(crate) fn key(number: u64) -> BlockKey {
    let mut hash = number.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    hash ^= hash >> 31;
    let mut bytes = [0; BlockKey::BYTES];
    bytes[..8].copy_from_slice(&hash.to_le_bytes());
    bytes[8..].copy_from_slice(&number.to_le_bytes());
    BlockKey(bytes)
}

/// Makes [`FirstBytes`].
pub(crate) type KeyHasher = BuildHasherDefault<FirstBytes>;

/// A block key is a hash already: its first eight bytes are taken as they are, which is what our Directory does. The
/// hashers that other caches come with would cost them time and gain nothing.
#[derive(Default)]
pub(crate) struct FirstBytes(u64);

impl Hasher for FirstBytes {
    fn write(&mut self, bytes: &[u8]) {
        if let Some(first) = bytes.first_chunk() {
            self.0 = u64::from_le_bytes(*first);
        }
    }

    // The length of the array, which comes before its bytes.
    fn write_usize(&mut self, _length: usize) {}

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use std::hash::BuildHasher;

    use super::*;

    #[test]
    fn a_key_hashes_to_its_first_bytes() {
        let key = key(7);
        assert_eq!(KeyHasher::default().hash_one(key).to_le_bytes(), key.0[..8]);
    }
}
