//! Tables that somebody else worked out and published as ranges of slots.

use serde::{Deserialize, Serialize};

use super::{MemberListError, RING_SLOTS, SlotTable};

/// Slots `start` to `end`, both included. `start > end` is a range that wraps around.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SlotRange {
    /// First slot.
    pub start: u32,
    /// Last slot.
    pub end: u32,
}

impl SlotRange {
    /// The slots of the range that exist.
    fn slots(self) -> impl Iterator<Item = usize> {
        let (start, end, last) = (self.start as usize, self.end as usize, RING_SLOTS - 1);
        let (first, second) = match start <= end {
            true => (start..=end.min(last), None),
            false => (0..=end.min(last), Some(start..=last)),
        };
        first.chain(second.into_iter().flatten())
    }
}

/// What was wrong with published ranges. All of it is repaired; a table never refuses to be read because of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RangeFaults {
    /// Ranges whose start lies behind their end.
    ///
    /// AIBrix's publisher replaces all ranges of a member that holds both the first and the last slot by one of these,
    /// and its readers take that for no slots at all. Where one member has such a range, it is given whatever else no
    /// other claims: that is exactly what it lost.
    pub wrapped: u32,
    /// Slots that two members claim: the first in alphabetical order keeps them.
    pub claimed_twice: u32,
    /// Slots that nobody claims and no wrapped range explains: they go where [`SlotTable::new`] has them.
    pub unclaimed: u32,
    /// Ranges that reach beyond the last slot: the part beyond it is left out.
    pub out_of_bounds: u32,
}

impl SlotTable {
    /// The table that was published as ranges of slots for each member, repaired where it is faulty.
    ///
    /// Neither the load bound nor the bound on moves holds for such a table: it is what its publisher made it.
    ///
    /// # Errors
    ///
    /// Those of [`SlotTable::new`].
    pub fn from_ranges<M: AsRef<str>>(
        members: &[(M, Vec<SlotRange>)],
    ) -> Result<(Self, RangeFaults), MemberListError> {
        let names: Vec<&str> = members.iter().map(|(name, _)| name.as_ref()).collect();
        let mut faults = RangeFaults::default();
        let mut owners: Vec<Option<usize>> = vec![None; RING_SLOTS];
        let mut wrapped: Vec<usize> = Vec::new();
        let mut by_name: Vec<usize> = (0..members.len()).collect();
        by_name.sort_unstable_by_key(|&member| names[member]);
        for member in by_name {
            for range in &members[member].1 {
                if range.start > range.end {
                    faults.wrapped += 1;
                    wrapped.push(member);
                }
                if range.start.max(range.end) as usize >= RING_SLOTS {
                    faults.out_of_bounds += 1;
                }
                for slot in range.slots() {
                    match owners[slot] {
                        None => owners[slot] = Some(member),
                        Some(owner) if owner == member => {}
                        Some(_) => faults.claimed_twice += 1,
                    }
                }
            }
        }
        wrapped.dedup();
        for slot in owners.iter_mut().filter(|slot| slot.is_none()) {
            match wrapped[..] {
                [member] => *slot = Some(member),
                _ => faults.unclaimed += 1,
            }
        }
        Ok((Self::with_owners(&names, &owners)?, faults))
    }
}
