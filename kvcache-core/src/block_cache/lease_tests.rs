//! Leases, reservations and prefetches one at a time; `model_tests` mixes them.

use std::sync::Arc;

use super::l2::test_ring::{self, FakeRing, SOON};
use super::test_blocks::{cache_over, chain, pattern};
use super::*;
use crate::fakes::fake_memory::Slab;
use crate::planner::Ingestion;

const BLOCK_BYTES: usize = 64;

fn cache(slots: u32) -> Arc<BlockCache> {
    Arc::new(cache_over(&Slab::new(slots, BLOCK_BYTES), BLOCK_BYTES))
}

fn put(cache: &BlockCache, keys: &[BlockKey]) -> usize {
    cache.put(keys, &pattern(keys, BLOCK_BYTES)).unwrap()
}

fn get(cache: &BlockCache, keys: &[BlockKey]) -> usize {
    let mut out = vec![0; keys.len() * BLOCK_BYTES];
    let got = cache.get(keys, &mut out).unwrap();
    assert!(out[..got * BLOCK_BYTES] == pattern(&keys[..got], BLOCK_BYTES), "other bytes than were put");
    got
}

fn fill(fill: &mut InPlaceFill, keys: &[BlockKey]) {
    for (index, key) in keys.iter().enumerate() {
        if let Some(block) = fill.block_mut(index) {
            block.copy_from_slice(&pattern(&[*key], BLOCK_BYTES));
        }
    }
}

#[test]
fn a_lease_is_of_the_leading_blocks_and_costs_their_room() {
    let cache = cache(4);
    let keys = chain(0, 3);
    put(&cache, &keys);
    cache.delete(&keys[1..2]);
    let lease = cache.lease(&keys);
    assert_eq!((lease.len(), lease.is_empty()), (1, false));
    assert!((lease.address(1), lease.block(1)) == (None, None));
    drop(lease);
    put(&cache, &keys);
    let lease = cache.lease(&chain(0, 9));
    assert_eq!(lease.len(), 3);
    for (index, key) in keys.iter().enumerate() {
        assert_eq!(lease.block(index).unwrap(), pattern(&[*key], BLOCK_BYTES));
        assert_eq!(lease.address(index), Some(lease.block(index).unwrap().as_ptr() as usize));
    }
    let refused = cache.stats().directory.refused;
    assert_eq!(put(&cache, &chain(1, 3)), 1, "three of four slots are leased");
    assert_eq!(cache.stats().directory.refused, refused + 2);
    drop(lease);
    assert_eq!(put(&cache, &chain(1, 3)), 3);
    assert_eq!(cache.stats().directory.pinned, 0);
}

#[test]
fn leased_blocks_that_are_deleted_or_cleared_keep_their_bytes_and_drain() {
    for clear in [false, true] {
        let cache = cache(4);
        let keys = chain(0, 3);
        put(&cache, &keys);
        let (lease, other) = (cache.lease(&keys), cache.lease(&keys[..1]));
        if clear {
            cache.clear();
        } else {
            assert_eq!(cache.delete(&keys), 3);
        }
        assert_eq!((cache.match_prefix(&keys), cache.lease(&keys).len()), (0, 0));
        assert_eq!(put(&cache, &chain(1, 4)), 1, "the others drain");
        assert_eq!(lease.block(2).unwrap(), pattern(&keys[2..], BLOCK_BYTES));
        assert_eq!(cache.stats().directory.draining, 3);
        drop(lease);
        assert_eq!(cache.stats().directory.draining, 1);
        assert_eq!(other.block(0).unwrap(), pattern(&keys[..1], BLOCK_BYTES));
        // The cache lives as long as its leases.
        let directory = Arc::clone(&cache.directory);
        drop((cache, other));
        assert_eq!(directory.stats().draining, 0);
    }
}

#[test]
fn a_damaged_block_of_an_earlier_process_ends_a_lease() {
    let slab = Slab::new(4, BLOCK_BYTES);
    let keys = chain(0, 3);
    put(&cache_over(&slab, BLOCK_BYTES), &keys);
    let cache = Arc::new(cache_over(&slab, BLOCK_BYTES));
    slab.damage(cache.directory.slot_of(&keys[1]).unwrap());
    assert_eq!(cache.lease(&keys).len(), 1);
    assert_eq!(put(&cache, &keys), 3);
    assert_eq!(cache.lease(&keys).len(), 3);
}

#[test]
fn what_is_written_in_place_is_a_hit_when_it_is_committed() {
    let slab = Slab::new(5, BLOCK_BYTES);
    let cache = Arc::new(cache_over(&slab, BLOCK_BYTES));
    let keys = chain(0, 7);
    put(&cache, &keys[..2]);
    let kept = cache.lease(&keys[..2]);
    cache.delete(&keys[1..2]);
    let mut reservation = cache.reserve(&keys);
    // Five slots, of which one has the first block and one is leased.
    let kinds: String = reservation
        .places()
        .iter()
        .map(|place| match place {
            Place::Present => 'p',
            Place::Write(_) => 'w',
            Place::NoRoom => '-',
        })
        .collect();
    assert_eq!((kinds.as_str(), reservation.reserved()), ("pwww---", 3));
    assert!(reservation.block_mut(0).is_none() && reservation.block_mut(4).is_none());
    let block = reservation.block_mut(1).unwrap().as_ptr() as usize;
    assert_eq!(reservation.places()[1], Place::Write(block));
    fill(&mut reservation, &keys);
    assert_eq!((cache.match_prefix(&keys), get(&cache, &keys)), (1, 1), "not yet");
    assert_eq!(cache_over(&slab, BLOCK_BYTES).match_prefix(&keys), 1, "nor for a later process");
    assert_eq!(reservation.commit(), 4);
    assert_eq!((cache.match_prefix(&keys), get(&cache, &keys)), (4, 4));
    assert_eq!(cache_over(&slab, BLOCK_BYTES).match_prefix(&keys), 4);
    drop(kept);
    let stats = cache.stats().directory;
    assert_eq!((stats.filling, stats.draining, stats.pinned, stats.free), (0, 0, 0, 1));
}

#[test]
fn only_what_was_written_is_committed() {
    let cache = cache(8);
    let keys = chain(0, 6);
    put(&cache, &keys[..4]);
    cache.delete(&keys[1..3]);
    // Blocks 1, 2, 4 and 5 are absent.
    for (written, held, there) in [(0, 1, 0), (1, 2, 1), (usize::MAX, 6, 4)] {
        let mut reservation = cache.reserve(&keys);
        fill(&mut reservation, &keys);
        assert_eq!(reservation.commit_first(written), held);
        assert_eq!(cache.match_prefix(&keys), held);
        assert_eq!(cache.stats().directory.ready, 2 + there);
        assert_eq!(get(&cache, &keys), held);
    }
    cache.delete(&keys[1..]);
    drop(cache.reserve(&keys));
    assert_eq!((cache.match_prefix(&keys), cache.stats().directory.free), (1, 7));
}

#[test]
fn other_calls_take_a_block_that_is_being_written_for_held() {
    let cache = cache(8);
    let keys = chain(0, 3);
    let mut reservation = cache.reserve(&keys);
    assert_eq!(cache.reserve(&keys).places(), [Place::Present; 3]);
    // These bytes are nobody's: whoever puts them believes the other to write the same.
    assert_eq!(cache.put(&keys, &[7; 3 * BLOCK_BYTES]), Ok(3));
    assert_eq!((cache.match_prefix(&keys), get(&cache, &keys)), (0, 0));
    fill(&mut reservation, &keys);
    assert_eq!(reservation.commit(), 3);
    assert_eq!(get(&cache, &keys), 3);
    // Abandoned: absent, and whoever puts it then stores it.
    drop(cache.reserve(&chain(1, 3)));
    assert_eq!(put(&cache, &chain(1, 3)), 3);
    assert_eq!(get(&cache, &chain(1, 3)), 3);
}

#[test]
fn a_reservation_that_is_deleted_or_cleared_comes_to_nothing() {
    for clear in [false, true] {
        let slab = Slab::new(4, BLOCK_BYTES);
        let cache = Arc::new(cache_over(&slab, BLOCK_BYTES));
        let keys = chain(0, 3);
        let mut reservation = cache.reserve(&keys);
        if clear {
            cache.clear();
        } else {
            assert_eq!(cache.delete(&keys), 3);
        }
        // Its slots are nobody else's until it ends.
        assert_eq!(put(&cache, &keys), 1);
        fill(&mut reservation, &keys);
        reservation.commit();
        assert_eq!((cache.match_prefix(&keys), get(&cache, &keys)), (1, 1));
        assert_eq!(cache_over(&slab, BLOCK_BYTES).match_prefix(&keys), 1);
        assert_eq!(cache.stats().directory.free, 3);
    }
}

#[test]
fn what_is_committed_goes_to_l2_as_what_is_put() {
    let ring: Arc<FakeRing> = Arc::default();
    let [first, second] = [(); 2].map(|()| Arc::new(test_ring::cache(&ring, 20, |_| {})));
    let keys = chain(0, 6);
    let mut reservation = first.reserve(&keys);
    fill(&mut reservation, &keys);
    reservation.commit_first(4);
    assert!(first.flush(SOON));
    assert_eq!(ring.values.lock().len(), 4);
    assert_eq!(get(&second, &keys), 4);
}

#[test]
fn a_prefetch_brings_what_l2_has_and_evicts_for_nothing_else() {
    let ring: Arc<FakeRing> = Arc::default();
    let [first, second] =
        [(); 2].map(|()| Arc::new(test_ring::cache(&ring, 8, |config| config.ingestion = Ingestion::All)));
    let keys = chain(0, 8);
    put(&first, &keys[..6]);
    assert!(first.flush(SOON));
    let other = chain(1, 3);
    put(&second, &other);
    assert!(second.flush(SOON));
    ring.values.lock().retain(|name, _| !other.contains(&name.block));
    assert_eq!(second.prefetch(&chain(2, 8)), 0);
    assert_eq!((second.match_prefix(&other), second.stats().directory.evicted), (3, 0));
    assert_eq!(second.prefetch(&keys), 6);
    assert_eq!(second.stats().directory.evicted, 1);
    ring.values.lock().clear();
    let lease = second.lease(&keys);
    assert_eq!(lease.len(), 6);
    assert!((0..6).all(|index| lease.block(index).unwrap() == pattern(&keys[index..=index], BLOCK_BYTES)));
    assert_eq!(
        (second.prefetch(&keys), second.stats().l2.unwrap().fetched),
        (6, 6),
        "nothing is left to bring"
    );
}

#[test]
fn a_prefetch_ends_where_room_or_luck_does() {
    let ring: Arc<FakeRing> = Arc::default();
    let [first, second] = [(); 2].map(|()| Arc::new(test_ring::cache(&ring, 8, |_| {})));
    let keys = chain(0, 8);
    put(&first, &keys);
    assert!(first.flush(SOON));
    put(&second, &chain(1, 5));
    assert!(second.flush(SOON));
    let lease = second.lease(&chain(1, 5));
    assert_eq!(second.prefetch(&keys), 3, "five of eight slots are leased");
    drop(lease);
    second.delete_here(&keys);
    *ring.faulty.lock() = (400, 11);
    let mut reached = 0;
    for _ in 0..100 {
        let now = second.prefetch(&keys);
        assert!(now >= reached, "what came stays");
        reached = now;
    }
    assert_eq!(reached, 8);
    assert!(second.stats().l2.unwrap().fetch_failed > 0);
    assert_eq!(get(&second, &keys), 8);
    let stats = second.stats().directory;
    assert_eq!((stats.filling, stats.draining, stats.pinned), (0, 0, 0));
}

#[test]
fn what_is_prefetched_while_the_cache_is_cleared_is_not_kept() {
    let ring: Arc<FakeRing> = Arc::default();
    let [first, second] = [(); 2].map(|()| Arc::new(test_ring::cache(&ring, 20, |_| {})));
    let keys = chain(1, 6);
    put(&first, &keys);
    assert!(first.flush(SOON));
    let cleared = Arc::clone(&second);
    *ring.before_get.lock() = Some(Box::new(move || cleared.clear()));
    assert_eq!(second.prefetch(&keys), 0);
    assert!(ring.before_get.lock().is_none(), "it was cleared while blocks came");
    assert_eq!((second.match_prefix(&keys), get(&second, &keys)), (0, 0));
    assert_eq!(second.stats().directory.free, 20);
}

/// The other way round: it is cleared when L2 has said what it has, and before slots are reserved for that.
#[test]
fn what_was_found_before_a_clearing_is_not_prefetched_after_it() {
    let ring: Arc<FakeRing> = Arc::default();
    let [first, second] = [(); 2].map(|()| Arc::new(test_ring::cache(&ring, 20, |_| {})));
    let keys = chain(1, 6);
    put(&first, &keys);
    assert!(first.flush(SOON));
    let space = |cache: &BlockCache| cache.l2.as_ref().map(|l2| l2.space());
    let (cleared, before) = (Arc::clone(&second), space(&second));
    let (send, clearing) = std::sync::mpsc::channel();
    *ring.before_answer.lock() = Some(Box::new(move || {
        // It ends after the answer, but from here on the cache is in another space.
        let also = Arc::clone(&cleared);
        send.send(std::thread::spawn(move || also.clear())).unwrap();
        while space(&cleared) == before {
            std::thread::yield_now();
        }
    }));
    assert_eq!(second.prefetch(&keys), 0);
    clearing.recv().unwrap().join().unwrap();
    assert_eq!((second.match_prefix(&keys), second.stats().directory.free), (0, 20));
}

#[test]
fn a_lease_is_a_use_and_a_prefetch_is_none() {
    let ring: Arc<FakeRing> = Arc::default();
    let cache = Arc::new(test_ring::cache(&ring, 20, |config| config.ingestion = Ingestion::Hot));
    let keys = chain(1, 6);
    put(&cache, &keys);
    assert_eq!(cache.prefetch(&keys), 6);
    assert!(cache.flush(SOON) && ring.values.lock().is_empty());
    assert_eq!(cache.lease(&keys[..2]).len(), 2);
    assert!(cache.flush(SOON));
    assert_eq!(ring.values.lock().len(), 2, "what is hot goes to L2");
}
