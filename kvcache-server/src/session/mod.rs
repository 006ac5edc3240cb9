//! One connection: the stock protocol until a hello, frames after it.

mod frame_requests;
mod frames;
mod put_request;
mod stock;

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use kvcache_wire::extension::Limits;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;

use crate::incoming::Incoming;
use crate::local::Local;
use crate::metrics::{Fault, Metrics, Stats};
use crate::outgoing::Outgoing;
use crate::rdma::RdmaServer;
use crate::store::Store;
use crate::{Timeouts, Token};

/// What all connections share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) store: Arc<Store>,
    pub(crate) metrics: Metrics,
    pub(crate) limits: Limits,
    pub(crate) timeouts: Timeouts,
    pub(crate) token: Option<Token>,
    pub(crate) allow_stock: bool,
    pub(crate) server_id: u64,
    pub(crate) rdma: Option<Arc<RdmaServer>>,
}

#[cfg(test)]
impl Shared {
    /// What a server with these settings shares.
    pub(crate) fn for_tests(config: &crate::ServerConfig, store: Arc<Store>) -> Self {
        Self {
            store,
            metrics: Metrics::default(),
            limits: config.limits(),
            timeouts: config.timeouts,
            token: config.token.clone(),
            allow_stock: config.allow_stock,
            server_id: 1,
            rdma: None,
        }
    }
}

impl Shared {
    /// Everything that is counted elsewhere.
    pub(crate) fn stats(&self) -> Stats {
        let rdma = self.rdma.as_ref().map(|rdma| rdma.stats()).unwrap_or_default();
        Stats { store: self.store.stats(), rdma }
    }
}

/// Becomes true when the server stops.
pub(crate) type Stopping = watch::Receiver<bool>;

/// Waits until the server stops.
pub(crate) async fn stopped(stopping: &mut Stopping) {
    // An error means that the server is gone altogether.
    let _ = stopping.wait_for(|stopping| *stopping).await;
}

/// Why a connection ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum End {
    /// The peer has closed it between two requests.
    Closed,
    /// The server stops.
    Stopped,
    /// Something was wrong with it.
    Fault(Fault),
}

/// Serves a connection to its end.
///
/// `peer` is where it comes from, and `local` is what a connection over a Unix socket has beyond others.
pub(crate) async fn serve<R, W>(
    shared: &Shared,
    mut stopping: Stopping,
    reader: R,
    writer: W,
    peer: IpAddr,
    mut local: Option<Local>,
) -> End
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut incoming = Incoming::new(reader);
    let mut outgoing = Outgoing::new(writer);
    let stock =
        stock::serve(shared, stopping.clone(), &mut incoming, &mut outgoing, peer, local.as_ref()).await;
    let end = match stock {
        stock::Next::End(end) => end,
        stock::Next::Frames { shares_memory } => {
            let leases = local.as_mut().filter(|_| shares_memory).map(|local| &mut local.leases);
            frames::serve(shared, stopping.clone(), &mut incoming, &mut outgoing, leases).await
        }
    };
    // A close with bytes unread would make the system throw away an answer that tells why.
    let _ = tokio::time::timeout(FAREWELL, async {
        outgoing.write_all().await?;
        outgoing.shutdown().await?;
        incoming.discard(FAREWELL_BYTES).await
    })
    .await;
    if let Some(mut local) = local
        && local.leases.end_values()
    {
        // The client may still write to its room: it is free when the client has closed its half, too.
        tokio::select! {
            _ = incoming.discard(u64::MAX) => {}
            () = stopped(&mut stopping) => {}
        }
    }
    end
}

pub(crate) use frame_requests::{Names, answer_frame, status_of};

const FAREWELL: Duration = Duration::from_secs(1);
const FAREWELL_BYTES: u64 = 1 << 20;

/// What an error of the transport in the middle of something means.
fn broken(_: io::Error) -> End {
    End::Fault(Fault::Disconnected)
}
