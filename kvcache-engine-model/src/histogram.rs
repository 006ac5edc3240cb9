//! Durations, counted in buckets: there are as many as tokens.

/// Buckets of at most a thousandth of their value; mean and maximum are exact.
#[derive(Clone, Debug)]
pub(crate) struct Histogram {
    buckets: hdrhistogram::Histogram<u64>,
    sum_ns: u128,
    max_ns: u64,
}

impl Histogram {
    pub(crate) fn new() -> Self {
        let buckets = hdrhistogram::Histogram::new(3).expect("three digits can be kept");
        Self { buckets, sum_ns: 0, max_ns: 0 }
    }

    pub(crate) fn add(&mut self, ns: u64) {
        // It grows with the values, whatever they are.
        if self.buckets.record(ns).is_err() {
            self.buckets.saturating_record(ns);
        }
        self.sum_ns += u128::from(ns);
        self.max_ns = self.max_ns.max(ns);
    }

    pub(crate) fn count(&self) -> u64 {
        self.buckets.len()
    }

    pub(crate) fn max_ns(&self) -> u64 {
        self.max_ns
    }

    pub(crate) fn mean_ns(&self) -> f64 {
        if self.count() == 0 { 0.0 } else { self.sum_ns as f64 / self.count() as f64 }
    }

    /// The upper end of the bucket of the value at a percentile, by nearest rank; 0 if nothing was added.
    pub(crate) fn percentile_ns(&self, percent: u64) -> u64 {
        let rank = (self.count() * percent).div_ceil(100).max(1);
        // The library rounds up what may have been rounded up already: half a rank less cannot be mistaken.
        let quantile = (rank as f64 - 0.5) / self.count().max(1) as f64;
        self.buckets.value_at_quantile(quantile).min(self.max_ns)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn percentiles_are_those_of_the_sorted_values(
            mut values in proptest::collection::vec(0u64..1_000_000_000_000, 1..200), percent in 1u64..=100,
        ) {
            let mut histogram = Histogram::new();
            values.iter().for_each(|value| histogram.add(*value));
            values.sort_unstable();
            let exact = values[(values.len() * percent as usize).div_ceil(100) - 1];
            let got = histogram.percentile_ns(percent);
            prop_assert!(got >= exact && got - exact <= exact / 1000 + 1, "{got} {exact}");
            prop_assert_eq!(histogram.max_ns(), values[values.len() - 1]);
            let sum: u64 = values.iter().sum();
            prop_assert_eq!(histogram.mean_ns(), sum as f64 / values.len() as f64);
        }
    }

    #[test]
    fn nothing_is_zero() {
        let histogram = Histogram::new();
        assert_eq!((histogram.count(), histogram.mean_ns(), histogram.percentile_ns(99)), (0, 0.0, 0));
    }
}
