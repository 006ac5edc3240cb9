//! What a request can restore, and the jobs that do it.

use std::time::Duration;

use super::jobs::Pending;
use super::request::Request;
use super::waiting::Waiting;
use super::{LoadMode, Lookup, MissReason, Planner, PlannerConfig, note_removed};
use crate::BlockKey;
use crate::directory::{Directory, FillId, GroupKind, GroupMatch, GroupPrefix, Residency, match_groups};
use crate::plan::{EngineHash, Job, JobId, JobKind, Transfer};

impl Planner {
    /// How many tokens beyond `local_tokens` can be restored for a request of `total_tokens`, at least one of which is
    /// left to compute. May be asked any number of times: it changes nothing but the request's waiting clock.
    pub fn lookup(&mut self, id: &str, local_tokens: usize, total_tokens: usize, now: Duration) -> Lookup {
        // Once at a time, so that two questions at once have one answer.
        if self.polled_at != Some(now) {
            self.polled_at = Some(now);
            self.poll_remote(now);
            if let Some(tier) = &mut self.remote {
                tier.note_progress(now);
            }
        }
        self.ask_remote(id, total_tokens, now);
        self.join_fetches(id);
        let answer = if self.waits_for_presence(id, now) {
            Lookup::Wait
        } else {
            self.decide(id, local_tokens, total_tokens, now)
        };
        if let Some(request) = self.requests.get_mut(id) {
            if answer == Lookup::Wait {
                request.first_asked.get_or_insert(now);
            }
            request.answer = Some(answer);
            request.local_tokens = local_tokens;
            request.total_tokens = total_tokens;
            // Whoever asks has computed nothing beyond `local_tokens` yet.
            request.stale = false;
            request.begun = false;
        }
        answer
    }

    fn decide(&mut self, id: &str, local_tokens: usize, total_tokens: usize, now: Duration) -> Lookup {
        let Some(request) = self.requests.get_mut(id) else { return Lookup::Miss(MissReason::Unknown) };
        if request.options.skip_load {
            return Lookup::Miss(MissReason::OptOut);
        }
        let Some(directory) = &self.directory else {
            let waited = now.saturating_sub(*request.first_asked.get_or_insert(now));
            return if waited < self.config.startup_wait {
                Lookup::Wait
            } else {
                Lookup::Miss(MissReason::NotReady)
            };
        };
        let limit = total_tokens.saturating_sub(1).min(request.options.max_load_tokens);
        let found = prefix_match(directory, &self.config, request, limit, &mut self.scratch);
        let tokens = found.ready_tokens.saturating_sub(local_tokens);
        if found.pending_tokens > found.ready_tokens.max(local_tokens) {
            let since = *request.first_asked.get_or_insert(now);
            let missing_tokens = found.pending_tokens - found.ready_tokens.max(local_tokens);
            let waiting = Waiting { since, missing_tokens, slot_bytes: self.startup.slot_bytes() };
            let tier = self.remote.as_ref().filter(|_| request.joined).map(|tier| (tier, request.sent_for));
            if waiting.goes_on(&self.cost, self.config.fill_wait, tier, now) {
                return Lookup::Wait;
            }
            if tokens == 0 {
                return Lookup::Miss(MissReason::Late);
            }
        }
        if tokens == 0 {
            return Lookup::Miss(request.reason_at(directory, &self.config, local_tokens, limit));
        }
        if tokens < self.config.min_load_tokens {
            return Lookup::Miss(MissReason::TooShort);
        }
        let bytes = self.load_bytes(tokens);
        if !self.cost.is_worth_loading(bytes, tokens, now) {
            return Lookup::Miss(MissReason::BreakEven);
        }
        let asynchronous = match self.config.load_mode {
            LoadMode::Async => true,
            LoadMode::Layerwise => self.config.groups.len() > 1,
            LoadMode::Auto => {
                self.config.groups.len() > 1
                    || (self.startup.copy_threads() > 0 && self.cost.is_long_beside_a_step(bytes))
            }
        };
        Lookup::Hit { tokens, asynchronous }
    }

    /// Bytes that loading so many tokens copies, about.
    fn load_bytes(&self, tokens: usize) -> u64 {
        let blocks: usize = self.config.groups.iter().map(|group| tokens.div_ceil(group.block_tokens)).sum();
        blocks as u64 * self.startup.slot_bytes() / self.config.slot_blocks as u64
    }

    /// The engine has allocated `blocks` (per group, the request's whole table) and counts on `external_tokens` being
    /// loaded; zero if it counts on nothing. Starts the load with the next plan; whether it runs between steps.
    pub fn commit_load(&mut self, id: &str, external_tokens: usize, blocks: &[Vec<u32>]) -> bool {
        let asynchronous = self.commit(id, external_tokens, blocks);
        // What it loads is pinned by its load now.
        self.admit_to_room(id);
        asynchronous
    }

    fn commit(&mut self, id: &str, external_tokens: usize, blocks: &[Vec<u32>]) -> bool {
        let Some(request) = self.requests.get_mut(id) else { return false };
        let Some(answer) = request.answer.take() else { return false };
        request.begun = true;
        let joined = std::mem::take(&mut request.joined);
        let asked_tokens = request.total_tokens.saturating_sub(request.local_tokens);
        self.activity += 1;
        self.cost.admit(asked_tokens.saturating_sub(external_tokens));
        if joined {
            self.leave_fetches(id, false);
        }
        if let Some(asked_at) = self.polled_at.filter(|_| external_tokens > 0) {
            self.cost.begin_load(self.load_bytes(external_tokens), external_tokens, asked_at);
        }
        let Some(request) = self.requests.get_mut(id) else { return false };
        self.counters.queried_tokens += asked_tokens as u64;
        if external_tokens == 0 {
            let reason = match answer {
                Lookup::Miss(reason) => reason,
                Lookup::Wait => MissReason::Late,
                Lookup::Hit { .. } => MissReason::Declined,
            };
            self.counters.miss(reason, asked_tokens);
            return false;
        }
        self.counters.hit_tokens += external_tokens as u64;
        self.counters.hits += 1;
        let asynchronous = !matches!(answer, Lookup::Hit { asynchronous: false, .. });
        let kind = if asynchronous { JobKind::LoadAsync } else { JobKind::LoadLayerwise };
        let local = request.local_tokens;
        let boundary = local + external_tokens;
        let mut job = Job {
            id: self.jobs.next_id(self.epoch),
            kind,
            request: id.to_owned(),
            transfers: Vec::new(),
            lost_blocks: Vec::new(),
        };
        let mut pinned = Vec::new();
        let mut from_l2 = 0;
        for (group, blocks) in blocks.iter().enumerate().take(self.config.groups.len()) {
            let spec = self.config.groups[group];
            let slot_tokens = spec.block_tokens * self.config.slot_blocks;
            let first = spec.kind.first_slot(slot_tokens, boundary).max(local / slot_tokens);
            let last = boundary.div_ceil(slot_tokens).min(request.keys[group].len());
            let keys = &request.keys[group];
            let wanted = keys.get(first..last).unwrap_or_default();
            let slots =
                self.directory.as_ref().map(|directory| directory.begin_load(wanted)).unwrap_or_default();
            pinned.extend_from_slice(&slots);
            request.hits[group].extend(first..first + slots.len());
            for (index, slot) in (first..).zip(&slots) {
                if let Some(tier) = &mut self.remote
                    && tier.use_from_l2(*slot)
                    && group == 0
                {
                    let tokens = (index * slot_tokens).max(local)..((index + 1) * slot_tokens).min(boundary);
                    from_l2 += tokens.len();
                }
            }
            for (position, slot_index) in (first..boundary.div_ceil(slot_tokens)).enumerate() {
                let range = slot_index * self.config.slot_blocks..(slot_index + 1) * self.config.slot_blocks;
                let ids = range.map(|block| {
                    let wanted = block * spec.block_tokens >= local && block * spec.block_tokens < boundary;
                    blocks.get(block).copied().filter(|id| wanted && *id != self.config.null_block)
                });
                let ids: Vec<u32> = ids.map(|id| id.unwrap_or(Transfer::SKIP)).collect();
                match slots.get(position).zip(wanted.get(position)) {
                    Some((slot, key)) => job.transfers.push(Transfer {
                        slot: *slot,
                        fill: FillId(0),
                        group: group as u16,
                        key: *key,
                        parent: BlockKey::default(),
                        engine_hash: EngineHash::default(),
                        blocks: ids,
                    }),
                    None => job.lost_blocks.extend(ids.into_iter().filter(|id| *id != Transfer::SKIP)),
                }
            }
        }
        request.remote_tokens = from_l2;
        if let Some(tier) = &mut self.remote {
            tier.counters.hit_tokens += from_l2 as u64;
        }
        // A job with lost blocks fails without having looked at the others, which are as good as they were.
        let keys = if job.lost_blocks.is_empty() {
            job.transfers.iter().map(|t| t.key).collect()
        } else {
            Vec::new()
        };
        self.jobs.begin(job.id, Pending { pinned, keys, ..Pending::new(kind, id) });
        self.plan.jobs.push(job);
        asynchronous
    }

    /// Tokens that the last look-up of a request has offered, until [`commit_load`](Self::commit_load) answers it; 0 if it
    /// offered none.
    pub fn offered_tokens(&self, id: &str) -> usize {
        match self.requests.get(id).and_then(|request| request.answer) {
            Some(Lookup::Hit { tokens, .. }) => tokens,
            _ => 0,
        }
    }

    /// Tokens that the engine had itself at the last look-up of a request; 0 for an unknown one.
    pub fn local_tokens(&self, id: &str) -> usize {
        self.requests.get(id).map_or(0, |request| request.local_tokens)
    }

    /// How many tokens of the request's last load came from L2 for it, rather than having been in L1.
    pub fn remote_tokens(&self, id: &str) -> usize {
        self.requests.get(id).map_or(0, |request| request.remote_tokens)
    }

    pub(super) fn end_failed_load(&mut self, id: JobId, pending: &Pending) {
        self.counters.failed_loads += 1;
        // What could not be loaded once is not offered again.
        if let Some(directory) = &self.directory
            && id.epoch == self.epoch
        {
            for (slot, _) in directory.delete(&pending.keys) {
                self.plan.forgotten.push(slot);
                note_removed(&mut self.hashes, &mut self.removed, slot);
                if self.remote.as_mut().is_some_and(|tier| tier.room.lose(slot)) {
                    directory.end_load(&[slot]);
                }
            }
        }
        // What the request computes instead is stored again.
        if let Some(request) = self.requests.get_mut(&pending.request) {
            request.offloaded.fill(0);
            // In the slots that the failed blocks have left.
            request.refused = None;
        }
    }
}

/// The boundaries of a request's resident prefix.
fn prefix_match(
    directory: &Directory,
    config: &PlannerConfig,
    request: &Request,
    limit: usize,
    scratch: &mut [Vec<Residency>],
) -> GroupMatch {
    if let ([group], [keys]) = (&config.groups[..], &request.keys[..])
        && group.kind == GroupKind::Full
    {
        let slot_tokens = group.block_tokens * config.slot_blocks;
        let found = directory.match_prefix(&keys[..keys.len().min(limit / slot_tokens)]);
        return GroupMatch {
            ready_tokens: found.ready * slot_tokens,
            pending_tokens: (found.ready + found.pending) * slot_tokens,
        };
    }
    for (keys, residency) in request.keys.iter().zip(scratch.iter_mut()) {
        directory.residency(keys, residency);
    }
    let groups: Vec<GroupPrefix<'_>> = config
        .groups
        .iter()
        .zip(scratch.iter())
        .map(|(group, residency)| GroupPrefix {
            kind: group.kind,
            slot_tokens: group.block_tokens * config.slot_blocks,
            residency,
        })
        .collect();
    match_groups(&groups, limit)
}
