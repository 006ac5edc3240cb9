//! The ring over TCP: one thread, sockets that never block, values read and written where they lie.
//!
//! ```text
//! user ── submit, ask ──► inbox ──► Driver ─── RingClient (kvcache-core: who is asked, how long)
//! user ◄── poll, wait ── outbox ◄──   │
//!                                     └─ Server ─ lanes ─ Connection ─ ExtensionSession | StockSession | LocalSession
//! ```
//!
//! A connection says hello and finds out whether the server speaks our extension or InfiniStore's protocol alone. Small
//! requests have a connection of their own, so that they never wait behind values. Nothing a peer sends can do more
//! than end its connection, with a reason that is counted.

mod connection;
mod driver;
mod extension;
mod fault;
mod in_buffer;
mod local_lane;
mod memory;
mod outgoing;
mod placement;
mod rdma_lane;
mod rdma_lanes;
mod server;
mod shared;
mod spin;
mod stock;
mod stream;
mod thread;
mod tls;
mod value;
mod work;

pub use fault::FaultReason;
pub use server::ConnectionStats;
pub use shared::RingStats;
pub use tls::{TlsError, TlsSettings};

pub(crate) use extension::{common_prefix, refusal};
pub(crate) use fault::Fault;
pub(crate) use in_buffer::InBuffer;
pub(crate) use outgoing::Outgoing;
pub(crate) use stream::Stream;
pub(crate) use thread::{IoThread, IoThreadConfig, StartError};
pub(crate) use work::{Batch, Work, matches_owner};
