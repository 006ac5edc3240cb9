//! Copies by a CUDA device, or by a fake one.

use std::sync::Arc;

use kvcache_cuda::driver::{CudaDriver, Driver as _, Stream, numa_node};
use kvcache_cuda::engine::{CopyPath, CudaCopyConfig, CudaCopyEngine};
use kvcache_cuda::fake::FakeDevice;

use crate::Error;

/// The copy engine of a device.
pub struct CudaDevice {
    /// Copies.
    pub engine: Arc<CudaCopyEngine>,
    /// The NUMA node that it is nearest to.
    pub numa_node: Option<u32>,
    /// What stands in for a device.
    pub fake: Option<FakeCuda>,
}

/// A device that is none, and the stream of an engine that computes on the CPU.
#[derive(Clone)]
pub struct FakeCuda {
    /// Runs what is submitted, in any order that CUDA allows.
    pub device: Arc<FakeDevice>,
    /// Plays the engine's stream.
    pub stream: Stream,
}

impl CudaDevice {
    /// Opens `cuda:N`; copies take `path`, or the fastest for `auto`. Measures the paths, for a fraction of a second.
    ///
    /// # Errors
    /// An unknown name, no driver or no such device.
    pub fn open(name: &str, path: &str) -> Result<Self, Error> {
        let number = name.strip_prefix("cuda:").and_then(|number| number.parse().ok());
        let ordinal = number.ok_or_else(|| Error::Device(name.to_owned()))?;
        let driver = CudaDriver::open(ordinal)?;
        let numa_node = numa_node(driver.device());
        let engine = Arc::new(CudaCopyEngine::new(driver, config(path)?)?);
        Ok(Self { engine, numa_node, fake: None })
    }

    /// A device that is none: `memory` (address and bytes) is that of the engine, which computes on the CPU.
    ///
    /// # Errors
    /// An unknown path.
    pub fn open_fake(memory: &[(usize, usize)], path: &str, seed: u64) -> Result<Self, Error> {
        let device = FakeDevice::options().seed(seed).background(true).build();
        for (base, bytes) in memory {
            device.add_device_memory(*base, *bytes);
        }
        let stream = device.cpu_engine_stream();
        // There is nothing to measure.
        let config = CudaCopyConfig { calibrate: false, ..config(path)? };
        let engine = Arc::new(CudaCopyEngine::new(Arc::clone(&device) as _, config)?);
        Ok(Self { engine, numa_node: None, fake: Some(FakeCuda { device, stream }) })
    }
}

impl FakeCuda {
    /// What was done that no CUDA program may do. Waits for what is in flight.
    pub fn violations(&self) -> Vec<String> {
        self.device.settle()
    }
}

/// A path that is misspelt is one without a device as well.
pub(crate) fn check_path(path: &str) -> Result<(), Error> {
    config(path).map(drop)
}

fn config(path: &str) -> Result<CudaCopyConfig, Error> {
    let path = match path {
        "auto" => None,
        name => Some(name.parse::<CopyPath>().map_err(Error::CopyPath)?),
    };
    Ok(CudaCopyConfig { path, ..CudaCopyConfig::default() })
}
