//! The checksum of values.

/// XXH3-64 (seed 0) of a value: what clients store beside it and compare after a get.
///
/// Finds what links, memory and software break by accident; it resists no attacker. Cost: memory speed.
#[inline]
pub fn checksum(value: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The value that XXH3's authors publish for the empty input: another algorithm or seed would break stored values.
    #[test]
    fn is_xxh3_without_a_seed() {
        assert_eq!(checksum(b""), 0x2d06_8005_38d3_94c2);
    }
}
