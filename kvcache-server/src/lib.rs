//! A cache server for KV blocks: InfiniStore's protocol over TCP, and over RDMA where a device is; our extension over TCP,
//! TLS if wanted.
//!
//! [`Server::start`] runs one inside any process; `kvcache serve` is the same on the command line. Connections are
//! independent: whatever a peer sends, only its own connection suffers. Values live in one [`pool`] of fixed size and
//! are found through a [`store`], which front ends of other transports share.
//!
//! ```no_run
//! use kvcache_server::{Server, ServerConfig};
//!
//! let server = Server::start(ServerConfig { capacity_bytes: 64 << 20, ..ServerConfig::default() })?;
//! println!("clients connect to {}", server.address());
//! server.stop();
//! # Ok::<(), kvcache_server::Error>(())
//! ```

mod config;
mod connections;
mod error;
mod incoming;
mod local;
mod manage;
mod metrics;
mod outgoing;
pub mod pool;
mod rdma;
mod server;
mod session;
pub mod store;
mod tls;
mod token;

pub use config::{ServerConfig, Timeouts};
pub use error::Error;
pub use rdma::{RdmaConfig, RdmaUsage};
pub use server::{Server, run_until_signal};
pub use tls::TlsFiles;
pub use token::Token;
