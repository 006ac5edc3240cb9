//! The exported functions, called as a C program calls them: with good arguments, bad ones and none.

mod support;

use std::ffi::c_void;
use std::ptr::{null, null_mut};

use kvcache::kvc_status::*;
use kvcache::*;
use support::{Cache, last_error};

const BLOCK_BYTES: usize = 4096;

fn cache() -> Cache {
    Cache::open(&format!("{{\"block_bytes\": {BLOCK_BYTES}, \"capacity_bytes\": \"1MiB\"}}"))
}

#[test]
fn what_was_put_is_got() {
    let cache = cache();
    let tokens: Vec<i32> = (0..70).collect();
    let keys = cache.keys(&tokens, 16);
    assert_eq!(keys.len(), 4 * 16);
    let data: Vec<u8> = (0..4 * BLOCK_BYTES).map(|byte| (byte / 7) as u8).collect();
    assert_eq!(cache.matched(&keys), 0);
    assert_eq!(cache.put(&keys, &data), 4);
    assert_eq!(cache.matched(&keys), 4);
    let mut out = vec![0; data.len()];
    assert_eq!(cache.get(&keys, &mut out), 4);
    assert_eq!(out, data);
    assert_eq!(cache.delete(&keys[16..32]), 1);
    assert_eq!(cache.matched(&keys), 1);
    assert_eq!(kvc_clear(cache.0), KVC_OK);
    assert_eq!(cache.matched(&keys), 0);
}

/// A growing prompt continues from its last key.
#[test]
fn keys_can_be_continued() {
    let cache = cache();
    let tokens: Vec<i32> = (0..64).collect();
    let whole = cache.keys(&tokens, 16);
    let mut keys = cache.keys(&tokens[..32], 16);
    let mut rest = vec![0; 32];
    let mut blocks = 0;
    // SAFETY: the buffers are as long as they are said to be.
    let status = unsafe {
        kvc_hash_tokens_after(
            cache.0,
            keys[16..].as_ptr(),
            tokens[32..].as_ptr(),
            32,
            16,
            null(),
            0,
            rest.as_mut_ptr(),
            &mut blocks,
        )
    };
    assert_eq!((status, blocks), (KVC_OK, 2));
    keys.extend(rest);
    assert_eq!(keys, whole);
}

#[test]
fn closed_handles_and_strangers_are_errors() {
    let cache = cache();
    let pointer = cache.0;
    drop(cache);
    let mut leading = 7;
    let stranger = Box::into_raw(Box::new(0u64));
    for (handle, words) in [
        (pointer, "is no open cache: it was closed"),
        (stranger.cast(), "is no open cache"),
        (null_mut(), "the cache is NULL"),
    ] {
        // SAFETY: no handle is ever followed.
        let status = unsafe { kvc_match(handle, [0; 16].as_ptr(), 1, &mut leading) };
        assert_eq!(status, if handle.is_null() { KVC_NULL_ARGUMENT } else { KVC_BAD_HANDLE });
        assert!(last_error().starts_with("kvc_match: ") && last_error().contains(words), "{}", last_error());
        kvc_close(handle);
    }
    assert_eq!(leading, 7, "an output is written on success alone");
    // SAFETY: allocated above.
    drop(unsafe { Box::from_raw(stranger) });
}

#[test]
fn null_and_wrong_sizes_are_errors_that_name_the_argument() {
    let cache = cache();
    let keys = [0u8; 32];
    let mut out = [0u8; BLOCK_BYTES];
    let mut count = 7;
    let refused = |status: kvc_status, expected: kvc_status, words: &str| {
        assert_eq!(status, expected, "{}", last_error());
        assert!(last_error().contains(words), "{}", last_error());
    };
    // SAFETY: what is not NULL is as long as it is said to be, or longer than what is looked at.
    unsafe {
        refused(kvc_match(cache.0, null(), 1, &mut count), KVC_NULL_ARGUMENT, "keys is NULL");
        refused(kvc_match(cache.0, keys.as_ptr(), 1, null_mut()), KVC_NULL_ARGUMENT, "leading is NULL");
        refused(
            kvc_match(cache.0, keys.as_ptr(), usize::MAX, &mut count),
            KVC_INVALID_ARGUMENT,
            "more than memory can hold",
        );
        refused(
            kvc_match(cache.0, keys.as_ptr(), 1, (&raw mut count).byte_add(1)),
            KVC_INVALID_ARGUMENT,
            "not aligned",
        );
        let data = out.as_mut_ptr().cast::<c_void>();
        let wrong = KVC_WRONG_SIZE;
        refused(
            kvc_put(cache.0, keys.as_ptr(), 2, data, BLOCK_BYTES, &mut count),
            wrong,
            "pass a buffer of exactly that size",
        );
        refused(
            kvc_get(cache.0, keys.as_ptr(), 2, data, BLOCK_BYTES, &mut count),
            wrong,
            "2 keys of blocks of 4096 bytes",
        );
        refused(
            kvc_get(cache.0, keys.as_ptr(), 2, null_mut(), BLOCK_BYTES, &mut count),
            KVC_NULL_ARGUMENT,
            "out is NULL",
        );
        let tokens = [1, -5];
        let hashed = kvc_hash_tokens(cache.0, tokens.as_ptr(), 2, 0, null(), 0, out.as_mut_ptr(), &mut count);
        refused(hashed, KVC_INVALID_ARGUMENT, "block_tokens is 0");
        let hashed = kvc_hash_tokens(cache.0, tokens.as_ptr(), 2, 1, null(), 0, out.as_mut_ptr(), &mut count);
        refused(hashed, KVC_INVALID_ARGUMENT, "token -5");
        assert_eq!(count, 7);
        // Nothing is asked for, so nothing has to be there.
        assert_eq!(kvc_match(cache.0, null(), 0, &mut count), KVC_OK);
        assert_eq!(count, 0);
    }
}

#[test]
fn configurations_are_checked() {
    let refused = |json: &str| {
        let mut out = null_mut();
        let json = std::ffi::CString::new(json).unwrap();
        // SAFETY: a text and a place.
        let status = unsafe { kvc_open(json.as_ptr(), &mut out) };
        assert!(out.is_null());
        (status, last_error())
    };
    let (status, text) = refused("{\"block_bytes\": 4096");
    assert_eq!(status, KVC_BAD_CONFIG);
    assert!(text.starts_with("kvc_open: the configuration is not JSON: EOF"), "{text}");
    for (json, words) in [
        ("{}", "setting \"block_bytes\" is missing: give a number of bytes"),
        ("{\"block_bytes\": 4096, \"capacity_byte\": 1}", "did you mean \"capacity_bytes\"?"),
        ("{\"block_bytes\": 0, \"capacity_bytes\": 1}", "block_bytes is 0"),
        ("{\"block_bytes\": 4096, \"capacity_bytes\": 1}", "raise capacity_bytes"),
        ("{\"block_bytes\": 1, \"capacity_bytes\": 1, \"eviction\": \"lro\"}", "lru"),
        ("{\"block_bytes\": 1, \"capacity_bytes\": 1, \"hash\": \"md5\"}", "unknown hash \"md5\""),
        ("{\"block_bytes\": 1, \"capacity_bytes\": 1, \"remote\": \"tcp://a:1\"}", "namespace"),
        ("{\"block_bytes\": 1, \"capacity_bytes\": 1, \"tls_ca\": \"x\"}", "of no use without \"remote\""),
        (
            "{\"block_bytes\": 1, \"capacity_bytes\": 1, \"slab_path\": \"/dev/shm\", \"namespace\": \"\"}",
            "namespace is empty",
        ),
        (
            "{\"block_bytes\": 1, \"capacity_bytes\": 1, \"slab_path\": \"/no/such\", \"namespace\": \"a\"}",
            "slab_path /no/such does not exist, and would be on a disk",
        ),
        ("{\"block_bytes\": 64, \"capacity_bytes\": \"1048576TiB\"}", "is above this machine's memory of"),
    ] {
        let (status, text) = refused(json);
        assert_eq!(status, KVC_BAD_CONFIG, "{text}");
        assert!(text.contains(words), "{text}");
    }
}

#[test]
fn headers_that_are_newer_are_refused() {
    let mut out = null_mut();
    let json = c"{\"block_bytes\": 4096, \"capacity_bytes\": 8192}";
    // SAFETY: a text, a place, and structures of the size that they say.
    unsafe {
        assert_eq!(kvc_open_for_abi(KVC_ABI_VERSION + 1, json.as_ptr(), &mut out), KVC_VERSION_MISMATCH);
        assert!(last_error().contains("install a library as new as the header"), "{}", last_error());

        #[repr(C)]
        struct Longer {
            config: kvc_config,
            new_field: u64,
        }
        let mut longer = Longer { config: support::config(), new_field: 0 };
        longer.config.struct_size = size_of::<Longer>();
        longer.config.block_bytes = 4096;
        longer.config.capacity_bytes = 8192;
        assert_eq!(kvc_open_config(&raw const longer.config, &mut out), KVC_OK, "{}", last_error());
        kvc_close(out);
        out = null_mut();
        longer.new_field = 1;
        assert_eq!(kvc_open_config(&raw const longer.config, &mut out), KVC_VERSION_MISMATCH);
        for struct_size in [0, 8, 71, 1 << 20] {
            longer.config.struct_size = struct_size;
            assert_eq!(kvc_open_config(&raw const longer.config, &mut out), KVC_INVALID_ARGUMENT);
            assert!(last_error().contains("sizeof(kvc_config)"), "{}", last_error());
        }
    }
    assert!(out.is_null());
}

#[test]
fn a_structure_and_its_json_open_a_cache() {
    let mut config = support::config();
    config.block_bytes = 4096;
    config.capacity_bytes = 8192;
    config.eviction = c"lru".as_ptr();
    config.more_json = c"{\"hash\": \"blake3\"}".as_ptr();
    let mut out = null_mut();
    // SAFETY: a structure of the size that it says, and a place.
    unsafe {
        assert_eq!(kvc_open_config(&config, &mut out), KVC_OK, "{}", last_error());
        kvc_close(out);
        config.more_json = c"{\"eviction\": \"lru\"}".as_ptr();
        assert_eq!(kvc_open_config(&config, &mut out), KVC_BAD_CONFIG);
    }
    assert!(last_error().contains("set it in one place"), "{}", last_error());
}

#[test]
fn names_and_versions_are_said() {
    let text = |pointer| {
        // SAFETY: static texts.
        unsafe { std::ffi::CStr::from_ptr(pointer) }.to_str().unwrap().to_owned()
    };
    assert_eq!(text(kvc_version()), env!("CARGO_PKG_VERSION"));
    assert_eq!(kvc_abi_version(), KVC_ABI_VERSION);
    assert_eq!(text(kvc_status_name(0)), "KVC_OK");
    assert_eq!(text(kvc_status_name(14)), "KVC_INTERNAL");
    assert_eq!(text(kvc_status_name(-3)), "unknown status");
    // SAFETY: texts or NULL.
    unsafe {
        assert_eq!(
            [kvc_has_feature(c"rdma".as_ptr()), kvc_has_feature(c"x".as_ptr()), kvc_has_feature(null())],
            [1, 0, 0]
        );
    }
}
