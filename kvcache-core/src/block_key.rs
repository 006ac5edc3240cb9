//! Names of blocks: 16 bytes that cover every token up to the end of the block.
//!
//! Two sources exist. *Engine* keys wrap the hash that the engine itself chains over its blocks (in vLLM it covers
//! LoRA, multimodal inputs and cache salt). *Token* keys are chained here from token ids, so that engines of different
//! kinds agree. Both start from a [`Namespace`], so that blocks whose bytes could differ never share a key.
//! `docs/format.md` fixes every derivation with test vectors.

use std::fmt;
use std::str::FromStr;

use crate::fingerprint::{Namespace, ShardFingerprint};

/// Identifies a block by its whole prefix. Equal keys mean equal tokens up to the block's end in one namespace.
///
/// A key holds nothing that differs between the ranks of an engine, so that one decision is right for all of them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
#[repr(transparent)]
pub struct BlockKey(pub [u8; 16]);

/// Identifies one rank's bytes of a block: the [`BlockKey`] with the shard's fingerprint. Names blocks in L2.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct ShardKey(pub [u8; 16]);

impl BlockKey {
    /// Bytes of a key, here and in every serialised form.
    pub const BYTES: usize = 16;

    /// The first eight bytes as an integer: enough to address a hash table, never enough to compare keys.
    #[inline]
    pub fn short_hash(&self) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        u64::from_le_bytes([a, b, c, d, e, f, g, h])
    }

    /// Key of the block of KV cache group `group` that ends with the engine's block `engine_hash`. `extra` is what the
    /// engine's hash leaves out and bytes depend on, such as the content of a LoRA adapter.
    ///
    /// Cost: one BLAKE3 compression (about 0.1 µs) for hashes of 32 bytes without `extra`.
    pub fn from_engine_hash(namespace: &Namespace, group: u16, engine_hash: &[u8], extra: &[u8]) -> Self {
        let mut hasher = blake3::Hasher::new_keyed(&domain_key(b"engine"));
        hasher.update(&namespace.0);
        hasher.update(&group.to_le_bytes());
        hasher.update(&(engine_hash.len() as u16).to_le_bytes());
        hasher.update(engine_hash);
        hasher.update(extra);
        Self(cut(hasher.finalize()))
    }

    /// The key of this block's bytes on one shard.
    pub fn shard_key(&self, shard: &ShardFingerprint) -> ShardKey {
        let mut hasher = blake3::Hasher::new_keyed(&domain_key(b"shard"));
        hasher.update(&self.0);
        hasher.update(&shard.0);
        ShardKey(cut(hasher.finalize()))
    }
}

impl fmt::Debug for BlockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        crate::fingerprint::write_hex(f, &self.0)
    }
}

impl fmt::Debug for ShardKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        crate::fingerprint::write_hex(f, &self.0)
    }
}

/// Which function chains token ids into keys.
///
/// Users choose the tokens of their prompts, so whatever is shared between tenants, processes or machines needs a
/// collision-resistant function; XXH3 is for a private cache of a single tenant.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum HashAlgorithm {
    /// BLAKE3 cut to 16 bytes: safe to share.
    #[default]
    Blake3,
    /// XXH3-128: several times faster, private and single-tenant only.
    Xxh3,
}

impl FromStr for HashAlgorithm {
    type Err = UnknownHash;

    fn from_str(name: &str) -> Result<Self, UnknownHash> {
        match name {
            "blake3" => Ok(Self::Blake3),
            "xxh3" => Ok(Self::Xxh3),
            _ => Err(UnknownHash(name.to_owned())),
        }
    }
}

/// A hash name that is not known.
#[derive(Debug, thiserror::Error)]
#[error("unknown hash {0:?}: use \"blake3\" (safe to share) or \"xxh3\" (faster, private single-tenant caches only)")]
pub struct UnknownHash(String);

/// Chains token ids into block keys, block by block.
///
/// Linear in the tokens and restartable: a request that grows continues from its last key.
#[derive(Clone, Debug)]
pub struct TokenHasher {
    algorithm: HashAlgorithm,
    root: BlockKey,
    block_tokens: usize,
    buffer: Vec<u8>,
}

impl TokenHasher {
    /// A hasher for blocks of `block_tokens` tokens. `extra` separates what tokens do not say: LoRA, salt, group.
    ///
    /// # Panics
    /// If `block_tokens` is zero.
    pub fn new(algorithm: HashAlgorithm, namespace: &Namespace, extra: &[u8], block_tokens: usize) -> Self {
        assert!(block_tokens > 0, "a block holds at least one token");
        // The root is always BLAKE3: it is computed once and `extra` may hold secrets such as a tenant's salt.
        let mut hasher = blake3::Hasher::new_keyed(&domain_key(b"tokens"));
        hasher.update(&namespace.0);
        hasher.update(&(block_tokens as u64).to_le_bytes());
        hasher.update(extra);
        let root = BlockKey(cut(hasher.finalize()));
        Self { algorithm, root, block_tokens, buffer: Vec::with_capacity(16 + 4 * block_tokens) }
    }

    /// Tokens in a block.
    pub fn block_tokens(&self) -> usize {
        self.block_tokens
    }

    /// The key before the first block.
    pub fn root(&self) -> BlockKey {
        self.root
    }

    /// Appends the keys of the whole blocks of `tokens` to `keys`, continuing after `parent`.
    ///
    /// `tokens` starts at a block boundary; a tail shorter than a block is left out. Cost: linear, measured at
    /// 0.02 µs (XXH3) to 0.2 µs (BLAKE3) for a block of 16 tokens.
    pub fn chain(&mut self, parent: BlockKey, tokens: impl Iterator<Item = u32>, keys: &mut Vec<BlockKey>) {
        let mut parent = parent;
        let mut count = 0;
        self.buffer.clear();
        self.buffer.extend_from_slice(&parent.0);
        for token in tokens {
            self.buffer.extend_from_slice(&token.to_le_bytes());
            count += 1;
            if count == self.block_tokens {
                parent = self.digest();
                keys.push(parent);
                count = 0;
                self.buffer.clear();
                self.buffer.extend_from_slice(&parent.0);
            }
        }
    }

    fn digest(&self) -> BlockKey {
        match self.algorithm {
            HashAlgorithm::Blake3 => BlockKey(cut(blake3::hash(&self.buffer))),
            HashAlgorithm::Xxh3 => BlockKey(xxhash_rust::xxh3::xxh3_128(&self.buffer).to_le_bytes()),
        }
    }
}

/// Keys of BLAKE3's keyed mode: one per purpose, so that a digest of one never equals a digest of another.
fn domain_key(purpose: &[u8]) -> [u8; 32] {
    let mut key = [0u8; 32];
    let label = b"aibrix-kvcache-1 ";
    key[..label.len()].copy_from_slice(label);
    key[label.len()..label.len() + purpose.len()].copy_from_slice(purpose);
    key
}

pub(crate) fn cut(hash: blake3::Hash) -> [u8; 16] {
    let mut out = [0u8; 16];
    out.copy_from_slice(&hash.as_bytes()[..16]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn chain(hasher: &mut TokenHasher, tokens: &[u32]) -> Vec<BlockKey> {
        let mut keys = Vec::new();
        let root = hasher.root();
        hasher.chain(root, tokens.iter().copied(), &mut keys);
        keys
    }

    proptest! {
        /// A key depends on every token up to its block's end and on nothing after it.
        #[test]
        fn a_key_covers_its_whole_prefix(tokens in prop::collection::vec(0u32..50_000, 1..200), change in any::<prop::sample::Index>(),
                                         block_tokens in 1usize..20, xxh3 in any::<bool>()) {
            let algorithm = if xxh3 { HashAlgorithm::Xxh3 } else { HashAlgorithm::Blake3 };
            let mut hasher = TokenHasher::new(algorithm, &Namespace::of_text("t"), b"", block_tokens);
            let keys = chain(&mut hasher, &tokens);
            prop_assert_eq!(keys.len(), tokens.len() / block_tokens);
            let mut other = tokens.clone();
            let at = change.index(tokens.len());
            other[at] ^= 1;
            let changed = chain(&mut hasher, &other);
            for (block, (a, b)) in keys.iter().zip(&changed).enumerate() {
                prop_assert_eq!(a == b, (block + 1) * block_tokens <= at);
            }
        }

        /// A request that grows gets the keys it would have got at once.
        #[test]
        fn chaining_can_be_continued(tokens in prop::collection::vec(any::<u32>(), 0..200), split in 0usize..20) {
            let mut hasher = TokenHasher::new(HashAlgorithm::Blake3, &Namespace::of_text("t"), b"x", 7);
            let whole = chain(&mut hasher, &tokens);
            let split = (split * 7).min(tokens.len());
            let mut keys = chain(&mut hasher, &tokens[..split]);
            let parent = keys.last().copied().unwrap_or(hasher.root());
            hasher.chain(parent, tokens[split / 7 * 7..].iter().copied(), &mut keys);
            prop_assert_eq!(keys, whole);
        }
    }

    #[test]
    fn namespace_extra_block_size_and_algorithm_separate_keys() {
        let tokens: Vec<u32> = (0..64).collect();
        let mut seen = std::collections::HashSet::new();
        for namespace in ["a", "b"] {
            for extra in [&b""[..], b"lora"] {
                for block_tokens in [16, 32] {
                    for algorithm in [HashAlgorithm::Blake3, HashAlgorithm::Xxh3] {
                        let ns = Namespace::of_text(namespace);
                        for key in chain(&mut TokenHasher::new(algorithm, &ns, extra, block_tokens), &tokens) {
                            assert!(seen.insert(key));
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn engine_keys_separate_namespace_group_and_hash() {
        let mut seen = std::collections::HashSet::new();
        for namespace in ["a", "b"] {
            for group in [0, 1] {
                for hash in [[1u8; 32], [2; 32]] {
                    for extra in [&b""[..], b"adapter"] {
                        let namespace = Namespace::of_text(namespace);
                        assert!(seen.insert(BlockKey::from_engine_hash(&namespace, group, &hash, extra)));
                    }
                }
            }
        }
        let key = BlockKey::from_engine_hash(&Namespace::of_text("a"), 0, &[1; 32], b"");
        assert_ne!(key.shard_key(&ShardFingerprint([1; 16])).0, key.shard_key(&ShardFingerprint([2; 16])).0);
    }

    /// The vectors of `docs/format.md`: a change here breaks every cache that persists.
    #[test]
    fn derivations_match_the_documented_vectors() {
        let namespace = Namespace::of_text("demo");
        let tokens: Vec<u32> = (0..32).collect();
        let blake3 = chain(&mut TokenHasher::new(HashAlgorithm::Blake3, &namespace, b"", 16), &tokens);
        let xxh3 = chain(&mut TokenHasher::new(HashAlgorithm::Xxh3, &namespace, b"", 16), &tokens);
        let engine = BlockKey::from_engine_hash(&namespace, 0, &[7; 32], b"");
        let shard = engine.shard_key(&ShardFingerprint([9; 16]));
        let got = format!("{:?} {blake3:?} {xxh3:?} {engine:?} {shard:?}", namespace);
        assert_eq!(got, VECTORS, "derivation changed: bump the format version");
    }

    const VECTORS: &str = "767c97d30188d86e9decad7107f53257 \
         [a174f64d902953da1182c84e85cb4ce0, ce21ee27dae92a8e0808f7532c4977d3] \
         [c88278f21493e56c119ef9157293be1b, 513ffa7b869443d0a815999e01b66a11] \
         9f0175f78e26663f34d1cfb28e4256f3 8d7507481c5236efd3266aca91394009";

    #[test]
    fn unknown_hash_names_value_and_remedy() {
        let error = "md5".parse::<HashAlgorithm>().unwrap_err().to_string();
        assert_eq!(
            error,
            "unknown hash \"md5\": use \"blake3\" (safe to share) or \"xxh3\" (faster, private single-tenant caches only)"
        );
    }
}
