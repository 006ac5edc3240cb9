//! Time and chance, as arguments.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jiff::Timestamp;

/// The time of day, as it is written into objects. Intervals are measured by tokio's clock instead.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// The machine's time.
pub fn system_clock() -> Clock {
    Arc::new(Timestamp::now)
}

/// Spreads what would otherwise happen at once: retries of many objects, resyncs, candidates for a lease.
#[derive(Debug)]
pub struct Jitter {
    state: AtomicU64,
}

impl Jitter {
    /// Repeats for a seed.
    pub fn new(seed: u64) -> Self {
        Self { state: AtomicU64::new(seed) }
    }

    /// A duration between `around` and one and a half times that.
    pub fn spread(&self, around: Duration) -> Duration {
        // SplitMix64 (Steele et al., OOPSLA 2014); the counter needs no order among threads.
        let step = 0x9e37_79b9_7f4a_7c15_u64;
        let mut z = self.state.fetch_add(step, Ordering::Relaxed).wrapping_add(step);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let part = (z >> 11) as f64 / (1_u64 << 53) as f64;
        around + around.mul_f64(part / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_repeats_for_a_seed_and_stays_within_its_bounds() {
        let draw = |seed| {
            let jitter = Jitter::new(seed);
            (0..100).map(|_| jitter.spread(Duration::from_secs(10))).collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        assert!(draw(3).iter().all(|d| (Duration::from_secs(10)..Duration::from_secs(15)).contains(d)));
        assert!(draw(3).iter().any(|d| *d > Duration::from_secs(14)), "the range is used");
    }
}
