//! Who the ring's servers are.

mod server_address;

pub use server_address::{ServerAddress, ServerAddressError};
