//! Every statistic by its name: what Python dictionaries, JSON and Prometheus have in common.
//!
//! A snapshot becomes [`Number`]s. Their names and their help are those of `docs/metrics.md` wherever the connector shows
//! the same number there.

mod prometheus;

use std::borrow::Cow;

use kvcache_core::block_cache::{BlockCacheStats, L2Stats};
use kvcache_core::directory::DirectoryStats;
use kvcache_core::planner::{MissReason, PlannerStats, RemoteTierStats};
use kvcache_core::remote::RemoteFailure;
use kvcache_core::store::{RemoteLinkStats, StoreStats};

pub use prometheus::{PREFIX, prometheus};

/// Whether a number only grows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// It only grows.
    Counter,
    /// It is shown as it is.
    Gauge,
}

/// One number of a snapshot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Number {
    /// Its name, without prefix or `_total`.
    pub name: &'static str,
    /// The reason that it is counted for, of numbers that are counted by reason.
    pub reason: Option<&'static str>,
    /// How it changes.
    pub kind: Kind,
    /// What it counts.
    pub help: &'static str,
    /// Its value.
    pub value: u64,
}

impl Number {
    /// The name in a flat dictionary: with the reason behind it.
    pub fn key(&self) -> Cow<'static, str> {
        match self.reason {
            None => Cow::Borrowed(self.name),
            Some(reason) => Cow::Owned(format!("{}_{reason}", self.name)),
        }
    }

    fn by_reason(self, reason: &'static str) -> Self {
        Self { reason: Some(reason), ..self }
    }
}

fn counter(name: &'static str, value: u64, help: &'static str) -> Number {
    Number { name, reason: None, kind: Kind::Counter, help, value }
}

fn gauge(name: &'static str, value: impl TryInto<u64>, help: &'static str) -> Number {
    Number { name, reason: None, kind: Kind::Gauge, help, value: value.try_into().unwrap_or(u64::MAX) }
}

/// Slots and their states, and what was done with them.
pub fn directory(stats: &DirectoryStats) -> [Number; 17] {
    [
        gauge("slots", stats.slot_count, "Slots of L1."),
        gauge(
            "slots_unusable",
            stats.unusable,
            "Empty slots that cannot be filled yet: without memory, or not pinned.",
        ),
        gauge("slots_free", stats.free, "Slots that can be filled at once."),
        gauge("slots_filling", stats.filling, "Slots being filled."),
        gauge("slots_ready", stats.ready, "Slots whose block is a hit."),
        gauge("slots_draining", stats.draining, "Slots of cancelled work that is not acknowledged yet."),
        gauge(
            "slots_pinned",
            stats.pinned,
            "Slots that loads are using, or that hold what has come from L2 for requests that wait.",
        ),
        counter("stored", stats.stored, "Blocks that became hits."),
        counter("evicted", stats.evicted, "Blocks evicted for room."),
        counter("refused", stats.refused, "Blocks dropped because everything else was in use."),
        counter(
            "over_share",
            stats.over_share,
            "Blocks dropped because their request had evicted its share, a quarter of the slots.",
        ),
        counter(
            "not_worth",
            stats.not_worth,
            "Blocks dropped because what would have had to leave was likelier to be used again.",
        ),
        counter("failed_fills", stats.failed_fills, "Blocks whose copy into L1 failed."),
        counter(
            "cancelled_fills",
            stats.cancelled_fills,
            "Blocks that were deleted before they were copied into L1.",
        ),
        counter("adopted", stats.adopted, "Blocks taken over from an earlier process."),
        counter("removed", stats.removed, "Blocks deleted."),
        gauge("metadata_bytes", stats.metadata_bytes, "Memory of the directory and the eviction policy."),
    ]
}

/// A block cache and its L2.
pub fn cache(stats: &BlockCacheStats) -> impl Iterator<Item = Number> + use<> {
    let own = [
        gauge("block_bytes", stats.block_bytes, "Bytes of a block."),
        gauge("slab_bytes", stats.slab_bytes, "Bytes of all slots, used or not."),
    ];
    directory(&stats.directory)
        .into_iter()
        .chain(own)
        .chain(stats.l2.into_iter().flat_map(|l2| cache_l2(&l2)))
}

/// What a block cache has done with L2.
pub fn cache_l2(stats: &L2Stats) -> [Number; 9] {
    [
        counter("l2_questions", stats.questions, "Questions to L2 about what it has."),
        counter("l2_questions_late", stats.questions_late, "Questions that L2 did not answer in time."),
        counter("l2_fetched", stats.fetched, "Blocks that came from L2, verified."),
        counter("l2_missing", stats.missing, "Blocks asked for that L2 does not have."),
        counter("l2_fetch_failed", stats.fetch_failed, "Blocks asked for that did not come, or not intact."),
        counter("l2_demoted", stats.demoted, "Blocks brought to L2."),
        counter(
            "l2_demote_failed",
            stats.demote_failed,
            "Blocks that a server refused, or that did not arrive in time.",
        ),
        counter(
            "l2_demote_dropped",
            stats.demote_dropped,
            "Blocks left out of L2 because too many were on their way.",
        ),
        gauge("l2_demoting", stats.demoting, "Blocks on their way to L2."),
    ]
}

/// What a rank's store has copied.
pub fn store(stats: &StoreStats) -> [Number; 9] {
    [
        counter("loaded_bytes", stats.loaded_bytes, "Bytes copied from L1 into the engine."),
        counter("load_ns", stats.load_ns, "Nanoseconds from the start of loads to their end."),
        counter("offloaded_bytes", stats.offloaded_bytes, "Bytes copied from the engine into L1."),
        counter("offload_ns", stats.offload_ns, "Nanoseconds from the start of offloads to their end."),
        counter("loads", stats.loads, "Load jobs that ended, per rank."),
        counter("failed_load_jobs", stats.failed_loads, "Load jobs that failed, per rank."),
        counter("offloads", stats.offloads, "Offload jobs that ended, per rank."),
        counter("failed_offloads", stats.failed_offloads, "Offload jobs that failed, per rank."),
        counter("wait_ns", stats.wait_ns, "Nanoseconds that the engine's thread waited for layers."),
    ]
}

/// What a rank's store has moved between L1 and L2.
pub fn store_l2(stats: &RemoteLinkStats) -> impl Iterator<Item = Number> + use<> {
    let failures = RemoteFailure::ALL.iter().zip(stats.failures).map(|(failure, count)| {
        counter("l2_failures", count, "Values that did not move between L1 and L2, by reason.")
            .by_reason(failure.name())
    });
    [
        counter("l2_fetched_bytes", stats.fetched_bytes, "Bytes that came from L2, over the ranks."),
        counter("l2_fetch_ns", stats.fetch_ns, "Nanoseconds during which any were on their way."),
        counter("l2_demoted_bytes", stats.demoted_bytes, "Bytes brought to L2, over the ranks."),
        counter(
            "l2_missing_values",
            stats.missing,
            "Values that L2 was said to have and had not, over the ranks.",
        ),
        counter("l2_unfit_blocks", stats.unfit, "Blocks left out of L2 because L1 could not vouch for them."),
    ]
    .into_iter()
    .chain(failures)
}

/// What a planner was asked and has answered, its L2 and its directory.
pub fn planner(stats: &PlannerStats) -> impl Iterator<Item = Number> + use<> {
    let misses = MissReason::ALL.iter().zip(stats.misses).map(|(reason, count)| {
        counter("misses", count, "Requests for which nothing was loaded, by reason.").by_reason(reason.name())
    });
    let missed_tokens = MissReason::ALL.iter().zip(stats.missed_tokens).map(|(reason, count)| {
        counter("missed_tokens", count, "Tokens that were not loaded, by reason.").by_reason(reason.name())
    });
    [
        counter("hits", stats.hits, "Requests for which blocks were loaded."),
        counter("hit_tokens", stats.hit_tokens, "Tokens loaded instead of computed."),
        counter("queried_tokens", stats.queried_tokens, "Tokens asked about beyond the engine's own cache."),
        counter(
            "already_stored_blocks",
            stats.already_stored_blocks,
            "Blocks offered for storing that were there already.",
        ),
        counter("stored_blocks", stats.stored_blocks, "Blocks stored by all ranks."),
        counter(
            "failed_stores",
            stats.failed_stores,
            "Blocks that some rank could not store, or that a reset overtook.",
        ),
        counter("failed_loads", stats.failed_loads, "Loads that failed; their tokens were computed instead."),
        counter("adopted_blocks", stats.adopted_blocks, "Blocks found in the slab after a restart."),
        gauge(
            "jobs_in_flight",
            stats.jobs_in_flight,
            "Jobs that are not acknowledged by every rank: the queue's depth.",
        ),
        gauge("requests", stats.requests, "Requests that the planner knows."),
    ]
    .into_iter()
    .chain(misses)
    .chain(missed_tokens)
    .chain(stats.remote.into_iter().flat_map(|remote| planner_l2(&remote)))
    .chain(stats.directory.into_iter().flat_map(|stats| directory(&stats)))
}

/// What a planner has done with L2.
pub fn planner_l2(stats: &RemoteTierStats) -> [Number; 13] {
    [
        counter("l2_asked_blocks", stats.asked_blocks, "Blocks that L2 was asked about."),
        counter("l2_present_blocks", stats.present_blocks, "Blocks that L2 had when a request asked."),
        counter("l2_fetch_jobs", stats.fetch_jobs, "Jobs that bring blocks from L2."),
        counter("l2_fetched_blocks", stats.fetched_blocks, "Blocks that came from L2 to every rank."),
        counter(
            "l2_failed_fetches",
            stats.failed_fetches,
            "Blocks that were sent for and did not come, or not intact: they shorten a match.",
        ),
        counter(
            "l2_cancelled_fetches",
            stats.cancelled_fetches,
            "Jobs cancelled because their requests had gone, or had begun without them.",
        ),
        counter(
            "l2_refused_fetches",
            stats.refused_fetches,
            "Requests for which nothing was sent for at first because L1 had no room.",
        ),
        counter(
            "l2_break_even",
            stats.break_even,
            "Requests for which nothing was sent for because computing is measured to be faster.",
        ),
        counter("l2_hit_tokens", stats.hit_tokens, "Tokens loaded from blocks that had come from L2 for it."),
        counter("l2_demoted_blocks", stats.demoted_blocks, "Blocks that every rank has brought to L2."),
        counter(
            "l2_already_demoted",
            stats.already_demoted,
            "Blocks that L2 had already when they were to go there.",
        ),
        counter(
            "l2_failed_demotions",
            stats.failed_demotions,
            "Blocks that some rank could not bring to L2.",
        ),
        counter(
            "l2_dropped_demotions",
            stats.dropped_demotions,
            "Blocks that were to go to L2 and did not: too many at once, or their slots were needed.",
        ),
    ]
}

#[cfg(test)]
mod tests;
