//! What a CUDA device, or a fake one, copies.

use kvcache_assembly::{CudaDevice, seconds};
use kvcache_core::copy_engine::{CopyBatch, CopyEngine, CopyState, Direction, Piece, Ticket};
use kvcache_cuda::engine::CudaCopyEngine;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::error::value_error;

/// What the engine is and has done, by name.
pub(crate) fn describe<'py>(py: Python<'py>, engine: &CudaCopyEngine) -> PyResult<Bound<'py, PyDict>> {
    let info = engine.driver().device();
    let out = PyDict::new(py);
    out.set_item("name", &info.name)?;
    out.set_item("ordinal", info.ordinal)?;
    out.set_item("pci_address", &info.pci_address)?;
    out.set_item("compute_capability", info.compute_capability)?;
    out.set_item("driver_version", info.driver_version)?;
    out.set_item("paths", engine.paths().iter().map(|path| path.name()).collect::<Vec<_>>())?;
    out.set_item("remarks", engine.remarks())?;
    let rates = engine.choice().rates().iter();
    let rates: Vec<_> = rates
        .map(|rate| {
            let direction = direction_name(rate.direction);
            (direction, rate.path.name(), rate.piece_bytes, rate.count, rate.bytes_per_second)
        })
        .collect();
    out.set_item("rates", rates)?;
    let counts = engine.counts().into_iter();
    let counts: Vec<_> = counts
        .map(|(direction, path, count)| {
            (direction_name(direction), path.name(), count.batches, count.pieces, count.bytes)
        })
        .collect();
    out.set_item("counts", counts)?;
    out.set_item("pageable_batches", engine.pageable_batches())?;
    Ok(out)
}

fn direction_name(direction: Direction) -> &'static str {
    match direction {
        Direction::Load => "load",
        Direction::Offload => "offload",
    }
}

fn direction(name: &str) -> PyResult<Direction> {
    match name {
        "load" => Ok(Direction::Load),
        "offload" => Ok(Direction::Offload),
        _ => Err(PyValueError::new_err(format!("unknown direction {name:?}: use load or offload"))),
    }
}

/// The copy engine of one CUDA device by itself, for benchmarks and tests of it.
///
/// It copies between addresses that the caller vouches for, like `ctypes.memmove`: a wrong one ends the process or its
/// CUDA context.
#[pyclass(frozen, module = "aibrix_connector._native")]
pub(crate) struct CudaCopies {
    device: CudaDevice,
}

#[pymethods]
impl CudaCopies {
    #[new]
    #[pyo3(signature = (device, path="auto", *, fake_memory=None, seed=0))]
    fn new(
        py: Python<'_>,
        device: &str,
        path: &str,
        fake_memory: Option<Vec<(usize, usize)>>,
        seed: u64,
    ) -> PyResult<Self> {
        let device = py.detach(|| match fake_memory {
            Some(memory) => CudaDevice::open_fake(&memory, path, seed),
            None => CudaDevice::open(device, path),
        });
        let device = device.map_err(value_error)?;
        Ok(Self { device })
    }

    /// What the engine is and has done.
    fn describe<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        describe(py, &self.device.engine)
    }

    /// The path that pieces would take.
    fn choose(&self, direction_name: &str, total_bytes: usize, count: usize) -> PyResult<&'static str> {
        let paths = self.device.engine.paths();
        let direction = direction(direction_name)?;
        Ok(self.device.engine.choice().choose(direction, total_bytes, count, &paths).name())
    }

    /// Pins host memory.
    fn register(&self, py: Python<'_>, base: usize, bytes: usize) -> PyResult<()> {
        // SAFETY: the caller vouches for the address, as the class says.
        py.detach(|| unsafe { self.device.engine.register(base, bytes) }).map_err(value_error)
    }

    /// Undoes `register`.
    fn unregister(&self, py: Python<'_>, base: usize) {
        py.detach(|| self.device.engine.unregister(base));
    }

    /// Starts copies `(src, dst, bytes)`; returns their ticket.
    #[pyo3(signature = (direction_name, pieces, *, after=None, urgent=false))]
    fn submit(
        &self,
        py: Python<'_>,
        direction_name: &str,
        pieces: Vec<(usize, usize, usize)>,
        after: Option<u64>,
        urgent: bool,
    ) -> PyResult<u64> {
        let direction = direction(direction_name)?;
        let pieces = pieces.into_iter().map(|(src, dst, bytes)| Piece { src, dst, bytes }).collect();
        let engine = &self.device.engine;
        py.detach(|| {
            let fence = after.map(|stream| engine.fence(stream)).transpose().map_err(value_error)?;
            let batch = CopyBatch { pieces, direction, fence, streaming: true, urgent };
            // SAFETY: the caller vouches for the addresses, as the class says.
            let ticket = unsafe { engine.submit(batch) };
            ticket.map(|ticket| ticket.0).map_err(|rejected| PyValueError::new_err(rejected.reason()))
        })
    }

    /// What a stream gets from now on waits for the copies.
    fn order_after(&self, ticket: u64, stream: u64) -> PyResult<()> {
        self.device.engine.order_after(Ticket(ticket), stream).map_err(value_error)
    }

    /// Waits for the copies; whether they have ended in time.
    fn wait(&self, py: Python<'_>, ticket: u64, timeout_s: f64) -> PyResult<bool> {
        let timeout = seconds("timeout_s", timeout_s).map_err(value_error)?;
        match py.detach(|| self.device.engine.wait(Ticket(ticket), timeout)) {
            CopyState::Pending => Ok(false),
            CopyState::Done => Ok(true),
            CopyState::Failed(failure) => Err(value_error(failure)),
        }
    }

    /// With a fake device: the handle that plays the engine's stream.
    fn stream_for_cpu(&self) -> Option<u64> {
        self.device.fake.as_ref().map(|fake| fake.stream.0)
    }

    /// With a fake device: what was done that no CUDA program may do.
    fn violations(&self, py: Python<'_>) -> Vec<String> {
        let fake = self.device.fake.as_ref();
        py.detach(|| fake.map_or_else(Vec::new, |fake| fake.violations()))
    }
}
