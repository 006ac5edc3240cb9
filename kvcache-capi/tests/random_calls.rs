//! Calls in any order, from one thread with a model of what must come out, and from several over the same handles.
//! `fuzz/fuzz_targets/c_calls.rs` drives the first of them by coverage.

#[path = "support/random_calls.rs"]
mod random_calls;

use std::ffi::CStr;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use kvcache::kvc_status::*;
use kvcache::*;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    #[test]
    fn calls_in_any_order_do_what_the_model_says(choices in prop::collection::vec(any::<u8>(), 0..600)) {
        random_calls::run(&choices);
    }
}

const BLOCK_BYTES: usize = 512;
const CONFIG: &CStr =
    c"{\"block_bytes\": 512, \"capacity_bytes\": 8192, \"async_threads\": 2, \"async_tickets\": 16}";
const KEYS: u8 = 40;

/// Handles that all threads open, use and close.
struct Shared {
    places: [AtomicPtr<kvc_cache>; 2],
    loaded: AtomicUsize,
}

fn block_of(key: u8) -> impl Iterator<Item = u8> {
    (0..BLOCK_BYTES).map(move |byte| key.wrapping_mul(31).wrapping_add(byte as u8))
}

/// One thread's calls. Others may close what it uses, at any moment.
fn one_thread(shared: &Shared, choices: &[u8]) {
    let expected = |status: kvc_status| {
        let may_be = [KVC_OK, KVC_BAD_HANDLE, KVC_NULL_ARGUMENT, KVC_BUSY, KVC_CANCELLED];
        assert!(may_be.contains(&status), "{status:?}");
        status == KVC_OK
    };
    for choice in choices.chunks_exact(3) {
        let place = &shared.places[usize::from(choice[1] % 2)];
        let cache = place.load(Ordering::SeqCst);
        let keys: Vec<[u8; 16]> =
            (0..1 + choice[1] / 2 % 4).map(|step| [choice[2].wrapping_add(step) % KEYS; 16]).collect();
        let mut bytes: Vec<u8> = keys.iter().flat_map(|key| block_of(key[0])).collect();
        let (mut count, mut ticket) = (0, 0);
        let (first, blocks) = (keys.as_ptr().cast::<u8>(), keys.len());
        // SAFETY: buffers of the lengths that are said. A buffer in the background outlives its ticket: it is waited for, and
        // what waits no more because the handle was closed has ended by then.
        unsafe {
            match choice[0] % 12 {
                0 => {
                    let mut opened = null_mut();
                    assert_eq!(kvc_open(CONFIG.as_ptr(), &mut opened), KVC_OK);
                    kvc_close(place.swap(opened, Ordering::SeqCst));
                }
                1 => kvc_close(cache),
                2..5 => {
                    expected(kvc_put(cache, first, blocks, bytes.as_ptr().cast(), bytes.len(), &mut count));
                }
                5..8 => {
                    let right = bytes.clone();
                    bytes.fill(0);
                    let status =
                        kvc_get(cache, first, blocks, bytes.as_mut_ptr().cast(), bytes.len(), &mut count);
                    if expected(status) {
                        assert_eq!(bytes[..count * BLOCK_BYTES], right[..count * BLOCK_BYTES]);
                        shared.loaded.fetch_add(count, Ordering::Relaxed);
                    }
                }
                8 => {
                    let right = bytes.clone();
                    bytes.fill(0);
                    // Never freed where the end cannot be seen, because another thread has closed the cache.
                    let out = Box::leak(bytes.into_boxed_slice());
                    let status =
                        kvc_get_async(cache, first, blocks, out.as_mut_ptr().cast(), out.len(), &mut ticket);
                    if expected(status) && expected(kvc_wait(cache, ticket, 60_000, &mut count)) {
                        assert_eq!(out[..count * BLOCK_BYTES], right[..count * BLOCK_BYTES]);
                        drop(Box::from_raw(out));
                    }
                }
                9 => {
                    expected(kvc_delete(cache, first, blocks, &mut count));
                }
                10 => {
                    expected(kvc_clear(cache));
                }
                _ => {
                    let mut text = [0u8; 4096];
                    count = text.len();
                    if expected(kvc_stats_json(cache, text.as_mut_ptr().cast(), &mut count)) {
                        assert_eq!(text[count - 1], 0);
                    }
                }
            }
        }
    }
}

/// Whatever others do meanwhile, a block that is loaded has its own bytes, and a handle that is gone is an error.
#[test]
fn threads_may_do_anything_at_a_time() {
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(24) };
    let calls = prop::collection::vec(prop::collection::vec(any::<u8>(), 300..1500), 4);
    // Of one case all calls may find nothing; of all cases together they do not.
    let loaded = AtomicUsize::new(0);
    let ran = TestRunner::new(config).run(&calls, |choices| {
        let shared = Shared { places: Default::default(), loaded: AtomicUsize::new(0) };
        for place in &shared.places {
            let mut opened = null_mut();
            // SAFETY: a text and a place.
            assert_eq!(unsafe { kvc_open(CONFIG.as_ptr(), &mut opened) }, KVC_OK);
            place.store(opened, Ordering::SeqCst);
        }
        std::thread::scope(|scope| {
            for choices in &choices {
                scope.spawn(|| one_thread(&shared, choices));
            }
        });
        for place in &shared.places {
            kvc_close(place.load(Ordering::SeqCst));
        }
        loaded.fetch_add(shared.loaded.load(Ordering::Relaxed), Ordering::Relaxed);
        Ok(())
    });
    assert!(ran.is_ok(), "{ran:?}");
    assert!(loaded.load(Ordering::Relaxed) > 0, "something was loaded");
}
