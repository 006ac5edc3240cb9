//! The operator against an API server in memory.

#[path = "../support/mod.rs"]
mod support;

mod api_server;
mod apply;
mod dead_redis;
mod election;
mod faults;
mod life;
mod ours;
mod refusals;
mod removal;
mod ring_config_map;
mod wire;
