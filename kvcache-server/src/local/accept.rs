//! The Unix socket beside the TCP port.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::SocketAddr;
use std::sync::Arc;

use kvcache_wire::extension::local_socket_name;
use tokio::net::{UnixListener, UnixStream};

use super::leases::LeaseLimits;
use super::passing::PassingWriter;
use super::peer_process::PeerReader;
use super::{Leases, Local, Passing};
use crate::connections::{Listener, Open, accept_from};
use crate::metrics::Fault;
use crate::session::{self, Shared, Stopping};

/// A Unix socket that clients of this host find.
#[derive(Debug)]
pub(crate) struct LocalListener(UnixListener);

impl LocalListener {
    /// Listens beside TCP `port`. Within a runtime.
    ///
    /// # Errors
    ///
    /// Another server of this network namespace has the name: one with the same port on another address.
    pub(crate) fn bind(port: u16) -> io::Result<Self> {
        let address = SocketAddr::from_abstract_name(local_socket_name(port))?;
        let listener = std::os::unix::net::UnixListener::bind_addr(&address)?;
        listener.set_nonblocking(true)?;
        UnixListener::from_std(listener).map(Self)
    }
}

impl Listener for LocalListener {
    type Stream = UnixStream;

    async fn next(&self) -> io::Result<UnixStream> {
        Ok(self.0.accept().await?.0)
    }
}

/// Accepts until the server stops; returns when every connection has ended.
pub(crate) async fn accept(
    shared: Arc<Shared>,
    listener: LocalListener,
    connections_max: usize,
    stopping: Stopping,
) {
    let (of, until) = (Arc::clone(&shared), stopping.clone());
    let serve = |stream| {
        if !is_admitted(&stream) {
            of.metrics.fault(Fault::Unauthorized);
            return None;
        }
        Some(connection(Arc::clone(&of), stream, until.clone()))
    };
    accept_from(listener, &shared, connections_max, stopping, serve).await;
}

async fn connection(shared: Arc<Shared>, stream: UnixStream, stopping: Stopping) {
    let _open = Open::new(&shared);
    let (reader, writer) = stream.into_split();
    let passing = Passing::default();
    let (reader, writer) = (PeerReader::new(reader), PassingWriter::new(writer, passing.clone()));
    let leases = Leases::new(limits(&shared));
    let local = Local { leases, passing };
    let end = session::serve(&shared, stopping, reader, writer, HERE, Some(local)).await;
    log::debug!("a local connection ends: {end:?}");
}

/// Whether the peer runs as our user or as root. Who else may use the server does so over TCP.
fn is_admitted(stream: &UnixStream) -> bool {
    match stream.peer_cred() {
        // SAFETY: takes nothing and cannot fail.
        Ok(peer) => peer.uid() == 0 || peer.uid() == unsafe { libc::geteuid() },
        Err(error) => {
            log::debug!("a local connection of nobody: {error}");
            false
        }
    }
}

/// What a connection may hold.
pub(crate) fn limits(shared: &Shared) -> LeaseLimits {
    let capacity_bytes = shared.store.pool().capacity_bytes();
    LeaseLimits {
        time: shared.timeouts.lease,
        values_bytes_max: shared.limits.bytes_in_flight_max.min(capacity_bytes / 4),
        room_bytes_max: ROOM_BYTES_MAX.min(capacity_bytes / 8),
        reserved_bytes_max: capacity_bytes / 2,
    }
}

/// Descriptors of the pool for a client: the first can be read only, the second written too.
///
/// # Errors
///
/// No descriptors left, or no `/proc` to open the pool a second time.
pub(crate) fn descriptors(shared: &Shared) -> io::Result<[OwnedFd; 2]> {
    use std::os::fd::AsRawFd;
    let writable = shared.store.pool().file().try_clone_to_owned()?;
    // A duplicate would share the mode of the original. Who opens a file for reading gets no more than that.
    let readable = std::fs::File::open(format!("/proc/self/fd/{}", writable.as_raw_fd()))?;
    Ok([readable.into(), writable])
}

/// Room that one connection may hold: a client copies a few values at a time, so more would be no faster.
const ROOM_BYTES_MAX: u64 = 64 << 20;

/// Where peers on a Unix socket are.
const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
