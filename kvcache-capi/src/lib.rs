//! `libkvcache`: the cache for engines that are not Python.
//!
//! The header `include/kvcache.h` is made from this crate and is its documentation; `docs/c-api.md` says how to use it. What
//! is here only translates: [`boundary`] lets no panic out, [`arguments`] checks what callers pass, and handles are numbers in
//! a [table](handles), never pointers that are followed. The cache itself is in `kvcache-core`.

mod arguments;
mod async_calls;
mod background;
#[cfg(test)]
mod background_tests;
mod boundary;
mod cache;
mod config;
mod defect;
mod device;
mod directory;
mod directory_config;
mod event_fd;
mod handles;
#[cfg(test)]
mod handles_tests;
mod in_place;
mod json;
mod logging;
mod refusal;
mod remote_config;
mod segments;
mod statistics;
mod status;
mod store;
mod store_config;
mod sync;
mod version;

pub use async_calls::*;
pub use cache::*;
pub use config::kvc_config;
pub use device::*;
pub use directory::*;
pub use in_place::*;
pub use logging::*;
pub use segments::*;
pub use statistics::*;
pub use status::*;
pub use store::*;
pub use version::*;
