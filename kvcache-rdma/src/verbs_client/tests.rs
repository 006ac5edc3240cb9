//! The client against our server over the fake, through real TCP sockets on the loopback interface.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvcache_core::BlockKey;
use kvcache_core::remote::{
    RemoteEnd, RemoteFailure, RemoteKey, RemoteOp, RemoteOutcome, RemoteSpace, RemoteStore, RemoteTransfer,
};

use super::*;
use crate::verbs::{FakeNetwork, Memory};
use crate::verbs_server::{ExchangeListener, SlotStorage, VerbsServer, VerbsServerConfig};

pub(super) const VALUE: usize = 4096;
const PATIENCE: Duration = Duration::from_secs(30);

pub(super) fn key(number: u8) -> RemoteKey {
    RemoteKey { space: RemoteSpace([1; 16]), block: BlockKey([number; 16]) }
}

/// A slab of blocks, shared with clients.
pub(super) struct Slab {
    base: usize,
    memory: Option<Memory>,
}

impl Slab {
    pub(super) fn new(blocks: usize) -> Self {
        let memory = Memory::allocate(VALUE * blocks);
        Self { base: memory.address(), memory: Some(memory) }
    }

    pub(super) fn memory(&mut self) -> Memory {
        self.memory.take().unwrap()
    }

    pub(super) fn address(&self, block: usize) -> usize {
        self.base + block * VALUE
    }

    pub(super) fn fill(&self, block: usize, byte: u8) {
        // SAFETY: a block of the slab, which the client holds; nothing is in flight for it.
        unsafe { std::ptr::write_bytes(self.address(block) as *mut u8, byte, VALUE) };
    }

    pub(super) fn content(&self, block: usize) -> Vec<u8> {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts(self.address(block) as *const u8, VALUE) }.to_vec()
    }
}

struct Rig {
    network: FakeNetwork,
    server: Option<(ExchangeListener, Arc<VerbsServer<SlotStorage>>)>,
    client: VerbsClient,
    slab: Slab,
    next_ticket: u64,
}

const BLOCKS: usize = 64;

impl Rig {
    fn new(config: VerbsClientConfig) -> Self {
        let network = FakeNetwork::new();
        let (listener, server) = serve(&network, "127.0.0.1:0".parse().unwrap());
        let client = VerbsClient::new(listener.address(), network.port(), config).unwrap();
        let mut slab = Slab::new(BLOCKS);
        client.register(slab.memory()).unwrap();
        Self { network, server: Some((listener, server)), client, slab, next_ticket: 0 }
    }

    fn storage(&self) -> &SlotStorage {
        self.server.as_ref().unwrap().1.storage()
    }

    fn begin(&mut self, op: RemoteOp, values: &[(u8, usize)], patience: Duration) -> Vec<u64> {
        let first = self.next_ticket;
        let batch: Vec<RemoteTransfer> = values
            .iter()
            .zip(first..)
            .map(|((number, block), ticket)| RemoteTransfer {
                ticket,
                op,
                key: key(*number),
                address: self.slab.address(*block),
                bytes: VALUE,
            })
            .collect();
        self.next_ticket += batch.len() as u64;
        // SAFETY: blocks of the slab, which the client holds; tests touch a block only when its transfer has ended.
        unsafe { self.client.submit(&batch, patience) };
        (first..self.next_ticket).collect()
    }

    /// The outcomes of these tickets, each of which must end exactly once.
    fn ends(&self, tickets: &[u64]) -> Vec<RemoteOutcome> {
        collect(&self.client, tickets)
    }

    fn run(&mut self, op: RemoteOp, values: &[(u8, usize)]) -> Vec<RemoteOutcome> {
        let tickets = self.begin(op, values, PATIENCE);
        self.ends(&tickets)
    }
}

fn serve(network: &FakeNetwork, address: SocketAddr) -> (ExchangeListener, Arc<VerbsServer<SlotStorage>>) {
    let (storage, memory) = SlotStorage::new(VALUE, 2 * BLOCKS);
    let config = VerbsServerConfig::default();
    let server = VerbsServer::start(network.port(), Arc::new(storage), vec![memory], config).unwrap();
    let server = Arc::new(server);
    (ExchangeListener::bind(address, Arc::clone(&server)).unwrap(), server)
}

pub(super) fn collect(client: &dyn RemoteStore, tickets: &[u64]) -> Vec<RemoteOutcome> {
    let mut outcomes: HashMap<u64, RemoteOutcome> = HashMap::new();
    let mut ended: Vec<RemoteEnd> = Vec::new();
    let deadline = Instant::now() + 2 * PATIENCE;
    while outcomes.len() < tickets.len() {
        assert!(client.wait(deadline.saturating_duration_since(Instant::now())), "{} ended", outcomes.len());
        client.poll(&mut ended);
        for RemoteEnd { ticket, outcome } in ended.drain(..) {
            assert!(tickets.contains(&ticket), "{ticket} was not asked for");
            assert_eq!(outcomes.insert(ticket, outcome), None, "{ticket} ended twice");
        }
    }
    tickets.iter().map(|ticket| outcomes[ticket]).collect()
}

const DONE: RemoteOutcome = RemoteOutcome::Done;
const MISSING: RemoteOutcome = RemoteOutcome::Missing;

fn failed(failure: RemoteFailure) -> RemoteOutcome {
    RemoteOutcome::Failed(failure)
}

fn one_lane() -> VerbsClientConfig {
    VerbsClientConfig { lanes: 1, backoff_min: Duration::from_millis(1), ..Default::default() }
}

#[test]
fn bytes_loaded_are_bytes_stored() {
    for config in [
        VerbsClientConfig::default(),
        VerbsClientConfig { checksums: false, ..one_lane() },
        VerbsClientConfig { request_keys_max: 1, requests_in_flight: 1, ..one_lane() },
        VerbsClientConfig { request_keys_max: 3, lanes: 3, ..Default::default() },
    ] {
        let checksums = config.checksums;
        let mut rig = Rig::new(config);
        let put: Vec<(u8, usize)> = (0..32).map(|number| (number, usize::from(number))).collect();
        put.iter().for_each(|(number, block)| rig.slab.fill(*block, 100 + number));
        assert_eq!(rig.run(RemoteOp::Put, &put), [DONE; 32]);
        assert_eq!(rig.storage().len(), if checksums { 64 } else { 32 });
        let get: Vec<(u8, usize)> = (0..32).map(|number| (31 - number, 32 + usize::from(number))).collect();
        assert_eq!(rig.run(RemoteOp::Get, &get), [DONE; 32]);
        for (number, block) in get {
            assert_eq!(rig.slab.content(block), [100 + number; VALUE]);
        }
    }
}

#[test]
fn missing_values_are_found_among_present_ones() {
    let mut rig = Rig::new(one_lane());
    let put: Vec<(u8, usize)> = (0..20).filter(|number| number % 3 != 0).map(|number| (number, 0)).collect();
    rig.slab.fill(0, 7);
    assert!(rig.run(RemoteOp::Put, &put).iter().all(|outcome| *outcome == DONE));
    let get: Vec<(u8, usize)> = (0..20).map(|number| (number, 1 + usize::from(number))).collect();
    let wanted: Vec<RemoteOutcome> =
        (0..20).map(|number| if number % 3 == 0 { MISSING } else { DONE }).collect();
    assert_eq!(rig.run(RemoteOp::Get, &get), wanted);
    assert_eq!((rig.slab.content(2), rig.slab.content(1)), (vec![7; VALUE], vec![0; VALUE]));
}

#[test]
fn a_value_that_is_not_the_one_of_its_checksum_is_corrupt() {
    let mut rig = Rig::new(one_lane());
    rig.slab.fill(0, 1);
    assert_eq!(rig.run(RemoteOp::Put, &[(1, 0), (2, 0)]), [DONE, DONE]);
    // Another writer, which knows nothing of checksums, replaces one of them.
    let address = rig.server.as_ref().unwrap().0.address();
    let other = VerbsClientConfig { checksums: false, ..one_lane() };
    let other = VerbsClient::new(address, rig.network.port(), other).unwrap();
    let mut slab = Slab::new(1);
    other.register(slab.memory()).unwrap();
    slab.fill(0, 2);
    let transfer =
        |bytes| RemoteTransfer { ticket: 1, op: RemoteOp::Put, key: key(2), address: slab.address(0), bytes };
    // SAFETY: the block stays, and nobody writes it.
    unsafe { other.submit(&[transfer(VALUE)], PATIENCE) };
    assert_eq!(collect(&other, &[1]), [DONE]);
    assert_eq!(rig.run(RemoteOp::Get, &[(1, 3), (2, 4)]), [DONE, failed(RemoteFailure::Corrupt)]);
    // And one that is shorter: the server moves it, and the rest of the block is what it was.
    // SAFETY: as above.
    unsafe { other.submit(&[transfer(VALUE / 2)], PATIENCE) };
    assert_eq!(collect(&other, &[1]), [DONE]);
    assert_eq!(rig.run(RemoteOp::Get, &[(2, 5)]), [failed(RemoteFailure::Corrupt)]);
}

#[test]
fn values_are_replaced_and_deleted() {
    let mut rig = Rig::new(one_lane());
    rig.slab.fill(0, 1);
    rig.slab.fill(1, 2);
    assert_eq!(rig.run(RemoteOp::Put, &[(1, 0)]), [DONE]);
    assert_eq!(rig.run(RemoteOp::Put, &[(1, 1)]), [DONE]);
    assert_eq!(rig.run(RemoteOp::Get, &[(1, 2)]), [DONE]);
    assert_eq!(rig.slab.content(2), [2; VALUE]);
    assert_eq!(rig.run(RemoteOp::Delete, &[(1, 0)]), [DONE]);
    assert_eq!(rig.run(RemoteOp::Delete, &[(1, 0)]), [MISSING]);
    assert_eq!(rig.run(RemoteOp::Get, &[(1, 2)]), [MISSING]);
    assert_eq!(rig.storage().len(), 0);
}

#[test]
fn what_the_server_has_no_room_for_is_refused() {
    let mut rig = Rig::new(VerbsClientConfig { checksums: false, ..one_lane() });
    let all: Vec<(u8, usize)> = (0..=128).map(|number| (number, 0)).collect();
    let outcomes = rig.run(RemoteOp::Put, &all);
    let refused = outcomes.iter().filter(|outcome| **outcome == failed(RemoteFailure::Refused)).count();
    let done = outcomes.iter().filter(|outcome| **outcome == DONE).count();
    assert_eq!((refused, done, rig.storage().len()), (1, 128, 128));
}

#[test]
fn what_cannot_be_moved_is_refused_at_once() {
    let rig = Rig::new(one_lane());
    let inside = rig.slab.address(0);
    let stranger = [0u8; 64];
    let cases =
        [(inside, 0), (stranger.as_ptr() as usize, 64), (inside, VALUE * BLOCKS + 1), (0, usize::MAX)];
    for (ticket, (address, bytes)) in (0..).zip(cases) {
        let transfer = RemoteTransfer { ticket, op: RemoteOp::Put, key: key(1), address, bytes };
        // SAFETY: what is not within registered memory is never touched.
        unsafe { rig.client.submit(&[transfer], PATIENCE) };
        assert_eq!(rig.ends(&[ticket]), [failed(RemoteFailure::Refused)], "{bytes}");
    }
    assert_eq!(rig.network.requests_run(), 0);
}

#[test]
fn more_than_may_be_open_is_overloaded() {
    let mut rig = Rig::new(VerbsClientConfig { items_max: 2, request_keys_max: 1, ..one_lane() });
    rig.network.allow(Some(0));
    let tickets = rig.begin(RemoteOp::Put, &[(1, 0), (2, 1), (3, 2)], PATIENCE);
    assert_eq!(rig.ends(&tickets[2..]), [failed(RemoteFailure::Overloaded)]);
    rig.network.allow(None);
    assert_eq!(rig.ends(&tickets[..2]), [DONE, DONE]);
}

#[test]
fn what_is_late_ends_and_its_memory_is_never_touched_again() {
    let mut rig = Rig::new(one_lane());
    rig.slab.fill(0, 1);
    assert_eq!(rig.run(RemoteOp::Put, &[(1, 0)]), [DONE]);
    let pairs = rig.network.queue_pairs();
    // Both requests reach the server, whose writes are held back.
    rig.network.allow(Some(2));
    let tickets = rig.begin(RemoteOp::Get, &[(1, 1)], Duration::from_millis(50));
    assert_eq!(rig.ends(&tickets), [failed(RemoteFailure::TimedOut)]);
    assert!(rig.network.queue_pairs() < pairs, "the queue pair was destroyed before the end was told");
    rig.slab.fill(1, 77);
    rig.network.allow(None);
    assert_eq!(rig.run(RemoteOp::Get, &[(1, 2)]), [DONE], "it connects again");
    assert_eq!((rig.slab.content(1), rig.slab.content(2)), (vec![77; VALUE], vec![1; VALUE]));
}

#[test]
fn what_was_in_flight_beside_a_late_request_is_tried_again() {
    let mut rig = Rig::new(VerbsClientConfig { checksums: false, ..one_lane() });
    rig.slab.fill(0, 1);
    assert_eq!(rig.run(RemoteOp::Put, &[(1, 0)]), [DONE]);
    rig.network.allow(Some(0));
    let late = rig.begin(RemoteOp::Get, &[(1, 1)], Duration::from_millis(50));
    let patient = rig.begin(RemoteOp::Get, &[(1, 2)], PATIENCE);
    assert_eq!(rig.ends(&late), [failed(RemoteFailure::TimedOut)]);
    rig.network.allow(None);
    assert_eq!(rig.ends(&patient), [DONE]);
    assert_eq!(rig.slab.content(2), [1; VALUE]);
}

#[test]
fn a_server_that_dies_is_unreachable_and_is_found_when_it_is_back() {
    let mut rig = Rig::new(one_lane());
    rig.slab.fill(0, 1);
    assert_eq!(rig.run(RemoteOp::Put, &[(1, 0)]), [DONE]);
    rig.network.allow(Some(2));
    let tickets = rig.begin(RemoteOp::Get, &[(1, 1), (2, 2)], PATIENCE);
    let (listener, server) = rig.server.take().unwrap();
    let address = listener.address();
    drop(listener);
    drop(server);
    rig.network.allow(None);
    let ends = rig.ends(&tickets);
    assert!(ends.iter().all(|end| *end == failed(RemoteFailure::Unreachable)), "{ends:?}");
    rig.server = Some(serve(&rig.network, address));
    // It is left alone for a moment, in which everything ends at once.
    let deadline = Instant::now() + PATIENCE;
    while rig.run(RemoteOp::Put, &[(1, 0)]) != [DONE] {
        assert!(Instant::now() < deadline);
        std::thread::yield_now();
    }
    assert_eq!(rig.run(RemoteOp::Get, &[(1, 1), (2, 2)]), [DONE, MISSING]);
}

#[test]
fn nobody_listening_is_unreachable() {
    let network = FakeNetwork::new();
    // A port that was free a moment ago.
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let client = VerbsClient::new(address, network.port(), one_lane()).unwrap();
    let mut slab = Slab::new(1);
    client.register(slab.memory()).unwrap();
    let transfer =
        RemoteTransfer { ticket: 5, op: RemoteOp::Get, key: key(1), address: slab.address(0), bytes: VALUE };
    // SAFETY: the block stays, and nobody touches it.
    unsafe { client.submit(&[transfer], PATIENCE) };
    assert_eq!(collect(&client, &[5]), [failed(RemoteFailure::Unreachable)]);
}

#[test]
fn a_server_that_says_nothing_costs_one_connect_timeout() {
    let network = FakeNetwork::new();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let config = VerbsClientConfig { connect_timeout: Duration::from_millis(20), ..one_lane() };
    let client = VerbsClient::new(silent.local_addr().unwrap(), network.port(), config).unwrap();
    let mut slab = Slab::new(1);
    client.register(slab.memory()).unwrap();
    let transfer =
        RemoteTransfer { ticket: 5, op: RemoteOp::Get, key: key(1), address: slab.address(0), bytes: VALUE };
    // SAFETY: the block stays, and nobody touches it.
    unsafe { client.submit(&[transfer], PATIENCE) };
    assert_eq!(collect(&client, &[5]), [failed(RemoteFailure::Unreachable)]);
}

#[test]
fn what_was_not_begun_can_be_cancelled() {
    let mut rig = Rig::new(VerbsClientConfig { requests_in_flight: 1, request_keys_max: 1, ..one_lane() });
    rig.network.allow(Some(0));
    let tickets = rig.begin(RemoteOp::Put, &[(1, 0), (2, 1), (3, 2)], PATIENCE);
    rig.client.cancel(&tickets[2..]);
    assert_eq!(rig.ends(&tickets[2..]), [failed(RemoteFailure::Cancelled)]);
    rig.network.allow(None);
    assert_eq!(rig.ends(&tickets[..2]), [DONE, DONE]);
}

#[test]
fn a_lane_pins_at_most_8_mib_and_gives_all_back() {
    let mut rig = Rig::new(VerbsClientConfig::default());
    let before = rig.network.registered_bytes();
    let get: Vec<(u8, usize)> = (0..32).map(|number| (number, usize::from(number))).collect();
    rig.run(RemoteOp::Get, &get);
    // Of which the server's half is 6 MiB a lane.
    let lanes = rig.client_lanes();
    let pinned = (rig.network.registered_bytes() - before) / lanes;
    assert!(pinned <= 8 << 20, "{pinned}");
    let Rig { network, server, client, .. } = rig;
    drop(client);
    drop(server);
    assert_eq!((network.registered_bytes(), network.queue_pairs()), (0, 0));
}

impl Rig {
    /// Lanes that are connected: a queue pair here and one at the server for each.
    fn client_lanes(&self) -> usize {
        (self.network.queue_pairs() / 2).max(1)
    }
}
