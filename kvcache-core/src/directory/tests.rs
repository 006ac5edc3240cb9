use std::collections::{HashMap, HashSet};

use super::*;
use crate::eviction::{Lru, S3Fifo};
use crate::fakes::random::Random;

fn key(document: usize, index: usize) -> BlockKey {
    let mut bytes = [0; 16];
    bytes[..8]
        .copy_from_slice(&crate::fakes::random::mix((document * 1000 + index) as u64 + 1).to_le_bytes());
    bytes[8] = document as u8;
    bytes[9] = index as u8;
    BlockKey(bytes)
}

fn chain(document: usize, blocks: usize) -> Vec<BlockKey> {
    (0..blocks).map(|index| key(document, index)).collect()
}

fn lru(slots: u32) -> Directory {
    Directory::new(slots, Box::new(Lru::new(slots)))
}

fn fills(reservation: &Reservation) -> Vec<(SlotId, FillId)> {
    reservation.reserved.iter().map(|reserved| (reserved.slot, reserved.fill)).collect()
}

/// Stores what is absent of a chain and says that all of it arrived.
fn store(directory: &Directory, chain: &[BlockKey]) -> Reservation {
    let reservation = directory.begin_offload(chain, 0, usize::MAX);
    directory.complete_fills(&fills(&reservation), true);
    reservation
}

type Fills = Vec<(SlotId, FillId)>;

/// What the directory should believe: a plain map, and the work that is under way.
#[derive(Default)]
struct Oracle {
    /// Key to slot, fill and whether it is ready.
    resident: HashMap<BlockKey, (SlotId, FillId, bool)>,
    fills: Vec<(Fills, Vec<BlockKey>)>,
    loads: Vec<Vec<SlotId>>,
    usable: usize,
    highest: FillId,
}

impl Oracle {
    fn leading(&self, keys: &[BlockKey], ready_only: bool) -> usize {
        let usable =
            |key: &&BlockKey| self.resident.get(*key).is_some_and(|(_, _, ready)| *ready || !ready_only);
        keys.iter().take_while(usable).count()
    }

    /// Slots that some copy may still touch.
    fn in_use(&self) -> HashSet<SlotId> {
        let filling = self.fills.iter().flat_map(|(fills, _)| fills.iter().map(|(slot, _)| *slot));
        filling.chain(self.loads.iter().flatten().copied()).collect()
    }

    fn check(&self, directory: &Directory) {
        directory.check().unwrap();
        let stats = directory.stats();
        let ready: HashSet<SlotId> =
            self.resident.values().filter(|(_, _, ready)| *ready).map(|(s, _, _)| *s).collect();
        let busy = self.in_use();
        assert_eq!(stats.ready, ready.len());
        assert_eq!(stats.filling, self.resident.len() - ready.len());
        assert_eq!(stats.pinned, ready.intersection(&busy).count());
        let resident: HashSet<SlotId> = self.resident.values().map(|(slot, _, _)| *slot).collect();
        assert_eq!(resident.len(), self.resident.len(), "two keys in one slot");
        assert_eq!(stats.draining, busy.difference(&resident).count());
        let (usable, unusable): (Vec<SlotId>, Vec<SlotId>) =
            busy.union(&resident).copied().partition(|slot| slot.index() < self.usable);
        assert_eq!(stats.free, self.usable - usable.len(), "a slot leaks");
        assert_eq!(stats.unusable, stats.slot_count - self.usable - unusable.len());
    }
}

/// Any order of operations, against the oracle; each operation is followed by a check of every internal invariant.
fn model(seed: u64) {
    let mut r = Random::new(seed);
    let slots = r.between(2, 24) as u32;
    let policy: Box<dyn EvictionPolicy> =
        if r.chance(500) { Box::new(Lru::new(slots)) } else { Box::new(S3Fifo::new(slots)) };
    let directory = Directory::new(slots, policy);
    let mut oracle = Oracle { usable: slots as usize, ..Oracle::default() };
    if r.chance(300) {
        oracle.usable = r.below(slots as usize + 1);
        directory.limit_usable(oracle.usable as u32);
    }
    let documents = slots as usize / 2 + 1;
    for _ in 0..200 {
        let keys = chain(r.below(documents), r.between(1, 10));
        match r.below(12) {
            0 => {
                let found = directory.match_prefix(&keys);
                let ready = oracle.leading(&keys, true);
                let pending =
                    keys[ready..].iter().take_while(|key| oracle.resident.contains_key(key)).count();
                assert_eq!((found.ready, found.pending), (ready, pending));
                let mut residency = Vec::new();
                directory.residency(&keys, &mut residency);
                for (key, found) in keys.iter().zip(residency) {
                    let expected = match oracle.resident.get(key) {
                        None => Residency::Absent,
                        Some((_, _, true)) => Residency::Ready,
                        Some(_) => Residency::Filling,
                    };
                    assert_eq!(found, expected);
                    assert_eq!(directory.slot_of(key).is_some(), expected == Residency::Ready);
                }
            }
            1 | 2 => {
                let pinned = directory.begin_load(&keys);
                let expected: Vec<SlotId> =
                    keys[..oracle.leading(&keys, true)].iter().map(|key| oracle.resident[key].0).collect();
                assert_eq!(pinned, expected, "the leading ready blocks and nothing behind a hole");
                oracle.loads.push(pinned);
            }
            3 if !oracle.loads.is_empty() => {
                let pick = r.below(oracle.loads.len());
                let slots = oracle.loads.swap_remove(pick);
                directory.end_load(&slots);
            }
            4..=6 => {
                let from = r.below(keys.len() + 1);
                let busy = oracle.in_use();
                let evictions_max = if r.chance(500) { usize::MAX } else { r.below(4) };
                let free = directory.stats().free;
                let reservation = directory.begin_offload(&keys, from, evictions_max);
                assert!(reservation.evicted.len() <= evictions_max);
                let hits: Vec<usize> = (from..reservation.refused_from().unwrap_or(keys.len()))
                    .filter(|index| oracle.resident.get(&keys[*index]).is_some_and(|(_, _, ready)| *ready))
                    .collect();
                assert_eq!(reservation.hits, hits);
                let share_is_used = reservation.reserved.len() == free + evictions_max.min(slots as usize);
                let over_share = reservation.refused.is_some_and(|(_, why)| why == Refusal::OverShare);
                assert!(!over_share || share_is_used);
                for (slot, evicted) in &reservation.evicted {
                    assert!(!keys.contains(evicted), "a chain's own block is evicted for its tail");
                    assert!(!busy.contains(slot), "a slot in use is evicted");
                    assert!(slot.index() < oracle.usable, "a slot is emptied that cannot be filled");
                    let (held, _, ready) = oracle.resident.remove(evicted).unwrap();
                    assert!(ready && held == *slot);
                }
                let absent: Vec<usize> =
                    (from..keys.len()).filter(|index| !oracle.resident.contains_key(&keys[*index])).collect();
                let taken: Vec<usize> = reservation.reserved.iter().map(|reserved| reserved.index).collect();
                assert_eq!(taken, absent[..taken.len()], "in key order and nothing behind a hole");
                assert_eq!(reservation.refused_from(), absent.get(taken.len()).copied());
                let busy_slots: HashSet<SlotId> =
                    busy.into_iter().chain(oracle.resident.values().map(|(slot, _, _)| *slot)).collect();
                for reserved in &reservation.reserved {
                    assert!(!busy_slots.contains(&reserved.slot) && reserved.slot.index() < oracle.usable);
                    assert!(reserved.fill > oracle.highest, "fill ids grow");
                    oracle.highest = reserved.fill;
                    oracle.resident.insert(keys[reserved.index], (reserved.slot, reserved.fill, false));
                }
                if !taken.is_empty() {
                    oracle
                        .fills
                        .push((fills(&reservation), taken.iter().map(|index| keys[*index]).collect()));
                }
            }
            7 | 8 if !oracle.fills.is_empty() => {
                let pick = r.below(oracle.fills.len());
                let (fills, keys) = oracle.fills.swap_remove(pick);
                let ok = r.chance(800);
                let ready = directory.complete_fills(&fills, ok);
                let mut expected = Vec::new();
                for ((slot, fill), key) in fills.iter().zip(&keys) {
                    match oracle.resident.get_mut(key).filter(|(_, current, _)| current == fill) {
                        Some(entry) if ok => {
                            entry.2 = true;
                            expected.push(*slot);
                        }
                        Some(_) => drop(oracle.resident.remove(key)),
                        None => {}
                    }
                }
                assert_eq!(ready, expected);
                assert_eq!(directory.complete_fills(&fills, true), [], "a stale fill completes nothing");
            }
            9 => {
                let removed = directory.delete(&keys);
                for key in &keys {
                    let entry = oracle.resident.remove(key);
                    let found = removed.iter().find(|(_, removed)| removed == key).map(|(slot, _)| *slot);
                    assert_eq!(found, entry.map(|(slot, _, _)| slot));
                }
            }
            10 if r.chance(100) => {
                directory.clear();
                oracle.resident.clear();
            }
            11 if oracle.usable < slots as usize && r.chance(300) => {
                oracle.usable += r.between(1, slots as usize - oracle.usable);
                directory.limit_usable(oracle.usable as u32);
            }
            11 => {
                let block = Resident {
                    slot: SlotId(r.below(slots as usize + 2) as u32),
                    key: keys[0],
                    parent: BlockKey::default(),
                    fill: FillId(oracle.highest.0 + r.below(5) as u64),
                };
                let occupied = oracle.in_use().contains(&block.slot)
                    || oracle.resident.values().any(|(slot, _, _)| *slot == block.slot)
                    || block.slot.0 >= slots;
                let adopted = !directory.adopt(&[block]).is_empty();
                assert_eq!(adopted, !occupied && !oracle.resident.contains_key(&keys[0]));
                oracle.highest = oracle.highest.max(block.fill);
                if adopted {
                    oracle.resident.insert(keys[0], (block.slot, block.fill, true));
                }
            }
            _ => directory.touch(&keys),
        }
        oracle.check(&directory);
    }
    for slots in oracle.loads.drain(..) {
        directory.end_load(&slots);
    }
    for (fills, _) in oracle.fills.drain(..) {
        directory.complete_fills(&fills, false);
    }
    directory.clear();
    directory.check().unwrap();
    assert_eq!(directory.stats().free, oracle.usable, "a slot leaks");
}

#[test]
fn any_order_of_operations_agrees_with_a_hash_map() {
    for seed in 0..400 {
        if let Err(panic) = std::panic::catch_unwind(|| model(seed)) {
            eprintln!("directory model: seed {seed}");
            std::panic::resume_unwind(panic);
        }
    }
}

#[test]
fn an_offload_is_refused_when_everything_is_pinned_or_filling() {
    let directory = lru(4);
    store(&directory, &chain(0, 2));
    let pinned = directory.begin_load(&chain(0, 2));
    let filling = directory.begin_offload(&chain(1, 2), 0, usize::MAX);
    let refused = directory.begin_offload(&chain(2, 3), 0, usize::MAX);
    assert_eq!((refused.refused_from(), refused.reserved.len(), refused.evicted.len()), (Some(0), 0, 0));
    assert_eq!(directory.stats().refused, 3);
    directory.end_load(&pinned);
    let room = directory.begin_offload(&chain(2, 3), 0, usize::MAX);
    assert_eq!((room.refused_from(), room.reserved.len(), room.evicted.len()), (Some(2), 2, 2));
    assert_eq!(directory.complete_fills(&fills(&filling), true).len(), 2);
}

#[test]
fn a_request_evicts_its_share_at_most() {
    let directory = lru(8);
    store(&directory, &chain(0, 6));
    let shared = directory.begin_offload(&chain(1, 5), 0, 2);
    assert_eq!((shared.reserved.len(), shared.evicted.len()), (4, 2), "free slots do not count");
    assert_eq!(shared.refused, Some((4, Refusal::OverShare)));
    directory.leave_out(&chain(1, 7)[5..], Refusal::OverShare);
    let stats = directory.stats();
    assert_eq!((stats.refused, stats.over_share), (0, 3), "a reason of its own, each block once");
    let pinned = directory.begin_load(&chain(0, 4));
    let in_use = directory.begin_offload(&chain(2, 1), 0, 2);
    assert_eq!(in_use.refused, Some((0, Refusal::NoRoom)));
    assert_eq!(directory.stats().refused, 1);
    directory.end_load(&pinned);
    assert_eq!([1, 7, 8, 400].map(evictions_per_request_max), [1, 1, 2, 100]);
}

/// What a request stores behind its hits leaves before them, though both were used by the same request.
#[test]
fn hits_that_are_touched_after_the_stored_blocks_outlive_them() {
    let directory = lru(4);
    store(&directory, &chain(0, 2));
    let pinned = directory.begin_load(&chain(0, 2));
    directory.end_load(&pinned);
    let tail = directory.begin_offload(&chain(0, 4), 0, usize::MAX);
    assert_eq!(tail.hits, [0, 1]);
    directory.complete_fills(&fills(&tail), true);
    directory.touch(&tail.hits.iter().map(|index| key(0, *index)).collect::<Vec<_>>());
    let evicted: Vec<BlockKey> =
        (1..5).flat_map(|other| store(&directory, &chain(other, 1)).evicted).map(|(_, key)| key).collect();
    assert_eq!(evicted, [3, 2, 1, 0].map(|index| key(0, index)));
}

#[test]
fn a_chain_longer_than_the_cache_keeps_its_head() {
    let directory = lru(4);
    let reservation = store(&directory, &chain(0, 10));
    assert_eq!((reservation.reserved.len(), reservation.refused_from()), (4, Some(4)));
    let again = store(&directory, &chain(0, 10));
    assert_eq!((again.reserved.len(), again.present, again.evicted.len()), (0, 4, 0));
    assert_eq!(directory.match_prefix(&chain(0, 10)).ready, 4);
}

#[test]
fn tails_are_evicted_before_heads() {
    let directory = lru(8);
    store(&directory, &chain(0, 8));
    let evicted = store(&directory, &chain(1, 3)).evicted;
    let keys: Vec<BlockKey> = evicted.iter().map(|(_, key)| *key).collect();
    assert_eq!(keys, [key(0, 7), key(0, 6), key(0, 5)]);
    assert_eq!(directory.match_prefix(&chain(0, 8)).ready, 5, "what is left is still a prefix");
    assert!(directory.match_prefix(&chain(0, 5)).ready == 5);
}

/// A head is older than another chain's leaf, and stays: it has a child.
#[test]
fn a_block_with_children_is_no_victim_while_there_are_leaves() {
    let directory = lru(4);
    store(&directory, &chain(0, 1));
    store(&directory, &chain(1, 1));
    // The tail alone is touched, so that the head of document 0 is the least recently used block.
    store(&directory, &chain(0, 2));
    store(&directory, &chain(2, 1));
    directory.touch(&chain(1, 1));
    let evicted = store(&directory, &chain(3, 1)).evicted;
    assert_ne!(evicted[0].1, key(0, 0), "the head has a resident child");
}

#[test]
fn a_head_that_was_stored_again_keeps_its_tail() {
    let directory = lru(3);
    store(&directory, &chain(0, 2));
    directory.delete(&chain(0, 1));
    let head = store(&directory, &chain(0, 2));
    assert_eq!((head.reserved.len(), head.present), (1, 1));
    store(&directory, &chain(1, 1));
    // Only the link to its resident tail protects the head, which is older than that.
    directory.touch(&[key(0, 1)]);
    directory.touch(&chain(1, 1));
    let evicted = store(&directory, &chain(2, 1)).evicted;
    assert_eq!(evicted[0].1, key(0, 1), "a leaf goes before the head");
    directory.check().unwrap();
}

#[test]
fn a_late_completion_of_a_cancelled_fill_frees_its_slot_only() {
    let directory = lru(1);
    let first = directory.begin_offload(&chain(0, 1), 0, usize::MAX);
    assert_eq!(directory.delete(&chain(0, 1)).len(), 1);
    assert_eq!(
        directory.begin_offload(&chain(1, 1), 0, usize::MAX).refused_from(),
        Some(0),
        "the slot is still being written"
    );
    assert_eq!(directory.stats().draining, 1);
    assert_eq!(directory.complete_fills(&fills(&first), true), [], "the block was deleted");
    let second = directory.begin_offload(&chain(1, 1), 0, usize::MAX);
    assert_eq!(second.reserved.len(), 1);
    assert_eq!(
        directory.complete_fills(&fills(&first), true),
        [],
        "a stale fill completes nobody else's block"
    );
    assert_eq!(directory.match_prefix(&chain(1, 1)), PrefixMatch { ready: 0, pending: 1, evicted: false });
    assert_eq!(directory.complete_fills(&fills(&second), true).len(), 1);
}

#[test]
fn a_pinned_block_that_is_deleted_keeps_its_slot_until_the_last_load_ends() {
    let directory = lru(1);
    store(&directory, &chain(0, 1));
    let (first, second) = (directory.begin_load(&chain(0, 1)), directory.begin_load(&chain(0, 1)));
    directory.clear();
    assert_eq!(directory.match_prefix(&chain(0, 1)).ready, 0);
    directory.end_load(&first);
    assert_eq!(directory.begin_offload(&chain(1, 1), 0, usize::MAX).refused_from(), Some(0));
    directory.end_load(&second);
    assert_eq!(directory.begin_offload(&chain(1, 1), 0, usize::MAX).reserved.len(), 1);
}

#[test]
fn a_failed_fill_leaves_its_block_absent() {
    let directory = lru(2);
    let reservation = directory.begin_offload(&chain(0, 2), 0, usize::MAX);
    assert_eq!(directory.complete_fills(&fills(&reservation), false), []);
    assert_eq!(directory.match_prefix(&chain(0, 2)), PrefixMatch::default());
    assert_eq!((directory.stats().failed_fills, directory.stats().free), (2, 2));
}

#[test]
fn adopted_blocks_know_their_parents_in_any_order_and_new_fills_are_newer() {
    let directory = lru(4);
    let block = |slot, key, parent, fill| Resident { slot: SlotId(slot), key, parent, fill: FillId(fill) };
    // The head was stored again after its tail.
    let warm = [block(2, key(0, 1), key(0, 0), 5), block(1, key(0, 0), BlockKey::default(), 9)];
    assert_eq!(directory.adopt(&warm).len(), 2);
    directory.check().unwrap();
    directory.start_fills_above(FillId(40));
    let reserved = directory.begin_offload(&chain(1, 2), 0, usize::MAX).reserved;
    assert!(reserved.iter().all(|reserved| reserved.fill > FillId(40)));
    directory.touch(&[key(0, 1)]);
    let evicted = directory.begin_offload(&chain(2, 1), 0, usize::MAX).evicted;
    assert_eq!(evicted[0].1, key(0, 1), "the tail is the leaf");
    let missing = [block(9, key(5, 0), BlockKey::default(), u64::MAX)];
    assert_eq!(directory.adopt(&missing).len(), 0, "no such slot, and its fill does not overflow");
}

/// Memory that is not pinned yet can be read, and not filled.
#[test]
fn what_is_adopted_above_the_usable_slots_is_a_hit_and_makes_no_room() {
    let directory = lru(6);
    directory.limit_usable(2);
    let block = |slot, index| Resident {
        slot: SlotId(slot),
        key: key(0, index),
        parent: BlockKey::default(),
        fill: FillId(1),
    };
    assert_eq!(directory.adopt(&[block(1, 0), block(3, 1), block(4, 2), block(5, 3)]).len(), 4);
    let pinned = directory.begin_load(&chain(0, 4));
    assert_eq!(pinned, [1, 3, 4, 5].map(SlotId));
    let stats = directory.stats();
    assert_eq!((stats.ready, stats.pinned, stats.free, stats.unusable), (4, 4, 1, 1));
    // One is removed while it is read, one after.
    directory.delete(&[key(0, 1)]);
    directory.end_load(&pinned);
    directory.delete(&[key(0, 2)]);
    let stats = directory.stats();
    assert_eq!((stats.ready, stats.pinned, stats.draining, stats.free, stats.unusable), (2, 0, 0, 1, 3));
    let stored = directory.begin_offload(&chain(1, 6), 0, usize::MAX);
    assert_eq!(stored.reserved.iter().map(|reserved| reserved.slot.0).collect::<Vec<_>>(), [0, 1]);
    assert_eq!(stored.evicted, [(SlotId(1), key(0, 0))]);
    assert_eq!(directory.slot_of(&key(0, 3)), Some(SlotId(5)), "it has not been evicted for nothing");
    directory.limit_usable(5);
    let stats = directory.stats();
    assert_eq!((stats.free, stats.unusable, stats.filling, stats.ready), (3, 0, 2, 1));
    directory.limit_usable(6);
    assert_eq!(directory.stats().free, 3, "a slot that holds a block is not free");
    let rest = directory.begin_offload(&chain(2, 4), 0, usize::MAX);
    assert_eq!(rest.evicted, [(SlotId(5), key(0, 3))], "it may leave now");
    directory.check().unwrap();
}

#[test]
fn labels_are_written_before_anybody_can_find_or_reuse_the_slot() {
    let directory = lru(2);
    let reservation = directory.begin_offload(&chain(0, 2), 0, usize::MAX);
    directory.delete_with(&chain(0, 1), |slot| assert_eq!(slot, reservation.reserved[0].slot));
    let mut labelled = Vec::new();
    directory.complete_fills_with(&fills(&reservation), true, |slot, fill| labelled.push((slot, fill)));
    assert_eq!(labelled, [fills(&reservation)[1]], "a deleted block is never labelled ready");
}

#[test]
fn slots_become_usable_later_and_never_unusable_again() {
    let directory = lru(8);
    directory.limit_usable(2);
    assert_eq!(directory.begin_offload(&chain(0, 4), 0, usize::MAX).refused_from(), Some(2));
    directory.limit_usable(3);
    directory.limit_usable(1);
    assert_eq!(directory.begin_offload(&chain(0, 4), 0, usize::MAX).refused_from(), Some(3));
    let stats = directory.stats();
    assert_eq!((stats.unusable, stats.filling, stats.free), (5, 3, 0));
}

#[test]
fn withdrawn_slots_serve_what_they_hold_and_take_nothing() {
    let directory = lru(6);
    let stored = directory.begin_offload(&chain(0, 4), 0, usize::MAX);
    assert!(!directory.withdraw(2), "two of them are being filled");
    directory.complete_fills(&fills(&stored), true);
    let pinned = directory.begin_load(&chain(0, 4)[..3]);
    assert!(directory.withdraw(2));
    directory.check().unwrap();
    let stats = directory.stats();
    assert_eq!((stats.unusable, stats.ready, stats.pinned, stats.free), (2, 4, 3, 0));
    directory.end_load(&pinned);
    directory.check().unwrap();
    assert_eq!(directory.match_prefix(&chain(0, 4)).ready, 4);
    let stored = directory.begin_offload(&chain(1, 6), 0, usize::MAX);
    assert_eq!(stored.evicted.len(), 2, "those of the usable slots");
    assert!(stored.reserved.iter().all(|reserved| reserved.slot.0 < 2));
    directory.limit_usable(6);
    directory.check().unwrap();
    assert_eq!(directory.stats().unusable, 0);
    assert!(directory.withdraw(6), "none of them");
    assert!(directory.withdraw(9), "nor are there more");
    directory.check().unwrap();
    assert_eq!(directory.stats().unusable, 0);
}

/// Deems nothing worth a victim, and notes what it missed.
struct Content {
    inner: Lru,
    missed: std::sync::Arc<parking_lot::Mutex<Vec<BlockKey>>>,
}

impl EvictionPolicy for Content {
    fn name(&self) -> &'static str {
        "content"
    }
    fn insert(&mut self, slot: SlotId, key: BlockKey) {
        self.inner.insert(slot, key);
    }
    fn touch(&mut self, slot: SlotId) {
        self.inner.touch(slot);
    }
    fn remove(&mut self, slot: SlotId) {
        self.inner.remove(slot);
    }
    fn evict(&mut self, candidate: &mut dyn FnMut(SlotId) -> Candidate) -> Option<SlotId> {
        self.inner.evict(candidate)
    }
    fn evict_for(&mut self, _: &BlockKey, _: &mut dyn FnMut(SlotId) -> Candidate) -> crate::eviction::Place {
        crate::eviction::Place::NotWorth
    }
    fn pass_by(&mut self, key: &BlockKey) {
        self.missed.lock().push(*key);
    }
    fn clear(&mut self) {
        self.inner.clear();
    }
    fn len(&self) -> usize {
        self.inner.len()
    }
    fn metadata_bytes(&self) -> usize {
        self.inner.metadata_bytes()
    }
}

#[test]
fn what_is_not_worth_a_victim_is_left_out_and_told() {
    let missed = std::sync::Arc::default();
    let policy = Content { inner: Lru::new(4), missed: std::sync::Arc::clone(&missed) };
    let directory = Directory::new(4, Box::new(policy));
    let first = directory.begin_offload_if_worth(&chain(1, 4), 0, usize::MAX);
    assert_eq!((first.reserved.len(), first.refused), (4, None), "free slots are for all");
    directory.complete_fills(&fills(&first), true);
    let refused = directory.begin_offload_if_worth(&chain(2, 3), 0, usize::MAX);
    assert_eq!((refused.reserved.len(), refused.evicted.len()), (0, 0));
    assert_eq!(refused.refused, Some((0, Refusal::NotWorth)));
    assert_eq!(*missed.lock(), chain(2, 3));
    assert_eq!((directory.stats().not_worth, directory.stats().ready), (3, 4));
    // Who has to store gets a victim.
    assert_eq!(directory.begin_offload(&chain(2, 3), 0, usize::MAX).reserved.len(), 3);
}
