//! Names of values: a space, which separates whatever must not be mixed, and a block key.

use std::fmt;

use xxhash_rust::xxh3::{Xxh3, xxh3_64, xxh3_64_with_seed};

use crate::BlockKey;
use crate::block_key::cut;
use crate::fingerprint::{Namespace, ShardFingerprint, write_hex};

/// Separates values of the same block key on shared servers: by namespace, shard, length and generation.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct RemoteSpace(pub [u8; 16]);

impl RemoteSpace {
    /// The space of one shard.
    ///
    /// Engines share values of `generation` 0. Whoever has thrown its cache away for good (a reset) uses another number,
    /// drawn at random: it must not find again what it or others stored before.
    pub fn new(namespace: &Namespace, shard: &ShardFingerprint, value_bytes: u64, generation: u64) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"aibrix-kvcache-1 remote space");
        hasher.update(&namespace.0);
        hasher.update(&shard.0);
        hasher.update(&value_bytes.to_le_bytes());
        hasher.update(&generation.to_le_bytes());
        Self(cut(hasher.finalize()))
    }
}

impl fmt::Debug for RemoteSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0)
    }
}

/// Names one value.
///
/// On the wire it is text, `<space>/<block>`, both as 32 lower-case hexadecimal digits: 65 bytes. Which servers hold it
/// depends on the block alone, so that all shards of a block are together.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct RemoteKey {
    /// What it is separated by.
    pub space: RemoteSpace,
    /// The block.
    pub block: BlockKey,
}

impl RemoteKey {
    /// Bytes of a name.
    pub const NAME_BYTES: usize = 65;

    /// The name on the wire.
    pub fn name(&self) -> [u8; Self::NAME_BYTES] {
        let mut name = [b'/'; Self::NAME_BYTES];
        hex(&self.space.0, &mut name[..32]);
        hex(&self.block.0, &mut name[33..]);
        name
    }
}

fn hex(bytes: &[u8; 16], out: &mut [u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for (byte, pair) in bytes.iter().zip(out.chunks_exact_mut(2)) {
        pair[0] = DIGITS[usize::from(byte >> 4)];
        pair[1] = DIGITS[usize::from(byte & 15)];
    }
}

/// The checksum that travels with a value: XXH3-64 of its bytes, seeded with the XXH3-64 of its name, so that a value
/// under another's name does not pass for it. About 50 µs a MiB.
pub fn value_checksum(name: &[u8], value: &[u8]) -> u64 {
    xxh3_64_with_seed(value, xxh3_64(name))
}

/// [`value_checksum`] of a value that comes in pieces.
#[derive(Clone)]
pub struct ValueHasher(Xxh3);

impl ValueHasher {
    /// For a value called `name`.
    pub fn new(name: &[u8]) -> Self {
        Self(Xxh3::with_seed(xxh3_64(name)))
    }

    /// The next piece.
    pub fn update(&mut self, piece: &[u8]) {
        self.0.update(piece);
    }

    /// The checksum of the pieces so far.
    pub fn finish(&self) -> u64 {
        self.0.digest()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space(namespace: u8, shard: u8, bytes: u64, generation: u64) -> RemoteSpace {
        RemoteSpace::new(&Namespace([namespace; 16]), &ShardFingerprint([shard; 16]), bytes, generation)
    }

    #[test]
    fn everything_that_separates_counts() {
        let spaces =
            [space(1, 2, 3, 0), space(2, 2, 3, 0), space(1, 1, 3, 0), space(1, 2, 4, 0), space(1, 2, 3, 1)];
        for (index, one) in spaces.iter().enumerate() {
            assert!(spaces[index + 1..].iter().all(|other| other != one), "{index}");
        }
    }

    /// Golden, in docs/format.md: servers keep values longer than engines live.
    #[test]
    fn a_name_is_the_same_for_ever() {
        let key = RemoteKey { space: space(1, 2, 4096, 0), block: BlockKey([0xa5; 16]) };
        let name = key.name();
        let name = std::str::from_utf8(&name).unwrap();
        assert_eq!(name, "eefa91a9a0ae91acd86f55e16c164469/a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5");
        assert_eq!(value_checksum(name.as_bytes(), b"value"), 13_003_995_593_358_577_211);
    }

    #[test]
    fn a_checksum_covers_name_and_value() {
        let of = value_checksum;
        assert_ne!(of(b"a", b"value"), of(b"b", b"value"));
        assert_ne!(of(b"a", b"value"), of(b"a", b"valuf"));
        assert_eq!(of(b"a", b"value"), of(b"a", b"value"));
    }

    #[test]
    fn pieces_have_the_checksum_of_the_whole() {
        let value: Vec<u8> = (0..5000_u32).map(|n| (n * 7) as u8).collect();
        for piece in [1, 63, 256, 1000, 5000] {
            let mut hasher = ValueHasher::new(b"name");
            value.chunks(piece).for_each(|piece| hasher.update(piece));
            assert_eq!(hasher.finish(), value_checksum(b"name", &value));
        }
    }
}
