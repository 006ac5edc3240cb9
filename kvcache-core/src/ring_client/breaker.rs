//! The circuit breaker of one server: who is dead is asked for nothing but, now and then, whether it still is.

use std::time::Duration;

use super::config::RingClientConfig;

/// Whether a server is asked.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum BreakerState {
    /// It is asked.
    Closed,
    /// It is not asked until its next probe.
    Open,
    /// It is being probed, and not asked.
    HalfOpen,
}

impl BreakerState {
    /// The name in metrics and documents.
    pub fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
        }
    }
}

#[derive(Debug)]
pub(super) struct Breaker {
    state: BreakerState,
    /// Since the last answer.
    failures: u32,
    /// How long it stayed open the last time, before jitter; zero if it closed since.
    backoff: Duration,
    /// When the next probe is due. Meaningful while open.
    probe_at: Duration,
}

impl Breaker {
    pub(super) fn new() -> Self {
        Self { state: BreakerState::Closed, failures: 0, backoff: Duration::ZERO, probe_at: Duration::ZERO }
    }

    pub(super) fn state(&self) -> BreakerState {
        self.state
    }

    pub(super) fn admits(&self) -> bool {
        self.state == BreakerState::Closed
    }

    /// The server answered a request.
    pub(super) fn answered(&mut self) {
        self.failures = 0;
    }

    /// Counts a failure; whether it was one too many.
    pub(super) fn failed(&mut self, config: &RingClientConfig) -> bool {
        self.failures = self.failures.saturating_add(1);
        self.failures >= config.failures_max
    }

    /// Opens it, or opens it again after a probe failed; when the next probe is due. `random` is any number.
    pub(super) fn open(&mut self, config: &RingClientConfig, random: u64, now: Duration) -> Duration {
        self.backoff = (self.backoff * 2).min(config.backoff_max).max(config.backoff_min);
        // Three quarters to five quarters of it: clients that lost a server together do not come back together.
        let jittered = self.backoff * 3 / 4 + self.backoff * (random % 1024) as u32 / 2048;
        self.state = BreakerState::Open;
        self.probe_at = now + jittered;
        self.probe_at
    }

    /// Begins a probe if one is due.
    pub(super) fn begin_probe(&mut self, now: Duration) -> bool {
        let due = self.state == BreakerState::Open && self.probe_at <= now;
        if due {
            self.state = BreakerState::HalfOpen;
        }
        due
    }

    /// The probe was answered.
    pub(super) fn close(&mut self) {
        *self = Self::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_between_probes_doubles_up_to_its_bound_and_starts_anew_after_an_answer() {
        let config = RingClientConfig {
            backoff_min: Duration::from_millis(100),
            backoff_max: Duration::from_millis(350),
            ..RingClientConfig::default()
        };
        let mut breaker = Breaker::new();
        let mut now = Duration::from_secs(5);
        for (random, milliseconds) in [(0, 75), (1024, 150), (512, 350), (1023, 437), (0, 262)] {
            let due = breaker.open(&config, random, now);
            assert_eq!((due - now).as_millis(), milliseconds);
            assert!(!breaker.admits() && !breaker.begin_probe(due - Duration::from_nanos(1)));
            now = due;
            assert!(breaker.begin_probe(now), "due");
            assert!(!breaker.begin_probe(now), "one at a time");
            assert!(!breaker.admits());
        }
        breaker.close();
        assert!(breaker.admits());
        assert_eq!((breaker.open(&config, 0, now) - now).as_millis(), 75);
    }

    #[test]
    fn only_failures_in_a_row_count() {
        let config = RingClientConfig { failures_max: 3, ..RingClientConfig::default() };
        let mut breaker = Breaker::new();
        for _ in 0..5 {
            assert!(!breaker.failed(&config));
            assert!(!breaker.failed(&config));
            breaker.answered();
        }
        assert!(!breaker.failed(&config) && !breaker.failed(&config) && breaker.failed(&config));
    }
}
