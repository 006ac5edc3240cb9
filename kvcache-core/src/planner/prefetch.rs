//! Brings what L2 has of a request into L1 while the request waits for its turn.
//!
//! A request's absent blocks are asked for once. What is there gets slots and rides to the ranks as fetch jobs; to the
//! engine it is nothing but blocks being filled. Only what is ready is ever offered, so a value that is missing or
//! damaged shortens a match. What has come is pinned until the request's turn. What finds no room is sent for as room
//! frees, first come first served, if its request still waits.

use std::time::Duration;

use super::tier::{Asked, FAILED_IN_ROW_MAX, Question, RemoteState, Tier};
use super::{Arrival, FetchRoom, Pending, Planner, note_removed};
use crate::BlockKey;
use crate::directory::{FillId, GroupMatch, GroupPrefix, Residency, evictions_per_request_max, match_groups};
use crate::eviction::SlotId;
use crate::plan::{Job, JobId, JobKind, Transfer};

/// Keys that one request may ask about.
const ASKED_MAX: usize = 16_384;

impl Planner {
    /// A request has entered whose prompt has `total_tokens` tokens: what L2 has of it can be on its way before the
    /// engine first asks. Does nothing without L2, or if the request has asked already.
    pub fn prefetch(&mut self, id: &str, total_tokens: usize, now: Duration) {
        self.ask_remote(id, total_tokens, now);
    }

    /// Whether a question was asked.
    pub(super) fn ask_remote(&mut self, id: &str, total_tokens: usize, now: Duration) -> bool {
        let (Some(tier), Some(directory)) = (&mut self.remote, &self.directory) else { return false };
        let Some(request) = self.requests.get_mut(id) else { return false };
        if !tier.is_active() || request.remote != RemoteState::Fresh || request.options.skip_load {
            return false;
        }
        let limit = total_tokens.saturating_sub(1).min(request.options.max_load_tokens);
        let (mut asked, mut keys) = (Asked::new(), Vec::new());
        for (group, scratch) in self.scratch.iter_mut().enumerate() {
            let slots = limit / (self.config.groups[group].block_tokens * self.config.slot_blocks);
            let all = &request.keys[group];
            directory.residency(&all[..slots.min(all.len())], scratch);
            for (position, residency) in scratch.iter().enumerate() {
                if *residency == Residency::Absent && keys.len() < ASKED_MAX {
                    asked.push((group, position));
                    keys.push(all[position]);
                }
            }
        }
        if keys.is_empty() {
            // Asked again when it has grown: nothing has been started for it.
            return false;
        }
        let question = tier.ask(Question::Request(id.to_owned(), asked), &keys);
        // Whoever is called from the queue does not wait longer for it.
        let is_called = tier.room.is_queued(request.arrival);
        let since = request.first_asked.filter(|_| is_called).unwrap_or(now);
        request.remote = RemoteState::Asked { question, since };
        request.questions = request.questions.saturating_add(1);
        request.asked_tokens = total_tokens;
        self.activity += 1;
        true
    }

    /// Whether a request should wait to hear what L2 has of it.
    pub(super) fn waits_for_presence(&self, id: &str, now: Duration) -> bool {
        let (Some(tier), Some(request)) = (&self.remote, self.requests.get(id)) else { return false };
        match request.remote {
            RemoteState::Asked { since, .. } => now.saturating_sub(since) < tier.config.presence_wait,
            _ => false,
        }
    }

    /// Acts on what L2 has answered.
    pub(super) fn poll_remote(&mut self, now: Duration) {
        let Some(tier) = &mut self.remote else { return };
        for (question, about, present) in tier.take_answers() {
            match about {
                Question::Request(id, asked) => self.fetch(&id, question, &asked, &present, now),
                Question::Demotion(keys) => self.demote(&keys, &present),
            }
        }
    }

    /// Reserves slots for what L2 has of a request, as far as that lengthens its match, and sends for it.
    fn fetch(&mut self, id: &str, question: u64, asked: &Asked, present: &[bool], now: Duration) {
        let (Some(tier), Some(directory)) = (&mut self.remote, &self.directory) else { return };
        let Some(request) = self.requests.get_mut(id) else { return };
        if !matches!(request.remote, RemoteState::Asked { question: own, .. } if own == question) {
            return;
        }
        request.remote = RemoteState::Over;
        tier.leave_queue(request.arrival);
        if request.begun {
            // It computes these blocks itself by now.
            return;
        }
        let count = present.iter().filter(|present| **present).count();
        tier.counters.present_blocks += count as u64;
        if count == 0 {
            return;
        }
        // With what is there as if it were on its way already.
        for (keys, scratch) in request.keys.iter().zip(&mut self.scratch) {
            directory.residency(keys, scratch);
        }
        let mut sought = Vec::with_capacity(count);
        for (place, _) in asked.iter().zip(present).filter(|(_, present)| **present) {
            let (group, position) = *place;
            if let Some(residency) = self.scratch[group].get_mut(position)
                && *residency == Residency::Absent
            {
                *residency = Residency::Filling;
                sought.push((group, position));
            }
        }
        let groups: Vec<GroupPrefix<'_>> = self
            .config
            .groups
            .iter()
            .zip(&self.scratch)
            .map(|(group, residency)| GroupPrefix {
                kind: group.kind,
                slot_tokens: group.block_tokens * self.config.slot_blocks,
                residency,
            })
            .collect();
        let found = match_groups(&groups, request.options.max_load_tokens);
        let tokens = found.pending_tokens.saturating_sub(found.ready_tokens);
        if tokens == 0 || found.pending_tokens < self.config.min_load_tokens {
            return;
        }
        let all = Sought::within(&groups, &sought, found);
        let missing: usize = all
            .ranges
            .iter()
            .zip(&self.scratch)
            .map(|((from, until), residency)| {
                residency[*from..*until].iter().filter(|of| **of != Residency::Ready).count()
            })
            .sum();
        let is_in_vain = tier.failed_in_row >= FAILED_IN_ROW_MAX
            || self.cost.fetching_is_slower(missing as u64 * self.startup.slot_bytes(), tokens);
        if is_in_vain && !tier.may_try_again(now) {
            tier.counters.break_even += 1;
            return;
        }
        let room = tier.room.room_for(request.arrival, tier.fetching());
        // A part that is too short to be loaded is not worth its room.
        let worth = self.config.min_load_tokens.max(found.ready_tokens + 1);
        let wanted = all.slots;
        let fitting = all.shortened(&groups, &sought, room, worth);
        let share = evictions_per_request_max(self.startup.slot_count());
        let mut transfers = Vec::new();
        for (group, (from, until)) in fitting.ranges.into_iter().enumerate() {
            let keys = &request.keys[group];
            let first = sought.partition_point(|place| *place < (group, from));
            let Some((_, first)) = sought.get(first).filter(|place| **place < (group, until)) else {
                continue;
            };
            let left = share.saturating_sub(request.evicted);
            let reservation = directory.begin_offload(&keys[..until], *first, left);
            request.evicted += reservation.evicted.len();
            for (slot, _) in &reservation.evicted {
                note_removed(&mut self.hashes, &mut self.removed, *slot);
            }
            tier.note_evicted(&reservation.evicted);
            for reserved in &reservation.reserved {
                tier.forget_slot(reserved.slot);
                transfers.push(Transfer {
                    slot: reserved.slot,
                    fill: reserved.fill,
                    group: group as u16,
                    key: keys[reserved.index],
                    parent: reserved.index.checked_sub(1).map_or(BlockKey::default(), |parent| keys[parent]),
                    engine_hash: request.engine_hash(group, reserved.index),
                    blocks: Vec::new(),
                });
            }
        }
        let in_vain = Some(room).filter(|room| transfers.is_empty() && *room > 0);
        if transfers.len() < wanted
            && request.questions < FetchRoom::QUESTIONS_MAX
            && request.evicted < share
            && tier.room.queue(request.arrival, wanted - transfers.len(), in_vain)
        {
            tier.queued.insert(request.arrival, id.to_owned());
        }
        tier.counters.refused_fetches += u64::from(transfers.is_empty() && request.questions == 1);
        tier.sent_for += transfers.len() as u64;
        if !transfers.is_empty() || request.questions == 1 {
            request.sent_for = tier.sent_for;
        }
        for transfers in transfers.chunks(tier.config.fetch_job_slots.max(1)) {
            let job_id = self.jobs.next_id(self.epoch);
            tier.counters.fetch_jobs += 1;
            tier.waiters.entry(job_id.number).or_default().wanting.insert(id.to_owned());
            tier.fetching.extend(transfers.iter().map(|transfer| (transfer.key, job_id.number)));
            let fills: Vec<(SlotId, FillId)> = transfers.iter().map(|of| (of.slot, of.fill)).collect();
            let keys = transfers.iter().map(|transfer| transfer.key).collect();
            self.jobs.begin(job_id, Pending { fills, keys, ..Pending::new(JobKind::Fetch, id) });
            self.plan.jobs.push(Job {
                id: job_id,
                kind: JobKind::Fetch,
                request: id.to_owned(),
                transfers: transfers.to_vec(),
                lost_blocks: Vec::new(),
            });
        }
        self.activity += 1;
    }

    /// A fetch job has been reported by every rank: what all of them have got is ready.
    pub(super) fn end_fetch(&mut self, number: u64, pending: &Pending) {
        let (Some(tier), Some(directory)) = (&mut self.remote, &self.directory) else { return };
        let (mut good, mut bad) = (Vec::new(), Vec::new());
        for (position, fill) in pending.fills.iter().enumerate() {
            if pending.has_done(position) { good.push(*fill) } else { bad.push(*fill) }
        }
        let waiters = tier.waiters.get(&number);
        let wanting = waiters.iter().flat_map(|waiters| &waiters.wanting);
        let waiting: Vec<Arrival> = wanting
            .filter_map(|id| self.requests.get(id).filter(|request| !request.begun))
            .map(|request| request.arrival)
            .collect();
        for slot in directory.complete_fills(&good, true) {
            tier.note_fetched(slot);
            tier.counters.fetched_blocks += 1;
            for arrival in &waiting {
                if tier.room.hold(*arrival, slot)
                    && let Some(key) = directory.key_of(slot)
                {
                    directory.begin_load(&[key]);
                }
            }
        }
        directory.complete_fills(&bad, false);
        let waiters = tier.waiters.get(&number);
        let cancelled = waiters.is_some_and(|waiters| waiters.cancelled);
        if !bad.is_empty() {
            let mut ask_again = Vec::new();
            // Whoever passed over what was on its way may store it after all.
            for id in waiters.iter().flat_map(|of| of.wanting.iter().chain(&of.passed)) {
                if let Some(request) = self.requests.get_mut(id) {
                    request.offloaded.fill(0);
                    // Who came when it was being cancelled asks for it again.
                    if cancelled && !request.begun {
                        (request.remote, request.joined) = (RemoteState::Fresh, false);
                        ask_again.push(request.arrival);
                    }
                }
            }
            // At its next lookup; until then nobody waits behind it.
            for arrival in ask_again {
                tier.leave_queue(arrival);
            }
        }
        if !good.is_empty() {
            tier.failed_in_row = 0;
        } else if !cancelled {
            tier.failed_in_row = tier.failed_in_row.saturating_add(1);
        }
        tier.counters.failed_fetches += bad.len() as u64;
        tier.end_fetch(number, &pending.keys);
    }

    /// Asks for those again who found no room, as far as there is some now, and keeps nothing for those whom others have
    /// overtaken for too long.
    pub(super) fn call_for_fetches(&mut self, now: Duration) {
        let (Some(tier), Some(directory)) = (&mut self.remote, &self.directory) else { return };
        directory.end_load(&tier.room.expire(tier.config.fetch_wait, now));
        if tier.queued.len() != tier.room.queued().len() {
            let room = &tier.room;
            tier.queued.retain(|arrival, _| room.is_queued(*arrival));
        }
        while let Some(tier) = &mut self.remote
            && let Some(arrival) = tier.room.call(tier.fetching())
        {
            let Some(id) = tier.queued.get(&arrival).cloned() else { continue };
            let Some(request) = self.requests.get_mut(&id) else { continue };
            request.remote = RemoteState::Fresh;
            let asked_tokens = request.asked_tokens;
            if !self.ask_remote(&id, asked_tokens, now)
                && let Some(tier) = &mut self.remote
            {
                tier.leave_queue(arrival);
            }
        }
    }

    /// A request is being computed: nothing is held for it any more.
    pub(super) fn admit_to_room(&mut self, id: &str) {
        let (Some(tier), Some(directory)) = (&mut self.remote, &self.directory) else { return };
        let Some(request) = self.requests.get(id).filter(|request| request.begun) else { return };
        let held = tier.room.admit(request.arrival, self.polled_at.unwrap_or_default());
        tier.queued.remove(&request.arrival);
        directory.end_load(&held);
    }

    /// A request is gone: nothing is held for it any more.
    pub(super) fn leave_room(&mut self, arrival: Arrival) {
        let (Some(tier), Some(directory)) = (&mut self.remote, &self.directory) else { return };
        directory.end_load(&tier.room.leave(arrival));
        tier.queued.remove(&arrival);
    }

    /// A request that waits for blocks on their way keeps them from being cancelled.
    pub(super) fn join_fetches(&mut self, id: &str) {
        let (Some(tier), Some(request)) = (&mut self.remote, self.requests.get_mut(id)) else { return };
        if tier.fetching() == 0 || request.joined {
            return;
        }
        for key in request.keys.iter().flatten() {
            if let Some(job) = tier.fetching.get(key)
                && let Some(waiters) = tier.waiters.get_mut(job)
            {
                waiters.wanting.insert(id.to_owned());
                request.joined = true;
            }
        }
        if request.joined && request.sent_for == 0 {
            // Others have sent for it; nobody looks up when.
            request.sent_for = tier.sent_for;
        }
    }

    /// A request is gone, or has begun without what is on its way: what only it wanted from L2 is cancelled.
    pub(super) fn leave_fetches(&mut self, id: &str, gone: bool) {
        let Some(tier) = &mut self.remote else { return };
        let epoch = self.epoch;
        for (number, waiters) in &mut tier.waiters {
            if gone {
                waiters.passed.remove(id);
            }
            if !waiters.wanting.remove(id) {
                continue;
            }
            if !gone {
                waiters.passed.insert(id.to_owned());
            }
            if waiters.wanting.is_empty() {
                waiters.cancelled = true;
                self.plan.cancelled.push(JobId { epoch, number: *number });
                tier.counters.cancelled_fetches += 1;
            }
        }
        self.plan.cancelled.sort_unstable();
    }
}

/// What is to be fetched for a match of some length.
#[derive(Default)]
struct Sought {
    found: GroupMatch,
    /// Per group: the slots that the match needs.
    ranges: Vec<(usize, usize)>,
    /// How many of them are to be fetched.
    slots: usize,
}

impl Sought {
    /// Of `sought`, in order, what a match needs.
    fn within(groups: &[GroupPrefix<'_>], sought: &[(usize, usize)], found: GroupMatch) -> Self {
        let ranges: Vec<(usize, usize)> = groups
            .iter()
            .map(|group| {
                let from = group.kind.first_slot(group.slot_tokens, found.pending_tokens);
                (from, found.pending_tokens.div_ceil(group.slot_tokens).min(group.residency.len()))
            })
            .collect();
        let is_needed = |(group, position): &&(usize, usize)| {
            let (from, until) = ranges[*group];
            (from..until).contains(position)
        };
        let slots = sought.iter().filter(is_needed).count();
        Self { found, ranges, slots }
    }

    /// The longest match of at least `worth` tokens for which no more than `room` slots are to be fetched; of all groups
    /// together, since a part of one of them is of no use without its part of the others. Nothing, if there is none. Where
    /// what is there already has holes, a longer one may be missed.
    fn shortened(
        self,
        groups: &[GroupPrefix<'_>],
        sought: &[(usize, usize)],
        room: usize,
        worth: usize,
    ) -> Self {
        let of_length = |tokens| Self::within(groups, sought, match_groups(groups, tokens));
        let step = groups.iter().map(|group| group.slot_tokens).min().unwrap_or(1);
        // The longest that is known to fit, with the length that it was asked for, and the shortest that does not.
        let (mut fitting, mut fits) = (Self::default(), 0);
        let mut over = self;
        loop {
            if over.slots <= room {
                fitting = over;
                break;
            }
            // Each step back frees at most one slot of each group: nothing longer fits. With one group it is the one.
            let excess = (over.slots - room).div_ceil(groups.len());
            let bound = over.found.pending_tokens.saturating_sub(excess * step);
            if bound <= fits || bound < worth {
                break;
            }
            over = of_length(bound);
            let middle = fits + over.found.pending_tokens.saturating_sub(fits) / 2;
            if over.slots > room && middle > fits {
                let half = of_length(middle);
                if half.slots <= room {
                    (fitting, fits) = (half, middle);
                } else {
                    over = half;
                }
            }
        }
        if fitting.found.pending_tokens < worth { Self::default() } else { fitting }
    }
}

impl Tier {
    fn leave_queue(&mut self, arrival: Arrival) {
        self.room.leave_queue(arrival);
        self.queued.remove(&arrival);
    }

    fn end_fetch(&mut self, number: u64, keys: &[BlockKey]) {
        self.come += keys.len() as u64;
        self.waiters.remove(&number);
        for key in keys {
            // After a reset another job may bring a block of the same key.
            if self.fetching.get(key) == Some(&number) {
                self.fetching.remove(key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::GroupKind;
    use proptest::prelude::*;

    const SLOT_TOKENS: usize = 16;

    fn groups<'a>(windows: &[usize], residency: &'a [Residency]) -> Vec<GroupPrefix<'a>> {
        let kinds = windows.iter().map(|slots| GroupKind::Sliding { window_tokens: slots * SLOT_TOKENS });
        std::iter::once(GroupKind::Full)
            .chain(kinds)
            .map(|kind| GroupPrefix { kind, slot_tokens: SLOT_TOKENS, residency })
            .collect()
    }

    proptest! {
        /// One group of full attention and up to seven of sliding windows, nothing of which is in L1.
        #[test]
        fn the_longest_part_that_fits_is_found(
            windows in proptest::collection::vec(1usize..40, 0..8),
            slots in 1usize..400,
            room in 0usize..500,
            worth in 1usize..3000,
        ) {
            let residency = vec![Residency::Filling; slots];
            let groups = groups(&windows, &residency);
            let sought: Vec<(usize, usize)> =
                (0..groups.len()).flat_map(|group| (0..slots).map(move |slot| (group, slot))).collect();
            let of_length = |tokens| Sought::within(&groups, &sought, match_groups(&groups, tokens));
            let longest = (0..=slots)
                .rev()
                .map(|slots| of_length(slots * SLOT_TOKENS))
                .find(|part| part.slots <= room && part.found.pending_tokens >= worth);
            let part = of_length(slots * SLOT_TOKENS).shortened(&groups, &sought, room, worth);
            prop_assert_eq!(part.found.pending_tokens, longest.map_or(0, |part| part.found.pending_tokens));
            prop_assert!(part.slots <= room);
        }
    }
}
