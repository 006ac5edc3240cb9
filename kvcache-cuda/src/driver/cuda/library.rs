//! libcuda, opened at run time: a table of the functions that are used.
//!
//! cudarc's own functions are not called, for three reasons: they panic where the library or a function is missing; their
//! status is a Rust enum, so that a status which is newer than the enum is undefined behaviour; and they look for
//! `libcuda.so` before `libcuda.so.1`, which finds the toolkit's stub on machines that compile CUDA programs. What
//! cudarc has of CUDA's headers is used: its types and constants, and every signature of the table is compared with its.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::ptr::null;
use std::sync::OnceLock;

use cudarc::driver::sys;

use super::batch_copy::BatchCopy;
use super::unavailable::Unavailable;
use crate::driver::DriverError;

/// The oldest driver: CUDA 12.0 (release 525), as 1000 × major + 10 × minor. Older ones have another `cuGetProcAddress`.
pub const DRIVER_VERSION_MIN: u32 = 12_000;

/// Declares the table: each function's name here, in the documentation, and as a symbol (of which a documented name may
/// have several versions).
macro_rules! table {
    (
        required { $($name:ident = $call:literal $symbol:ident($($argument:ident: $kind:ty),*);)* }
        optional { $($o_name:ident = $o_call:literal $o_symbol:ident($($o_argument:ident: $o_kind:ty),*);)* }
    ) => {
        /// The functions of libcuda. Lives for the whole process: the driver cannot be unloaded.
        ///
        /// The methods turn a status that is not success into an error. They are unsafe as C is: handles must be living
        /// ones, pointers must be valid for what the driver does with them.
        pub(super) struct Library {
            functions: Functions,
            /// The driver's CUDA version: 1000 × major + 10 × minor.
            pub(super) version: u32,
            pub(super) batch_copy: Option<BatchCopy>,
        }

        struct Functions {
            error_name: ErrorName,
            $($name: unsafe extern "C" fn($($kind),*) -> c_int,)*
            $($o_name: Option<unsafe extern "C" fn($($o_kind),*) -> c_int>,)*
        }

        // The headers say the same, but for the status being a number here.
        $(const _: unsafe fn($($kind),*) -> sys::CUresult = sys::$symbol;)*
        $(const _: unsafe fn($($o_kind),*) -> sys::CUresult = sys::$o_symbol;)*

        impl Functions {
            fn look_up(handle: *mut c_void) -> Result<Self, Unavailable> {
                Ok(Self {
                    // SAFETY: the symbol is the function of this name, whose signature in C is this type.
                    error_name: unsafe {
                        std::mem::transmute::<*mut c_void, ErrorName>(required(handle, "cuGetErrorName")?)
                    },
                    $($name: {
                        let address = required(handle, stringify!($symbol))?;
                        // SAFETY: as above; the signature was compared with cudarc's.
                        unsafe {
                            std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($kind),*) -> c_int>(address)
                        }
                    },)*
                    $($o_name: symbol(handle, stringify!($o_symbol)).map(|address| {
                        // SAFETY: as above.
                        unsafe {
                            std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($o_kind),*) -> c_int>(address)
                        }
                    }),)*
                })
            }
        }

        #[expect(clippy::too_many_arguments, reason = "`cuLaunchKernel` has eleven")]
        impl Library {
            $(
                #[doc = concat!("`", $call, "`.")]
                pub(super) unsafe fn $name(&self, $($argument: $kind),*) -> Result<(), DriverError> {
                    // SAFETY: the caller answers for the arguments.
                    self.check($call, unsafe { (self.functions.$name)($($argument),*) })
                }
            )*
            $(
                #[doc = concat!("`", $o_call, "`; success where the driver has none.")]
                pub(super) unsafe fn $o_name(&self, $($o_argument: $o_kind),*) -> Result<(), DriverError> {
                    let Some(function) = self.functions.$o_name else { return Ok(()) };
                    // SAFETY: the caller answers for the arguments.
                    self.check($o_call, unsafe { function($($o_argument),*) })
                }
            )*
        }
    };
}

table! {
    required {
        init = "cuInit" cuInit(flags: c_uint);
        driver_version = "cuDriverGetVersion" cuDriverGetVersion(version: *mut c_int);
        proc_address = "cuGetProcAddress" cuGetProcAddress_v2(name: *const c_char, function: *mut *mut c_void,
            version: c_int, flags: sys::cuuint64_t, status: *mut sys::CUdriverProcAddressQueryResult);
        device_count = "cuDeviceGetCount" cuDeviceGetCount(count: *mut c_int);
        device_get = "cuDeviceGet" cuDeviceGet(device: *mut sys::CUdevice, ordinal: c_int);
        device_name = "cuDeviceGetName" cuDeviceGetName(name: *mut c_char, bytes: c_int, device: sys::CUdevice);
        device_attribute = "cuDeviceGetAttribute"
            cuDeviceGetAttribute(value: *mut c_int, attribute: sys::CUdevice_attribute, device: sys::CUdevice);
        device_memory = "cuDeviceTotalMem" cuDeviceTotalMem_v2(bytes: *mut usize, device: sys::CUdevice);
        device_pci_address = "cuDeviceGetPCIBusId"
            cuDeviceGetPCIBusId(address: *mut c_char, bytes: c_int, device: sys::CUdevice);
        primary_context_retain = "cuDevicePrimaryCtxRetain"
            cuDevicePrimaryCtxRetain(context: *mut sys::CUcontext, device: sys::CUdevice);
        primary_context_release = "cuDevicePrimaryCtxRelease" cuDevicePrimaryCtxRelease_v2(device: sys::CUdevice);
        context_current = "cuCtxGetCurrent" cuCtxGetCurrent(context: *mut sys::CUcontext);
        context_push = "cuCtxPushCurrent" cuCtxPushCurrent_v2(context: sys::CUcontext);
        context_pop = "cuCtxPopCurrent" cuCtxPopCurrent_v2(context: *mut sys::CUcontext);
        context_device = "cuCtxGetDevice" cuCtxGetDevice(device: *mut sys::CUdevice);
        exchange_capture_mode = "cuThreadExchangeStreamCaptureMode"
            cuThreadExchangeStreamCaptureMode(mode: *mut sys::CUstreamCaptureMode);
        priority_range = "cuCtxGetStreamPriorityRange"
            cuCtxGetStreamPriorityRange(least: *mut c_int, greatest: *mut c_int);
        stream_create = "cuStreamCreateWithPriority"
            cuStreamCreateWithPriority(stream: *mut sys::CUstream, flags: c_uint, priority: c_int);
        stream_destroy = "cuStreamDestroy" cuStreamDestroy_v2(stream: sys::CUstream);
        stream_context = "cuStreamGetCtx" cuStreamGetCtx(stream: sys::CUstream, context: *mut sys::CUcontext);
        stream_is_capturing = "cuStreamIsCapturing"
            cuStreamIsCapturing(stream: sys::CUstream, status: *mut sys::CUstreamCaptureStatus);
        stream_wait_event = "cuStreamWaitEvent"
            cuStreamWaitEvent(stream: sys::CUstream, event: sys::CUevent, flags: c_uint);
        event_create = "cuEventCreate" cuEventCreate(event: *mut sys::CUevent, flags: c_uint);
        event_destroy = "cuEventDestroy" cuEventDestroy_v2(event: sys::CUevent);
        event_record = "cuEventRecord" cuEventRecord(event: sys::CUevent, stream: sys::CUstream);
        event_query = "cuEventQuery" cuEventQuery(event: sys::CUevent);
        event_synchronize = "cuEventSynchronize" cuEventSynchronize(event: sys::CUevent);
        mem_alloc = "cuMemAlloc" cuMemAlloc_v2(address: *mut sys::CUdeviceptr, bytes: usize);
        mem_free = "cuMemFree" cuMemFree_v2(address: sys::CUdeviceptr);
        mem_host_alloc = "cuMemHostAlloc" cuMemHostAlloc(host: *mut *mut c_void, bytes: usize, flags: c_uint);
        mem_free_host = "cuMemFreeHost" cuMemFreeHost(host: *mut c_void);
        mem_host_get_device_pointer = "cuMemHostGetDevicePointer"
            cuMemHostGetDevicePointer_v2(address: *mut sys::CUdeviceptr, host: *mut c_void, flags: c_uint);
        mem_host_register = "cuMemHostRegister" cuMemHostRegister_v2(host: *mut c_void, bytes: usize, flags: c_uint);
        mem_host_unregister = "cuMemHostUnregister" cuMemHostUnregister(host: *mut c_void);
        memcpy = "cuMemcpyAsync"
            cuMemcpyAsync(dst: sys::CUdeviceptr, src: sys::CUdeviceptr, bytes: usize, stream: sys::CUstream);
        module_load = "cuModuleLoadData" cuModuleLoadData(module: *mut sys::CUmodule, image: *const c_void);
        module_unload = "cuModuleUnload" cuModuleUnload(module: sys::CUmodule);
        module_function = "cuModuleGetFunction"
            cuModuleGetFunction(function: *mut sys::CUfunction, module: sys::CUmodule, name: *const c_char);
        launch_kernel = "cuLaunchKernel"
            cuLaunchKernel(function: sys::CUfunction, grid_x: c_uint, grid_y: c_uint, grid_z: c_uint, block_x: c_uint,
                block_y: c_uint, block_z: c_uint, shared_bytes: c_uint, stream: sys::CUstream,
                arguments: *mut *mut c_void, extra: *mut *mut c_void);
    }
    optional {
        // CUDA 12.4.
        function_load = "cuFuncLoad" cuFuncLoad(function: sys::CUfunction);
    }
}

/// `cuGetErrorName`, which is asked about any number.
type ErrorName = unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int;

impl Library {
    /// The library, opened and initialised once per process. The first answer is kept, good or bad.
    ///
    /// # Errors
    /// It cannot be opened, is none, is too old, or does not start.
    pub(super) fn get() -> Result<&'static Library, Unavailable> {
        static LIBRARY: OnceLock<Result<Library, Unavailable>> = OnceLock::new();
        LIBRARY.get_or_init(|| Library::start(open(LIBRARY_NAME)?)).as_ref().map_err(Clone::clone)
    }

    fn start(handle: *mut c_void) -> Result<Library, Unavailable> {
        let functions = match Functions::look_up(handle) {
            Ok(functions) => functions,
            // A driver that lacks a function is mostly an old one, which its version says better.
            Err(error) => return Err(too_old(handle).unwrap_or(error)),
        };
        let mut library = Library { functions, version: 0, batch_copy: None };
        // SAFETY: initialisation may be repeated by anybody. No flags are defined.
        unsafe { library.init(0) }.map_err(|error| Unavailable::of_start(error, || path_of(handle)))?;
        let mut version = 0;
        // SAFETY: an integer to write to.
        unsafe { library.driver_version(&mut version) }?;
        library.version = u32::try_from(version).unwrap_or(0);
        if library.version < DRIVER_VERSION_MIN {
            return Err(Unavailable::OldDriver { version: library.version });
        }
        library.batch_copy = BatchCopy::find(&library);
        Ok(library)
    }

    /// An error unless the status is success.
    #[inline]
    pub(super) fn check(&self, operation: &'static str, code: c_int) -> Result<(), DriverError> {
        if code == 0 { Ok(()) } else { Err(self.error(operation, code)) }
    }

    #[cold]
    fn error(&self, operation: &'static str, code: c_int) -> DriverError {
        let mut name = null();
        // SAFETY: any number may be asked about. For those that it does not know the driver writes null, or nothing.
        unsafe { (self.functions.error_name)(code, &mut name) };
        let name = if name.is_null() {
            "a status that this driver does not name".to_owned()
        } else {
            // SAFETY: the driver's names are constants that end with NUL.
            unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()
        };
        DriverError { operation, code, name }
    }
}

/// The version of a driver that lacks functions, if that explains it.
fn too_old(handle: *mut c_void) -> Option<Unavailable> {
    let address = symbol(handle, "cuDriverGetVersion")?;
    // SAFETY: the symbol is the function of this name, whose signature in C is this type.
    let driver_version: unsafe extern "C" fn(*mut c_int) -> c_int =
        unsafe { std::mem::transmute::<*mut c_void, _>(address) };
    let mut version = 0;
    // SAFETY: an integer to write to. It may be asked before initialisation.
    let code = unsafe { driver_version(&mut version) };
    let version = u32::try_from(version).ok()?;
    (code == 0 && (1..DRIVER_VERSION_MIN).contains(&version)).then_some(Unavailable::OldDriver { version })
}

fn open(name: &CStr) -> Result<*mut c_void, Unavailable> {
    // SAFETY: a NUL-terminated name. Loading runs the library's constructors, which expect nothing of the process. Where an
    // engine has opened it already this is the same library.
    let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    if !handle.is_null() {
        return Ok(handle);
    }
    // SAFETY: returns a text that is valid until the next call of this thread, or null.
    let reason = unsafe { libc::dlerror() };
    let reason = if reason.is_null() {
        format!("{} cannot be opened", name.to_string_lossy())
    } else {
        // SAFETY: not null, NUL-terminated.
        unsafe { CStr::from_ptr(reason) }.to_string_lossy().into_owned()
    };
    Err(Unavailable::NoLibrary { reason })
}

fn required(handle: *mut c_void, name: &'static str) -> Result<*mut c_void, Unavailable> {
    symbol(handle, name).ok_or(Unavailable::MissingFunction { missing: name })
}

fn symbol(handle: *mut c_void, name: &str) -> Option<*mut c_void> {
    let name = CString::new(name).ok()?;
    // SAFETY: an open handle, which is never closed, and a NUL-terminated name.
    let address = unsafe { libc::dlsym(handle, name.as_ptr()) };
    (!address.is_null()).then_some(address)
}

/// The file that the loader took.
fn path_of(handle: *mut c_void) -> Option<String> {
    let address = symbol(handle, "cuInit")?;
    let mut info = std::mem::MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: an address inside of a library, and a structure to write to.
    let found = unsafe { libc::dladdr(address, info.as_mut_ptr()) };
    // SAFETY: zeroed, which is valid for it, and written if anything was found.
    let name = unsafe { info.assume_init() }.dli_fname;
    // SAFETY: not null, NUL-terminated, and valid while the library is open.
    (found != 0 && !name.is_null()).then(|| unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned())
}

/// The driver's name as an interface. A `libcuda.so` without number is for linking and may be the toolkit's stub.
const LIBRARY_NAME: &CStr = c"libcuda.so.1";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_that_is_not_there_is_named() {
        let Err(Unavailable::NoLibrary { reason }) = open(c"libkvcache-no-such-library.so.1") else {
            panic!("a library of this name must not exist");
        };
        assert!(reason.contains("libkvcache-no-such-library.so.1"), "{reason}");
    }

    #[test]
    fn a_library_without_the_functions_is_no_driver() {
        // SAFETY: the handle of the program itself, which has none of these functions.
        let handle = unsafe { libc::dlopen(std::ptr::null(), libc::RTLD_NOW) };
        let Err(error) = Library::start(handle) else { panic!("this program does not link libcuda") };
        assert_eq!(error, Unavailable::MissingFunction { missing: "cuGetErrorName" });
    }
}
