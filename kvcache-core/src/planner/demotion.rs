//! Brings blocks from L1 to L2, in the background and bounded: what does not fit is dropped and counted.

use super::tier::{Ingestion, Question};
use super::{Pending, Planner, note_removed};
use crate::BlockKey;
use crate::directory::FillId;
use crate::eviction::SlotId;
use crate::plan::{EngineHash, Job, JobKind, Transfer};

/// Blocks of one demotion job, which are one question before.
const JOB_SLOTS: usize = 32;

impl Planner {
    /// Blocks have been stored in L1.
    pub(super) fn suggest_stored(&mut self, slots: &[SlotId]) {
        if let (Some(tier), Some(directory)) = (&mut self.remote, &self.directory)
            && tier.is_active()
            && tier.config.ingestion == Ingestion::All
        {
            tier.suggest(slots.iter().filter_map(|slot| directory.key_of(*slot)));
        }
    }

    /// Marks blocks as used, tail first. A block that is used again is worth having in L2.
    pub(super) fn touch(&mut self, hits: &[BlockKey]) {
        let Some(directory) = &self.directory else { return };
        directory.touch(hits);
        if let Some(tier) = &mut self.remote
            && tier.is_active()
            && tier.config.ingestion == Ingestion::Hot
        {
            let absent = |key: &&BlockKey| directory.slot_of(key).is_some_and(|slot| !tier.is_in_l2(slot));
            let keys: Vec<BlockKey> = hits.iter().filter(absent).copied().collect();
            tier.suggest(keys.into_iter());
        }
    }

    /// Starts as many demotions as may be under way.
    pub(super) fn plan_demotions(&mut self) {
        let (Some(tier), Some(directory)) = (&mut self.remote, &self.directory) else { return };
        if !tier.is_active() {
            return;
        }
        while tier.demoting < tier.config.demoting_max && tier.has_candidates() {
            let most = JOB_SLOTS.min(tier.config.demoting_max - tier.demoting);
            let keys = tier.next_candidates(directory, most);
            if keys.is_empty() {
                break;
            }
            tier.demoting += keys.len();
            tier.ask(Question::Demotion(keys.clone()), &keys);
        }
        if tier.config.ingestion == Ingestion::Evicted {
            self.evict_ahead();
        }
    }

    /// L2 has answered which of these it has already: the others go there, if they are still here.
    pub(super) fn demote(&mut self, keys: &[BlockKey], present: &[bool]) {
        let (Some(tier), Some(directory)) = (&mut self.remote, &self.directory) else { return };
        tier.demoting = tier.demoting.saturating_sub(keys.len());
        let mut chosen = Vec::new();
        for (key, present) in keys.iter().zip(present) {
            if *present {
                tier.counters.already_demoted += 1;
                directory.slot_of(key).into_iter().for_each(|slot| tier.note_demoted(slot));
            } else {
                let pinned = directory.begin_load(std::slice::from_ref(key));
                chosen.extend(pinned.into_iter().map(|slot| (slot, *key)));
            }
        }
        self.push_demotion(chosen);
    }

    /// Keeps a few slots free by evicting early, so that what is evicted can go to L2 first. Where that is too slow,
    /// blocks are evicted without.
    fn evict_ahead(&mut self) {
        let (Some(tier), Some(directory)) = (&mut self.remote, &self.directory) else { return };
        let low = (self.startup.slot_count() as usize / 16).clamp(1, tier.config.demoting_max);
        let wanted = low.saturating_sub(directory.free_slots() + tier.demoting);
        if wanted == 0 {
            return;
        }
        let mut chosen = Vec::new();
        for (slot, key) in directory.evict_ahead(wanted) {
            note_removed(&mut self.hashes, &mut self.removed, slot);
            if tier.is_in_l2(slot) {
                directory.end_load(&[slot]);
            } else {
                chosen.push((slot, key));
            }
        }
        self.push_demotion(chosen);
    }

    fn push_demotion(&mut self, chosen: Vec<(SlotId, BlockKey)>) {
        let Some(tier) = &mut self.remote else { return };
        if chosen.is_empty() {
            return;
        }
        tier.demoting += chosen.len();
        let id = self.jobs.next_id(self.epoch);
        let transfers = chosen
            .iter()
            .map(|(slot, key)| Transfer {
                slot: *slot,
                fill: FillId(0),
                group: 0,
                key: *key,
                parent: BlockKey::default(),
                engine_hash: EngineHash::default(),
                blocks: Vec::new(),
            })
            .collect();
        let (pinned, keys) = chosen.into_iter().unzip();
        self.jobs.begin(id, Pending { pinned, keys, ..Pending::new(JobKind::Demote, "") });
        self.plan.jobs.push(Job {
            id,
            kind: JobKind::Demote,
            request: String::new(),
            transfers,
            lost_blocks: Vec::new(),
        });
        self.activity += 1;
    }

    /// A demotion has been reported by every rank. Its slots have been unpinned.
    pub(super) fn end_demotion(&mut self, epoch: u32, pending: &Pending) {
        let Some(tier) = &mut self.remote else { return };
        // A reset has counted those before it as ended.
        if epoch == self.epoch {
            tier.demoting = tier.demoting.saturating_sub(pending.pinned.len());
        }
        for (position, (slot, key)) in pending.pinned.iter().zip(&pending.keys).enumerate() {
            if !pending.has_done(position) {
                tier.counters.failed_demotions += 1;
                continue;
            }
            tier.counters.demoted_blocks += 1;
            let same = self.directory.as_ref().and_then(|directory| directory.slot_of(key)) == Some(*slot);
            if same && epoch == self.epoch {
                tier.note_demoted(*slot);
            }
        }
    }
}
