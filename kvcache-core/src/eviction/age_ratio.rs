//! How much younger a block in the small queue is evicted than one in the main queue, learnt from ghost hits.
//!
//! The small queue holds blocks that were used once, the main queue those that came back. Reuse is heavy-tailed: for
//! a block that has waited for time `t`, the chance of a use in the next moment falls like `k / t`, with one `k` for
//! blocks never used again so far and a larger one for proven blocks. The block least likely to be used is then the
//! one with the largest `t / k`: compare the two oldest blocks, the main one's age multiplied by a *ratio*
//! `k_small / k_main`.
//!
//! A ratio of 1 makes both queues one LRU queue; a ratio near 0 lets new blocks pass through a few slots and leaves
//! the cache to proven ones. Real traces want anything in between, by trace and capacity, so it is learnt as ARC
//! learns its target (Megiddo and Modha, FAST 2003): a request for a block that was just evicted from the small
//! queue says the ratio was too low, one that was just evicted from the main queue that it was too high, each
//! weighed by how few such evictions there were. Where nothing comes back at all (a scan), it falls slowly.

use super::ghost::{GhostHit, Origin};

/// The learnt ratio. All arithmetic is plain multiplication and division, so it is the same on every machine.
#[derive(Debug)]
pub(super) struct AgeRatio {
    ratio: f64,
    slot_count: f64,
    /// Evictions from the small and the main queue; one of `slot_count` evictions ago counts `1/e`.
    evictions: [f64; 2],
}

impl AgeRatio {
    pub(super) fn new(slot_count: u32) -> Self {
        Self { ratio: START, slot_count: f64::from(slot_count.max(1)), evictions: [0.0; 2] }
    }

    /// The ratio, within `1/256..=1`.
    pub(super) fn get(&self) -> f64 {
        self.ratio
    }

    /// Whether a block of `age_small` in the small queue is worth less than one of `age_main` in the main queue.
    #[inline]
    pub(super) fn prefers_small(&self, age_small: u32, age_main: u32) -> bool {
        f64::from(age_small) >= self.ratio * f64::from(age_main)
    }

    /// Notes an eviction from the queue `origin`.
    pub(super) fn evicted(&mut self, origin: Origin) {
        let kept = 1.0 - 1.0 / self.slot_count;
        self.evictions[0] *= kept;
        self.evictions[1] *= kept;
        self.evictions[origin as usize] += 1.0;
        if origin == Origin::Small {
            self.multiply(1.0 / (1.0 + FALL_PER_EVICTION / self.slot_count));
        }
    }

    /// Notes that an evicted block came back. Only recent evictions count: they alone are at the margin, where
    /// another ratio would have kept the block.
    pub(super) fn came_back(&mut self, hit: GhostHit) {
        if hit.evictions_ago as f64 > RECENT * self.slot_count {
            return;
        }
        let [small, main] = self.evictions.map(|evictions| evictions.max(1.0));
        match hit.origin {
            Origin::Small => {
                let weight = (main / small).clamp(1.0, WEIGHT_MAX);
                self.multiply(1.0 + RISE_PER_HIT * weight / self.slot_count);
            }
            Origin::Main => {
                let weight = (small / main).clamp(1.0, WEIGHT_MAX);
                self.multiply(1.0 / (1.0 + FALL_PER_HIT * weight / self.slot_count));
            }
        }
    }

    fn multiply(&mut self, factor: f64) {
        self.ratio = (self.ratio * factor).clamp(LOWEST, HIGHEST);
    }
}

/// Where learning starts.
const START: f64 = 0.5;
/// New blocks may be as good as proven ones, never better.
const HIGHEST: f64 = 1.0;
/// Some lifetime must be left, or a new block could not show its worth.
const LOWEST: f64 = 1.0 / 256.0;
/// Ghost hits count up to this many slot counts of evictions back.
const RECENT: f64 = 1.0 / 8.0;
/// Relative step up of a hit, times the slot count.
const RISE_PER_HIT: f64 = 96.0;
/// Relative step down of a hit, times the slot count.
const FALL_PER_HIT: f64 = 64.0;
/// Relative step down of an eviction out of the small queue, times the slot count. After a scan of `x` times the
/// capacity the oldest proven block has waited `x`, and the ratio is `exp(-0.75 x) / 2`: their product never passes
/// 0.25, so at least half of the cache stays with proven blocks however long the scan.
const FALL_PER_EVICTION: f64 = 0.75;
/// Highest weight of a hit.
const WEIGHT_MAX: f64 = 50.0;
