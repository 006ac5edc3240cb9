//! The worker half of the vLLM connector.

use std::path::PathBuf;

use kvcache_assembly::{RankStore, RankStoreSettings, seconds};
use kvcache_core::store::{LayerBinding, PageLayout, Store as Core};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use crate::cuda;
use crate::error::value_error;
use crate::remote::Remote;
use crate::stats::dict;

/// `(name, group, base, block_stride, block_count, segments, segment_stride, segment_bytes)`.
type Layer = (String, u16, usize, usize, usize, usize, usize, usize);

/// Executes plans on one rank's slab and engine tensors.
#[pyclass(frozen, module = "aibrix_connector._native")]
pub(crate) struct Store(RankStore);

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
        remote: Option<Bound<'_, Remote>>,
        device: Option<String>,
        device_memory: Vec<(usize, usize)>,
        copy_path: &str,
    ) -> PyResult<Self> {
        let layers = layers.into_iter().map(
            |(name, group, base, block_stride, block_count, segments, stride, bytes)| {
                let pages = PageLayout {
                    base,
                    block_stride,
                    block_count,
                    segments,
                    segment_stride: stride,
                    segment_bytes: bytes,
                };
                LayerBinding { name, group, pages }
            },
        );
        let settings = RankStoreSettings {
            rank,
            ranks,
            leader,
            copies,
            layers: layers.collect(),
            slot_blocks,
            capacity_bytes,
            namespace,
            shard,
            slab_dir,
            engine_id,
            owner_pid,
            copy_threads,
            copy_cpus,
            layers_ahead,
            verify_l1,
            drill: drill.unwrap_or("").to_owned(),
            device,
            device_memory,
            copy_path: copy_path.to_owned(),
        };
        let remote = remote.as_ref().map(|remote| &remote.get().0);
        Ok(Self(py.detach(|| settings.open(remote)).map_err(value_error)?))
    }

    /// What was opened, for the log.
    fn describe(&self) -> String {
        self.0.describe()
    }

    /// What makes this rank's part of the cache slower or smaller than it could be, one line each, as long as it is so.
    fn problems(&self, py: Python<'_>) -> Vec<String> {
        // Asked by a thread of its own, which may have to wait until a hook that copies is done: not with the interpreter.
        py.detach(|| self.0.problems())
    }

    /// The device that copies, what it has done, and how far its memory is pinned; `None` for host copies.
    fn device<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyDict>>> {
        let Some((cuda, pinned)) = self.0.device() else { return Ok(None) };
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
        self.0.fake().map(|fake| fake.stream.0)
    }

    /// Drill `fake_cuda`: what was done that no CUDA program may do.
    fn violations(&self, py: Python<'_>) -> Vec<String> {
        py.detach(|| self.0.fake().map_or_else(Vec::new, |fake| fake.violations()))
    }

    /// What the user should know, one line each.
    fn warnings(&self) -> Vec<String> {
        self.0.warnings()
    }

    /// A step begins. Whether it loads layer by layer, and whether it offloads. `stream` is the raw handle of the engine's
    /// stream, here and below, where it computes on a device.
    #[pyo3(signature = (plan, stream=None))]
    fn begin_step(&self, py: Python<'_>, plan: &[u8], stream: Option<u64>) -> PyResult<(bool, bool)> {
        py.detach(|| self.0.begin_step(plan, stream)).map_err(value_error)
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
        py.detach(|| self.0.end_step(finish, last, stream)).map_err(value_error)
    }

    /// Waits until a value has come from L2 or got there, if that is all there is to wait for.
    fn rest(&self, py: Python<'_>, timeout_s: f64) -> PyResult<()> {
        let timeout = seconds("timeout_s", timeout_s).map_err(value_error)?;
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
        self.0.activity().map_err(value_error)
    }

    /// Every count, by name.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        dict(py, self.0.numbers().map_err(value_error)?)
    }

    /// Drill `timeline`: `(what, layer, began, ended)` in nanoseconds since the store was opened; `what` is `wait`,
    /// `computed`, `load` or `offload`.
    fn timeline(&self) -> PyResult<Vec<(&'static str, usize, u64, u64)>> {
        self.0.timeline().map_err(value_error)
    }

    /// This rank gives up in the middle of a step: before others go on, what they compute is made worthless to a later
    /// engine. Close it next.
    fn give_up(&self) {
        self.0.give_up();
    }

    /// Ends what is in flight and gives the memory back. Closing twice is fine.
    fn close(&self, py: Python<'_>) {
        py.detach(|| self.0.close());
    }
}

impl Store {
    fn with<T>(&self, act: impl FnOnce(&mut Core) -> T) -> PyResult<T> {
        self.0.with(act).map_err(value_error)
    }
}
