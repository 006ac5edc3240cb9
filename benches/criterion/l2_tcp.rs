//! L2 over TCP on loopback, beside a plain socket copy of the same bytes. `cargo bench -p kvcache-benches --bench l2_tcp`
//!
//! Each round times the plain copy and the client in turn, and the ratio is formed within the round; the table has the
//! median and the quartiles of the rounds. *The plain copy*: as many connections as the client has for values, a thread for
//! each on either side (the client has one in all), blocking calls of 1 MiB from or to memory as large as the values. No
//! names, no answers, no checksums.

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
use kvcache_server::{Server, ServerConfig};

const CONNECTIONS: usize = 2;
const VALUES_BYTES: usize = 128 << 20;
const PIECE_BYTES: usize = 1 << 20;
const SPACE: RemoteSpace = RemoteSpace([7; 16]);
const PATIENCE: Duration = Duration::from_secs(30);

fn main() {
    // `cargo test` runs benches as well: then it is enough that they build.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    println!("| what | median | quartiles | target | load |\n|---|---|---|---|---|");
    for (name, bytes, target) in [("2 MiB", 2 << 20, 0.8), ("32 KiB, batched", 32 << 10, 0.6)] {
        throughput(name, bytes, target);
    }
    latency();
    presence("presence of 32 keys", 1, 32, 2000, 60.0);
    presence("match of 2,048 keys on a ring of 3", 3, 2048, 300, 2000.0);
}

fn throughput(name: &str, bytes: usize, target: f64) {
    let server = server();
    let store = RingStore::open(&config(&[&server])).expect("a client");
    let mut values = vec![0x5a_u8; VALUES_BYTES];
    let mut plain = PlainCopy::new();
    let (mut put, mut get) = (Vec::new(), Vec::new());
    let (mut put_rates, mut get_rates) = (Vec::new(), Vec::new());
    for round in 0..12 {
        let out = plain.time(&mut values, true);
        let ours_put = transfer(&store, RemoteOp::Put, bytes, &mut values);
        let back = plain.time(&mut values, false);
        let ours_get = transfer(&store, RemoteOp::Get, bytes, &mut values);
        // The first round takes memory for the first time.
        if round > 0 {
            put.push(out.as_secs_f64() / ours_put.as_secs_f64());
            get.push(back.as_secs_f64() / ours_get.as_secs_f64());
            put_rates.push(VALUES_BYTES as f64 / ours_put.as_secs_f64() / 1e9);
            get_rates.push(VALUES_BYTES as f64 / ours_get.as_secs_f64() / 1e9);
        }
    }
    row(&format!("put {name}, of a plain socket copy"), &mut put, format!("≥ {target}"));
    row(&format!("put {name}, GB/s"), &mut put_rates, "");
    row(&format!("get {name}, of a plain socket copy"), &mut get, format!("≥ {target}"));
    row(&format!("get {name}, GB/s"), &mut get_rates, "");
}

fn latency() {
    let server = server();
    let store = RingStore::open(&config(&[&server])).expect("a client");
    let mut value = vec![0x5a_u8; 1 << 20];
    let (mut put, mut get) = (Vec::new(), Vec::new());
    for _ in 0..300 {
        put.push(transfer(&store, RemoteOp::Put, 1 << 20, &mut value).as_secs_f64() * 1e6);
        get.push(transfer(&store, RemoteOp::Get, 1 << 20, &mut value).as_secs_f64() * 1e6);
    }
    row("put 1 MiB, µs", &mut put, "≤ 500");
    row("get 1 MiB, µs", &mut get, "≤ 500");
}

fn presence(name: &str, servers: usize, keys: u64, rounds: u64, target: f64) {
    let servers: Vec<Server> = (0..servers).map(|_| server()).collect();
    let servers: Vec<&Server> = servers.iter().collect();
    let mut presence = RingPresence::open(&config(&servers)).expect("a client");
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
    row(&format!("{name}, µs"), &mut times, format!("≤ {target}"));
}

/// Moves all of `values`, in pieces of `bytes`, and waits for it.
fn transfer(store: &RingStore, op: RemoteOp, bytes: usize, values: &mut [u8]) -> Duration {
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

/// The ceiling: see the top.
struct PlainCopy {
    sockets: Vec<TcpStream>,
}

impl PlainCopy {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let sockets = (0..CONNECTIONS).map(|_| {
            let near = TcpStream::connect(address).expect("a connection");
            let (far, _) = listener.accept().expect("a connection");
            std::thread::spawn(move || far_side(far));
            near
        });
        Self { sockets: sockets.collect() }
    }

    fn time(&mut self, values: &mut [u8], out: bool) -> Duration {
        let start = Instant::now();
        std::thread::scope(|scope| {
            for (socket, share) in self.sockets.iter_mut().zip(values.chunks_mut(VALUES_BYTES / CONNECTIONS))
            {
                scope.spawn(move || {
                    socket.write_all(&[u8::from(out)]).expect("a command");
                    for piece in share.chunks_mut(PIECE_BYTES) {
                        if out {
                            socket.write_all(piece).expect("a write");
                        } else {
                            socket.read_exact(piece).expect("a read");
                        }
                    }
                    if out {
                        socket.read_exact(&mut [0]).expect("an answer");
                    }
                });
            }
        });
        start.elapsed()
    }
}

fn far_side(mut socket: TcpStream) {
    let mut memory = vec![1_u8; VALUES_BYTES / CONNECTIONS];
    let mut command = [0];
    while socket.read_exact(&mut command).is_ok() {
        for piece in memory.chunks_mut(PIECE_BYTES) {
            let done = if command == [1] { socket.read_exact(piece) } else { socket.write_all(piece) };
            if done.is_err() {
                return;
            }
        }
        if command == [1] && socket.write_all(&command).is_err() {
            return;
        }
    }
}

fn server() -> Server {
    Server::start(ServerConfig { capacity_bytes: 512 << 20, threads: Some(2), ..ServerConfig::default() })
        .expect("a server")
}

fn config(servers: &[&Server]) -> RingConfig {
    let member = |server: &&Server| Member::at(server.address().to_string().parse().expect("an address"));
    let list = MemberList::new(servers.iter().map(member).collect()).expect("members");
    let mut config = RingConfig::new(Members::fixed(list, PlacementSource::Computed).expect("members"));
    config.connections = CONNECTIONS;
    // `l2_local` is about that.
    config.shared_memory = false;
    config
}

fn key(number: u64) -> BlockKey {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&number.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes());
    bytes[8..].copy_from_slice(&number.to_le_bytes());
    BlockKey(bytes)
}

fn row(what: &str, samples: &mut [f64], target: impl Display) {
    samples.sort_by(f64::total_cmp);
    let at = |share: f64| samples[((samples.len() - 1) as f64 * share).round() as usize];
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or("");
    println!("| {what} | {:.3} | {:.3}-{:.3} | {target} | {load} |", at(0.5), at(0.25), at(0.75));
}
