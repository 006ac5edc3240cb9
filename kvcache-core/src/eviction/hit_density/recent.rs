//! Remembers when keys were last seen, in bounded memory.
//!
//! A set-associative table, as the caches of a processor are: a key's hash names a set of eight entries, and a new key
//! takes the place of the one in its set that was noted longest ago. That is nearly first in first out over the whole
//! table, with neither links nor an index. A key is known by a hash of 32 bits: one that was never seen is taken
//! for another one of its set in one of 260,000 look-ups in a full table of 16,384 entries, in one of 1,000 in one of four
//! million, and then is judged by that one's past.

/// A bounded memory of keys, each with the time it was last seen and a note of 1 to 255.
///
/// Every operation looks at one set, which is one cache line. Memory: 8 bytes an entry.
#[derive(Debug)]
pub(super) struct Recent {
    sets: Vec<Set>,
}

/// What is known of a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::eviction) struct Seen {
    /// Never 0.
    pub(in crate::eviction) note: u8,
    /// The clock when the key was last seen.
    pub(in crate::eviction) at: u32,
}

/// Entries of a set: a cache line.
const WAYS: usize = 8;

#[derive(Clone, Copy, Debug, Default)]
#[repr(align(64))]
struct Set([Entry; WAYS]);

/// 24 bits of the hash and the note, which is 0 where the entry is free; and the time.
#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    tag_and_note: u32,
    at: u32,
}

impl Entry {
    fn seen(self) -> Option<Seen> {
        let note = self.tag_and_note as u8;
        (note != 0).then_some(Seen { note, at: self.at })
    }

    fn is_of(self, hash: u32) -> bool {
        self.tag_and_note as u8 != 0 && self.tag_and_note >> 8 == hash & TAG_MAX
    }
}

const TAG_MAX: u32 = (1 << 24) - 1;

impl Recent {
    /// Room for `entries` keys, rounded up to whole sets.
    pub(super) fn new(entries: usize) -> Self {
        Self { sets: vec![Set::default(); entries.div_ceil(WAYS).max(1)] }
    }

    /// What is known of the key with this hash.
    pub(super) fn get(&self, hash: u32) -> Option<Seen> {
        let set = &self.sets[self.home(hash)];
        set.0.iter().find(|entry| entry.is_of(hash)).and_then(|entry| entry.seen())
    }

    /// Takes note of the key. Where its set is full, the key of the set that was noted longest ago is forgotten, and
    /// what was known of it returned.
    pub(super) fn put(&mut self, hash: u32, seen: Seen) -> Option<Seen> {
        debug_assert_ne!(seen.note, 0, "a note of 0 marks a free entry");
        let home = self.home(hash);
        let set = &mut self.sets[home].0;
        // Latest first, free ones last: the key's own entry makes room, or a free one, or the last.
        let gap = set.iter().position(|entry| entry.is_of(hash) || entry.seen().is_none());
        set[..=gap.unwrap_or(WAYS - 1)].rotate_right(1);
        let forgotten = if gap.is_none() { set[0].seen() } else { None };
        set[0] = Entry { tag_and_note: ((hash & TAG_MAX) << 8) | u32::from(seen.note), at: seen.at };
        forgotten
    }

    pub(super) fn set_count(&self) -> usize {
        self.sets.len()
    }

    /// The keys of one set.
    pub(super) fn in_set(&self, set: usize) -> impl Iterator<Item = Seen> {
        self.sets[set].0.iter().filter_map(|entry| entry.seen())
    }

    pub(super) fn metadata_bytes(&self) -> usize {
        self.sets.capacity() * size_of::<Set>()
    }

    /// By the upper bits; the tag has the lower ones.
    fn home(&self, hash: u32) -> usize {
        ((u64::from(hash) * self.sets.len() as u64) >> u32::BITS) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seen(note: u8, at: u32) -> Seen {
        Seen { note, at }
    }

    #[test]
    fn knows_what_it_was_told_last() {
        let mut recent = Recent::new(64);
        assert_eq!(recent.get(7), None);
        recent.put(7, seen(3, 10));
        recent.put(7, seen(4, 20));
        assert_eq!(recent.get(7), Some(seen(4, 20)));
        assert_eq!(recent.in_set(0).count(), 1, "one entry a key");
        assert_eq!(recent.get(7), Some(seen(4, 20)));
    }

    #[test]
    fn forgets_the_oldest_of_a_full_set() {
        let mut recent = Recent::new(8);
        let first: Vec<_> = (0..8).filter_map(|key| recent.put(key, seen(1, key))).collect();
        assert_eq!(first, []);
        recent.put(2, seen(1, 2));
        let forgotten: Vec<_> = (100..103).filter_map(|key| recent.put(key, seen(1, key))).collect();
        assert_eq!(forgotten, [seen(1, 0), seen(1, 1), seen(1, 3)]);
        let known: Vec<u32> = (0..200).filter(|key| recent.get(*key).is_some()).collect();
        assert_eq!(known, [2, 4, 5, 6, 7, 100, 101, 102], "2 was noted again");
    }

    #[test]
    fn remembers_nearly_as_many_keys_as_it_has_entries() {
        let mut recent = Recent::new(8000);
        let hash = |key: u32| key.wrapping_mul(0x9e37_79b9);
        for key in 0..100_000 {
            recent.put(hash(key), seen(1, key));
        }
        let known = |keys: std::ops::Range<u32>| keys.filter(|key| recent.get(hash(*key)).is_some()).count();
        assert!(known(96_000..100_000) > 3900, "{} of the latest 4000", known(96_000..100_000));
        assert!(known(0..80_000) < 400, "{} of keys long gone", known(0..80_000));
    }
}
