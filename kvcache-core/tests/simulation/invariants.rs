//! What must always hold, and what must hold in the end.

use super::*;
use kvcache_core::eviction::suite;

impl World {
    pub(super) fn check(&mut self) -> Result<(), Violation> {
        let known = self.planner.stats().requests;
        if known > self.requests.len() {
            return Err(format!("the planner knows {known} requests, the engine {}", self.requests.len()));
        }
        if let Some(directory) = self.planner.directory() {
            let stats = directory.stats();
            let slots = stats.free + stats.filling + stats.ready + stats.draining + stats.unusable;
            if slots != stats.slot_count {
                return Err(format!("{slots} slots of {} are accounted for: {stats:?}", stats.slot_count));
            }
            // A policy that learns has tables of a fixed size.
            let fixed = if stats.policy == "hit-density" { suite::METADATA_BYTES_FIXED_MAX } else { 2048 };
            if stats.metadata_bytes > fixed + 128 * stats.slot_count {
                return Err(format!(
                    "{} bytes of metadata for {} slots",
                    stats.metadata_bytes, stats.slot_count
                ));
            }
            if self.step.is_multiple_of(16) {
                directory.check()?;
            }
            self.planner.check()?;
        }
        Ok(())
    }

    /// Adds what a planner and its ranks have done with L2, before they go.
    pub(super) fn count_remote(&mut self) {
        let Some(stats) = self.planner.stats().remote else { return };
        self.counts.remote_asked += stats.asked_blocks;
        self.counts.remote_fetched += stats.fetched_blocks;
        self.counts.remote_failed_fetches += stats.failed_fetches;
        self.counts.remote_cancelled += stats.cancelled_fetches;
        self.counts.remote_refused += stats.refused_fetches;
        self.counts.remote_hit_tokens += stats.hit_tokens;
        self.counts.remote_demoted += stats.demoted_blocks;
        self.counts.remote_already_there += stats.already_demoted;
        self.counts.remote_failed_demotions += stats.failed_demotions;
        for rank in &self.ranks {
            self.counts.remote_unfit += rank.store.remote_stats().map_or(0, |stats| stats.unfit);
        }
    }

    pub(super) fn check_drained(&mut self) -> Result<(), Violation> {
        if let Some(directory) = self.planner.directory() {
            directory.check()?;
            let stats = directory.stats();
            if stats.filling + stats.draining + stats.pinned > 0
                || stats.free + stats.ready + stats.unusable != stats.slot_count
            {
                return Err(format!("slots leak: {stats:?}"));
            }
            self.counts.evicted += stats.evicted;
            self.counts.refused += stats.refused;
            self.counts.over_share += stats.over_share;
            self.counts.not_worth += stats.not_worth;
            self.counts.stored += stats.stored;
        }
        self.counts.adopted += self.planner.stats().adopted_blocks;
        self.count_remote();
        let servers = self.servers.counts();
        self.counts.remote_gets += servers.gets;
        self.counts.remote_puts += servers.puts;
        self.counts.remote_missing += servers.missing;
        self.counts.remote_corrupt += servers.corrupt;
        self.counts.remote_lost += servers.lost;
        self.counts.remote_repeated += servers.repeated;
        self.counts.remote_broken += servers.broken;
        self.counts.remote_refused_connections += servers.refused;
        self.counts.remote_abandoned += servers.abandoned;
        let used = self.pool.iter().filter(|block| block.users > 0).count();
        if used > 0 || !self.held.is_empty() {
            return Err(format!("{used} engine blocks are still held by {} jobs", self.held.len()));
        }
        for (index, rank) in self.ranks.iter().enumerate() {
            let stats = rank.store.stats();
            if stats.jobs_in_flight > 0 || rank.copies.in_flight().batches > 0 {
                return Err(format!("rank {index} still works: {stats:?}"));
            }
            let copies = rank.copies.counts();
            self.counts.copy_failures += copies.failed;
            self.counts.copies_full += copies.full;
            self.counts.overtaken += copies.overtaken;
            self.counts.shared_batches += stats.shared_batches;
        }
        Ok(())
    }
}
