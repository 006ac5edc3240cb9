//! Which server of the ring holds a block.
//!
//! Every client of a ring works out the same placement from nothing but the names of its members: there is nobody to
//! ask, and nothing to agree on. Blocks fall into [`RING_SLOTS`] slots by their key, and a [`SlotTable`] gives each
//! slot to a member so that
//!
//! - the fullest member holds at most a tenth more than the mean,
//! - a member that joins moves little more than its own share, and one that leaves moves what it held,
//! - the order in which the members were listed makes no difference.
//!
//! *Idea.* Every member ranks all slots in an order of its own, and a slot goes to the member that ranks it best: a
//! newcomer then takes slots only for itself (rendezvous hashing, Thaler and Ravishankar, 1998). A member has room for
//! a bounded number of slots and keeps those it ranks best; a slot that is crowded out goes to the next (the stable
//! matching of slots and members, unique since both sides go by the same rank). Members that are full are what makes
//! a newcomer move slots between others, so the ranks are drawn such that loads scatter little to begin with:
//! `preference.rs` has the construction.

mod assignment;
mod document;
#[cfg(test)]
mod document_tests;
mod error;
mod preference;
mod ranges;
mod server_address;
mod slot_table;
#[cfg(test)]
mod tests;

pub use document::{RingDocument, RingDocumentError, RingNode};
pub use error::MemberListError;
pub use ranges::{RangeFaults, SlotRange};
pub use server_address::{ServerAddress, ServerAddressError};
pub use slot_table::{Holders, RingSlot, SlotTable};

/// Slots of a ring. AIBrix's rings have as many.
pub const RING_SLOTS: usize = 4096;

/// Most members of a ring: one slot each.
pub const MEMBERS_MAX: usize = RING_SLOTS;
