//! Blocks that come from and go to the memory of a device.

use kvcache_core::BlockKey;
use kvcache_core::block_cache::{BlockCache, WrongBuffer};

use crate::arguments;
use crate::cache::{counted, kvc_cache, wrong_size};
use crate::segments::{kvc_segment, segments_of};
use crate::status::Failure;
use crate::status::kvc_status::{self, KVC_UNAVAILABLE};

/// As kvc_put_segments, from the memory of the device that the setting "device" names. `stream` is the address of the raw handle of the
/// engine's stream (a CUstream as a number): what it holds is waited for first, on the device. Returns when the bytes have left the
/// device. Where copies fail, or `stream` is NULL, fewer blocks are stored; kvc_problems says why.
///
/// Errors: KVC_UNAVAILABLE without the setting "device"; else as kvc_put_segments.
///
/// # Safety
/// As kvc_put_segments, for device memory, from the moment that the stream has come to what it holds now; `stream` is NULL or readable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_put_device_segments(
    cache: *mut kvc_cache,
    keys: *const u8,
    blocks: usize,
    segments: *const kvc_segment,
    segment_count: usize,
    stream: *const u64,
    stored: *mut usize,
) -> kvc_status {
    let act = |core: &BlockCache, keys: &[BlockKey]| {
        // SAFETY: the caller's promise.
        let (segments, stream) =
            unsafe { (segments_of(segments, segment_count)?, arguments::optional("stream", stream)?) };
        // SAFETY: the caller's promise.
        unsafe { core.put_device_segments(keys, segments, stream) }.map_err(refused)
    };
    // SAFETY: the caller's promise.
    unsafe { counted("kvc_put_device_segments", cache, keys, blocks, ("stored", stored), act) }
}

/// As kvc_get_segments, to the memory of the device that the setting "device" names. What `stream` holds is waited for first, since it
/// may still use what is overwritten. Returns when the bytes have arrived; work that is put into any stream after that finds them. See
/// kvc_put_device_segments.
///
/// # Safety
/// As kvc_get_segments, for device memory, from the moment that the stream has come to what it holds now; `stream` is NULL or readable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_get_device_segments(
    cache: *mut kvc_cache,
    keys: *const u8,
    blocks: usize,
    segments: *const kvc_segment,
    segment_count: usize,
    stream: *const u64,
    loaded: *mut usize,
) -> kvc_status {
    let act = |core: &BlockCache, keys: &[BlockKey]| {
        // SAFETY: the caller's promise.
        let (segments, stream) =
            unsafe { (segments_of(segments, segment_count)?, arguments::optional("stream", stream)?) };
        // SAFETY: the caller's promise.
        unsafe { core.get_device_segments(keys, segments, stream) }.map_err(refused)
    };
    // SAFETY: the caller's promise.
    unsafe { counted("kvc_get_device_segments", cache, keys, blocks, ("loaded", loaded), act) }
}

fn refused(error: WrongBuffer) -> Failure {
    match error {
        WrongBuffer::NoDevice => Failure::new(KVC_UNAVAILABLE, error.to_string()),
        error => wrong_size(error),
    }
}
