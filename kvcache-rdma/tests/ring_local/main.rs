//! The ring's client and servers on the same host: values move through shared memory, whatever happens to either side.

#![allow(clippy::unwrap_used, reason = "helpers of tests, outside of the functions that are marked as such")]

mod client;
mod processes;

use std::os::unix::fs::FileExt;
use std::time::Duration;

use kvcache_core::remote::{Presence, RemoteFailure, RemoteOp, RemoteOutcome};
use kvcache_rdma::ring::{RingConfig, RingPresence};
use kvcache_server::{Server, ServerConfig, Token};

use client::{Client, DONE, PATIENCE, SPACE, block, config, key, pattern};

fn server(change: impl FnOnce(&mut ServerConfig)) -> Server {
    let mut config = ServerConfig { capacity_bytes: 64 << 20, threads: Some(2), ..ServerConfig::default() };
    change(&mut config);
    Server::start(config).unwrap()
}

fn metric(server: &Server, name: &str) -> u64 {
    let name = format!("kvcache_server_{name}");
    let text = server.metrics();
    text.lines().find_map(|line| line.strip_prefix(&name)?.strip_prefix(' ')).unwrap().parse().unwrap()
}

/// A client that shares memory with its server already.
fn local(server: &Server) -> Client {
    let client = Client::open(&config(server.address()));
    client.until_local();
    client
}

const MISSING: RemoteOutcome = RemoteOutcome::Missing;

#[test]
fn values_move_without_being_sent() {
    let server = server(|_| {});
    let client = local(&server);
    for (index, bytes) in [1, 240, 241, 4096, 33_000, 1 << 20, (2 << 20) + 13].into_iter().enumerate() {
        let first = 100 * index as u64;
        assert_eq!(client.put(first..first + 3, bytes), [DONE; 3]);
        assert_eq!(client.get(first..first + 4, bytes), [DONE, DONE, DONE, MISSING]);
    }
    let sum = 3 * (1 + 240 + 241 + 4096 + 33_000 + (1 << 20) + (2 << 20) + 13);
    assert_eq!(
        (metric(&server, "shared_written_bytes_total"), metric(&server, "shared_read_bytes_total")),
        (sum, sum)
    );
    assert_eq!((metric(&server, "received_bytes_total"), metric(&server, "sent_bytes_total")), (0, 0));
    // A value of another length than is wanted is not the one.
    assert_eq!(client.get(0..1, 2), [RemoteOutcome::Failed(RemoteFailure::Corrupt)]);
    assert_eq!(client.get(100..101, 239), [RemoteOutcome::Failed(RemoteFailure::Corrupt)]);
    // Overwriting, deleting.
    let mut other = [(100, pattern(7, 240))];
    assert_eq!(client.run(RemoteOp::Put, &mut other, PATIENCE), [DONE]);
    let mut got = [(100, vec![0; 240])];
    assert_eq!(client.run(RemoteOp::Get, &mut got, PATIENCE), [DONE]);
    assert!(got[0].1 == pattern(7, 240));
    let mut names = [(100, Vec::new()), (104, Vec::new())];
    assert_eq!(client.run(RemoteOp::Delete, &mut names, PATIENCE), [DONE, MISSING]);
    assert_eq!(client.get(100..101, 240), [MISSING]);
    // Everything was given back.
    server.store().purge();
    client.until("the pool is empty", |_| metric(&server, "used_bytes") == 0);
    assert_eq!(metric(&server, "leases_expired_total"), 0, "leases were forgotten");
}

#[test]
fn presence_is_asked_over_the_same_socket() {
    let server = server(|_| {});
    assert_eq!(local(&server).put(0..16, 1000), [DONE; 16]);
    let mut presence = RingPresence::open(&config(server.address())).unwrap();
    presence.set_spaces(&[SPACE]);
    let keys: Vec<_> = (8..40).map(block).collect();
    for question in 0..100 {
        presence.ask(question, &keys, PATIENCE);
        let mut answers = Vec::new();
        while answers.is_empty() {
            presence.wait(PATIENCE);
            presence.poll(&mut answers);
        }
        assert_eq!(answers[0].present, (8..40).map(|number| number < 16).collect::<Vec<_>>());
    }
    assert!(presence.stats().connections.values().all(|(_, connection)| connection.shared_memory));
}

#[test]
fn either_side_can_do_without() {
    let shared = server(|_| {});
    let off = RingConfig { shared_memory: false, ..config(shared.address()) };
    let sent = server(|config| config.shared_memory = false);
    for (server, config) in [(&shared, off), (&sent, config(sent.address()))] {
        let client = Client::open(&config);
        for round in 0..10 {
            assert_eq!(client.put(round..round + 1, 5000), [DONE]);
            assert_eq!(client.get(round..round + 1, 5000), [DONE]);
        }
        assert_eq!(
            (metric(server, "shared_written_bytes_total"), metric(server, "sent_bytes_total")),
            (0, 50_000)
        );
        assert!(client.stats().connections.values().all(|(_, stats)| stats.faults.iter().sum::<u64>() == 0));
    }
}

/// Two servers with one port on two addresses: the Unix socket is one server's only, and leads nobody else astray.
#[test]
fn another_servers_socket_is_not_used() {
    let first = server(|config| config.shared_memory = false);
    let mut address = first.address();
    address.set_ip("127.0.0.2".parse().unwrap());
    let second = server(|config| config.listen = address);
    let (one, other) = (Client::open(&config(first.address())), local(&second));
    assert_eq!(other.put(0..8, 1000), [DONE; 8]);
    for number in 0..8 {
        assert_eq!(one.get(number..number + 1, 1000), [MISSING], "it went to the other server");
    }
    assert_eq!(one.put(0..8, 2000), [DONE; 8]);
    assert_eq!((first.store().stats().value_bytes, second.store().stats().value_bytes), (16_000, 8000));
    assert!(!one.stats().connections.values().any(|(_, connection)| connection.shared_memory));
}

#[test]
fn the_token_is_needed_here_too() {
    let server = server(|config| config.token = Some(Token::new(b"0123456789abcdef")));
    let right = RingConfig { token: "0123456789abcdef".to_owned(), ..config(server.address()) };
    let client = Client::open(&right);
    client.until_local();
    assert_eq!(client.put(0..1, 100), [DONE]);
    let wrong = RingConfig { token: "0123456789abcdeF".to_owned(), ..right };
    let client = Client::open(&wrong);
    assert!(matches!(client.get(0..1, 100)[..], [RemoteOutcome::Failed(_)]));
    assert!(!client.stats().connections.values().any(|(_, connection)| connection.shared_memory));
}

#[test]
fn a_damaged_byte_is_found_wherever_it_is() {
    let server = server(|_| {});
    let client = local(&server);
    for bytes in [1, 200, 1024, 5000, 100_000] {
        for at in [0, bytes / 2, bytes - 1] {
            assert_eq!(client.put(0..1, bytes), [DONE]);
            let value = server.store().get(&key(0).name()).unwrap();
            let pool = std::fs::File::from(server.store().pool().file().try_clone_to_owned().unwrap());
            let place = value.offset_bytes() + at as u64;
            pool.write_all_at(&[value.bytes()[at] ^ 1], place).unwrap();
            assert_eq!(
                client.get(0..1, bytes),
                [RemoteOutcome::Failed(RemoteFailure::Corrupt)],
                "{at} of {bytes}"
            );
            pool.write_all_at(&[value.bytes()[at] ^ 1], place).unwrap();
            assert_eq!(client.get(0..1, bytes), [DONE]);
        }
    }
}

/// Batches far larger than the room that a connection may hold, and than the pool.
#[test]
fn a_small_pool_takes_what_it_can() {
    let server = server(|config| config.capacity_bytes = 8 << 20);
    let client = local(&server);
    assert_eq!(client.put(0..64, 100_000), [DONE; 64]);
    assert_eq!(client.get(0..64, 100_000), [DONE; 64]);
    assert!(client.put(100..400, 100_000).iter().all(|outcome| *outcome == DONE));
    assert!(
        client
            .get(0..400, 100_000)
            .iter()
            .all(|outcome| matches!(outcome, RemoteOutcome::Done | RemoteOutcome::Missing))
    );
    assert_eq!(client.put(500..502, 3 << 20), [DONE; 2]);
    assert_eq!(client.put(600..601, 9 << 20), [RemoteOutcome::Failed(RemoteFailure::Refused)]);
    server.store().purge();
    client.until("the pool is empty", |_| metric(&server, "used_bytes") == 0);
    assert_eq!(metric(&server, "leases_expired_total"), 0, "leases were forgotten");
}

/// Transfers that nobody waits for any more end, and leave nothing behind.
#[test]
fn abandoned_transfers_give_everything_back() {
    let server = server(|_| {});
    let client = local(&server);
    assert_eq!(client.put(0..16, 1 << 20), [DONE; 16]);
    for round in 0..50_u32 {
        for op in [RemoteOp::Get, RemoteOp::Put] {
            let mut values: Vec<_> = (0..16).map(|number| (number, pattern(number, 1 << 20))).collect();
            for outcome in client.run_cancelling(op, &mut values, round % 17, 3) {
                let cancelled = RemoteOutcome::Failed(RemoteFailure::Cancelled);
                assert!(outcome == DONE || outcome == cancelled, "{outcome:?}");
            }
        }
    }
    assert_eq!(client.get(0..16, 1 << 20), [DONE; 16]);
    server.store().purge();
    client.until("the pool is empty", |_| metric(&server, "used_bytes") == 0);
    assert_eq!(metric(&server, "leases_expired_total"), 0, "leases were forgotten");
}

/// The same, when nothing follows that would take the words along.
#[test]
fn what_is_abandoned_is_given_back_at_once() {
    let server = server(|_| {});
    let client = local(&server);
    for round in 0..8_u32 {
        for op in [RemoteOp::Put, RemoteOp::Get] {
            let mut values: Vec<_> = (0..16).map(|number| (number, pattern(number, 1 << 20))).collect();
            client.run_cancelling(op, &mut values, 11 * round, 1);
            client.until("the pool is empty", |_| {
                server.store().purge();
                metric(&server, "used_bytes") == 0
            });
        }
    }
    assert_eq!(metric(&server, "leases_expired_total"), 0, "leases were forgotten");
}

/// Servers close what nobody uses: that says nothing about them.
#[test]
fn an_unused_connection_that_is_closed_is_no_fault() {
    let server = server(|config| config.timeouts.idle = Some(Duration::from_millis(50)));
    let mut settings = config(server.address());
    settings.client.failures_max = 1;
    let client = Client::open(&settings);
    for number in 0..3 {
        client.until_local();
        assert_eq!(client.put(number..number + 1, 1000), [DONE]);
        client.until("all connections are closed", |stats| {
            stats.connections.values().all(|(_, connection)| connection.open == 0)
        });
        let stats = client.stats();
        assert!(stats.client.servers.iter().all(|server| server.opened == 0), "{stats:#?}");
    }
}

#[test]
fn a_server_that_comes_back_is_mapped_again() {
    let first = server(|_| {});
    let address = first.address();
    let client = local(&first);
    assert_eq!(client.put(0..8, 100_000), [DONE; 8]);
    first.stop();
    let second = server(|config| config.listen = address);
    client.until_served(|| client.put(0..1, 10)[0] == DONE);
    client.until_local();
    assert_eq!(client.get(1..8, 100_000), [MISSING; 7]);
    assert_eq!(client.put(0..8, 100_000), [DONE; 8]);
    assert_eq!(client.get(0..8, 100_000), [DONE; 8]);
    assert!(metric(&second, "shared_read_bytes_total") >= 800_000);
}
