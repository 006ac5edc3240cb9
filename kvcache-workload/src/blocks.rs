//! The blocks of a cache in which a prompt is kept, and their names.

use std::num::NonZeroU64;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::request::{Content, Piece, Request};

/// Cuts prompts into blocks of one length.
///
/// Two blocks have the same id if, and but for collisions of 64 bits only if, they and all tokens before them are
/// known to be the same. Only full blocks have one, with an exception below.
///
/// - Pieces: exact, for any length of a block.
/// - Ids of blocks: a trace's own block length gives its own ids, one for a partly filled last block included if the
///   trace has one. For another length, a block counts as shared only if the trace's block in which it ends is: what
///   two prompts share within a block that is not the same is not known, so that this is a lower bound.
/// - Text: blocks of as many bytes as their tokens have on average ([`BytesPerToken`]). Where a text is shared it is
///   shared whatever its tokens are, so that the error is that of the average.
#[derive(Clone, Copy, Debug)]
pub struct Blocks {
    block_tokens: NonZeroU64,
    bytes_per_token: BytesPerToken,
}

impl Blocks {
    /// Blocks of `block_tokens` tokens.
    pub fn new(block_tokens: NonZeroU64) -> Self {
        Self { block_tokens, bytes_per_token: BytesPerToken::default() }
    }

    /// The same with another average for text.
    #[must_use]
    pub fn with_bytes_per_token(mut self, bytes_per_token: BytesPerToken) -> Self {
        self.bytes_per_token = bytes_per_token;
        self
    }

    /// Tokens of a block.
    pub fn block_tokens(&self) -> u64 {
        self.block_tokens.get()
    }

    /// The ids of a request's blocks, from first to last. Time and memory go with the blocks, for text with its bytes.
    pub fn ids(&self, request: &Request) -> Vec<u64> {
        match &request.content {
            Content::Pieces(pieces) => self.of_pieces(pieces),
            Content::Hashes { ids, block_tokens, input_tokens } => {
                self.of_hashes(ids, block_tokens.get(), *input_tokens)
            }
            Content::Prompt { text, .. } => self.of_text(text.as_bytes()),
            Content::Messages { .. } => self.of_text(&request.content.text().unwrap_or_default()),
        }
    }

    /// The tokens of a request's prompt; an estimate from its bytes where nobody counted them.
    pub fn input_tokens(&self, request: &Request) -> u64 {
        request.content.input_tokens().unwrap_or_else(|| match &request.content {
            Content::Prompt { text, .. } => self.bytes_per_token.tokens(text.len()),
            content => self.bytes_per_token.tokens(content.text().map_or(0, |text| text.len())),
        })
    }

    /// Each id is the hash of the block's runs of tokens (stream, first, count) after the id before it.
    fn of_pieces(&self, pieces: &[Piece]) -> Vec<u64> {
        let mut ids = Vec::new();
        let (mut chain, mut runs, mut room) = (PIECES, Vec::new(), self.block_tokens.get());
        for piece in pieces {
            let mut first = 0;
            while first < piece.tokens {
                let count = room.min(piece.tokens - first);
                for number in [piece.stream, first, count] {
                    runs.extend_from_slice(&number.to_le_bytes());
                }
                first += count;
                room -= count;
                if room == 0 {
                    chain = xxh3_64_with_seed(&runs, chain);
                    ids.push(chain);
                    runs.clear();
                    room = self.block_tokens.get();
                }
            }
        }
        ids
    }

    fn of_hashes(&self, ids: &[u64], trace_block_tokens: u64, input_tokens: u64) -> Vec<u64> {
        let own = self.block_tokens.get();
        if own == trace_block_tokens {
            return ids.to_vec();
        }
        let ends = (1..=input_tokens / own).map(|block| block * own);
        ends.map_while(|end| {
            let id = *ids.get(((end - 1) / trace_block_tokens) as usize)?;
            Some(match end % trace_block_tokens {
                0 => id,
                within => xxh3_64_with_seed(&within.to_le_bytes(), id),
            })
        })
        .collect()
    }

    fn of_text(&self, text: &[u8]) -> Vec<u64> {
        let mut ids = Vec::new();
        let (mut chain, mut start) = (TEXT, 0);
        for block in 1u64.. {
            let end = self.bytes_per_token.bytes(block.saturating_mul(self.block_tokens.get()));
            let Some(bytes) = usize::try_from(end).ok().and_then(|end| text.get(start..end)) else { break };
            chain = xxh3_64_with_seed(bytes, chain);
            ids.push(chain);
            start += bytes.len();
        }
        ids
    }
}

/// How many bytes of text make a token on average.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct BytesPerToken(f64);

impl BytesPerToken {
    /// `None` unless between 0.25 and 64: one token for four characters at one end, whole phrases at the other.
    pub fn new(bytes: f64) -> Option<Self> {
        (0.25..=64.0).contains(&bytes).then_some(Self(bytes))
    }

    /// The tokens of so many bytes, rounded up.
    pub fn tokens(self, bytes: usize) -> u64 {
        (bytes as f64 / self.0).ceil() as u64
    }

    /// Where `tokens` tokens end, in bytes.
    fn bytes(self, tokens: u64) -> u64 {
        (tokens as f64 * self.0) as u64
    }
}

impl Default for BytesPerToken {
    /// 4, the rule of thumb for English.
    fn default() -> Self {
        Self(4.0)
    }
}

/// Seeds of the chains, so that pieces and text are never taken for each other.
const PIECES: u64 = 0x7069_6563_6573_0000;
const TEXT: u64 = 0x7465_7874_0000_0000;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn blocks(block_tokens: u64) -> Blocks {
        Blocks::new(NonZeroU64::new(block_tokens).expect("not zero"))
    }

    /// Streams and lengths from a small set, so that prompts often agree for a while, and zeros are among them.
    fn pieces() -> impl Strategy<Value = Vec<Piece>> {
        let piece = (0u64..3, 0u64..20).prop_map(|(stream, tokens)| Piece { stream, tokens });
        proptest::collection::vec(piece, 0..6)
    }

    /// The oracle: every token written out as what it is.
    fn spelled_out(pieces: &[Piece]) -> Vec<(u64, u64)> {
        pieces.iter().flat_map(|piece| (0..piece.tokens).map(|index| (piece.stream, index))).collect()
    }

    proptest! {
        #[test]
        fn ids_of_pieces_are_equal_exactly_where_all_tokens_are(
            a in pieces(), b in pieces(), block_tokens in 1u64..9,
        ) {
            let ids = |pieces: &[Piece]| blocks(block_tokens).ids(&Request::new(Content::Pieces(pieces.to_vec())));
            let (ids_a, ids_b) = (ids(&a), ids(&b));
            let (tokens_a, tokens_b) = (spelled_out(&a), spelled_out(&b));
            prop_assert_eq!(ids_a.len(), tokens_a.len() / block_tokens as usize);
            prop_assert_eq!(ids_b.len(), tokens_b.len() / block_tokens as usize);
            for (index, (id_a, id_b)) in ids_a.iter().zip(&ids_b).enumerate() {
                let end = (index + 1) * block_tokens as usize;
                prop_assert_eq!(id_a == id_b, tokens_a[..end] == tokens_b[..end]);
            }
            // Another place in the prompt is another block.
            let mut distinct = ids_a.clone();
            distinct.sort_unstable();
            distinct.dedup();
            prop_assert_eq!(distinct.len(), ids_a.len());
        }

        #[test]
        fn ids_of_text_are_equal_exactly_where_the_bytes_are(
            a in "[ab]{0,40}", b in "[ab]{0,40}", block_tokens in 1u64..4, bytes_per_token in 0.5f64..5.0,
        ) {
            let blocks = blocks(block_tokens)
                .with_bytes_per_token(BytesPerToken::new(bytes_per_token).expect("in range"));
            let ids = |text: &str| {
                blocks.ids(&Request::new(Content::Prompt { text: text.to_owned(), input_tokens: None }))
            };
            for (index, (id_a, id_b)) in ids(&a).iter().zip(&ids(&b)).enumerate() {
                let end = ((index + 1) as f64 * block_tokens as f64 * bytes_per_token) as usize;
                prop_assert_eq!(id_a == id_b, a[..end] == b[..end]);
            }
            let full = a.len() as f64 / (block_tokens as f64 * bytes_per_token);
            let slack = 1.0 + 1.0 / (block_tokens as f64 * bytes_per_token);
            prop_assert!((ids(&a).len() as f64 - full).abs() <= slack);
        }

        /// However a trace's blocks are cut, what it knows to be shared stays so, up to one block.
        #[test]
        fn ids_of_other_lengths_share_what_the_trace_shares(
            shared in 0usize..6, rest in 1usize..6, trace_block in 1u64..40, own in 1u64..40,
        ) {
            let request = |other: u64| {
                let ids: Vec<u64> = (0..shared as u64).chain((0..rest as u64).map(|id| other + id)).collect();
                let block_tokens = NonZeroU64::new(trace_block).expect("not zero");
                let input_tokens = ids.len() as u64 * trace_block;
                blocks(own).ids(&Request::new(Content::Hashes { ids, block_tokens, input_tokens }))
            };
            let (a, b) = (request(100), request(200));
            let shared_tokens = shared as u64 * trace_block;
            let common = a.iter().zip(&b).take_while(|(a, b)| a == b).count();
            prop_assert_eq!(common as u64, shared_tokens / own);
            prop_assert_eq!(a.len() as u64, (shared + rest) as u64 * trace_block / own);
            prop_assert!(a.iter().zip(&b).skip(common).all(|(a, b)| a != b));
            prop_assert!((1..a.len()).all(|index| !a[..index].contains(&a[index])), "blocks of one prompt differ");
        }
    }

    #[test]
    fn a_traces_own_length_keeps_its_ids() {
        let ids = vec![7, 9];
        let block_tokens = NonZeroU64::new(512).expect("not zero");
        let request = Request::new(Content::Hashes { ids: ids.clone(), block_tokens, input_tokens: 600 });
        assert_eq!(blocks(512).ids(&request), ids, "the last one is partly filled");
        assert_eq!(blocks(1024).ids(&request).len(), 0);
        assert_eq!(blocks(256).ids(&request).len(), 2);
    }

    #[test]
    fn blocks_longer_than_any_prompt_are_none() {
        let huge = blocks(u64::MAX);
        let pieces = vec![Piece { stream: 1, tokens: 100 }];
        assert!(huge.ids(&Request::new(Content::Pieces(pieces))).is_empty());
        let text = Content::Prompt { text: "x".repeat(100), input_tokens: None };
        assert!(huge.ids(&Request::new(text.clone())).is_empty());
        assert_eq!(huge.input_tokens(&Request::new(text)), 25);
    }

    #[test]
    fn bytes_per_token_have_bounds() {
        for bad in [0.0, -1.0, 0.2, 65.0, f64::NAN, f64::INFINITY] {
            assert_eq!(BytesPerToken::new(bad), None, "{bad}");
        }
    }
}
