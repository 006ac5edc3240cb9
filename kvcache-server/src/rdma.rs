//! RDMA beside TCP: stock clients, and ours, exchange queue pairs over TCP and then talk to the same store.

use std::ptr::NonNull;
use std::sync::Arc;

use kvcache_rdma::verbs::{self, Memory, Port, PortWish, Rdma};
use kvcache_rdma::verbs_server::{PutRefused, Storage, ValueMemory, VerbsServer, VerbsServerConfig};

use crate::store::{Refused, Reservation, Store, Value};

/// Whether and how a server is reached over RDMA.
#[derive(Clone, Debug, Default)]
pub struct RdmaConfig {
    /// Whether there must be a device.
    pub usage: RdmaUsage,
    /// Which device, port and address; by default the first active port.
    pub port: PortWish,
    /// Request buffers, queues, packets and timers.
    pub verbs: VerbsServerConfig,
}

/// Whether a server uses RDMA.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub enum RdmaUsage {
    /// TCP only.
    Off,
    /// If a device is there and the pool can be registered. A wish for a port that cannot be met is an error in any case.
    #[default]
    IfPresent,
    /// Without it the server does not start.
    Required,
}

/// The store behind queue pairs.
pub(crate) type RdmaServer = VerbsServer<StoreValues>;

/// Begins to serve `store` over RDMA; `None` if it shall not be, or need not.
///
/// # Errors
/// RDMA is required, or a certain port was asked for, and cannot be had.
pub(crate) fn start(
    config: &RdmaConfig,
    store: &Arc<Store>,
) -> Result<Option<Arc<RdmaServer>>, verbs::Error> {
    if config.usage == RdmaUsage::Off {
        return Ok(None);
    }
    let must = config.usage == RdmaUsage::Required || config.port != PortWish::default();
    let port = Rdma::load().map_err(verbs::Error::from).and_then(|rdma| rdma.open(&config.port));
    let started = port.and_then(|port| serve(port, store, config.verbs.clone()));
    match started {
        Ok(server) => {
            log::info!("RDMA: serving on {}", server.port().name());
            Ok(Some(server))
        }
        Err(error) if must => Err(error),
        Err(verbs::Error::Unavailable(unavailable)) => {
            log::info!("TCP only: {unavailable}");
            Ok(None)
        }
        Err(error) => {
            log::warn!("TCP only, although there is an RDMA device: {error}");
            Ok(None)
        }
    }
}

/// Serves `store` on an opened port, with the whole pool registered.
pub(crate) fn serve(
    port: Port,
    store: &Arc<Store>,
    config: VerbsServerConfig,
) -> Result<Arc<RdmaServer>, verbs::Error> {
    let pool = Arc::clone(store.pool());
    let (base, bytes) = pool.memory();
    // SAFETY: the mapping lives as long as the pool, which is the owner. Devices touch extents only: open ones that the
    // holder of a reservation has, and sealed ones for reading.
    let memory = unsafe { Memory::new(base, bytes, pool) };
    VerbsServer::start(port, Arc::new(StoreValues(Arc::clone(store))), vec![memory], config).map(Arc::new)
}

/// A [`Store`] as RDMA needs it.
pub(crate) struct StoreValues(Arc<Store>);

/// A reservation with its address, which does not change.
pub(crate) struct FilledByDevice {
    reservation: Reservation,
    base: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the address is that of the reservation's memory, which belongs to no thread.
unsafe impl Send for FilledByDevice {}

// SAFETY: the extent is the reservation's own until it is published or dropped, and within the pool.
unsafe impl ValueMemory for FilledByDevice {
    fn address(&self) -> usize {
        self.base.as_ptr() as usize
    }

    fn bytes(&self) -> usize {
        self.bytes
    }
}

/// A share of a value.
pub(crate) struct SentByDevice(Arc<Value>);

// SAFETY: a sealed extent never changes, and stays as long as a share of the value does.
unsafe impl ValueMemory for SentByDevice {
    fn address(&self) -> usize {
        self.0.bytes().as_ptr() as usize
    }

    fn bytes(&self) -> usize {
        self.0.bytes().len()
    }
}

impl Storage for StoreValues {
    type Put = FilledByDevice;
    type Value = SentByDevice;

    fn begin_put(&self, key: &[u8], bytes: usize) -> Result<FilledByDevice, PutRefused> {
        let mut reservation = self.0.reserve(key, bytes as u64).map_err(|refused| match refused {
            Refused::TooLarge { .. } => PutRefused::TooLarge,
            _ => PutRefused::NoRoom,
        })?;
        let memory = NonNull::from(reservation.bytes_mut());
        Ok(FilledByDevice { reservation, base: memory.cast(), bytes: memory.len() })
    }

    fn commit(&self, filled: Vec<FilledByDevice>) {
        for FilledByDevice { reservation, .. } in filled {
            self.0.publish(reservation, None);
        }
    }

    fn get(&self, key: &[u8]) -> Option<SentByDevice> {
        let value = self.0.get(key)?;
        self.0.touch(std::slice::from_ref(&value));
        Some(SentByDevice(value))
    }

    fn delete(&self, key: &[u8]) -> bool {
        self.0.delete(key)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use kvcache_core::BlockKey;
    use kvcache_core::remote::{
        RemoteEnd, RemoteKey, RemoteOp, RemoteOutcome, RemoteSpace, RemoteStore, RemoteTransfer,
    };
    use kvcache_rdma::verbs::FakeNetwork;
    use kvcache_rdma::verbs_client::{VerbsClient, VerbsClientConfig};

    use crate::{Server, ServerConfig};

    use super::*;

    const VALUE: usize = 10_000;

    struct Client {
        client: VerbsClient,
        base: usize,
    }

    impl Client {
        fn new(server: &Server, network: &FakeNetwork) -> Self {
            let config = VerbsClientConfig { lanes: 1, ..Default::default() };
            let client = VerbsClient::new(server.address(), network.port(), config).unwrap();
            let memory = Memory::allocate(2 * VALUE);
            let base = memory.address();
            client.register(memory).unwrap();
            Self { client, base }
        }

        fn block(&mut self, index: usize) -> &mut [u8] {
            // SAFETY: a half of the client's memory, between transfers.
            unsafe { std::slice::from_raw_parts_mut((self.base + index * VALUE) as *mut u8, VALUE) }
        }

        fn run(&self, op: RemoteOp, number: u8, block: usize) -> RemoteOutcome {
            let key = RemoteKey { space: RemoteSpace([3; 16]), block: BlockKey([number; 16]) };
            let transfer =
                RemoteTransfer { ticket: 1, op, key, address: self.base + block * VALUE, bytes: VALUE };
            // SAFETY: the client's own memory, which nobody touches until the end.
            unsafe { self.client.submit(&[transfer], Duration::from_secs(30)) };
            let mut ended: Vec<RemoteEnd> = Vec::new();
            assert!(self.client.wait(Duration::from_secs(60)));
            self.client.poll(&mut ended);
            assert_eq!(ended.len(), 1);
            ended[0].outcome
        }
    }

    fn server(network: &FakeNetwork, capacity_bytes: u64) -> Server {
        let port = network.port();
        Server::start_on(ServerConfig { capacity_bytes, ..ServerConfig::default() }, Some(port)).unwrap()
    }

    #[test]
    fn values_go_in_and_out_by_rdma_and_are_deleted_over_tcp() {
        let network = FakeNetwork::new();
        let server = server(&network, 1 << 20);
        let mut client = Client::new(&server, &network);
        client.block(0).fill(77);
        assert_eq!(client.run(RemoteOp::Put, 1, 0), RemoteOutcome::Done);
        assert_eq!(client.run(RemoteOp::Get, 1, 1), RemoteOutcome::Done);
        assert_eq!(client.block(1), [77; VALUE]);
        assert_eq!(client.run(RemoteOp::Get, 2, 1), RemoteOutcome::Missing);
        assert_eq!(client.run(RemoteOp::Delete, 1, 0), RemoteOutcome::Done);
        assert_eq!(client.run(RemoteOp::Get, 1, 1), RemoteOutcome::Missing);
        assert_eq!(server.store().stats().used_bytes, 0);
        server.stop();
    }

    #[test]
    fn puts_evict_and_what_never_fits_is_refused() {
        let network = FakeNetwork::new();
        let server = server(&network, 64 << 10);
        let client = Client::new(&server, &network);
        for number in 0..20 {
            assert_eq!(client.run(RemoteOp::Put, number, 0), RemoteOutcome::Done, "{number}");
        }
        assert!(server.store().stats().evictions > 0);
        drop(server);
        let small = self::server(&network, 8 << 10);
        let client = Client::new(&small, &network);
        let refused = RemoteOutcome::Failed(kvcache_core::remote::RemoteFailure::Refused);
        assert_eq!(client.run(RemoteOp::Put, 1, 0), refused);
    }

    #[test]
    fn the_connection_ends_with_its_tcp_connection() {
        let network = FakeNetwork::new();
        let server = server(&network, 1 << 20);
        let (pairs, registered) = (network.queue_pairs(), network.registered_bytes());
        let client = Client::new(&server, &network);
        assert_eq!(client.run(RemoteOp::Put, 1, 0), RemoteOutcome::Done);
        assert_eq!(network.queue_pairs(), pairs + 2);
        drop(client);
        let deadline = std::time::Instant::now() + Duration::from_secs(30);
        while network.queue_pairs() > pairs || network.registered_bytes() > registered {
            assert!(std::time::Instant::now() < deadline);
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_required_device_that_is_not_there_stops_the_start() {
        if Rdma::load().is_ok() {
            return;
        }
        let required = RdmaConfig { usage: RdmaUsage::Required, ..Default::default() };
        let config = ServerConfig { capacity_bytes: 1 << 20, rdma: required, ..ServerConfig::default() };
        let error = Server::start(config).unwrap_err().to_string();
        assert!(error.starts_with("RDMA unavailable"), "{error}");
        let wish = PortWish { device: Some("mlx5_7".to_owned()), ..Default::default() };
        let wished = RdmaConfig { port: wish, ..Default::default() };
        assert!(Server::start(ServerConfig { rdma: wished, ..ServerConfig::default() }).is_err());
    }
}
