//! RDMA verbs: devices, registered memory, reliable connections.
//!
//! Nothing is linked: [`Rdma::load`] opens libibverbs at run time, and where it is missing, or knows no device,
//! [`Unavailable`] says so and what to do. What cannot be expressed is the usual mistake with verbs, memory that goes
//! away while a device may touch it: see [`memory`](Memory) and [`QueuePair`].
//!
//! ```no_run
//! use std::sync::Arc;
//! use kvcache_rdma::verbs::{Access, Memory, PortWish, QueuePairConfig, Rdma};
//!
//! let port = Rdma::load()?.open(&PortWish::default())?;
//! let region = Arc::new(port.register(Memory::allocate(1 << 20), Access::Remote)?);
//! let queue_pair = port.queue_pair(&QueuePairConfig { remote_access: true, ..Default::default() })?;
//! println!("{:?} with key {}", queue_pair.address(), region.remote_key());
//! # Ok::<(), kvcache_rdma::verbs::Error>(())
//! ```
//!
//! Code above this module runs on a [fake](FakeNetwork) as well, which keeps the rules of reliable connections: order,
//! flushing, keys and ranges, messages that wait for a receive.

pub mod conformance;

mod error;
mod fake;
mod hardware;
mod memory;
mod opened_port;
mod port;
mod provider;
mod queue_pair;
mod selection;
mod sys;
pub(crate) mod wait;

pub use error::{Error, Status, Unavailable};
pub use fake::FakeNetwork;
pub use hardware::Rdma;
pub use memory::{Access, Buffer, Memory, Region, Slice};
pub use opened_port::Port;
pub use port::{DeviceInfo, Gid, GidKind, Limits, LinkLayer, Mtu, PortInfo, PortState};
pub use queue_pair::{Completion, PeerAddress, Queue, QueuePair, QueuePairConfig, Request, Work};
pub use selection::{PortSelection, PortWish, SelectionError, select};
