//! What loading and computing cost here, measured as the engine runs.

use std::time::Duration;

/// Moving averages of the engine's prefill rate, its step time and the load bandwidth.
#[derive(Clone, Debug, Default)]
pub struct CostModel {
    step_ns: Average,
    token_ns: Average,
    byte_ns: Average,
    fetch_byte_ns: Average,
    last_step: Option<(Duration, usize)>,
    last_load: Option<Duration>,
    /// A load was made against what was measured: what it measures counts alone.
    doubts_loads: bool,
    running_tokens: usize,
    /// Tokens that admitted requests have still to compute.
    backlog_tokens: usize,
}

/// An exponential average: a sample weighs an eighth.
#[derive(Clone, Debug, Default)]
struct Average {
    value: f64,
    samples: u32,
}

/// Averages of fewer samples than this decide nothing.
const SAMPLES_NEEDED: u32 = 4;

/// A step with at least this many tokens measures prefill; smaller ones are bound by reading the weights.
const PREFILL_TOKENS: usize = 64;

/// While loading is slower than computing, one load is tried when the last began so many times as long ago as it should take.
///
/// What is not done is not measured, so one bad quarter of an hour would turn the cache off for good. Trying takes a 32nd of the
/// time at most, however slow loads are.
const PAUSE_LOADS: u32 = 32;

impl Average {
    fn observe(&mut self, sample: f64) {
        let weight = if self.samples < 8 { 1.0 / f64::from(self.samples + 1) } else { 0.125 };
        self.value += (sample - self.value) * weight;
        self.samples = self.samples.saturating_add(1);
    }

    /// What was observed before does not count any more.
    fn replace(&mut self, sample: f64) {
        self.value = sample;
    }

    fn known(&self) -> Option<f64> {
        (self.samples >= SAMPLES_NEEDED).then_some(self.value)
    }
}

impl CostModel {
    /// A step with `tokens` tokens begins now; the one before has ended.
    pub fn observe_step(&mut self, tokens: usize, now: Duration) {
        if let Some((began, previous)) = self.last_step
            && previous > 0
            && tokens > 0
        {
            let elapsed = now.saturating_sub(began).as_nanos() as f64;
            self.step_ns.observe(elapsed);
            if previous >= PREFILL_TOKENS {
                self.token_ns.observe(elapsed / previous as f64);
            }
        }
        self.last_step = Some((now, tokens));
        self.running_tokens = tokens;
        // Answers are computed as well, and requests are aborted: nothing is left when there is nothing to compute.
        self.backlog_tokens = if tokens == 0 { 0 } else { self.backlog_tokens.saturating_sub(tokens) };
    }

    /// A request is admitted that has `tokens` tokens to compute.
    pub fn admit(&mut self, tokens: usize) {
        self.backlog_tokens = self.backlog_tokens.saturating_add(tokens);
    }

    /// How long it takes until `tokens` more are computed, behind what was admitted before, if known.
    pub fn time_until_computed(&self, tokens: usize) -> Option<Duration> {
        self.compute_time(tokens.saturating_add(self.backlog_tokens))
    }

    /// A load of `bytes` begins instead of computing `tokens`.
    pub fn begin_load(&mut self, bytes: u64, tokens: usize, now: Duration) {
        self.doubts_loads |= self.loading_is_slower(bytes, tokens);
        self.last_load = Some(now);
    }

    /// Loads copied `bytes` in `elapsed`.
    pub fn observe_load(&mut self, bytes: u64, elapsed: Duration) {
        if bytes > 0 && !elapsed.is_zero() {
            let sample = elapsed.as_nanos() as f64 / bytes as f64;
            if std::mem::take(&mut self.doubts_loads) {
                self.byte_ns.replace(sample);
            } else {
                self.byte_ns.observe(sample);
            }
        }
    }

    /// `bytes` came from L2 in `elapsed`.
    pub fn observe_fetch(&mut self, bytes: u64, elapsed: Duration) {
        if bytes > 0 && !elapsed.is_zero() {
            self.fetch_byte_ns.observe(elapsed.as_nanos() as f64 / bytes as f64);
        }
    }

    /// How long fetching `bytes` from L2 takes, if known.
    pub fn fetch_time(&self, bytes: u64) -> Option<Duration> {
        self.fetch_byte_ns.known().map(|ns| Duration::from_nanos((ns * bytes as f64) as u64))
    }

    /// Whether fetching is known to take longer than computing. Twice as long, as for loads.
    pub fn fetching_is_slower(&self, bytes: u64, tokens: usize) -> bool {
        match (self.fetch_time(bytes), self.compute_time(tokens)) {
            (Some(fetch), Some(compute)) => fetch > compute * 2,
            _ => false,
        }
    }

    /// How long computing `tokens` takes, if known.
    pub fn compute_time(&self, tokens: usize) -> Option<Duration> {
        self.token_ns.known().map(|ns| Duration::from_nanos((ns * tokens as f64) as u64))
    }

    /// How long loading `bytes` takes, if known.
    pub fn load_time(&self, bytes: u64) -> Option<Duration> {
        self.byte_ns.known().map(|ns| Duration::from_nanos((ns * bytes as f64) as u64))
    }

    /// Whether loading is known to take longer than computing. Twice as long, so that noise does not decide.
    fn loading_is_slower(&self, bytes: u64, tokens: usize) -> bool {
        match (self.load_time(bytes), self.compute_time(tokens)) {
            (Some(load), Some(compute)) => load > compute * 2,
            _ => false,
        }
    }

    /// Whether to load rather than compute: unless loading is known to be slower, and now and then all the same, since what was
    /// measured may not hold any more.
    pub fn is_worth_loading(&self, bytes: u64, tokens: usize, now: Duration) -> bool {
        let pause = self.load_time(bytes).unwrap_or_default().saturating_mul(PAUSE_LOADS);
        let is_due = self.last_load.is_none_or(|last| now.saturating_sub(last) >= pause);
        is_due || !self.loading_is_slower(bytes, tokens)
    }

    /// Whether a load is known to be longer than half a step while other requests run.
    pub fn is_long_beside_a_step(&self, bytes: u64) -> bool {
        match (self.load_time(bytes), self.step_ns.known()) {
            (Some(load), Some(step)) => self.running_tokens > 0 && load.as_nanos() as f64 > step / 2.0,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_decided_before_enough_samples() {
        let mut cost = CostModel::default();
        for step in 0..4 {
            cost.observe_step(128, Duration::from_millis(10 * step));
            assert_eq!(cost.compute_time(128), None);
        }
        cost.observe_step(128, Duration::from_millis(40));
        assert_eq!(cost.compute_time(128), Some(Duration::from_millis(10)));
        assert!(!cost.loading_is_slower(1 << 40, 1), "no load has been measured");
    }

    #[test]
    fn idle_time_is_not_step_time() {
        let mut cost = CostModel::default();
        for step in 0..10 {
            cost.observe_step(100, Duration::from_secs(20 * step));
            cost.observe_step(0, Duration::from_secs(20 * step + 1));
        }
        assert_eq!(cost.step_ns.samples, 0);
    }

    #[test]
    fn what_is_admitted_is_computed_first() {
        let mut cost = CostModel::default();
        for step in 0..5 {
            cost.observe_step(100, Duration::from_millis(10 * step));
        }
        let until = |cost: &CostModel, tokens| cost.time_until_computed(tokens).unwrap().as_millis();
        assert_eq!(until(&cost, 50), 5);
        cost.admit(300);
        assert_eq!(until(&cost, 50), 35);
        cost.observe_step(200, Duration::from_millis(50));
        assert_eq!(until(&cost, 50), 15);
        cost.observe_step(0, Duration::from_millis(70));
        assert_eq!(until(&cost, 50), 5, "what is left was aborted");
    }

    #[test]
    fn compares_loading_with_computing_and_with_a_step() {
        let mut cost = CostModel::default();
        for step in 0..9 {
            cost.observe_step(100, Duration::from_millis(100 * step));
            cost.observe_load(1_000_000, Duration::from_millis(1));
        }
        assert!(!cost.loading_is_slower(1_900_000, 1));
        assert!(cost.loading_is_slower(2_100_000, 1));
        assert!(!cost.is_long_beside_a_step(49_000_000));
        assert!(cost.is_long_beside_a_step(51_000_000));
        cost.observe_step(0, Duration::from_secs(1));
        assert!(!cost.is_long_beside_a_step(51_000_000), "nothing else runs");
    }
}
