//! Where rings are published: a ConfigMap, and AIBrix's key in Redis where it is asked for.
//!
//! Whoever writes is fenced: an operator that was slow, or that another has replaced, finds a later ring there and
//! leaves it.

pub mod config_map;
#[cfg(test)]
mod fake_redis;
mod fence;
pub mod redis;
#[cfg(test)]
mod redis_tests;
pub mod turns;

pub use fence::RingOwner;
