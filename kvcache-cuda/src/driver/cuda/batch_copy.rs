//! Many copies in one call: the function of which CUDA 12.8 and CUDA 13.0 have versions of different signatures.
//!
//! `cuMemcpyBatchAsync` has been there since 12.8 (release 570). 13.0 dropped the argument that receives the index of a wrong
//! copy. A version is asked for explicitly, so that what is found has the signature that is called.

use std::ffi::{c_int, c_void};
use std::ptr::null_mut;
use std::sync::Arc;

use cudarc::driver::sys::{
    self, CUdeviceptr, CUmemLocation, CUmemLocationType, CUmemcpyAttributes, CUmemcpySrcAccessOrder,
    CUresult, CUstream,
};

use super::context::refused;
use super::library::Library;
use crate::driver::{Descriptors, DriverError, SourceOrder, Stream};

/// The oldest driver with batch copies: CUDA 12.8, as 1000 × major + 10 × minor.
pub const BATCH_COPY_VERSION: u32 = 12_080;

/// The version without the index of a wrong copy.
const CUDA_13_VERSION: u32 = 13_000;

/// The function, by its signature.
#[derive(Clone, Copy)]
pub(super) enum BatchCopy {
    Cuda12(Cuda12),
    Cuda13(Cuda13),
}

/// Destinations, sources, sizes, their count; attributes, the first copy of each, their count; the wrong copy; the stream.
type Cuda12 = unsafe extern "C" fn(
    *mut CUdeviceptr,
    *mut CUdeviceptr,
    *mut usize,
    usize,
    *mut CUmemcpyAttributes,
    *mut usize,
    usize,
    *mut usize,
    CUstream,
) -> c_int;

/// The same without the wrong copy.
type Cuda13 = unsafe extern "C" fn(
    *mut CUdeviceptr,
    *mut CUdeviceptr,
    *mut usize,
    usize,
    *mut CUmemcpyAttributes,
    *mut usize,
    usize,
    CUstream,
) -> c_int;

impl BatchCopy {
    /// The newest version that we and the driver know.
    pub(super) fn find(library: &Library) -> Option<Self> {
        if library.version >= CUDA_13_VERSION {
            let address = entry_point(library, CUDA_13_VERSION)?;
            // SAFETY: what a driver of at least this version has under this name and version has this signature, by NVIDIA's
            // cudaTypedefs.h.
            Some(Self::Cuda13(unsafe { std::mem::transmute::<*mut c_void, Cuda13>(address) }))
        } else if library.version >= BATCH_COPY_VERSION {
            let address = entry_point(library, BATCH_COPY_VERSION)?;
            // SAFETY: as above.
            Some(Self::Cuda12(unsafe { std::mem::transmute::<*mut c_void, Cuda12>(address) }))
        } else {
            None
        }
    }
}

/// What the driver has for this version, which is not newer than itself: asked for a newer one it may answer with the newest
/// that it has, whose signature is another.
fn entry_point(library: &Library, version: u32) -> Option<*mut c_void> {
    let version = c_int::try_from(version).ok()?;
    let mut function = null_mut();
    let flags = sys::CUdriverProcAddress_flags::CU_GET_PROC_ADDRESS_LEGACY_STREAM as u64;
    // SAFETY: a NUL-terminated name and a pointer to write to. The last argument is optional: null also says that there is none.
    unsafe {
        library.proc_address(c"cuMemcpyBatchAsync".as_ptr(), &mut function, version, flags, null_mut())
    }
    .ok()?;
    (!function.is_null()).then_some(function)
}

/// Submits a batch. The context must be current.
///
/// # Safety
/// As [`Driver::copy_batch`](crate::driver::Driver::copy_batch).
pub(super) unsafe fn submit(
    library: &Library,
    descriptors: &Arc<Descriptors>,
    order: SourceOrder,
    stream: Stream,
) -> Result<(), DriverError> {
    let Descriptors { destinations, sources, sizes } = &**descriptors;
    let count = sizes.len();
    let refuse = |status, why: &str| Err(refused(CALL, status, why.to_owned()));
    let Some(batch_copy) = library.batch_copy else {
        return refuse(CUresult::CUDA_ERROR_NOT_SUPPORTED, "the driver is older than CUDA 12.8");
    };
    if stream.0 <= STREAM_LEGACY {
        return refuse(CUresult::CUDA_ERROR_INVALID_VALUE, "a batch cannot go into the default stream");
    }
    if count == 0 || destinations.len() != count || sources.len() != count {
        return refuse(CUresult::CUDA_ERROR_INVALID_VALUE, "the arrays are empty or of different lengths");
    }
    let attributes = match order {
        SourceOrder::Stream => &STREAM_ORDER,
        SourceOrder::Any => &ANY_ORDER,
    };
    // The driver reads all of these and writes none; the signature merely lacks the word. Nobody says until when it
    // reads them, so the attributes live as long as the process, and the rest until the end of the batch.
    let (dst, src) = (destinations.as_ptr().cast_mut(), sources.as_ptr().cast_mut());
    let size = sizes.as_ptr().cast_mut();
    let (attributes, first) = ((&raw const attributes.0).cast_mut(), (&raw const FIRST_COPY).cast_mut());
    let stream = stream.handle();
    match batch_copy {
        BatchCopy::Cuda13(call) => {
            // SAFETY: three arrays of `count`, and one attribute for all of them from the first on.
            library.check(CALL, unsafe { call(dst, src, size, count, attributes, first, 1, stream) })
        }
        BatchCopy::Cuda12(call) => {
            let mut wrong = usize::MAX;
            // SAFETY: as above, and a number to write to.
            let status = unsafe { call(dst, src, size, count, attributes, first, 1, &mut wrong, stream) };
            library.check(CALL, status).map_err(|mut error| {
                if wrong < count {
                    error.name.push_str(&format!(": copy {wrong} of {count}"));
                }
                error
            })
        }
    }
}

const CALL: &str = "cuMemcpyBatchAsync";

/// `CU_STREAM_LEGACY`, which the headers define as a cast; zero means the same stream.
const STREAM_LEGACY: u64 = 1;

/// The first copy that the one attribute is for.
static FIRST_COPY: usize = 0;

static STREAM_ORDER: Attributes = attributes(CUmemcpySrcAccessOrder::CU_MEMCPY_SRC_ACCESS_ORDER_STREAM);
static ANY_ORDER: Attributes = attributes(CUmemcpySrcAccessOrder::CU_MEMCPY_SRC_ACCESS_ORDER_ANY);

struct Attributes(CUmemcpyAttributes);

const fn attributes(order: CUmemcpySrcAccessOrder) -> Attributes {
    // Hints matter for managed and for pageable memory only, and no copy here is of either.
    let no_hint = CUmemLocation { type_: CUmemLocationType::CU_MEM_LOCATION_TYPE_INVALID, id: 0 };
    Attributes(CUmemcpyAttributes {
        srcAccessOrder: order,
        srcLocHint: no_hint,
        dstLocHint: no_hint,
        flags: 0,
    })
}

#[cfg(test)]
mod tests {
    use std::mem::{offset_of, size_of};

    use super::*;

    /// Against `CUmemcpyAttributes_v1` of cuda.h as of CUDA 13.0, which a C compiler lays out so.
    #[test]
    fn the_attributes_have_the_layout_of_the_header() {
        assert_eq!(size_of::<CUmemcpyAttributes>(), 24);
        assert_eq!(offset_of!(CUmemcpyAttributes, srcAccessOrder), 0);
        assert_eq!(offset_of!(CUmemcpyAttributes, srcLocHint), 4);
        assert_eq!(offset_of!(CUmemcpyAttributes, dstLocHint), 12);
        assert_eq!(offset_of!(CUmemcpyAttributes, flags), 20);
        assert_eq!((size_of::<CUmemLocation>(), offset_of!(CUmemLocation, id)), (8, 4));
    }
}
