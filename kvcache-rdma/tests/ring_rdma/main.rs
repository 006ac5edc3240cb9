//! The ring over RDMA: the client and servers of this workspace, over the fake network of `verbs` and real TCP sockets.
//!
//! `tests/rdma` does the same over a real device.

#![allow(clippy::unwrap_used, reason = "helpers of tests, outside of the functions that are marked as such")]

mod client;
mod slots;

use std::sync::Arc;
use std::time::{Duration, Instant};

use client::{Client, DONE, MISSING, block, failed, pattern};
use kvcache_core::remote::{Presence, RemoteFailure, RemoteOp, RemoteOutcome, RemoteSpace};
use kvcache_core::ring_client::BreakerState;
use kvcache_rdma::members::{Member, MemberList, Members, PlacementSource, ServerAddress};
use kvcache_rdma::ring::{RdmaPort, RingConfig, RingPresence};
use kvcache_rdma::verbs::{FakeNetwork, PortWish};
use kvcache_server::{Server, ServerConfig, Token};
use slots::Slots;

const SPACE: RemoteSpace = RemoteSpace([0xab; 16]);
const PATIENCE: Duration = Duration::from_secs(20);

fn server(network: &FakeNetwork, config: ServerConfig) -> Server {
    Server::start_on(ServerConfig { threads: Some(2), ..config }, Some(network.port())).unwrap()
}

fn plain(network: &FakeNetwork) -> Server {
    server(network, ServerConfig { capacity_bytes: 64 << 20, ..ServerConfig::default() })
}

fn members(servers: &[&Server]) -> Members {
    let address = |server: &&Server| server.address().to_string().parse::<ServerAddress>().unwrap();
    let list = MemberList::new(servers.iter().map(address).map(Member::at).collect()).unwrap();
    Members::fixed(list, PlacementSource::Computed).unwrap()
}

fn config(network: &FakeNetwork, servers: &[&Server]) -> RingConfig {
    let mut config = RingConfig::new(members(servers));
    config.rdma = Some(RdmaPort::Opened(network.port()));
    config.client.backoff_min = Duration::from_millis(5);
    config.client.backoff_max = Duration::from_millis(20);
    config
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let give_up = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < give_up, "{what} never happens");
        std::thread::yield_now();
    }
}

#[test]
fn bytes_come_back_as_they_were_put_and_are_spread_over_the_ring() {
    let network = FakeNetwork::new();
    let servers = [plain(&network), plain(&network), plain(&network)];
    let servers: Vec<&Server> = servers.iter().collect();
    let mut client = Client::open(&config(&network, &servers), Slots::new(64, 70_000));
    let before = network.requests_run();
    let mut first = 0;
    for bytes in [1, 15, 4096, 70_000] {
        let numbers = first..first + 32;
        first += 32;
        assert_eq!(client.get(numbers.clone(), bytes), [MISSING; 32]);
        assert_eq!(client.put(numbers.clone(), bytes), [DONE; 32]);
        assert_eq!(client.get(numbers.clone(), bytes), [DONE; 32]);
        for other in [bytes + 1, bytes - 1].into_iter().filter(|bytes| (1..=70_000).contains(bytes)) {
            assert_eq!(client.get(numbers.clone(), other)[0], failed(RemoteFailure::Corrupt));
        }
    }
    assert!(network.requests_run() - before > 500, "values go over RDMA");
    for server in &servers {
        assert!(server.store().stats().values > 15, "all have a share");
    }
    assert_eq!(client.run(RemoteOp::Delete, 0..6, 1), [DONE; 6]);
    assert_eq!(client.run(RemoteOp::Delete, 0..6, 1), [MISSING; 6]);
    assert_eq!(client.get(0..6, 1), [MISSING; 6]);
    let stats = client.stats();
    assert_eq!(stats.client.transfers_open, 0);
    for (_, connection) in stats.connections.values() {
        assert_eq!((connection.queue_pairs, connection.problem()), (Some(1), None), "{connection:?}");
        assert_eq!(connection.faults.iter().sum::<u64>(), 0);
    }
}

#[test]
fn a_slab_is_registered_once_and_other_memory_for_its_request() {
    let network = FakeNetwork::new();
    let one = plain(&network);
    let slots = Slots::new(32, 4096);
    let mut client = Client::open(&config(&network, &[&one]), slots);
    // Not registered: it works, and nothing stays.
    assert_eq!(client.put(0..8, 4096), [DONE; 8]);
    let (without, slab_bytes) = (network.registered_bytes(), 32 * 4096);
    client.register();
    until("registration", || network.registered_bytes() == without + slab_bytes);
    assert_eq!(client.put(8..16, 4096), [DONE; 8]);
    assert_eq!(client.get(0..16, 4096), [DONE; 16]);
    assert_eq!(network.registered_bytes(), without + slab_bytes);
    drop(client);
    // The server notices a little later.
    until("everything is let go", || network.queue_pairs() == 0 && network.registered_bytes() == 64 << 20);
}

#[test]
fn presence_is_asked_for_over_tcp() {
    let network = FakeNetwork::new();
    let servers = [plain(&network), plain(&network)];
    let servers: Vec<&Server> = servers.iter().collect();
    let settings = config(&network, &servers);
    let mut client = Client::open(&settings, Slots::new(40, 512));
    assert_eq!(client.put(0..40, 512), [DONE; 40]);
    let (mut presence, pairs) = (RingPresence::open(&settings).unwrap(), network.queue_pairs());
    presence.set_spaces(&[SPACE]);
    let keys: Vec<_> = (20..60).map(block).collect();
    presence.ask(7, &keys, PATIENCE);
    let mut answers = Vec::new();
    while answers.is_empty() {
        presence.wait(PATIENCE);
        presence.poll(&mut answers);
    }
    assert_eq!(answers[0].present, (20..60).map(|number| number < 40).collect::<Vec<_>>());
    assert_eq!(network.queue_pairs(), pairs, "it has none of its own");
}

/// The network stops in the middle: transfers time out, their memory is never written afterwards, and a new queue pair
/// takes over.
#[test]
fn what_timed_out_never_writes_late() {
    let network = FakeNetwork::new();
    let one = plain(&network);
    let mut settings = config(&network, &[&one]);
    settings.client.silence_max = Duration::from_millis(200);
    let mut client = Client::open(&settings, Slots::new(32, 4096));
    assert_eq!(client.put(0..32, 4096), [DONE; 32]);
    for allowed in [0, 1, 2, 5] {
        network.allow(Some(allowed));
        client.fill(0..32, 0x11);
        let tickets = client.begin(RemoteOp::Get, 0..32, 4096, Duration::from_millis(100));
        let ended = client.ends(&tickets);
        assert!(ended.contains(&failed(RemoteFailure::TimedOut)), "{allowed}: {ended:?}");
        // The memory is ours: what the server had begun must not reach it.
        client.fill(0..32, 0x22);
        network.allow(None);
        until("it is served again", || client.put(32..33, 4096) == [DONE]);
        assert!((1..32).all(|slot| client.content(slot) == [0x22; 4096]), "{allowed}");
        assert_eq!(client.get(0..32, 4096), [DONE; 32]);
    }
}

#[test]
fn a_cancelled_transfer_ends_when_its_memory_is_out_of_use() {
    let network = FakeNetwork::new();
    let one = plain(&network);
    let mut client = Client::open(&config(&network, &[&one]), Slots::new(8, 4096));
    assert_eq!(client.put(0..8, 4096), [DONE; 8]);
    network.allow(Some(0));
    let tickets = client.begin(RemoteOp::Get, 0..8, 4096, PATIENCE);
    until("they are posted", || client.stats().client.servers[0].bytes_in_flight == 8 * 4096);
    client.cancel(&tickets);
    // Nothing answers, so that the queue pair goes: only then they end.
    let cancelled = client.ends(&tickets);
    assert!(cancelled.iter().all(|outcome| *outcome == failed(RemoteFailure::Cancelled)), "{cancelled:?}");
    client.fill(0..8, 0x33);
    network.allow(None);
    until("it is served again", || client.put(8..9, 4096) == [DONE]);
    assert!((1..8).all(|slot| client.content(slot) == [0x33; 4096]));
    // And where answers come, they end by them.
    let tickets = client.begin(RemoteOp::Get, 0..8, 4096, PATIENCE);
    client.cancel(&tickets);
    let ended = client.ends(&tickets);
    assert!(ended.iter().all(|outcome| [DONE, failed(RemoteFailure::Cancelled)].contains(outcome)));
}

#[test]
fn a_server_that_goes_costs_its_share_until_it_is_back() {
    let network = FakeNetwork::new();
    let (stays, goes) = (plain(&network), plain(&network));
    let mut client = Client::open(&config(&network, &[&stays, &goes]), Slots::new(64, 4096));
    assert_eq!(client.put(0..64, 4096), [DONE; 64]);
    let (address, share) = (goes.address(), goes.store().stats().values as usize);
    let pairs = network.queue_pairs();
    goes.stop();
    until("both ends are gone", || network.queue_pairs() == pairs - 2);
    let outcomes = client.get(0..64, 4096);
    let lost = outcomes.iter().filter(|outcome| matches!(outcome, RemoteOutcome::Failed(_))).count();
    assert_eq!(lost, share, "{outcomes:?}");
    assert_eq!(outcomes.iter().filter(|outcome| **outcome == DONE).count(), 64 - share);
    until("its breaker opens", || {
        client.get(0..64, 4096);
        client.stats().client.servers.iter().any(|server| server.breaker != BreakerState::Closed)
    });
    let _back = server(
        &network,
        ServerConfig { listen: address, capacity_bytes: 64 << 20, ..ServerConfig::default() },
    );
    until("it is found again", || client.put(0..64, 4096) == [DONE; 64]);
    assert_eq!(client.get(0..64, 4096), [DONE; 64]);
}

#[test]
fn another_value_under_the_same_name_is_no_hit() {
    let network = FakeNetwork::new();
    let one = plain(&network);
    let mut client = Client::open(&config(&network, &[&one]), Slots::new(4, 4096));
    assert_eq!(client.put(0..4, 4096), [DONE; 4]);
    let mut wrong = one.store().reserve(&client::name(2), 4096).unwrap();
    wrong.bytes_mut().copy_from_slice(&pattern(77, 4096));
    one.store().publish(wrong, None);
    let outcomes = client.get(0..4, 4096);
    assert_eq!(outcomes, [DONE, DONE, failed(RemoteFailure::Corrupt), DONE]);
}

#[test]
fn a_token_lets_in_who_has_it() {
    let network = FakeNetwork::new();
    let token = "a token of the tests";
    let guarded = ServerConfig {
        capacity_bytes: 8 << 20,
        token: Some(Token::new(token.as_bytes())),
        ..ServerConfig::default()
    };
    let one = server(&network, guarded);
    let mut settings = config(&network, &[&one]);
    settings.token = token.to_owned();
    let mut client = Client::open(&settings, Slots::new(4, 4096));
    assert_eq!(client.put(0..4, 4096), [DONE; 4]);
    for wrong in ["", "another"] {
        settings.token = wrong.to_owned();
        let mut client = Client::open(&settings, Slots::new(4, 4096));
        assert_eq!(client.get(0..1, 4096), [failed(RemoteFailure::Refused)], "{wrong:?}");
        let stats = client.stats();
        let problem = stats.connections.values().next().unwrap().1.problem().unwrap_or_default().to_owned();
        assert!(problem.starts_with("unauthorized"), "{problem}");
    }
}

/// What one has put over one transport the others find, checksum and all.
#[test]
fn clients_over_rdma_tcp_and_shared_memory_share_values() {
    let network = FakeNetwork::new();
    let one = plain(&network);
    let rdma = config(&network, &[&one]);
    let tcp = RingConfig { rdma: None, shared_memory: false, ..rdma.clone() };
    let local = RingConfig { rdma: None, shared_memory: true, ..rdma.clone() };
    let mut clients = [&rdma, &tcp, &local].map(|config| Client::open(config, Slots::new(32, 4096)));
    for putter in 0..3 {
        let numbers = putter as u64 * 100..putter as u64 * 100 + 32;
        let requests = network.requests_run();
        assert_eq!(clients[putter].put(numbers.clone(), 4096), [DONE; 32]);
        assert_eq!(network.requests_run() > requests, putter == 0, "only the first moves values over RDMA");
        for client in &mut clients {
            assert_eq!(client.get(numbers.clone(), 4096), [DONE; 32], "put by {putter}");
            assert_eq!(client.get(numbers.clone(), 4095), [failed(RemoteFailure::Corrupt); 32]);
        }
        // A put of the same by another changes nothing.
        assert_eq!(clients[(putter + 1) % 3].put(numbers.clone(), 4096), [DONE; 32]);
        for client in &mut clients {
            assert_eq!(client.get(numbers.clone(), 4096), [DONE; 32]);
        }
    }
    assert_eq!(one.store().stats().values, 96);
    assert_eq!(clients[1].run(RemoteOp::Delete, 0..32, 4096), [DONE; 32]);
    assert_eq!(clients[0].get(0..32, 4096), [MISSING; 32]);
    assert_eq!(clients[0].run(RemoteOp::Delete, 100..132, 4096), [DONE; 32]);
    assert_eq!(clients[2].get(100..132, 4096), [MISSING; 32]);
}

/// On a machine with a device the wish cannot be met instead.
#[test]
fn without_rdma_the_cache_goes_on_and_says_why() {
    let network = FakeNetwork::new();
    let one = plain(&network);
    let mut settings = config(&network, &[&one]);
    let wish = PortWish { device: Some("no_such_device".to_owned()), ..PortWish::default() };
    settings.rdma = Some(RdmaPort::Wish(wish));
    let mut client = Client::open(&settings, Slots::new(4, 4096));
    client.register();
    for _ in 0..3 {
        assert_eq!(client.put(0..4, 4096), [failed(RemoteFailure::Unreachable); 4]);
    }
    let stats = client.stats();
    let (_, connection) = stats.connections.values().next().unwrap();
    let problem = connection.problem().unwrap_or_default();
    assert!(problem.starts_with("rdma: RDMA unavailable: "), "{problem}");
    assert_eq!(connection.queue_pairs, Some(0));
}

/// A server without a device, and one that serves no more queue pairs, say the same.
#[test]
fn a_server_without_rdma_is_named() {
    let network = FakeNetwork::new();
    let rdma = kvcache_server::RdmaConfig { usage: kvcache_server::RdmaUsage::Off, ..Default::default() };
    let without = ServerConfig { capacity_bytes: 8 << 20, rdma, threads: Some(2), ..ServerConfig::default() };
    let one = Server::start(without).unwrap();
    let mut client = Client::open(&config(&network, &[&one]), Slots::new(4, 4096));
    assert_eq!(client.put(0..4, 4096), [failed(RemoteFailure::Unreachable); 4]);
    let stats = client.stats();
    let problem = stats.connections.values().next().unwrap().1.problem().unwrap_or_default().to_owned();
    assert!(problem.contains("the server serves no RDMA"), "{problem}");
}

#[test]
fn dropping_a_client_takes_its_memory_out_of_use() {
    let network = FakeNetwork::new();
    let one = plain(&network);
    let slots = Slots::new(8, 4096);
    let kept = Arc::clone(&slots);
    let mut client = Client::open(&config(&network, &[&one]), slots);
    client.register();
    assert_eq!(client.put(0..8, 4096), [DONE; 8]);
    network.allow(Some(0));
    let _never = client.begin(RemoteOp::Get, 0..8, 4096, PATIENCE);
    until("they are posted", || client.stats().client.servers[0].bytes_in_flight > 0);
    drop(client);
    kept.fill(0..8, 0x44);
    network.allow(None);
    until("everything is let go", || network.queue_pairs() == 0 && network.registered_bytes() == 64 << 20);
    assert!((0..8).all(|slot| kept.content(slot) == [0x44; 4096]));
}
