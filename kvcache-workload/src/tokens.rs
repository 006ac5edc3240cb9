//! The tokens of a prompt, for an engine that wants to see them.

use std::num::NonZeroU32;

use xxhash_rust::xxh3::xxh3_64;

use crate::random::{STEP, mix};
use crate::request::{Content, Request};

/// Token `index` of a stream, as a number of 64 bits: value `index` of SplitMix64 with the seed `mix(stream)`, that is
/// `mix(mix(stream) + (index + 1) * 0x9e3779b97f4a7c15)`, where `mix` is SplitMix64's mixing function.
///
/// A [`Vocabulary`] makes a token id of it.
pub fn token(stream: u64, index: u64) -> u64 {
    mix(mix(stream).wrapping_add(index.wrapping_add(1).wrapping_mul(STEP)))
}

/// The token ids that prompts are made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Vocabulary {
    /// The first of them: special tokens are mostly below or above the others.
    pub first: u32,
    /// How many follow each other from there on.
    pub count: NonZeroU32,
}

impl Vocabulary {
    /// The token id of a number of 64 bits: all are equally frequent.
    fn id(&self, token: u64) -> u32 {
        let index = (u128::from(token) * u128::from(self.count.get())) >> 64;
        self.first.wrapping_add(index as u32)
    }
}

impl Request {
    /// The prompt as token ids; `None` if it is text, which only the engine's tokenizer can cut.
    ///
    /// Prompts that share a prefix get equal tokens so far. Behind it they differ, but for the chance that two random
    /// tokens are the same: one in [`Vocabulary::count`]. Where only ids of blocks are known, each block's tokens follow
    /// from its id, and tokens without an id from time, session and turn.
    pub fn tokens(&self, vocabulary: Vocabulary) -> Option<Vec<u32>> {
        let mut tokens = Vec::with_capacity(self.content.input_tokens().unwrap_or(0) as usize);
        let mut extend = |stream: u64, count: u64| {
            tokens.extend((0..count).map(|index| vocabulary.id(token(stream, index))));
        };
        match &self.content {
            Content::Pieces(pieces) => pieces.iter().for_each(|piece| extend(piece.stream, piece.tokens)),
            Content::Hashes { ids, block_tokens, input_tokens } => {
                let mut left = *input_tokens;
                for id in ids {
                    let count = left.min(block_tokens.get());
                    extend(mix(id ^ BLOCKS), count);
                    left -= count;
                }
                extend(self.own_stream(ids.last().copied()), left);
            }
            Content::Prompt { .. } | Content::Messages { .. } => return None,
        }
        Some(tokens)
    }

    /// A stream for what no other request has.
    fn own_stream(&self, last_id: Option<u64>) -> u64 {
        let mut identity = Vec::new();
        identity.extend(self.timestamp_ms.unwrap_or(0.0).to_bits().to_le_bytes());
        identity.extend(last_id.unwrap_or(0).to_le_bytes());
        identity.extend(self.turn.unwrap_or(0).to_le_bytes());
        identity.extend(self.session_id.as_deref().unwrap_or("").as_bytes());
        xxh3_64(&identity)
    }
}

/// Keeps the streams of blocks apart from those of pieces.
const BLOCKS: u64 = 0x626c_6f63_6b73_0000;

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use super::*;
    use crate::request::Piece;

    const VOCABULARY: Vocabulary =
        Vocabulary { first: 100, count: NonZeroU32::new(32_000).expect("not zero") };

    fn tokens(content: Content) -> Vec<u32> {
        Request::new(content).tokens(VOCABULARY).expect("known")
    }

    fn hashes(ids: &[u64], input_tokens: u64) -> Content {
        let block_tokens = NonZeroU64::new(8).expect("not zero");
        Content::Hashes { ids: ids.to_vec(), block_tokens, input_tokens }
    }

    fn common(a: &[u32], b: &[u32]) -> usize {
        a.iter().zip(b).take_while(|(a, b)| a == b).count()
    }

    /// SplitMix64 with seed 0 begins with these three in every implementation. `mix(0)` is 0, so that stream 0 is it.
    #[test]
    fn the_tokens_of_stream_0_are_splitmix64() {
        assert_eq!(
            [0, 1, 2].map(|index| token(0, index)),
            [0xe220_a839_7b1d_cdaf, 0x6e78_9e6a_a1b9_65f4, 0x06c4_5d18_8009_454f]
        );
    }

    #[test]
    fn pieces_agree_as_far_as_their_streams() {
        let piece = |stream, tokens| Piece { stream, tokens };
        let a = tokens(Content::Pieces(vec![piece(1, 40), piece(2, 10)]));
        let b = tokens(Content::Pieces(vec![piece(1, 40), piece(3, 30)]));
        assert_eq!((a.len(), b.len(), common(&a, &b)), (50, 70, 40));
        let shorter = tokens(Content::Pieces(vec![piece(1, 20)]));
        assert_eq!(shorter, a[..20]);
        assert!(a.iter().all(|token| (100..32_100).contains(token)));
    }

    #[test]
    fn blocks_agree_as_far_as_their_ids() {
        let (a, b) = (tokens(hashes(&[5, 6, 7], 20)), tokens(hashes(&[5, 6, 9], 24)));
        assert_eq!((a.len(), b.len(), common(&a, &b)), (20, 24, 16));
    }

    #[test]
    fn tokens_without_an_id_are_the_requests_own() {
        let request = |turn| Request { turn: Some(turn), ..Request::new(hashes(&[5], 16)) };
        let [a, b] = [0, 1].map(|turn| request(turn).tokens(VOCABULARY).expect("known"));
        assert_eq!((a.len(), common(&a, &b)), (16, 8));
    }

    #[test]
    fn text_has_no_tokens_of_ours() {
        let prompt = Content::Prompt { text: "hi".to_owned(), input_tokens: None };
        assert_eq!(Request::new(prompt).tokens(VOCABULARY), None);
    }
}
