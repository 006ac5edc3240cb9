//! The calls of a C program, in Rust's words.

#![allow(dead_code, reason = "every test file uses a part")]

use std::ffi::{CStr, CString};
use std::ptr::{null, null_mut};

use kvcache::kvc_status::KVC_OK;
use kvcache::*;

pub(crate) fn last_error() -> String {
    // SAFETY: never NULL, and of this thread.
    unsafe { CStr::from_ptr(kvc_last_error()) }.to_str().expect("words are UTF-8").to_owned()
}

pub(crate) fn config() -> kvc_config {
    kvc_config {
        struct_size: size_of::<kvc_config>(),
        abi_version: KVC_ABI_VERSION,
        copy_threads: 0,
        block_bytes: 0,
        capacity_bytes: 0,
        namespace_name: null(),
        eviction: null(),
        slab_path: null(),
        remote: null(),
        more_json: null(),
    }
}

/// An open cache.
pub(crate) struct Cache(pub(crate) *mut kvc_cache);

// SAFETY: a handle may be used from any thread.
unsafe impl Send for Cache {}
// SAFETY: as above.
unsafe impl Sync for Cache {}

impl Cache {
    pub(crate) fn open(json: &str) -> Self {
        let json = CString::new(json).expect("no NUL");
        let mut out = null_mut();
        // SAFETY: a text and a place.
        assert_eq!(unsafe { kvc_open(json.as_ptr(), &mut out) }, KVC_OK, "{}", last_error());
        Self(out)
    }

    pub(crate) fn keys(&self, tokens: &[i32], block_tokens: usize) -> Vec<u8> {
        let mut keys = vec![0; tokens.len() / block_tokens * 16];
        let mut blocks = 0;
        // SAFETY: buffers of the lengths that are said.
        let status = unsafe {
            kvc_hash_tokens(
                self.0,
                tokens.as_ptr(),
                tokens.len(),
                block_tokens,
                null(),
                0,
                keys.as_mut_ptr(),
                &mut blocks,
            )
        };
        assert_eq!((status, blocks * 16), (KVC_OK, keys.len()), "{}", last_error());
        keys
    }

    pub(crate) fn matched(&self, keys: &[u8]) -> usize {
        self.count(|count| {
            // SAFETY: buffers of the lengths that are said; so below.
            unsafe { kvc_match(self.0, keys.as_ptr(), keys.len() / 16, count) }
        })
    }

    pub(crate) fn put(&self, keys: &[u8], data: &[u8]) -> usize {
        self.count(|count| {
            // SAFETY: as above.
            unsafe {
                kvc_put(self.0, keys.as_ptr(), keys.len() / 16, data.as_ptr().cast(), data.len(), count)
            }
        })
    }

    pub(crate) fn get(&self, keys: &[u8], out: &mut [u8]) -> usize {
        self.count(|count| {
            // SAFETY: as above.
            unsafe {
                kvc_get(self.0, keys.as_ptr(), keys.len() / 16, out.as_mut_ptr().cast(), out.len(), count)
            }
        })
    }

    pub(crate) fn delete(&self, keys: &[u8]) -> usize {
        self.count(|count| {
            // SAFETY: as above.
            unsafe { kvc_delete(self.0, keys.as_ptr(), keys.len() / 16, count) }
        })
    }

    fn count(&self, call: impl FnOnce(*mut usize) -> kvc_status) -> usize {
        let mut count = usize::MAX;
        assert_eq!(call(&mut count), KVC_OK, "{}", last_error());
        count
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        kvc_close(self.0);
    }
}
