//! The worker side: executes plans on one rank's slab and engine tensors, and reports what ended.
//!
//! The Store decides nothing. It is driven by the engine's step:
//!
//! ```text
//! begin_step(plan) → start_loads → [wait_layer(i) → attention i → store_layer(i)] for each layer → end_step → report
//! ```
//!
//! Loads run ahead of the layers that need them, bounded in flight; offloads of layer `i` run while layer `i+1`
//! computes. Where hooks of offloads do not fire, [`Store::end_step`] catches up; a load has to be waited for. Copies of a job may outlive the step: they
//! are reported when they have ended, and only then may the scheduler side reuse what they touch.

mod layout;
mod probe;
mod rank_slots;
mod remote_jobs;
mod replica_slots;
mod running;
mod slab_slots;
mod slot_memory;
mod timeline;
mod unproven;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use layout::{BadBlock, EngineLayout, LayerBinding, LayoutError, PageLayout};
pub use rank_slots::RankSlots;
pub use remote_jobs::{RemoteLink, RemoteLinkStats};
pub use replica_slots::ReplicaSlots;
pub use slab_slots::SlabSlots;
pub use slot_memory::{SlotLabel, SlotMemory};
pub use timeline::Moment;

use crate::copy_engine::CopyEngine;
use crate::plan::{Job, JobKind, StepPlan};
use crate::report::{Hello, JobEnd, Report};
use remote_jobs::RemoteJobs;
use running::Running;
use timeline::Timeline;

/// Bounds of a [`Store`].
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct StoreConfig {
    /// This rank in the engine's world.
    pub rank: u32,
    /// Threads that copy beside the caller.
    pub copy_threads: u32,
    /// Layers that a layer-wise load may run ahead.
    pub layers_ahead: usize,
    /// The longest a copy may take before its job counts as failed.
    pub patience: Duration,
    /// Copies done on the engine's thread at the end of a step take at most this share of the step's time...
    pub help_share: f32,
    /// ...or this long, whichever is more.
    pub help_least: Duration,
    /// Drill: report success of loads without copying anything. A negative control for end-to-end tests.
    pub skip_copies: bool,
    /// Drill: remember when layers were waited for, computed and copied.
    pub timeline: bool,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            rank: 0,
            copy_threads: 0,
            layers_ahead: 8,
            patience: Duration::from_secs(30),
            help_share: 0.1,
            help_least: Duration::from_millis(2),
            skip_copies: false,
            timeline: false,
        }
    }
}

/// What a rank has done, for metrics.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct StoreStats {
    /// Bytes loaded into the engine.
    pub loaded_bytes: u64,
    /// Time from the submission of loads to their end, summed.
    pub load_ns: u64,
    /// Bytes offloaded from the engine.
    pub offloaded_bytes: u64,
    /// Time from the submission of offloads to their end, summed.
    pub offload_ns: u64,
    /// Load jobs that ended, well or not.
    pub loads: u64,
    /// Load jobs that failed.
    pub failed_loads: u64,
    /// Offload jobs that ended, well or not.
    pub offloads: u64,
    /// Offload jobs that failed.
    pub failed_offloads: u64,
    /// Time that the engine's thread spent waiting for layers.
    pub wait_ns: u64,
    /// Jobs running now.
    pub jobs_in_flight: u64,
}

/// The worker side of the cache. See the [module documentation](self).
pub struct Store {
    config: StoreConfig,
    layout: EngineLayout,
    memory: Arc<dyn SlotMemory>,
    copies: Arc<dyn CopyEngine>,
    /// Layer-wise loads of this step.
    loads: Vec<Running>,
    /// Leading layers that the engine has waited for in this step.
    layers_waited: usize,
    /// The newest failed layer-wise load. Until the scheduler side has acted on it, what is computed may stand on blocks
    /// that were not loaded, in later steps too if the engine schedules ahead.
    poisoned_by: Option<u64>,
    async_loads: Vec<Running>,
    /// Offloads of this step, whose layers are submitted as they are computed.
    fresh_offloads: Vec<Running>,
    offloads: Vec<Running>,
    step_began: Instant,
    said_hello: bool,
    reported_usable: u32,
    ended: Vec<JobEnd>,
    unreported_load: (u64, u64),
    load_errors: BTreeSet<u32>,
    received: Vec<String>,
    failed_received: Vec<String>,
    stats: StoreStats,
    timeline: Option<Timeline>,
    remote: Option<RemoteJobs>,
}

impl Store {
    /// A store over `memory`, whose slots must be at least [`EngineLayout::slot_bytes`] long.
    ///
    /// # Panics
    /// If the slots are shorter than the layout needs: an error of the caller, not of input.
    pub fn new(
        config: StoreConfig,
        layout: EngineLayout,
        memory: Arc<dyn SlotMemory>,
        copies: Arc<dyn CopyEngine>,
    ) -> Self {
        assert!(memory.slot_bytes() >= layout.slot_bytes(), "slots are shorter than the engine's blocks");
        Self {
            config,
            layout,
            memory,
            copies,
            loads: Vec::new(),
            layers_waited: 0,
            poisoned_by: None,
            async_loads: Vec::new(),
            fresh_offloads: Vec::new(),
            offloads: Vec::new(),
            step_began: Instant::now(),
            said_hello: false,
            reported_usable: 0,
            ended: Vec::new(),
            unreported_load: (0, 0),
            load_errors: BTreeSet::new(),
            received: Vec::new(),
            failed_received: Vec::new(),
            stats: StoreStats::default(),
            timeline: config.timeline.then(Timeline::default),
            remote: None,
        }
    }

    /// The same store with a way to L2. Its values are [`EngineLayout::slot_bytes`] long.
    #[must_use]
    pub fn with_remote(mut self, link: RemoteLink) -> Self {
        self.remote = Some(RemoteJobs::new(link, self.layout.slot_bytes()));
        self
    }

    /// The engine's layout.
    pub fn layout(&self) -> &EngineLayout {
        &self.layout
    }

    /// A step begins with `plan`. Labels what will be overwritten, starts nothing that must come before the forward.
    pub fn begin_step(&mut self, plan: StepPlan) {
        self.step_began = Instant::now();
        self.layers_waited = 0;
        self.poisoned_by = self.poisoned_by.filter(|number| *number >= plan.settled);
        if plan.epoch > self.memory.epoch() {
            self.memory.advance_epoch(plan.epoch);
        }
        for slot in &plan.forgotten {
            self.memory.forget(*slot);
        }
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
                _ => self.prepare_load(job),
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
    fn void_replica(&self) {
        let poisoned = self.poisoned_by.is_some() || self.loads.iter().any(|load| load.failed);
        if poisoned && self.memory.is_replica() {
            for transfer in self.fresh_offloads.iter().flat_map(|offload| &offload.job.transfers) {
                self.memory.void(transfer.slot, transfer.fill);
            }
        }
    }

    fn prepare_load(&self, job: Job) -> Running {
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
            Some(addresses) if job.lost_blocks.is_empty() => Running::new(job, addresses),
            _ => Running::dead(job),
        }
    }

    /// Starts this step's loads: the first layers of layer-wise ones, and asynchronous ones. `stream` is the engine's
    /// stream, for device engines.
    pub fn start_loads(&mut self, stream: Option<u64>) {
        if self.config.skip_copies {
            return;
        }
        for load in &mut self.loads {
            load.submit_through(self.config.layers_ahead, &self.layout, &*self.copies, stream);
        }
        self.advance_async(stream);
    }

    fn advance_async(&mut self, stream: Option<u64>) {
        if self.config.skip_copies {
            return;
        }
        let last = self.layout.last_layer();
        for load in &mut self.async_loads {
            load.submit_through(last, &self.layout, &*self.copies, stream);
        }
    }

    /// Whether this step loads anything layer by layer: otherwise `wait_layer` needs no calls.
    pub fn has_layerwise_loads(&self) -> bool {
        !self.loads.is_empty()
    }

    /// Whether this step offloads anything: otherwise `store_layer` needs no calls.
    pub fn has_fresh_offloads(&self) -> bool {
        // A replica's have no copies; they matter when they have to be voided.
        let matter = !self.memory.is_replica() || self.poisoned_by.is_some();
        matter && !self.fresh_offloads.is_empty()
    }

    /// Returns when `layer` of every layer-wise load is in the engine's memory, having started a later one. The caller
    /// copies with the pool: nothing sleeps while bytes are left to move.
    ///
    /// Call it before each layer, or once with the last layer before a forward pass whose layers have no hooks: a load
    /// whose layers were not waited for is an error at the end of the step, since attention ran without it.
    pub fn wait_layer(&mut self, layer: usize) {
        if self.loads.is_empty() {
            return;
        }
        self.layers_waited = self.layers_waited.max(layer.saturating_add(1));
        if self.config.skip_copies {
            return;
        }
        let began = Instant::now();
        let mut loads = std::mem::take(&mut self.loads);
        for index in 0..loads.len() {
            loop {
                let load = &mut loads[index];
                load.submit_through(layer, &self.layout, &*self.copies, None);
                if load.failed || load.has_submitted(layer) {
                    break;
                }
                // The copy engine is full: what it holds has to end, and its ends have to be seen, first.
                if !load.wait_oldest(&*self.copies, self.config.patience) {
                    load.failed = began.elapsed() > self.config.patience;
                    self.make_room(&mut loads);
                }
            }
            let load = &mut loads[index];
            load.wait_through(layer, &*self.copies, self.config.patience);
            load.submit_through(
                layer.saturating_add(self.config.layers_ahead),
                &self.layout,
                &*self.copies,
                None,
            );
        }
        self.loads = loads;
        self.void_replica();
        self.stats.wait_ns += began.elapsed().as_nanos() as u64;
        if let Some(timeline) = &mut self.timeline {
            timeline.add(Moment::Waited { layer, began, ended: Instant::now() });
        }
    }

    /// Sees the ends of what other jobs have in the copy engine, and copies a part of the rest.
    fn make_room(&mut self, loads: &mut [Running]) {
        let offloads = self.offloads.iter_mut().chain(&mut self.fresh_offloads);
        for running in offloads.chain(&mut self.async_loads).chain(loads) {
            running.poll(&self.layout, &*self.copies);
        }
        if self.copies.help(ROOM_BYTES) == 0 {
            std::thread::yield_now();
        }
    }

    /// `layer` has been computed: its part of this step's offloads can be copied.
    pub fn store_layer(&mut self, layer: usize, stream: Option<u64>) {
        if let Some(timeline) = &mut self.timeline {
            timeline.add(Moment::Computed { layer, at: Instant::now() });
        }
        self.void_replica();
        // A source may be a block that this step loads: it is not read before the load was waited for.
        let ready = if self.loads.is_empty() { usize::MAX } else { self.layers_waited };
        let Some(layer) = layer.checked_add(1).and_then(|layers| layers.min(ready).checked_sub(1)) else {
            return;
        };
        for offload in &mut self.fresh_offloads {
            offload.submit_through(layer, &self.layout, &*self.copies, stream);
        }
    }

    /// The forward pass is over: ends layer-wise loads, submits the offloads that no hook has, helps the copy engine within the
    /// configured share of the step, and collects what ended.
    pub fn end_step(&mut self, stream: Option<u64>) {
        let last = self.layout.last_layer();
        let unhooked = self.layers_waited <= last;
        if !self.loads.is_empty() {
            self.wait_layer(last);
        }
        for mut load in std::mem::take(&mut self.loads) {
            // Attention has run on layers that nobody knows to have been there.
            load.failed |= unhooked;
            if load.failed {
                self.poisoned_by = self.poisoned_by.max(Some(load.job.id.number));
                self.load_errors.extend(load.engine_blocks());
            }
            self.end(load);
        }
        self.advance_async(stream);
        for mut offload in std::mem::take(&mut self.fresh_offloads) {
            if self.poisoned_by.is_some() {
                // What this step computed may stand on blocks that were not loaded.
                offload.failed = true;
            }
            offload.submit_through(last, &self.layout, &*self.copies, stream);
            self.offloads.push(offload);
        }
        self.help();
        self.collect();
    }

    /// Copies on this thread, so that a step's offloads mostly end with it.
    fn help(&mut self) {
        if self.offloads.is_empty() && self.async_loads.is_empty() {
            return;
        }
        let began = Instant::now();
        let budget = self
            .step_began
            .elapsed()
            .mul_f32(self.config.help_share.clamp(0.0, 1.0))
            .max(self.config.help_least);
        while began.elapsed() < budget && self.copies.help(ROOM_BYTES) > 0 {}
    }

    /// Collects what has ended without waiting.
    pub fn collect(&mut self) {
        for finished in extract_ended(&mut self.offloads, &self.layout, &*self.copies) {
            self.end(finished);
        }
        self.advance_async(None);
        let skip_copies = self.config.skip_copies;
        let ended = if skip_copies {
            std::mem::take(&mut self.async_loads)
        } else {
            extract_ended(&mut self.async_loads, &self.layout, &*self.copies)
        };
        for load in ended {
            if load.failed {
                self.failed_received.push(load.job.request.clone());
                self.load_errors.extend(load.engine_blocks());
            }
            self.received.push(load.job.request.clone());
            self.end(load);
        }
        let last = self.layout.last_layer();
        for offload in &mut self.offloads {
            offload.submit_through(last, &self.layout, &*self.copies, None);
        }
        if let Some(remote) = &mut self.remote {
            self.ended.extend(remote.collect(&*self.memory));
        }
    }

    /// Waits until something has come from or got to L2, for `timeout` at most, if nothing else is under way: for a step
    /// without a forward pass, which an engine would otherwise repeat as fast as it can.
    pub fn rest(&mut self, timeout: Duration) {
        if let Some(remote) = &self.remote
            && self.ended.is_empty()
            && self.async_loads.is_empty()
            && self.offloads.is_empty()
        {
            remote.wait(timeout);
            self.collect();
        }
    }

    fn end(&mut self, running: Running) {
        if let Some(timeline) = &mut self.timeline {
            let direction = running.direction();
            for (layer, ticket) in &running.trace {
                timeline.add(Moment::Copied { layer: *layer, direction, ticket: *ticket });
            }
        }
        let elapsed = running.elapsed().as_nanos() as u64;
        let ok = !running.failed;
        if running.job.kind == JobKind::Offload {
            for transfer in &running.job.transfers {
                if ok {
                    self.memory.publish(transfer.slot, transfer.fill);
                } else {
                    self.memory.void(transfer.slot, transfer.fill);
                }
            }
            self.stats.offloads += 1;
            self.stats.failed_offloads += u64::from(!ok);
            self.stats.offloaded_bytes += running.bytes;
            self.stats.offload_ns += elapsed;
        } else {
            self.stats.loads += 1;
            self.stats.failed_loads += u64::from(!ok);
            self.stats.loaded_bytes += running.bytes;
            self.stats.load_ns += elapsed;
            self.unreported_load.0 += running.bytes;
            self.unreported_load.1 += elapsed;
        }
        self.ended.push(JobEnd::whole(running.job.id, ok));
    }

    /// Requests whose asynchronous load has ended since the last call: all of them, and those that failed.
    pub fn take_received(&mut self) -> (Vec<String>, Vec<String>) {
        (std::mem::take(&mut self.received), std::mem::take(&mut self.failed_received))
    }

    /// Engine blocks that were promised and not loaded, since the last call.
    pub fn take_load_errors(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.load_errors).into_iter().collect()
    }

    /// This rank's report, if there is anything to say.
    pub fn take_report(&mut self) -> Option<Report> {
        let usable = self.memory.usable_slots();
        let hello = (!self.said_hello).then(|| Hello {
            slot_count: self.memory.slot_count(),
            slot_bytes: self.memory.slot_bytes() as u64,
            copy_threads: self.config.copy_threads,
            warm: self.memory.warm_slots(),
            highest_fill: self.memory.highest_fill(),
            epoch: self.memory.epoch(),
            remote: self.remote.as_ref().map(RemoteJobs::shard),
        });
        if hello.is_none() && self.ended.is_empty() && usable == self.reported_usable {
            return None;
        }
        self.said_hello = true;
        self.reported_usable = usable;
        let (loaded_bytes, load_ns) = std::mem::take(&mut self.unreported_load);
        let (fetched_bytes, fetch_ns) =
            self.remote.as_mut().map(RemoteJobs::take_fetched).unwrap_or_default();
        Some(Report {
            rank: self.config.rank,
            usable_slots: usable,
            hello,
            ended: std::mem::take(&mut self.ended),
            loaded_bytes,
            load_ns,
            fetched_bytes,
            fetch_ns,
        })
    }

    /// What happened to layers so far, if the drill asked for it.
    pub fn moments(&self) -> &[Moment] {
        self.timeline.as_ref().map_or(&[], Timeline::moments)
    }

    /// Whether there will be nothing to report before the next plan with jobs: nothing runs, everything was said, and no
    /// more memory becomes usable.
    pub fn is_settled(&self) -> bool {
        // Looked at in this order: a memory that has just stopped growing has its last slots by then.
        let grown = !self.memory.is_growing() && self.reported_usable == self.memory.usable_slots();
        self.said_hello && grown && self.ended.is_empty() && !self.is_busy()
    }

    /// Whether any job of this rank has not ended.
    pub fn is_busy(&self) -> bool {
        !(self.loads.is_empty()
            && self.async_loads.is_empty()
            && self.fresh_offloads.is_empty()
            && self.offloads.is_empty()
            && !self.remote.as_ref().is_some_and(RemoteJobs::is_busy))
    }

    /// What this rank has done with L2 so far, if it has a way to it.
    pub fn remote_stats(&self) -> Option<RemoteLinkStats> {
        self.remote.as_ref().map(|remote| remote.stats)
    }

    /// What this rank has done so far.
    pub fn stats(&self) -> StoreStats {
        let jobs =
            self.loads.len() + self.async_loads.len() + self.fresh_offloads.len() + self.offloads.len();
        let remote = self.remote.as_ref().map_or(0, RemoteJobs::in_flight);
        StoreStats { jobs_in_flight: (jobs + remote) as u64, ..self.stats }
    }

    /// The forward pass is over, and the engine may reuse its blocks at once: returns when no copy touches its memory any
    /// more. What is under way between L1 and L2 goes on.
    pub fn finish_copies(&mut self) {
        self.end_step(None);
        let last = self.layout.last_layer();
        while !(self.offloads.is_empty() && self.async_loads.is_empty()) {
            for running in self.offloads.iter_mut().chain(&mut self.async_loads) {
                running.submit_through(last, &self.layout, &*self.copies, None);
                running.wait_through(last, &*self.copies, self.config.patience);
            }
            self.collect();
            if !(self.offloads.is_empty() && self.async_loads.is_empty()) {
                self.make_room(&mut []);
            }
        }
    }

    /// Ends everything in flight, for shutdown: returns when no copy touches any memory any more.
    pub fn drain(&mut self) {
        self.finish_copies();
        if let Some(remote) = &mut self.remote {
            remote.cancel_all();
            while remote.is_busy() {
                remote.wait(Duration::from_millis(50));
                self.ended.extend(remote.collect(&*self.memory));
            }
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.drain();
    }
}

/// Copied at once on the engine's thread: about 20 µs.
const ROOM_BYTES: usize = 256 << 10;

fn extract_ended(list: &mut Vec<Running>, layout: &EngineLayout, copies: &dyn CopyEngine) -> Vec<Running> {
    list.extract_if(.., |running| running.poll(layout, copies)).collect()
}
