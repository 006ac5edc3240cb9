//! What a simulation found.

use serde::Serialize;

use crate::histogram::Histogram;
use crate::setup::Setup;
use crate::time::seconds;

/// How one set-up served the traffic.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Outcome {
    /// Which one.
    pub setup: Setup,
    /// What became of the requests.
    pub served: Served,
    /// From the first arrival to the end, in seconds.
    pub duration_s: f64,
    /// The mean rate at which requests arrived, a second; none if they came as others ended.
    pub offered_per_s: Option<f64>,
    /// Requests that were answered, a second.
    pub served_per_s: f64,
    /// Whether it answered at least nine tenths as fast as requests arrived. None without a rate.
    pub kept_up: Option<bool>,
    /// Time to the first token.
    pub ttft_s: Summary,
    /// Time per output token after the first, a mean for each request that has more than one.
    pub tpot_s: Summary,
    /// Time between tokens, over all of them; percentiles to a thousandth.
    pub itl_s: Summary,
    /// Time to the last token.
    pub e2e_s: Summary,
    /// Tokens of answers a second.
    pub output_tokens_per_s: f64,
    /// Tokens of prompts and answers a second, of requests that were answered.
    pub total_tokens_per_s: f64,
    /// Prompt tokens of requests that were admitted.
    pub input_tokens: u64,
    /// Of these, tokens that were not computed, by where they were.
    pub hit_tokens: HitTokens,
    /// Requests that lost their blocks to others.
    pub preemptions: u64,
    /// Most requests that waited at a time.
    pub queue_depth_max: usize,
    /// Most blocks that were in use at a time, of those of the engine.
    pub blocks_used_max: u32,
    /// Steps of the engine.
    pub steps: u64,
    /// What the tiers moved; none without a connector.
    pub tiers: Option<Tiers>,
}

/// What became of the requests.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize)]
pub struct Served {
    /// In the workload.
    pub requests: u64,
    /// Answered to the last token.
    pub completed: u64,
    /// Never admitted, since they need more than the engine has.
    pub refused: u64,
    /// Waiting or running when the time was over.
    pub unfinished: u64,
    /// Not come when the time was over.
    pub not_arrived: u64,
}

/// Prompt tokens that were not computed.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize)]
pub struct HitTokens {
    /// In the engine's own prefix cache.
    pub device: u64,
    /// Loaded from L1, where an engine had put them.
    pub l1: u64,
    /// Fetched from L2 and then loaded.
    pub l2: u64,
}

/// What a connector moved.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize)]
pub struct Tiers {
    /// L1 to the engine.
    pub loaded_bytes: u64,
    /// The engine to L1.
    pub stored_bytes: u64,
    /// L2 to L1.
    pub fetched_bytes: u64,
    /// L1 to L2.
    pub demoted_bytes: u64,
    /// Slots that left L1 to make room.
    pub evicted_slots: u64,
    /// Slots that were not stored in L1: their request had used up its share, all were in use, or too much was on
    /// its way.
    pub not_stored_slots: u64,
    /// Requests that did not wait for all that was on its way from L2.
    pub late_requests: u64,
    /// Requests for which L2 had blocks and none was sent for at first, since fetches held all the slots that they may.
    pub refused_fetches: u64,
}

/// Of a number of times, in seconds. All 0 if there are none.
#[derive(Clone, Copy, PartialEq, Default, Debug, Serialize)]
pub struct Summary {
    /// How many.
    pub count: u64,
    /// Their mean.
    pub mean: f64,
    /// Half of them are at most this, by nearest rank.
    pub p50: f64,
    /// 90 % are at most this.
    pub p90: f64,
    /// 99 % are at most this.
    pub p99: f64,
    /// The longest.
    pub max: f64,
}

impl Summary {
    /// Of times in nanoseconds, in any order.
    pub(crate) fn of(mut times_ns: Vec<u64>) -> Self {
        times_ns.sort_unstable();
        let Some(max) = times_ns.last() else { return Self::default() };
        let sum: u128 = times_ns.iter().map(|ns| u128::from(*ns)).sum();
        let rank = |percent: usize| seconds(times_ns[(times_ns.len() * percent).div_ceil(100) - 1]);
        Self {
            count: times_ns.len() as u64,
            mean: sum as f64 / times_ns.len() as f64 / 1e9,
            p50: rank(50),
            p90: rank(90),
            p99: rank(99),
            max: seconds(*max),
        }
    }

    pub(crate) fn of_histogram(histogram: &Histogram) -> Self {
        let rank = |percent| seconds(histogram.percentile_ns(percent));
        Self {
            count: histogram.count(),
            mean: histogram.mean_ns() / 1e9,
            p50: rank(50),
            p90: rank(90),
            p99: rank(99),
            max: seconds(histogram.max_ns()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_by_nearest_rank() {
        let summary = Summary::of((1..=200).rev().map(|second| second * 1_000_000_000).collect());
        assert_eq!((summary.count, summary.mean), (200, 100.5));
        assert_eq!((summary.p50, summary.p90, summary.p99, summary.max), (100.0, 180.0, 198.0, 200.0));
        assert_eq!(Summary::of(vec![7]).p99, 7e-9);
        assert_eq!(Summary::of(Vec::new()), Summary::default());
    }
}
