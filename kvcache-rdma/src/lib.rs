//! L2: block bytes on a ring of cache servers that speak InfiniStore's wire.

mod local;
pub mod members;
mod rdma;
pub mod ring;
pub mod tcp;
pub mod verbs;
pub mod verbs_client;
pub mod verbs_server;
