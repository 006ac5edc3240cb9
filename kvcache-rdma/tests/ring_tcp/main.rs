//! The ring's client over real sockets, against servers that behave and servers that do not.

#![allow(clippy::unwrap_used, reason = "helpers of tests, outside of the functions that are marked as such")]

mod fake_server;
mod real_server;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fake_server::{FakeServer, Manner};
use kvcache_core::BlockKey;
use kvcache_core::remote::{
    Presence, PresenceAnswer, RemoteEnd, RemoteFailure, RemoteKey, RemoteOp, RemoteOutcome, RemoteSpace,
    RemoteStore, RemoteTransfer,
};
use kvcache_core::ring_client::BreakerState;
use kvcache_rdma::members::{
    Member, MemberList, MemberSource, Members, PlacementSource, Reading, RefreshConfig, ServerAddress,
    SourceError,
};
use kvcache_rdma::ring::{RingConfig, RingOpenError, RingPresence, RingStore};
use kvcache_rdma::tcp::{FaultReason, RingStats};

const SPACE: RemoteSpace = RemoteSpace([0xab; 16]);
const PATIENCE: Duration = Duration::from_secs(20);

fn address(server: &FakeServer) -> ServerAddress {
    server.address.to_string().parse().unwrap()
}

fn list_of(addresses: impl IntoIterator<Item = ServerAddress>) -> MemberList {
    MemberList::new(addresses.into_iter().map(Member::at).collect()).unwrap()
}

fn fixed(addresses: impl IntoIterator<Item = ServerAddress>) -> Members {
    Members::fixed(list_of(addresses), PlacementSource::Computed).unwrap()
}

fn config(servers: &[&FakeServer]) -> RingConfig {
    RingConfig::new(fixed(servers.iter().map(|server| address(server))))
}

fn block(number: u64) -> BlockKey {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    bytes[8..].copy_from_slice(&number.to_le_bytes());
    BlockKey(bytes)
}

fn pattern(number: u64, bytes: usize) -> Vec<u8> {
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..bytes)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}

/// A store with what its transfers need.
struct Client {
    store: RingStore,
    next: AtomicU64,
}

impl Client {
    fn open(config: &RingConfig) -> Self {
        Self { store: RingStore::open(config).unwrap(), next: AtomicU64::new(1) }
    }

    /// Moves all values and waits for their ends.
    fn run(&self, op: RemoteOp, values: &mut [(u64, Vec<u8>)], patience: Duration) -> Vec<RemoteOutcome> {
        let first = self.next.fetch_add(values.len() as u64, Ordering::SeqCst);
        let batch: Vec<RemoteTransfer> = (first..)
            .zip(values.iter_mut())
            .map(|(ticket, (number, value))| RemoteTransfer {
                ticket,
                op,
                key: RemoteKey { space: SPACE, block: block(*number) },
                address: value.as_mut_ptr() as usize,
                bytes: value.len(),
            })
            .collect();
        // SAFETY: the values are borrowed exclusively until all ends were polled, below.
        unsafe { self.store.submit(&batch, patience) };
        let mut outcomes = vec![None; values.len()];
        let mut ends: Vec<RemoteEnd> = Vec::new();
        let give_up = Instant::now() + patience + Duration::from_secs(60);
        while outcomes.iter().any(Option::is_none) {
            assert!(Instant::now() < give_up, "transfers never end");
            self.store.wait(Duration::from_secs(1));
            self.store.poll(&mut ends);
            for end in ends.drain(..) {
                let place = &mut outcomes[(end.ticket - first) as usize];
                assert_eq!(place.replace(end.outcome), None, "ends once");
            }
        }
        outcomes.into_iter().flatten().collect()
    }

    fn put(&self, numbers: std::ops::Range<u64>, bytes: usize) -> Vec<RemoteOutcome> {
        let mut values: Vec<_> = numbers.map(|number| (number, pattern(number, bytes))).collect();
        self.run(RemoteOp::Put, &mut values, PATIENCE)
    }

    fn get(&self, numbers: std::ops::Range<u64>, bytes: usize) -> Vec<RemoteOutcome> {
        let mut values: Vec<_> = numbers.map(|number| (number, vec![0xee; bytes])).collect();
        let outcomes = self.run(RemoteOp::Get, &mut values, PATIENCE);
        for ((number, value), outcome) in values.iter().zip(&outcomes) {
            if *outcome == RemoteOutcome::Done {
                assert!(*value == pattern(*number, bytes), "other bytes than were put");
            }
        }
        outcomes
    }

    fn stats(&self) -> RingStats {
        self.store.stats()
    }

    /// Waits until `true`: for what follows from time alone, as a probe does.
    fn until(&self, what: &str, mut is_so: impl FnMut(&RingStats) -> bool) {
        let give_up = Instant::now() + Duration::from_secs(60);
        while !is_so(&self.stats()) {
            assert!(Instant::now() < give_up, "{what} never happens: {:#?}", self.stats());
            std::thread::yield_now();
        }
    }
}

fn faults(stats: &RingStats, reason: FaultReason) -> u64 {
    stats.connections.values().map(|(_, server)| server.faults[reason as usize]).sum()
}

const DONE: RemoteOutcome = RemoteOutcome::Done;

fn failed(reason: RemoteFailure) -> RemoteOutcome {
    RemoteOutcome::Failed(reason)
}

#[test]
fn bytes_come_back_as_they_were_put() {
    for manner in [Manner::Good, Manner::Stock] {
        let servers: Vec<FakeServer> = (0..3).map(|_| FakeServer::start(manner)).collect();
        let servers: Vec<&FakeServer> = servers.iter().collect();
        let client = Client::open(&config(&servers));
        let sizes = [(1, 1), (2, 15), (3, 4096), (300, 777), (40, 70_000), (6, 3 << 20)];
        let mut first = 0;
        for (count, bytes) in sizes {
            let numbers = first..first + count;
            first += count;
            assert_eq!(client.get(numbers.clone(), bytes), vec![RemoteOutcome::Missing; count as usize]);
            assert_eq!(client.put(numbers.clone(), bytes), vec![DONE; count as usize]);
            assert_eq!(client.get(numbers.clone(), bytes), vec![DONE; count as usize]);
            // Another length than was put is no hit.
            for other in [bytes + 1, bytes - 1].into_iter().filter(|bytes| *bytes > 0) {
                assert_eq!(
                    client.get(numbers.clone(), other)[0],
                    failed(RemoteFailure::Corrupt),
                    "{manner:?}"
                );
            }
        }
        assert!(servers.iter().all(|server| server.stored() > 50), "all have a share");
        let mut some: Vec<_> = (0..6).map(|number| (number, Vec::new())).collect();
        assert_eq!(client.run(RemoteOp::Delete, &mut some, PATIENCE), [DONE; 6]);
        assert_eq!(client.run(RemoteOp::Delete, &mut some, PATIENCE), [RemoteOutcome::Missing; 6]);
        assert_eq!(client.get(3..6, 4096), [RemoteOutcome::Missing; 3]);
        let stats = client.stats();
        for (_, server) in stats.connections.values() {
            assert_eq!(server.extension, Some(manner == Manner::Good));
            assert_eq!(server.faults.iter().sum::<u64>(), 0, "{:?}", server.last_fault);
        }
        assert_eq!(stats.client.transfers_open, 0);
    }
}

#[test]
fn small_values_travel_in_batches() {
    let server = FakeServer::start(Manner::Good);
    let client = Client::open(&config(&[&server]));
    assert_eq!(client.put(0..200, 1000), [DONE; 200]);
    assert_eq!(client.get(0..200, 1000), [DONE; 200]);
    assert!(server.frames() <= 4, "{} requests", server.frames());
}

#[test]
fn presence_is_answered_for_every_shard() {
    for manner in [Manner::Good, Manner::Stock] {
        let servers = [FakeServer::start(manner), FakeServer::start(manner)];
        let servers: Vec<&FakeServer> = servers.iter().collect();
        let client = Client::open(&config(&servers));
        client.put(0..40, 10);
        let mut presence = RingPresence::open(&config(&servers)).unwrap();
        let keys: Vec<BlockKey> = (20..60).map(block).collect();
        let mut ask = |question, spaces: &[RemoteSpace]| {
            presence.set_spaces(spaces);
            presence.ask(question, &keys, PATIENCE);
            let mut answers = Vec::new();
            while answers.is_empty() {
                presence.wait(Duration::from_secs(1));
                presence.poll(&mut answers);
            }
            answers
        };
        let present: Vec<bool> = (20..60).map(|number| number < 40).collect();
        assert_eq!(ask(1, &[SPACE]), [PresenceAnswer { question: 1, present }]);
        let answer = ask(2, &[SPACE, RemoteSpace([1; 16])]);
        assert_eq!(answer, [PresenceAnswer { question: 2, present: vec![false; 40] }]);
        // One question is one request a server.
        if manner == Manner::Good {
            let frames: usize = servers.iter().map(|server| server.frames()).sum();
            ask(3, &[SPACE]);
            let after: usize = servers.iter().map(|server| server.frames()).sum();
            assert_eq!(after - frames, 2);
        }
    }
}

/// Whatever a peer does costs its connection, with a reason that is counted; everything ends, and nothing is a wrong hit.
#[test]
fn a_peer_that_misbehaves_costs_only_its_connection() {
    for (manner, outcome, reason) in [
        (Manner::WebServer, RemoteFailure::Unreachable, FaultReason::Malformed),
        (Manner::Unasked, RemoteFailure::Unreachable, FaultReason::Malformed),
        (Manner::LongBody, RemoteFailure::Unreachable, FaultReason::Malformed),
        (Manner::LongValue, RemoteFailure::Unreachable, FaultReason::Malformed),
        (Manner::CloseInValue, RemoteFailure::Unreachable, FaultReason::Lost),
    ] {
        let server = FakeServer::start(Manner::Good);
        let good = FakeServer::start(Manner::Good);
        let mut client = Client::open(&config(&[&server]));
        assert_eq!(client.put(0..3, 100_000), [DONE; 3]);
        server.set_manner(manner);
        if manner == Manner::WebServer {
            client = Client::open(&config(&[&server]));
        }
        assert_eq!(client.get(0..1, 100_000), [failed(outcome)], "{manner:?}");
        assert!(faults(&client.stats(), reason) > 0, "{manner:?}: {:?}", client.stats().connections);
        // Others notice nothing, and the server is used again when it behaves.
        let other = Client::open(&config(&[&good]));
        assert_eq!(other.put(0..1, 100), [DONE]);
        server.set_manner(Manner::Good);
        client.until("recovery", |_| client.get(0..3, 100_000) == [DONE; 3]);
    }
}

#[test]
fn damaged_values_are_never_hits() {
    for (before, manner) in [(Manner::Good, Manner::Damage), (Manner::Good, Manner::NoChecksum)] {
        let server = FakeServer::start(before);
        let client = Client::open(&config(&[&server]));
        assert_eq!(client.put(0..5, 10_000), [DONE; 5]);
        server.set_manner(manner);
        let outcomes = client.get(0..1, 10_000);
        assert_eq!(outcomes, [failed(RemoteFailure::Corrupt)], "{manner:?}");
        server.set_manner(Manner::Good);
        assert_eq!(client.get(0..5, 10_000), [DONE; 5], "the connection goes on");
        assert_eq!(server.connections(), 1);
    }
    // The same without the extension.
    let server = FakeServer::start(Manner::Stock);
    let mut settings = config(&[&server]);
    settings.connections = 1;
    let client = Client::open(&settings);
    assert_eq!(client.put(0..5, 10_000), [DONE; 5]);
    server.set_manner(Manner::Damage);
    assert_eq!(client.get(0..5, 10_000), [failed(RemoteFailure::Corrupt); 5]);
    assert_eq!(server.connections(), 1);
}

#[test]
fn a_full_server_refuses_and_goes_on() {
    for before in [Manner::Good, Manner::Stock] {
        let server = FakeServer::start(before);
        let client = Client::open(&config(&[&server]));
        assert_eq!(client.put(0..1, 1000), [DONE]);
        server.set_manner(Manner::Full);
        let refused = failed(RemoteFailure::Refused);
        // Small, so that a stock server has answered when all of it has left; and large.
        assert_eq!(client.put(1..3, 10), [refused; 2], "{before:?}");
        if before == Manner::Good {
            assert_eq!(client.put(1..3, 1 << 20), [refused; 2]);
        }
        server.set_manner(before);
        client.until("recovery", |_| client.put(1..3, 1000) == [DONE; 2]);
        assert_eq!(client.get(0..3, 1000), [DONE; 3], "{before:?}");
    }
}

#[test]
fn an_answer_before_the_value_has_left_ends_the_connection() {
    let server = FakeServer::start(Manner::EarlyAnswer);
    let client = Client::open(&config(&[&server]));
    // Larger than what the sockets hold.
    assert_eq!(client.put(0..1, 60 << 20), [failed(RemoteFailure::Unreachable)]);
    assert_eq!(faults(&client.stats(), FaultReason::Malformed), 1);
}

#[test]
fn a_wrong_token_is_refused_and_said() {
    let server = FakeServer::start_with(Manner::Good, b"right", 0);
    let mut settings = config(&[&server]);
    settings.token = "wrong".to_owned();
    let client = Client::open(&settings);
    assert_eq!(client.put(0..1, 10), [failed(RemoteFailure::Refused)]);
    let stats = client.stats();
    assert_eq!(faults(&stats, FaultReason::Unauthorized), 1);
    assert_eq!(stats.client.servers[0].breaker, BreakerState::Open, "to ask on would be in vain");
    settings.token = "right".to_owned();
    assert_eq!(Client::open(&settings).put(0..1, 10), [DONE]);
}

/// A server that takes connections and answers nothing: one timeout, then misses at once, then a probe finds it well.
#[test]
fn a_stopped_server_costs_one_timeout() {
    for (before, manner, reason) in [
        (Manner::Mute, Manner::Mute, FaultReason::Timeout),
        (Manner::Good, Manner::MuteAfterHello, FaultReason::Stalled),
    ] {
        let server = FakeServer::start(before);
        let mut settings = config(&[&server]);
        settings.connect_timeout = Duration::from_millis(200);
        settings.client.silence_max = Duration::from_millis(200);
        settings.client.backoff_min = Duration::from_millis(50);
        settings.client.backoff_max = Duration::from_millis(100);
        let client = Client::open(&settings);
        if before == Manner::Good {
            assert_eq!(client.put(0..3, 1000), [DONE; 3]);
            server.set_manner(manner);
        }
        let outcomes = client.get(0..3, 1000);
        assert!(outcomes.iter().all(|outcome| *outcome == failed(RemoteFailure::TimedOut)), "{outcomes:?}");
        client.until("the breaker", |stats| stats.client.servers[0].breaker != BreakerState::Closed);
        let misses = client.get(0..50, 1000);
        assert_eq!(misses, [failed(RemoteFailure::Unreachable); 50], "at once");
        client.until("the fault", |stats| faults(stats, reason) > 0);
        server.set_manner(Manner::Good);
        // The mute connection ends, or its probe would wait there.
        client.until("recovery", |stats| stats.client.servers[0].breaker == BreakerState::Closed);
        assert_eq!(client.put(0..3, 1000), [DONE; 3]);
    }
}

/// New requests go out all the time, and what goes out is no sign of life.
#[test]
fn a_stopped_server_is_noticed_while_it_is_asked_on() {
    let server = FakeServer::start(Manner::Good);
    let mut settings = config(&[&server]);
    settings.client.silence_max = Duration::from_millis(200);
    // By its silence, not by the requests that it fails.
    settings.client.failures_max = u32::MAX;
    let client = Client::open(&settings);
    assert_eq!(client.put(0..3, 1000), [DONE; 3]);
    server.set_manner(Manner::MuteAfterHello);
    // Each is followed by others before its time is up.
    let mut values = vec![[0; 1000]; 40];
    let mut free: Vec<u64> = (0..40).collect();
    let (mut ends, mut last) = (Vec::new(), Instant::now());
    client.until("the breaker", |stats| {
        if last.elapsed() >= Duration::from_millis(4)
            && let Some(ticket) = free.pop()
        {
            last = Instant::now();
            let address = values[ticket as usize].as_mut_ptr() as usize;
            let key = RemoteKey { space: SPACE, block: block(ticket) };
            let get = RemoteTransfer { ticket, op: RemoteOp::Get, key, address, bytes: 1000 };
            // SAFETY: the value is used by nobody until its end was polled, and lives longer than the client's thread.
            unsafe { client.store.submit(&[get], Duration::from_millis(100)) };
        }
        client.store.poll(&mut ends);
        free.extend(ends.drain(..).map(|end| end.ticket));
        stats.client.servers[0].breaker != BreakerState::Closed
    });
    let frames = server.frames();
    assert!(frames < 150, "{frames} requests before it was noticed, one in 4 ms: fewer on a slow machine");
    drop(client);
    drop(values);
}

/// Nobody waits for a server that welcomes its clients and leaves, and it is not called in a loop.
#[test]
fn a_server_that_closes_after_the_hello_is_a_miss() {
    let server = FakeServer::start(Manner::CloseAfterHello);
    let client = Client::open(&config(&[&server]));
    for _ in 0..20 {
        assert_eq!(client.get(0..3, 1000), [failed(RemoteFailure::Unreachable); 3]);
    }
    let connections = server.connections();
    assert!(connections < 100, "{connections} connections for 20 requests");
    server.set_manner(Manner::Good);
    client.until("recovery", |_| client.put(0..3, 1000) == [DONE; 3]);
}

/// Servers die in the middle of transfers, again and again; what is done is right, and all of it ends.
#[test]
fn servers_are_killed_in_the_middle() {
    let server = FakeServer::start(Manner::Good);
    let survivor = FakeServer::start(Manner::Good);
    let mut settings = config(&[&server, &survivor]);
    settings.client.backoff_min = Duration::from_millis(1);
    settings.client.backoff_max = Duration::from_millis(5);
    let client = Client::open(&settings);
    let (mut done, mut not_done) = (0, 0);
    std::thread::scope(|scope| {
        let killer = scope.spawn(|| {
            for round in 0..60 {
                let frames = server.frames();
                let give_up = Instant::now() + Duration::from_secs(20);
                while server.frames() < frames + 1 + round % 4 && Instant::now() < give_up {
                    std::thread::yield_now();
                }
                server.disconnect();
            }
        });
        let mut round = 0;
        while !killer.is_finished() {
            let numbers = round % 7 * 20..round % 7 * 20 + 20;
            for outcome in client.put(numbers.clone(), 200_000).iter().chain(&client.get(numbers, 200_000)) {
                match outcome {
                    RemoteOutcome::Done => done += 1,
                    _ => not_done += 1,
                }
            }
            round += 1;
        }
    });
    assert!(done > 20 && not_done > 20, "{done} done, {not_done} not: the test says little");
    client.until("recovery", |_| client.put(0..20, 1000) == [DONE; 20]);
}

#[test]
fn replicas_survive_a_death() {
    let servers =
        [FakeServer::start(Manner::Good), FakeServer::start(Manner::Good), FakeServer::start(Manner::Good)];
    let mut settings = config(&servers.iter().collect::<Vec<_>>());
    settings.client.replicas = 2;
    let client = Client::open(&settings);
    assert_eq!(client.put(0..60, 5000), [DONE; 60]);
    assert_eq!(servers.iter().map(FakeServer::stored).sum::<usize>(), 120);
    servers[0].kill();
    assert_eq!(client.get(0..60, 5000), [DONE; 60]);
    assert_eq!(client.put(60..80, 5000), [DONE; 20]);
}

/// Members that a test changes.
#[derive(Clone)]
struct Changing(Arc<Mutex<Option<MemberList>>>);

impl Changing {
    fn set(&self, servers: &[&FakeServer]) {
        *self.0.lock().unwrap() = Some(list_of(servers.iter().map(|server| address(server))));
    }
}

impl MemberSource for Changing {
    fn read(&mut self) -> Result<Reading, SourceError> {
        Ok(self.0.lock().unwrap().take().map_or(Reading::Unchanged, Reading::List))
    }
}

#[test]
fn members_change_under_load() {
    let servers: Vec<FakeServer> = (0..4).map(|_| FakeServer::start(Manner::Good)).collect();
    let servers: Vec<&FakeServer> = servers.iter().collect();
    let changing = Changing(Arc::default());
    changing.set(&servers[..3]);
    let often = RefreshConfig {
        interval: Duration::from_millis(5),
        ..RefreshConfig::for_file(PlacementSource::Computed, 0)
    };
    let members = Members::watch(changing.clone(), often).unwrap();
    assert!(members.wait_until(PATIENCE, |status| status.generation == 1));
    let client = Client::open(&RingConfig::new(members.clone()));
    assert_eq!(client.put(0..30, 20_000), [DONE; 30]);
    let mut last = HashMap::new();
    for (round, ring) in [&servers[..4], &servers[1..3], &[], &servers[..1], &servers[..4]].iter().enumerate()
    {
        changing.set(ring);
        // Until the client has noticed, transfers go by the old table: all of them end well but for no members at all.
        client.until("the change", |stats| {
            let outcomes = client.put(0..30, 20_000);
            let done = outcomes.iter().filter(|outcome| **outcome == DONE).count();
            let empty =
                outcomes.iter().filter(|outcome| **outcome == failed(RemoteFailure::Unreachable)).count();
            assert_eq!(done + empty, 30, "{outcomes:?}");
            stats.member_changes > round as u64
        });
        let expected = if ring.is_empty() { failed(RemoteFailure::Unreachable) } else { DONE };
        assert_eq!(client.put(0..30, 20_000), [expected; 30]);
        assert_eq!(client.get(0..30, 20_000), [expected; 30]);
        last = client.stats().connections;
    }
    assert_eq!(last.len(), 4);
}

#[test]
fn cancelled_and_late_transfers_let_go_of_their_memory() {
    for manner in [Manner::Good, Manner::Stock] {
        let server = FakeServer::start(manner);
        let client = Client::open(&config(&[&server]));
        assert_eq!(client.put(0..8, 300_000), [DONE; 8]);
        server.hold();
        // With no answer in time they end, and a late answer is thrown away.
        let mut values: Vec<_> = (0..8).map(|number| (number, vec![7; 300_000])).collect();
        let outcomes = client.run(
            RemoteOp::Get,
            &mut values,
            Duration::from_millis(if manner == Manner::Good { 30 } else { 0 }),
        );
        assert_eq!(outcomes, [failed(RemoteFailure::TimedOut); 8]);
        values.iter_mut().for_each(|(_, value)| value.fill(8));
        // Large puts that are stuck are copied out of their memory, or their connection ends.
        let mut large: Vec<_> = (10..13).map(|number| (number, vec![9; 3 << 20])).collect();
        let outcomes = client.run(RemoteOp::Put, &mut large, Duration::from_millis(30));
        assert!(manner == Manner::Stock || outcomes.iter().all(|outcome| *outcome != DONE));
        large.iter_mut().for_each(|(_, value)| value.fill(1));
        server.release();
        client.until("recovery", |_| client.get(0..8, 300_000) == [DONE; 8]);
        assert!(
            values.iter().all(|(_, value)| value.iter().all(|byte| *byte == 8)),
            "a late answer was written"
        );
    }
}

#[test]
fn cancelling_ends_transfers_early() {
    let server = FakeServer::start(Manner::Good);
    let client = Client::open(&config(&[&server]));
    assert_eq!(client.put(0..4, 1000), [DONE; 4]);
    server.hold();
    let mut values: Vec<Vec<u8>> = vec![vec![0; 1000]; 4];
    let batch: Vec<RemoteTransfer> = (0..)
        .zip(&mut values)
        .map(|(number, value)| RemoteTransfer {
            ticket: 1000 + number,
            op: RemoteOp::Get,
            key: RemoteKey { space: SPACE, block: block(number) },
            address: value.as_mut_ptr() as usize,
            bytes: 1000,
        })
        .collect();
    // SAFETY: `values` lives until all four have ended, below.
    unsafe { client.store.submit(&batch, PATIENCE) };
    client.store.cancel(&[1000, 1001, 1002, 1003]);
    let mut ends = Vec::new();
    while ends.len() < 4 {
        client.store.wait(PATIENCE);
        client.store.poll(&mut ends);
    }
    assert!(ends.iter().all(|end| end.outcome == failed(RemoteFailure::Cancelled)), "{ends:?}");
    server.release();
    assert_eq!(client.get(0..4, 1000), [DONE; 4], "the connection goes on");
    assert_eq!(server.connections(), 1);
}

#[test]
fn dropping_a_client_takes_its_memory_out_of_use() {
    let server = FakeServer::start(Manner::Good);
    let client = Client::open(&config(&[&server]));
    assert_eq!(client.put(0..1, 1 << 20), [DONE]);
    server.hold();
    let mut value = vec![3_u8; 1 << 20];
    let wanted = RemoteTransfer {
        ticket: 99,
        op: RemoteOp::Get,
        key: RemoteKey { space: SPACE, block: block(0) },
        address: value.as_mut_ptr() as usize,
        bytes: value.len(),
    };
    // SAFETY: `value` outlives the client.
    unsafe { client.store.submit(&[wanted], PATIENCE) };
    drop(client);
    value.fill(4);
    server.release();
    assert!(value.iter().all(|byte| *byte == 4));
}

#[test]
fn a_name_that_does_not_resolve_is_a_miss() {
    let nowhere: ServerAddress = "no-such-host.invalid:1".parse().unwrap();
    let client = Client::open(&RingConfig::new(fixed([nowhere])));
    assert_eq!(client.get(0..1, 10), [failed(RemoteFailure::Unreachable)]);
    assert!(faults(&client.stats(), FaultReason::Unreachable) > 0);
    // And one that does is found.
    let server = FakeServer::start(Manner::Good);
    let named: ServerAddress = format!("localhost:{}", server.address.port()).parse().unwrap();
    let client = Client::open(&RingConfig::new(fixed([named])));
    client.until("a connection", |_| client.put(0..1, 10) == [DONE]);
}

#[test]
fn settings_that_cannot_work_are_named() {
    let server = FakeServer::start(Manner::Good);
    let good = config(&[&server]);
    let error = |change: &dyn Fn(&mut RingConfig)| {
        let mut bad = good.clone();
        change(&mut bad);
        RingStore::open(&bad).err().map(|error: RingOpenError| error.to_string()).unwrap()
    };
    assert_eq!(error(&|it| it.client.replicas = 5), "replicas is 5: use 1 to 4");
    assert_eq!(error(&|it| it.connections = 0), "connections is 0: use 1 to 31 for each server");
    assert_eq!(error(&|it| it.token = "x".repeat(5000)), "the token has 5000 bytes: use one of at most 4096");
    assert!(error(&|it| it.connect_timeout = Duration::ZERO).starts_with("connect_timeout is 0"));
}
