//! The server over loopback beside a plain socket copy. `cargo bench -p kvcache-server --bench loopback`
//!
//! What a transfer over TCP can reach here is what two threads reach that copy the same bytes through a socket, one
//! writing from its memory, one reading into its own, of the same size as the pool. Both are measured in turn, in one
//! run, and the ratio is what counts. The client is as plain as can be: one connection, blocking calls.

use std::io::{IoSlice, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Instant;

use kvcache_server::{Server, ServerConfig};
use kvcache_wire::extension::{
    Batch, ExistsReply, FrameHead, FrameHeader, FrameOp, GetItem, GetReplies, Hello, Named, PutItem,
    Statuses, Welcome, write_frame,
};
use kvcache_wire::{Status, checksum};

/// Bytes of one request, and of one turn of the socket copy.
const CALL_BYTES: usize = 64 << 20;
/// Memory on the receiving side, more than any processor's cache.
const POOL_BYTES: usize = 512 << 20;
const TURNS: usize = 15;
const SMALL_TURNS: usize = 2000;

fn main() {
    let config = ServerConfig { capacity_bytes: POOL_BYTES as u64, ..ServerConfig::default() };
    let server = Server::start(config).expect("a server");
    let mut client = Client::connect(&server);
    let mut copy = SocketCopy::start();
    println!("medians of {TURNS} turns of 64 MiB, lowest and highest beside them");
    for (name, value_bytes) in [("2 MiB", 2 << 20), ("32 KiB", 32 << 10)] {
        let values = Values::new(value_bytes);
        // The first pass through the pool and through the copy's memory is the system's: it hands out pages.
        for generation in 0..2 * POOL_BYTES / CALL_BYTES {
            client.put(&values, generation);
            copy.send(&values.bytes);
        }
        let mut rates = [const { Vec::new() }; 4];
        let mut buffer = vec![0; CALL_BYTES];
        for turn in 0..TURNS {
            rates[0].push(rate(|| copy.send(&values.bytes)));
            rates[1].push(rate(|| client.put(&values, turn)));
            rates[2].push(rate(|| copy.receive(&mut buffer)));
            rates[3].push(rate(|| client.get(&values, turn, &mut buffer)));
            assert!(buffer == values.bytes, "the values are those that were put");
        }
        let [sent, put, received, got] = rates.map(Spread::of);
        println!("{name:>7}  socket copy out {sent}  put {put}  ratio {:.2}", put.median / sent.median);
        println!(
            "{name:>7}  socket copy in  {received}  get {got}  ratio {:.2}",
            got.median / received.median
        );
    }
    latencies(&mut client);
    server.stop();
}

fn latencies(client: &mut Client) {
    let values = Values { bytes: vec![7; 1 << 20], value_bytes: 1 << 20, names: vec!["latency".to_owned()] };
    let mut buffer = vec![0; 1 << 20];
    let names: Vec<String> = (0..32).map(|index| format!("absent-{index:032}")).collect();
    let mut micros = [const { Vec::new() }; 3];
    for turn in 0..SMALL_TURNS {
        micros[0].push(time(|| client.put_checked(&values)));
        micros[1].push(time(|| client.get_checked(&values, &mut buffer)));
        micros[2].push(time(|| client.exists(&names)));
        assert_eq!(buffer[turn], 7);
    }
    let [put, get, exists] = micros.map(Spread::of);
    println!("1 MiB with checksum, put {put} µs, get {get} µs; presence of 32 keys {exists} µs");
}

/// Values of a call, and the names that they get in each generation.
struct Values {
    bytes: Vec<u8>,
    value_bytes: usize,
    names: Vec<String>,
}

impl Values {
    fn new(value_bytes: usize) -> Self {
        let mut state = 1_u64;
        let mut word = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            state.to_le_bytes()
        };
        let bytes = (0..CALL_BYTES / 8).flat_map(|_| word()).collect();
        let names = (0..CALL_BYTES / value_bytes).map(|index| format!("{index:032}")).collect();
        Self { bytes, value_bytes, names }
    }
}

struct Client {
    stream: TcpStream,
    frame: Vec<u8>,
}

impl Client {
    fn connect(server: &Server) -> Self {
        let mut stream = TcpStream::connect(server.address()).expect("connected");
        stream.set_nodelay(true).expect("an option");
        stream.write_all(&Hello::new(b"").encode().expect("short")).expect("sent");
        let mut answer = [0; 8 + Welcome::BYTES];
        stream.read_exact(&mut answer).expect("a welcome");
        Welcome::decode(&answer[8..]).expect("a good welcome");
        Self { stream, frame: Vec::new() }
    }

    fn put(&mut self, values: &Values, generation: usize) {
        let item = PutItem { value_bytes: values.value_bytes as u64, checksum: None };
        self.put_items(values, generation, |_| item);
    }

    fn put_checked(&mut self, values: &Values) {
        self.put_items(values, 0, |value| PutItem {
            value_bytes: value.len() as u64,
            checksum: Some(checksum(value)),
        });
    }

    fn put_items(&mut self, values: &Values, generation: usize, item: impl Fn(&[u8]) -> PutItem) {
        let chunks = values.bytes.chunks_exact(values.value_bytes);
        let items = chunks.clone().zip(&values.names).map(|(value, name)| (item(value), name.as_bytes()));
        self.frame.clear();
        let head = FrameHead::request(FrameOp::Put, 0, 1);
        write_frame(&mut self.frame, head, values.bytes.len() as u64, |out| {
            Batch::encode(out, generation.to_string().as_bytes(), items)
        })
        .expect("small");
        let mut slices: Vec<IoSlice<'_>> =
            std::iter::once(self.frame.as_slice()).chain(chunks).map(IoSlice::new).collect();
        let mut slices = slices.as_mut_slice();
        while !slices.is_empty() {
            let sent = self.stream.write_vectored(&slices[..slices.len().min(64)]).expect("sent");
            IoSlice::advance_slices(&mut slices, sent);
        }
        let (_, body) = self.answer();
        let statuses = Statuses::decode(&body, values.names.len() as u32).expect("statuses");
        assert!(statuses.iter().all(Status::is_ok));
    }

    fn get(&mut self, values: &Values, generation: usize, buffer: &mut [u8]) {
        let item = GetItem { value_bytes_max: values.value_bytes as u64 };
        let items = values.names.iter().map(|name| (item, name.as_bytes()));
        self.ask(FrameOp::Get, &generation.to_string(), items);
        let (header, body) = self.answer();
        let outcomes =
            GetReplies::decode(&body, values.names.len() as u32, header.payload_bytes).expect("outcomes");
        assert!(outcomes.iter().all(|outcome| outcome.status.is_ok()));
        self.stream.read_exact(buffer).expect("the values");
    }

    fn get_checked(&mut self, values: &Values, buffer: &mut [u8]) {
        let item = GetItem { value_bytes_max: values.value_bytes as u64 };
        self.ask(FrameOp::Get, "0", values.names.iter().map(|name| (item, name.as_bytes())));
        let (header, body) = self.answer();
        let outcome = GetReplies::decode(&body, 1, header.payload_bytes).expect("outcomes").iter().next();
        self.stream.read_exact(buffer).expect("the value");
        assert_eq!(outcome.and_then(|outcome| outcome.checksum), Some(checksum(buffer)));
    }

    fn exists(&mut self, names: &[String]) {
        self.ask(FrameOp::Exists, "", names.iter().map(|name| (Named, name.as_bytes())));
        let (_, body) = self.answer();
        assert!(ExistsReply::decode(&body, false, 32).is_ok_and(|reply| !reply.is_present(0)));
    }

    fn ask<'k, F: kvcache_wire::extension::ItemFields>(
        &mut self,
        op: FrameOp,
        prefix: &str,
        items: impl ExactSizeIterator<Item = (F, &'k [u8])>,
    ) {
        self.frame.clear();
        write_frame(&mut self.frame, FrameHead::request(op, 0, 1), 0, |out| {
            Batch::encode(out, prefix.as_bytes(), items)
        })
        .expect("small");
        self.stream.write_all(&self.frame).expect("sent");
    }

    fn answer(&mut self) -> (FrameHeader, Vec<u8>) {
        let mut header = [0; FrameHeader::BYTES];
        self.stream.read_exact(&mut header).expect("an answer");
        let header = FrameHeader::decode(&header).expect("a good answer");
        let mut body = vec![0; header.body_bytes as usize];
        self.stream.read_exact(&mut body).expect("a body");
        header.verify(&body).expect("a good body");
        (header, body)
    }
}

/// Another thread that reads into, or writes from, memory as large as the pool, as plainly as can be.
struct SocketCopy {
    stream: TcpStream,
}

const OUT: u8 = 1;
const IN: u8 = 2;

impl SocketCopy {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        std::thread::spawn(move || {
            let (mut peer, _) = listener.accept().expect("a peer");
            peer.set_nodelay(true).expect("an option");
            let mut memory = vec![0_u8; POOL_BYTES];
            let mut place = 0;
            let mut command = [0];
            while peer.read_exact(&mut command).is_ok() {
                let target = &mut memory[place..place + CALL_BYTES];
                place = (place + CALL_BYTES) % POOL_BYTES;
                if command[0] == OUT {
                    peer.read_exact(target).expect("received");
                    peer.write_all(&[0]).expect("acknowledged");
                } else {
                    peer.write_all(target).expect("sent");
                }
            }
        });
        let stream = TcpStream::connect(address).expect("connected");
        stream.set_nodelay(true).expect("an option");
        Self { stream }
    }

    fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(&[OUT]).expect("asked");
        self.stream.write_all(bytes).expect("sent");
        self.stream.read_exact(&mut [0]).expect("acknowledged");
    }

    fn receive(&mut self, bytes: &mut [u8]) {
        self.stream.write_all(&[IN]).expect("asked");
        self.stream.read_exact(bytes).expect("received");
    }
}

/// GB/s: a byte per nanosecond is one.
fn rate(call: impl FnOnce()) -> f64 {
    CALL_BYTES as f64 / 1000.0 / time(call)
}

fn time(call: impl FnOnce()) -> f64 {
    let start = Instant::now();
    call();
    start.elapsed().as_secs_f64() * 1e6
}

struct Spread {
    lowest: f64,
    median: f64,
    highest: f64,
}

impl Spread {
    fn of(mut numbers: Vec<f64>) -> Self {
        numbers.sort_by(f64::total_cmp);
        let at = |share: usize| numbers[(numbers.len() - 1) * share / 100];
        Self { lowest: at(0), median: at(50), highest: at(100) }
    }
}

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.2} ({:.2}-{:.2})", self.median, self.lowest, self.highest)
    }
}
