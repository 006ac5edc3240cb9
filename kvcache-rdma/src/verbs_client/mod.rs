//! The client's half of InfiniStore's RDMA protocol: one server, stock or ours, behind
//! [`RemoteStore`](kvcache_core::remote::RemoteStore).
//!
//! A request is a small message with keys and addresses; the server moves the bytes into or out of the registered
//! memory, and answers with a status. Three things about the protocol need care, and are taken care of here:
//!
//! - **Answers carry no id**, and a stock server lets refusals overtake running transfers. Answers are matched by order
//!   as long as that is certain, and when it is not, everything in doubt is asked again, one request at a time
//!   (`lane.rs` has the argument).
//! - **One missing key refuses a whole request.** It is halved until the missing keys are alone.
//! - **There is no checksum on the wire.** A value's is stored beside it under a name of its own, and verified after
//!   every load; [`VerbsClientConfig::checksums`] switches it off for values of other writers.
//!
//! A connection (TCP for the exchange, and a queue pair) is a *lane* with a thread of its own. A request that is not
//! answered in time takes its lane down: the queue pair is destroyed, after which nothing of ours is written any more,
//! only then the request ends, and the lane connects again. Beside the caller's memory a lane pins less than 1 MiB.

mod client;
mod config;
mod control;
mod lane;
#[cfg(test)]
mod lane_tests;
mod queue;
#[cfg(test)]
mod tests;
mod unit;
mod words;
mod worker;

pub use client::VerbsClient;
pub use config::VerbsClientConfig;
pub(crate) use control::{ControlError, exchange};
pub(crate) use lane::Lane;
pub(crate) use unit::{Item, Unit};
