//! L2 on the same host, by shared memory, beside a streaming copy of the same bytes. `cargo bench -p kvcache-benches --bench l2_local`
//!
//! Each round times the copy and the client in turn, and the ratio is formed within the round; the table has the median and
//! the quartiles of the rounds. *The copy*: one thread copies all values with the widest streaming stores, between memory as
//! large as the values and a memory file like the server's. No names, no answers, no checksums. What the client moves has its
//! checksum made (put) and verified (get).

mod ring_harness;

use std::os::fd::{AsRawFd, FromRawFd};
use std::time::{Duration, Instant};

use kvcache_core::copy_engine::checked_copy::CheckedCopy;
use kvcache_core::copy_engine::stream_copy::{Variant, fence};
use kvcache_core::remote::{RemoteOp, value_checksum};
use kvcache_rdma::ring::RingStore;

use ring_harness::{VALUES_BYTES, Values, begin, config, row, server, transfer};

const VALUE_BYTES: usize = 2 << 20;

fn main() {
    if !begin() {
        return;
    }
    let server = server();
    let store = RingStore::open(&config(&[&server])).expect("a client");
    throughput(&store);
    ring_harness::plain_round_trip(2000);
    ring_harness::latency(&store, 1000, "≤ 150", "≤ 120");
    let stats = ring_harness::presence("presence of 32 keys", &config(&[&server]), 32, 2000, "≤ 60");
    assert!(stats.connections.values().all(|(_, connection)| connection.shared_memory));
}

fn throughput(store: &RingStore) {
    let mut values = Values::new(VALUES_BYTES);
    let values = values.bytes_mut();
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
