//! Blocks in pieces, blocks in place, and calls that return at once.

mod support;

use std::ffi::c_void;
use std::ptr::{null, null_mut};
use std::time::Duration;

use kvcache::kvc_status::*;
use kvcache::*;
use support::{Cache, last_error};

const BLOCK_BYTES: usize = 4096;

fn cache(blocks: usize) -> Cache {
    Cache::open(&format!("{{\"block_bytes\": {BLOCK_BYTES}, \"capacity_bytes\": {}}}", blocks * BLOCK_BYTES))
}

fn keys(cache: &Cache, first: i32, blocks: i32) -> Vec<u8> {
    let tokens: Vec<i32> = (first..first + 16 * blocks).collect();
    cache.keys(&tokens, 16)
}

fn data(seed: usize, blocks: usize) -> Vec<u8> {
    (0..blocks * BLOCK_BYTES).map(|byte| (byte.wrapping_mul(seed + 1) / 5) as u8).collect()
}

/// Pieces of a block in the order in which they make it up, here from two buffers and of uneven lengths.
fn pieces(front: &mut [u8], back: &mut [u8], front_bytes: usize) -> Vec<kvc_segment> {
    let back_bytes = BLOCK_BYTES - front_bytes;
    let fronts = front.chunks_exact_mut(front_bytes);
    fronts
        .zip(back.chunks_exact_mut(back_bytes))
        .flat_map(|(front, back)| {
            [(front.as_mut_ptr(), front_bytes), (null_mut(), 0), (back.as_mut_ptr(), back_bytes)]
        })
        .map(|(data, bytes)| kvc_segment { data: data.cast(), bytes })
        .collect()
}

#[test]
fn blocks_in_pieces_come_back_whole() {
    let cache = cache(8);
    let keys = keys(&cache, 0, 3);
    const FRONT: usize = 1000;
    let (mut front, mut back) = (data(1, 3)[..3 * FRONT].to_vec(), data(2, 3)[3 * FRONT..].to_vec());
    let (front_before, back_before) = (front.clone(), back.clone());
    let segments = pieces(&mut front, &mut back, FRONT);
    let mut count = 0;
    // SAFETY: segments of buffers that live here.
    unsafe {
        let status =
            kvc_put_segments(cache.0, keys.as_ptr(), 3, segments.as_ptr(), segments.len(), &mut count);
        assert_eq!((status, count), (KVC_OK, 3), "{}", last_error());
    }
    let mut whole = vec![0; 3 * BLOCK_BYTES];
    assert_eq!(cache.get(&keys, &mut whole), 3);
    for block in 0..3 {
        let bytes = &whole[block * BLOCK_BYTES..][..BLOCK_BYTES];
        assert_eq!(bytes[..FRONT], front_before[block * FRONT..][..FRONT]);
        assert_eq!(bytes[FRONT..], back_before[block * (BLOCK_BYTES - FRONT)..][..BLOCK_BYTES - FRONT]);
    }
    front.fill(0);
    back.fill(0);
    let segments = pieces(&mut front, &mut back, FRONT);
    // SAFETY: as above; then, sizes that do not fit, of which nothing is looked at.
    unsafe {
        let status =
            kvc_get_segments(cache.0, keys.as_ptr(), 3, segments.as_ptr(), segments.len(), &mut count);
        assert_eq!((status, count), (KVC_OK, 3), "{}", last_error());
        assert!(front == front_before && back == back_before);
        let short =
            kvc_get_segments(cache.0, keys.as_ptr(), 3, segments.as_ptr(), segments.len() - 3, &mut count);
        assert_eq!(short, KVC_WRONG_SIZE);
        let odd =
            kvc_put_segments(cache.0, keys.as_ptr(), 3, segments.as_ptr(), segments.len() - 1, &mut count);
        assert_eq!(odd, KVC_WRONG_SIZE, "{}", last_error());
        let nowhere = [kvc_segment { data: null_mut(), bytes: BLOCK_BYTES }];
        let status = kvc_put_segments(cache.0, keys.as_ptr(), 1, nowhere.as_ptr(), 1, &mut count);
        assert_eq!(status, KVC_INVALID_ARGUMENT);
        assert!(last_error().contains("segments[0] has 4096 bytes from address 0x0"), "{}", last_error());
    }
}

#[test]
fn without_a_device_its_calls_say_so() {
    let cache = cache(2);
    let keys = keys(&cache, 0, 1);
    let mut bytes = data(1, 1);
    let segment = kvc_segment { data: bytes.as_mut_ptr().cast(), bytes: BLOCK_BYTES };
    let (stream, mut count) = (7u64, 9);
    // SAFETY: one segment, of which nothing is looked at.
    unsafe {
        let status = kvc_put_device_segments(cache.0, keys.as_ptr(), 1, &segment, 1, &stream, &mut count);
        assert_eq!(status, KVC_UNAVAILABLE, "{}", last_error());
        let status = kvc_get_device_segments(cache.0, keys.as_ptr(), 1, &segment, 1, null(), &mut count);
        assert_eq!((status, count), (KVC_UNAVAILABLE, 9), "{}", last_error());
    }
    let json = c"{\"block_bytes\": 4096, \"capacity_bytes\": 8192, \"device\": \"cuda:4000\"}";
    let mut out = null_mut();
    // SAFETY: a text and a place.
    assert_eq!(unsafe { kvc_open(json.as_ptr(), &mut out) }, KVC_UNAVAILABLE, "{}", last_error());
    assert!(out.is_null());
}

#[test]
fn leased_blocks_stay_and_are_read_in_place() {
    let cache = cache(2);
    let (old, new) = (keys(&cache, 0, 2), keys(&cache, 1000, 2));
    let bytes = data(3, 2);
    assert_eq!(cache.put(&old, &bytes), 2);
    let mut addresses = [null::<c_void>(); 2];
    let (mut leading, mut lease) = (0, null_mut());
    // SAFETY: buffers of the lengths that are said; leased addresses are readable.
    unsafe {
        let status =
            kvc_lease_blocks(cache.0, old.as_ptr(), 2, addresses.as_mut_ptr(), &mut leading, &mut lease);
        assert_eq!((status, leading), (KVC_OK, 2), "{}", last_error());
        assert_eq!(cache.put(&new, &data(4, 2)), 0, "everything is leased");
        assert_eq!(cache.delete(&old[..16]), 1);
        for (address, expected) in addresses.iter().zip(bytes.chunks_exact(BLOCK_BYTES)) {
            assert_eq!(std::slice::from_raw_parts(address.cast::<u8>(), BLOCK_BYTES), expected);
        }
    }
    kvc_lease_release(lease);
    kvc_lease_release(lease);
    assert!(last_error().starts_with("kvc_lease_release: ") && last_error().contains("no open lease"));
    assert_eq!(cache.put(&new, &data(4, 2)), 2);
}

/// A lease holds the memory that it names, though the cache is closed.
#[test]
fn a_lease_outlives_its_cache() {
    let cache = cache(2);
    let keys = keys(&cache, 0, 1);
    let bytes = data(3, 1);
    cache.put(&keys, &bytes);
    let mut address = null::<c_void>();
    let (mut leading, mut lease) = (0, null_mut());
    // SAFETY: places for one block; a leased address is readable.
    unsafe {
        assert_eq!(
            kvc_lease_blocks(cache.0, keys.as_ptr(), 1, &mut address, &mut leading, &mut lease),
            KVC_OK
        );
        drop(cache);
        assert_eq!(std::slice::from_raw_parts(address.cast::<u8>(), BLOCK_BYTES), bytes);
    }
    kvc_lease_release(lease);
}

#[test]
fn blocks_are_written_in_place() {
    let cache = cache(3);
    let keys = keys(&cache, 0, 4);
    let bytes = data(5, 4);
    assert_eq!(cache.put(&keys[..16], &bytes[..BLOCK_BYTES]), 1);
    let mut addresses = [null_mut::<c_void>(); 4];
    let (mut reach, mut fill, mut held) = (0, null_mut(), 0);
    // SAFETY: buffers of the lengths that are said; reserved addresses are writable.
    unsafe {
        let status = kvc_reserve(cache.0, keys.as_ptr(), 4, addresses.as_mut_ptr(), &mut reach, &mut fill);
        assert_eq!((status, reach), (KVC_OK, 3), "{}", last_error());
        assert!(
            addresses[0].is_null() && addresses[3].is_null(),
            "one is there, and for one there is no room"
        );
        for (index, address) in addresses.iter().enumerate().filter(|(_, address)| !address.is_null()) {
            address.cast::<u8>().copy_from_nonoverlapping(bytes[index * BLOCK_BYTES..].as_ptr(), BLOCK_BYTES);
        }
        assert_eq!(cache.matched(&keys), 1, "not before it is committed");
        assert_eq!(kvc_commit(fill, 1, &mut held), KVC_OK);
        assert_eq!(held, 2);
        assert_eq!(kvc_commit(fill, 1, &mut held), KVC_BAD_HANDLE);
        kvc_abandon(fill);
    }
    let mut out = vec![0; 4 * BLOCK_BYTES];
    assert_eq!(cache.get(&keys, &mut out), 2);
    assert_eq!(out[..2 * BLOCK_BYTES], bytes[..2 * BLOCK_BYTES]);
    // What is abandoned leaves nothing behind.
    // SAFETY: as above.
    unsafe {
        assert_eq!(
            kvc_reserve(cache.0, keys.as_ptr(), 4, addresses.as_mut_ptr(), &mut reach, &mut fill),
            KVC_OK
        );
        assert_eq!(reach, 3);
        kvc_abandon(fill);
    }
    assert_eq!(cache.matched(&keys), 2);
    assert_eq!(cache.put(&keys[..48], &bytes[..3 * BLOCK_BYTES]), 3);
}

#[test]
fn calls_that_return_at_once_end() {
    let cache = cache(64);
    let keys = keys(&cache, 0, 8);
    let bytes = data(6, 8);
    let mut fd = -1;
    let mut ticket = 0;
    let mut blocks = 0;
    // SAFETY: buffers of the lengths that are said, which live until the tickets have ended.
    unsafe {
        assert_eq!(kvc_event_fd(cache.0, &mut fd), KVC_OK);
        let status =
            kvc_put_async(cache.0, keys.as_ptr(), 8, bytes.as_ptr().cast(), bytes.len(), &mut ticket);
        assert_eq!(status, KVC_OK, "{}", last_error());
        assert_eq!(kvc_wait(cache.0, ticket, 10_000, &mut blocks), KVC_OK);
        assert_eq!(blocks, 8);
        assert_eq!(kvc_poll(cache.0, ticket, &mut blocks), KVC_INVALID_ARGUMENT);
        assert!(last_error().contains("its end was told before"), "{}", last_error());

        let mut out = vec![0u8; bytes.len()];
        let status =
            kvc_get_async(cache.0, keys.as_ptr(), 8, out.as_mut_ptr().cast(), out.len(), &mut ticket);
        assert_eq!(status, KVC_OK, "{}", last_error());
        // The first end made it readable, too: what counts is the list.
        let mut ended = [0; 4];
        let mut count = 0;
        while count == 0 {
            let mut readable = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
            assert_eq!(libc::poll(&mut readable, 1, 10_000), 1, "the event descriptor is readable in time");
            let mut events = 0u64;
            assert_eq!(libc::read(fd, (&raw mut events).cast(), 8), 8);
            assert_eq!(kvc_ended(cache.0, ended.as_mut_ptr(), 4, &mut count), KVC_OK);
        }
        assert_eq!((count, ended[0]), (1, ticket));
        assert_eq!(kvc_poll(cache.0, ticket, &mut blocks), KVC_OK);
        assert_eq!((blocks, &out), (8, &bytes));

        assert_eq!(kvc_prefetch_async(cache.0, keys.as_ptr(), 8, &mut ticket), KVC_OK);
        assert_eq!(kvc_wait(cache.0, ticket, 10_000, &mut blocks), KVC_OK);
        assert_eq!(blocks, 8);
        // What is wrong is said by the ticket.
        let status = kvc_put_async(cache.0, keys.as_ptr(), 8, bytes.as_ptr().cast(), 1, &mut ticket);
        assert_eq!(status, KVC_OK);
        assert_eq!(kvc_wait(cache.0, ticket, 10_000, &mut blocks), KVC_WRONG_SIZE);
        assert_eq!(blocks, 8);
    }
}

/// Closing a cache ends the waits of others.
#[test]
fn a_wait_ends_when_the_cache_is_closed() {
    let cache = cache(4);
    let (handle, address) = (cache.0.addr(), cache.0);
    let waiter = std::thread::spawn(move || {
        let handle = std::ptr::without_provenance_mut(handle);
        let mut blocks = 0;
        loop {
            // SAFETY: a handle is never followed.
            let status = unsafe { kvc_wait(handle, 1, 1, &mut blocks) };
            if status == KVC_BAD_HANDLE {
                return;
            }
            assert_eq!(status, KVC_INVALID_ARGUMENT, "no ticket was given");
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    std::thread::sleep(Duration::from_millis(20));
    drop(cache);
    waiter.join().unwrap();
    let mut blocks = 0;
    // SAFETY: as above.
    assert_eq!(unsafe { kvc_poll(address, 1, &mut blocks) }, KVC_BAD_HANDLE);
}

#[test]
fn statistics_are_said_in_both_forms() {
    let cache = cache(4);
    let keys = keys(&cache, 0, 2);
    cache.put(&keys, &data(7, 2));
    let text = |call: &dyn Fn(*mut std::ffi::c_char, *mut usize) -> kvc_status| {
        let mut bytes = 0;
        assert_eq!(call(null_mut(), &mut bytes), KVC_OK, "{}", last_error());
        let needed = bytes;
        let mut buffer = vec![0u8; needed];
        bytes = needed - 1;
        assert_eq!(call(buffer.as_mut_ptr().cast(), &mut bytes), KVC_BUFFER_TOO_SMALL);
        assert_eq!(bytes, needed);
        assert_eq!(call(buffer.as_mut_ptr().cast(), &mut bytes), KVC_OK);
        assert_eq!(buffer.pop(), Some(0));
        String::from_utf8(buffer).unwrap()
    };
    // SAFETY: a buffer of the size that is said.
    let json = text(&|buffer, bytes| unsafe { kvc_stats_json(cache.0, buffer, bytes) });
    let parsed: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((parsed["stored"].as_u64(), parsed["slots"].as_u64()), (Some(2), Some(4)), "{json}");
    // SAFETY: as above.
    let prometheus =
        text(&|buffer, bytes| unsafe { kvc_stats_prometheus(cache.0, c"a\"b".as_ptr(), buffer, bytes) });
    assert!(prometheus.contains("kvcache_stored_total{cache=\"a\\\"b\"} 2\n"), "{prometheus}");
    assert!(prometheus.contains("# TYPE kvcache_slots gauge\n"));
    // SAFETY: as above.
    assert_eq!(text(&|buffer, bytes| unsafe { kvc_problems(cache.0, buffer, bytes) }), "");
}

#[test]
fn log_lines_reach_the_program() {
    unsafe extern "C" fn take(
        user_data: *mut c_void,
        level: i32,
        _: *const std::ffi::c_char,
        text: *const std::ffi::c_char,
    ) {
        // SAFETY: what this test gave, and a text.
        let (lines, text) = unsafe {
            (&*user_data.cast::<std::sync::Mutex<Vec<(i32, String)>>>(), std::ffi::CStr::from_ptr(text))
        };
        lines.lock().unwrap().push((level, text.to_str().unwrap().to_owned()));
    }
    let lines = std::sync::Mutex::new(Vec::<(i32, String)>::new());
    let target = (&raw const lines).cast_mut().cast();
    // SAFETY: the function and the list live until another callback is set, below.
    unsafe {
        assert_eq!(kvc_set_log(Some(take), target, 9), KVC_INVALID_ARGUMENT);
        assert_eq!(kvc_set_log(Some(take), target, kvc_log_level::KVC_LOG_INFO as i32), KVC_OK);
        drop(cache(5));
        assert_eq!(kvc_set_log(None, null_mut(), 0), KVC_OK);
    }
    drop(cache(6));
    let lines = lines.into_inner().unwrap();
    assert!(
        lines.iter().any(|(level, text)| *level == 3 && text == "cache of 5 blocks of 4096 bytes"),
        "{lines:?}"
    );
    assert!(!lines.iter().any(|(_, text)| text.contains("6 blocks")));
}
