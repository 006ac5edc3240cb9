//! Plain, slow forms of the policies: the fast ones must choose the same victims in the same order.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::hit_density::{Class, Ghosts, Seen, Worth};
use super::{Candidate, EvictionPolicy, HitDensity, Lru, Place, S3Fifo, S3FifoFixed, SlotId};
use crate::BlockKey;

/// A queue as it would be drawn on paper: the oldest slot is at the back.
#[derive(Default)]
struct Queue(VecDeque<u32>);

impl Queue {
    fn remove(&mut self, slot: u32) -> bool {
        let before = self.0.len();
        self.0.retain(|other| *other != slot);
        self.0.len() < before
    }

    fn contains(&self, slot: u32) -> bool {
        self.0.contains(&slot)
    }

    fn use_now(&mut self, slot: u32) {
        self.remove(slot);
        self.0.push_front(slot);
    }
}

/// What the oracles share with the real policies: the operations, on slots and short keys.
trait Oracle {
    fn insert(&mut self, slot: u32, key: u64);
    fn touch(&mut self, slot: u32);
    fn remove(&mut self, slot: u32);
    fn evict(&mut self, candidate: &dyn Fn(u32) -> Candidate) -> Option<u32>;

    fn evict_for(&mut self, _key: u64, candidate: &dyn Fn(u32) -> Candidate) -> Place {
        self.evict(candidate).map_or(Place::None, |slot| Place::Victim(SlotId(slot)))
    }

    fn pass_by(&mut self, _key: u64) {}
}

#[derive(Default)]
struct NaiveLru(Queue);

impl Oracle for NaiveLru {
    fn insert(&mut self, slot: u32, _key: u64) {
        self.0.0.push_front(slot);
    }

    fn touch(&mut self, slot: u32) {
        if self.0.contains(slot) {
            self.0.use_now(slot);
        }
    }

    fn remove(&mut self, slot: u32) {
        self.0.remove(slot);
    }

    fn evict(&mut self, candidate: &dyn Fn(u32) -> Candidate) -> Option<u32> {
        let mut parents = Vec::new();
        let oldest_first: Vec<u32> = self.0.0.iter().rev().copied().collect();
        for slot in oldest_first {
            match candidate(slot) {
                Candidate::Pinned => self.0.use_now(slot),
                Candidate::HasChildren => parents.push(slot),
                Candidate::Leaf => {
                    self.0.remove(slot);
                    return Some(slot);
                }
            }
            if parents.len() == 16 {
                break;
            }
        }
        let victim = *parents.first()?;
        self.0.remove(victim);
        Some(victim)
    }
}

/// The last evictions, oldest in front; a key that came back leaves its place empty.
struct NaiveGhost {
    evictions: VecDeque<Option<(u64, bool)>>,
    capacity: usize,
}

impl NaiveGhost {
    fn new(capacity: usize) -> Self {
        Self { evictions: VecDeque::new(), capacity }
    }

    /// Evictions since that of the key, and whether it came out of main.
    fn take(&mut self, key: u64) -> Option<(usize, bool)> {
        let at = self.evictions.iter().position(|entry| entry.is_some_and(|(k, _)| k == key))?;
        let (_, main) = self.evictions[at].take()?;
        Some((self.evictions.len() - 1 - at, main))
    }

    fn insert(&mut self, key: u64, main: bool) {
        self.take(key);
        self.evictions.push_back(Some((key, main)));
        while self.evictions.len() > self.capacity {
            self.evictions.pop_front();
        }
    }
}

/// The rules of [`S3Fifo`] on plain lists, its constants written out.
struct NaiveS3Fifo {
    small: Queue,
    main: Queue,
    ghost: NaiveGhost,
    key: Vec<u64>,
    last_use: Vec<u32>,
    clock: u32,
    slots: f64,
    ratio: f64,
    small_evictions: f64,
    main_evictions: f64,
}

impl NaiveS3Fifo {
    fn new(slots: u32) -> Self {
        Self {
            small: Queue::default(),
            main: Queue::default(),
            ghost: NaiveGhost::new(2 * slots as usize),
            key: vec![0; slots as usize],
            last_use: vec![0; slots as usize],
            clock: 0,
            slots: f64::from(slots),
            ratio: 0.5,
            small_evictions: 0.0,
            main_evictions: 0.0,
        }
    }

    fn scale(&mut self, factor: f64) {
        self.ratio = (self.ratio * factor).clamp(1.0 / 256.0, 1.0);
    }

    fn take_out(&mut self, slot: u32) -> Option<u32> {
        let from_main = self.main.remove(slot);
        assert!(from_main != self.small.remove(slot), "a slot is in one queue");
        self.ghost.insert(self.key[slot as usize], from_main);
        self.small_evictions *= 1.0 - 1.0 / self.slots;
        self.main_evictions *= 1.0 - 1.0 / self.slots;
        if from_main {
            self.main_evictions += 1.0;
        } else {
            self.small_evictions += 1.0;
            self.scale(1.0 / (1.0 + 0.75 / self.slots));
        }
        Some(slot)
    }
}

impl Oracle for NaiveS3Fifo {
    fn insert(&mut self, slot: u32, key: u64) {
        let hit = self.ghost.take(key);
        if let Some((evictions_ago, from_main)) = hit
            && evictions_ago as f64 <= self.slots / 8.0
        {
            let (small, main) = (self.small_evictions.max(1.0), self.main_evictions.max(1.0));
            if from_main {
                self.scale(1.0 / (1.0 + 48.0 * (small / main).clamp(1.0, 50.0) / self.slots));
            } else {
                self.scale(1.0 + 96.0 * (main / small).clamp(1.0, 50.0) / self.slots);
            }
        }
        self.clock += 1;
        self.last_use[slot as usize] = self.clock;
        self.key[slot as usize] = key;
        if hit.is_some() { self.main.0.push_front(slot) } else { self.small.0.push_front(slot) }
    }

    fn touch(&mut self, slot: u32) {
        if self.small.remove(slot) || self.main.remove(slot) {
            self.clock += 1;
            self.last_use[slot as usize] = self.clock;
            self.main.0.push_front(slot);
        }
    }

    fn remove(&mut self, slot: u32) {
        self.small.remove(slot);
        self.main.remove(slot);
    }

    fn evict(&mut self, candidate: &dyn Fn(u32) -> Candidate) -> Option<u32> {
        let mut small: VecDeque<u32> = self.small.0.iter().rev().copied().collect();
        let mut main: VecDeque<u32> = self.main.0.iter().rev().copied().collect();
        let mut parents = Vec::new();
        while parents.len() < 16 {
            let age = |slot: &u32| f64::from(self.clock - self.last_use[*slot as usize]);
            let from_small = match (small.front(), main.front()) {
                (None, None) => break,
                (Some(_), None) => true,
                (None, Some(_)) => false,
                (Some(new), Some(proven)) => age(new) >= self.ratio * age(proven),
            };
            let slot = if from_small { small.pop_front()? } else { main.pop_front()? };
            match candidate(slot) {
                Candidate::Leaf => return self.take_out(slot),
                Candidate::HasChildren => parents.push(slot),
                Candidate::Pinned => {
                    self.last_use[slot as usize] = self.clock;
                    if from_small { self.small.use_now(slot) } else { self.main.use_now(slot) }
                }
            }
        }
        let victim = *parents.first()?;
        self.take_out(victim)
    }
}

/// The rules of [`HitDensity`] on one plain list: every victim is looked for among all blocks. What a block is worth and
/// what ghosts remember is taken from the policy's own parts, which have tests of their own.
struct NaiveHitDensity {
    /// Used latest first; a pinned block that a search met counts as used for its place, not for its age.
    blocks: Vec<NaiveBlock>,
    worth: Worth,
    ghosts: Ghosts,
    clock: u32,
}

struct NaiveBlock {
    slot: u32,
    hash: u32,
    uses: u8,
    class: Class,
    last_use: u32,
}

impl NaiveHitDensity {
    fn new(slots: u32) -> Self {
        Self {
            blocks: Vec::new(),
            worth: Worth::new(slots),
            ghosts: Ghosts::new(6 * slots as usize, slots),
            clock: 0,
        }
    }

    /// Uses and class after one more use.
    fn next_use(&self, before: Option<(u8, u32)>) -> (u8, Class) {
        match before {
            None => (1, self.worth.class(1, None)),
            Some((uses, last_use)) => {
                let uses = (uses + 1).min(9);
                (uses, self.worth.class(uses, Some(self.clock.wrapping_sub(last_use))))
            }
        }
    }

    fn known(&self, hash: u32) -> Option<(u8, u32)> {
        self.ghosts.get(hash, self.clock).map(|seen| (seen.note & 15, seen.at))
    }

    fn use_now(&mut self, slot: u32, hash: u32, (uses, class): (u8, Class)) {
        self.blocks.insert(0, NaiveBlock { slot, hash, uses, class, last_use: self.clock });
        self.worth.used(hash, class, self.clock);
    }

    /// The index of the block that leaves; `Err` if the newcomer is not worth more.
    fn find(&mut self, newcomer: f64, candidate: &dyn Fn(u32) -> Candidate) -> Result<Option<usize>, ()> {
        let now = self.clock;
        let value = |block: &NaiveBlock, worth: &Worth| {
            let age = now.wrapping_sub(block.last_use);
            (worth.of(block.class, age), age)
        };
        // Slots of each class from the oldest to the latest: the search sees no block before the older ones of its class.
        let mut queues: Vec<Vec<u32>> = Class::ALL
            .iter()
            .map(|class| self.blocks.iter().rev().filter(|b| b.class == *class).map(|b| b.slot).collect())
            .collect();
        let mut parents = Vec::new();
        loop {
            let mut poorest: Option<(usize, usize, f64, u32)> = None;
            for (class, queue) in queues.iter().enumerate() {
                let Some(slot) = queue.first() else { continue };
                let at = self.blocks.iter().position(|block| block.slot == *slot).expect("it is in the list");
                let (worth, age) = value(&self.blocks[at], &self.worth);
                if poorest
                    .is_none_or(|(_, _, least, oldest)| worth < least || (worth == least && age > oldest))
                {
                    poorest = Some((class, at, worth, age));
                }
            }
            let Some((class, at, worth, _)) = poorest else { break };
            match candidate(self.blocks[at].slot) {
                Candidate::Leaf if worth >= newcomer => return Err(()),
                Candidate::Leaf => return Ok(Some(at)),
                Candidate::HasChildren => parents.push((self.blocks[at].slot, worth)),
                Candidate::Pinned => {
                    let block = self.blocks.remove(at);
                    self.blocks.insert(0, block);
                }
            }
            // No class has so many blocks that the bound of the search shows.
            queues[class].remove(0);
        }
        match parents.first() {
            Some((_, worth)) if *worth >= newcomer => Err(()),
            Some((slot, _)) => Ok(self.blocks.iter().position(|block| block.slot == *slot)),
            None => Ok(None),
        }
    }

    fn take_out(&mut self, at: usize) -> u32 {
        let block = self.blocks.remove(at);
        self.ghosts.put(block.hash, Seen { note: block.uses, at: block.last_use });
        block.slot
    }
}

impl Oracle for NaiveHitDensity {
    fn insert(&mut self, slot: u32, key: u64) {
        let hash = short_hash(key);
        self.clock += 1;
        let next = self.next_use(self.known(hash));
        self.ghosts.take(hash, self.clock);
        self.use_now(slot, hash, next);
    }

    fn touch(&mut self, slot: u32) {
        let Some(at) = self.blocks.iter().position(|block| block.slot == slot) else { return };
        let block = self.blocks.remove(at);
        self.clock += 1;
        let next = self.next_use(Some((block.uses, block.last_use)));
        self.use_now(slot, block.hash, next);
    }

    fn remove(&mut self, slot: u32) {
        self.blocks.retain(|block| block.slot != slot);
    }

    fn evict(&mut self, candidate: &dyn Fn(u32) -> Candidate) -> Option<u32> {
        let at = self.find(f64::INFINITY, candidate).expect("everything is worth less than infinity")?;
        Some(self.take_out(at))
    }

    fn evict_for(&mut self, key: u64, candidate: &dyn Fn(u32) -> Candidate) -> Place {
        let (_, class) = self.next_use(self.known(short_hash(key)));
        match self.find(self.worth.of(class, 0), candidate) {
            Err(()) => Place::NotWorth,
            Ok(None) => Place::None,
            Ok(Some(at)) => Place::Victim(SlotId(self.take_out(at))),
        }
    }

    fn pass_by(&mut self, key: u64) {
        let hash = short_hash(key);
        self.clock += 1;
        let (uses, class) = self.next_use(self.known(hash));
        self.ghosts.put(hash, Seen { note: uses | 16, at: self.clock });
        self.worth.used(hash, class, self.clock);
    }
}

/// As [`block_key`] makes it of a key.
fn short_hash(key: u64) -> u32 {
    block_key(key).short_hash() as u32
}

/// The rules of [`S3FifoFixed`] without pins and children: the pseudo-code of the paper, promotion after one use.
struct NaiveS3FifoFixed {
    small: Queue,
    main: Queue,
    ghost: NaiveGhost,
    small_max: usize,
    key: Vec<u64>,
    uses: Vec<u8>,
}

impl NaiveS3FifoFixed {
    fn new(slots: u32, small_max: usize) -> Self {
        Self {
            small: Queue::default(),
            main: Queue::default(),
            ghost: NaiveGhost::new(slots as usize - small_max),
            small_max,
            key: vec![0; slots as usize],
            uses: vec![0; slots as usize],
        }
    }
}

impl Oracle for NaiveS3FifoFixed {
    fn insert(&mut self, slot: u32, key: u64) {
        self.key[slot as usize] = key;
        self.uses[slot as usize] = 0;
        let queue = if self.ghost.take(key).is_some() { &mut self.main } else { &mut self.small };
        queue.0.push_front(slot);
    }

    fn touch(&mut self, slot: u32) {
        if self.small.contains(slot) || self.main.contains(slot) {
            self.uses[slot as usize] = (self.uses[slot as usize] + 1).min(3);
        }
    }

    fn remove(&mut self, slot: u32) {
        self.small.remove(slot);
        self.main.remove(slot);
    }

    fn evict(&mut self, _candidate: &dyn Fn(u32) -> Candidate) -> Option<u32> {
        loop {
            let from_small = self.small.0.len() > self.small_max || self.main.0.is_empty();
            let slot = if from_small { self.small.0.pop_back()? } else { self.main.0.pop_back()? };
            let uses = &mut self.uses[slot as usize];
            if *uses == 0 {
                if from_small {
                    self.ghost.insert(self.key[slot as usize], false);
                }
                return Some(slot);
            }
            *uses = if from_small { 0 } else { *uses - 1 };
            self.main.0.push_front(slot);
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Operation {
    /// Puts the key in a slot, evicting if need be; touches it if it is there.
    Use(u64),
    Remove(u64),
    /// Sets what the slot is worth from now on.
    Mark(u32, Candidate),
}

fn operations(candidates: Vec<Candidate>) -> impl Strategy<Value = Vec<Operation>> {
    let key = prop_oneof![4 => 0_u64..12, 4 => 0_u64..60, 1 => 0_u64..400];
    let operation = prop_oneof![
        20 => key.clone().prop_map(Operation::Use),
        1 => key.prop_map(Operation::Remove),
        5 => (0_u32..SLOTS_MAX, prop::sample::select(candidates))
            .prop_map(|(slot, candidate)| Operation::Mark(slot, candidate)),
    ];
    prop::collection::vec(operation, 1..600)
}

/// Whether a cache stores every key, or asks first whether it is worth it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Admission {
    Always,
    IfWorth,
}

/// Runs both over a small cache of keys and compares every victim.
fn compare(
    slots: u32,
    policy: &mut dyn EvictionPolicy,
    oracle: &mut dyn Oracle,
    operations: &[Operation],
    admission: Admission,
) -> Result<(), TestCaseError> {
    let mut worth = vec![Candidate::Leaf; SLOTS_MAX as usize];
    let mut keys: Vec<Option<u64>> = vec![None; slots as usize];
    for operation in operations {
        match *operation {
            Operation::Mark(slot, candidate) => worth[slot as usize] = candidate,
            Operation::Remove(key) => {
                if let Some(slot) = keys.iter().position(|held| *held == Some(key)) {
                    keys[slot] = None;
                    policy.remove(SlotId(slot as u32));
                    oracle.remove(slot as u32);
                }
            }
            Operation::Use(key) => {
                if let Some(slot) = keys.iter().position(|held| *held == Some(key)) {
                    policy.touch(SlotId(slot as u32));
                    oracle.touch(slot as u32);
                    continue;
                }
                let mut real = |slot: SlotId| worth[slot.index()];
                let naive = |slot: u32| worth[slot as usize];
                let (place, expected) = match keys.iter().position(Option::is_none) {
                    Some(free) => (Place::Victim(SlotId(free as u32)), Place::Victim(SlotId(free as u32))),
                    None if admission == Admission::IfWorth => {
                        (policy.evict_for(&block_key(key), &mut real), oracle.evict_for(key, &naive))
                    }
                    None => {
                        let place = |victim: Option<SlotId>| victim.map_or(Place::None, Place::Victim);
                        (place(policy.evict(&mut real)), place(oracle.evict(&naive).map(SlotId)))
                    }
                };
                prop_assert_eq!(place, expected);
                match place {
                    Place::Victim(slot) => {
                        keys[slot.index()] = Some(key);
                        policy.insert(slot, block_key(key));
                        oracle.insert(slot.0, key);
                    }
                    Place::NotWorth => {
                        policy.pass_by(&block_key(key));
                        oracle.pass_by(key);
                    }
                    Place::None => {}
                }
            }
        }
        prop_assert_eq!(policy.len(), keys.iter().flatten().count());
    }
    Ok(())
}

/// Shifted: the lowest bit of a key is not part of its fingerprint in S3-FIFO's ghosts.
fn block_key(key: u64) -> BlockKey {
    let mut bytes = [0; BlockKey::BYTES];
    bytes[..8].copy_from_slice(&((key + 1) << 1).to_le_bytes());
    BlockKey(bytes)
}

const SLOTS_MAX: u32 = 40;

fn any_candidate() -> Vec<Candidate> {
    vec![Candidate::Leaf, Candidate::HasChildren, Candidate::Pinned]
}

proptest! {
    #[test]
    fn lru_chooses_the_victims_of_a_plain_list(
        slots in 1..SLOTS_MAX, operations in operations(any_candidate())
    ) {
        compare(slots, &mut Lru::new(slots), &mut NaiveLru::default(), &operations, Admission::Always)?;
    }

    #[test]
    fn s3fifo_chooses_the_victims_of_plain_lists(
        slots in 1..SLOTS_MAX, operations in operations(any_candidate())
    ) {
        compare(slots, &mut S3Fifo::new(slots), &mut NaiveS3Fifo::new(slots), &operations, Admission::Always)?;
    }

    #[test]
    fn hit_density_chooses_the_victims_of_a_plain_list(
        slots in 1..SLOTS_MAX, operations in operations(any_candidate())
    ) {
        compare(slots, &mut HitDensity::new(slots), &mut NaiveHitDensity::new(slots), &operations, Admission::Always)?;
    }

    #[test]
    fn hit_density_stores_what_is_worth_it_on_a_plain_list(
        slots in 1..SLOTS_MAX, operations in operations(any_candidate())
    ) {
        let (mut policy, mut oracle) = (HitDensity::new(slots), NaiveHitDensity::new(slots));
        compare(slots, &mut policy, &mut oracle, &operations, Admission::IfWorth)?;
    }

    #[test]
    fn s3fifo_fixed_chooses_the_victims_of_the_paper(
        slots in 10..SLOTS_MAX, operations in operations(vec![Candidate::Leaf])
    ) {
        let mut oracle = NaiveS3FifoFixed::new(slots, slots as usize / 10);
        compare(slots, &mut S3FifoFixed::new(slots, 0.1), &mut oracle, &operations, Admission::Always)?;
    }
}
