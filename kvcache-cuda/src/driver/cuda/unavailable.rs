//! Why there is no CUDA, in words for whoever runs the process.

use std::env;

use cudarc::driver::sys::CUresult;

use super::library::DRIVER_VERSION_MIN;
use crate::driver::DriverError;

/// Why this process has no CUDA device. Not a fault of ours: engines on the CPU do without.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Unavailable {
    /// The driver's library cannot be opened.
    #[error(
        "CUDA unavailable: {reason}; install the NVIDIA driver, or give the container its GPUs (docker run --gpus all)"
    )]
    NoLibrary {
        /// What the system's loader says.
        reason: String,
    },
    /// The library is the toolkit's stand-in, made for linking on machines without a driver.
    #[error(
        "CUDA unavailable: {path} is a stub for linking, not a driver (CUDA_ERROR_STUB_LIBRARY); take its folder out of \
         LD_LIBRARY_PATH"
    )]
    StubLibrary {
        /// The file that the loader took.
        path: String,
    },
    /// The driver is older than all that is supported.
    #[error(
        "CUDA unavailable: the driver is of CUDA {}, and {} is the oldest that can be used; update it to release 525 or newer",
        version_text(*.version), version_text(DRIVER_VERSION_MIN)
    )]
    OldDriver {
        /// What it says of itself: 1000 × major + 10 × minor.
        version: u32,
    },
    /// The library lacks a function, although its version is new enough or not to be had.
    #[error(
        "CUDA unavailable: libcuda.so.1 has no function {missing}: it is not a whole NVIDIA driver; install it again"
    )]
    MissingFunction {
        /// The first function that was not found.
        missing: &'static str,
    },
    /// The driver works, and the process may see no device.
    #[error(
        "CUDA unavailable: the driver sees no device (CUDA_ERROR_NO_DEVICE); `nvidia-smi -L` lists all, and {visible}"
    )]
    NoDevice {
        /// What CUDA_VISIBLE_DEVICES is.
        visible: String,
    },
    /// A device that is not there was asked for.
    #[error(
        "CUDA unavailable: no device {ordinal}: this process sees {count}, numbered from 0, and {visible}"
    )]
    NoSuchDevice {
        /// What was asked for.
        ordinal: u32,
        /// How many there are.
        count: u32,
        /// What CUDA_VISIBLE_DEVICES is.
        visible: String,
    },
    /// The driver failed otherwise.
    #[error("CUDA unavailable: {0}; see what `nvidia-smi` and the kernel's log say")]
    Driver(#[from] DriverError),
}

impl Unavailable {
    /// Of an initialisation that failed. `path` is that of the library.
    pub(super) fn of_start(error: DriverError, path: impl FnOnce() -> Option<String>) -> Self {
        if error.code == CUresult::CUDA_ERROR_STUB_LIBRARY as i32 {
            Self::StubLibrary { path: path().unwrap_or_else(|| "libcuda.so.1".to_owned()) }
        } else if error.code == CUresult::CUDA_ERROR_NO_DEVICE as i32 {
            Self::NoDevice { visible: visible_devices() }
        } else {
            Self::Driver(error)
        }
    }
}

/// What the variable says that hides devices from a process, or reorders them.
pub(super) fn visible_devices() -> String {
    match env::var("CUDA_VISIBLE_DEVICES") {
        Ok(value) => format!("CUDA_VISIBLE_DEVICES is {value:?}"),
        Err(_) => "CUDA_VISIBLE_DEVICES is not set".to_owned(),
    }
}

fn version_text(version: u32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}
