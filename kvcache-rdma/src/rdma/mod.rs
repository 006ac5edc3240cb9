//! RDMA as the ring uses it: one device, the memory that is registered there, and lanes to servers.
//!
//! A [`Device`] is shared by everything that a client of the ring does over RDMA. It is opened when the first lane is
//! [set up](set_up), on the thread that does so, since opening a device may take long. A slab is registered in the
//! background, a piece at a time; memory that is not registered yet, or never will be, is registered for one request.

mod device;
mod set_up;
mod slab_registration;

pub use device::RdmaPort;
pub(crate) use device::{Device, ItemMemory};
pub(crate) use set_up::{LaneSettings, ReadyLane, set_up};
pub(crate) use slab_registration::SlabRegistration;
