//! libibverbs, opened at run time: a table of the functions that are used.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::OnceLock;

use super::abi::{
    CompletionChannel, CompletionQueue, Context, Device, DeviceAttributes, Domain, GidEntry, MemoryRegion,
    PortAttributes, QueuePair, QueuePairAttributes, QueuePairInit,
};
use crate::verbs::error::Unavailable;

/// Declares the table: required functions, then functions that older libraries lack.
macro_rules! table {
    (
        required { $($name:ident = $symbol:literal : $kind:ty;)* }
        optional { $($optional:ident = $optional_symbol:literal : $optional_kind:ty;)* }
    ) => {
        /// The functions of libibverbs. Lives for the whole process: drivers cannot be unloaded.
        pub(in crate::verbs) struct Library {
            $(pub(in crate::verbs) $name: $kind,)*
            $(pub(in crate::verbs) $optional: Option<$optional_kind>,)*
        }

        impl Library {
            fn look_up(handle: *mut c_void) -> Result<Self, Unavailable> {
                Ok(Library {
                    $($name: {
                        let address = symbol(handle, $symbol)
                            .ok_or(Unavailable::OldLibrary { missing: $symbol.to_str().unwrap_or("a function") })?;
                        // SAFETY: the symbol is the function of this name, whose signature in C is this type.
                        unsafe { std::mem::transmute::<*mut c_void, $kind>(address) }
                    },)*
                    $($optional: symbol(handle, $optional_symbol).map(|address| {
                        // SAFETY: as above.
                        unsafe { std::mem::transmute::<*mut c_void, $optional_kind>(address) }
                    }),)*
                })
            }
        }
    };
}

table! {
    required {
        get_device_list = c"ibv_get_device_list": unsafe extern "C" fn(*mut c_int) -> *mut *mut Device;
        free_device_list = c"ibv_free_device_list": unsafe extern "C" fn(*mut *mut Device);
        get_device_name = c"ibv_get_device_name": unsafe extern "C" fn(*mut Device) -> *const c_char;
        open_device = c"ibv_open_device": unsafe extern "C" fn(*mut Device) -> *mut Context;
        close_device = c"ibv_close_device": unsafe extern "C" fn(*mut Context) -> c_int;
        query_device = c"ibv_query_device": unsafe extern "C" fn(*mut Context, *mut DeviceAttributes) -> c_int;
        query_port = c"ibv_query_port": unsafe extern "C" fn(*mut Context, u8, *mut PortAttributes) -> c_int;
        query_gid = c"ibv_query_gid": unsafe extern "C" fn(*mut Context, u8, c_int, *mut [u8; 16]) -> c_int;
        alloc_pd = c"ibv_alloc_pd": unsafe extern "C" fn(*mut Context) -> *mut Domain;
        dealloc_pd = c"ibv_dealloc_pd": unsafe extern "C" fn(*mut Domain) -> c_int;
        reg_mr = c"ibv_reg_mr": unsafe extern "C" fn(*mut Domain, *mut c_void, usize, c_int) -> *mut MemoryRegion;
        dereg_mr = c"ibv_dereg_mr": unsafe extern "C" fn(*mut MemoryRegion) -> c_int;
        create_comp_channel = c"ibv_create_comp_channel": unsafe extern "C" fn(*mut Context) -> *mut CompletionChannel;
        destroy_comp_channel = c"ibv_destroy_comp_channel": unsafe extern "C" fn(*mut CompletionChannel) -> c_int;
        create_cq = c"ibv_create_cq":
            unsafe extern "C" fn(*mut Context, c_int, *mut c_void, *mut CompletionChannel, c_int) -> *mut CompletionQueue;
        destroy_cq = c"ibv_destroy_cq": unsafe extern "C" fn(*mut CompletionQueue) -> c_int;
        get_cq_event = c"ibv_get_cq_event":
            unsafe extern "C" fn(*mut CompletionChannel, *mut *mut CompletionQueue, *mut *mut c_void) -> c_int;
        ack_cq_events = c"ibv_ack_cq_events": unsafe extern "C" fn(*mut CompletionQueue, u32);
        create_qp = c"ibv_create_qp": unsafe extern "C" fn(*mut Domain, *mut QueuePairInit) -> *mut QueuePair;
        modify_qp = c"ibv_modify_qp": unsafe extern "C" fn(*mut QueuePair, *mut QueuePairAttributes, c_int) -> c_int;
        destroy_qp = c"ibv_destroy_qp": unsafe extern "C" fn(*mut QueuePair) -> c_int;
    }
    optional {
        query_gid_ex = c"_ibv_query_gid_ex":
            unsafe extern "C" fn(*mut Context, u32, u32, *mut GidEntry, u32, usize) -> c_int;
        reg_dmabuf_mr = c"ibv_reg_dmabuf_mr":
            unsafe extern "C" fn(*mut Domain, u64, usize, u64, c_int, c_int) -> *mut MemoryRegion;
    }
}

impl Library {
    /// The library, opened once per process. The first answer is kept, good or bad.
    ///
    /// # Errors
    /// It cannot be opened, or is older than rdma-core (it lacks a function).
    pub(in crate::verbs) fn get() -> Result<&'static Library, Unavailable> {
        static LIBRARY: OnceLock<Result<Library, Unavailable>> = OnceLock::new();
        LIBRARY.get_or_init(|| Library::look_up(open(LIBRARY_NAME)?)).as_ref().map_err(Clone::clone)
    }
}

fn open(name: &CStr) -> Result<*mut c_void, Unavailable> {
    // SAFETY: a NUL-terminated name. Loading runs the library's constructors, which expect nothing of the process.
    // The symbols stay local, so that they cannot stand in for another copy that some other library brought.
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

fn symbol(handle: *mut c_void, name: &CStr) -> Option<*mut c_void> {
    // SAFETY: an open handle, which is never closed, and a NUL-terminated name. Of several versions of a symbol the
    // loader returns the newest.
    let address = unsafe { libc::dlsym(handle, name.as_ptr()) };
    (!address.is_null()).then_some(address)
}

const LIBRARY_NAME: &CStr = c"libibverbs.so.1";

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
    fn a_library_without_the_functions_is_too_old() {
        // SAFETY: the handle of the program itself, which has none of these functions.
        let handle = unsafe { libc::dlopen(std::ptr::null(), libc::RTLD_NOW) };
        let Err(Unavailable::OldLibrary { missing }) = Library::look_up(handle) else {
            panic!("this program does not link libibverbs");
        };
        assert_eq!(missing, "ibv_get_device_list");
    }
}
