//! Remembers the past of keys that are not here, in four bytes each.
//!
//! A set-associative table like [`Recent`](super::recent), with sixteen entries a set. An entry is made small by knowing
//! less: 16 bits of the key's hash beside those that name the set, and the time in steps of about a sixteenth of the
//! slot count, which is as fine as the [classes](super::worth::Class) that are made of it. More keys in the same memory are worth
//! more than either.
//!
//! A key that was never seen is taken for another one in one of 4,000 look-ups in a full table of up to a million entries,
//! in one of 180 in one of 24 million, and then is judged by that one's past.

use super::recent::Seen;

/// A bounded memory of keys, each with the time it was last seen and a note of 1 to 31.
///
/// Every operation looks at one set, which is one cache line. Memory: 4 bytes an entry.
#[derive(Debug)]
pub(in crate::eviction) struct Ghosts {
    sets: Vec<Set>,
    /// Binary logarithm of the accesses in a step of time.
    step_log2: u32,
}

/// Entries of a set: a cache line.
const WAYS: usize = 16;

/// The latest first, free ones last.
#[derive(Clone, Copy, Debug, Default)]
#[repr(align(64))]
struct Set([Entry; WAYS]);

/// From the highest bit: 16 bits of the hash, 11 of the time, 5 of the note, which is 0 where the entry is free.
#[derive(Clone, Copy, Debug, Default)]
struct Entry(u32);

const TIME_BITS: u32 = 11;
const NOTE_BITS: u32 = 5;
const TIME_MAX: u32 = (1 << TIME_BITS) - 1;
const NOTE_MAX: u32 = (1 << NOTE_BITS) - 1;
const TAG_MAX: u32 = (1 << 16) - 1;

impl Entry {
    fn new(hash: u32, step: u32, note: u8) -> Self {
        debug_assert!(note != 0 && u32::from(note) <= NOTE_MAX, "a note of 0 marks a free entry");
        Self((hash & TAG_MAX) << (TIME_BITS + NOTE_BITS) | (step & TIME_MAX) << NOTE_BITS | u32::from(note))
    }

    fn is_free(self) -> bool {
        self.0 & NOTE_MAX == 0
    }

    fn is_of(self, hash: u32) -> bool {
        !self.is_free() && self.0 >> (TIME_BITS + NOTE_BITS) == hash & TAG_MAX
    }
}

impl Ghosts {
    /// Room for `entries` keys, rounded up to whole sets, beside `slot_count` slots.
    pub(in crate::eviction) fn new(entries: usize, slot_count: u32) -> Self {
        Self {
            sets: vec![Set::default(); entries.div_ceil(WAYS).max(1)],
            step_log2: (slot_count / STEPS_A_SLOT_COUNT).max(1).ilog2(),
        }
    }

    /// What is known `now` of the key with this hash. Its time is right to a step; after 2,048 of them it seems recent.
    pub(in crate::eviction) fn get(&self, hash: u32, now: u32) -> Option<Seen> {
        let set = &self.sets[self.home(hash)].0;
        set.iter().find(|entry| entry.is_of(hash)).map(|entry| self.seen(*entry, now))
    }

    /// Takes note of the key. Where its set is full, the key of the set that was noted longest ago is forgotten.
    pub(in crate::eviction) fn put(&mut self, hash: u32, seen: Seen) {
        let home = self.home(hash);
        let entry = Entry::new(hash, seen.at >> self.step_log2, seen.note);
        let set = &mut self.sets[home].0;
        let gap = set.iter().position(|entry| entry.is_of(hash) || entry.is_free());
        set[..=gap.unwrap_or(WAYS - 1)].rotate_right(1);
        set[0] = entry;
    }

    /// What is known `now` of the key, which is forgotten.
    pub(in crate::eviction) fn take(&mut self, hash: u32, now: u32) -> Option<Seen> {
        let home = self.home(hash);
        let set = &mut self.sets[home].0;
        let entry = set.iter().position(|entry| entry.is_of(hash))?;
        set[entry..].rotate_left(1);
        let taken = std::mem::take(&mut set[WAYS - 1]);
        Some(self.seen(taken, now))
    }

    pub(in crate::eviction) fn metadata_bytes(&self) -> usize {
        self.sets.capacity() * size_of::<Set>()
    }

    fn seen(&self, entry: Entry, now: u32) -> Seen {
        // Steps are numbered up to where the clock wraps, or to 2^11.
        let steps_max = TIME_MAX & (u32::MAX >> self.step_log2);
        let step = now >> self.step_log2;
        let at = match step.wrapping_sub(entry.0 >> NOTE_BITS) & steps_max {
            0 => now,
            // The middle of its step.
            ago => {
                let begin = (step << self.step_log2).wrapping_sub(ago << self.step_log2);
                begin.wrapping_add((1 << self.step_log2) / 2)
            }
        };
        Seen { note: (entry.0 & NOTE_MAX) as u8, at }
    }

    /// By the upper bits; the tag has the lower ones.
    fn home(&self, hash: u32) -> usize {
        ((u64::from(hash) * self.sets.len() as u64) >> u32::BITS) as usize
    }
}

/// Steps of time in which the slots could be filled once: 16 to 32 of them.
const STEPS_A_SLOT_COUNT: u32 = 16;

#[cfg(test)]
mod tests {
    use super::*;

    const fn seen(note: u8, at: u32) -> Seen {
        Seen { note, at }
    }

    #[test]
    fn knows_what_it_was_told_last() {
        let mut ghosts = Ghosts::new(64, 16);
        assert_eq!(ghosts.get(7, 30), None);
        ghosts.put(7, seen(3, 10));
        ghosts.put(7, seen(31, 20));
        assert_eq!(ghosts.get(7, 30), Some(seen(31, 20)));
        assert_eq!(ghosts.take(7, 40), Some(seen(31, 20)));
        assert_eq!((ghosts.get(7, 40), ghosts.take(7, 40)), (None, None));
    }

    #[test]
    fn forgets_the_oldest_of_a_full_set() {
        let mut ghosts = Ghosts::new(16, 16);
        (0..16).for_each(|key| ghosts.put(key, seen(1, key)));
        ghosts.put(2, seen(1, 16));
        ghosts.take(5, 16);
        (100..103).for_each(|key| ghosts.put(key, seen(1, key)));
        let known: Vec<u32> = (0..200).filter(|key| ghosts.get(*key, 110).is_some()).collect();
        let expected = [2, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 100, 101, 102];
        assert_eq!(known, expected, "0 and 1 made room, 2 was noted again, 5 was taken");
    }

    /// Whatever the slot count, and across the end of the clock.
    #[test]
    fn times_are_right_to_a_step() {
        for slot_count in [0, 1, 31, 1_000, 1 << 20, 1 << 25, 1 << 26, 1 << 30, u32::MAX] {
            let step = (slot_count / 16).max(1).ilog2();
            for at in [0_u32, 1, 1_000_000, 1 << 31, u32::MAX - 1000, u32::MAX] {
                for waited in [0_u64, 1, 500, u64::from(slot_count), 50 * u64::from(slot_count)] {
                    let waited = waited.min((2047 << step).min(u64::from(u32::MAX) - (1 << step))) as u32;
                    let now = at.wrapping_add(waited);
                    let mut ghosts = Ghosts::new(16, slot_count);
                    ghosts.put(9, seen(4, at));
                    let found = ghosts.get(9, now).expect("noted").at;
                    let error = i64::from(now.wrapping_sub(found)) - i64::from(waited);
                    assert!(error.abs() <= 1 << step, "{slot_count} slots, {at} + {waited}: {error}");
                }
            }
        }
    }

    #[test]
    fn remembers_nearly_as_many_keys_as_it_has_entries() {
        let mut ghosts = Ghosts::new(8000, 1000);
        let hash = |key: u32| key.wrapping_mul(0x9e37_79b9);
        (0..100_000).for_each(|key| ghosts.put(hash(key), seen(1, key)));
        let known =
            |keys: std::ops::Range<u32>| keys.filter(|key| ghosts.get(hash(*key), 0).is_some()).count();
        assert!(known(96_000..100_000) > 3900, "{} of the latest 4000", known(96_000..100_000));
        assert!(known(0..80_000) < 400, "{} of keys long gone", known(0..80_000));
    }
}
