//! Keeping our calls out of other threads' CUDA graphs.
//!
//! An engine records graphs with torch, whose default is the mode "global": while one thread records, calls of *any* thread
//! that a graph cannot hold are refused with `CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED`, and may invalidate what is being
//! recorded: the engine fails then, not we. Pinning memory and querying an event are such calls, and we make both at times
//! that the engine does not choose. A thread can say that it does not take part, which is the mode "relaxed". (CUDA driver
//! API, `cuThreadExchangeStreamCaptureMode`; the collision is vllm-project/vllm issue 46933.)

use std::marker::PhantomData;

use cudarc::driver::sys::CUstreamCaptureMode;

use super::library::Library;
use crate::driver::DriverError;

/// While this lives, the thread that made it may make any call without harm to graphs that others record. It does not make
/// a stream usable that is recording itself; see [`Driver::check_stream`](crate::driver::Driver::check_stream).
pub(super) struct Relaxed {
    library: &'static Library,
    /// The thread's mode before. A number, as a newer driver may know more modes.
    before: u32,
    /// A raw pointer keeps it on its thread.
    of_this_thread: PhantomData<*const ()>,
}

impl Relaxed {
    /// Changes the calling thread's mode: no call to the device.
    pub(super) fn enter(library: &'static Library) -> Result<Self, DriverError> {
        let mut mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED as u32;
        // SAFETY: a number of the enum's size, to be read and written to.
        unsafe { library.exchange_capture_mode((&raw mut mode).cast()) }?;
        Ok(Self { library, before: mode, of_this_thread: PhantomData })
    }
}

impl Drop for Relaxed {
    fn drop(&mut self) {
        let mut mode = self.before;
        // SAFETY: as above; the mode is one that the driver named. It fails where the driver has shut down only.
        let _ = unsafe { self.library.exchange_capture_mode((&raw mut mode).cast()) };
    }
}
