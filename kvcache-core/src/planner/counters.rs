//! Counts, each with its reason, so that a user can see why there is no gain.

use crate::directory::DirectoryStats;

/// Why tokens that could have been restored were not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(usize)]
pub enum MissReason {
    /// Never stored here, as far as is known.
    Absent,
    /// Stored once and evicted for room: more capacity would help.
    Evicted,
    /// Being stored, but not ready before the request's deadline.
    Late,
    /// The ranks have not reported yet, or the slab could not be opened.
    NotReady,
    /// Shorter than one slot, or than the smallest load.
    TooShort,
    /// Loading is measured to be slower than computing.
    BreakEven,
    /// The request asked not to load.
    OptOut,
    /// Offered, but the engine did not take it.
    Declined,
    /// The request was never announced.
    Unknown,
}

impl MissReason {
    /// Every reason, in counting order.
    pub const ALL: [Self; 9] = [
        Self::Absent,
        Self::Evicted,
        Self::Late,
        Self::NotReady,
        Self::TooShort,
        Self::BreakEven,
        Self::OptOut,
        Self::Declined,
        Self::Unknown,
    ];

    /// The name in metrics and documents.
    pub fn name(self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Evicted => "evicted",
            Self::Late => "late",
            Self::NotReady => "not_ready",
            Self::TooShort => "too_short",
            Self::BreakEven => "break_even",
            Self::OptOut => "opt_out",
            Self::Declined => "declined",
            Self::Unknown => "unknown",
        }
    }
}

#[derive(Default)]
pub(super) struct Counters {
    pub(super) hits: u64,
    pub(super) hit_tokens: u64,
    pub(super) queried_tokens: u64,
    pub(super) already_stored: u64,
    pub(super) stored_blocks: u64,
    pub(super) failed_stores: u64,
    pub(super) failed_loads: u64,
    pub(super) adopted_blocks: u64,
    misses: [u64; MissReason::ALL.len()],
    missed_tokens: [u64; MissReason::ALL.len()],
}

impl Counters {
    pub(super) fn miss(&mut self, reason: MissReason, tokens: usize) {
        self.misses[reason as usize] += 1;
        self.missed_tokens[reason as usize] += tokens as u64;
    }

    pub(super) fn snapshot(
        &self,
        directory: Option<DirectoryStats>,
        jobs_in_flight: usize,
        requests: usize,
        remote: Option<RemoteTierStats>,
    ) -> PlannerStats {
        PlannerStats {
            hits: self.hits,
            hit_tokens: self.hit_tokens,
            queried_tokens: self.queried_tokens,
            already_stored_blocks: self.already_stored,
            stored_blocks: self.stored_blocks,
            failed_stores: self.failed_stores,
            failed_loads: self.failed_loads,
            adopted_blocks: self.adopted_blocks,
            misses: self.misses,
            missed_tokens: self.missed_tokens,
            jobs_in_flight,
            requests,
            directory,
            remote,
        }
    }
}

/// A snapshot of a planner's counts since its start.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PlannerStats {
    /// Requests for which something was loaded.
    pub hits: u64,
    /// Tokens loaded for them.
    pub hit_tokens: u64,
    /// Tokens asked about beyond the engine's own cache.
    pub queried_tokens: u64,
    /// Blocks offered for storing that were there already.
    pub already_stored_blocks: u64,
    /// Blocks stored by all ranks.
    pub stored_blocks: u64,
    /// Blocks that some rank could not store, or that a reset overtook.
    pub failed_stores: u64,
    /// Load jobs that some rank could not complete.
    pub failed_loads: u64,
    /// Blocks found in the slabs after a restart.
    pub adopted_blocks: u64,
    /// Requests by [`MissReason`], in the order of [`MissReason::ALL`].
    pub misses: [u64; MissReason::ALL.len()],
    /// Their tokens.
    pub missed_tokens: [u64; MissReason::ALL.len()],
    /// Jobs not acknowledged by every rank.
    pub jobs_in_flight: usize,
    /// Requests known.
    pub requests: usize,
    /// The directory's own counts, once there is one.
    pub directory: Option<DirectoryStats>,
    /// What was done with L2, if there is one.
    pub remote: Option<RemoteTierStats>,
}

/// Counts of the scheduler side about L2.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct RemoteTierStats {
    /// Blocks that L2 was asked about.
    pub asked_blocks: u64,
    /// Of those asked about for a request: blocks that L2 had.
    pub present_blocks: u64,
    /// Jobs that bring blocks from L2.
    pub fetch_jobs: u64,
    /// Blocks that came from L2.
    pub fetched_blocks: u64,
    /// Blocks that were sent for and did not come, or not intact.
    pub failed_fetches: u64,
    /// Jobs whose requests had all gone.
    pub cancelled_fetches: u64,
    /// Requests for which nothing was sent for at first because there was no room in L1.
    pub refused_fetches: u64,
    /// Requests for which nothing was sent for because computing is measured to be faster.
    pub break_even: u64,
    /// Tokens loaded from blocks that had come from L2 and were used for the first time.
    pub hit_tokens: u64,
    /// Blocks that every rank has brought to L2.
    pub demoted_blocks: u64,
    /// Blocks that L2 had already when they were to go there.
    pub already_demoted: u64,
    /// Blocks that some rank could not bring there.
    pub failed_demotions: u64,
    /// Blocks that were to go there and of which there were too many at once.
    pub dropped_demotions: u64,
}
