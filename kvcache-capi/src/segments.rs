//! Blocks that lie in several pieces of the caller's memory.

use std::ffi::c_void;

use kvcache_core::BlockKey;
use kvcache_core::block_cache::{BlockCache, Segment};

use crate::arguments::{self, Out};
use crate::async_calls::submit;
use crate::boundary::call;
use crate::cache::{counted, kvc_cache, wrong_size};
use crate::status::Failure;
use crate::status::kvc_status;

/// One piece of a block in the caller's memory.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct kvc_segment {
    /// Its first byte. May be NULL if there are no bytes.
    pub data: *mut c_void,
    /// Its length.
    pub bytes: usize,
}

const _: () = assert!(size_of::<kvc_segment>() == size_of::<Segment>());

/// As kvc_put, for blocks in pieces: `segments` are `[blocks][segment_count / blocks]`, and those of a block are block_bytes long
/// together.
///
/// Errors: KVC_WRONG_SIZE names the block that is not, and stores nothing.
///
/// # Safety
/// As kvc_put; `segments` is NULL or `segment_count` segments, whose bytes nobody changes meanwhile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_put_segments(
    cache: *mut kvc_cache,
    keys: *const u8,
    blocks: usize,
    segments: *const kvc_segment,
    segment_count: usize,
    stored: *mut usize,
) -> kvc_status {
    let act = |core: &BlockCache, keys: &[BlockKey]| {
        // SAFETY: the caller's promise, for both.
        unsafe { core.put_segments(keys, segments_of(segments, segment_count)?) }.map_err(wrong_size)
    };
    // SAFETY: the caller's promise.
    unsafe { counted("kvc_put_segments", cache, keys, blocks, ("stored", stored), act) }
}

/// As kvc_get, for blocks in pieces. See kvc_put_segments.
///
/// # Safety
/// As kvc_get; `segments` is NULL or `segment_count` segments, which do not overlap and which nobody else uses meanwhile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_get_segments(
    cache: *mut kvc_cache,
    keys: *const u8,
    blocks: usize,
    segments: *const kvc_segment,
    segment_count: usize,
    loaded: *mut usize,
) -> kvc_status {
    let act = |core: &BlockCache, keys: &[BlockKey]| {
        // SAFETY: the caller's promise, for both.
        unsafe { core.get_segments(keys, segments_of(segments, segment_count)?) }.map_err(wrong_size)
    };
    // SAFETY: the caller's promise.
    unsafe { counted("kvc_get_segments", cache, keys, blocks, ("loaded", loaded), act) }
}

/// As kvc_put_segments, in the background: see kvc_put_async. `segments` may go when the call has returned, the bytes that they name
/// may not.
///
/// # Safety
/// As kvc_put_segments, with the bytes until the end of the ticket; `ticket` is NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_put_segments_async(
    cache: *mut kvc_cache,
    keys: *const u8,
    blocks: usize,
    segments: *const kvc_segment,
    segment_count: usize,
    ticket: *mut u64,
) -> kvc_status {
    call("kvc_put_segments_async", || {
        // SAFETY: the caller's promise.
        let (ticket, keys) = unsafe { (Out::of("ticket", ticket)?, arguments::keys(keys, blocks)?) };
        // SAFETY: the caller's promise.
        let segments = unsafe { segments_of(segments, segment_count) }?.to_vec();
        submit(cache, keys, ticket, move |core, keys: &[BlockKey]| {
            // SAFETY: the caller's promise, which holds until the ticket has ended; this is done before that.
            unsafe { core.put_segments(keys, &segments) }.map_err(wrong_size)
        })
    })
}

/// As kvc_get_segments, in the background: see kvc_get_async and kvc_put_segments_async.
///
/// # Safety
/// As kvc_get_segments, with the bytes until the end of the ticket; `ticket` is NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_get_segments_async(
    cache: *mut kvc_cache,
    keys: *const u8,
    blocks: usize,
    segments: *const kvc_segment,
    segment_count: usize,
    ticket: *mut u64,
) -> kvc_status {
    call("kvc_get_segments_async", || {
        // SAFETY: the caller's promise.
        let (ticket, keys) = unsafe { (Out::of("ticket", ticket)?, arguments::keys(keys, blocks)?) };
        // SAFETY: the caller's promise.
        let segments = unsafe { segments_of(segments, segment_count) }?.to_vec();
        submit(cache, keys, ticket, move |core, keys: &[BlockKey]| {
            // SAFETY: as in `kvc_put_segments_async`.
            unsafe { core.get_segments(keys, &segments) }.map_err(wrong_size)
        })
    })
}

/// # Safety
/// NULL or `count` segments.
pub(crate) unsafe fn segments_of<'a>(
    segments: *const kvc_segment,
    count: usize,
) -> Result<&'a [Segment], Failure> {
    // SAFETY: the caller's promise; both types are an address and a length of the size of a word.
    let segments = unsafe { arguments::slice("segments", segments.cast::<Segment>(), count) }?;
    for (position, segment) in segments.iter().enumerate() {
        let end = segment.address.checked_add(segment.bytes);
        if segment.bytes > 0 && (segment.address == 0 || end.is_none()) {
            return Err(Failure::argument(format!(
                "segments[{position}] has {} bytes from address {:#x} on: no memory is there",
                segment.bytes, segment.address
            )));
        }
    }
    Ok(segments)
}
