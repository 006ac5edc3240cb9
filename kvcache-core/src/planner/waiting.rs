//! How long a request waits for blocks that are on their way.

use std::time::Duration;

use super::cost::CostModel;
use super::tier::Tier;

/// A request that cannot be offered all that is on its way yet.
pub(super) struct Waiting {
    /// When it was first told to wait.
    pub(super) since: Duration,
    /// Tokens whose blocks are on their way.
    pub(super) missing_tokens: usize,
    /// Of one slot, on one rank.
    pub(super) slot_bytes: u64,
}

impl Waiting {
    /// Whether it should wait on, rather than compute what is missing.
    ///
    /// At first it waits for as long as computing takes: should nothing come, it has lost that much, once. After that it
    /// waits only for L2 (`tier`, and how many of the slots ever sent for are until its last one), while blocks keep
    /// coming and its own are known to be there sooner than they would be computed, or a quarter later, so that noise
    /// does not decide. Both times count what is before it: slots that others have sent for, and tokens of requests that
    /// were admitted. So of many requests that arrive together, those behind are fetched while those before them are
    /// computed.
    ///
    /// Never longer than the configured time, from its first question on.
    pub(super) fn goes_on(
        &self,
        cost: &CostModel,
        fill_wait: Duration,
        tier: Option<(&Tier, u64)>,
        now: Duration,
    ) -> bool {
        let waited = now.saturating_sub(self.since);
        if waited >= tier.map_or(fill_wait, |(tier, _)| tier.config.fetch_wait) {
            return false;
        }
        let Some(computed) = cost.time_until_computed(self.missing_tokens) else { return true };
        if waited < computed {
            return true;
        }
        let Some((tier, last)) = tier else { return false };
        let silent = now.saturating_sub(self.since.max(tier.silent_since()));
        let ahead = last.saturating_sub(tier.come) * self.slot_bytes;
        silent < computed && cost.fetch_time(ahead).is_some_and(|fetched| fetched <= computed * 5 / 4)
    }
}
