//! The driver itself: libcuda, opened at run time.
//!
//! | file | what |
//! |---|---|
//! | `library` | the table of its functions: the only place that looks symbols up |
//! | `batch_copy` | the one function of which there are two versions |
//! | `capture_mode` | keeping our calls out of other threads' CUDA graphs |
//! | `context` | a device's primary context, and making it current |
//! | `devices` | what there is |
//! | `image` | our kernels, loaded |
//! | `unavailable` | why there is no CUDA, and what to do about it |

mod batch_copy;
mod capture_mode;
mod context;
mod devices;
mod image;
mod library;
mod numa;
mod unavailable;

use std::ffi::c_void;
use std::ptr::null_mut;
use std::sync::{Arc, OnceLock};

use cudarc::driver::sys;
use kvcache_core::copy_engine::Piece;
use parking_lot::Mutex;

use self::context::PrimaryContext;
use self::image::Image;
use self::library::Library;
use super::{
    Arguments, Descriptors, DeviceInfo, Driver, DriverError, Event, HostAllocation, LaunchShape, Priority,
    SourceOrder, Stream,
};
use crate::kernels::Kernel;

pub use self::batch_copy::BATCH_COPY_VERSION;
pub use self::devices::devices;
pub use self::library::DRIVER_VERSION_MIN;
pub use self::numa::numa_node;
pub use self::unavailable::Unavailable;

/// One device of the NVIDIA driver.
///
/// Holds a reference to the device's primary context, which it gives back when dropped: the context lives on while the
/// engine uses it. Drop it after everything that was submitted through it has ended; streams, events and memory that
/// were not given back live until the context's end.
///
/// libcuda is opened once for the process and stays. A forked child cannot use it, as the driver does not survive a fork.
pub struct CudaDriver {
    library: &'static Library,
    info: DeviceInfo,
    context: PrimaryContext,
    image: OnceLock<Image>,
    /// Held while the image is loaded, so that it is loaded once.
    loading: Mutex<()>,
}

impl CudaDriver {
    /// Opens the device of this number among those that the process may see. Makes its primary context if nobody has yet,
    /// which takes some 100 ms and some 100 MB of device memory; beside an engine it is there already.
    ///
    /// # Errors
    /// Why there is no CUDA here, in words for whoever runs the process.
    pub fn open(ordinal: u32) -> Result<Arc<CudaDriver>, Unavailable> {
        let library = Library::get()?;
        let device = devices::find(library, ordinal)?;
        let info = devices::describe(library, ordinal, device)?;
        let context = PrimaryContext::retain(library, device, ordinal)?;
        Ok(Arc::new(Self { library, info, context, image: OnceLock::new(), loading: Mutex::new(()) }))
    }
}

impl Driver for CudaDriver {
    fn device(&self) -> &DeviceInfo {
        &self.info
    }

    fn create_stream(&self, priority: Priority) -> Result<Stream, DriverError> {
        let _current = self.context.make_current()?;
        let (mut least, mut greatest) = (0, 0);
        // SAFETY: two integers to write to; the context is current.
        unsafe { self.library.priority_range(&mut least, &mut greatest) }?;
        // Smaller numbers are greater priorities.
        let priority = match priority {
            Priority::High => greatest,
            Priority::Low => least,
        };
        let mut stream = null_mut();
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: a handle to write to; the context is current.
        unsafe { self.library.stream_create(&mut stream, flags, priority) }?;
        Ok(Stream(stream as u64))
    }

    fn destroy_stream(&self, stream: Stream) {
        let Ok(_current) = self.context.make_current() else { return };
        // SAFETY: a stream of `create_stream`, which nobody uses any more. A lost context answers with an error, and has
        // taken its streams along.
        let _ = unsafe { self.library.stream_destroy(stream.handle()) };
    }

    fn check_stream(&self, stream: Stream) -> Result<(), DriverError> {
        self.context.check_stream(stream)
    }

    /// Its synchronisation blocks instead of spinning: whoever cannot wait polls, and whoever waits (for the end of copies of
    /// milliseconds, or at shutdown) should leave the core to the engine's threads.
    fn create_event(&self) -> Result<Event, DriverError> {
        let _current = self.context.make_current()?;
        let mut event = null_mut();
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32
            | sys::CUevent_flags::CU_EVENT_BLOCKING_SYNC as u32;
        // SAFETY: a handle to write to; the context is current.
        unsafe { self.library.event_create(&mut event, flags) }?;
        Ok(Event(event as u64))
    }

    fn destroy_event(&self, event: Event) {
        let Ok(_current) = self.context.make_current() else { return };
        // SAFETY: an event of `create_event`, which nobody uses any more; pending work keeps what it needs of it.
        let _ = unsafe { self.library.event_destroy(event.handle()) };
    }

    fn record_event(&self, event: Event, stream: Stream) -> Result<(), DriverError> {
        let _current = self.context.make_current()?;
        // SAFETY: living handles, for which the caller answers.
        unsafe { self.library.event_record(event.handle(), stream.handle()) }
    }

    fn wait_event(&self, stream: Stream, event: Event) -> Result<(), DriverError> {
        let _current = self.context.make_current()?;
        // SAFETY: living handles, for which the caller answers. No flags.
        unsafe { self.library.stream_wait_event(stream.handle(), event.handle(), 0) }
    }

    fn query_event(&self, event: Event) -> Result<bool, DriverError> {
        let _current = self.context.make_current()?;
        // SAFETY: a living handle, for which the caller answers.
        match unsafe { self.library.event_query(event.handle()) } {
            Ok(()) => Ok(true),
            Err(error) if error.code == sys::CUresult::CUDA_ERROR_NOT_READY as i32 => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn synchronize_event(&self, event: Event) -> Result<(), DriverError> {
        let _current = self.context.make_current()?;
        // SAFETY: a living handle, for which the caller answers.
        unsafe { self.library.event_synchronize(event.handle()) }
    }

    fn allocate_device(&self, bytes: usize) -> Result<u64, DriverError> {
        let _current = self.context.make_current()?;
        let mut address = 0;
        // SAFETY: an address to write to; the context is current.
        unsafe { self.library.mem_alloc(&mut address, bytes) }?;
        Ok(address)
    }

    fn free_device(&self, address: u64) {
        let Ok(_current) = self.context.make_current() else { return };
        // SAFETY: memory of `allocate_device` with nothing in flight, by this method's contract.
        let _ = unsafe { self.library.mem_free(address) };
    }

    fn allocate_host(&self, bytes: usize) -> Result<HostAllocation, DriverError> {
        let _current = self.context.make_current()?;
        let mut host: *mut c_void = null_mut();
        let flags = sys::CU_MEMHOSTALLOC_PORTABLE | sys::CU_MEMHOSTALLOC_DEVICEMAP;
        // SAFETY: a pointer to write to; the context is current.
        unsafe { self.library.mem_host_alloc(&mut host, bytes, flags) }?;
        match self.device_address(host) {
            Ok(device) => Ok(HostAllocation { host: host as usize, device }),
            Err(error) => {
                // SAFETY: allocated above, and nobody knows of it.
                let _ = unsafe { self.library.mem_free_host(host) };
                Err(error)
            }
        }
    }

    fn free_host(&self, host: usize) {
        let Ok(_current) = self.context.make_current() else { return };
        // SAFETY: memory of `allocate_host` with nothing in flight, by this method's contract.
        let _ = unsafe { self.library.mem_free_host(host as *mut c_void) };
    }

    unsafe fn register_host(&self, base: usize, bytes: usize) -> Result<u64, DriverError> {
        let _current = self.context.make_current()?;
        let host = base as *mut c_void;
        // Portable: a process with several devices may register through any of them.
        let flags = sys::CU_MEMHOSTREGISTER_PORTABLE | sys::CU_MEMHOSTREGISTER_DEVICEMAP;
        // SAFETY: mapped memory that stays, by this method's contract.
        unsafe { self.library.mem_host_register(host, bytes, flags) }?;
        self.device_address(host).inspect_err(|_| {
            // SAFETY: registered above, and nobody knows of it.
            let _ = unsafe { self.library.mem_host_unregister(host) };
        })
    }

    fn unregister_host(&self, base: usize) {
        let Ok(_current) = self.context.make_current() else { return };
        // SAFETY: a range of `register_host` with nothing in flight, by this method's contract.
        let _ = unsafe { self.library.mem_host_unregister(base as *mut c_void) };
    }

    unsafe fn copy(&self, piece: Piece, stream: Stream) -> Result<(), DriverError> {
        if piece.bytes == 0 {
            return Ok(());
        }
        let _current = self.context.make_current()?;
        // SAFETY: the ranges are valid until the copy has ended, by this method's contract.
        unsafe { self.library.memcpy(piece.dst as u64, piece.src as u64, piece.bytes, stream.handle()) }
    }

    fn has_batch_copy(&self) -> bool {
        self.library.batch_copy.is_some() && self.info.host_addresses_are_shared
    }

    unsafe fn copy_batch(
        &self,
        descriptors: &Arc<Descriptors>,
        order: SourceOrder,
        stream: Stream,
    ) -> Result<(), DriverError> {
        // A plain copy finds out what an address is; a batch takes it for one of the device's. (sgl-project/sglang issue 40232.)
        if !self.info.host_addresses_are_shared {
            let why = "the device does not take the host's addresses of registered memory".to_owned();
            return Err(context::refused("cuMemcpyBatchAsync", sys::CUresult::CUDA_ERROR_NOT_SUPPORTED, why));
        }
        let _current = self.context.make_current()?;
        // SAFETY: as this method's contract says.
        unsafe { batch_copy::submit(self.library, descriptors, order, stream) }
    }

    fn load_kernels(&self) -> Result<(), DriverError> {
        let _loading = self.loading.lock();
        if self.image.get().is_none() {
            let _current = self.context.make_current()?;
            let image = Image::load(self.library)?;
            self.image.get_or_init(|| image);
        }
        Ok(())
    }

    unsafe fn launch(
        &self,
        kernel: Kernel,
        arguments: &Arguments,
        shape: LaunchShape,
        stream: Stream,
    ) -> Result<(), DriverError> {
        let Some(image) = self.image.get() else {
            return Err(DriverError {
                operation: "cuLaunchKernel",
                code: sys::CUresult::CUDA_ERROR_NOT_FOUND as i32,
                name: "CUDA_ERROR_NOT_FOUND: the kernels have not been loaded".to_owned(),
            });
        };
        let _current = self.context.make_current()?;
        // SAFETY: the memory is there until the launch has ended, by this method's contract.
        unsafe { image.launch(self.library, kernel, arguments, shape, stream) }
    }
}

impl CudaDriver {
    /// The device's address of pinned and mapped host memory.
    fn device_address(&self, host: *mut c_void) -> Result<u64, DriverError> {
        let mut device = 0;
        // SAFETY: an address to write to; the driver checks whether it knows the memory. No flags.
        unsafe { self.library.mem_host_get_device_pointer(&mut device, host, 0) }?;
        Ok(device)
    }
}

impl Drop for CudaDriver {
    fn drop(&mut self) {
        let (Some(image), Ok(_current)) = (self.image.take(), self.context.make_current()) else { return };
        image.unload(self.library);
    }
}

impl Stream {
    fn handle(self) -> sys::CUstream {
        self.0 as sys::CUstream
    }
}

impl Event {
    fn handle(self) -> sys::CUevent {
        self.0 as sys::CUevent
    }
}
