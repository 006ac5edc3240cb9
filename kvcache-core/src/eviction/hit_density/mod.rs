//! Evicts the block with the least expected hits per slot and time.

mod ghosts;
mod recent;
mod worth;

pub(super) use ghosts::Ghosts;
pub(super) use recent::Seen;
use worth::{CLASSES, USES_MAX};
pub(super) use worth::{Class, Worth};

use super::list::SlotLists;
use super::{Candidate, EvictionPolicy, Place, SlotId};
use crate::BlockKey;

/// Ranks blocks by [worth](worth), learnt from the traffic: expected hits per slot and time.
///
/// Each class of blocks (how often used, how long waited before) is a queue by last use. The victim is the least worthy
/// of the oldest blocks of all queues. A new block is worth what its class is: where that is less than the victim, the
/// policy [advises](EvictionPolicy::evict_for) not to store it.
///
/// Keys that were evicted or not stored are remembered with their uses, so that a block that comes back is known.
///
/// Every operation is O(1): an eviction looks at the oldest block of each of the 30 classes, passes over at most 64 blocks
/// with resident children of each, and moves each pinned block that it meets to the front of its queue; learning goes on
/// in small steps, the largest of which makes the table anew for the six classes of one number of uses. Memory: 50 bytes a
/// slot, and at most 160 KiB.
/// Ages are counted in inserts and touches and wrap after 2^32 of them.
#[derive(Debug)]
pub struct HitDensity {
    queues: SlotLists<CLASSES>,
    worth: Box<Worth>,
    /// Evicted keys and such as were not stored.
    ghosts: Ghosts,
    /// Per slot: the clock at its last use. Descending from front to back in every queue, but for blocks that were pinned
    /// when a search met them.
    last_use: Vec<u32>,
    hashes: Vec<u32>,
    uses: Vec<u8>,
    /// Inserts, touches and passed-by keys so far, wrapping.
    clock: u32,
}

impl HitDensity {
    /// A policy over the slots `0..slot_count`.
    ///
    /// # Panics
    ///
    /// If the slot count is within 30 of 2^32.
    pub fn new(slot_count: u32) -> Self {
        let slots = slot_count as usize;
        Self {
            queues: SlotLists::new(slot_count),
            worth: Box::new(Worth::new(slot_count)),
            ghosts: Ghosts::new(slots * GHOSTS_PER_SLOT, slot_count),
            last_use: vec![0; slots],
            hashes: vec![0; slots],
            uses: vec![0; slots],
            clock: 0,
        }
    }

    fn tick(&mut self) -> u32 {
        self.clock = self.clock.wrapping_add(1);
        self.clock
    }

    fn age(&self, last_use: u32) -> u32 {
        self.clock.wrapping_sub(last_use)
    }

    /// The uses and the class that a block has with the next use of its key, which is not here.
    fn next_use(&self, ghost: Option<Seen>) -> (u8, Class) {
        match ghost {
            Some(seen) => {
                let uses = ((seen.note & USES_BITS) + 1).min(USES_MAX);
                (uses, self.worth.class(uses, Some(self.age(seen.at))))
            }
            None => (1, self.worth.class(1, None)),
        }
    }

    /// Puts a block that was used now at the front of its queue.
    fn enqueue(&mut self, slot: SlotId, uses: u8, class: Class) {
        self.uses[slot.index()] = uses;
        self.last_use[slot.index()] = self.clock;
        self.queues.push_front(class.index(), slot);
        self.worth.used(self.hashes[slot.index()], class, self.clock);
    }

    fn evict_slot(&mut self, slot: SlotId) -> SlotId {
        self.queues.unlink(slot);
        let seen = Seen { note: self.uses[slot.index()], at: self.last_use[slot.index()] };
        self.ghosts.put(self.hashes[slot.index()], seen);
        slot
    }

    /// Finds a victim that is worth less than `newcomer`. Blocks in use move to the front of their queues.
    fn find(&mut self, newcomer: f64, candidate: &mut dyn FnMut(SlotId) -> Candidate) -> Place {
        let mut first_parent = None;
        let mut left = [PASSED_OVER_MAX; CLASSES];
        // The next candidate of each queue with its worth and age.
        let mut oldest = Class::ALL.map(|class| self.judge(class, self.queues.back(class.index())));
        let mut unseen = Class::ALL.map(|class| self.queues.len(class.index()));
        loop {
            let poorest = oldest.iter().enumerate().filter_map(|(class, of)| of.map(|of| (class, of)));
            let Some((class, judged)) = poorest.reduce(|a, b| if b.1.is_poorer_than(&a.1) { b } else { a })
            else {
                break;
            };
            let slot = judged.slot;
            // Pinned blocks go to the front, behind which the search must not run in circles.
            unseen[class] -= 1;
            let next = if unseen[class] == 0 { None } else { self.queues.newer(slot) };
            match candidate(slot) {
                Candidate::Leaf if judged.worth >= newcomer => return Place::NotWorth,
                Candidate::Leaf => return Place::Victim(self.evict_slot(slot)),
                Candidate::HasChildren => {
                    first_parent.get_or_insert(judged);
                    left[class] -= 1;
                }
                // Out of the way, but no use of it: that comes when its request ends.
                Candidate::Pinned => self.queues.move_to_front(class, slot),
            }
            oldest[class] = if left[class] == 0 { None } else { self.judge(Class::ALL[class], next) };
        }
        match first_parent {
            Some(judged) if judged.worth >= newcomer => Place::NotWorth,
            Some(judged) => Place::Victim(self.evict_slot(judged.slot)),
            None => Place::None,
        }
    }

    fn judge(&self, class: Class, slot: Option<SlotId>) -> Option<Judged> {
        let slot = slot?;
        let age = self.age(self.last_use[slot.index()]);
        Some(Judged { slot, worth: self.worth.of(class, age), age })
    }
}

/// A candidate.
#[derive(Clone, Copy)]
struct Judged {
    slot: SlotId,
    worth: f64,
    age: u32,
}

impl Judged {
    /// The older one of two that are worth the same.
    fn is_poorer_than(&self, other: &Self) -> bool {
        self.worth < other.worth || (self.worth == other.worth && self.age > other.age)
    }
}

impl EvictionPolicy for HitDensity {
    fn name(&self) -> &'static str {
        "hit-density"
    }

    fn insert(&mut self, slot: SlotId, key: BlockKey) {
        let hash = hash(&key);
        self.tick();
        let ghost = self.ghosts.take(hash, self.clock);
        let (uses, class) = self.next_use(ghost);
        self.hashes[slot.index()] = hash;
        self.enqueue(slot, uses, class);
    }

    fn touch(&mut self, slot: SlotId) {
        if self.queues.unlink(slot).is_none() {
            return;
        }
        self.tick();
        let uses = (self.uses[slot.index()] + 1).min(USES_MAX);
        let class = self.worth.class(uses, Some(self.age(self.last_use[slot.index()])));
        self.enqueue(slot, uses, class);
    }

    fn pass_by(&mut self, key: &BlockKey) {
        let hash = hash(key);
        self.tick();
        let ghost = self.ghosts.get(hash, self.clock);
        let (uses, class) = self.next_use(ghost);
        self.ghosts.put(hash, Seen { note: uses | PASSED_BY, at: self.clock });
        self.worth.used(hash, class, self.clock);
    }

    fn remove(&mut self, slot: SlotId) {
        self.queues.unlink(slot);
    }

    fn evict(&mut self, candidate: &mut dyn FnMut(SlotId) -> Candidate) -> Option<SlotId> {
        match self.find(f64::INFINITY, candidate) {
            Place::Victim(slot) => Some(slot),
            Place::NotWorth | Place::None => None,
        }
    }

    fn evict_for(&mut self, newcomer: &BlockKey, candidate: &mut dyn FnMut(SlotId) -> Candidate) -> Place {
        let (_, class) = self.next_use(self.ghosts.get(hash(newcomer), self.clock));
        self.find(self.worth.of(class, 0), candidate)
    }

    fn remembers(&self, key: &BlockKey) -> bool {
        self.ghosts.get(hash(key), self.clock).is_some_and(|seen| seen.note & PASSED_BY == 0)
    }

    fn clear(&mut self) {
        *self = Self::new(self.last_use.len() as u32);
    }

    fn len(&self) -> usize {
        self.queues.total_len()
    }

    fn metadata_bytes(&self) -> usize {
        self.queues.metadata_bytes()
            + self.worth.metadata_bytes()
            + self.ghosts.metadata_bytes()
            + self.uses.capacity()
            + (self.last_use.capacity() + self.hashes.capacity()) * size_of::<u32>()
    }
}

fn hash(key: &BlockKey) -> u32 {
    key.short_hash() as u32
}

/// Of a ghost's note: the uses.
const USES_BITS: u8 = 0x0f;
/// Of a ghost's note: the key was asked for and not stored, rather than evicted.
const PASSED_BY: u8 = 0x10;

/// Candidates with children that one search passes over at most, of each class.
const PASSED_OVER_MAX: u32 = 64;

/// On the traces in `benches/traces` half as many lose up to 1.4 points of hit ratio, and twice as many gain nothing.
const GHOSTS_PER_SLOT: usize = 6;

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u32) -> BlockKey {
        let mut key = [0; BlockKey::BYTES];
        key[..8].copy_from_slice(&xxhash_rust::xxh3::xxh3_64(&number.to_le_bytes()).to_le_bytes());
        BlockKey(key)
    }

    /// A cache of single blocks, that stores what the policy deems worth it.
    struct Cache {
        policy: HitDensity,
        key_of: Vec<Option<u32>>,
        declined: u32,
    }

    impl Cache {
        fn new(slots: u32) -> Self {
            Self { policy: HitDensity::new(slots), key_of: vec![None; slots as usize], declined: 0 }
        }

        /// Whether it was a hit.
        fn access(&mut self, number: u32) -> bool {
            if let Some(slot) = self.key_of.iter().position(|held| *held == Some(number)) {
                self.policy.touch(SlotId(slot as u32));
                return true;
            }
            let free = self.key_of.iter().position(Option::is_none).map(|slot| SlotId(slot as u32));
            let place = match free {
                Some(slot) => Place::Victim(slot),
                None => self.policy.evict_for(&key(number), &mut |_| Candidate::Leaf),
            };
            match place {
                Place::Victim(slot) => {
                    self.key_of[slot.index()] = Some(number);
                    self.policy.insert(slot, key(number));
                }
                Place::NotWorth => {
                    self.declined += 1;
                    self.policy.pass_by(&key(number));
                }
                Place::None => panic!("nothing is pinned"),
            }
            false
        }
    }

    /// Twice as many blocks as there are slots go round: an LRU queue never hits, half of the blocks would.
    #[test]
    fn a_loop_larger_than_the_cache_hits_nearly_as_often_as_it_can() {
        let mut cache = Cache::new(100);
        let mut hits = 0;
        for round in 0..60 {
            for number in 0..200 {
                hits += u32::from(cache.access(number) && round >= 40);
            }
        }
        assert!(hits > 20 * 85, "{hits} of at most {}", 20 * 100);
        assert!(cache.declined > 0);
    }

    #[test]
    fn a_scan_leaves_what_is_used_in_place() {
        let mut cache = Cache::new(200);
        // A working set of half the capacity, used again and again, while others come by once.
        for round in 0..100 {
            for number in 0..100 {
                cache.access(number);
                cache.access(1_000 + round * 100 + number);
            }
        }
        (100_000..102_000).for_each(|number| {
            cache.access(number);
        });
        let kept = (0..100).filter(|number| cache.key_of.contains(&Some(*number))).count();
        assert!(kept >= 90, "{kept} of 100 survive a scan of ten times the capacity");
    }

    #[test]
    fn remembers_what_was_evicted_and_not_what_was_passed_by() {
        let mut policy = HitDensity::new(4);
        policy.insert(SlotId(0), key(1));
        assert!(!policy.remembers(&key(1)), "resident");
        policy.evict(&mut |_| Candidate::Leaf);
        assert!(policy.remembers(&key(1)));
        policy.pass_by(&key(2));
        assert!(!policy.remembers(&key(2)), "never stored");
        policy.insert(SlotId(0), key(1));
        assert!(!policy.remembers(&key(1)));
        assert_eq!(policy.uses[0], 2, "known from before");
        policy.insert(SlotId(1), key(2));
        assert_eq!(policy.uses[1], 2, "the use that found it missing counts");
    }

    /// What is pinned is no victim, and its wait goes on.
    #[test]
    fn a_pinned_block_is_not_used_by_being_looked_at() {
        let mut policy = HitDensity::new(2);
        policy.insert(SlotId(0), key(1));
        policy.insert(SlotId(1), key(2));
        let before = policy.last_use[0];
        assert_eq!(policy.evict(&mut |_| Candidate::Pinned), None);
        assert_eq!((policy.last_use[0], policy.len()), (before, 2));
        assert_eq!(policy.evict_for(&key(3), &mut |_| Candidate::Pinned), Place::None);
    }
}
