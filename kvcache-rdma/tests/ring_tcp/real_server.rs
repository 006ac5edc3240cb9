//! The same client against the server of this workspace.

use std::path::PathBuf;
use std::time::Duration;

use kvcache_core::BlockKey;
use kvcache_core::remote::{Presence, RemoteFailure, RemoteOutcome};
use kvcache_rdma::members::ServerAddress;
use kvcache_rdma::ring::{RingConfig, RingPresence};
use kvcache_rdma::tcp::{FaultReason, TlsSettings};
use kvcache_server::{Server, ServerConfig, TlsFiles, Token};

use super::{Client, DONE, PATIENCE, SPACE, block, failed, faults, fixed};

fn server(capacity_bytes: u64) -> Server {
    Server::start(ServerConfig { capacity_bytes, threads: Some(2), ..ServerConfig::default() }).unwrap()
}

fn config(servers: &[&Server]) -> RingConfig {
    let address = |server: &&Server| server.address().to_string().parse::<ServerAddress>().unwrap();
    // `ring_local` does the same through shared memory.
    RingConfig { shared_memory: false, ..RingConfig::new(fixed(servers.iter().map(address))) }
}

/// Thousands of transfers from several threads, large and small, with puts, gets, deletes and questions between them.
#[test]
fn a_ring_of_three_under_load() {
    let servers = [server(256 << 20), server(256 << 20), server(256 << 20)];
    let servers: Vec<&Server> = servers.iter().collect();
    std::thread::scope(|scope| {
        for thread in 0..3_u64 {
            let servers = &servers;
            scope.spawn(move || {
                let client = Client::open(&config(servers));
                let mut presence = RingPresence::open(&config(servers)).unwrap();
                presence.set_spaces(&[SPACE]);
                for round in 0..12 {
                    let (count, bytes) =
                        [(200, 4096), (3, 2 << 20), (60, 33_000), (1, 1), (30, 257)][round % 5];
                    let first = (thread + 1) * 1_000_000 + round as u64 * 1000;
                    let numbers = first..first + count;
                    assert_eq!(client.put(numbers.clone(), bytes), vec![DONE; count as usize]);
                    assert_eq!(client.get(numbers.clone(), bytes), vec![DONE; count as usize]);
                    let keys: Vec<BlockKey> = (first..first + 2 * count).map(block).collect();
                    presence.ask(round as u64, &keys, PATIENCE);
                    let mut answers = Vec::new();
                    while answers.is_empty() {
                        presence.wait(PATIENCE);
                        presence.poll(&mut answers);
                    }
                    let present = (0..2 * count).map(|index| index < count).collect::<Vec<_>>();
                    assert_eq!(answers[0].present, present);
                }
                let stats = client.stats();
                let expected = 3 * (200 + 3) + 2 * (60 + 1 + 30);
                assert_eq!((stats.client.put.done, stats.client.get.done), (expected, expected));
                for (_, connections) in stats.connections.values() {
                    assert_eq!(connections.extension, Some(true));
                    assert_eq!(connections.faults.iter().sum::<u64>(), 0, "{:?}", connections.last_fault);
                }
            });
        }
    });
}

#[test]
fn a_server_that_restarts_is_found_again_and_empty() {
    let first = server(64 << 20);
    let address = first.address();
    let mut settings = config(&[&first]);
    settings.client.backoff_min = Duration::from_millis(5);
    settings.client.backoff_max = Duration::from_millis(20);
    let client = Client::open(&settings);
    assert_eq!(client.put(0..20, 100_000), [DONE; 20]);
    first.stop();
    assert!(client.get(0..20, 100_000).iter().all(|outcome| matches!(outcome, RemoteOutcome::Failed(_))));
    let listen = ServerConfig { listen: address, capacity_bytes: 64 << 20, ..ServerConfig::default() };
    let _second = Server::start(listen).unwrap();
    client.until("recovery", |_| client.put(5..6, 100_000) == [DONE]);
    assert_eq!(client.get(0..1, 100_000), [RemoteOutcome::Missing]);
    assert_eq!(client.get(5..6, 100_000), [DONE]);
}

#[test]
fn a_value_larger_than_the_pool_is_refused() {
    let server = server(8 << 20);
    let client = Client::open(&config(&[&server]));
    assert_eq!(client.put(0..1, 16 << 20), [failed(RemoteFailure::Refused)]);
    // More than fits, in turn: the pool forgets, the connection goes on.
    for number in 0..20 {
        assert_eq!(client.put(number..number + 1, 1 << 20), [DONE]);
    }
    assert_eq!(client.get(19..20, 1 << 20), [DONE]);
    assert_eq!(client.get(0..1, 1 << 20), [RemoteOutcome::Missing]);
}

struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn tls_and_a_token_let_in_who_has_both() {
    let folder = Folder(std::env::temp_dir().join(format!("kvcache-ring-tls-{}", std::process::id())));
    std::fs::create_dir_all(&folder.0).unwrap();
    let pair = rcgen::generate_simple_self_signed(["cache.test".to_owned()]).unwrap();
    let files = TlsFiles { certificate: folder.0.join("cert.pem"), key: folder.0.join("key.pem") };
    std::fs::write(&files.certificate, pair.cert.pem()).unwrap();
    std::fs::write(&files.key, pair.signing_key.serialize_pem()).unwrap();
    let ca_file = files.certificate.clone();
    let token = "a token of the tests";
    let server = Server::start(ServerConfig {
        capacity_bytes: 64 << 20,
        token: Some(Token::new(token.as_bytes())),
        tls: Some(files),
        ..ServerConfig::default()
    })
    .unwrap();
    let mut settings = config(&[&server]);
    settings.token = token.to_owned();
    settings.tls = Some(TlsSettings { ca_file, server_name: Some("cache.test".to_owned()) });
    let client = Client::open(&settings);
    for (count, bytes) in [(1, 1), (20, 4000), (4, 3 << 20)] {
        assert_eq!(client.put(0..count, bytes), vec![DONE; count as usize]);
        assert_eq!(client.get(0..count, bytes), vec![DONE; count as usize]);
    }
    // The wrong name, no TLS, the wrong token: each is a fault that says so.
    let mut wrong = settings.clone();
    wrong.tls = settings.tls.clone().map(|tls| TlsSettings { server_name: None, ..tls });
    let client = Client::open(&wrong);
    assert_eq!(client.get(0..1, 1), [failed(RemoteFailure::Unreachable)]);
    assert!(faults(&client.stats(), FaultReason::Tls) > 0);
    wrong.tls = None;
    let client = Client::open(&wrong);
    assert!(matches!(client.get(0..1, 1)[..], [RemoteOutcome::Failed(_)]));
    let mut wrong = settings.clone();
    wrong.token = "another".to_owned();
    let client = Client::open(&wrong);
    assert_eq!(client.get(0..1, 1), [failed(RemoteFailure::Refused)]);
    assert!(faults(&client.stats(), FaultReason::Unauthorized) > 0);
}
