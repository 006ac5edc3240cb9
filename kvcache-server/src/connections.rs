//! Accepts connections, not too many, and ends them when the server stops.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::metrics::Fault;
use crate::session::{self, Shared, Stopping, stopped};

/// Where connections come from.
pub(crate) trait Listener: Send {
    type Stream: Send;

    /// Waits for the next one.
    fn next(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl Listener for TcpListener {
    type Stream = (TcpStream, SocketAddr);

    async fn next(&self) -> io::Result<Self::Stream> {
        self.accept().await
    }
}

/// Accepts clients over TCP until the server stops; returns when every connection has ended.
pub(crate) async fn accept(
    shared: Arc<Shared>,
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    connections_max: usize,
    stopping: Stopping,
) {
    let (of, until) = (Arc::clone(&shared), stopping.clone());
    let serve = |(stream, peer): (TcpStream, SocketAddr)| {
        Some(connection(Arc::clone(&of), stream, peer.ip(), tls.clone(), until.clone()))
    };
    accept_from(listener, &shared, connections_max, stopping, serve).await;
}

/// Accepts until the server stops; returns when every connection has ended. `serve` says what to do with one that is let in.
pub(crate) async fn accept_from<L: Listener, F>(
    listener: L,
    shared: &Shared,
    connections_max: usize,
    mut stopping: Stopping,
    mut serve: impl FnMut(L::Stream) -> Option<F>,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let mut sessions = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = stopped(&mut stopping) => break,
            // Collects what has ended, so that the set holds live connections only.
            _ = sessions.join_next(), if !sessions.is_empty() => continue,
            accepted = listener.next() => accepted,
        };
        let stream = match accepted {
            Ok(stream) => stream,
            Err(error) => {
                // Out of descriptors, or the peer is gone already. Waiting lets other connections end.
                log::warn!("cannot accept a connection: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        if sessions.len() >= connections_max {
            shared.metrics.fault(Fault::ConnectionLimit);
            continue;
        }
        if let Some(session) = serve(stream) {
            shared.metrics.connections_total.add(1);
            sessions.spawn(session);
        }
    }
    drop(listener);
    let grace = shared.timeouts.grace;
    if tokio::time::timeout(grace, async { while sessions.join_next().await.is_some() {} }).await.is_err() {
        log::warn!("{} connections were still busy after {grace:?} and are cut off", sessions.len());
        sessions.shutdown().await;
    }
}

async fn connection(
    shared: Arc<Shared>,
    stream: TcpStream,
    peer: IpAddr,
    tls: Option<TlsAcceptor>,
    stopping: Stopping,
) {
    let _open = Open::new(&shared);
    if let Err(error) = prepare(&stream) {
        log::debug!("a connection was gone before it began: {error}");
        return;
    }
    let Some(acceptor) = tls else {
        let (reader, writer) = stream.into_split();
        let end = session::serve(&shared, stopping, reader, writer, peer, None).await;
        log::debug!("a connection ends: {end:?}");
        return;
    };
    match tokio::time::timeout(shared.timeouts.request, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => {
            let (reader, writer) = tokio::io::split(stream);
            let end = session::serve(&shared, stopping, reader, writer, peer, None).await;
            log::debug!("a TLS connection ends: {end:?}");
        }
        Ok(Err(error)) => {
            log::debug!("no TLS on a connection: {error}");
            shared.metrics.fault(Fault::Tls);
        }
        Err(_) => shared.metrics.fault(Fault::Timeout),
    }
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    // An answer is written in one piece; there is nothing to collect.
    stream.set_nodelay(true)?;
    // A peer whose machine is gone never says so: without this its connection would stay for ever.
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE / 4);
    SockRef::from(stream).set_tcp_keepalive(&keepalive)
}

/// Counts a connection for as long as it lives, however it ends.
pub(crate) struct Open<'a>(&'a Shared);

impl<'a> Open<'a> {
    pub(crate) fn new(shared: &'a Shared) -> Self {
        shared.metrics.connections.add(1);
        Self(shared)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.metrics.connections.subtract(1);
    }
}

const KEEPALIVE: Duration = Duration::from_secs(60);
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
