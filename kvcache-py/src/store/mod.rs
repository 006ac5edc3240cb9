//! The worker half of the vLLM connector.

mod opening;
mod problems;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use kvcache_assembly::named_stats;
use kvcache_core::copy_engine::drill::{Drill, DrillEngine};
use kvcache_core::copy_engine::{CopyEngine, Direction, Ticket};
use kvcache_core::fingerprint::{Namespace, ShardFingerprint};
use kvcache_core::plan::StepPlan;
use kvcache_core::slab::{SharedBacking, SlabConfig};
use kvcache_core::store::{Moment, PinnedSlots, RankSlots, Store as Core, StoreConfig};
use kvcache_cuda::engine::CudaCopyEngine;
use parking_lot::Mutex;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use crate::cuda::{self, Fake};
use crate::planner::{value_error, wait};
use crate::remote::Remote;
use crate::slots::{describe, our_words};
use crate::stats::dict;
use opening::Layer;

/// Where ranks share a slab that no restart needs.
const SHARED_MEMORY: &str = "/dev/shm";

/// Executes plans on one rank's slab and engine tensors.
#[pyclass(frozen, module = "aibrix_connector._native")]
pub(crate) struct Store {
    core: Mutex<Option<Opened>>,
    slots: RankSlots,
    fake: Option<Fake>,
    copy_threads: usize,
    drilled: Option<Arc<DrillEngine>>,
    opened: Instant,
}

/// What is closed with the store.
struct Opened {
    core: Core,
    pinned: Option<Arc<PinnedSlots>>,
    cuda: Option<Arc<CudaCopyEngine>>,
}

#[pymethods]
impl Store {
    #[new]
    #[pyo3(signature = (*, rank, ranks, leader, copies, layers, slot_blocks, capacity_bytes, namespace, shard, slab_dir, engine_id, owner_pid,
                        copy_threads, copy_cpus, layers_ahead, verify_l1, drill, remote=None, device=None, device_memory=Vec::new(),
                        copy_path="auto"))]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments of a constructor")]
    fn new(
        py: Python<'_>,
        rank: u32,
        ranks: u32,
        leader: u32,
        copies: u32,
        layers: Vec<Layer>,
        slot_blocks: usize,
        capacity_bytes: u64,
        namespace: [u8; 16],
        shard: [u8; 16],
        slab_dir: Option<PathBuf>,
        engine_id: String,
        owner_pid: u32,
        copy_threads: usize,
        copy_cpus: Vec<usize>,
        layers_ahead: usize,
        verify_l1: bool,
        drill: Option<&str>,
        remote: Option<PyRef<'_, Remote>>,
        device: Option<&str>,
        device_memory: Vec<(usize, usize)>,
        copy_path: &str,
    ) -> PyResult<Self> {
        let drill: Drill = drill.unwrap_or("").parse().map_err(value_error)?;
        let layout = opening::layout(layers, slot_blocks)?;
        let slot_bytes = layout.slot_bytes();
        // Ranks that hold copies of the same bytes share what one of them stores.
        let shards = ranks.max(1).div_ceil(copies.max(1));
        let slot_count = opening::slot_count(capacity_bytes, shards, slot_bytes)?;
        let lasting = slab_dir.is_some();
        let device = match device {
            _ if drill.fake_cuda => {
                Some(py.detach(|| cuda::open_fake(&device_memory, copy_path, rank.into()))?)
            }
            Some(name) => Some(py.detach(|| cuda::open(name, copy_path))?),
            None => None,
        };
        let mut config = match slab_dir.or_else(|| (copies > 1).then(|| SHARED_MEMORY.into())) {
            None => SlabConfig::anonymous(slot_bytes, slot_count),
            Some(directory) => {
                let mut backing = SharedBacking::new(directory, namespace, shard);
                backing.rank = leader;
                backing.replicas = copies.saturating_sub(1);
                backing.lasting = lasting;
                backing.engine_id = engine_id;
                backing.owner_pid = owner_pid;
                SlabConfig::shared(slot_bytes, slot_count, backing)
            }
        };
        config.numa_node = device.as_ref().and_then(|device| device.numa_node);
        config.for_device = device.is_some();
        let slots = py
            .detach(|| RankSlots::open(&config, rank != leader, verify_l1))
            .map_err(|error| PyValueError::new_err(our_words(&error)))?;
        let cuda = device.as_ref().map(|device| Arc::clone(&device.engine));
        let copies: Arc<dyn CopyEngine> = match &cuda {
            Some(cuda) => Arc::clone(cuda) as _,
            None => opening::host_copies(copy_threads, &copy_cpus)?,
        };
        let (copies, drilled): (Arc<dyn CopyEngine>, _) = if !drill.changes_copies() {
            (copies, None)
        } else {
            let drilled = Arc::new(DrillEngine::new(copies, drill).map_err(opening::no_thread)?);
            (Arc::clone(&drilled) as _, Some(drilled))
        };
        let memory = slots.memory();
        let pinned = match &cuda {
            Some(_) => Some(Arc::new(
                PinnedSlots::new(Arc::clone(&memory), Arc::clone(&copies)).map_err(opening::no_thread)?,
            )),
            None => None,
        };
        let memory = pinned.as_ref().map_or(memory, |pinned| Arc::clone(pinned) as _);
        let config = StoreConfig {
            rank,
            copy_threads: copy_threads as u32,
            layers_ahead,
            skip_copies: drill.claim_hits_load_nothing,
            timeline: drill.timeline,
            ..StoreConfig::default()
        };
        let mut core = Core::new(config, layout, memory, copies);
        if let Some(remote) = remote {
            let (namespace, shard) = (Namespace(namespace), ShardFingerprint(shard));
            let link = remote.0.link(namespace, shard, &slots, copy_cpus).map_err(value_error)?;
            core = core.with_remote(link);
        }
        let fake = device.and_then(|device| device.fake);
        let core = Mutex::new(Some(Opened { core, pinned, cuda }));
        Ok(Self { core, slots, fake, copy_threads, drilled, opened: Instant::now() })
    }

    /// What was opened, for the log.
    fn describe(&self) -> String {
        let slots = describe(&self.slots);
        match self.core.lock().as_ref().and_then(|opened| opened.cuda.as_ref()) {
            None => format!("{slots}, {} copy threads", self.copy_threads),
            Some(cuda) => {
                let device = cuda.driver().device();
                let paths: Vec<_> = cuda.paths().iter().map(|path| path.name()).collect();
                format!("{slots}, copies by {} (cuda:{}): {}", device.name, device.ordinal, paths.join(", "))
            }
        }
    }

    /// What makes this rank's part of the cache slower or smaller than it could be, one line each, as long as it is so.
    fn problems(&self, py: Python<'_>) -> Vec<String> {
        // Asked by a thread of its own, which may have to wait until a hook that copies is done: not with the interpreter.
        py.detach(|| self.core.lock().as_ref().map_or_else(Vec::new, problems::of_device))
    }

    /// The device that copies, what it has done, and how far its memory is pinned; `None` for host copies.
    fn device<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyDict>>> {
        // Python's collector may run other threads while objects are made: not under the lock that they may want.
        let found = {
            let opened = self.core.lock();
            opened.as_ref().and_then(|opened| opened.cuda.clone().zip(opened.pinned.clone()))
        };
        let Some((cuda, pinned)) = found else { return Ok(None) };
        let out = cuda::describe(py, &cuda)?;
        let pinning = pinned.pinning();
        out.set_item("pinned_bytes", pinning.bytes)?;
        out.set_item("is_pinning", pinning.is_running)?;
        out.set_item("pinning_s", pinning.took.as_secs_f64())?;
        out.set_item("pinning_failure", pinning.failure.map(|failure| failure.to_string()))?;
        Ok(Some(out))
    }

    /// Drill `fake_cuda`: the handle that plays the engine's stream.
    fn stream_for_cpu(&self) -> Option<u64> {
        self.fake.as_ref().map(|fake| fake.stream.0)
    }

    /// Drill `fake_cuda`: what was done that no CUDA program may do.
    fn violations(&self, py: Python<'_>) -> Vec<String> {
        py.detach(|| self.fake.as_ref().map_or_else(Vec::new, |fake| fake.device.settle()))
    }

    /// What the user should know, one line each.
    fn warnings(&self) -> Vec<String> {
        self.slots.warnings().iter().map(our_words).collect()
    }

    /// A step begins. Whether it loads layer by layer, and whether it offloads. `stream` is the raw handle of the engine's
    /// stream, here and below, where it computes on a device.
    #[pyo3(signature = (plan, stream=None))]
    fn begin_step(&self, py: Python<'_>, plan: &[u8], stream: Option<u64>) -> PyResult<(bool, bool)> {
        let plan = StepPlan::decode(plan).map_err(value_error)?;
        if let Some(drilled) = &self.drilled {
            drilled.arm();
        }
        py.detach(|| {
            self.with(|store| {
                store.begin_step(plan, stream);
                (store.has_layerwise_loads(), store.has_fresh_offloads())
            })
        })
    }

    /// Starts this step's loads.
    fn start_loads(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.with(|store| store.start_loads()))
    }

    /// Returns when a layer's blocks are loaded; copies with the pool meanwhile. With a stream, it waits in place of the caller.
    #[pyo3(signature = (layer, stream=None))]
    fn wait_layer(&self, py: Python<'_>, layer: usize, stream: Option<u64>) -> PyResult<()> {
        py.detach(|| self.with(|store| store.wait_layer(layer, stream)))
    }

    /// A layer has been computed.
    #[pyo3(signature = (layer, stream=None))]
    fn store_layer(&self, py: Python<'_>, layer: usize, stream: Option<u64>) -> PyResult<()> {
        py.detach(|| self.with(|store| store.store_layer(layer, stream)))
    }

    /// The forward pass is over; with `finish`, waits for every copy, and with `last`, ends everything between L1 and L2 as
    /// well. Whether anything is left in flight.
    #[pyo3(signature = (finish, last, stream=None))]
    fn end_step(&self, py: Python<'_>, finish: bool, last: bool, stream: Option<u64>) -> PyResult<bool> {
        py.detach(|| {
            self.with(|store| {
                match (finish, last) {
                    (_, true) => store.drain(stream),
                    (true, false) => store.finish_copies(stream),
                    (false, false) => store.end_step(stream),
                }
                store.is_busy()
            })
        })
    }

    /// Waits until a value has come from L2 or got there, if that is all there is to wait for.
    fn rest(&self, py: Python<'_>, timeout_s: f64) -> PyResult<()> {
        let timeout = wait("timeout_s", timeout_s)?;
        py.detach(|| self.with(|store| store.rest(timeout)))
    }

    /// Requests whose load between steps has ended, and those of them that failed.
    fn take_received(&self) -> PyResult<(Vec<String>, Vec<String>)> {
        self.with(Core::take_received)
    }

    /// Engine blocks that were promised and not loaded.
    fn take_load_errors(&self) -> PyResult<Vec<u32>> {
        self.with(Core::take_load_errors)
    }

    /// This rank's report, if there is anything to say.
    fn take_report<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let report = self.with(Core::take_report)?;
        Ok(report.map(|report| PyBytes::new(py, &report.encode())))
    }

    /// The bytes of one engine block of a group, as a slot would hold them.
    fn read_block<'py>(&self, py: Python<'py>, group: u16, block: u32) -> PyResult<Bound<'py, PyBytes>> {
        let bytes = self.with(|store| store.read_block(group, block))?.map_err(value_error)?;
        Ok(PyBytes::new(py, &bytes))
    }

    /// Writes what `read_block` returned into a block that nobody uses.
    fn write_block(&self, group: u16, block: u32, bytes: &[u8]) -> PyResult<()> {
        self.with(|store| store.write_block(group, block, bytes))?.map_err(value_error)
    }

    /// Whether `take_report` and `stats` will say nothing new before the next plan with jobs.
    fn is_settled(&self) -> PyResult<bool> {
        self.with(|store| store.is_settled())
    }

    /// Grows whenever `stats` may have changed.
    fn activity(&self) -> PyResult<u64> {
        self.with(|store| {
            let stats = store.stats();
            let remote = store.remote_stats().map_or(0, |stats| stats.activity());
            stats.loads + stats.offloads + remote
        })
    }

    /// Every count, by name.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let (stats, remote) = self.with(|store| (store.stats(), store.remote_stats()))?;
        let remote = remote.into_iter().flat_map(|stats| named_stats::store_l2(&stats));
        dict(py, named_stats::store(&stats).into_iter().chain(remote))
    }

    /// Drill `timeline`: `(what, layer, began, ended)` in nanoseconds since the store was opened; `what` is `wait`,
    /// `computed`, `load` or `offload`.
    fn timeline(&self) -> PyResult<Vec<(&'static str, usize, u64, u64)>> {
        let log = self.drilled.as_ref().map(|drilled| drilled.log()).unwrap_or_default();
        let spans: HashMap<Ticket, (Instant, Instant)> =
            log.into_iter().map(|copied| (copied.ticket, (copied.began, copied.ended))).collect();
        let ns = |at: Instant| at.saturating_duration_since(self.opened).as_nanos() as u64;
        self.with(|store| {
            let row = |moment: &Moment| match *moment {
                Moment::Waited { layer, began, ended } => Some(("wait", layer, ns(began), ns(ended))),
                Moment::Computed { layer, at } => Some(("computed", layer, ns(at), ns(at))),
                Moment::Copied { layer, direction, ticket } => {
                    let (began, ended) = spans.get(&ticket)?;
                    let what = if direction == Direction::Load { "load" } else { "offload" };
                    Some((what, layer, ns(*began), ns(*ended)))
                }
            };
            store.moments().iter().filter_map(row).collect()
        })
    }

    /// This rank gives up in the middle of a step: before others go on, what they compute is made worthless to a later
    /// engine. Close it next.
    fn give_up(&self) {
        self.slots.give_up();
    }

    /// Ends what is in flight and gives the memory back. Closing twice is fine.
    fn close(&self, py: Python<'_>) {
        let core = self.core.lock().take();
        py.detach(|| drop(core));
    }
}

impl Store {
    fn with<T>(&self, act: impl FnOnce(&mut Core) -> T) -> PyResult<T> {
        match self.core.lock().as_mut() {
            Some(opened) => Ok(act(&mut opened.core)),
            None => Err(PyValueError::new_err("the store is closed: the engine is shutting down")),
        }
    }
}
