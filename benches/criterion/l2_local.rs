//! L2 on the same host, by shared memory, beside a streaming copy of the same bytes. `cargo bench -p kvcache-benches --bench l2_local`
//!
//! Each round times the copy and the client in turn, and the ratio is formed within the round; the table has the median and
//! the quartiles of the rounds. *The copy*: one thread copies all values with the widest streaming stores, between memory as
//! large as the values and a memory file like the server's. No names, no answers, no checksums. What the client moves has its
//! checksum made (put) and verified (get).

use std::fmt::Display;
use std::os::fd::{AsRawFd, FromRawFd};
use std::time::{Duration, Instant};

use kvcache_core::BlockKey;
use kvcache_core::copy_engine::checked_copy::CheckedCopy;
use kvcache_core::copy_engine::stream_copy::{Variant, fence};
use kvcache_core::remote::{
    Presence, RemoteKey, RemoteOp, RemoteOutcome, RemoteSpace, RemoteStore, RemoteTransfer, value_checksum,
};
use kvcache_rdma::members::{Member, MemberList, Members, PlacementSource};
use kvcache_rdma::ring::{RingConfig, RingPresence, RingStore};
use kvcache_server::{Server, ServerConfig};

const VALUES_BYTES: usize = 128 << 20;
const VALUE_BYTES: usize = 2 << 20;
const PAGE_BYTES: usize = 4096;
const SPACE: RemoteSpace = RemoteSpace([7; 16]);
const PATIENCE: Duration = Duration::from_secs(30);

fn main() {
    // `cargo test` runs benches as well: then it is enough that they build.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    println!("| what | median | quartiles | target | load |\n|---|---|---|---|---|");
    let server = Server::start(ServerConfig {
        capacity_bytes: 512 << 20,
        threads: Some(2),
        ..ServerConfig::default()
    })
    .expect("a server");
    let store = RingStore::open(&config(&server)).expect("a client");
    throughput(&store);
    latency(&store);
    presence(&server);
}

fn throughput(store: &RingStore) {
    // Aligned as slots are.
    let mut memory = vec![0x5a_u8; VALUES_BYTES + PAGE_BYTES];
    let start = memory.as_ptr().align_offset(PAGE_BYTES);
    let values = &mut memory[start..start + VALUES_BYTES];
    let mut pool = Pool::new();
    let mut columns: [Vec<f64>; 7] = Default::default();
    for round in 0..14 {
        let streamed_out = pool.copy(values, VALUE_BYTES, true, copy_streaming);
        let put = transfer(store, RemoteOp::Put, VALUE_BYTES, values);
        let streamed_back = pool.copy(values, VALUE_BYTES, false, copy_streaming);
        let get = transfer(store, RemoteOp::Get, VALUE_BYTES, values);
        let checked = pool.copy(values, VALUE_BYTES, false, copy_checked);
        let in_pieces = pool.copy(values, VALUE_BYTES, false, copy_then_hash);
        // The first rounds take memory for the first time, and one of them is over TCP.
        if round < 3 {
            continue;
        }
        let rate = |time: Duration| VALUES_BYTES as f64 / time.as_secs_f64() / 1e9;
        for (column, number) in columns.iter_mut().zip([
            rate(streamed_back),
            rate(put) / rate(streamed_out),
            rate(put),
            rate(get) / rate(streamed_back),
            rate(get),
            rate(checked) / rate(streamed_back),
            rate(in_pieces) / rate(streamed_back),
        ]) {
            column.push(number);
        }
    }
    for (name, column, target) in [
        ("the streaming copy, GB/s", 0, ""),
        ("put 2 MiB, of the streaming copy", 1, "≥ 0.9"),
        ("put 2 MiB, GB/s", 2, ""),
        ("get 2 MiB, of the streaming copy", 3, "≥ 0.9"),
        ("get 2 MiB, GB/s", 4, ""),
        ("no client: copy and checksum in one pass, of the streaming copy", 5, ""),
        ("no client: memcpy and checksum in pieces of 64 KiB, of the streaming copy", 6, ""),
    ] {
        row(name, &mut columns[column], target);
    }
}

fn latency(store: &RingStore) {
    let mut memory = vec![0x5a_u8; (1 << 20) + PAGE_BYTES];
    let start = memory.as_ptr().align_offset(PAGE_BYTES);
    let value = &mut memory[start..start + (1 << 20)];
    let (mut put, mut get) = (Vec::new(), Vec::new());
    for _ in 0..1000 {
        put.push(transfer(store, RemoteOp::Put, 1 << 20, value).as_secs_f64() * 1e6);
        get.push(transfer(store, RemoteOp::Get, 1 << 20, value).as_secs_f64() * 1e6);
    }
    row("put 1 MiB, µs", &mut put, "≤ 150");
    row("get 1 MiB, µs", &mut get, "≤ 120");
}

fn presence(server: &Server) {
    let mut presence = RingPresence::open(&config(server)).expect("a client");
    presence.set_spaces(&[SPACE]);
    let keys: Vec<BlockKey> = (0..32).map(key).collect();
    let (mut times, mut answers) = (Vec::new(), Vec::new());
    for question in 0..2000 {
        let start = Instant::now();
        presence.ask(question, &keys, PATIENCE);
        while answers.is_empty() {
            presence.wait(PATIENCE);
            presence.poll(&mut answers);
        }
        times.push(start.elapsed().as_secs_f64() * 1e6);
        answers.clear();
    }
    assert!(presence.stats().connections.values().all(|(_, connection)| connection.shared_memory));
    row("presence of 32 keys, µs", &mut times, "≤ 60");
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

type Copy = unsafe fn(*const u8, *mut u8, usize);

unsafe fn copy_streaming(src: *const u8, dst: *mut u8, bytes: usize) {
    // SAFETY: the caller's duties are the same, and the best variant is available.
    unsafe { Variant::best().copy(src, dst, bytes) };
    fence();
}

unsafe fn copy_checked(src: *const u8, dst: *mut u8, bytes: usize) {
    let mut copy = CheckedCopy::new(b"name", bytes);
    // SAFETY: the caller's duties are the same.
    unsafe { copy.step(src, dst, bytes) };
    std::hint::black_box(copy.checksum());
}

unsafe fn copy_then_hash(src: *const u8, dst: *mut u8, bytes: usize) {
    for at in (0..bytes).step_by(64 << 10) {
        let piece = (bytes - at).min(64 << 10);
        // SAFETY: within the caller's ranges.
        let copied = unsafe {
            std::ptr::copy_nonoverlapping(src.add(at), dst.add(at), piece);
            std::slice::from_raw_parts(dst.add(at), piece)
        };
        std::hint::black_box(value_checksum(b"", copied));
    }
}

/// Memory like the server's, for the ceiling.
struct Pool(*mut u8);

impl Pool {
    fn new() -> Self {
        // SAFETY: takes a terminated name and numbers; the descriptor is new and nobody else's.
        let file =
            unsafe { std::fs::File::from_raw_fd(libc::memfd_create(c"bench".as_ptr(), libc::MFD_CLOEXEC)) };
        file.set_len(VALUES_BYTES as u64).expect("memory");
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let descriptor = file.as_raw_fd();
        // SAFETY: a new mapping at an address of the system's choice touches no existing memory.
        let base = unsafe {
            libc::mmap(std::ptr::null_mut(), VALUES_BYTES, protection, libc::MAP_SHARED, descriptor, 0)
        };
        assert_ne!(base, libc::MAP_FAILED);
        Self(base.cast())
    }

    fn copy(&mut self, values: &mut [u8], bytes: usize, out: bool, copy: Copy) -> Duration {
        let start = Instant::now();
        for (index, value) in values.chunks_exact_mut(bytes).enumerate() {
            // SAFETY: the mapping is as long as the values, lives as long as the process, and is used here alone.
            unsafe {
                let place = self.0.add(index * bytes);
                match out {
                    true => copy(value.as_ptr(), place, bytes),
                    false => copy(place, value.as_mut_ptr(), bytes),
                }
            }
        }
        start.elapsed()
    }
}

fn config(server: &Server) -> RingConfig {
    let member = Member::at(server.address().to_string().parse().expect("an address"));
    let list = MemberList::new(vec![member]).expect("members");
    RingConfig::new(Members::fixed(list, PlacementSource::Computed).expect("members"))
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
