use std::collections::HashMap;

use super::test_blocks::{cache_over, chain, pattern};
use super::*;
use crate::copy_engine::HostCopyConfig;
use crate::eviction::{Lru, S3Fifo};
use crate::fakes::fake_memory::{FakeMemory, MemoryBugs, Slab};
use crate::fakes::random::Random;
use crate::plan::EngineHash;
use crate::store::SlotLabel;

const BLOCK_BYTES: usize = 64;

/// Every block that comes back is the one that was put, for any order of calls and restarts.
#[test]
fn any_order_of_calls_agrees_with_a_hash_map() {
    for seed in 0..300 {
        let mut r = Random::new(seed);
        let slots = r.between(1, 12) as u32;
        let slab = Slab::new(slots, BLOCK_BYTES);
        let mut cache = cache_over(&slab, BLOCK_BYTES);
        // Keys with the bytes of their last put: a superset of what is there.
        let mut put: HashMap<BlockKey, Vec<u8>> = HashMap::new();
        for call in 0..150u64 {
            let keys = chain(r.below(6) as u64, r.between(1, 6) as u64);
            match r.below(10) {
                0..=3 => {
                    let data: Vec<u8> = (0..keys.len() * BLOCK_BYTES).map(|_| r.next() as u8).collect();
                    let before = cache.match_prefix(&keys);
                    let held = cache.put(&keys, &data).unwrap();
                    assert_eq!(held, keys.len().min(slots as usize), "seed {seed}, call {call}");
                    assert_eq!(cache.match_prefix(&keys), held);
                    for (index, key) in keys.iter().enumerate().take(held).skip(before) {
                        // A block behind a hole may have been there already, with its own bytes.
                        let new = &data[index * BLOCK_BYTES..(index + 1) * BLOCK_BYTES];
                        let mut out = vec![0; keys.len() * BLOCK_BYTES];
                        assert_eq!(cache.get(&keys, &mut out).unwrap(), held);
                        let stored = &out[index * BLOCK_BYTES..(index + 1) * BLOCK_BYTES];
                        assert!(stored == new || put.get(key).is_some_and(|old| old == stored));
                        put.insert(*key, stored.to_vec());
                    }
                }
                4..=6 => {
                    let mut out = vec![7; keys.len() * BLOCK_BYTES];
                    let matched = cache.match_prefix(&keys);
                    assert_eq!(cache.get(&keys, &mut out).unwrap(), matched);
                    for (key, bytes) in keys.iter().zip(out.chunks(BLOCK_BYTES)).take(matched) {
                        assert_eq!(bytes, put[key], "seed {seed}, call {call}");
                    }
                    assert!(
                        out[matched * BLOCK_BYTES..].iter().all(|byte| *byte == 7),
                        "the rest is left as it was"
                    );
                }
                7 => {
                    let ready = keys.iter().filter(|key| cache.match_prefix(&[**key]) == 1).count();
                    assert_eq!(cache.delete(&keys), ready);
                    keys.iter().for_each(|key| drop(put.remove(key)));
                    assert_eq!(cache.match_prefix(&keys), 0);
                }
                8 if r.chance(200) => {
                    cache.clear();
                    put.clear();
                }
                9 if r.chance(300) => {
                    let before = cache.stats().directory.ready;
                    cache = cache_over(&slab, BLOCK_BYTES);
                    assert_eq!(cache.stats().directory.ready, before, "a restart finds every block");
                }
                _ => {}
            }
            let stats = cache.stats().directory;
            assert_eq!(stats.ready + stats.free, slots as usize);
        }
    }
}

/// Threads put, get, delete and clear with eviction all the time; bytes must be those of their keys.
#[test]
fn threads_never_see_bytes_of_another_key() {
    for threads in [0, 2] {
        let block_bytes = 40 << 10;
        let slab = Slab::new(40, block_bytes);
        let memory = FakeMemory::new(&slab, 40, MemoryBugs::default());
        let copies = HostCopyEngine::new(HostCopyConfig { threads, ..HostCopyConfig::default() }).unwrap();
        let cache = BlockCache::new(memory, Box::new(S3Fifo::new(40)), Some(copies), block_bytes);
        let hits: usize = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..4u64)
                .map(|thread| {
                    let cache = &cache;
                    scope.spawn(move || {
                        let mut r = Random::new(thread);
                        let mut out = Vec::new();
                        let mut hits = 0;
                        for _ in 0..150 {
                            let blocks = if r.chance(200) { 30 } else { r.between(1, 6) as u64 };
                            let keys = chain(r.below(8) as u64, blocks);
                            if r.chance(500) {
                                let held = cache.put(&keys, &pattern(&keys, block_bytes)).unwrap();
                                assert!(held <= keys.len());
                            } else if r.chance(30) {
                                cache.clear();
                            } else if r.chance(60) {
                                cache.delete(&keys);
                            }
                            out.resize(keys.len() * block_bytes, 0);
                            let got = cache.get(&keys, &mut out).unwrap();
                            let expected = pattern(&keys[..got], block_bytes);
                            assert!(out[..got * block_bytes] == expected, "other bytes than were put");
                            hits += got;
                        }
                        hits
                    })
                })
                .collect();
            workers.into_iter().map(|worker| worker.join().unwrap()).sum()
        });
        assert!(hits > 100, "{hits} hits: the test says little");
        cache.directory.check().unwrap();
        let stats = cache.stats().directory;
        assert_eq!((stats.filling, stats.draining, stats.pinned), (0, 0, 0));
        // What a restart finds is exactly what is here.
        let after = cache_over(&slab, block_bytes);
        assert_eq!(after.stats().directory.ready, stats.ready);
    }
}

#[test]
fn a_wrong_buffer_is_named_with_its_remedy() {
    let cache = cache_over(&Slab::new(4, BLOCK_BYTES), BLOCK_BYTES);
    let keys = chain(0, 3);
    assert_eq!(
        cache.put(&keys, &[0; 100]).unwrap_err().to_string(),
        "data has 100 bytes, but 3 keys of blocks of 64 bytes need 192: pass a buffer of exactly that size"
    );
    assert_eq!(
        cache.get(&keys, &mut [0; 193]).unwrap_err().to_string(),
        "out has 193 bytes, but 3 keys of blocks of 64 bytes need 192: pass a buffer of exactly that size"
    );
    assert_eq!(cache.match_prefix(&keys), 0, "nothing is stored");
    let huge = WrongBuffer::Length { what: "data", bytes: 1, blocks: 3, block_bytes: usize::MAX };
    assert!(huge.to_string().contains("18446744073709551615"), "no overflow: {huge}");
}

#[test]
fn a_restart_finds_what_was_put_and_not_what_was_deleted_cleared_or_half_filled() {
    let slab = Slab::new(8, BLOCK_BYTES);
    let cache = cache_over(&slab, BLOCK_BYTES);
    let (kept, deleted) = (chain(0, 3), chain(1, 3));
    for keys in [&kept, &deleted] {
        assert_eq!(cache.put(keys, &pattern(keys, BLOCK_BYTES)).unwrap(), 3);
    }
    assert_eq!(cache.delete(&deleted[1..]), 2);
    // A process that dies while it fills.
    let reservation = cache.directory.begin_offload(&chain(2, 2), 0, usize::MAX);
    for reserved in &reservation.reserved {
        let label = SlotLabel {
            key: chain(2, 2)[reserved.index],
            parent: BlockKey::default(),
            engine_hash: EngineHash::default(),
            fill: reserved.fill,
            epoch: cache.memory.epoch(),
        };
        cache.memory.begin_fill(reserved.slot, &label);
    }
    let cache = cache_over(&slab, BLOCK_BYTES);
    let found = [&kept, &deleted, &chain(2, 2)].map(|keys| cache.match_prefix(keys));
    assert_eq!(found, [3, 1, 0]);
    let mut out = vec![0; 3 * BLOCK_BYTES];
    assert_eq!(cache.get(&kept, &mut out).unwrap(), 3);
    assert_eq!(out, pattern(&kept, BLOCK_BYTES));
    cache.clear();
    assert_eq!(cache_over(&slab, BLOCK_BYTES).stats().directory.ready, 0);
}

#[test]
fn a_damaged_block_of_an_earlier_process_is_a_miss_and_makes_room_for_a_good_one() {
    let slab = Slab::new(4, BLOCK_BYTES);
    let keys = chain(0, 3);
    cache_over(&slab, BLOCK_BYTES).put(&keys, &pattern(&keys, BLOCK_BYTES)).unwrap();
    let cache = cache_over(&slab, BLOCK_BYTES);
    slab.damage(cache.directory.slot_of(&keys[1]).unwrap());
    let mut out = vec![0; 3 * BLOCK_BYTES];
    assert_eq!(cache.get(&keys, &mut out).unwrap(), 1);
    assert_eq!(cache.put(&keys, &pattern(&keys, BLOCK_BYTES)).unwrap(), 3);
    assert_eq!(cache.get(&keys, &mut out).unwrap(), 3);
    assert_eq!(out, pattern(&keys, BLOCK_BYTES));
    assert_eq!(cache.stats().directory.pinned, 0);
}

/// A delete between the reservation and the end of a put: the label that the put has written must not survive.
#[test]
fn a_block_deleted_while_it_is_put_is_not_found_after_a_restart() {
    for clear in [false, true] {
        let slab = Slab::new(2, BLOCK_BYTES);
        let cache = cache_over(&slab, BLOCK_BYTES);
        let keys = chain(0, 1);
        let filling = Filling::reserve(&cache, &keys, 0);
        if clear {
            cache.clear();
        } else {
            cache.delete(&keys);
        }
        // As late as can be: it was reserved before the deletion and is labelled after it.
        let reserved = filling.reserved()[0];
        let label = SlotLabel {
            key: keys[0],
            parent: BlockKey::default(),
            engine_hash: EngineHash::default(),
            fill: reserved.fill,
            epoch: cache.memory.epoch(),
        };
        cache.memory.begin_fill(reserved.slot, &label);
        filling.publish(&keys, |_| true);
        assert_eq!(cache_over(&slab, BLOCK_BYTES).match_prefix(&keys), 0);
        assert_eq!(cache.stats().directory.free, 2);
    }
}

/// The last growth is one as well: without it the slots that came with it would never be filled.
#[test]
fn slots_whose_memory_comes_later_are_filled() {
    let slab = Slab::new(6, BLOCK_BYTES);
    let memory = FakeMemory::new(&slab, 2, MemoryBugs::default());
    let cache = BlockCache::new(memory.clone(), Box::new(Lru::new(6)), None, BLOCK_BYTES);
    let keys = chain(0, 6);
    for usable in [2, 4, 6] {
        assert_eq!(cache.put(&keys, &pattern(&keys, BLOCK_BYTES)), Ok(usable));
        memory.grow(2);
    }
}

#[test]
#[should_panic(expected = "slots are shorter than the blocks")]
fn slots_shorter_than_blocks_are_refused() {
    cache_over(&Slab::new(4, BLOCK_BYTES), BLOCK_BYTES + 1);
}
