//! How long a policy looks for a victim without resident children.
//!
//! A block whose prefix is gone can no longer be matched, so evicting a parent wastes the slots of its children. A
//! policy therefore passes over parents, but only so many in one search: then it takes the one it would have taken
//! first.

use super::SlotId;

/// The candidates with children that one search has passed over.
#[derive(Debug, Default)]
pub(super) struct PassedOver {
    first: Option<SlotId>,
    count: u32,
}

impl PassedOver {
    /// Notes a candidate with children; true when the search has to end.
    #[inline]
    pub(super) fn is_last(&mut self, slot: SlotId) -> bool {
        self.first.get_or_insert(slot);
        self.count += 1;
        self.count >= PASSED_OVER_MAX
    }

    /// The candidate that would have been the victim if children did not matter.
    #[inline]
    pub(super) fn first(&self) -> Option<SlotId> {
        self.first
    }
}

/// Candidates with children that one search passes over at most.
pub(super) const PASSED_OVER_MAX: u32 = 16;
