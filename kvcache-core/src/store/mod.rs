//! The worker side: executes plans on one rank's slab and engine tensors, and reports what ended.
//!
//! The Store decides nothing. It is driven by the engine's step:
//!
//! ```text
//! begin_step(plan) → start_loads → [wait_layer(i) → attention i → store_layer(i)] for each layer → end_step → report
//! ```
//!
//! Loads run ahead of the layers that need them, bounded in flight; offloads of layer `i` run while layer `i+1`
//! computes. Where hooks of offloads do not fire, [`Store::end_step`] catches up; a load has to be waited for. Copies of a job
//! may outlive the step: they are reported when they have ended, and only then may the scheduler side reuse what they touch.
//!
//! An engine that computes on a device passes its `stream` (a raw handle) to every call. Then nothing here waits: the stream
//! waits for loads, and copies wait for what the stream held when the call was made.

mod begin;
mod ending;
mod fences;
mod flight;
mod layout;
mod pinned_slots;
mod probe;
mod rank_slots;
mod remote_jobs;
mod replica_slots;
mod running;
mod slab_slots;
mod slot_memory;
mod submission;
mod timeline;
mod unproven;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use layout::{BadBlock, EngineLayout, LayerBinding, LayoutError, PageLayout};
pub use pinned_slots::{PinFailure, PinnedSlots, Pinning};
pub use probe::ProbeError;
pub use rank_slots::RankSlots;
pub use remote_jobs::{FETCHES_IN_FLIGHT_MAX, RemoteLink, RemoteLinkStats};
pub use replica_slots::ReplicaSlots;
pub use slab_slots::SlabSlots;
pub use slot_memory::{SlotLabel, SlotMemory};
pub use timeline::Moment;

use crate::copy_engine::CopyEngine;
use crate::report::JobEnd;
use fences::StreamFence;
use remote_jobs::RemoteJobs;
use running::Running;
use submission::{Submitted, submit_computed, submit_layerwise, submit_through};
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
    /// Batches that the copy engine has taken.
    pub batches: u64,
    /// Those of them that copy for several jobs.
    pub shared_batches: u64,
    /// Jobs running now.
    pub jobs_in_flight: u64,
}

impl StoreStats {
    fn count(&mut self, submitted: Submitted) {
        self.batches += submitted.batches;
        self.shared_batches += submitted.shared;
    }
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
    /// Layer-wise loads of earlier steps, for which the engine's stream waits: what was computed stands on them.
    ordered_loads: Vec<Running>,
    async_loads: Vec<Running>,
    /// Offloads of this step, whose layers are submitted as they are computed.
    fresh_offloads: Vec<Running>,
    offloads: Vec<Running>,
    step_began: Instant,
    said_hello: bool,
    reported_usable: u32,
    ended: Vec<JobEnd>,
    /// Bytes of loads that have ended, and the time that the copy engine expected them to take.
    unreported_load: (u64, u64),
    load_errors: BTreeSet<u32>,
    received: Vec<String>,
    failed_received: Vec<String>,
    stats: StoreStats,
    /// What copy engines have said of copies that failed, each once.
    failures: BTreeSet<String>,
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
            ordered_loads: Vec::new(),
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
            failures: BTreeSet::new(),
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

    /// Starts this step's loads: the first layers of layer-wise ones, and asynchronous ones.
    pub fn start_loads(&mut self) {
        if self.config.skip_copies {
            return;
        }
        let ahead = self.config.layers_ahead;
        self.stats.count(submit_layerwise(&mut self.loads, ahead, &self.layout, &*self.copies));
        self.advance_async();
    }

    fn advance_async(&mut self) {
        if self.config.skip_copies {
            return;
        }
        let last = self.layout.last_layer();
        self.stats.count(submit_through(&mut self.async_loads, last, &self.layout, &*self.copies));
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
    /// copies with the pool: nothing sleeps while bytes are left to move. With a `stream` it returns at once, and what the
    /// stream gets from now on waits.
    ///
    /// Call it before each layer, or once with the last layer before a forward pass whose layers have no hooks: a load
    /// whose layers were not waited for is an error at the end of the step, since attention ran without it.
    pub fn wait_layer(&mut self, layer: usize, stream: Option<u64>) {
        if self.loads.is_empty() {
            return;
        }
        self.layers_waited = self.layers_waited.max(layer.saturating_add(1));
        if self.config.skip_copies {
            return;
        }
        let began = Instant::now();
        let mut loads = std::mem::take(&mut self.loads);
        loop {
            self.stats.count(submit_layerwise(&mut loads, layer, &self.layout, &*self.copies));
            let is_late = |load: &&mut Running| load.has_to_submit(layer, &self.layout);
            let Some(load) = loads.iter_mut().find(is_late) else { break };
            // The copy engine is full: what it holds has to end, and its ends have to be seen, first.
            if !load.wait_oldest(&*self.copies, self.config.patience) {
                load.failed = began.elapsed() > self.config.patience;
                self.make_room(&mut loads);
            }
        }
        for load in &mut loads {
            match stream {
                Some(stream) => load.order_through(layer, stream, &*self.copies, self.config.patience),
                None => load.wait_through(layer, &*self.copies, self.config.patience),
            }
        }
        let ahead = layer.saturating_add(self.config.layers_ahead);
        self.stats.count(submit_layerwise(&mut loads, ahead, &self.layout, &*self.copies));
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
        let mut pending = None;
        for running in offloads.chain(&mut self.async_loads).chain(&mut self.ordered_loads).chain(loads) {
            running.poll(&self.layout, &*self.copies, &mut pending);
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
        let mut fence = StreamFence::new(&*self.copies, stream);
        let submitted =
            submit_computed(&mut self.fresh_offloads, layer, &self.layout, &*self.copies, &mut fence);
        self.stats.count(submitted);
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
            && self.ordered_loads.is_empty()
            && self.async_loads.is_empty()
            && self.fresh_offloads.is_empty()
            && self.offloads.is_empty()
            && !self.remote.as_ref().is_some_and(RemoteJobs::is_busy))
    }

    /// What this rank has done with L2 so far, if it has a way to it.
    pub fn remote_stats(&self) -> Option<RemoteLinkStats> {
        self.remote.as_ref().map(|remote| remote.stats)
    }

    /// Why copies have failed so far, each reason once; the first few.
    pub fn failures(&self) -> Vec<String> {
        self.failures.iter().cloned().collect()
    }

    /// What this rank has done so far.
    pub fn stats(&self) -> StoreStats {
        let loads = self.loads.len() + self.ordered_loads.len() + self.async_loads.len();
        let jobs = loads + self.fresh_offloads.len() + self.offloads.len();
        let remote = self.remote.as_ref().map_or(0, RemoteJobs::in_flight);
        StoreStats { jobs_in_flight: (jobs + remote) as u64, ..self.stats }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.drain(None);
    }
}

/// Reasons that are kept: those of a device are few, and a text may hold an address.
const FAILURES_MAX: usize = 8;

/// Copied at once on the engine's thread: about 20 µs.
const ROOM_BYTES: usize = 256 << 10;
