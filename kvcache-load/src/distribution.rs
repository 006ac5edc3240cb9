//! Times, collected for their percentiles in bounded memory.

use hdrhistogram::Histogram;
use serde::Serialize;

/// Collected times. 0.3 MB, however many there are.
///
/// Percentiles come from an HDR histogram with three digits: at most 0.1 % above the exact one. Mean and largest are
/// exact.
#[derive(Clone, Debug)]
pub(crate) struct Distribution {
    histogram: Histogram<u64>,
    sum_us: f64,
    max_us: f64,
}

/// What is said of collected times, in milliseconds.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Percentiles {
    /// How many there are.
    pub count: u64,
    /// Their sum divided by their count.
    pub mean_ms: f64,
    /// Half of them are at most this.
    pub p50_ms: f64,
    /// 90 % of them are at most this.
    pub p90_ms: f64,
    /// 95 % of them are at most this.
    pub p95_ms: f64,
    /// 99 % of them are at most this.
    pub p99_ms: f64,
    /// The largest.
    pub max_ms: f64,
}

impl Distribution {
    pub(crate) fn record(&mut self, us: f64) {
        // In nanoseconds, so that a rounded time per token is as exact as the histogram.
        self.histogram.saturating_record((us * 1000.0) as u64);
        self.sum_us += us;
        self.max_us = self.max_us.max(us);
    }

    /// The smallest recorded time that at least this share of all do not exceed; 0 without any.
    pub(crate) fn quantile_ms(&self, quantile: f64) -> f64 {
        (self.histogram.value_at_quantile(quantile) as f64 / 1e6).min(self.max_us / 1000.0)
    }

    /// `None` without any.
    pub(crate) fn percentiles(&self) -> Option<Percentiles> {
        let count = self.histogram.len();
        (count > 0).then(|| Percentiles {
            count,
            mean_ms: self.sum_us / count as f64 / 1000.0,
            p50_ms: self.quantile_ms(0.5),
            p90_ms: self.quantile_ms(0.9),
            p95_ms: self.quantile_ms(0.95),
            p99_ms: self.quantile_ms(0.99),
            max_ms: self.max_us / 1000.0,
        })
    }
}

impl Default for Distribution {
    fn default() -> Self {
        let histogram = Histogram::new_with_bounds(1, LONGEST_NS, DIGITS).expect("the bounds are in order");
        Self { histogram, sum_us: 0.0, max_us: 0.0 }
    }
}

/// A day.
const LONGEST_NS: u64 = 86_400 * 1_000_000_000;
const DIGITS: u8 = 3;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(times_us: &[f64]) -> Distribution {
        let mut distribution = Distribution::default();
        times_us.iter().for_each(|us| distribution.record(*us));
        distribution
    }

    #[test]
    fn nothing_has_no_percentiles() {
        assert_eq!(of(&[]).percentiles(), None);
        assert_eq!(of(&[]).quantile_ms(0.5), 0.0);
    }

    #[test]
    fn small_numbers_are_exact() {
        let times: Vec<f64> = (1..=100).map(f64::from).collect();
        let percentiles = of(&times).percentiles().expect("some");
        let close =
            |got: f64, expected: f64| assert!((got / expected - 1.0).abs() <= 0.001, "{got} {expected}");
        close(percentiles.p50_ms, 0.050);
        close(percentiles.p90_ms, 0.090);
        close(percentiles.p95_ms, 0.095);
        close(percentiles.p99_ms, 0.099);
        assert_eq!((percentiles.count, percentiles.mean_ms, percentiles.max_ms), (100, 0.0505, 0.1));
    }

    #[test]
    fn what_is_beyond_the_histogram_is_its_last() {
        let percentiles = of(&[1e15]).percentiles().expect("one");
        assert!(percentiles.p50_ms >= 86_400_000.0 && percentiles.max_ms == 1e12);
    }

    proptest! {
        /// The oracle: the sorted times.
        #[test]
        fn percentiles_are_those_of_the_sorted_times(
            mut times in proptest::collection::vec(prop_oneof![0u64..2000, 0u64..100_000_000], 1..400),
        ) {
            let all: Vec<f64> = times.iter().map(|us| *us as f64).collect();
            let distribution = of(&all);
            times.sort_unstable();
            for quantile in [0.5, 0.9, 0.95, 0.99, 1.0] {
                let rank = ((quantile * times.len() as f64).ceil() as usize).clamp(1, times.len());
                let exact_ms = times[rank - 1] as f64 / 1000.0;
                let got_ms = distribution.quantile_ms(quantile);
                prop_assert!(got_ms >= exact_ms - 1e-9 && got_ms <= exact_ms * 1.001 + 1e-9, "{got_ms} {exact_ms}");
            }
        }
    }
}
