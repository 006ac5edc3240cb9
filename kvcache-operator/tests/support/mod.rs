//! What tests of the operator need: an API server in memory.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "test binaries and benches include this, and each uses its part"
)]

pub mod api_server;
