//! What tests of the operator need: an API server in memory, controllers and a kubelet that only pretend, and operators
//! that run against them.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "test binaries and benches include this, and each uses its part"
)]

pub mod api_server;
pub mod cluster;
pub mod controllers;
pub mod redis;
