//! The kernels' image in a context.

use std::ffi::{CString, c_void};
use std::ptr::null_mut;

use cudarc::driver::sys::{CUfunction, CUmodule, CUresult};

use super::context::refused;
use super::library::Library;
use crate::driver::{Arguments, DriverError, LaunchShape, Stream};
use crate::kernels::{self, Kernel, TEAM_THREADS};

/// The loaded image with its functions, one for each of [`Kernel::ALL`].
pub(super) struct Image {
    module: CUmodule,
    functions: [CUfunction; Kernel::ALL.len()],
}

// SAFETY: the driver's handles are not bound to threads.
unsafe impl Send for Image {}
// SAFETY: as above; they are only read here.
unsafe impl Sync for Image {}

impl Image {
    /// Loads it into the current context.
    pub(super) fn load(library: &Library) -> Result<Self, DriverError> {
        let mut module = null_mut();
        // SAFETY: a whole fat binary (its header says how long it is), aligned, which the driver reads during the call.
        unsafe { library.module_load(&mut module, kernels::image().as_ptr().cast()) }?;
        let mut image = Self { module, functions: [null_mut(); Kernel::ALL.len()] };
        for kernel in Kernel::ALL {
            if let Err(error) = image.find(library, kernel) {
                image.unload(library);
                return Err(error);
            }
        }
        Ok(image)
    }

    fn find(&mut self, library: &Library, kernel: Kernel) -> Result<(), DriverError> {
        let function = &mut self.functions[kernel as usize];
        // A symbol of ours holds no NUL; an empty name is refused by the driver.
        let name = CString::new(kernel.symbol()).unwrap_or_default();
        // SAFETY: a handle to write to, a loaded module, a NUL-terminated name.
        unsafe { library.module_function(function, self.module, name.as_ptr()) }?;
        // Drivers load code when it is launched first, which may wait for all that the device does. Better now.
        // SAFETY: a function of a loaded module.
        unsafe { library.function_load(*function) }
    }

    /// Launches a kernel. The context must be current.
    ///
    /// # Safety
    /// As [`Driver::launch`](crate::driver::Driver::launch).
    pub(super) unsafe fn launch(
        &self,
        library: &Library,
        kernel: Kernel,
        arguments: &Arguments,
        shape: LaunchShape,
        stream: Stream,
    ) -> Result<(), DriverError> {
        let refuse = |why: String| Err(refused("cuLaunchKernel", CUresult::CUDA_ERROR_INVALID_VALUE, why));
        let LaunchShape { blocks, threads } = shape;
        if blocks == 0 || blocks > BLOCKS_MAX || !(TEAM_THREADS..=THREADS_MAX).contains(&threads) {
            return refuse(format!("{blocks} blocks of {threads} threads"));
        }
        if !threads.is_multiple_of(TEAM_THREADS) {
            return refuse(format!("{threads} threads are not a multiple of {TEAM_THREADS}"));
        }
        let argument: *const c_void = match (kernel, arguments) {
            (Kernel::CopyPieces, Arguments::Pieces(copy)) => (&raw const *copy).cast(),
            (Kernel::GatherPages | Kernel::ScatterPages, Arguments::Pages(copy)) => (&raw const *copy).cast(),
            (Kernel::GatherTokens | Kernel::ScatterTokens, Arguments::Tokens(copy)) => {
                (&raw const *copy).cast()
            }
            _ => return refuse(format!("{kernel:?} does not take these arguments")),
        };
        // The driver copies what the pointers lead to, as many bytes as the kernel's parameter has, and writes nothing.
        let mut pointers = [argument.cast_mut()];
        // SAFETY: a function of the loaded image, with its one parameter; the memory behind it is the caller's matter.
        unsafe {
            library.launch_kernel(
                self.functions[kernel as usize],
                blocks,
                1,
                1,
                threads,
                1,
                1,
                0,
                stream.handle(),
                pointers.as_mut_ptr(),
                null_mut(),
            )
        }
    }

    /// Takes it out of the current context, with no launch in flight.
    pub(super) fn unload(self, library: &Library) {
        // SAFETY: loaded by `load`; `self` is gone, so that nobody launches from it.
        let _ = unsafe { library.module_unload(self.module) };
    }
}

/// Threads of a block, at most: what the kernels are compiled for.
const THREADS_MAX: u32 = 512;

/// Blocks of a grid in its first dimension, at most (CUDA's table of technical specifications).
const BLOCKS_MAX: u32 = (1 << 31) - 1;
