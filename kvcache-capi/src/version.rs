//! What this library is, and what it can do.

use std::ffi::{CStr, c_char};

use crate::arguments;
use crate::status::Failure;
use crate::status::kvc_status::KVC_VERSION_MISMATCH;

/// The version of the binary interface that a header describes. It grows with every addition; a change that breaks
/// programs comes with another soname.
pub const KVC_ABI_VERSION: u32 = 1;

/// Words of [`kvc_has_feature`].
const FEATURES: &[&CStr] =
    &[c"shared-memory", c"remote", c"tls", c"rdma", c"cuda", c"async", c"in-place", c"engine-halves"];

/// The library's version, such as "0.1.0". A static text, never NULL.
///
/// Any thread, at any time.
#[unsafe(no_mangle)]
pub extern "C" fn kvc_version() -> *const c_char {
    const VERSION: &CStr =
        match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
            Ok(version) => version,
            Err(_) => panic!("a version without NUL"),
        };
    VERSION.as_ptr()
}

/// The version of the binary interface that the library has: programs may use headers up to this KVC_ABI_VERSION.
///
/// Any thread, at any time.
#[unsafe(no_mangle)]
pub extern "C" fn kvc_abi_version() -> u32 {
    KVC_ABI_VERSION
}

/// 1 if this build of the library can do `feature`, 0 if not or if it does not know the word: "shared-memory", "remote",
/// "tls", "rdma", "cuda", "async", "in-place", "engine-halves". Whether the machine has what it needs, such as a driver, is
/// found out when a handle is opened.
///
/// Any thread, at any time.
///
/// # Safety
/// `feature` is NULL or a string that ends with a NUL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_has_feature(feature: *const c_char) -> i32 {
    // SAFETY: the caller's promise.
    let feature = unsafe { arguments::optional_text("feature", feature) };
    let known = |name: &str| FEATURES.iter().any(|known| known.to_bytes() == name.as_bytes());
    i32::from(matches!(feature, Ok(Some(name)) if known(name)))
}

/// Refuses programs whose header is newer than the library.
pub(crate) fn check_abi(header: u32) -> Result<(), Failure> {
    let text = match header {
        1..=KVC_ABI_VERSION => return Ok(()),
        0 => "the header's version of the interface is 0: pass KVC_ABI_VERSION".to_owned(),
        _ => format!(
            "the program was compiled with a header of interface version {header}, and this library, {}, has version \
             {KVC_ABI_VERSION}: install a library as new as the header",
            env!("CARGO_PKG_VERSION")
        ),
    };
    Err(Failure::new(KVC_VERSION_MISMATCH, text))
}
