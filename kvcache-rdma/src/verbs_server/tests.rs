//! The server against a client that is written out by hand: messages, answers and their order, what it holds on to.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvcache_wire::Status;
use kvcache_wire::stock::{RemoteMetaRequest, RemoteOp};

use super::*;
use crate::verbs::{
    Access, Buffer, Completion, FakeNetwork, Memory, Port, Queue, QueuePair, QueuePairConfig, Region,
    Request, Work,
};

const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const SLOT: usize = 4096;
const SLOTS: usize = 16;

fn server(network: &FakeNetwork, config: VerbsServerConfig) -> VerbsServer<SlotStorage> {
    let (storage, memory) = SlotStorage::new(SLOT, SLOTS);
    VerbsServer::start(network.port(), Arc::new(storage), vec![memory], config).unwrap()
}

/// A client's end: a queue pair, one region of `SLOTS` blocks, buffers for messages.
struct Client {
    pair: QueuePair,
    region: Arc<Region>,
    buffers: Vec<Buffer>,
    connection: Connection,
}

impl Client {
    fn connect(network: &FakeNetwork, server: &VerbsServer<SlotStorage>) -> Self {
        let port: Port = network.port();
        let config = QueuePairConfig {
            remote_access: true,
            send_depth: 256,
            receive_depth: 256,
            ..Default::default()
        };
        let mut pair = port.queue_pair(&config).unwrap();
        let connection = server.connect(&info_of_address(&pair.address()).encode(), HERE).unwrap();
        pair.connect(&peer_of_info(&connection.info())).unwrap();
        let region = Arc::new(port.register(Memory::allocate(SLOT * SLOTS), Access::Remote).unwrap());
        let buffers = port.register(Memory::allocate(4096 * 64), Access::Local).unwrap().into_buffers(4096);
        Self { pair, region, buffers, connection }
    }

    fn block(&self, index: usize) -> u64 {
        (self.region.address() + index * SLOT) as u64
    }

    fn fill(&self, index: usize, byte: u8) {
        // SAFETY: a block of our own region; the tests ask for nothing that moves it at the same time.
        unsafe { std::ptr::write_bytes(self.block(index) as *mut u8, byte, SLOT) };
    }

    fn content(&self, index: usize) -> Vec<u8> {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts(self.block(index) as *const u8, SLOT) }.to_vec()
    }

    fn send(&mut self, message: &[u8]) {
        let mut buffer = self.buffers.pop().unwrap();
        assert!(buffer.write(message));
        self.pair.post_receive(0, None).unwrap();
        let work = Work::Send { message: Some(buffer), immediate: None };
        self.pair.post(vec![Request { id: 0, work, signaled: true }]).unwrap();
    }

    fn ask(&mut self, op: RemoteOp, keys: &[&str], blocks: &[usize], bytes: u32) {
        let addresses: Vec<u64> = blocks.iter().map(|index| self.block(*index)).collect();
        let key = self.region.remote_key();
        self.send(&RemoteMetaRequest::encode(op, keys, &addresses, bytes, key).unwrap());
    }

    /// The next `count` answers.
    fn answers(&mut self, count: usize) -> Vec<i32> {
        let mut answers = Vec::new();
        let mut completions: Vec<Completion> = Vec::new();
        until("an answer", || {
            self.pair.poll(&mut completions).unwrap();
            for completion in completions.drain(..) {
                completion.result.unwrap();
                match completion.queue {
                    Queue::Send => self.buffers.extend(completion.buffer),
                    Queue::Receive => answers.push(completion.immediate.unwrap() as i32),
                }
            }
            answers.len() >= count
        });
        answers
    }
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "waited for {what}");
        std::thread::yield_now();
    }
}

#[test]
fn values_are_stored_loaded_and_overwritten() {
    let network = FakeNetwork::new();
    let server = server(&network, VerbsServerConfig::default());
    let mut client = Client::connect(&network, &server);
    for index in 0..3 {
        client.fill(index, 10 + index as u8);
    }
    client.ask(RemoteOp::Store, &["a", "b"], &[0, 1], 4096);
    client.ask(RemoteOp::Store, &["short"], &[2], 100);
    // A load is looked up when it arrives: what is to be found must have been answered.
    assert_eq!(client.answers(2), [200, 200]);
    client.ask(RemoteOp::Load, &["b", "a", "short"], &[4, 5, 6], 4096);
    assert_eq!(client.answers(1), [200]);
    assert_eq!((client.content(4), client.content(5)), (vec![11; SLOT], vec![10; SLOT]));
    assert_eq!(
        client.content(6),
        [vec![12; 100], vec![0; SLOT - 100]].concat(),
        "a stored size moves, not a block"
    );
    client.ask(RemoteOp::Store, &["a"], &[2], 4096);
    assert_eq!(client.answers(1), [200]);
    client.ask(RemoteOp::Load, &["a"], &[7], 4096);
    assert_eq!(client.answers(1), [200]);
    assert_eq!(client.content(7), [12; SLOT]);
    assert_eq!((server.storage().len(), server.storage().free_slots()), (3, SLOTS - 3));
}

#[test]
fn what_cannot_be_done_is_refused_and_leaves_nothing() {
    let network = FakeNetwork::new();
    let server = server(&network, VerbsServerConfig::default());
    let mut client = Client::connect(&network, &server);
    client.fill(0, 1);
    client.ask(RemoteOp::Store, &["here"], &[0], 4096);
    assert_eq!(client.answers(1), [200]);
    client.ask(RemoteOp::Load, &["here", "missing"], &[4, 5], 4096);
    client.ask(RemoteOp::Load, &["here"], &[4], 4095);
    client.ask(RemoteOp::Store, &["large"], &[0], 4097);
    client.ask(RemoteOp::Store, &["none"], &[0], 0);
    client.ask(RemoteOp::Load, &[], &[], 4096);
    client.send(b"this is no table");
    client.send(b"");
    let many: Vec<String> = (0..SLOTS).map(|index| format!("k{index}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    client.ask(RemoteOp::Store, &many, &[0; SLOTS], 4096);
    assert_eq!(client.answers(8), [404, 400, 507, 400, 400, 400, 400, 507]);
    assert_eq!(client.content(4), [0; SLOT], "a load with a missing key moves nothing");
    assert_eq!((server.storage().len(), server.storage().free_slots()), (1, SLOTS - 1));
}

#[test]
fn refusals_do_not_overtake_running_transfers() {
    let network = FakeNetwork::new();
    let server = server(&network, VerbsServerConfig::default());
    let mut client = Client::connect(&network, &server);
    // The three requests arrive, and then nothing moves.
    network.allow(Some(3));
    client.ask(RemoteOp::Store, &["a"], &[0], 4096);
    client.ask(RemoteOp::Load, &["missing"], &[4], 4096);
    client.ask(RemoteOp::Load, &["a"], &[4], 4096);
    until("the requests to arrive", || network.requests_run() >= 3);
    network.allow(None);
    // The last was read before the first was visible, or after: both are right.
    let answers = client.answers(3);
    assert_eq!(answers[..2], [200, 404]);
    assert!([200, 404].contains(&answers[2]), "{answers:?}");
}

#[test]
fn more_requests_than_receives_wait_for_their_turn() {
    let network = FakeNetwork::new();
    let config = VerbsServerConfig { receive_depth: 2, send_depth: 3, ..Default::default() };
    let server = server(&network, config);
    let mut client = Client::connect(&network, &server);
    client.fill(0, 9);
    client.ask(RemoteOp::Store, &["a"], &[0], 4096);
    assert_eq!(client.answers(1), [200]);
    for _ in 0..30 {
        client.ask(RemoteOp::Load, &["a", "a", "a", "a", "a", "a", "a"], &[8; 7], 4096);
        client.ask(RemoteOp::Load, &["missing"], &[8], 4096);
    }
    assert_eq!(client.answers(60), [200, 404].repeat(30));
    assert_eq!(client.content(8), [9; SLOT]);
}

#[test]
fn a_client_that_goes_leaves_nothing_behind() {
    let network = FakeNetwork::new();
    let server = server(&network, VerbsServerConfig::default());
    let (registered, pairs) = (network.registered_bytes(), network.queue_pairs());
    let mut staying = Client::connect(&network, &server);
    let with_one = network.registered_bytes();
    let mut client = Client::connect(&network, &server);
    network.allow(Some(1));
    client.ask(RemoteOp::Store, &["a", "b"], &[0, 1], 4096);
    until("memory to be reserved", || server.storage().free_slots() == SLOTS - 2);
    let Client { pair, region, buffers, connection } = client;
    drop((pair, region, buffers));
    network.allow(None);
    until("the connection to end", || !connection.is_alive());
    until("memory to be released", || server.storage().free_slots() == SLOTS);
    assert_eq!(network.registered_bytes(), with_one);
    drop(connection);
    staying.ask(RemoteOp::Load, &["a"], &[0], 4096);
    assert_eq!(staying.answers(1), [404], "others are not disturbed, and nothing is half there");
    drop(staying);
    until("connections to be closed", || network.queue_pairs() == pairs);
    until("their memory to be released", || network.registered_bytes() == registered);
}

#[test]
fn a_request_that_is_too_long_ends_its_own_connection() {
    let network = FakeNetwork::new();
    let server = server(&network, VerbsServerConfig { request_bytes_max: 1024, ..Default::default() });
    let mut client = Client::connect(&network, &server);
    let mut other = Client::connect(&network, &server);
    client.send(&[0; 1025]);
    until("the connection to end", || !client.connection.is_alive());
    other.ask(RemoteOp::Load, &["a"], &[0], 4096);
    assert_eq!(other.answers(1), [404]);
}

#[test]
fn a_connection_pins_at_most_8_mib() {
    let network = FakeNetwork::new();
    let server = server(&network, VerbsServerConfig::default());
    let before = network.registered_bytes();
    let client = Client::connect(&network, &server);
    let own = SLOT * SLOTS + 4096 * 64;
    let pinned = network.registered_bytes() - before - own;
    assert!(pinned <= 8 << 20, "{pinned}");
    drop(client);
}

#[test]
fn an_info_that_makes_no_sense_is_refused() {
    let network = FakeNetwork::new();
    let server = server(&network, VerbsServerConfig::default());
    assert!(matches!(server.connect(&[0; 29], HERE), Err(ConnectError::Info(_))));
    assert!(matches!(server.connect(&[9; 30], HERE), Err(ConnectError::Info(_))));
    assert_eq!(network.queue_pairs(), 0);
    assert_eq!(Status::OK.0, 200);
}

#[test]
fn connections_are_bounded_and_counted() {
    let network = FakeNetwork::new();
    let limits = AdmissionLimits { connections: 3, strangers: 3, strangers_per_peer: 2 };
    let server = server(&network, VerbsServerConfig { limits, ..Default::default() });
    let mut one = Client::connect(&network, &server);
    let two = Client::connect(&network, &server);
    let exchange = || {
        let pair = network.port().queue_pair(&QueuePairConfig::default()).unwrap();
        server.connect(&info_of_address(&pair.address()).encode(), HERE)
    };
    let refused = exchange().unwrap_err().to_string();
    assert!(refused.contains("127.0.0.1 has 2 queue pairs"), "{refused}");
    // A request that makes sense, even of a missing key, tells a client from a stranger.
    one.ask(RemoteOp::Load, &["k"], &[0], 4096);
    assert_eq!(one.answers(1), [404]);
    let three = exchange().unwrap();
    let refused = exchange().unwrap_err().to_string();
    assert!(refused.contains("there are 3 queue pairs"), "{refused}");
    one.fill(0, 7);
    one.ask(RemoteOp::Store, &["k", "l"], &[0, 1], 4096);
    assert_eq!(one.answers(1), [200]);
    one.ask(RemoteOp::Load, &["k"], &[2], 4096);
    assert_eq!(one.answers(1), [200]);
    let buffers = 512 * 1024 * 12;
    let wanted = VerbsServerStats {
        connections: 3,
        connections_total: 3,
        exchanges_refused: 2,
        stored_values: 2,
        received_bytes: 2 * SLOT as u64,
        loaded_values: 1,
        sent_bytes: SLOT as u64,
        requests_refused: 1,
        pinned_bytes: (SLOT * SLOTS) as u64 + 3 * buffers,
    };
    // What has left is counted when the device says so, which may be after the answer.
    until("the counters", || server.stats() == wanted);
    drop((two, three));
    until("places to come back", || server.stats().connections == 1);
    assert!(exchange().is_ok());
}
