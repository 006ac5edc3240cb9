//! A device's primary context: the one that the runtime library, and so torch, uses.

use std::marker::PhantomData;
use std::ptr::null_mut;

use cudarc::driver::sys::{self, CUresult};

use super::capture_mode::Relaxed;
use super::devices;
use super::library::Library;
use crate::driver::{DriverError, Stream};

/// One reference to the primary context of a device. Given back when dropped, and never destroyed: the engine lives in it.
pub(super) struct PrimaryContext {
    library: &'static Library,
    device: sys::CUdevice,
    ordinal: u32,
    context: sys::CUcontext,
}

// SAFETY: the driver's handles are not bound to threads; which context is current is, and that is put right at each use.
unsafe impl Send for PrimaryContext {}
// SAFETY: as above; the driver locks what it shares.
unsafe impl Sync for PrimaryContext {}

impl PrimaryContext {
    pub(super) fn retain(
        library: &'static Library,
        device: sys::CUdevice,
        ordinal: u32,
    ) -> Result<Self, DriverError> {
        let mut context = null_mut();
        // Another device's engine may be recording in this process. The mode is a matter of the thread and should not need a
        // context; where a driver sees that differently, there is none of this thread's to harm.
        let _relaxed = Relaxed::enter(library).ok();
        // SAFETY: a handle to write to, and a device that the driver named.
        unsafe { library.primary_context_retain(&mut context, device) }?;
        Ok(Self { library, device, ordinal, context })
    }

    /// Makes it the calling thread's context until the guard is dropped, and keeps the thread's calls out of graphs that other
    /// threads record. Where it is current already, which is so on an engine's threads, this reads and writes what the
    /// driver holds about the thread.
    pub(super) fn make_current(&self) -> Result<Current<'_>, DriverError> {
        let mut current = null_mut();
        // SAFETY: a handle to write to.
        unsafe { self.library.context_current(&mut current) }?;
        let pushed = if current == self.context {
            None
        } else {
            // SAFETY: a living context, since we hold a reference.
            unsafe { self.library.context_push(self.context) }?;
            Some(Pushed { library: self.library, of_this_thread: PhantomData })
        };
        let relaxed = Relaxed::enter(self.library)?;
        Ok(Current { _relaxed: relaxed, _pushed: pushed, context: PhantomData })
    }

    /// See [`Driver::check_stream`](crate::driver::Driver::check_stream).
    pub(super) fn check_stream(&self, stream: Stream) -> Result<(), DriverError> {
        // The default stream is that of the current context, which is ours.
        let _current = self.make_current()?;
        if stream.0 == STREAM_PER_THREAD {
            let why = "the per-thread default stream is another one on each thread; use a stream of its own";
            return Err(refused("cuStreamGetCtx", CUresult::CUDA_ERROR_INVALID_HANDLE, why.to_owned()));
        }
        let mut context = null_mut();
        // SAFETY: a living stream, for which the caller answers, and a handle to write to.
        unsafe { self.library.stream_context(stream.handle(), &mut context) }?;
        if context != self.context {
            let why = match self.ordinal_of(context) {
                Some(other) if other != self.ordinal => {
                    format!("the stream is of device {other}, the copies are of device {}", self.ordinal)
                }
                _ => format!("the stream is not of device {}'s primary context", self.ordinal),
            };
            return Err(refused("cuStreamGetCtx", CUresult::CUDA_ERROR_INVALID_CONTEXT, why));
        }
        let mut capturing: u32 = 0;
        // SAFETY: a living stream, and a number of the enum's size to write to; a value that the enum lacks does no harm.
        unsafe { self.library.stream_is_capturing(stream.handle(), (&raw mut capturing).cast()) }?;
        if capturing != sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE as u32 {
            let why = "the stream is recording a CUDA graph".to_owned();
            return Err(refused("cuStreamIsCapturing", CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, why));
        }
        Ok(())
    }

    /// The number of a context's device.
    fn ordinal_of(&self, context: sys::CUcontext) -> Option<u32> {
        let mut device = 0;
        // SAFETY: a context that the driver named for a living stream; it is taken off again.
        unsafe { self.library.context_push(context) }.ok()?;
        // SAFETY: a handle to write to.
        let asked = unsafe { self.library.context_device(&mut device) };
        let mut popped = null_mut();
        // SAFETY: what was pushed above.
        let _ = unsafe { self.library.context_pop(&mut popped) };
        asked.ok()?;
        devices::ordinal(self.library, device)
    }
}

impl Drop for PrimaryContext {
    fn drop(&mut self) {
        // The last reference ends the context, which no graph may see either.
        let _relaxed = Relaxed::enter(self.library).ok();
        // SAFETY: the reference of `retain`. A driver that has shut down answers with an error, and has no contexts.
        let _ = unsafe { self.library.primary_context_release(self.device) };
    }
}

/// While this lives the context is current on the thread that made it, and the thread takes no part in others' captures.
pub(super) struct Current<'a> {
    /// Before the context, so that both end in reverse order.
    _relaxed: Relaxed,
    _pushed: Option<Pushed>,
    context: PhantomData<&'a PrimaryContext>,
}

/// A context that was put on the thread's stack.
struct Pushed {
    library: &'static Library,
    /// A raw pointer keeps it on its thread.
    of_this_thread: PhantomData<*const ()>,
}

impl Drop for Pushed {
    fn drop(&mut self) {
        let mut popped = null_mut();
        // SAFETY: takes off what this guard has put on; guards of one thread end in reverse order.
        let _ = unsafe { self.library.context_pop(&mut popped) };
    }
}

/// A refusal of our own, by the driver's words for it.
pub(super) fn refused(operation: &'static str, status: CUresult, why: String) -> DriverError {
    DriverError { operation, code: status as i32, name: format!("{status:?}: {why}") }
}

/// `CU_STREAM_PER_THREAD`, which the headers define as a cast and bindings therefore lack.
const STREAM_PER_THREAD: u64 = 2;
