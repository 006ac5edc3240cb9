//! What a status means for what was submitted before.

use super::DriverError;

/// After these nothing more can be done in the context, and nothing that was in flight touches memory any more: CUDA's headers
/// say "the process must be terminated and relaunched", or the context or the driver is gone.
const LOST: [i32; 20] = [
    4,   // DEINITIALIZED
    214, // ECC_UNCORRECTABLE
    220, // NVLINK_UNCORRECTABLE
    226, // CONTAINED
    700, // ILLEGAL_ADDRESS
    702, // LAUNCH_TIMEOUT
    709, // CONTEXT_IS_DESTROYED
    710, // ASSERT
    714, // HARDWARE_STACK_ERROR
    715, // ILLEGAL_INSTRUCTION
    716, // MISALIGNED_ADDRESS
    717, // INVALID_ADDRESS_SPACE
    718, // INVALID_PC
    719, // LAUNCH_FAILED
    721, // TENSOR_MEMORY_LEAK
    806, // MPS_RPC_FAILURE
    807, // MPS_SERVER_NOT_READY
    810, // MPS_CLIENT_TERMINATED
    911, // EXTERNAL_DEVICE
    999, // UNKNOWN
];

/// Somebody records a graph in a mode that forbids the call to other threads as well.
const CAPTURING: [i32; 4] = [900, 901, 906, 907];

impl DriverError {
    /// Whether the context is lost: for the engine too, which shares it.
    pub fn loses_context(&self) -> bool {
        LOST.contains(&self.code)
    }

    /// Whether the same call may succeed later: nothing is wrong but the moment.
    pub fn is_transient(&self) -> bool {
        CAPTURING.contains(&self.code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_mean_what_cuda_says() {
        let error = |code| DriverError { operation: "cuEventQuery", code, name: String::new() };
        let meaning = |code| (error(code).loses_context(), error(code).is_transient());
        // ILLEGAL_ADDRESS, STREAM_CAPTURE_UNSUPPORTED, then OUT_OF_MEMORY, INVALID_VALUE, INVALID_HANDLE, NOT_READY.
        assert_eq!((meaning(700), meaning(900)), ((true, false), (false, true)));
        assert!([2, 1, 400, 600].into_iter().all(|code| meaning(code) == (false, false)));
        assert!(LOST.is_sorted() && LOST.iter().all(|code| !CAPTURING.contains(code)));
    }
}
