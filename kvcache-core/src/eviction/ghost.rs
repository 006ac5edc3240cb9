//! Remembers keys that were evicted, in bounded memory.
//!
//! A ghost answers one question: "was this key evicted a short while ago, from which queue, and how many evictions
//! ago?" It is a ring of 8-byte fingerprints in eviction order and an open-addressing table that finds a fingerprint
//! in the ring. The oldest fingerprint makes room for the newest. Two keys with one fingerprint are taken for each
//! other: at a million ghosts that is one wrong answer in 10^13 look-ups, and it costs a block in the wrong queue,
//! nothing else.

use crate::BlockKey;

/// A bounded first-in first-out memory of evicted keys.
///
/// Look-up, insertion and removal are expected O(1). Memory: 14 bytes an entry of capacity.
#[derive(Debug)]
pub(super) struct Ghost {
    /// Fingerprints in eviction order, lowest bit: origin. A removed one leaves a [`HOLE`] until the ring comes round.
    ring: Vec<u64>,
    /// Positions in `ring`, found by linear probing; [`EMPTY`] where there is none.
    table: Vec<u32>,
    /// Where the next fingerprint goes.
    cursor: usize,
}

/// The queue that a block was evicted from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Origin {
    Small,
    Main,
}

/// What a ghost knows of a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct GhostHit {
    pub(super) origin: Origin,
    /// Evictions since that of the key; 0 for the latest one.
    pub(super) evictions_ago: usize,
}

impl Ghost {
    /// Remembers the last `capacity` evictions; zero is allowed and remembers nothing.
    pub(super) fn new(capacity: u32) -> Self {
        let capacity = capacity as usize;
        // Load factor 2/3 at most, plus one so that a probe always ends at an empty cell.
        Self { ring: vec![HOLE; capacity], table: vec![EMPTY; capacity + capacity / 2 + 1], cursor: 0 }
    }

    /// Remembers `fingerprint` as the latest eviction and forgets the oldest.
    pub(super) fn insert(&mut self, fingerprint: Fingerprint, origin: Origin) {
        if self.ring.is_empty() {
            return;
        }
        self.take(fingerprint);
        match self.ring[self.cursor] {
            HOLE => {}
            oldest => {
                self.take(Fingerprint(oldest & !ORIGIN_MAIN));
            }
        }
        let (Ok(cell) | Err(cell)) = self.find(fingerprint);
        self.ring[self.cursor] = fingerprint.0 | if origin == Origin::Main { ORIGIN_MAIN } else { 0 };
        self.table[cell] = self.cursor as u32;
        self.cursor = if self.cursor + 1 == self.ring.len() { 0 } else { self.cursor + 1 };
    }

    /// Says what is known of `fingerprint` and forgets it.
    pub(super) fn take(&mut self, fingerprint: Fingerprint) -> Option<GhostHit> {
        let cell = self.find(fingerprint).ok()?;
        let position = self.table[cell] as usize;
        let origin = if self.ring[position] & ORIGIN_MAIN == 0 { Origin::Small } else { Origin::Main };
        self.ring[position] = HOLE;
        self.close_gap(cell);
        // The cursor is one past the latest eviction.
        let evictions_ago = (self.cursor + self.ring.len() - 1 - position) % self.ring.len();
        Some(GhostHit { origin, evictions_ago })
    }

    /// Whether `fingerprint` is remembered.
    pub(super) fn contains(&self, fingerprint: Fingerprint) -> bool {
        self.find(fingerprint).is_ok()
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.ring.fill(HOLE);
        self.table.fill(EMPTY);
        self.cursor = 0;
    }

    /// Bytes of memory that the ghost holds.
    pub(super) fn metadata_bytes(&self) -> usize {
        self.ring.capacity() * size_of::<u64>() + self.table.capacity() * size_of::<u32>()
    }

    /// The table cell that points at `fingerprint`, or else the free cell where it belongs.
    fn find(&self, fingerprint: Fingerprint) -> Result<usize, usize> {
        let mut cell = self.home(fingerprint.0);
        loop {
            match self.table[cell] {
                EMPTY => return Err(cell),
                position if self.ring[position as usize] & !ORIGIN_MAIN == fingerprint.0 => return Ok(cell),
                _ => cell = self.after(cell),
            }
        }
    }

    /// Empties `gap` and moves later cells of its run back, so that no probe stops early. No tombstones are left,
    /// hence no rebuilds.
    fn close_gap(&mut self, mut gap: usize) {
        let mut cell = self.after(gap);
        while self.table[cell] != EMPTY {
            let home = self.home(self.ring[self.table[cell] as usize] & !ORIGIN_MAIN);
            // The entry may move into the gap unless its home lies cyclically within (gap, cell].
            let stays = if gap <= cell { gap < home && home <= cell } else { gap < home || home <= cell };
            if !stays {
                self.table[gap] = self.table[cell];
                gap = cell;
            }
            cell = self.after(cell);
        }
        self.table[gap] = EMPTY;
    }

    #[inline]
    fn home(&self, fingerprint: u64) -> usize {
        // Multiply-shift: spreads weak fingerprints, and needs no power-of-two table.
        let spread = fingerprint.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        ((u128::from(spread) * self.table.len() as u128) >> 64) as usize
    }

    #[inline]
    fn after(&self, cell: usize) -> usize {
        if cell + 1 == self.table.len() { 0 } else { cell + 1 }
    }
}

/// 63 bits that stand for a key within a policy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Fingerprint(u64);

impl Fingerprint {
    /// Fills per-slot arrays where there is no key yet; remembered by no ghost.
    pub(super) const NONE: Self = Self(HOLE);

    #[inline]
    pub(super) fn of(key: BlockKey) -> Self {
        // The one key in 2^63 that would look like a hole shares its neighbour's fingerprint.
        Self((key.short_hash() & !ORIGIN_MAIN).max(2))
    }
}

const HOLE: u64 = 0;
const ORIGIN_MAIN: u64 = 1;
const EMPTY: u32 = u32::MAX;

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    fn fingerprint(seed: u64) -> Fingerprint {
        let mut key = [0; BlockKey::BYTES];
        key[..8].copy_from_slice(&((seed + 1) << 1).to_le_bytes());
        Fingerprint::of(BlockKey(key))
    }

    #[test]
    fn forgets_the_oldest_first() {
        let mut ghost = Ghost::new(2);
        for key in 1..=3 {
            ghost.insert(fingerprint(key), Origin::Small);
        }
        assert_eq!(ghost.take(fingerprint(1)), None);
        assert_eq!(ghost.take(fingerprint(2)), Some(GhostHit { origin: Origin::Small, evictions_ago: 1 }));
        assert_eq!(ghost.take(fingerprint(2)), None, "a hit is forgotten");
        assert_eq!(ghost.take(fingerprint(3)), Some(GhostHit { origin: Origin::Small, evictions_ago: 0 }));
    }

    #[test]
    fn without_capacity_it_remembers_nothing() {
        let mut ghost = Ghost::new(0);
        ghost.insert(fingerprint(1), Origin::Main);
        assert_eq!(ghost.take(fingerprint(1)), None);
    }

    #[test]
    fn costs_fourteen_bytes_an_entry() {
        assert!(Ghost::new(1000).metadata_bytes() <= 14 * 1000 + 4);
    }

    proptest! {
        /// A queue with one place per eviction says the same; few keys and a small table make probe runs wrap.
        #[test]
        fn matches_a_plain_queue(
            capacity in 0_u32..12,
            operations in prop::collection::vec((0_u64..24, prop::bool::ANY, 0_u8..3), 0..400),
        ) {
            let mut ghost = Ghost::new(capacity);
            let mut oracle: VecDeque<Option<(u64, Origin)>> = VecDeque::new();
            for (key, main, operation) in operations {
                let position = oracle.iter().position(|entry| entry.is_some_and(|(k, _)| k == key));
                let expected = position.map(|at| GhostHit {
                    origin: oracle[at].expect("found above").1,
                    evictions_ago: oracle.len() - 1 - at,
                });
                if let Some(at) = position {
                    oracle[at] = None;
                }
                if operation == 0 {
                    prop_assert_eq!(ghost.take(fingerprint(key)), expected);
                } else {
                    let origin = if main { Origin::Main } else { Origin::Small };
                    ghost.insert(fingerprint(key), origin);
                    oracle.push_back(Some((key, origin)));
                    if oracle.len() > capacity as usize {
                        oracle.pop_front();
                    }
                }
            }
        }
    }
}
