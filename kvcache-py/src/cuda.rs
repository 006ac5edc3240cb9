//! Copies by a CUDA device, or by a fake one.

use std::sync::Arc;
use std::time::Duration;

use kvcache_core::copy_engine::{CopyBatch, CopyEngine, CopyState, Direction, Piece, Ticket};
use kvcache_cuda::driver::{CudaDriver, Driver, Stream, numa_node};
use kvcache_cuda::engine::{CopyPath, CudaCopyConfig, CudaCopyEngine};
use kvcache_cuda::fake::FakeDevice;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::planner::{value_error, wait};

/// The copy engine of a device.
pub(crate) struct Device {
    pub(crate) engine: Arc<CudaCopyEngine>,
    /// The NUMA node that it is nearest to.
    pub(crate) numa_node: Option<u32>,
    pub(crate) fake: Option<Fake>,
}

/// A device that is none, and the stream of an engine that computes on the CPU.
#[derive(Clone)]
pub(crate) struct Fake {
    pub(crate) device: Arc<FakeDevice>,
    pub(crate) stream: Stream,
}

/// Opens `cuda:N`.
pub(crate) fn open(name: &str, path: &str) -> PyResult<Device> {
    let ordinal = name.strip_prefix("cuda:").and_then(|number| number.parse().ok()).ok_or_else(|| {
        PyValueError::new_err(format!("unknown device {name:?}: use cuda:N, with the number of the device"))
    })?;
    let driver = CudaDriver::open(ordinal).map_err(value_error)?;
    let numa_node = numa_node(driver.device());
    let engine = Arc::new(CudaCopyEngine::new(driver, config(path)?).map_err(value_error)?);
    Ok(Device { engine, numa_node, fake: None })
}

/// A device that is none: `memory` is that of the engine, which computes on the CPU.
pub(crate) fn open_fake(memory: &[(usize, usize)], path: &str, seed: u64) -> PyResult<Device> {
    let device = FakeDevice::options().seed(seed).background(true).build();
    for (base, bytes) in memory {
        device.add_device_memory(*base, *bytes);
    }
    let stream = device.cpu_engine_stream();
    // There is nothing to measure.
    let config = CudaCopyConfig { calibrate: false, ..config(path)? };
    let engine = CudaCopyEngine::new(Arc::clone(&device) as _, config).map_err(value_error)?;
    Ok(Device { engine: Arc::new(engine), numa_node: None, fake: Some(Fake { device, stream }) })
}

fn config(path: &str) -> PyResult<CudaCopyConfig> {
    let path = match path {
        "auto" => None,
        name => Some(name.parse::<CopyPath>().map_err(PyValueError::new_err)?),
    };
    Ok(CudaCopyConfig { path, ..CudaCopyConfig::default() })
}

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
    device: Device,
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
            Some(memory) => open_fake(&memory, path, seed),
            None => open(device, path),
        })?;
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
        let timeout: Duration = wait("timeout_s", timeout_s)?;
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
        py.detach(|| fake.map_or_else(Vec::new, |fake| fake.device.settle()))
    }
}
