//! The server's half of InfiniStore's RDMA protocol, for any storage.
//!
//! A client sends a small message: keys, addresses in its memory, and the key of that memory. The server moves all bytes:
//! it reads them to store (`W`), writes them to load (`A`), and answers with an empty message whose immediate is the
//! status. Connections are made by an exchange over TCP, which the caller does: [`VerbsServer::connect`].
//!
//! # What differs from the stock server
//! - Answers come in the order of the requests. The stock server lets refusals overtake running transfers, and since
//!   answers carry no id, a client that has several requests in flight takes one's answer for another's.
//! - A connection pins 6 MiB for requests, not 512.
//! - Every message is verified before a byte of it is believed, and the pool cannot be reached by peers: they have no
//!   key for it.
//! - The number of connections is bounded, and that of clients which do nothing more so: [`AdmissionLimits`].
//! - Packets may pass routers ([`QueuePairConfig::hop_limit`](crate::verbs::QueuePairConfig)).

mod admission;
mod connection;
mod counters;
mod driver;
mod exchange;
mod job;
mod server;
mod slot_storage;
mod storage;
#[cfg(test)]
mod tests;

pub use admission::{AdmissionLimits, Refusal};
pub use counters::VerbsServerStats;
pub use exchange::ExchangeListener;
pub use server::{ConnectError, Connection, VerbsServer, VerbsServerConfig};
pub(crate) use server::{info_of_address, peer_of_info};
pub use slot_storage::SlotStorage;
pub use storage::{PutRefused, Storage, ValueMemory};
