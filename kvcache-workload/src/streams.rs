//! Numbers of the token streams that a generator uses.

use xxhash_rust::xxh3::xxh3_64;

use crate::random::mix;

/// How many streams a generator can have: as many as its numbers have room for.
pub(crate) const STREAMS_MAX: u64 = 1 << 32;

/// The first stream of a generator; the others follow. Another seed or generator has others, so that a cache that has
/// seen one workload knows nothing of the next. Numbers stay below 2^53, which every reader of JSON has exactly.
pub(crate) fn first(seed: u64, generator: &str) -> u64 {
    (mix(mix(seed) ^ xxh3_64(generator.as_bytes())) >> 43) << 32
}
