//! The ring as the core's traits: [`RingStore`] moves values, [`RingPresence`] answers what is present.

mod config;
mod presence;
mod store;

pub use crate::rdma::RdmaPort;
pub use config::{BackgroundThread, RingConfig, RingOpenError};
pub use presence::RingPresence;
pub use store::RingStore;
