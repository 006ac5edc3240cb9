//! The client: takes transfers, hands them to lanes, collects ends.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kvcache_core::remote::{RemoteEnd, RemoteFailure, RemoteOp, RemoteOutcome, RemoteStore, RemoteTransfer};

use super::config::VerbsClientConfig;
use super::queue::SharedQueue;
use super::unit::{Item, Unit};
use super::worker::Worker;
use crate::verbs::wait::Wake;
use crate::verbs::{Access, Error, Memory, Port, Region};

/// A cache server that is reached over RDMA. Connections are made when there is something to move.
///
/// Dropping it ends all use of memory; what has not ended by then is not told any more.
pub struct VerbsClient {
    port: Port,
    config: VerbsClientConfig,
    regions: RwLock<Vec<Arc<Region>>>,
    queue: Arc<SharedQueue>,
    threads: Vec<JoinHandle<()>>,
}

impl VerbsClient {
    /// A client of the server that listens on `server`, through `port`.
    ///
    /// # Errors
    /// A thread or an event cannot be made.
    pub fn new(server: SocketAddr, port: Port, config: VerbsClientConfig) -> io::Result<Self> {
        let config = VerbsClientConfig {
            lanes: config.lanes.max(1),
            requests_in_flight: config.requests_in_flight.max(1),
            request_keys_max: config.request_keys_max.max(1),
            ..config
        };
        let wakes = (0..config.lanes).map(|_| Wake::new()).collect::<io::Result<Vec<_>>>()?;
        let queue = Arc::new(SharedQueue::new(&config, wakes));
        let mut client = Self { port, config, regions: RwLock::default(), queue, threads: Vec::new() };
        for index in 0..client.config.lanes {
            let worker = Worker { index, server, port: client.port.clone(), config: client.config.clone() };
            let queue = Arc::clone(&client.queue);
            let thread = std::thread::Builder::new().name(format!("kvcache-rdma-{index}"));
            client.threads.push(thread.spawn(move || worker.run(&queue))?);
        }
        Ok(client)
    }

    /// Registers memory that values may lie in: the slab. The server can read and write all of it while a connection is
    /// up, which is how the protocol works; register nothing else.
    ///
    /// # Errors
    /// [`Error::Verb`], mostly because of the limit of locked memory.
    pub fn register(&self, memory: Memory) -> Result<(), Error> {
        self.add_region(Arc::new(self.port.register(memory, Access::Remote)?));
        Ok(())
    }

    /// Lets values lie in a region that was registered at the same port with [`Access::Remote`]: several clients share it.
    pub fn add_region(&self, region: Arc<Region>) {
        self.regions.write().unwrap_or_else(PoisonError::into_inner).push(region);
    }

    /// The units of a batch, and the ends of what cannot be moved at all.
    fn units(&self, batch: &[RemoteTransfer], deadline: Instant) -> (Vec<Unit>, Vec<RemoteEnd>) {
        let regions = self.regions.read().unwrap_or_else(PoisonError::into_inner);
        let (mut units, mut refused): (Vec<Unit>, _) = (Vec::new(), Vec::new());
        for transfer in batch {
            let (region, value_bytes) = if transfer.op == RemoteOp::Delete {
                (None, 0)
            } else {
                let mut holders = regions.iter();
                let region = holders.find(|region| region.slice_at(transfer.address, transfer.bytes).is_ok());
                let (Some(region), 1..=VALUE_BYTES_MAX) = (region, transfer.bytes) else {
                    let outcome = RemoteOutcome::Failed(RemoteFailure::Refused);
                    refused.push(RemoteEnd { ticket: transfer.ticket, outcome });
                    continue;
                };
                (Some(region), transfer.bytes as u32)
            };
            let item = Item { ticket: transfer.ticket, key: transfer.key, address: transfer.address };
            match units.last_mut() {
                Some(unit) if self.takes(unit, transfer.op, value_bytes, region) => unit.items.push(item),
                _ => units.push(Unit {
                    op: transfer.op,
                    items: vec![item],
                    value_bytes,
                    region: region.cloned(),
                    deadline,
                    retried: false,
                    alone: false,
                }),
            }
        }
        (units, refused)
    }

    fn takes(&self, unit: &Unit, op: RemoteOp, value_bytes: u32, region: Option<&Arc<Region>>) -> bool {
        let count = unit.items.len() + 1;
        unit.op == op
            && unit.value_bytes == value_bytes
            && unit.region.as_ref().map(Arc::as_ptr) == region.map(Arc::as_ptr)
            && count <= self.config.request_keys_max
            && count * value_bytes as usize <= self.config.request_bytes_max
    }
}

/// The wire has signed 32-bit lengths.
const VALUE_BYTES_MAX: usize = i32::MAX as usize;

impl RemoteStore for VerbsClient {
    unsafe fn submit(&self, batch: &[RemoteTransfer], patience: Duration) {
        let now = Instant::now();
        // A patience beyond the clock is a day: long enough to be for ever, and it fits.
        let deadline = now.checked_add(patience).unwrap_or(now + Duration::from_secs(86_400));
        let (units, refused) = self.units(batch, deadline);
        self.queue.submit(units, refused, now);
    }

    fn poll(&self, ended: &mut Vec<RemoteEnd>) {
        self.queue.poll(ended, Instant::now());
    }

    fn wait(&self, timeout: Duration) -> bool {
        self.queue.wait(timeout)
    }

    fn cancel(&self, tickets: &[u64]) {
        self.queue.cancel(tickets);
    }
}

impl Drop for VerbsClient {
    fn drop(&mut self) {
        self.queue.stop();
        for thread in self.threads.drain(..) {
            // A panic was reported by the thread itself.
            let _ = thread.join();
        }
    }
}

impl std::fmt::Debug for VerbsClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "VerbsClient {{ {} lanes on {} }}", self.config.lanes, self.port.name())
    }
}
