//! Which parts of the pool are known to have memory behind them.

use std::sync::atomic::{AtomicU64, Ordering};

/// A bit for each granule; set bits stay set, since the pool gives no memory back to the system.
#[derive(Debug)]
pub(super) struct BackedGranules {
    /// Bit `n % 64` of word `n / 64`: granule `n` was populated. Relaxed, as they guard no other memory: who misses a
    /// bit populates again.
    words: Box<[AtomicU64]>,
}

impl BackedGranules {
    pub(super) fn new(granules: u64) -> Self {
        Self { words: (0..granules.div_ceil(64)).map(|_| AtomicU64::new(0)).collect() }
    }

    pub(super) fn contains(&self, first: u64, granules: u64) -> bool {
        words(first, granules).all(|(word, mask)| self.words[word].load(Ordering::Relaxed) & mask == mask)
    }

    pub(super) fn insert(&self, first: u64, granules: u64) {
        for (word, mask) in words(first, granules) {
            self.words[word].fetch_or(mask, Ordering::Relaxed);
        }
    }
}

/// The words that hold the bits of a range, and which bits of each.
fn words(first: u64, granules: u64) -> impl Iterator<Item = (usize, u64)> {
    let end = first + granules;
    (first / 64..end.div_ceil(64)).map(move |word| {
        let (low, high) = (first.max(word * 64) % 64, end.min(word * 64 + 64) - word * 64);
        (word as usize, (u64::MAX << low) & (u64::MAX >> (64 - high)))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn matches_a_row_of_flags(ranges in prop::collection::vec((0_u64..200, 1_u64..150), 0..20)) {
            let backed = BackedGranules::new(350);
            let mut flags = [false; 350];
            for (first, granules) in ranges {
                let range = first as usize..(first + granules) as usize;
                prop_assert_eq!(backed.contains(first, granules), flags[range.clone()].iter().all(|flag| *flag));
                backed.insert(first, granules);
                flags[range].fill(true);
            }
            for (granule, flag) in flags.into_iter().enumerate() {
                prop_assert_eq!(backed.contains(granule as u64, 1), flag);
            }
        }
    }
}
