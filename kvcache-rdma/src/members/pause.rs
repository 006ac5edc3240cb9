//! How long to wait before a source is read again.

use std::time::Duration;

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Pauses that double while readings fail, up to a bound, each varied by up to an eighth.
#[derive(Debug)]
pub(super) struct Pauses {
    interval: Duration,
    longest: Duration,
    seed: u64,
    drawn: u64,
}

impl Pauses {
    pub(super) fn new(interval: Duration, longest: Duration, seed: u64) -> Self {
        Self { interval, longest: longest.max(interval), seed, drawn: 0 }
    }

    /// The pause after `failures` in a row.
    pub(super) fn next(&mut self, failures: u64) -> Duration {
        let doublings = failures.saturating_sub(1).min(31) as u32;
        let pause = self.interval.saturating_mul(1 << doublings).min(self.longest);
        self.drawn += 1;
        let random = xxh3_64_with_seed(&self.drawn.to_le_bytes(), self.seed);
        // From 7/8 to 9/8 of the pause, in steps of 1/1024.
        pause / 1024 * (896 + (random % 257) as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_bound() {
        let mut pauses = Pauses::new(Duration::from_secs(1), Duration::from_secs(10), 7);
        for (failures, seconds) in [(0, 1), (1, 1), (2, 2), (3, 4), (4, 8), (5, 10), (6, 10), (u64::MAX, 10)]
        {
            let pause = pauses.next(failures).as_secs_f64();
            let wanted = f64::from(seconds);
            assert!((wanted * 0.874..=wanted * 1.126).contains(&pause), "{pause} after {failures}");
        }
    }

    #[test]
    fn pauses_vary_and_can_be_repeated() {
        let draw = |seed| {
            let mut pauses = Pauses::new(Duration::from_secs(1), Duration::from_secs(1), seed);
            std::array::from_fn::<Duration, 8, _>(|_| pauses.next(0))
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        assert!(draw(1).windows(2).any(|pair| pair[0] != pair[1]));
    }
}
