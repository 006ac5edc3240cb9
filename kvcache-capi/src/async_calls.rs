//! Calls that return at once. Their outcome is asked for with a ticket.

use std::ffi::c_void;
use std::sync::Arc;
use std::time::Instant;

use kvcache_core::BlockKey;
use kvcache_core::block_cache::BlockCache;

use crate::arguments::{self, Out};
use crate::background::{Background, Progress, deadline};
use crate::boundary::{call, call_for, with, with_even_broken};
use crate::cache::{OpenCache, kvc_cache, wrong_size};
use crate::status::Failure;
use crate::status::kvc_status::{self, KVC_OK, KVC_PENDING};

/// As kvc_put, in the background. `*ticket` stands for the outcome: see kvc_poll.
///
/// `keys` may go when the call has returned; `data` must stay as it is until the ticket has ended or the cache was closed. Returns
/// within microseconds. Any thread.
///
/// Errors: KVC_BUSY if "async_tickets" are out; KVC_SYSTEM if the first thread is refused. What kvc_put refuses is told by the ticket.
///
/// # Safety
/// As kvc_put, with `data` until the end of the ticket; `ticket` is NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_put_async(
    cache: *mut kvc_cache,
    keys: *const u8,
    blocks: usize,
    data: *const c_void,
    bytes: usize,
    ticket: *mut u64,
) -> kvc_status {
    call("kvc_put_async", || {
        // SAFETY: the caller's promise.
        let (ticket, keys) = unsafe { (Out::of("ticket", ticket)?, arguments::keys(keys, blocks)?) };
        // SAFETY: the caller's promise, which holds until the ticket has ended; the work is done before that.
        let data: &'static [u8] = unsafe { arguments::bytes("data", data, bytes) }?;
        submit(cache, keys, ticket, move |core, keys| core.put(keys, data).map_err(wrong_size))
    })
}

/// As kvc_get, in the background. `out` must not be touched until the ticket has ended or the cache was closed; otherwise as
/// kvc_put_async.
///
/// # Safety
/// As kvc_get, with `out` until the end of the ticket; `ticket` is NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_get_async(
    cache: *mut kvc_cache,
    keys: *const u8,
    blocks: usize,
    out: *mut c_void,
    bytes: usize,
    ticket: *mut u64,
) -> kvc_status {
    call("kvc_get_async", || {
        // SAFETY: the caller's promise.
        let (ticket, keys) = unsafe { (Out::of("ticket", ticket)?, arguments::keys(keys, blocks)?) };
        // SAFETY: as for `kvc_put_async`.
        let out: &'static mut [u8] = unsafe { arguments::bytes_mut("out", out, bytes) }?;
        submit(cache, keys, ticket, move |core, keys| core.get(keys, out).map_err(wrong_size))
    })
}

/// Brings the leading blocks that L2 has into L1, in the background, so that a later get finds them here. The outcome is the number
/// of leading blocks in L1 then. Without L2 it ends at once. Otherwise as kvc_put_async.
///
/// # Safety
/// `keys` is NULL or 16 * blocks bytes; `ticket` is NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_prefetch_async(
    cache: *mut kvc_cache,
    keys: *const u8,
    blocks: usize,
    ticket: *mut u64,
) -> kvc_status {
    call("kvc_prefetch_async", || {
        // SAFETY: the caller's promise.
        let (ticket, keys) = unsafe { (Out::of("ticket", ticket)?, arguments::keys(keys, blocks)?) };
        submit(cache, keys, ticket, |core, keys| Ok(core.prefetch(keys)))
    })
}

pub(crate) fn submit(
    cache: *mut kvc_cache,
    keys: &[BlockKey],
    ticket: Out<u64>,
    work: impl FnOnce(&Arc<BlockCache>, &[BlockKey]) -> Result<usize, Failure> + Send + 'static,
) -> Result<(), Failure> {
    let number = with::<OpenCache, _, _>(cache, |open| {
        let (core, keys) = (Arc::clone(open.cache.core()), keys.to_vec());
        open.background.submit(move || work(&core, &keys))
    })?;
    ticket.write(number);
    Ok(())
}

/// Where the work of a ticket stands. KVC_PENDING until it has ended; then what the call would have returned, once, with its number
/// of blocks in `*blocks` if that is KVC_OK. A ticket whose end was told is unknown: KVC_INVALID_ARGUMENT.
///
/// Where a defect of the library was caught in the cache (KVC_INTERNAL), tickets can be asked for all the same: what had begun ends as it
/// does, and what had not ends with KVC_INTERNAL.
///
/// Does not wait. Any thread.
///
/// # Safety
/// `blocks` is NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_poll(cache: *mut kvc_cache, ticket: u64, blocks: *mut usize) -> kvc_status {
    call_for("kvc_poll", || {
        // SAFETY: the caller's promise.
        let blocks = unsafe { Out::of("blocks", blocks) }?;
        progress(cache, ticket, Instant::now(), blocks)
    })
}

/// As kvc_poll, but waits for the end, for `timeout_ms` milliseconds at most. KVC_CANCELLED if the cache is closed meanwhile and the
/// work had not begun.
///
/// # Safety
/// As kvc_poll.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_wait(
    cache: *mut kvc_cache,
    ticket: u64,
    timeout_ms: u64,
    blocks: *mut usize,
) -> kvc_status {
    call_for("kvc_wait", || {
        // SAFETY: the caller's promise.
        let blocks = unsafe { Out::of("blocks", blocks) }?;
        progress(cache, ticket, deadline(timeout_ms), blocks)
    })
}

fn progress(
    cache: *mut kvc_cache,
    ticket: u64,
    give_up: Instant,
    blocks: Out<usize>,
) -> Result<kvc_status, Failure> {
    // Not under the handle's lock: closing the cache ends what is waited for.
    let background = background(cache)?;
    match background.wait(ticket, give_up) {
        Progress::Pending => Ok(KVC_PENDING),
        Progress::Ended(outcome) => {
            blocks.write(outcome?);
            Ok(KVC_OK)
        }
        Progress::Unknown => Err(Failure::argument(format!(
            "ticket {ticket} is unknown: this cache never gave it, or its end was told before"
        ))),
    }
}

/// Tickets that have ended and were neither listed nor polled since: up to `capacity` of them in `tickets`, oldest end first, and
/// their number in `*count`. Each still has to be polled for its outcome. If there are more, the descriptor of kvc_event_fd is
/// readable again. Does not wait. Any thread.
///
/// # Safety
/// `tickets` is NULL or `capacity` numbers are writable there; `count` is NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_ended(
    cache: *mut kvc_cache,
    tickets: *mut u64,
    capacity: usize,
    count: *mut usize,
) -> kvc_status {
    call("kvc_ended", || {
        // SAFETY: the caller's promise.
        let (count, tickets) =
            unsafe { (Out::of("count", count)?, arguments::slice_mut("tickets", tickets, capacity)?) };
        count.write(background(cache)?.list_ended(tickets));
        Ok(())
    })
}

/// A file descriptor that is readable when a ticket has ended, also one that ended before this was called: for poll, epoll and the
/// like. Read 8 bytes from it, which does not block, then ask kvc_ended or kvc_poll: in this order, or an end between both is not
/// heard of. It may be readable though nothing is left to be told. One thread should read it.
///
/// It belongs to the cache: do not close it; it is closed with the cache, so take it out of epoll before. Any thread.
///
/// # Safety
/// `fd` is NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_event_fd(cache: *mut kvc_cache, fd: *mut i32) -> kvc_status {
    call("kvc_event_fd", || {
        // SAFETY: the caller's promise.
        let fd = unsafe { Out::of("fd", fd) }?;
        fd.write(background(cache)?.event_fd());
        Ok(())
    })
}

/// Tickets outlive a defect: whoever waits for one has to learn when its buffer is free.
fn background(cache: *const kvc_cache) -> Result<Arc<Background>, Failure> {
    with_even_broken(cache, |open: &OpenCache| Arc::clone(&open.background))
}

#[cfg(test)]
mod tests {
    use std::ptr::null_mut;
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;
    use crate::cache::{kvc_close, kvc_match, kvc_open};
    use crate::status::kvc_status::{KVC_BAD_HANDLE, KVC_INTERNAL};

    /// The address of an open cache with one thread, so that threads can share it.
    fn opened() -> usize {
        let mut cache = null_mut();
        let config = c"{\"block_bytes\": 64, \"capacity_bytes\": 640, \"async_threads\": 1}";
        // SAFETY: a text and a place.
        assert_eq!(unsafe { kvc_open(config.as_ptr(), &mut cache) }, KVC_OK);
        cache.addr()
    }

    fn handle(cache: usize) -> *mut kvc_cache {
        std::ptr::without_provenance_mut(cache)
    }

    fn matched(cache: usize) -> kvc_status {
        let mut leading = 0;
        // SAFETY: a key and a place; no handle is followed.
        unsafe { kvc_match(handle(cache), [0u8; 16].as_ptr(), 1, &mut leading) }
    }

    fn submitted(cache: usize, work: impl FnOnce() -> usize + Send + 'static) -> u64 {
        let mut ticket = 0;
        // SAFETY: a place.
        let place = unsafe { Out::of("ticket", &mut ticket) }.unwrap();
        submit(handle(cache), &[], place, move |_, _| Ok(work())).unwrap();
        ticket
    }

    fn waited(cache: usize, ticket: u64) -> kvc_status {
        let mut blocks = 0;
        // SAFETY: a place.
        unsafe { kvc_wait(handle(cache), ticket, 60_000, &mut blocks) }
    }

    /// As after a panic in a call: nothing of the cache is used, but tickets can be asked for, since buffers depend on them.
    #[test]
    fn a_panic_in_the_background_breaks_the_cache() {
        let cache = opened();
        let done = submitted(cache, || 1);
        let (go, waiting) = mpsc::channel::<()>();
        let panics = submitted(cache, move || {
            let _ = waiting.recv();
            panic!("planted")
        });
        let queued = submitted(cache, || 1);
        assert_eq!(matched(cache), KVC_OK);
        go.send(()).unwrap();
        assert_eq!([waited(cache, panics), waited(cache, queued)], [KVC_INTERNAL; 2]);
        assert_eq!((matched(cache), waited(cache, done)), (KVC_INTERNAL, KVC_OK));
        kvc_close(handle(cache));
        assert_eq!(matched(cache), KVC_BAD_HANDLE);
    }

    /// Whoever has closed a cache may free the buffers of its tickets, also where another thread was first.
    #[test]
    fn nobody_has_closed_a_cache_before_its_work_has_ended() {
        let cache = opened();
        let (began, has_begun) = mpsc::channel();
        let (go, waiting) = mpsc::channel::<()>();
        submitted(cache, move || {
            began.send(()).unwrap();
            waiting.recv().map_or(0, |()| 1)
        });
        has_begun.recv().unwrap();
        std::thread::scope(|scope| {
            // Goes with a check that fails, so that the threads end.
            let go = go;
            let first = scope.spawn(|| kvc_close(handle(cache)));
            while matched(cache) != KVC_BAD_HANDLE {
                std::thread::yield_now();
            }
            let second = scope.spawn(|| kvc_close(handle(cache)));
            // Time for the second one to be wrong.
            std::thread::sleep(Duration::from_millis(50));
            assert!(!first.is_finished() && !second.is_finished());
            go.send(()).unwrap();
        });
        kvc_close(handle(cache));
    }
}
