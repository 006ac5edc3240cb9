//! What the benches of the ring's client have in common: servers, transfers, and rows of a table.

use std::fmt::Display;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use kvcache_core::BlockKey;
use kvcache_core::remote::{
    Presence, RemoteKey, RemoteOp, RemoteOutcome, RemoteSpace, RemoteStore, RemoteTransfer,
};
use kvcache_rdma::members::{Member, MemberList, Members, PlacementSource};
use kvcache_rdma::ring::{RingConfig, RingPresence, RingStore};
use kvcache_rdma::tcp::RingStats;
use kvcache_server::{Server, ServerConfig};

/// Bytes of all values of a round.
pub(crate) const VALUES_BYTES: usize = 128 << 20;
const PAGE_BYTES: usize = 4096;
const SPACE: RemoteSpace = RemoteSpace([7; 16]);
const PATIENCE: Duration = Duration::from_secs(30);

/// Begins the table; false under `cargo test`, which runs benches as well: then it is enough that they build.
pub(crate) fn begin() -> bool {
    let is_bench = std::env::args().any(|argument| argument == "--bench");
    if is_bench {
        println!("| what | median | quartiles | target | load |\n|---|---|---|---|---|");
    }
    is_bench
}

pub(crate) fn server() -> Server {
    Server::start(ServerConfig { capacity_bytes: 512 << 20, threads: Some(2), ..ServerConfig::default() })
        .expect("a server")
}

/// A ring of these.
pub(crate) fn config(servers: &[&Server]) -> RingConfig {
    let member = |server: &&Server| Member::at(server.address().to_string().parse().expect("an address"));
    let list = MemberList::new(servers.iter().map(member).collect()).expect("members");
    RingConfig::new(Members::fixed(list, PlacementSource::Computed).expect("members"))
}

/// Memory for values, aligned as slots are.
pub(crate) struct Values {
    memory: Vec<u8>,
    bytes: usize,
}

impl Values {
    pub(crate) fn new(bytes: usize) -> Self {
        Self { memory: vec![0x5a; bytes + PAGE_BYTES], bytes }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        let start = self.memory.as_ptr().align_offset(PAGE_BYTES);
        &mut self.memory[start..start + self.bytes]
    }
}

/// Moves all of `values`, in pieces of `bytes`, and waits for it.
pub(crate) fn transfer(store: &RingStore, op: RemoteOp, bytes: usize, values: &mut [u8]) -> Duration {
    let batch: Vec<RemoteTransfer> = (0..)
        .zip(values.chunks_exact_mut(bytes))
        .map(|(ticket, value)| RemoteTransfer {
            ticket,
            op,
            key: RemoteKey { space: SPACE, block: key(ticket) },
            address: value.as_mut_ptr() as usize,
            bytes,
        })
        .collect();
    let start = Instant::now();
    // SAFETY: `values` is borrowed exclusively until all have ended, below.
    unsafe { store.submit(&batch, PATIENCE) };
    let mut ends = Vec::new();
    while ends.len() < batch.len() {
        store.wait(PATIENCE);
        store.poll(&mut ends);
    }
    let time = start.elapsed();
    assert!(ends.iter().all(|end| end.outcome == RemoteOutcome::Done), "{:?}", store.stats());
    time
}

/// One value of 1 MiB at a time.
pub(crate) fn latency(store: &RingStore, rounds: u64, put_target: &str, get_target: &str) {
    let mut value = Values::new(1 << 20);
    let value = value.bytes_mut();
    let (mut put, mut get) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        put.push(transfer(store, RemoteOp::Put, 1 << 20, value).as_secs_f64() * 1e6);
        get.push(transfer(store, RemoteOp::Get, 1 << 20, value).as_secs_f64() * 1e6);
    }
    row("put 1 MiB, µs", &mut put, put_target);
    row("get 1 MiB, µs", &mut get, get_target);
}

/// What a message there and back takes between two threads with blocking sockets: no answer can come sooner. On a machine
/// whose processors fall asleep in between it is mostly their waking.
pub(crate) fn plain_round_trip(rounds: usize) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let mut near = TcpStream::connect(listener.local_addr().expect("bound")).expect("connected");
    let (mut far, _) = listener.accept().expect("a connection");
    near.set_nodelay(true).and_then(|()| far.set_nodelay(true)).expect("an option");
    let echo = std::thread::spawn(move || {
        let mut message = [0; 64];
        while far.read_exact(&mut message).is_ok() && far.write_all(&message).is_ok() {}
    });
    let (mut message, mut times) = ([0; 64], Vec::new());
    for _ in 0..rounds {
        let start = Instant::now();
        near.write_all(&message).and_then(|()| near.read_exact(&mut message)).expect("an echo");
        times.push(start.elapsed().as_secs_f64() * 1e6);
    }
    drop(near);
    echo.join().expect("the echo ends");
    row("a plain message there and back, µs", &mut times, "");
}

/// One question about `keys` names at a time; the client's counters in the end.
pub(crate) fn presence(name: &str, config: &RingConfig, keys: u64, rounds: u64, target: &str) -> RingStats {
    let mut presence = RingPresence::open(config).expect("a client");
    presence.set_spaces(&[SPACE]);
    let keys: Vec<BlockKey> = (0..keys).map(key).collect();
    let (mut times, mut answers) = (Vec::new(), Vec::new());
    for question in 0..rounds {
        let start = Instant::now();
        presence.ask(question, &keys, PATIENCE);
        while answers.is_empty() {
            presence.wait(PATIENCE);
            presence.poll(&mut answers);
        }
        times.push(start.elapsed().as_secs_f64() * 1e6);
        answers.clear();
    }
    row(&format!("{name}, µs"), &mut times, target);
    presence.stats()
}

fn key(number: u64) -> BlockKey {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&number.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes());
    bytes[8..].copy_from_slice(&number.to_le_bytes());
    BlockKey(bytes)
}

/// A row: the median and the quartiles.
pub(crate) fn row(what: &str, samples: &mut [f64], target: impl Display) {
    samples.sort_by(f64::total_cmp);
    let at = |share: f64| samples[((samples.len() - 1) as f64 * share).round() as usize];
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or("");
    println!("| {what} | {:.3} | {:.3}-{:.3} | {target} | {load} |", at(0.5), at(0.25), at(0.75));
}
