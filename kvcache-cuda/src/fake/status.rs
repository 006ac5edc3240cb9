//! The driver's calls and status codes that the fake knows.

use crate::driver::DriverError;

/// A status as `cuda.h` numbers and names it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Status {
    /// Its number.
    pub code: i32,
    /// Its name.
    pub name: &'static str,
}

macro_rules! statuses {
    ($($(#[$doc:meta])* $constant:ident = $code:literal, $name:literal;)*) => {
        impl Status {
            $($(#[$doc])* pub const $constant: Self = Self { code: $code, name: $name };)*
        }
    };
}
statuses! {
    /// An argument that no call accepts.
    INVALID_VALUE = 1, "CUDA_ERROR_INVALID_VALUE";
    /// No memory, or the limit on pinned memory.
    OUT_OF_MEMORY = 2, "CUDA_ERROR_OUT_OF_MEMORY";
    /// A stream of another device.
    INVALID_CONTEXT = 201, "CUDA_ERROR_INVALID_CONTEXT";
    /// The image holds nothing for this device, or is newer than the driver.
    NO_BINARY_FOR_GPU = 209, "CUDA_ERROR_NO_BINARY_FOR_GPU";
    /// A stream or event that does not exist.
    INVALID_HANDLE = 400, "CUDA_ERROR_INVALID_HANDLE";
    /// The kernels were not loaded.
    NOT_FOUND = 500, "CUDA_ERROR_NOT_FOUND";
    /// Asynchronous: a kernel or copy touched what no device can reach.
    ILLEGAL_ADDRESS = 700, "CUDA_ERROR_ILLEGAL_ADDRESS";
    /// A launch wants more registers or threads than there are.
    LAUNCH_OUT_OF_RESOURCES = 701, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES";
    /// A range that is pinned already.
    HOST_MEMORY_ALREADY_REGISTERED = 712, "CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED";
    /// A call that this driver lacks.
    NOT_SUPPORTED = 801, "CUDA_ERROR_NOT_SUPPORTED";
    /// A stream that records a graph.
    STREAM_CAPTURE_UNSUPPORTED = 900, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED";
    /// Somebody's graph that is being recorded has been broken.
    STREAM_CAPTURE_INVALIDATED = 901, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED";
    /// The default stream, while somebody records in a stream that waits for it.
    STREAM_CAPTURE_IMPLICIT = 906, "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT";
}

impl Status {
    pub(super) fn of(self, call: Call) -> DriverError {
        DriverError { operation: call.function(), code: self.code, name: self.name.to_owned() }
    }
}

/// A method of [`Driver`](crate::driver::Driver) that can fail, and the work itself.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Call {
    /// `create_stream`.
    CreateStream,
    /// `check_stream`.
    CheckStream,
    /// `create_event`.
    CreateEvent,
    /// `record_event`.
    RecordEvent,
    /// `wait_event`.
    WaitEvent,
    /// `query_event`.
    QueryEvent,
    /// `synchronize_event`.
    SynchronizeEvent,
    /// `allocate_device`.
    AllocateDevice,
    /// `allocate_host`.
    AllocateHost,
    /// `register_host`.
    RegisterHost,
    /// `copy`.
    Copy,
    /// `copy_batch`.
    CopyBatch,
    /// `load_kernels`.
    LoadKernels,
    /// `launch`.
    Launch,
    /// Not a call: a copy, batch or launch that was accepted and fails when it runs. It loses the context.
    Execute,
}

impl Call {
    /// The function of the driver that the call stands for.
    fn function(self) -> &'static str {
        match self {
            Self::CreateStream => "cuStreamCreateWithPriority",
            Self::CheckStream => "cuStreamGetCtx",
            Self::CreateEvent => "cuEventCreate",
            Self::RecordEvent => "cuEventRecord",
            Self::WaitEvent => "cuStreamWaitEvent",
            Self::QueryEvent => "cuEventQuery",
            Self::SynchronizeEvent => "cuEventSynchronize",
            Self::AllocateDevice => "cuMemAlloc",
            Self::AllocateHost => "cuMemHostAlloc",
            Self::RegisterHost => "cuMemHostRegister",
            Self::Copy => "cuMemcpyAsync",
            Self::CopyBatch => "cuMemcpyBatchAsync",
            Self::LoadKernels => "cuModuleLoadData",
            Self::Launch | Self::Execute => "cuLaunchKernel",
        }
    }
}
