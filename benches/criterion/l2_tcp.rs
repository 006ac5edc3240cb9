//! L2 over TCP on loopback, beside a plain socket copy of the same bytes. `cargo bench -p kvcache-benches --bench l2_tcp`
//!
//! Each round times the plain copy and the client in turn, and the ratio is formed within the round; the table has the
//! median and the quartiles of the rounds. *The plain copy*: as many connections as the client has for values, a thread for
//! each on either side (the client has one in all), blocking calls of 1 MiB from or to memory as large as the values. No
//! names, no answers, no checksums.

mod ring_harness;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use kvcache_core::remote::RemoteOp;
use kvcache_rdma::ring::{RingConfig, RingStore};
use kvcache_server::Server;

use ring_harness::{VALUES_BYTES, Values, begin, row, server, transfer};

const CONNECTIONS: usize = 2;
const PIECE_BYTES: usize = 1 << 20;

fn main() {
    if !begin() {
        return;
    }
    for (name, bytes, target) in [("2 MiB", 2 << 20, 0.8), ("32 KiB, batched", 32 << 10, 0.6)] {
        throughput(name, bytes, target);
    }
    let servers = [server(), server(), server()];
    let store = RingStore::open(&config(&[&servers[0]])).expect("a client");
    ring_harness::plain_round_trip(2000);
    ring_harness::latency(&store, 300, "≤ 500", "≤ 500");
    ring_harness::presence("presence of 32 keys", &config(&[&servers[0]]), 32, 2000, "≤ 60");
    let ring = config(&servers.iter().collect::<Vec<_>>());
    ring_harness::presence("match of 2,048 keys on a ring of 3", &ring, 2048, 300, "≤ 2000");
}

fn throughput(name: &str, bytes: usize, target: f64) {
    let server = server();
    let store = RingStore::open(&config(&[&server])).expect("a client");
    let mut values = Values::new(VALUES_BYTES);
    let values = values.bytes_mut();
    let mut plain = PlainCopy::new();
    let (mut put, mut get) = (Vec::new(), Vec::new());
    let (mut put_rates, mut get_rates) = (Vec::new(), Vec::new());
    for round in 0..12 {
        let out = plain.time(values, true);
        let ours_put = transfer(&store, RemoteOp::Put, bytes, values);
        let back = plain.time(values, false);
        let ours_get = transfer(&store, RemoteOp::Get, bytes, values);
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

fn config(servers: &[&Server]) -> RingConfig {
    // `l2_local` is about that.
    RingConfig { connections: CONNECTIONS, shared_memory: false, ..ring_harness::config(servers) }
}
