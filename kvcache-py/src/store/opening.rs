//! What a store is opened with: parsed here, so that nothing behind it is wrong.

use std::sync::Arc;

use kvcache_core::copy_engine::{CopyEngine, HostCopyConfig, HostCopyEngine};
use kvcache_core::store::{EngineLayout, LayerBinding, PageLayout};
use pyo3::PyErr;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::planner::value_error;

/// `(name, group, base, block_stride, block_count, segments, segment_stride, segment_bytes)`.
pub(super) type Layer = (String, u16, usize, usize, usize, usize, usize, usize);

/// Where the engine's pages are.
pub(super) fn layout(layers: Vec<Layer>, slot_blocks: usize) -> PyResult<EngineLayout> {
    let layers = layers.into_iter().map(
        |(name, group, base, block_stride, block_count, segments, segment_stride, segment_bytes)| {
            let pages =
                PageLayout { base, block_stride, block_count, segments, segment_stride, segment_bytes };
            LayerBinding { name, group, pages }
        },
    );
    EngineLayout::new(layers.collect(), slot_blocks).map_err(value_error)
}

/// Slots of each of `shards` slabs that are `capacity_bytes` together.
pub(super) fn slot_count(capacity_bytes: u64, shards: u32, slot_bytes: usize) -> PyResult<usize> {
    let slots = capacity_bytes / u64::from(shards) / slot_bytes as u64;
    if slots == 0 {
        return Err(PyValueError::new_err(format!(
            "capacity of {capacity_bytes} bytes is below one slot of {slot_bytes} bytes on each of {shards} ranks: set \
             capacity to at least {}",
            slot_bytes as u64 * u64::from(shards)
        )));
    }
    if slots > u64::from(u32::MAX) {
        return Err(PyValueError::new_err(format!(
            "capacity of {capacity_bytes} bytes is {slots} slots of {slot_bytes} bytes on each of {shards} ranks, and no more \
             than {} can be numbered: lower capacity",
            u32::MAX
        )));
    }
    Ok(usize::try_from(slots).unwrap_or(usize::MAX))
}

/// Threads of the host that copy.
pub(super) fn host_copies(threads: usize, cpus: &[usize]) -> PyResult<Arc<dyn CopyEngine>> {
    let config = HostCopyConfig { threads, cpus: cpus.to_vec(), ..HostCopyConfig::default() };
    let engine = HostCopyEngine::new(config)
        .map_err(|error| PyValueError::new_err(format!("cannot start {threads} copy threads: {error}")))?;
    Ok(Arc::new(engine))
}

/// The system has refused a thread.
pub(super) fn no_thread(error: std::io::Error) -> PyErr {
    PyValueError::new_err(format!("cannot start a thread: {error}"))
}
