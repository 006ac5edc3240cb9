//! The parts of the cache put together from plain settings: what every language's face of it needs, once.
//!
//! The parts are in other crates, and each is opened with the others in hand: a Store wants slots, slots want a slab, L2
//! wants a list of members, a token and a thread. A user says numbers, paths and names. Between the two lies this crate:
//! [`CacheSettings`] opens a [`BlockCache`](kvcache_core::block_cache::BlockCache) with or without L2, [`RemoteSettings`]
//! opens what both halves of a connector know of L2, [`PlannerSettings`] the scheduler half and [`RankStoreSettings`] a rank's
//! worker half, with the copies of the host, of a CUDA device or of a fake one. Its [`Error`] is what users read, the same in every language, and so
//! are the names of statistics in [`named_stats`].
//!
//! Nothing here decides how blocks are cached or moved, and nothing here knows a language.

#![deny(unsafe_code)]

mod cache;
mod capacity;
mod cuda;
mod device_problems;
mod error;
pub mod named_stats;
mod planner;
mod rank_store;
mod remote;
mod slab_folder;
mod token_keys;
#[expect(unsafe_code, reason = "a client of L2 is told where slots are mapped")]
mod value_memory;

pub use cache::{Cache, CacheSettings};
pub use cuda::{CudaDevice, FakeCuda};
pub use error::Error;
pub use planner::{GroupSettings, PlannerSettings};
pub use rank_store::{RankStore, RankStoreSettings, TimelineRow};
pub use remote::{Remote, RemoteSettings, ingestion_of, seconds};
pub use token_keys::TokenKeys;
