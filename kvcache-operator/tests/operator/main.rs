//! The operator against an API server in memory.

#[path = "../support/mod.rs"]
mod support;

mod api_server;
mod ring_config_map;
