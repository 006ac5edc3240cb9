//! A block cache over a ring that is a hash map, with faults.

use std::sync::Arc;
use std::time::Duration;

use super::test_ring::{BLOCK_BYTES, FakeRing, SOON, cache};
use super::*;
use crate::block_cache::BlockCache;
use crate::block_cache::test_blocks::{chain, pattern};
use crate::fakes::random::Random;

fn get(cache: &BlockCache, keys: &[BlockKey]) -> usize {
    let mut out = vec![0; keys.len() * BLOCK_BYTES];
    let got = cache.get(keys, &mut out).unwrap();
    assert!(out[..got * BLOCK_BYTES] == pattern(&keys[..got], BLOCK_BYTES), "other bytes than were put");
    got
}

#[test]
fn what_one_cache_stores_another_finds() {
    let ring = Arc::default();
    let (first, second) = (cache(&ring, 20, |_| {}), cache(&ring, 20, |_| {}));
    let keys = chain(1, 12);
    assert_eq!(second.match_prefix(&keys), 0);
    assert_eq!(first.put(&keys[..8], &pattern(&keys[..8], BLOCK_BYTES)), Ok(8));
    assert!(first.flush(SOON));
    assert_eq!(second.match_prefix(&keys), 8);
    assert_eq!(get(&second, &keys), 8);
    // They are in its L1 now.
    ring.values.lock().clear();
    assert_eq!(second.match_prefix(&keys), 8);
    assert_eq!(get(&second, &keys[..8]), 8);
    let stats = second.stats().l2.unwrap();
    assert_eq!((stats.fetched, stats.missing), (8, 4));
    assert_eq!(first.stats().l2.unwrap().demoted, 8);
}

#[test]
fn a_hole_in_one_tier_is_filled_from_the_other() {
    let ring = Arc::default();
    let (first, second) = (cache(&ring, 20, |_| {}), cache(&ring, 20, |_| {}));
    let keys = chain(1, 9);
    first.put(&keys, &pattern(&keys, BLOCK_BYTES)).unwrap();
    assert!(first.flush(SOON));
    // The second has blocks 0 to 2 and 5 to 6, L2 all but 1 and 6.
    second.put(&keys[..7], &pattern(&keys[..7], BLOCK_BYTES)).unwrap();
    assert!(second.flush(SOON));
    second.delete_here(&keys[3..5]);
    for missing in [1, 6] {
        let gone = ring.values.lock().keys().find(|name| name.block == keys[missing]).copied().unwrap();
        ring.values.lock().remove(&gone);
    }
    assert_eq!(second.match_prefix(&keys), 9);
    assert_eq!(get(&second, &keys), 9);
}

#[test]
fn damage_shortens_a_get_and_nothing_else() {
    let ring: Arc<FakeRing> = Arc::default();
    let (first, second) = (cache(&ring, 20, |_| {}), cache(&ring, 20, |_| {}));
    let keys = chain(1, 8);
    first.put(&keys, &pattern(&keys, BLOCK_BYTES)).unwrap();
    assert!(first.flush(SOON));
    *ring.faulty.lock() = (1000, 0);
    assert_eq!(get(&second, &keys), 0);
    *ring.faulty.lock() = (0, 0);
    assert_eq!(get(&second, &keys), 8);
    assert_eq!(second.stats().l2.unwrap().fetch_failed, 8);
}

#[test]
fn hot_blocks_are_those_used_again() {
    let ring: Arc<FakeRing> = Arc::default();
    let cache = cache(&ring, 20, |config| config.ingestion = Ingestion::Hot);
    let keys = chain(1, 6);
    cache.put(&keys, &pattern(&keys, BLOCK_BYTES)).unwrap();
    assert!(cache.flush(SOON));
    assert_eq!(ring.values.lock().len(), 0);
    for _ in 0..3 {
        assert_eq!(get(&cache, &keys[..2]), 2);
    }
    cache.put(&keys[..4], &pattern(&keys[..4], BLOCK_BYTES)).unwrap();
    assert!(cache.flush(SOON));
    assert_eq!(ring.values.lock().len(), 4);
    assert_eq!(cache.stats().l2.unwrap().demoted, 4, "once each");
}

#[test]
fn blocks_that_leave_l1_go_to_l2() {
    let ring: Arc<FakeRing> = Arc::default();
    let cache = cache(&ring, 16, |config| config.ingestion = Ingestion::Evicted);
    for document in 0..40 {
        let keys = chain(document, 1);
        assert_eq!(cache.put(&keys, &pattern(&keys, BLOCK_BYTES)), Ok(1));
        assert!(cache.flush(SOON));
    }
    let there = ring.values.lock().len();
    assert!((20..=25).contains(&there), "{there}");
    for document in 0..40 {
        assert_eq!(get(&cache, &chain(document, 1)), 1, "document {document} is in neither");
    }
}

#[test]
fn a_stuck_ring_costs_a_deadline_and_drops_are_counted() {
    let ring: Arc<FakeRing> = Arc::default();
    *ring.stuck.lock() = true;
    let cache = cache(&ring, 20, |config| {
        config.match_timeout = Duration::from_millis(5);
        config.demotions_max = 3;
    });
    let keys = chain(1, 8);
    assert_eq!(cache.put(&keys, &pattern(&keys, BLOCK_BYTES)), Ok(8));
    assert_eq!(cache.match_prefix(&chain(1, 12)), 8);
    let stats = cache.stats();
    let l2 = stats.l2.unwrap();
    assert_eq!((l2.questions_late, l2.demote_dropped, l2.demoting), (1, 5, 3));
    assert_eq!(stats.directory.pinned, 3);
    // What is stuck pins its slots until it ends; closing ends it.
    assert!(!cache.flush(Duration::from_millis(1)));
    *ring.stuck.lock() = false;
    assert!(cache.flush(SOON));
    assert_eq!(cache.stats().directory.pinned, 0);
    *ring.stuck.lock() = true;
    cache.put(&chain(2, 3), &pattern(&chain(2, 3), BLOCK_BYTES)).unwrap();
    drop(cache);
}

#[test]
fn deleting_and_clearing_reach_l2() {
    let ring: Arc<FakeRing> = Arc::default();
    let (first, second) = (cache(&ring, 20, |_| {}), cache(&ring, 20, |_| {}));
    let keys = chain(1, 6);
    first.put(&keys, &pattern(&keys, BLOCK_BYTES)).unwrap();
    // Not waited for: a demotion that comes after the deletion would bring blocks back.
    assert_eq!(first.delete(&keys[3..]), 3);
    assert!(first.flush(SOON));
    assert_eq!(second.match_prefix(&keys), 3);
    assert_eq!(second.delete(&keys), 3, "those of L2");
    assert_eq!(first.match_prefix(&keys), 3, "its own");
    first.put(&keys, &pattern(&keys, BLOCK_BYTES)).unwrap();
    assert!(first.flush(SOON));
    first.clear();
    assert_eq!((first.match_prefix(&keys), get(&first, &keys)), (0, 0));
    assert_eq!(second.match_prefix(&keys[3..]), 3, "others keep theirs");
}

#[test]
fn what_is_fetched_while_the_cache_is_cleared_is_not_kept() {
    let ring: Arc<FakeRing> = Arc::default();
    let (first, second) = (cache(&ring, 20, |_| {}), Arc::new(cache(&ring, 20, |_| {})));
    let keys = chain(1, 6);
    first.put(&keys, &pattern(&keys, BLOCK_BYTES)).unwrap();
    assert!(first.flush(SOON));
    let cleared = second.clone();
    *ring.before_get.lock() = Some(Box::new(move || cleared.clear()));
    assert_eq!(get(&second, &keys), 6, "it began before the clearing");
    assert_eq!((second.match_prefix(&keys), get(&second, &keys)), (0, 0));
}

/// Threads over two caches, with faults and evictions: bytes are right, nothing stays pinned.
#[test]
fn threads_and_faults() {
    for ingestion in [Ingestion::All, Ingestion::Hot, Ingestion::Evicted] {
        let ring: Arc<FakeRing> = Arc::default();
        *ring.faulty.lock() = (50, 7);
        let caches = [(); 2].map(|()| {
            cache(&ring, 30, |config| {
                config.ingestion = ingestion;
                config.demotions_max = 10;
            })
        });
        let hits: usize = std::thread::scope(|scope| {
            let workers = (0..4_u64).map(|thread| {
                let cache = &caches[thread as usize % 2];
                scope.spawn(move || {
                    let mut r = Random::new(thread);
                    let mut hits = 0;
                    for _ in 0..200 {
                        let keys = chain(r.below(12) as u64, r.between(1, 8) as u64);
                        match r.below(10) {
                            0..=3 => {
                                assert!(cache.put(&keys, &pattern(&keys, BLOCK_BYTES)).unwrap() <= keys.len())
                            }
                            4..=7 => hits += get(cache, &keys),
                            8 => assert!(cache.match_prefix(&keys) <= keys.len()),
                            _ if r.chance(200) => assert!(cache.delete(&keys) <= keys.len()),
                            _ => {}
                        }
                    }
                    hits
                })
            });
            let workers: Vec<_> = workers.collect();
            workers.into_iter().map(|worker| worker.join().unwrap()).sum()
        });
        assert!(hits > 200, "{hits} hits: the test says little");
        for cache in &caches {
            assert!(cache.flush(SOON));
            cache.directory.check().unwrap();
            let stats = cache.stats().directory;
            assert_eq!((stats.filling, stats.draining, stats.pinned), (0, 0, 0));
        }
    }
}
