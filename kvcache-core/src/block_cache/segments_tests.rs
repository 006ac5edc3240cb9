//! Blocks in pieces, against a hash map of their bytes.

use std::collections::HashMap;
use std::sync::Arc;

use super::l2::test_ring::{self, FakeRing, SOON};
use super::test_blocks::{cache_over, chain, pattern};
use super::*;
use crate::fakes::fake_memory::Slab;
use crate::fakes::random::Random;

const BLOCK_BYTES: usize = 64;

/// What lies between the segments.
const GAP: u8 = 0xa5;

/// Blocks cut in pieces that lie in any order, with gaps, in one piece of memory.
struct Scattered {
    arena: Vec<u8>,
    /// Offsets and lengths, block after block.
    cuts: Vec<(usize, usize)>,
    per_block: usize,
}

impl Scattered {
    fn new(r: &mut Random, blocks: usize) -> Self {
        let per_block = r.between(1, 5);
        let mut cuts = Vec::new();
        for _ in 0..blocks {
            let mut ends: Vec<usize> = (1..per_block).map(|_| r.below(BLOCK_BYTES + 1)).collect();
            ends.push(BLOCK_BYTES);
            ends.sort_unstable();
            let mut begin = 0;
            for end in ends {
                cuts.push((0, end - begin));
                begin = end;
            }
        }
        let mut order: Vec<usize> = (0..cuts.len()).collect();
        for last in (1..order.len()).rev() {
            order.swap(last, r.below(last + 1));
        }
        let mut end = 0;
        for at in order {
            cuts[at].0 = end + r.below(4);
            end = cuts[at].0 + cuts[at].1;
        }
        Self { arena: vec![GAP; end + 4], cuts, per_block }
    }

    fn segments(&mut self) -> Vec<Segment> {
        let base = self.arena.as_mut_ptr() as usize;
        self.cuts.iter().map(|(at, bytes)| Segment { address: base + at, bytes: *bytes }).collect()
    }

    fn block(&self, index: usize) -> Vec<u8> {
        let cuts = &self.cuts[index * self.per_block..(index + 1) * self.per_block];
        cuts.iter().flat_map(|(at, bytes)| self.arena[*at..at + bytes].to_vec()).collect()
    }

    fn write(&mut self, data: &[u8]) {
        let mut rest = data;
        for (at, bytes) in &self.cuts {
            let (piece, after) = rest.split_at(*bytes);
            self.arena[*at..at + bytes].copy_from_slice(piece);
            rest = after;
        }
    }

    /// Bytes that are in no segment of the first `blocks`.
    fn others_are_untouched(&self, blocks: usize) -> bool {
        let mut arena = self.arena.clone();
        for (at, bytes) in &self.cuts[..blocks * self.per_block] {
            arena[*at..at + bytes].fill(GAP);
        }
        arena.iter().all(|byte| *byte == GAP)
    }
}

fn put(cache: &BlockCache, keys: &[BlockKey], data: &mut Scattered) -> usize {
    let segments = data.segments();
    // SAFETY: the segments lie in `data`, which nobody else has.
    unsafe { cache.put_segments(keys, &segments) }.unwrap()
}

fn get(cache: &BlockCache, keys: &[BlockKey], out: &mut Scattered) -> usize {
    let segments = out.segments();
    // SAFETY: the segments lie in `out`, which nobody else has, apart from each other.
    unsafe { cache.get_segments(keys, &segments) }.unwrap()
}

#[test]
fn pieces_and_whole_buffers_agree_with_a_hash_map() {
    for seed in 0..300 {
        let mut r = Random::new(seed);
        // Room for everything, so that the hash map is what the cache holds.
        let cache = cache_over(&Slab::new(64, BLOCK_BYTES + r.below(20)), BLOCK_BYTES);
        let mut stored: HashMap<BlockKey, Vec<u8>> = HashMap::new();
        for _ in 0..60 {
            let keys = chain(r.below(4) as u64, r.below(9) as u64);
            let held = keys.iter().take_while(|key| stored.contains_key(key)).count();
            let data: Vec<u8> = (0..keys.len() * BLOCK_BYTES).map(|_| r.next() as u8).collect();
            let mut pieces = Scattered::new(&mut r, keys.len());
            match r.below(5) {
                0 => {
                    pieces.write(&data);
                    assert_eq!(put(&cache, &keys, &mut pieces), keys.len());
                }
                1 => assert_eq!(cache.put(&keys, &data), Ok(keys.len())),
                2 => {
                    assert_eq!(get(&cache, &keys, &mut pieces), held);
                    for (index, key) in keys[..held].iter().enumerate() {
                        assert_eq!(pieces.block(index), stored[key], "seed {seed}");
                    }
                    assert!(pieces.others_are_untouched(held), "seed {seed}");
                    continue;
                }
                3 => {
                    let mut out = vec![GAP; keys.len() * BLOCK_BYTES];
                    assert_eq!(cache.get(&keys, &mut out), Ok(held));
                    for (key, bytes) in keys[..held].iter().zip(out.chunks(BLOCK_BYTES)) {
                        assert_eq!(bytes, stored[key], "seed {seed}");
                    }
                    continue;
                }
                _ => {
                    let tail = &keys[r.below(keys.len() + 1)..];
                    cache.delete(tail);
                    tail.iter().for_each(|key| drop(stored.remove(key)));
                    continue;
                }
            }
            for (key, bytes) in keys.iter().zip(data.chunks(BLOCK_BYTES)) {
                stored.entry(*key).or_insert_with(|| bytes.to_vec());
            }
        }
        cache.directory.check().unwrap();
    }
}

/// Blocks in several pieces come from L2 by way of a buffer, some blocks at a time.
#[test]
fn pieces_come_from_both_tiers() {
    for seed in 0..100 {
        let mut r = Random::new(seed);
        let ring: Arc<FakeRing> = Arc::default();
        let [first, second] = [(); 2].map(|()| test_ring::cache(&ring, 20, |_| {}));
        let keys = chain(1, 12);
        let data = pattern(&keys, BLOCK_BYTES);
        let mut pieces = Scattered::new(&mut r, keys.len());
        pieces.write(&data);
        assert_eq!(put(&first, &keys, &mut pieces), 12);
        assert!(first.flush(SOON));
        // The second has some of them in L1, and the ring has lost one.
        let here = r.below(keys.len());
        second.put(&keys[..here], &data[..here * BLOCK_BYTES]).unwrap();
        assert!(second.flush(SOON));
        second.delete_here(&keys[r.below(here + 1)..here]);
        let missing = r.below(2 * keys.len());
        ring.values.lock().retain(|name, _| keys.get(missing) != Some(&name.block));
        let resident: Vec<bool> = keys.iter().map(|key| second.directory.slot_of(key).is_some()).collect();
        let expected = (0..keys.len()).take_while(|index| resident[*index] || *index != missing).count();
        let mut out = Scattered::new(&mut r, keys.len());
        assert_eq!(get(&second, &keys, &mut out), expected, "seed {seed}");
        for index in 0..expected {
            assert_eq!(out.block(index), data[index * BLOCK_BYTES..(index + 1) * BLOCK_BYTES], "seed {seed}");
        }
        // What came is in L1 now.
        ring.values.lock().clear();
        let mut out = vec![0; data.len()];
        assert_eq!(second.get(&keys, &mut out), Ok(expected));
        assert!(out[..expected * BLOCK_BYTES] == data[..expected * BLOCK_BYTES]);
    }
}

#[test]
fn damage_in_l2_ends_the_pieces_there() {
    let ring: Arc<FakeRing> = Arc::default();
    let [first, second] = [(); 2].map(|()| test_ring::cache(&ring, 20, |_| {}));
    let keys = chain(1, 6);
    first.put(&keys, &pattern(&keys, BLOCK_BYTES)).unwrap();
    assert!(first.flush(SOON));
    *ring.faulty.lock() = (1000, 0);
    let mut out = Scattered::new(&mut Random::new(3), keys.len());
    assert_eq!(get(&second, &keys, &mut out), 0);
    *ring.faulty.lock() = (0, 0);
    assert_eq!(get(&second, &keys, &mut out), 6);
}

#[test]
fn segments_that_do_not_fit_are_named() {
    let cache = cache_over(&Slab::new(4, BLOCK_BYTES), BLOCK_BYTES);
    let keys = chain(0, 3);
    let at = |address, bytes| Segment { address, bytes };
    let max = usize::MAX;
    let cases = [
        (vec![], "0 segments for 3 keys: pass the same number of segments for each block, at least one"),
        (
            vec![at(0, 64); 4],
            "4 segments for 3 keys: pass the same number of segments for each block, at least one",
        ),
        (
            vec![at(0, 64), at(0, 64), at(0, 63)],
            "the segments of block 2 have 63 bytes, but a block has 64: pass segments that add up to exactly that",
        ),
        (
            vec![at(0, 30), at(0, 34), at(0, max), at(0, 65), at(0, 64), at(0, 0)],
            "the segments of block 1 have 18446744073709551615 bytes, but a block has 64: pass segments that add up to \
             exactly that",
        ),
        (
            vec![at(8, 64), at(8, 0), at(8, 32), at(max - 31, 32), at(8, 64), at(8, 0)],
            "segment 1 of block 1: no 32 bytes can lie at address 0xffffffffffffffe0",
        ),
    ];
    for (segments, message) in cases {
        // SAFETY: nothing is read or written since they do not fit.
        let (put, get) =
            unsafe { (cache.put_segments(&keys, &segments), cache.get_segments(&keys, &segments)) };
        assert_eq!(put.unwrap_err().to_string(), message);
        assert_eq!(get.unwrap_err().to_string(), message);
    }
    assert_eq!(cache.stats().directory.free, 4, "nothing is stored");
    // SAFETY: there are none.
    assert_eq!(unsafe { (cache.put_segments(&[], &[]), cache.get_segments(&[], &[])) }, (Ok(0), Ok(0)));
}
