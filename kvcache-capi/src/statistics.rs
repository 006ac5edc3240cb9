//! What a cache has done, and what is wrong with it.

use std::ffi::c_char;

use kvcache_assembly::named_stats::{self, Number};

use crate::arguments::Buffer;
use crate::boundary::{call, with};
use crate::cache::{OpenCache, kvc_cache};
use crate::status::kvc_status;

/// Every count of a cache as one JSON object of numbers, by the names of docs/metrics.md, with a NUL.
///
/// `*bytes` is the size of `buffer` when the call is made and that of the text, its NUL included, when it returns. With `buffer`
/// NULL only the size is said. KVC_BUFFER_TOO_SMALL if it does not fit: `*bytes` is what is needed then. Counts grow between
/// two calls: leave some room. Any thread.
///
/// # Safety
/// `buffer` is NULL or `*bytes` bytes are writable there; `bytes` is NULL or readable and writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_stats_json(
    cache: *const kvc_cache,
    buffer: *mut c_char,
    bytes: *mut usize,
) -> kvc_status {
    call("kvc_stats_json", || {
        // SAFETY: the caller's promise.
        let buffer = unsafe { Buffer::of(buffer, bytes) }?;
        buffer.write_text(&json(with::<OpenCache, _, _>(cache, |open| Ok(open.numbers()))?))
    })
}

/// The same numbers in Prometheus' text format, as metrics that begin with "kvcache_". `name` tells caches of one process apart:
/// it becomes the label "cache" of every line; NULL for none. Sizes as with kvc_stats_json. Any thread.
///
/// # Safety
/// As kvc_stats_json; `name` is NULL or ends with a NUL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_stats_prometheus(
    cache: *const kvc_cache,
    name: *const c_char,
    buffer: *mut c_char,
    bytes: *mut usize,
) -> kvc_status {
    call("kvc_stats_prometheus", || {
        // SAFETY: the caller's promise.
        let buffer = unsafe { Buffer::of(buffer, bytes) }?;
        // SAFETY: the caller's promise.
        let label = unsafe { crate::arguments::optional_text("name", name) }?.map(|name| ("cache", name));
        let numbers = with::<OpenCache, _, _>(cache, |open| Ok(open.numbers()))?;
        buffer.write_text(&named_stats::prometheus(numbers, label.as_slice()))
    })
}

/// What is wrong now, one line each with its remedy: servers that cannot be reached, memory that could not be taken. An empty text
/// if nothing is. Sizes as with kvc_stats_json. May take a millisecond. Any thread.
///
/// # Safety
/// As kvc_stats_json.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_problems(
    cache: *const kvc_cache,
    buffer: *mut c_char,
    bytes: *mut usize,
) -> kvc_status {
    call("kvc_problems", || {
        // SAFETY: the caller's promise.
        let buffer = unsafe { Buffer::of(buffer, bytes) }?;
        let problems = with::<OpenCache, _, _>(cache, |open| {
            Ok([open.cache.warnings(), open.cache.problems()].concat())
        })?;
        buffer.write_text(&problems.join("\n"))
    })
}

/// One JSON object.
pub(crate) fn json(numbers: impl IntoIterator<Item = Number>) -> String {
    let members = numbers.into_iter().map(|number| format!("\"{}\": {}", number.key(), number.value));
    format!("{{{}}}", members.collect::<Vec<_>>().join(", "))
}
