//! Keys of blocks from the tokens before them, as one cache names its blocks.

use kvcache_core::BlockKey;
use kvcache_core::block_key::{HashAlgorithm, TokenHasher};
use kvcache_core::fingerprint::Namespace;

use crate::Error;

/// Names blocks by their tokens in one namespace, with one hash. Needs no cache to be open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TokenKeys {
    /// Separates keys of different caches.
    pub namespace: Namespace,
    /// Chains the tokens.
    pub hash: HashAlgorithm,
}

impl TokenKeys {
    /// Keys of the whole blocks of `tokens`; a tail shorter than a block is left out. `extra` separates what tokens do not
    /// say, such as an adapter. Cost: linear, up to 0.2 µs for a block of 16 tokens.
    ///
    /// # Errors
    /// [`Error::NoBlockTokens`], and [`Error::NotAToken`] for the first number outside of 32 bits without a sign.
    pub fn of<T: Copy + Into<i64>>(
        &self,
        tokens: &[T],
        block_tokens: usize,
        extra: &[u8],
    ) -> Result<Vec<BlockKey>, Error> {
        self.after(None, tokens, block_tokens, extra)
    }

    /// As [`of`](Self::of) for tokens that come after those of `parent`, the last key before them.
    ///
    /// # Errors
    /// As [`of`](Self::of).
    pub fn after<T: Copy + Into<i64>>(
        &self,
        parent: Option<BlockKey>,
        tokens: &[T],
        block_tokens: usize,
        extra: &[u8],
    ) -> Result<Vec<BlockKey>, Error> {
        let mut hasher = self.hasher(block_tokens, extra)?;
        let ids = || tokens.iter().map(|token| (*token).into());
        if let Some(token) = ids().find(|token| u32::try_from(*token).is_err()) {
            return Err(Error::NotAToken(token));
        }
        let mut keys = Vec::with_capacity(tokens.len() / block_tokens);
        let parent = parent.unwrap_or(hasher.root());
        // No loss: checked above.
        hasher.chain(parent, ids().map(|token| token as u32), &mut keys);
        Ok(keys)
    }

    /// What chains tokens piece by piece, for prompts that grow.
    ///
    /// # Errors
    /// [`Error::NoBlockTokens`].
    pub fn hasher(&self, block_tokens: usize, extra: &[u8]) -> Result<TokenHasher, Error> {
        if block_tokens == 0 {
            return Err(Error::NoBlockTokens);
        }
        Ok(TokenHasher::new(self.hash, &self.namespace, extra, block_tokens))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first vector of docs/format.md, from every type of tokens.
    #[test]
    fn every_type_of_tokens_gives_the_documented_keys() {
        let keys = TokenKeys { namespace: Namespace::of_text("demo"), hash: HashAlgorithm::Blake3 };
        let expected = ["a174f64d902953da1182c84e85cb4ce0", "ce21ee27dae92a8e0808f7532c4977d3"];
        let hex = |keys: Vec<BlockKey>| -> Vec<String> {
            keys.iter().map(|key| key.0.iter().map(|byte| format!("{byte:02x}")).collect()).collect()
        };
        let tokens = |count: i64| 0..count;
        assert_eq!(hex(keys.of(&tokens(32).collect::<Vec<i64>>(), 16, b"").unwrap()), expected);
        let short: Vec<u32> = tokens(47).map(|token| token as u32).collect();
        assert_eq!(hex(keys.of(&short, 16, b"").unwrap()), expected);
        let signed: Vec<i32> = tokens(32).map(|token| token as i32).collect();
        assert_eq!(hex(keys.of(&signed, 16, b"").unwrap()), expected);
    }

    #[test]
    fn what_is_no_token_is_named() {
        let keys = TokenKeys { namespace: Namespace::of_text("demo"), hash: HashAlgorithm::Xxh3 };
        let text = |tokens: &[i64], block_tokens| keys.of(tokens, block_tokens, b"").unwrap_err().to_string();
        assert_eq!(text(&[1, -1, -2], 1), "token -1 is not a token id: ids are 0 to 4294967295");
        assert_eq!(text(&[1 << 32], 2), "token 4294967296 is not a token id: ids are 0 to 4294967295");
        assert_eq!(text(&[1], 0), "block_tokens is 0: use 1 or more");
        assert_eq!(keys.of(&[i64::from(u32::MAX)], 1, b"").unwrap().len(), 1);
    }
}
