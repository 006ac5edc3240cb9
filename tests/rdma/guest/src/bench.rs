//! Our client as a process that moves values when it is told to, to be compared with the stock client: see
//! `tests/rdma/infinistore_bench.py`.
//!
//! `rdma-guest bench ADDRESS plain|ring` reads lines `get SMALL COUNT` and the like from its standard input, and answers
//! each with the seconds that it took.

use std::collections::HashSet;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvcache_core::BlockKey;
use kvcache_core::eviction::SlotId;
use kvcache_core::remote::{
    RemoteEnd, RemoteKey, RemoteOp, RemoteOutcome, RemoteSpace, RemoteStore, RemoteTransfer,
};
use kvcache_core::slab::{Slab, SlabConfig};
use kvcache_core::store::{SlabSlots, SlotMemory};
use kvcache_rdma::members::{Member, MemberList, Members, PlacementSource};
use kvcache_rdma::ring::{RdmaPort, RingConfig, RingStore};
use kvcache_rdma::verbs::{Access, Memory, PortWish, Rdma};
use kvcache_rdma::verbs_client::{VerbsClient, VerbsClientConfig};

const PATIENCE: Duration = Duration::from_secs(120);

/// What is compared: one value of 4 KiB a request, and 32 values of 64 KiB a request.
#[derive(Clone, Copy)]
struct Shape {
    bytes: usize,
    keys: usize,
    /// Requests that are submitted together; the next when all of them have ended.
    in_flight: usize,
}

const SMALL: Shape = Shape { bytes: 4096, keys: 1, in_flight: 61 };
const LARGE: Shape = Shape { bytes: 65_536, keys: 32, in_flight: 4 };

struct Client {
    small: Box<dyn RemoteStore>,
    large: Box<dyn RemoteStore>,
    base: usize,
    next_ticket: u64,
    name: u8,
}

pub(crate) fn bench(server: SocketAddr, kind: &str) -> Result<(), String> {
    let mut client = Client::open(server, kind)?;
    for shape in [SMALL, LARGE] {
        client.round(RemoteOp::Put, shape, 0)?;
    }
    println!("bench ready");
    std::io::stdout().flush().map_err(|error| error.to_string())?;
    for line in std::io::stdin().lines().map_while(Result::ok) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [op, shape, rounds] = words.as_slice() else { return Err(format!("{line:?} is no command")) };
        let op = if *op == "put" { RemoteOp::Put } else { RemoteOp::Get };
        let shape = if *shape == "small" { SMALL } else { LARGE };
        let rounds: usize = rounds.parse().map_err(|_| format!("{line:?} has no number"))?;
        let started = Instant::now();
        for _ in 0..rounds {
            // Puts go to other names than what is loaded.
            client.round(op, shape, u8::from(op == RemoteOp::Put))?;
        }
        println!("bench {}", started.elapsed().as_secs_f64());
        std::io::stdout().flush().map_err(|error| error.to_string())?;
    }
    Ok(())
}

impl Client {
    fn open(server: SocketAddr, kind: &str) -> Result<Self, String> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let port = Rdma::load()
            .map_err(|error| text(&error))?
            .open(&PortWish::default())
            .map_err(|error| text(&error))?;
        if kind == "ring" {
            let address = server.to_string().parse().map_err(|_| "no address".to_owned())?;
            let list = MemberList::new(vec![Member::at(address)]).map_err(|error| text(&error))?;
            let members = Members::fixed(list, PlacementSource::Computed).map_err(|error| text(&error))?;
            let mut config = RingConfig::new(members);
            config.rdma = Some(RdmaPort::Opened(port));
            config.connect_timeout = PATIENCE;
            config.client.silence_max = PATIENCE;
            let store = RingStore::open(&config).map_err(|error| text(&error))?;
            let slab = SlabConfig::anonymous(LARGE.bytes, LARGE.keys * LARGE.in_flight);
            let slab = Slab::open(&slab).map_err(|error| text(&error))?;
            let slots = Arc::new(SlabSlots::new(slab, false));
            while slots.is_growing() {
                std::thread::yield_now();
            }
            let base = slots.slot_address(SlotId(0)).ok_or("no slot")?;
            // SAFETY: slots of a slab.
            unsafe { store.register(slots) }.map_err(|error| text(&error))?;
            // One connection for both: a stock server pins much for each.
            let small = Arc::new(store);
            let large = Arc::clone(&small);
            return Ok(Self {
                small: Box::new(Shared(small)),
                large: Box::new(Shared(large)),
                base,
                next_ticket: 1,
                name: 2,
            });
        }
        let memory = Memory::allocate(LARGE.bytes * LARGE.keys * LARGE.in_flight);
        let base = memory.address();
        let config = |shape: Shape| VerbsClientConfig {
            lanes: 1,
            request_keys_max: shape.keys,
            requests_in_flight: shape.in_flight,
            checksums: false,
            connect_timeout: PATIENCE,
            ..VerbsClientConfig::default()
        };
        let small = VerbsClient::new(server, port.clone(), config(SMALL)).map_err(|error| text(&error))?;
        let large = VerbsClient::new(server, port.clone(), config(LARGE)).map_err(|error| text(&error))?;
        let region = Arc::new(port.register(memory, Access::Remote).map_err(|error| text(&error))?);
        small.add_region(Arc::clone(&region));
        large.add_region(region);
        Ok(Self { small: Box::new(small), large: Box::new(large), base, next_ticket: 1, name: 1 })
    }

    /// Moves as many values as are in flight, and waits for all.
    fn round(&mut self, op: RemoteOp, shape: Shape, set: u8) -> Result<(), String> {
        let first = self.next_ticket;
        let count = shape.keys * shape.in_flight;
        let batch: Vec<RemoteTransfer> = (0..count)
            .map(|index| {
                let mut block = [0; 16];
                block[..8].copy_from_slice(&(index as u64).to_le_bytes());
                block[8] = set;
                block[9] = u8::from(shape.keys > 1);
                block[10] = self.name;
                RemoteTransfer {
                    ticket: first + index as u64,
                    op,
                    key: RemoteKey { space: RemoteSpace([5; 16]), block: BlockKey(block) },
                    address: self.base + index * shape.bytes,
                    bytes: shape.bytes,
                }
            })
            .collect();
        self.next_ticket += count as u64;
        let store = if shape.keys == 1 { &self.small } else { &self.large };
        // SAFETY: memory of our own, which is never freed, and which nobody looks at.
        unsafe { store.submit(&batch, PATIENCE) };
        let mut left: HashSet<u64> = (first..self.next_ticket).collect();
        let mut ends: Vec<RemoteEnd> = Vec::new();
        while !left.is_empty() {
            if !store.wait(2 * PATIENCE) {
                return Err(format!("{} of {count} never ended", left.len()));
            }
            store.poll(&mut ends);
            for end in ends.drain(..) {
                if end.outcome != RemoteOutcome::Done {
                    return Err(format!("a transfer ended as {:?}", end.outcome));
                }
                left.remove(&end.ticket);
            }
        }
        Ok(())
    }
}

/// A store that is used under two names.
struct Shared(Arc<RingStore>);

impl RemoteStore for Shared {
    unsafe fn submit(&self, batch: &[RemoteTransfer], patience: Duration) {
        // SAFETY: the caller's duty is the same.
        unsafe { self.0.submit(batch, patience) }
    }

    fn poll(&self, ended: &mut Vec<RemoteEnd>) {
        self.0.poll(ended);
    }

    fn wait(&self, timeout: Duration) -> bool {
        self.0.wait(timeout)
    }

    fn cancel(&self, tickets: &[u64]) {
        self.0.cancel(tickets);
    }
}
