//! What a status means for what was submitted before.

use super::DriverError;

/// After these nothing more can be done in the context, and nothing that was in flight touches memory any more. By the
/// descriptions of `CUresult` (CUDA 13.0), which say of most that the process must be terminated and relaunched to use CUDA
/// again, and of the rest that the context or the driver is gone.
///
/// What only sounds like the end is not here: the descriptions of `ECC_UNCORRECTABLE`, `NVLINK_UNCORRECTABLE`,
/// `MPS_RPC_FAILURE` and `UNKNOWN` leave open whether work goes on, and then so must we.
const LOST: [i32; 15] = [
    4,   // DEINITIALIZED
    226, // CONTAINED
    700, // ILLEGAL_ADDRESS
    702, // LAUNCH_TIMEOUT
    709, // CONTEXT_IS_DESTROYED: somebody has reset the device although we hold its context
    710, // ASSERT
    714, // HARDWARE_STACK_ERROR
    715, // ILLEGAL_INSTRUCTION
    716, // MISALIGNED_ADDRESS
    717, // INVALID_ADDRESS_SPACE
    718, // INVALID_PC
    719, // LAUNCH_FAILED
    721, // TENSOR_MEMORY_LEAK
    810, // MPS_CLIENT_TERMINATED
    911, // EXTERNAL_DEVICE
];

/// Somebody records a graph in a mode that forbids the call to other threads as well: `STREAM_CAPTURE_UNSUPPORTED`,
/// `STREAM_CAPTURE_INVALIDATED` and `STREAM_CAPTURE_IMPLICIT`.
///
/// Not `CAPTURED_EVENT` (907): an event that was recorded in a stream that records stands for work that was never submitted,
/// and no waiting changes that.
const CAPTURING: [i32; 3] = [900, 901, 906];

impl DriverError {
    /// Whether the context is lost: for the engine too, which shares it. Where this says no, what is in flight may go on.
    pub fn loses_context(&self) -> bool {
        LOST.contains(&self.code)
    }

    /// Whether the call was refused because somebody records a CUDA graph: nothing has happened, what is in flight goes on, and
    /// the same call may succeed later.
    pub fn is_transient(&self) -> bool {
        CAPTURING.contains(&self.code)
    }
}

#[cfg(test)]
mod tests {
    use cudarc::driver::sys::CUresult::{self, *};

    use super::*;

    fn meaning(code: i32) -> (bool, bool) {
        let error = DriverError { operation: "cuEventQuery", code, name: String::new() };
        (error.loses_context(), error.is_transient())
    }

    /// All numbers up to the highest that is defined, against a second reading of the header.
    #[test]
    fn every_status_means_what_the_header_says() {
        for code in -1..=1000 {
            let lost = matches!(code, 4 | 226 | 700 | 702 | 709..=710 | 714..=719 | 721 | 810 | 911);
            assert_eq!(meaning(code), (lost, matches!(code, 900 | 901 | 906)), "{code}");
        }
    }

    /// As far as cudarc's headers have the names.
    #[test]
    fn the_numbers_are_those_of_the_names() {
        let all = |statuses: &[CUresult], wanted| {
            statuses.iter().for_each(|status| assert_eq!(meaning(*status as i32), wanted, "{status:?}"));
        };
        let lost = [
            CUDA_ERROR_DEINITIALIZED,
            CUDA_ERROR_ILLEGAL_ADDRESS,
            CUDA_ERROR_LAUNCH_TIMEOUT,
            CUDA_ERROR_CONTEXT_IS_DESTROYED,
            CUDA_ERROR_ASSERT,
            CUDA_ERROR_HARDWARE_STACK_ERROR,
            CUDA_ERROR_ILLEGAL_INSTRUCTION,
            CUDA_ERROR_MISALIGNED_ADDRESS,
            CUDA_ERROR_INVALID_ADDRESS_SPACE,
            CUDA_ERROR_INVALID_PC,
            CUDA_ERROR_LAUNCH_FAILED,
            CUDA_ERROR_MPS_CLIENT_TERMINATED,
            CUDA_ERROR_EXTERNAL_DEVICE,
        ];
        all(&lost, (true, false));
        let capturing = [
            CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
            CUDA_ERROR_STREAM_CAPTURE_INVALIDATED,
            CUDA_ERROR_STREAM_CAPTURE_IMPLICIT,
        ];
        all(&capturing, (false, true));
        let neither = [
            CUDA_ERROR_INVALID_VALUE,
            CUDA_ERROR_OUT_OF_MEMORY,
            CUDA_ERROR_ECC_UNCORRECTABLE,
            CUDA_ERROR_INVALID_HANDLE,
            CUDA_ERROR_NOT_READY,
            CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES,
            CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED,
            CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE,
            CUDA_ERROR_NOT_SUPPORTED,
            CUDA_ERROR_CAPTURED_EVENT,
            CUDA_ERROR_UNKNOWN,
        ];
        all(&neither, (false, false));
    }
}
