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
pub mod generated;
pub mod plan;
#[cfg(feature = "client")]
pub mod publish;
pub mod rbac;
pub mod yaml;

#[cfg(feature = "client")]
pub mod apply;
#[cfg(feature = "client")]
pub mod clock;
#[cfg(feature = "client")]
pub mod error;
#[cfg(feature = "client")]
pub mod events;
#[cfg(feature = "client")]
pub mod http;
#[cfg(feature = "client")]
pub mod leader;
#[cfg(feature = "client")]
pub mod metrics;
#[cfg(feature = "client")]
pub mod mirror;
#[cfg(feature = "client")]
pub mod operator;
#[cfg(feature = "client")]
pub mod queue;
#[cfg(feature = "client")]
pub mod reconcile;
pub mod satisfied;
#[cfg(feature = "client")]
pub mod stores;
