//! Test support: what every [`EvictionPolicy`] must hold, whoever wrote it.
//!
//! ```
//! use kvcache_core::eviction::{Lru, suite};
//!
//! suite::check(&|slot_count| Box::new(Lru::new(slot_count)));
//! ```

use std::collections::BTreeMap;

use super::{Candidate, EvictionPolicy, Place, SlotId};
use crate::BlockKey;

/// Slots that a policy looks at, where it tracks as many, before it returns one with children.
pub const LEAF_SEARCH_MIN: usize = 8;

/// Most bytes a slot that a policy may hold, ghosts included: what capacity arithmetic reserves for it.
pub const METADATA_BYTES_PER_SLOT_MAX: usize = 56;

/// Bytes that a policy may hold whatever the slot count.
pub const METADATA_BYTES_FIXED_MAX: usize = 160 << 10;

/// Checks the promises of [`EvictionPolicy`] on seeded random histories: takes about a tenth of a second.
///
/// # Panics
///
/// With the broken promise and the seed of the history, so that it can be run again with [`check_history`].
pub fn check(make: &dyn Fn(u32) -> Box<dyn EvictionPolicy>) {
    for seed in 0..HISTORIES {
        check_history(make, seed);
    }
    prefers_leaves(make);
    searches_to_the_last_slot(make);
    clear_forgets_ghosts(make);
    metadata_is_bounded(make);
}

/// Runs one random history against a plain model: slots are inserted, touched, pinned, removed and evicted, and now
/// and then all is cleared. The pool has 1 to 40 slots.
///
/// # Panics
///
/// With the broken promise and the seed.
pub fn check_history(make: &dyn Fn(u32) -> Box<dyn EvictionPolicy>, seed: u64) {
    let mut random = SplitMix(seed);
    let slot_count = 1 + random.below(40) as u32;
    let pinned_of_8 = random.below(9);
    let with_children_of_8 = random.below(9);
    let mut policy = make(slot_count);
    let name = policy.name();
    let mut tracked: BTreeMap<SlotId, Candidate> = BTreeMap::new();

    for step in 0..STEPS {
        let slot = SlotId(random.below(u64::from(slot_count)) as u32);
        match random.below(64) {
            0..24 => {
                if let std::collections::btree_map::Entry::Vacant(vacant) = tracked.entry(slot) {
                    // Few keys, so that many come back while they are ghosts.
                    policy.insert(slot, key(random.below(u64::from(slot_count) * 4)));
                    vacant.insert(random_candidate(&mut random, pinned_of_8, with_children_of_8));
                }
            }
            24..40 => policy.touch(slot),
            40..44 => {
                policy.remove(slot);
                tracked.remove(&slot);
            }
            44..48 => {
                if let Some(candidate) = tracked.get_mut(&slot) {
                    *candidate = random_candidate(&mut random, pinned_of_8, with_children_of_8);
                }
            }
            48..63 => {
                let newcomer = (random.below(2) == 0).then(|| key(random.below(u64::from(slot_count) * 4)));
                let candidate = &mut |slot| {
                    *tracked.get(&slot).unwrap_or_else(|| {
                        panic!("{name} asked about untracked slot {} (seed {seed}, step {step})", slot.0)
                    })
                };
                let place = match newcomer {
                    Some(newcomer) => policy.evict_for(&newcomer, candidate),
                    None => policy.evict(candidate).map_or(Place::None, Place::Victim),
                };
                if let (Some(newcomer), Place::NotWorth) = (newcomer, place) {
                    policy.pass_by(&newcomer);
                }
                match place {
                    Place::NotWorth => assert!(
                        tracked.values().any(|candidate| *candidate != Candidate::Pinned),
                        "{name} deems a block not worth a victim that there is not (seed {seed}, step {step})"
                    ),
                    Place::Victim(slot) => {
                        let candidate = tracked.remove(&slot);
                        assert!(
                            candidate.is_some(),
                            "{name} evicted untracked slot {} (seed {seed}, step {step})",
                            slot.0
                        );
                        assert!(
                            candidate != Some(Candidate::Pinned),
                            "{name} evicted pinned slot {} (seed {seed}, step {step})",
                            slot.0
                        );
                    }
                    Place::None => assert!(
                        tracked.values().all(|candidate| *candidate == Candidate::Pinned),
                        "{name} found no victim though a slot is unpinned (seed {seed}, step {step})"
                    ),
                }
            }
            _ => {
                if random.below(16) == 0 {
                    policy.clear();
                    tracked.clear();
                }
            }
        }
        assert!(
            policy.len() == tracked.len() && policy.is_empty() == tracked.is_empty(),
            "{name} says it tracks {} slots, it is {} (seed {seed}, step {step})",
            policy.len(),
            tracked.len()
        );
    }

    // No slot is lost: once nothing is pinned, all come out, each once.
    while !tracked.is_empty() {
        let victim = policy.evict(&mut |_| Candidate::Leaf);
        assert!(
            victim.is_some_and(|slot| tracked.remove(&slot).is_some()),
            "{name} lost {} slots, the last answer was {victim:?} (seed {seed})",
            tracked.len()
        );
    }
    assert_eq!(
        policy.evict(&mut |_| Candidate::Leaf),
        None,
        "{name} evicted from an empty pool (seed {seed})"
    );
}

/// A lone leaf is found among parents, wherever it stands.
fn prefers_leaves(make: &dyn Fn(u32) -> Box<dyn EvictionPolicy>) {
    let slot_count = LEAF_SEARCH_MIN as u32;
    for leaf in 0..slot_count {
        for touched in [0, slot_count / 2, slot_count] {
            let mut policy = make(slot_count);
            (0..slot_count).for_each(|slot| policy.insert(SlotId(slot), key(u64::from(slot))));
            (0..touched).for_each(|slot| policy.touch(SlotId(slot)));
            let victim = policy.evict(&mut |slot| {
                if slot.0 == leaf { Candidate::Leaf } else { Candidate::HasChildren }
            });
            assert_eq!(
                victim,
                Some(SlotId(leaf)),
                "{} evicted a parent though slot {leaf} of {slot_count} is a leaf ({touched} touched)",
                policy.name()
            );
        }
    }
}

/// One unpinned slot among many pinned ones is found, whatever its history and even if it has children.
fn searches_to_the_last_slot(make: &dyn Fn(u32) -> Box<dyn EvictionPolicy>) {
    const SLOTS: u32 = 200;
    for free in (0..SLOTS).step_by(7) {
        for touched in [0, SLOTS / 2, SLOTS] {
            let mut policy = make(SLOTS);
            (0..SLOTS).for_each(|slot| policy.insert(SlotId(slot), key(u64::from(slot))));
            for _ in 0..4 {
                (0..touched).for_each(|slot| policy.touch(SlotId(slot)));
            }
            assert_eq!(policy.evict(&mut |_| Candidate::Pinned), None, "{} evicted pinned", policy.name());
            let victim = policy.evict(&mut |slot| {
                if slot.0 == free { Candidate::HasChildren } else { Candidate::Pinned }
            });
            assert_eq!(
                victim,
                Some(SlotId(free)),
                "{} did not find the one unpinned slot ({touched} touched)",
                policy.name()
            );
        }
    }
}

/// After `clear` a policy decides like a new one.
fn clear_forgets_ghosts(make: &dyn Fn(u32) -> Box<dyn EvictionPolicy>) {
    const SLOTS: u32 = 16;
    let victims = |policy: &mut dyn EvictionPolicy| {
        let mut victims = Vec::new();
        for count in 0..SLOTS * 6 {
            let slot = if count < SLOTS { SlotId(count) } else { evict_any(policy) };
            victims.push(slot);
            policy.insert(slot, key(u64::from(count * 7 % (SLOTS * 2))));
            policy.touch(SlotId(count * 5 % SLOTS));
        }
        victims
    };
    let mut policy = make(SLOTS);
    let first = victims(&mut *policy);
    policy.clear();
    assert_eq!(policy.len(), 0, "{} tracks slots after clear", policy.name());
    assert!(victims(&mut *policy) == first, "{} remembers something after clear", policy.name());
}

/// Memory stays within the budget however many keys have come and gone.
fn metadata_is_bounded(make: &dyn Fn(u32) -> Box<dyn EvictionPolicy>) {
    // The largest one is large beside what is fixed.
    for slot_count in [1_u32, 100, 50_000] {
        let mut policy = make(slot_count);
        let budget = slot_count as usize * METADATA_BYTES_PER_SLOT_MAX + METADATA_BYTES_FIXED_MAX;
        for count in 0..u64::from(slot_count) * 8 {
            let slot =
                if count < u64::from(slot_count) { SlotId(count as u32) } else { evict_any(&mut *policy) };
            policy.insert(slot, key(count));
            if count % 3 == 0 {
                policy.touch(slot);
            }
        }
        assert!(
            policy.metadata_bytes() <= budget,
            "{} holds {} bytes for {slot_count} slots, allowed are {budget}",
            policy.name(),
            policy.metadata_bytes()
        );
        assert!(policy.metadata_bytes() > 0, "{} does not account for its memory", policy.name());
    }
}

/// The victim where nothing is pinned.
fn evict_any(policy: &mut dyn EvictionPolicy) -> SlotId {
    policy
        .evict(&mut |_| Candidate::Leaf)
        .unwrap_or_else(|| panic!("{} found no victim though nothing is pinned", policy.name()))
}

fn random_candidate(random: &mut SplitMix, pinned_of_8: u64, with_children_of_8: u64) -> Candidate {
    if random.below(8) < pinned_of_8 {
        Candidate::Pinned
    } else if random.below(8) < with_children_of_8 {
        Candidate::HasChildren
    } else {
        Candidate::Leaf
    }
}

/// A key that looks like a hash, as real ones do.
fn key(number: u64) -> BlockKey {
    let mut key = [0; BlockKey::BYTES];
    key[..8].copy_from_slice(&SplitMix(number).next().to_le_bytes());
    BlockKey(key)
}

/// SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): small, seeded, the same everywhere.
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

const HISTORIES: u64 = 200;
const STEPS: u32 = 1500;

#[cfg(test)]
mod tests {
    use super::super::{HitDensity, Lru, S3Fifo, S3FifoFixed};
    use super::*;

    #[test]
    fn lru_holds_the_promises() {
        check(&|slot_count| Box::new(Lru::new(slot_count)));
    }

    #[test]
    fn hit_density_holds_the_promises() {
        check(&|slot_count| Box::new(HitDensity::new(slot_count)));
    }

    #[test]
    fn s3fifo_holds_the_promises() {
        check(&|slot_count| Box::new(S3Fifo::new(slot_count)));
    }

    #[test]
    fn s3fifo_fixed_holds_the_promises_at_any_share() {
        for share in [0.0, 0.1, 0.5, 1.0] {
            check(&|slot_count| Box::new(S3FifoFixed::new(slot_count, share)));
        }
    }

    /// A policy that is wrong in one way; the suite must notice each.
    #[derive(Clone, Copy)]
    enum Fault {
        EvictsPinned,
        GivesUpEarly,
        LosesSlots,
        IgnoresChildren,
        KeepsTrackAfterClear,
        HidesMemory,
        RemembersForEver,
    }

    struct Faulty {
        inner: Lru,
        fault: Fault,
        evictions: u32,
    }

    impl EvictionPolicy for Faulty {
        fn name(&self) -> &'static str {
            "faulty"
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
            self.evictions += 1;
            match self.fault {
                Fault::EvictsPinned => self.inner.evict(&mut |slot| match candidate(slot) {
                    Candidate::Pinned => Candidate::HasChildren,
                    other => other,
                }),
                Fault::GivesUpEarly if self.evictions.is_multiple_of(5) => None,
                Fault::LosesSlots if self.evictions == 5 => {
                    self.inner.evict(candidate);
                    self.inner.evict(candidate)
                }
                Fault::IgnoresChildren => self.inner.evict(&mut |slot| match candidate(slot) {
                    Candidate::HasChildren => Candidate::Leaf,
                    other => other,
                }),
                _ => self.inner.evict(candidate),
            }
        }
        fn clear(&mut self) {
            if !matches!(self.fault, Fault::KeepsTrackAfterClear) {
                self.inner.clear();
            }
        }
        fn len(&self) -> usize {
            self.inner.len()
        }
        fn metadata_bytes(&self) -> usize {
            match self.fault {
                Fault::HidesMemory => 0,
                // Eight bytes for each key that was ever evicted.
                Fault::RemembersForEver => self.inner.metadata_bytes() + 8 * self.evictions as usize,
                _ => self.inner.metadata_bytes(),
            }
        }
    }

    #[test]
    fn notices_every_fault() {
        for (fault, message) in [
            (Fault::EvictsPinned, "pinned"),
            (Fault::GivesUpEarly, "no victim"),
            (Fault::LosesSlots, "says it tracks"),
            (Fault::IgnoresChildren, "evicted a parent"),
            (Fault::KeepsTrackAfterClear, "says it tracks"),
            (Fault::HidesMemory, "does not account"),
            (Fault::RemembersForEver, "allowed are"),
        ] {
            let make: &dyn Fn(u32) -> Box<dyn EvictionPolicy> =
                &|slot_count| Box::new(Faulty { inner: Lru::new(slot_count), fault, evictions: 0 });
            let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| check(make)))
                .expect_err("the suite must notice the fault");
            let said = panic.downcast_ref::<String>().expect("a formatted message");
            assert!(said.contains(message), "expected `{message}`, got `{said}`");
        }
    }
}
