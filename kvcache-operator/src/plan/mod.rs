//! What should be, from what was asked for and what is: pure functions, no client and no clock.

mod connection;
mod desired;
mod objects;
pub mod ring;
pub mod status;
#[cfg(test)]
mod tests;

pub use connection::RING_FOLDER;
pub use desired::{Desired, desired, names, selector};
#[cfg(feature = "client")]
pub(crate) use desired::{Role, metadata};
