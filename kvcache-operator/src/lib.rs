//! The companion operator: a `KVCache` resource becomes a running, stable ring of cache servers that engines find by
//! themselves.
//!
//! ```text
//! KVCache, pods ─► api (what was asked for) ─► plan (pure: objects, ring, status) ─► apply, publish
//! ```
//!
//! [`api`] and [`plan`] talk to nobody: they are types and functions, usable without a cluster and, without the
//! feature `client`, without a client.

pub mod api;
pub mod plan;
#[cfg(feature = "client")]
pub mod publish;
