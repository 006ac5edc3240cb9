//! How a CUDA copy engine is set up.

use std::str::FromStr;

/// A way to perform a batch.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum CopyPath {
    /// One call of the driver's batch copy: the device's copy engines. Drivers of CUDA 12.8 and newer.
    DmaBatch,
    /// A call for each piece: the same copy engines, and about a microsecond of the CPU a piece.
    Dma,
    /// A kernel on a few multiprocessors: for many small pieces, which copy engines handle one by one.
    Kernel,
}

impl CopyPath {
    /// All of them, those first that take nothing from the engine's compute.
    pub const ALL: [Self; 3] = [Self::DmaBatch, Self::Dma, Self::Kernel];

    /// Its name in settings, metrics and results.
    pub fn name(self) -> &'static str {
        match self {
            Self::DmaBatch => "dma_batch",
            Self::Dma => "dma",
            Self::Kernel => "kernel",
        }
    }
}

impl FromStr for CopyPath {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|path| path.name() == text)
            .ok_or_else(|| format!("unknown copy path {text:?}: use auto, dma_batch, dma or kernel"))
    }
}

/// How a [`CudaCopyEngine`](super::CudaCopyEngine) is built.
#[derive(Clone, Debug)]
pub struct CudaCopyConfig {
    /// The path of every batch that it can serve, in place of the one that is measured to be best.
    pub path: Option<CopyPath>,
    /// Whether paths are measured, and their bytes compared, at the start: some milliseconds. Otherwise rules of thumb
    /// choose.
    pub calibrate: bool,
    /// Blocks of a kernel: as many multiprocessors at most.
    pub kernel_blocks: u32,
    /// Threads of a block: 32 to 512, a multiple of 32.
    pub kernel_threads: u32,
    /// Bytes that 32 threads of a kernel take at a time, a multiple of 16.
    pub kernel_chunk_bytes: u32,
    /// Batches accepted and not yet reported, beyond which `submit` answers full.
    pub batches_max: usize,
    /// Bytes in flight, of loads for which nobody waits and of offloads each, beyond which `submit` answers full. Loads
    /// for which a forward pass waits are not bounded: making room for them would block the engine's thread.
    pub bytes_max: usize,
    /// Operations in flight, of the same, beyond which `submit` answers full; the wait before each batch and the event behind it
    /// count. A stream holds about a thousand; a call beyond that waits for the engine's compute. As with bytes, a batch that has
    /// more than this alone is accepted when nothing else is in flight.
    pub calls_max: usize,
    /// Bytes of one call of the driver: the copy engines take turns between streams call by call.
    pub call_bytes: usize,
    /// Batches smaller than this are worth joining. 1 MiB takes 20 µs to 40 µs over PCIe, the calls for it below 10 µs.
    pub batch_bytes: usize,
}

impl Default for CudaCopyConfig {
    fn default() -> Self {
        Self {
            path: None,
            calibrate: true,
            kernel_blocks: 16,
            kernel_threads: 512,
            kernel_chunk_bytes: 8 << 10,
            batches_max: 4096,
            bytes_max: 512 << 20,
            calls_max: 512,
            call_bytes: 32 << 20,
            batch_bytes: 1 << 20,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_read_by_name() {
        for path in CopyPath::ALL {
            assert_eq!(path.name().parse(), Ok(path));
        }
        assert_eq!(
            "sm".parse::<CopyPath>().unwrap_err(),
            "unknown copy path \"sm\": use auto, dma_batch, dma or kernel"
        );
    }
}
