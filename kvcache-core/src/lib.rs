//! Keeps the KV cache of an LLM engine alive after it leaves device memory.
//!
//! The *Directory* decides (pure state, no I/O), the *Store* moves bytes (no decisions). Both halves can live in
//! different processes; `BlockCache` puts them behind one handle in one process.

pub mod block_cache;
pub mod block_key;
pub mod byte_size;
pub mod copy_engine;
pub mod directory;
pub mod eviction;
pub mod fingerprint;
pub mod nearest_name;
pub mod plan;
pub mod planner;
pub mod remote;
pub mod replay;
pub mod report;
pub mod ring;
pub mod ring_client;
pub mod slab;
pub mod store;
pub mod thread_placement;
mod wire;

pub use block_key::BlockKey;
pub use wire::Malformed;

// The fakes of the simulation serve unit tests as well: they name this crate from outside.
#[cfg(test)]
extern crate self as kvcache_core;
#[cfg(test)]
#[path = "../tests/simulation/fakes.rs"]
mod fakes;
