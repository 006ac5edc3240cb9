//! All calls in any order, against a hash map of the bytes, and from two threads over a ring with faults.

use std::collections::HashMap;
use std::sync::Arc;

use super::l2::test_ring::{self, FakeRing, SOON};
use super::test_blocks::{cache_over, chain, pattern};
use super::*;
use crate::directory::Residency;
use crate::fakes::fake_memory::Slab;
use crate::fakes::random::Random;

const BLOCK_BYTES: usize = 64;

/// Each block in two segments: where they are cut differs from block to block.
fn halves(base: usize, blocks: usize) -> Vec<Segment> {
    (0..blocks)
        .flat_map(|block| {
            let (begin, cut) = (base + block * BLOCK_BYTES, block * 7 % BLOCK_BYTES);
            [
                Segment { address: begin, bytes: cut },
                Segment { address: begin + cut, bytes: BLOCK_BYTES - cut },
            ]
        })
        .collect()
}

fn put(cache: &BlockCache, keys: &[BlockKey], data: &[u8], scattered: bool) -> usize {
    if scattered {
        let segments = halves(data.as_ptr() as usize, keys.len());
        // SAFETY: the segments are parts of `data`.
        unsafe { cache.put_segments(keys, &segments) }.unwrap()
    } else {
        cache.put(keys, data).unwrap()
    }
}

fn get(cache: &BlockCache, keys: &[BlockKey], scattered: bool) -> Vec<Vec<u8>> {
    let mut out = vec![0; keys.len() * BLOCK_BYTES];
    let got = if scattered {
        let segments = halves(out.as_mut_ptr() as usize, keys.len());
        // SAFETY: the segments are distinct parts of `out`.
        unsafe { cache.get_segments(keys, &segments) }.unwrap()
    } else {
        cache.get(keys, &mut out).unwrap()
    };
    out.chunks_exact(BLOCK_BYTES).take(got).map(<[u8]>::to_vec).collect()
}

/// A reservation, with what its holder writes: a block that was deleted meanwhile has none.
struct Open {
    fill: InPlaceFill,
    keys: Vec<BlockKey>,
    writes: Vec<(usize, Option<Vec<u8>>)>,
}

struct Model {
    cache: Arc<BlockCache>,
    slab: Arc<Slab>,
    /// The bytes of every block that was stored and not deleted: a superset of what is there.
    bytes: HashMap<BlockKey, Vec<u8>>,
    leases: Vec<(Lease, Vec<Vec<u8>>)>,
    open: Vec<Open>,
}

impl Model {
    fn new(slots: u32) -> Self {
        let slab = Slab::new(slots, BLOCK_BYTES);
        let cache = Arc::new(cache_over(&slab, BLOCK_BYTES));
        Self { cache, slab, bytes: HashMap::new(), leases: Vec::new(), open: Vec::new() }
    }

    fn residency(&self, keys: &[BlockKey]) -> Vec<Residency> {
        let mut out = Vec::new();
        self.cache.directory.residency(keys, &mut out);
        out
    }

    fn expected(&self, keys: &[BlockKey]) -> Vec<Vec<u8>> {
        let ready = self.residency(keys).into_iter().take_while(|state| *state == Residency::Ready).count();
        keys[..ready].iter().map(|key| self.bytes[key].clone()).collect()
    }

    fn step(&mut self, r: &mut Random) {
        let keys = chain(r.below(5) as u64, r.below(7) as u64);
        let scattered = r.chance(500);
        match r.below(13) {
            0..=2 => {
                let data: Vec<u8> = (0..keys.len() * BLOCK_BYTES).map(|_| r.next() as u8).collect();
                let before = self.residency(&keys);
                let held = put(&self.cache, &keys, &data, scattered);
                for (index, block) in data.chunks_exact(BLOCK_BYTES).enumerate().take(held) {
                    if before[index] == Residency::Absent {
                        self.bytes.insert(keys[index], block.to_vec());
                    }
                }
                let after = self.residency(&keys);
                let leading = after.iter().take_while(|state| **state != Residency::Absent).count();
                assert_eq!(held, leading, "what is refused is absent, and nothing before it");
            }
            3 | 4 => {
                let expected = self.expected(&keys);
                assert_eq!(get(&self.cache, &keys, scattered), expected);
            }
            5 => {
                let expected = self.expected(&keys);
                assert_eq!(self.cache.prefetch(&keys), expected.len());
            }
            6 if self.leases.len() < 4 => {
                let expected = self.expected(&keys);
                let lease = self.cache.lease(&keys);
                assert_eq!(lease.len(), expected.len());
                self.leases.push((lease, expected));
            }
            7 if !self.leases.is_empty() => drop(self.leases.swap_remove(r.below(self.leases.len()))),
            8 if self.open.len() < 3 => self.reserve(r, keys),
            9 | 10 if !self.open.is_empty() => {
                let open = self.open.swap_remove(r.below(self.open.len()));
                self.end(r, open);
            }
            11 => {
                let there = self.residency(&keys).iter().filter(|state| **state != Residency::Absent).count();
                assert_eq!(self.cache.delete(&keys), there);
                self.gone(|key| keys.contains(key));
            }
            12 if r.chance(150) => {
                self.cache.clear();
                self.gone(|_| true);
            }
            _ => {}
        }
        self.check();
    }

    fn gone(&mut self, gone: impl Fn(&BlockKey) -> bool) {
        self.bytes.retain(|key, _| !gone(key));
        for open in &mut self.open {
            for (index, written) in &mut open.writes {
                if gone(&open.keys[*index]) {
                    *written = None;
                }
            }
        }
    }

    fn reserve(&mut self, r: &mut Random, keys: Vec<BlockKey>) {
        let before = self.residency(&keys);
        let mut fill = self.cache.reserve(&keys);
        let mut writes = Vec::new();
        let mut refused = false;
        for (index, state) in before.iter().enumerate() {
            let place = fill.places()[index];
            assert_eq!(place == Place::Present, *state != Residency::Absent);
            refused |= place == Place::NoRoom;
            assert!(!(refused && matches!(place, Place::Write(_))), "all behind it are refused");
            if let Some(block) = fill.block_mut(index) {
                r.next()
                    .to_le_bytes()
                    .iter()
                    .cycle()
                    .zip(block.iter_mut())
                    .for_each(|(from, to)| *to = *from);
                writes.push((index, Some(block.to_vec())));
            }
        }
        assert_eq!(fill.reserved(), writes.len());
        self.open.push(Open { fill, keys, writes });
    }

    fn end(&mut self, r: &mut Random, open: Open) {
        let Open { fill, keys, writes } = open;
        let count = match r.below(4) {
            0 => 0,
            1 => r.below(writes.len() + 1),
            _ => writes.len(),
        };
        let held = match count {
            0 if r.chance(500) => {
                drop(fill);
                None
            }
            _ if count == writes.len() => Some(fill.commit()),
            _ => Some(fill.commit_first(count)),
        };
        for (index, written) in writes.iter().take(count) {
            // A block that was deleted meanwhile may have been stored by another call since.
            if let Some(written) = written {
                self.bytes.insert(keys[*index], written.clone());
                assert_eq!(self.residency(&keys[*index..=*index]), [Residency::Ready]);
            }
        }
        let kept: Vec<usize> = writes.iter().skip(count).map(|(index, _)| *index).collect();
        if let Some((held, first)) = held.zip(kept.first()) {
            assert!(held <= *first, "a block that was given back does not count");
        }
    }

    fn check(&self) {
        for (lease, expected) in &self.leases {
            for (index, bytes) in expected.iter().enumerate() {
                assert_eq!(lease.block(index), Some(&bytes[..]), "a lease keeps its bytes");
            }
        }
        self.cache.directory.check().unwrap();
        let stats = self.cache.stats().directory;
        assert_eq!(stats.free + stats.filling + stats.ready + stats.draining, stats.slot_count);
        let writes = self.open.iter().flat_map(|open| &open.writes);
        assert_eq!(stats.filling, writes.filter(|(_, written)| written.is_some()).count());
    }
}

#[test]
fn all_calls_in_any_order_agree_with_a_hash_map() {
    for seed in 0..400 {
        let mut r = Random::new(seed);
        let mut model = Model::new(r.between(1, 14) as u32);
        for _ in 0..150 {
            model.step(&mut r);
        }
        model.leases.clear();
        model.open.clear();
        model.check();
        let stats = model.cache.stats().directory;
        assert_eq!((stats.filling, stats.draining, stats.pinned), (0, 0, 0), "seed {seed}");
        let later = cache_over(&model.slab, BLOCK_BYTES);
        assert_eq!(later.stats().directory.ready, stats.ready, "what a restart finds is what is here");
    }
}

/// The bytes of a block are those of its key, whoever stores it.
fn work(cache: &Arc<BlockCache>, seed: u64) -> usize {
    let mut r = Random::new(seed);
    let mut leases: Vec<(Lease, Vec<BlockKey>)> = Vec::new();
    let mut open: Vec<(InPlaceFill, usize)> = Vec::new();
    let mut hits = 0;
    for _ in 0..400 {
        let keys = chain(r.below(8) as u64, r.between(1, 8) as u64);
        match r.below(12) {
            0..=2 => assert!(put(cache, &keys, &pattern(&keys, BLOCK_BYTES), r.chance(500)) <= keys.len()),
            3..=5 => {
                let got = get(cache, &keys, r.chance(500)).concat();
                assert!(
                    got == pattern(&keys[..got.len() / BLOCK_BYTES], BLOCK_BYTES),
                    "other bytes than were put"
                );
                hits += got.len() / BLOCK_BYTES;
            }
            6 => assert!(cache.prefetch(&keys) <= keys.len()),
            7 if leases.len() < 2 => leases.push((cache.lease(&keys), keys)),
            8 if open.len() < 2 => {
                let mut fill = cache.reserve(&keys);
                let written = r.below(fill.reserved() + 2);
                let mut position = 0;
                for (index, key) in keys.iter().enumerate() {
                    if let Some(block) = fill.block_mut(index) {
                        let bytes =
                            if position < written { pattern(&[*key], BLOCK_BYTES) } else { vec![9; 64] };
                        block.copy_from_slice(&bytes);
                        position += 1;
                    }
                }
                open.push((fill, written));
            }
            9 if !open.is_empty() => {
                let (fill, written) = open.swap_remove(r.below(open.len()));
                if r.chance(300) {
                    drop(fill);
                } else {
                    fill.commit_first(written);
                }
            }
            10 if r.chance(300) => assert!(cache.delete(&keys) <= keys.len()),
            10 if r.chance(30) => cache.clear(),
            _ if !leases.is_empty() => {
                let (lease, keys) = leases.swap_remove(r.below(leases.len()));
                for (index, key) in keys.iter().enumerate().take(lease.len()) {
                    assert_eq!(lease.block(index).unwrap(), pattern(&[*key], BLOCK_BYTES));
                }
                hits += lease.len();
            }
            _ => {}
        }
    }
    hits
}

#[test]
fn two_threads_with_all_calls() {
    for seed in 0..12 {
        let ring: Arc<FakeRing> = Arc::default();
        *ring.faulty.lock() = (50, seed);
        let cache = Arc::new(test_ring::cache(&ring, 30, |config| config.demotions_max = 6));
        let hits: usize = std::thread::scope(|scope| {
            let workers = [0, 1].map(|thread| {
                let cache = &cache;
                scope.spawn(move || work(cache, seed * 2 + thread))
            });
            workers.into_iter().map(|worker| worker.join().unwrap()).sum()
        });
        assert!(hits > 100, "{hits} hits: the test says little");
        assert!(cache.flush(SOON));
        cache.directory.check().unwrap();
        let stats = cache.stats().directory;
        assert_eq!((stats.filling, stats.draining, stats.pinned), (0, 0, 0), "seed {seed}");
        assert_eq!(stats.free + stats.ready, stats.slot_count);
    }
}
