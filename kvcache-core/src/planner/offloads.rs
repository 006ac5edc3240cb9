//! What a step stores, and what becomes of it.

use super::jobs::Pending;
use super::tier::Tier;
use super::{Offloading, Planner, note_removed};
use crate::BlockKey;
use crate::directory::evictions_per_request_max;
use crate::plan::{Job, JobKind, Transfer};

impl Planner {
    /// Offloads what is new of a request's first `computed_tokens` tokens, whose KV is complete after this step.
    ///
    /// `blocks` is the request's whole block table, per group. The caller keeps [`Offloading::held`] from being reused.
    pub fn offload(&mut self, id: &str, computed_tokens: usize, blocks: &[Vec<u32>]) -> Offloading {
        let mut out = Offloading { next_tokens: usize::MAX, ..Offloading::default() };
        let (Some(request), Some(directory)) = (self.requests.get_mut(id), &self.directory) else {
            out.next_tokens = computed_tokens.saturating_add(1);
            return out;
        };
        if request.options.skip_store {
            let hits = request.take_hits();
            self.touch(&hits);
            return out;
        }
        if request.stale {
            out.next_tokens = computed_tokens.saturating_add(self.config.groups[0].block_tokens);
            return out;
        }
        let cap = request.options.max_store_tokens.min(if self.config.prompt_only {
            request.options.prompt_tokens
        } else {
            usize::MAX
        });
        let limit = computed_tokens.min(cap);
        let share = evictions_per_request_max(self.startup.slot_count());
        let mut job = Job {
            id: self.jobs.peek_id(self.epoch),
            kind: JobKind::Offload,
            request: id.to_owned(),
            transfers: Vec::new(),
            lost_blocks: Vec::new(),
        };
        for (group, table) in blocks.iter().enumerate().take(self.config.groups.len()) {
            let slot_blocks = self.config.slot_blocks;
            let slot_tokens = self.config.groups[group].block_tokens * slot_blocks;
            let keys = &request.keys[group];
            let full = (limit / slot_tokens).min(keys.len());
            let mut from = request.offloaded[group].min(full);
            // What has slid out of a window can no longer be copied: skip to the first slot whose blocks all exist. A block
            // that no rank copies would be bytes of another, published as this slot's.
            let is_whole = |slot: usize| {
                table.get(slot * slot_blocks..(slot + 1) * slot_blocks).is_some_and(|ids| {
                    !ids.contains(&self.config.null_block) && !ids.contains(&Transfer::SKIP)
                })
            };
            let gate = self.config.store_on_sight;
            let sighted = &mut request.sighted[group];
            while gate > 1 && sighted.len() < full {
                sighted.push(self.sight.passes(&keys[sighted.len()], gate));
            }
            let wanted = |slot: usize| is_whole(slot) && (gate <= 1 || sighted[slot]);
            while from < full && !wanted(from) {
                from += 1;
            }
            // Blocks after one that is not wanted would lie behind a hole: they are passed over with it.
            let until = (from..full).find(|slot| !wanted(*slot)).unwrap_or(full);
            out.next_tokens = out.next_tokens.min((full + 1) * slot_tokens);
            request.offloaded[group] = full;
            if from == until {
                continue;
            }
            if let Some(why) = request.refused {
                directory.leave_out(&keys[from..until], why);
                continue;
            }
            let left = share.saturating_sub(request.evicted);
            // What L1 does not store never reaches L2, where it may be worth a place.
            let reservation = if self.remote.as_ref().is_some_and(Tier::is_active) {
                directory.begin_offload(&keys[..until], from, left)
            } else {
                directory.begin_offload_if_worth(&keys[..until], from, left)
            };
            request.evicted += reservation.evicted.len();
            request.refused = reservation.refused.map(|(_, why)| why).filter(|why| why.is_final());
            request.hits[group].extend(&reservation.hits);
            self.counters.already_stored += reservation.present as u64;
            for (slot, _) in &reservation.evicted {
                note_removed(&mut self.hashes, &mut self.removed, *slot);
            }
            if let Some(tier) = &mut self.remote {
                tier.note_evicted(&reservation.evicted);
            }
            for reserved in &reservation.reserved {
                if let Some(tier) = &mut self.remote {
                    tier.forget_slot(reserved.slot);
                }
                let ids = table[reserved.index * slot_blocks..(reserved.index + 1) * slot_blocks].to_vec();
                out.held.extend_from_slice(&ids);
                out.slots.push((group as u16, reserved.index));
                let engine_hash = request.engine_hash(group, reserved.index);
                job.transfers.push(Transfer {
                    slot: reserved.slot,
                    fill: reserved.fill,
                    group: group as u16,
                    key: keys[reserved.index],
                    parent: reserved.index.checked_sub(1).map_or(BlockKey::default(), |parent| keys[parent]),
                    engine_hash,
                    blocks: ids,
                });
            }
            // A refused block is tried again once the request has grown by another slot.
            if let Some((refused, why)) = reservation.refused
                && !why.is_final()
            {
                request.offloaded[group] = refused;
            }
        }
        if out.next_tokens > cap {
            out.next_tokens = usize::MAX;
        }
        // With the last slot of what it asked for: chunks that come later would outlive the heads again.
        let hits = if out.next_tokens > request.total_tokens { request.take_hits() } else { Vec::new() };
        if !job.transfers.is_empty() {
            self.activity += 1;
            job.id = self.jobs.next_id(self.epoch);
            out.job = Some(job.id);
            let fills = job.transfers.iter().map(|transfer| (transfer.slot, transfer.fill)).collect();
            let mut pending =
                Pending { fills, hits, held: out.held.clone(), ..Pending::new(JobKind::Offload, id) };
            if self.config.keep_hashes {
                pending.hashes = job.transfers.iter().map(|transfer| transfer.engine_hash).collect();
            }
            self.jobs.begin(job.id, pending);
            self.plan.jobs.push(job);
        } else {
            self.touch(&hits);
        }
        out
    }

    /// Positions of the fills that are hits now.
    pub(super) fn end_offload(&mut self, pending: &Pending) -> Vec<usize> {
        let Some(directory) = &self.directory else { return Vec::new() };
        let ready = directory.complete_fills(&pending.fills, !pending.failed);
        let mut stored = Vec::new();
        let mut left = ready.iter().peekable();
        for (position, (slot, _)) in pending.fills.iter().enumerate() {
            if left.next_if_eq(&slot).is_some() {
                stored.push(position);
                if let (Some(kept), Some(hash)) =
                    (self.hashes.get_mut(slot.index()), pending.hashes.get(position))
                {
                    *kept = *hash;
                }
            }
        }
        self.counters.stored_blocks += stored.len() as u64;
        self.counters.failed_stores += (pending.fills.len() - stored.len()) as u64;
        self.touch(&pending.hits);
        self.suggest_stored(&ready);
        stored
    }
}
