//! Memory for blocks: one mapping, cut into slots, that outlives the engine when it lies in shared memory.
//!
//! [`Slab::open`] takes the memory, [`Slab::slot_ptr`] says where a slot is, and [`Slab::table`] records what each slot
//! holds, so that [`Slab::warm_slots`] can tell after a restart. Files belong to one process at a time, see
//! [`SharedBacking`] for who waits for whom.

mod config;
mod error;
mod lane;
mod mapping;
mod owner;
mod place;
mod replica;
mod reservation;
mod room;
#[expect(clippy::module_inception, reason = "the slab is what this module is about")]
mod slab;
mod slab_file;
mod slot_table;
#[cfg(test)]
mod test_directory;

pub use config::{Backing, SharedBacking, SlabConfig};
pub use error::SlabError;
pub use mapping::HugePages;
pub(crate) use mapping::page_bytes;
pub use replica::SlabReplica;
pub use room::{is_in_memory, machine_memory_bytes};
pub use slab::{OpenReport, Slab, Verification};
pub use slab_file::Removed;
pub use slot_table::{SlotRecord, SlotTable, WarmSlot};
