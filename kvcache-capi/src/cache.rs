//! The cache: open it, name blocks, store and load them.

use std::ffi::{c_char, c_void};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use kvcache_assembly::Cache;
use kvcache_assembly::named_stats::{self, Number};
use kvcache_core::BlockKey;
use kvcache_core::block_cache::{BlockCache, WrongBuffer};

use crate::arguments::{self, Out};
use crate::background::Background;
use crate::boundary::{self, Object, Opened, call, with};
use crate::config::{self, Config, kvc_config};
use crate::defect::Defect;
use crate::handles::Handles;
use crate::refusal::refused;
use crate::status::Failure;
use crate::status::kvc_status::{self, KVC_OK, KVC_PENDING, KVC_SYSTEM, KVC_WRONG_SIZE};
use crate::version::{KVC_ABI_VERSION, check_abi};

/// A cache of blocks of one size. Closed by kvc_close. All functions that take one may be called from any number of threads at a
/// time.
#[expect(non_camel_case_types, reason = "the name of the header")]
pub struct kvc_cache {
    _opaque: [u8; 0],
}

/// What is behind a [`kvc_cache`].
pub(crate) struct OpenCache {
    pub(crate) cache: Cache,
    pub(crate) background: Arc<Background>,
}

impl OpenCache {
    pub(crate) fn numbers(&self) -> Vec<Number> {
        named_stats::cache(&self.cache.core().stats()).collect()
    }
}

impl Drop for OpenCache {
    /// Before the cache goes: whoever waits for a ticket holds the background as well.
    fn drop(&mut self) {
        self.background.close();
    }
}

impl Object for OpenCache {
    const NAME: &'static str = "cache";
    const OPENED_BY: &'static str = "kvc_open";

    fn table() -> &'static Handles<Opened<Self>> {
        static TABLE: LazyLock<Handles<Opened<OpenCache>>> = LazyLock::new(|| Handles::new(1));
        &TABLE
    }

    fn defect(&self) -> Arc<Defect> {
        self.background.defect()
    }
}

/// Opens a cache. `config_json` is an object of settings; "block_bytes" and "capacity_bytes" are needed, and docs/c-api.md lists
/// them all. Takes milliseconds: memory is taken, and servers are connected to, in the background.
///
/// The header's macro of the same name passes the header's version as well; this function trusts that it fits.
///
/// Errors: KVC_BAD_CONFIG names key, place, value and remedy; KVC_SYSTEM if memory or a thread is refused. Any thread.
///
/// # Safety
/// `config_json` is NULL or ends with a NUL; `out` is NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_open(config_json: *const c_char, out: *mut *mut kvc_cache) -> kvc_status {
    // SAFETY: the caller's promise.
    unsafe { kvc_open_for_abi(KVC_ABI_VERSION, config_json, out) }
}

/// As kvc_open, for a program whose header has this KVC_ABI_VERSION.
///
/// Errors: KVC_VERSION_MISMATCH if the header is newer than the library; else as kvc_open.
///
/// # Safety
/// As kvc_open.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_open_for_abi(
    abi_version: u32,
    config_json: *const c_char,
    out: *mut *mut kvc_cache,
) -> kvc_status {
    call("kvc_open", || {
        check_abi(abi_version)?;
        // SAFETY: the caller's promise.
        let out = unsafe { Out::of("out", out) }?;
        // SAFETY: the caller's promise.
        let text = unsafe { arguments::text("config_json", config_json) }?;
        open(&config::of_json(text)?, out)
    })
}

/// Opens a cache from a structure. See kvc_open.
///
/// Errors: as kvc_open_for_abi; KVC_VERSION_MISMATCH if fields are used that this library does not have. Any thread.
///
/// # Safety
/// `config` is NULL or as long as its first field says, with texts that are NULL or end with a NUL; `out` is NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_open_config(config: *const kvc_config, out: *mut *mut kvc_cache) -> kvc_status {
    call("kvc_open_config", || {
        // SAFETY: the caller's promise.
        let out = unsafe { Out::of("out", out) }?;
        // SAFETY: the caller's promise.
        let config = unsafe { arguments::growing("config", config) }?;
        check_abi(config.abi_version)?;
        // SAFETY: the caller's promise.
        open(&unsafe { config::of_struct(&config) }?, out)
    })
}

fn open(config: &Config, out: Out<*mut kvc_cache>) -> Result<(), Failure> {
    let background = Background::new(config.async_threads, config.async_tickets);
    let background = background.map_err(|error| {
        Failure::new(KVC_SYSTEM, format!("cannot open a file descriptor for events: {error}"))
    })?;
    let cache = config.cache.open().map_err(refused)?;
    for warning in cache.warnings() {
        log::warn!("{warning}");
    }
    log::info!(
        "cache of {} blocks of {} bytes{}",
        cache.core().stats().directory.slot_count,
        cache.core().block_bytes(),
        if cache.has_remote() { ", with servers" } else { "" }
    );
    out.write(boundary::open(OpenCache { cache, background: Arc::new(background) })?);
    Ok(())
}

/// Closes a cache and gives its memory back, after the calls that use it have returned. NULL is allowed, and so is a handle that
/// was closed before: nothing happens then. Blocks in `slab_path` and in L2 stay for others. While there are leases and fills of it,
/// its memory and its threads stay until the last of them ends.
///
/// Waits for calls under way, which takes as long as they do, and so does whoever closes the same cache meanwhile: after any kvc_close
/// of it has returned, the library uses no buffer of its tickets any more. Any thread, but not the log callback.
#[unsafe(no_mangle)]
pub extern "C" fn kvc_close(cache: *mut kvc_cache) {
    if !cache.is_null() {
        // The words of a failure stay for kvc_last_error: there is nobody to tell.
        let _ = call("kvc_close", || boundary::close::<OpenCache, _, _>(cache, drop));
    }
}

/// Keys of the whole blocks of `count` tokens, as `[blocks][16]` bytes in `keys`, their number in `*blocks`; a tail shorter than
/// a block is left out. With `keys` NULL only the number is written: it is count / block_tokens. `extra` separates what tokens
/// do not say, such as an adapter or a tenant's salt; NULL with 0 bytes for none.
///
/// `parent` is NULL for the first tokens of a prompt, or the 16 bytes of the last key before `tokens`, for prompts that grow.
/// Linear: about 0.2 us for a block of 16 tokens. Any thread.
///
/// # Safety
/// `tokens`, `extra` and `parent` are NULL or readable; `keys` is NULL or 16 * (count / block_tokens) bytes are writable there;
/// `blocks` is NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_hash_tokens_after(
    cache: *const kvc_cache,
    parent: *const u8,
    tokens: *const i32,
    count: usize,
    block_tokens: usize,
    extra: *const c_void,
    extra_bytes: usize,
    keys: *mut u8,
    blocks: *mut usize,
) -> kvc_status {
    call("kvc_hash_tokens", || {
        // SAFETY: the caller's promise.
        let blocks = unsafe { Out::of("blocks", blocks) }?;
        // SAFETY: the caller's promise.
        let tokens = unsafe { arguments::slice("tokens", tokens, count) }?;
        // SAFETY: the caller's promise.
        let extra = unsafe { arguments::bytes("extra", extra, extra_bytes) }?;
        if block_tokens == 0 {
            return Err(Failure::argument("block_tokens is 0: use 1 or more"));
        }
        let whole = count / block_tokens;
        with::<OpenCache, _, _>(cache, |open| {
            if keys.is_null() {
                return Ok(());
            }
            // SAFETY: the caller's promise.
            let place = unsafe { arguments::slice_mut("keys", keys.cast::<BlockKey>(), whole) }?;
            // SAFETY: the caller's promise.
            let parent = unsafe { arguments::optional("parent", parent.cast::<BlockKey>()) }?;
            let made = open
                .cache
                .keys()
                .after(parent, tokens, block_tokens, extra)
                .map_err(|error| Failure::argument(error.to_string()))?;
            place.copy_from_slice(&made);
            Ok(())
        })?;
        blocks.write(whole);
        Ok(())
    })
}

/// As kvc_hash_tokens_after for the first tokens of a prompt.
///
/// # Safety
/// As kvc_hash_tokens_after.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_hash_tokens(
    cache: *const kvc_cache,
    tokens: *const i32,
    count: usize,
    block_tokens: usize,
    extra: *const c_void,
    extra_bytes: usize,
    keys: *mut u8,
    blocks: *mut usize,
) -> kvc_status {
    // SAFETY: the caller's promise.
    unsafe {
        kvc_hash_tokens_after(
            cache,
            std::ptr::null(),
            tokens,
            count,
            block_tokens,
            extra,
            extra_bytes,
            keys,
            blocks,
        )
    }
}

/// How many leading blocks are here, or in L2, as `*leading`. Under a microsecond for a short prefix without L2; with L2 a round
/// trip, bounded by 50 ms. Any thread.
///
/// # Safety
/// `keys` is NULL or 16 * blocks bytes; `leading` is NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_match(
    cache: *mut kvc_cache,
    keys: *const u8,
    blocks: usize,
    leading: *mut usize,
) -> kvc_status {
    let act = |core: &BlockCache, keys: &[BlockKey]| Ok(core.match_prefix(keys));
    // SAFETY: the caller's promise.
    unsafe { counted("kvc_match", cache, keys, blocks, ("leading", leading), act) }
}

/// Stores blocks, which lie one after the other in `data`; `keys` is a prefix from its first block on. `*stored` is the number of
/// leading blocks that the cache holds then: fewer than asked for if everything else is in use, which is no error.
///
/// Copies on the caller's thread, and on "copy_threads" more. Goes to L2 in the background. Any thread.
///
/// Errors: KVC_WRONG_SIZE unless `bytes` is blocks * block_bytes; nothing is stored then.
///
/// # Safety
/// `keys` is NULL or 16 * blocks bytes; `data` is NULL or `bytes` bytes, which nobody changes meanwhile; `stored` is NULL or
/// writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_put(
    cache: *mut kvc_cache,
    keys: *const u8,
    blocks: usize,
    data: *const c_void,
    bytes: usize,
    stored: *mut usize,
) -> kvc_status {
    let act = |core: &BlockCache, keys: &[BlockKey]| {
        // SAFETY: the caller's promise.
        let data = unsafe { arguments::bytes("data", data, bytes) }?;
        core.put(keys, data).map_err(wrong_size)
    };
    // SAFETY: the caller's promise.
    unsafe { counted("kvc_put", cache, keys, blocks, ("stored", stored), act) }
}

/// Copies the leading blocks that the cache has, here or in L2, into `out`, one after the other; `*loaded` is their number. What
/// `out` holds after them is undefined. A fault is a miss.
///
/// Copies on the caller's thread, and on "copy_threads" more. What comes from L2 is verified; it is waited for 2 s at most. Any
/// thread.
///
/// Errors: KVC_WRONG_SIZE unless `bytes` is blocks * block_bytes.
///
/// # Safety
/// `keys` is NULL or 16 * blocks bytes; `out` is NULL or `bytes` bytes, which nobody else uses meanwhile; `loaded` is NULL or
/// writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_get(
    cache: *mut kvc_cache,
    keys: *const u8,
    blocks: usize,
    out: *mut c_void,
    bytes: usize,
    loaded: *mut usize,
) -> kvc_status {
    let act = |core: &BlockCache, keys: &[BlockKey]| {
        // SAFETY: the caller's promise.
        let out = unsafe { arguments::bytes_mut("out", out, bytes) }?;
        core.get(keys, out).map_err(wrong_size)
    };
    // SAFETY: the caller's promise.
    unsafe { counted("kvc_get", cache, keys, blocks, ("loaded", loaded), act) }
}

/// Removes blocks here, in L2 and for a later process; `*deleted` is how many there were. Any thread.
///
/// # Safety
/// `keys` is NULL or 16 * blocks bytes; `deleted` is NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_delete(
    cache: *mut kvc_cache,
    keys: *const u8,
    blocks: usize,
    deleted: *mut usize,
) -> kvc_status {
    let act = |core: &BlockCache, keys: &[BlockKey]| Ok(core.delete(keys));
    // SAFETY: the caller's promise.
    unsafe { counted("kvc_delete", cache, keys, blocks, ("deleted", deleted), act) }
}

/// Removes everything, here and for a later process. What is in L2 stays there for others; this cache neither finds it nor shares
/// anything with them from now on. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn kvc_clear(cache: *mut kvc_cache) -> kvc_status {
    call("kvc_clear", || {
        with::<OpenCache, _, _>(cache, |open| {
            open.cache.core().clear();
            Ok(())
        })
    })
}

/// Waits until no block is on its way to L2, for `timeout_ms` milliseconds at most: then KVC_PENDING. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn kvc_flush(cache: *mut kvc_cache, timeout_ms: u64) -> kvc_status {
    boundary::call_for("kvc_flush", || {
        with::<OpenCache, _, _>(cache, |open| {
            let flushed = open.cache.core().flush(Duration::from_millis(timeout_ms));
            Ok(if flushed { KVC_OK } else { KVC_PENDING })
        })
    })
}

/// The body of the exported function `name`, which does something with the blocks of `keys` and answers with a number of them, in the
/// place that has its own name there.
///
/// # Safety
/// `keys` is NULL or 16 * blocks bytes; the place is NULL or writable.
pub(crate) unsafe fn counted(
    name: &'static str,
    cache: *const kvc_cache,
    keys: *const u8,
    blocks: usize,
    (what, place): (&str, *mut usize),
    act: impl FnOnce(&BlockCache, &[BlockKey]) -> Result<usize, Failure>,
) -> kvc_status {
    call(name, || {
        // SAFETY: the caller's promise.
        let (count, keys) = unsafe { (Out::of(what, place)?, arguments::keys(keys, blocks)?) };
        count.write(with::<OpenCache, _, _>(cache, |open| act(open.cache.core(), keys))?);
        Ok(())
    })
}

pub(crate) fn wrong_size(error: WrongBuffer) -> Failure {
    Failure::new(KVC_WRONG_SIZE, error.to_string())
}
