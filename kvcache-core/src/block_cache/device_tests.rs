//! Blocks of a device that is a fake copy engine with streams, which performs copies late, in parts, and fails.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use super::l2::test_ring::{self, FakeRing, SOON};
use super::test_blocks::{cache_over, chain, pattern};
use super::*;
use crate::copy_engine::CopyEngine;
use crate::fakes::fake_copies::{CopyBehaviour, LazyCopies};
use crate::fakes::fake_memory::{Bytes, Slab};
use crate::fakes::random::Random;
use crate::slab::page_bytes;

const BLOCK_BYTES: usize = 64;
const STREAM: Option<u64> = Some(7);

fn copies(seed: u64) -> Arc<LazyCopies> {
    let behaviour = CopyBehaviour { streams: true, pinned_offloads: true, ..CopyBehaviour::default() };
    Arc::new(LazyCopies::new(seed, behaviour))
}

fn wait_until(what: impl Fn() -> bool) {
    let began = Instant::now();
    while !what() {
        assert!(began.elapsed() < SOON, "it never happens");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A cache whose slots are all pinned.
fn on_device(cache: BlockCache, copies: &Arc<LazyCopies>) -> BlockCache {
    let cache = cache.with_device(Arc::clone(copies) as _).unwrap();
    wait_until(|| !cache.pinning().unwrap().is_running);
    cache
}

/// The device's memory: blocks of two segments, which lie far apart as the layers of a tensor do.
struct DeviceMemory(Bytes);

impl DeviceMemory {
    const FIRST: usize = 24;
    const BLOCKS: usize = 16;

    fn new() -> Self {
        Self(Bytes::new(Self::BLOCKS * BLOCK_BYTES))
    }

    fn segments(&self, blocks: usize) -> Vec<Segment> {
        let (first, second) = (self.0.address(), self.0.address() + Self::FIRST * Self::BLOCKS);
        let rest = BLOCK_BYTES - Self::FIRST;
        (0..blocks)
            .flat_map(|block| {
                [
                    Segment { address: first + block * Self::FIRST, bytes: Self::FIRST },
                    Segment { address: second + block * rest, bytes: rest },
                ]
            })
            .collect()
    }

    fn words(block: usize) -> impl Iterator<Item = usize> {
        let (first, rest) = (Self::FIRST / 8, (BLOCK_BYTES - Self::FIRST) / 8);
        let second = first * Self::BLOCKS;
        (block * first..(block + 1) * first).chain(second + block * rest..second + (block + 1) * rest)
    }

    fn write(&self, block: usize, bytes: &[u8]) {
        for (word, bytes) in Self::words(block).zip(bytes.chunks_exact(8)) {
            self.0.set_word(word, u64::from_le_bytes(bytes.try_into().unwrap()));
        }
    }

    fn read(&self, block: usize) -> Vec<u8> {
        Self::words(block).flat_map(|word| self.0.word(word).to_le_bytes()).collect()
    }

    fn put(&self, cache: &BlockCache, keys: &[BlockKey], stream: Option<u64>) -> usize {
        // SAFETY: the segments lie in this memory, which only the test and its copies use, one after the other.
        unsafe { cache.put_device_segments(keys, &self.segments(keys.len()), stream) }.unwrap()
    }

    fn get(&self, cache: &BlockCache, keys: &[BlockKey], stream: Option<u64>) -> usize {
        // SAFETY: as for `put`; the segments do not overlap.
        unsafe { cache.get_device_segments(keys, &self.segments(keys.len()), stream) }.unwrap()
    }
}

#[test]
fn device_blocks_agree_with_a_hash_map_while_copies_fail() {
    let mut failed = 0;
    for seed in 0..120 {
        let mut r = Random::new(seed);
        let copies = copies(seed);
        let slots = r.between(4, 40) as u32;
        let cache = on_device(cache_over(&Slab::new(slots, BLOCK_BYTES), BLOCK_BYTES), &copies);
        copies.behave(|behaviour| {
            behaviour.refuse = 200;
            behaviour.fail = if seed % 2 == 0 { 100 } else { 0 };
            behaviour.batches_max = 2;
        });
        let memory = DeviceMemory::new();
        // A superset of what is there, by block.
        let mut stored: HashMap<BlockKey, Vec<u8>> = HashMap::new();
        for call in 0..60 {
            let keys = chain(r.below(4) as u64, r.below(12) as u64);
            let data: Vec<u8> = (0..keys.len() * BLOCK_BYTES).map(|_| r.next() as u8).collect();
            let blocks = data.chunks_exact(BLOCK_BYTES);
            let absent: Vec<bool> = keys.iter().map(|key| cache.directory.slot_of(key).is_none()).collect();
            let there = cache.match_prefix(&keys);
            match r.below(5) {
                choice @ 0..2 => {
                    blocks.clone().enumerate().for_each(|(block, bytes)| memory.write(block, bytes));
                    let held = match choice {
                        0 => memory.put(&cache, &keys, STREAM),
                        _ => cache.put(&keys, &data).unwrap(),
                    };
                    assert!(held >= there.min(keys.len()) && held <= keys.len());
                    assert!(choice == 0 && seed % 2 == 0 || held == keys.len().min(slots as usize));
                    for (index, bytes) in blocks.enumerate().filter(|(index, _)| absent[*index]) {
                        stored.insert(keys[index], bytes.to_vec());
                    }
                    assert_eq!(cache.match_prefix(&keys), held, "seed {seed}, call {call}");
                }
                2 | 3 => {
                    let got = memory.get(&cache, &keys, STREAM);
                    assert!(got <= there && (seed % 2 == 0 || got == there));
                    for (index, key) in keys[..got].iter().enumerate() {
                        assert_eq!(memory.read(index), stored[key], "seed {seed}, call {call}");
                    }
                }
                _ => {
                    let mut out = vec![0; keys.len() * BLOCK_BYTES];
                    assert_eq!(cache.get(&keys, &mut out), Ok(there));
                    for (key, bytes) in keys[..there].iter().zip(out.chunks_exact(BLOCK_BYTES)) {
                        assert_eq!(bytes, stored[key], "seed {seed}, call {call}");
                    }
                }
            }
            assert_eq!((copies.in_flight().batches, copies.conflict()), (0, None));
            let stats = cache.stats().directory;
            assert_eq!((stats.filling, stats.draining, stats.pinned), (0, 0, 0));
        }
        cache.directory.check().unwrap();
        assert_eq!(cache.failures().is_empty(), copies.counts().failed == 0);
        failed += copies.counts().failed;
    }
    assert!(failed > 100, "{failed} failures: the test says little");
}

#[test]
fn a_call_comes_after_what_the_stream_holds() {
    let copies = copies(1);
    let cache = on_device(cache_over(&Slab::new(8, BLOCK_BYTES), BLOCK_BYTES), &copies);
    let (keys, memory) = (chain(0, 5), DeviceMemory::new());
    copies.keep_batches();
    assert_eq!(memory.put(&cache, &keys, STREAM), 5);
    assert_eq!(memory.get(&cache, &keys, Some(8)), 5);
    let fences: Vec<_> = copies.batches().iter().map(LazyCopies::fenced_by).collect();
    let (put, get) = (Some((7, 0)), Some((8, 1)));
    assert_eq!(fences, [put, put, put, get, get, get], "one fence a call, for each batch of two blocks");
    assert_eq!(memory.get(&cache, &[], STREAM), 0);
}

#[test]
fn what_cannot_be_copied_is_a_miss_with_a_reason() {
    let copies = copies(1);
    let cache = on_device(cache_over(&Slab::new(8, BLOCK_BYTES), BLOCK_BYTES), &copies);
    let (keys, memory) = (chain(0, 5), DeviceMemory::new());
    assert_eq!(memory.put(&cache, &keys, None), 0);
    assert_eq!(cache.failures(), ["copy failed: the engine's stream was not given"]);
    assert_eq!(memory.put(&cache, &keys, STREAM), 5);
    assert_eq!(memory.get(&cache, &keys, None), 0);
    copies.behave(|behaviour| behaviour.fail = 1000);
    assert_eq!((memory.get(&cache, &keys, STREAM), memory.put(&cache, &chain(1, 2), STREAM)), (0, 0));
    copies.behave(|behaviour| (behaviour.fail, behaviour.batches_max) = (0, 0));
    assert_eq!(memory.get(&cache, &keys, STREAM), 0);
    let reasons = ["planted", "the copy engine was full for too long", "the engine's stream was not given"];
    assert_eq!(cache.failures(), reasons.map(|reason| format!("copy failed: {reason}")));
    copies.behave(|behaviour| behaviour.batches_max = 64);
    assert_eq!(memory.get(&cache, &keys, STREAM), 5);
    let stats = cache.stats().directory;
    assert_eq!((stats.filling, stats.draining, stats.pinned, stats.ready), (0, 0, 0, 5));
}

#[test]
fn without_a_device_there_is_no_device_memory() {
    let cache = cache_over(&Slab::new(8, BLOCK_BYTES), BLOCK_BYTES);
    let (keys, memory) = (chain(0, 2), DeviceMemory::new());
    let segments = memory.segments(2);
    // SAFETY: nothing is copied.
    let (put, get) = unsafe {
        (
            cache.put_device_segments(&keys, &segments, STREAM),
            cache.get_device_segments(&keys, &segments, STREAM),
        )
    };
    assert_eq!((put, get), (Err(WrongBuffer::NoDevice), Err(WrongBuffer::NoDevice)));
    assert!(cache.failures().is_empty() && cache.pinning().is_none());
    let cache = on_device(cache, &copies(1));
    // SAFETY: as above.
    let wrong = unsafe { cache.put_device_segments(&keys, &segments[..3], STREAM) };
    assert_eq!(wrong, Err(WrongBuffer::SegmentCount { segments: 3, blocks: 2 }));
}

/// Only slots that are pinned are filled; what an earlier process left is served from where it is.
#[test]
fn slots_are_filled_as_far_as_they_are_pinned() {
    for warm in [0, 2] {
        let block_bytes = page_bytes();
        let slab = Slab::new(16, block_bytes);
        let earlier = chain(0, warm);
        cache_over(&slab, block_bytes).put(&earlier, &pattern(&earlier, block_bytes)).unwrap();
        let copies = copies(1);
        copies.refuse_to_register_after(0);
        let cache = on_device(cache_over(&slab, block_bytes), &copies);
        assert!(cache.pinning().unwrap().failure.is_some());
        let stats = cache.stats().directory;
        assert_eq!((stats.ready as u64, stats.unusable as u64), (warm, 16 - warm));
        let keys = chain(1, 4);
        assert_eq!(cache.put(&keys, &pattern(&keys, block_bytes)), Ok(0), "nothing is pinned");
        let mut out = vec![0; earlier.len() * block_bytes];
        assert_eq!(cache.get(&earlier, &mut out), Ok(earlier.len()));
        assert!(out == pattern(&earlier, block_bytes));
    }
}

#[test]
fn blocks_of_l2_reach_the_device() {
    let ring: Arc<FakeRing> = Arc::default();
    let first = test_ring::cache(&ring, 20, |_| {});
    let copies = copies(1);
    let second = test_ring::cache_with(&ring, 4, |cache| on_device(cache, &copies), |_| {});
    let keys = chain(0, 6);
    let data = pattern(&keys, BLOCK_BYTES);
    first.put(&keys, &data).unwrap();
    assert!(first.flush(SOON));
    let memory = DeviceMemory::new();
    second.put(&keys[..1], &data[..BLOCK_BYTES]).unwrap();
    assert!(second.flush(SOON));
    assert_eq!(memory.get(&second, &keys, STREAM), 4, "as many as there are slots");
    assert!((0..4).all(|block| memory.read(block) == data[block * BLOCK_BYTES..(block + 1) * BLOCK_BYTES]));
    // The other way.
    let other = chain(1, 3);
    assert_eq!(memory.put(&second, &other, STREAM), 3);
    assert!(second.flush(SOON));
    let mut out = vec![0; 3 * BLOCK_BYTES];
    assert_eq!(first.get(&other, &mut out), Ok(3));
    assert!(out == data[..3 * BLOCK_BYTES]);
}
