//! Sets of bytes, as ranges of addresses.

use std::ops::Range;

/// Sorted ranges that neither overlap nor touch.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Ranges(Vec<Range<usize>>);

impl Ranges {
    /// The union. Empty ranges are left out. O(n log n).
    pub(super) fn new(ranges: impl IntoIterator<Item = Range<usize>>) -> Self {
        let mut all: Vec<_> = ranges.into_iter().filter(|range| !range.is_empty()).collect();
        all.sort_unstable_by_key(|range| range.start);
        let mut union: Vec<Range<usize>> = Vec::with_capacity(all.len());
        for range in all {
            match union.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => union.push(range),
            }
        }
        Self(union)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Range<usize>> {
        self.0.iter()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What the other has not. O(n).
    pub(super) fn without(&self, other: &Self) -> Self {
        let mut left = Vec::with_capacity(self.0.len());
        let mut theirs = other.0.iter().peekable();
        for range in &self.0 {
            let mut start = range.start;
            while let Some(their) = theirs.next_if(|their| their.end <= range.end) {
                if start < their.start {
                    left.push(start..their.start);
                }
                start = start.max(their.end);
            }
            // The one that is left may reach into this range and beyond it.
            let end = theirs.peek().map_or(range.end, |their| range.end.min(their.start));
            if start < end {
                left.push(start..end);
            }
        }
        Self(left)
    }

    /// The first bytes that both have. O(n), and O(1) where one ends before the other begins.
    pub(super) fn overlap(&self, other: &Self) -> Option<Range<usize>> {
        let (mut ours, mut theirs) = (self.0.iter().peekable(), other.0.iter().peekable());
        let apart = |left: &Self, right: &Self| match (left.0.last(), right.0.first()) {
            (Some(last), Some(first)) => last.end <= first.start,
            _ => true,
        };
        if apart(self, other) || apart(other, self) {
            return None;
        }
        while let (Some(our), Some(their)) = (ours.peek(), theirs.peek()) {
            let both = our.start.max(their.start)..our.end.min(their.end);
            if !both.is_empty() {
                return Some(both);
            }
            if our.end <= their.end {
                ours.next()
            } else {
                theirs.next()
            };
        }
        None
    }
}

/// The first bytes that two of the ranges have in common. O(n log n).
pub(super) fn overlap_within(ranges: impl IntoIterator<Item = Range<usize>>) -> Option<Range<usize>> {
    let mut all: Vec<_> = ranges.into_iter().filter(|range| !range.is_empty()).collect();
    all.sort_unstable_by_key(|range| range.start);
    // Sorted by their starts, some two overlap exactly if some two neighbours do.
    let neighbours = all.windows(2).map(|pair| pair[1].start..pair[0].end.min(pair[1].end));
    neighbours.into_iter().find(|both| !both.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn few() -> impl Strategy<Value = Vec<Range<usize>>> {
        prop::collection::vec((0usize..60, 0usize..8).prop_map(|(start, bytes)| start..start + bytes), 0..6)
    }

    proptest! {
        /// The oracle looks at every byte.
        #[test]
        fn overlaps_are_those_of_the_bytes(left in few(), right in few()) {
            let (set, other) = (Ranges::new(left.clone()), Ranges::new(right.clone()));
            let has = |ranges: &[Range<usize>], at| ranges.iter().filter(|range| range.contains(&at)).count();
            let first = (0..70).find(|at| has(&left, *at) > 0 && has(&right, *at) > 0);
            prop_assert_eq!(set.overlap(&other).map(|both| both.start), first);
            let without = Ranges::new(left.iter().cloned()).without(&other);
            for at in 0..70 {
                let wanted = has(&left, at) > 0 && has(&right, at) == 0;
                prop_assert_eq!(has(&without.0, at), usize::from(wanted), "{} of {:?}", at, without);
            }
            for pair in set.0.windows(2) {
                prop_assert!(pair[0].end < pair[1].start);
            }
            let twice = (0..70).find(|at| has(&left, *at) > 1);
            let found = overlap_within(left.clone());
            prop_assert_eq!(found.is_some(), twice.is_some());
            prop_assert!(found.is_none_or(|both| both.into_iter().all(|at| has(&left, at) > 1)));
        }
    }
}
