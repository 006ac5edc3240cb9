//! A step begins: its jobs are taken over, and what they will overwrite is labelled.

use std::sync::Arc;
use std::time::Instant;

use super::fences::StreamFence;
use super::running::Running;
use super::{SlotLabel, Store};
use crate::plan::{Job, JobKind, StepPlan};
use crate::report::JobEnd;

impl Store {
    /// A step begins with `plan`. Labels what will be overwritten, starts nothing that must come before the forward.
    ///
    /// On a device this step's loads come after what `stream` holds now: earlier steps may still read the blocks that they
    /// overwrite. So it is called before the stream gets this step's work.
    pub fn begin_step(&mut self, plan: StepPlan, stream: Option<u64>) {
        self.step_began = Instant::now();
        self.layers_waited = 0;
        self.poisoned_by = self.poisoned_by.filter(|number| *number >= plan.settled);
        if plan.epoch > self.memory.epoch() {
            self.memory.advance_epoch(plan.epoch);
        }
        for slot in &plan.forgotten {
            self.memory.forget(*slot);
        }
        let copies = Arc::clone(&self.copies);
        let mut fence = StreamFence::new(&*copies, stream);
        for job in plan.jobs {
            let epoch = plan.epoch;
            if job.kind.is_remote() {
                self.begin_remote(job, epoch, plan.generation);
                continue;
            }
            let blocks = self.layout.slot_blocks();
            let mut running = match job.kind {
                // Both sides derive the slot's size from the engine's configuration; if they disagree, nothing is copied.
                _ if job.transfers.iter().any(|transfer| transfer.blocks.len() != blocks) => {
                    Running::dead(job)
                }
                // The bytes are stored by the rank whose slab this is; what can fail here is what they stand on.
                JobKind::Offload if self.memory.is_replica() => {
                    self.begin_fills(&job, epoch);
                    Running::without_copies(job)
                }
                JobKind::Offload => self.prepare_offload(job, epoch),
                _ => self.prepare_load(job, &mut fence),
            };
            running.traced = self.timeline.is_some();
            match running.job.kind {
                JobKind::Offload => self.fresh_offloads.push(running),
                JobKind::LoadLayerwise => self.loads.push(running),
                _ => self.async_loads.push(running),
            }
        }
        if let Some(remote) = &mut self.remote {
            remote.cancel(&plan.cancelled);
            remote.submit(&*self.memory);
        }
    }

    fn begin_remote(&mut self, job: Job, epoch: u64, generation: u64) {
        // The rank whose slab this is moves the bytes for all that share it.
        if job.kind == JobKind::Fetch {
            self.begin_fills(&job, epoch);
        }
        if self.memory.is_replica() {
            self.ended.push(JobEnd::whole(job.id, true));
            return;
        }
        match &mut self.remote {
            Some(remote) => remote.begin(job, generation),
            // Both sides are told of L2 by the same configuration; if they disagree, nothing is moved.
            None => {
                for transfer in job.transfers.iter().filter(|_| job.kind == JobKind::Fetch) {
                    self.memory.void(transfer.slot, transfer.fill);
                }
                self.ended.push(JobEnd::whole(job.id, false));
            }
        }
    }

    fn prepare_offload(&self, job: Job, epoch: u64) -> Running {
        let addresses: Option<Vec<usize>> =
            job.transfers.iter().map(|transfer| self.memory.slot_address(transfer.slot)).collect();
        let Some(addresses) = addresses else { return Running::dead(job) };
        self.begin_fills(&job, epoch);
        Running::new(job, addresses)
    }

    fn begin_fills(&self, job: &Job, epoch: u64) {
        for transfer in &job.transfers {
            self.memory.begin_fill(
                transfer.slot,
                &SlotLabel {
                    key: transfer.key,
                    parent: transfer.parent,
                    engine_hash: transfer.engine_hash,
                    fill: transfer.fill,
                    epoch,
                },
            );
        }
    }

    /// Once a load has failed, what this step and later ones compute is worthless. The rank that fills a replica's slots
    /// does not know, and could publish them before this rank's report: but not before this rank has taken part in
    /// the layers that are left.
    pub(super) fn void_replica(&self) {
        let poisoned = self.poisoned_by.is_some() || self.loads.iter().any(|load| load.failed);
        if poisoned && self.memory.is_replica() {
            for transfer in self.fresh_offloads.iter().flat_map(|offload| &offload.job.transfers) {
                self.memory.void(transfer.slot, transfer.fill);
            }
        }
    }

    fn prepare_load(&self, job: Job, fence: &mut StreamFence<'_>) -> Running {
        // A slot that does not hold what the Directory believes is never copied: better a miss than other bytes.
        let addresses: Option<Vec<usize>> = job
            .transfers
            .iter()
            .map(|transfer| {
                let holds = self.memory.holds(transfer.slot, &transfer.key);
                self.memory.slot_address(transfer.slot).filter(|_| holds)
            })
            .collect();
        match addresses {
            Some(addresses) if job.lost_blocks.is_empty() => {
                let mut load = Running::new(job, addresses);
                load.fence_with(fence);
                load
            }
            _ => Running::dead(job),
        }
    }
}
