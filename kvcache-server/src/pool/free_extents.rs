//! Which granules of the pool are free.

use std::collections::{BTreeMap, BTreeSet};

/// The gaps of the pool, by place and by length.
///
/// Best fit: the smallest gap that is large enough is cut at its start, so that large gaps stay. A gap that comes
/// back is joined with its neighbours at once. Everything is O(log n) of the number of gaps.
#[derive(Debug)]
pub(super) struct FreeExtents {
    /// Start of each gap, and its length.
    by_place: BTreeMap<u64, u64>,
    /// Length and start of each gap.
    by_length: BTreeSet<(u64, u64)>,
    free: u64,
}

impl FreeExtents {
    /// `granules` granules, all free.
    pub(super) fn new(granules: u64) -> Self {
        let mut all = Self { by_place: BTreeMap::new(), by_length: BTreeSet::new(), free: 0 };
        all.add(0, granules);
        all
    }

    /// Takes `granules` (at least 1) in a row and returns the first; the lowest place among equally good gaps.
    pub(super) fn take(&mut self, granules: u64) -> Option<u64> {
        let &(length, start) = self.by_length.range((granules, 0)..).next()?;
        self.remove(start, length);
        if length > granules {
            self.add(start + granules, length - granules);
        }
        Some(start)
    }

    /// Gives back what `take` has returned.
    pub(super) fn put_back(&mut self, mut start: u64, mut granules: u64) {
        if let Some((&before, &length)) = self.by_place.range(..start).next_back() {
            debug_assert!(before + length <= start, "given back twice");
            if before + length == start {
                self.remove(before, length);
                start = before;
                granules += length;
            }
        }
        if let Some(&length) = self.by_place.get(&(start + granules)) {
            self.remove(start + granules, length);
            granules += length;
        }
        self.add(start, granules);
    }

    pub(super) fn free_granules(&self) -> u64 {
        self.free
    }

    /// Length of the largest gap.
    pub(super) fn largest(&self) -> u64 {
        self.by_length.last().map_or(0, |(length, _)| *length)
    }

    fn add(&mut self, start: u64, granules: u64) {
        self.by_place.insert(start, granules);
        self.by_length.insert((granules, start));
        self.free += granules;
    }

    fn remove(&mut self, start: u64, granules: u64) {
        self.by_place.remove(&start);
        self.by_length.remove(&(granules, start));
        self.free -= granules;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A row of flags, searched from the left.
    struct Oracle(Vec<bool>);

    impl Oracle {
        fn gaps(&self) -> Vec<(u64, u64)> {
            let mut gaps = Vec::new();
            let mut start = 0;
            for run in self.0.chunk_by(|one, other| one == other) {
                if !run[0] {
                    gaps.push((run.len() as u64, start));
                }
                start += run.len() as u64;
            }
            gaps
        }

        fn take(&mut self, granules: u64) -> Option<u64> {
            let (_, start) = self.gaps().into_iter().filter(|(length, _)| *length >= granules).min()?;
            self.0[start as usize..][..granules as usize].fill(true);
            Some(start)
        }
    }

    proptest! {
        #[test]
        fn matches_a_row_of_flags(
            capacity in 1_u64..64,
            operations in prop::collection::vec((any::<bool>(), 1_u64..20, any::<prop::sample::Index>()), 0..200),
        ) {
            let mut gaps = FreeExtents::new(capacity);
            let mut oracle = Oracle(vec![false; capacity as usize]);
            let mut taken: Vec<(u64, u64)> = Vec::new();
            for (take, granules, index) in operations {
                if take || taken.is_empty() {
                    let start = oracle.take(granules);
                    prop_assert_eq!(gaps.take(granules), start);
                    taken.extend(start.map(|start| (start, granules)));
                } else {
                    let (start, granules) = taken.swap_remove(index.index(taken.len()));
                    gaps.put_back(start, granules);
                    oracle.0[start as usize..][..granules as usize].fill(false);
                }
                let expected = oracle.gaps();
                prop_assert_eq!(gaps.by_length.iter().copied().collect::<Vec<_>>(), {
                    let mut sorted = expected.clone();
                    sorted.sort_unstable();
                    sorted
                });
                prop_assert_eq!(gaps.by_place.len(), expected.len());
                prop_assert_eq!(gaps.free_granules(), expected.iter().map(|(length, _)| length).sum::<u64>());
                prop_assert_eq!(gaps.largest(), expected.iter().map(|(length, _)| *length).max().unwrap_or(0));
            }
        }
    }
}
