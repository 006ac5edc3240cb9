//! Room that is leased before there is a value for it.
//!
//! A put asks for room, copies, and commits: two round trips. The values of a cache have one length, or few, so with each
//! commit goes the request for room for values as long as these: the next ones are copied at once. What is not
//! used is given back after a short while, since it is memory that nobody else can have.

use std::collections::VecDeque;

/// Bytes that are leased in advance, at most: the largest batch of the ring's client.
const SPARE_BYTES_MAX: usize = 4 << 20;

/// Pieces of it, at most.
const SPARE_COUNT_MAX: usize = 32;

/// Room for one value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Spare {
    pub(super) lease: u64,
    pub(super) offset_bytes: u64,
    pub(super) bytes: usize,
}

/// Spare room, all of one length.
#[derive(Debug, Default)]
pub(super) struct SpareRoom {
    rooms: VecDeque<Spare>,
    /// Pieces that were asked for.
    coming: usize,
}

impl SpareRoom {
    pub(super) fn is_empty(&self) -> bool {
        self.rooms.is_empty()
    }

    /// Room for a value of this length.
    pub(super) fn take(&mut self, bytes: usize) -> Option<Spare> {
        if self.rooms.front()?.bytes == bytes { self.rooms.pop_front() } else { None }
    }

    /// How many pieces to ask for when `count` values of this length were written.
    pub(super) fn wanted(&mut self, count: usize, bytes: usize) -> usize {
        // One after the other, so that the pieces are of one length, and never more than is meant.
        if self.coming > 0 || bytes == 0 {
            return 0;
        }
        let most = count.min(SPARE_BYTES_MAX / bytes).min(SPARE_COUNT_MAX);
        self.coming = most.saturating_sub(self.rooms.len());
        self.coming
    }

    /// What was asked for came.
    pub(super) fn came(&mut self, rooms: impl Iterator<Item = Spare>) {
        self.coming = 0;
        self.rooms.extend(rooms);
    }

    /// Gives up all that there is: the leases.
    pub(super) fn give_up(&mut self) -> impl Iterator<Item = u64> + '_ {
        self.rooms.drain(..).map(|spare| spare.lease)
    }

    /// The same if it is room for values of other lengths.
    pub(super) fn give_up_others(&mut self, bytes: usize) -> impl Iterator<Item = u64> + '_ {
        let others = self.rooms.front().is_some_and(|spare| spare.bytes != bytes);
        let count = if others { self.rooms.len() } else { 0 };
        self.rooms.drain(..count).map(|spare| spare.lease)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(lease: u64, bytes: usize) -> Spare {
        Spare { lease, offset_bytes: 0, bytes }
    }

    #[test]
    fn is_as_much_as_was_used_and_no_more_than_its_bounds() {
        let mut spare = SpareRoom::default();
        assert_eq!(spare.wanted(3, 1 << 20), 3);
        assert_eq!(spare.wanted(3, 1 << 20), 0, "it is coming");
        spare.came((1..3).map(|lease| room(lease, 1 << 20)));
        assert_eq!(spare.take(1 << 19), None);
        assert_eq!(spare.take(1 << 20).map(|spare| spare.lease), Some(1));
        assert_eq!(spare.wanted(9, 1 << 20), 3, "four in all");
        spare.came(std::iter::empty());
        assert_eq!(spare.wanted(1, 5 << 20), 0, "too large to wait for nobody");
        assert_eq!(spare.wanted(1000, 1), 31);
        spare.came(std::iter::empty());
        assert_eq!(spare.give_up_others(1 << 20).count(), 0);
        assert_eq!(spare.give_up_others(7).collect::<Vec<_>>(), [2]);
        assert!(spare.is_empty());
    }
}
