//! A cache server as a process of its own, so that it can be killed and stopped.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use kvcache_rdma::verbs::{PortWish, Rdma};
use kvcache_rdma::verbs_server::{ExchangeListener, SlotStorage, VerbsServer, VerbsServerConfig};

use kvcache_server::{RdmaConfig, RdmaUsage, Server, ServerConfig};

use crate::checks::pinned_bytes;

/// Bytes of the largest value.
pub(crate) const SLOT_BYTES: usize = 64 << 10;
/// Bytes of a cache server.
const CACHE_BYTES: u64 = 16 << 20;
/// Places for values; a checksum takes one as well.
pub(crate) const SLOT_COUNT: usize = 256;

/// Serves until the standard input ends, which it does with the parent.
pub(crate) fn serve(port: u16) -> Result<(), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let rdma = Rdma::load().map_err(|error| text(&error))?;
    let device = rdma.open(&PortWish::default()).map_err(|error| text(&error))?;
    let (storage, memory) = SlotStorage::new(SLOT_BYTES, SLOT_COUNT);
    let server = VerbsServer::start(device, Arc::new(storage), vec![memory], VerbsServerConfig::default())
        .map_err(|error| text(&error))?;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let listener = ExchangeListener::bind(address, Arc::new(server)).map_err(|error| text(&error))?;
    println!("{}", listener.address());
    std::io::stdout().flush().map_err(|error| text(&error))?;
    for _ in std::io::stdin().lines() {}
    Ok(())
}

/// Serves a cache of the workspace's server, likewise.
pub(crate) fn serve_cache(port: u16) -> Result<(), String> {
    let rdma = RdmaConfig { usage: RdmaUsage::Required, ..RdmaConfig::default() };
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let config = ServerConfig {
        listen,
        capacity_bytes: CACHE_BYTES,
        threads: Some(1),
        rdma,
        ..ServerConfig::default()
    };
    let server = Server::start(config).map_err(|error| error.to_string())?;
    println!("{}", server.address());
    std::io::stdout().flush().map_err(|error| error.to_string())?;
    for _ in std::io::stdin().lines() {}
    Ok(())
}

/// The process. Dropping it kills it.
pub(crate) struct ServerProcess {
    child: Child,
    address: SocketAddr,
}

impl ServerProcess {
    /// Starts a server of slots; on `port`, or any that is free.
    pub(crate) fn start(port: u16) -> Result<Self, String> {
        Self::of("serve", port)
    }

    /// Starts a cache server, likewise.
    pub(crate) fn cache(port: u16) -> Result<Self, String> {
        Self::of("serve-cache", port)
    }

    fn of(command: &str, port: u16) -> Result<Self, String> {
        let text = |error: std::io::Error| error.to_string();
        let program = std::env::current_exe().map_err(text)?;
        let mut child = Command::new(program)
            .args([command, &port.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(text)?;
        let mut line = String::new();
        if let Some(output) = child.stdout.take() {
            BufReader::new(output).read_line(&mut line).map_err(text)?;
        }
        let address = line.trim().parse().map_err(|_| format!("the server says {line:?}"));
        Ok(Self { child, address: address? })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Memory that devices have pinned for it.
    pub(crate) fn pinned_bytes(&self) -> Result<u64, String> {
        pinned_bytes(&self.child.id().to_string())
    }

    pub(crate) fn kill(&mut self) {
        // It is ours and not waited for yet, so that the number is its own.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Stops it in the middle of what it does, or lets it go on.
    pub(crate) fn signal(&self, signal: i32) {
        // SAFETY: a number of our own child, which has not been waited for.
        unsafe { libc::kill(self.child.id() as i32, signal) };
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        self.kill();
    }
}
