//! A server from its start to its end.

use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::sync::Arc;

use kvcache_rdma::verbs::Port;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::session::Shared;
use crate::store::{Store, StoreConfig};
use crate::{Error, ServerConfig, connections, local, manage, rdma};

/// A running server with threads of its own. Dropping it cuts connections off; [`stop`](Self::stop) lets them end.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    manage_address: Option<SocketAddr>,
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    accepting: Option<JoinHandle<()>>,
    runtime: Option<Runtime>,
}

impl Server {
    /// Listens, and returns when clients can connect.
    ///
    /// # Errors
    ///
    /// See [`Error`].
    pub fn start(config: ServerConfig) -> Result<Self, Error> {
        Self::start_on(config, None)
    }

    /// The same on an RDMA port that is open already, if there is one, whatever the configuration says of ports.
    ///
    /// # Errors
    ///
    /// See [`Error`].
    pub fn start_on(config: ServerConfig, port: Option<Port>) -> Result<Self, Error> {
        let tls = config.tls.as_ref().map(|files| files.acceptor()).transpose()?;
        let store = Store::new(&StoreConfig {
            capacity_bytes: config.capacity_bytes,
            eviction: config.eviction.clone(),
            values_max: config.values_max,
        })?;
        let rdma = match port {
            Some(port) => Some(rdma::serve(port, &store, config.rdma.verbs.clone())?),
            None => rdma::start(&config.rdma, &store)?,
        };
        let runtime = Builder::new_multi_thread()
            .worker_threads(config.threads())
            .thread_name("kvcache-server")
            .enable_all()
            .build()
            .map_err(Error::Runtime)?;
        let listener = listen(&runtime, config.listen)?;
        let manage_listener = config.manage.map(|address| listen(&runtime, address)).transpose()?;
        let address = local_address(&listener, config.listen)?;
        let manage_address = match (&manage_listener, config.manage) {
            (Some(listener), Some(asked)) => Some(local_address(listener, asked)?),
            _ => None,
        };
        warn_of_strangers(&config, address);
        let shared = Arc::new(Shared {
            store,
            metrics: Default::default(),
            limits: config.limits(),
            timeouts: config.timeouts,
            token: config.token,
            allow_stock: config.allow_stock,
            server_id: RandomState::new().hash_one(std::process::id()),
            rdma,
        });
        if config.populate {
            populate(Arc::clone(&shared));
        }
        let local = config.shared_memory.then(|| listen_locally(&runtime, address)).flatten();
        let (stop, stopping) = watch::channel(false);
        if let Some(listener) = manage_listener {
            runtime.spawn(manage::serve(Arc::clone(&shared), listener, stopping.clone()));
        }
        let connections_max = config.connections_max;
        let accepting = {
            let shared = Arc::clone(&shared);
            async move {
                let tcp = connections::accept(
                    Arc::clone(&shared),
                    listener,
                    tls,
                    connections_max,
                    stopping.clone(),
                );
                match local {
                    None => tcp.await,
                    Some(local) => {
                        tokio::join!(tcp, local::accept(shared, local, connections_max, stopping));
                    }
                }
            }
        };
        let accepting = Some(runtime.spawn(accepting));
        Ok(Self { address, manage_address, shared, stop, accepting, runtime: Some(runtime) })
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where the management HTTP listens.
    pub fn manage_address(&self) -> Option<SocketAddr> {
        self.manage_address
    }

    /// The values: front ends of other transports use the same store.
    pub fn store(&self) -> &Arc<Store> {
        &self.shared.store
    }

    /// The metrics as Prometheus reads them.
    pub fn metrics(&self) -> String {
        self.shared.metrics.prometheus(&self.shared.stats())
    }

    /// Stops accepting, lets requests end within the grace, and returns when every connection has.
    ///
    /// # Panics
    ///
    /// Inside an asynchronous task: it blocks.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let _ = self.stop.send(true);
        if let (Some(runtime), Some(accepting)) = (&self.runtime, self.accepting.take())
            && let Err(error) = runtime.block_on(accepting)
        {
            log::error!("accepting connections ended badly: {error}");
        }
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Not `block_on`: it may be another runtime's thread that drops the server.
        let _ = self.stop.send(true);
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Runs a server until the process is asked to end (SIGTERM or SIGINT), then stops it.
///
/// # Errors
///
/// See [`Error`]. `ready` is called when clients can connect.
pub fn run_until_signal(config: ServerConfig, ready: impl FnOnce(&Server)) -> Result<(), Error> {
    use tokio::signal::unix::{SignalKind, signal};
    let server = Server::start(config)?;
    let Some(runtime) = &server.runtime else { return Ok(()) };
    let signals = {
        let _inside = runtime.enter();
        signal(SignalKind::terminate())
            .and_then(|terminate| Ok((terminate, signal(SignalKind::interrupt())?)))
    };
    let (mut terminate, mut interrupt) = signals.map_err(Error::Runtime)?;
    ready(&server);
    runtime.block_on(async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    });
    log::info!("stopping");
    server.stop();
    Ok(())
}

fn listen(runtime: &Runtime, address: SocketAddr) -> Result<TcpListener, Error> {
    runtime.block_on(TcpListener::bind(address)).map_err(|source| Error::Listen { address, source })
}

/// The Unix socket beside the TCP port. Without it clients of this host use TCP like others.
fn listen_locally(runtime: &Runtime, address: SocketAddr) -> Option<local::LocalListener> {
    let _inside = runtime.enter();
    local::LocalListener::bind(address.port())
        .inspect_err(|error| {
            log::warn!("no shared memory for clients of this host: the Unix socket of {address}: {error}");
        })
        .ok()
}

fn local_address(listener: &TcpListener, asked: SocketAddr) -> Result<SocketAddr, Error> {
    listener.local_addr().map_err(|source| Error::Listen { address: asked, source })
}

fn warn_of_strangers(config: &ServerConfig, address: SocketAddr) {
    if !address.ip().is_loopback() && config.token.is_none() {
        log::warn!(
            "{address} can be reached from other machines, and whoever reaches it can read, replace and delete every \
             value: give a token, or listen on 127.0.0.1"
        );
    }
    if let Some(manage) = config.manage.filter(|manage| !manage.ip().is_loopback() && config.token.is_none())
    {
        log::warn!("{manage} can be reached from other machines, and whoever reaches it can purge the cache");
    }
}

/// Backs the pool with memory piece by piece, beside the first requests.
fn populate(shared: Arc<Shared>) {
    let spawned = std::thread::Builder::new().name("kvcache-populate".to_owned()).spawn(move || {
        let pool = shared.store.pool();
        let mut start = 0;
        while start < pool.capacity_bytes() {
            let end = (start + POPULATE_BYTES).min(pool.capacity_bytes());
            if let Err(error) = pool.populate(start..end) {
                log::warn!("memory for the pool is taken as it is used: {error}");
                return;
            }
            start = end;
        }
    });
    if let Err(error) = spawned {
        log::warn!("memory for the pool is taken as it is used: {error}");
    }
}

const POPULATE_BYTES: u64 = 64 << 20;
