//! Durations, counted in buckets: there are as many as tokens.

/// Buckets of at most a 128th of their value, so that a percentile is right to 0.8 %.
#[derive(Clone, Default, Debug)]
pub(crate) struct Histogram {
    counts: Vec<u64>,
    count: u64,
    sum_ns: u128,
    max_ns: u64,
}

const SUB_BUCKETS_LOG2: u32 = 7;
const SUB_BUCKETS: u64 = 1 << SUB_BUCKETS_LOG2;

impl Histogram {
    pub(crate) fn add(&mut self, ns: u64) {
        let bucket = bucket(ns);
        if self.counts.len() <= bucket {
            self.counts.resize(bucket + 1, 0);
        }
        self.counts[bucket] += 1;
        self.count += 1;
        self.sum_ns += u128::from(ns);
        self.max_ns = self.max_ns.max(ns);
    }

    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    pub(crate) fn max_ns(&self) -> u64 {
        self.max_ns
    }

    pub(crate) fn mean_ns(&self) -> f64 {
        if self.count == 0 { 0.0 } else { self.sum_ns as f64 / self.count as f64 }
    }

    /// The upper end of the bucket of the value at a percentile, by nearest rank; 0 if nothing was added.
    pub(crate) fn percentile_ns(&self, percent: u64) -> u64 {
        let rank = (self.count * percent).div_ceil(100).max(1);
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return highest(bucket).min(self.max_ns);
            }
        }
        0
    }
}

/// Values below 2 * `SUB_BUCKETS` have a bucket each; above, each octave has `SUB_BUCKETS`.
fn bucket(ns: u64) -> usize {
    let shift = (64 - ns.leading_zeros()).saturating_sub(SUB_BUCKETS_LOG2 + 1);
    (u64::from(shift) * SUB_BUCKETS + (ns >> shift)) as usize
}

/// The highest value of a bucket.
fn highest(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    let shift = (bucket / SUB_BUCKETS).saturating_sub(1);
    let top = bucket - shift * SUB_BUCKETS;
    (((u128::from(top) + 1) << shift) - 1).min(u128::from(u64::MAX)) as u64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_bucket_is_at_most_a_128th_wide(ns in any::<u64>(), shift in 0u32..64) {
            let ns = ns >> shift;
            let highest = highest(bucket(ns));
            prop_assert!(highest >= ns && highest - ns <= ns / 128, "{ns} {highest}");
        }

        #[test]
        fn percentiles_are_those_of_the_sorted_values(
            mut values in proptest::collection::vec(0u64..1_000_000, 1..200), percent in 1u64..=100,
        ) {
            let mut histogram = Histogram::default();
            values.iter().for_each(|value| histogram.add(*value));
            values.sort_unstable();
            let exact = values[(values.len() * percent as usize).div_ceil(100) - 1];
            let got = histogram.percentile_ns(percent);
            prop_assert!(got >= exact && got - exact <= exact / 128);
            prop_assert_eq!(histogram.max_ns(), values[values.len() - 1]);
        }
    }

    #[test]
    fn nothing_is_zero() {
        let histogram = Histogram::default();
        assert_eq!((histogram.count(), histogram.mean_ns(), histogram.percentile_ns(99)), (0, 0.0, 0));
    }
}
