//! One program for every driver: all ways of copying, one after the other, and the bytes that come back.
//!
//! On the fake always; on a GPU with `cargo test -p kvcache-cuda --test any_driver -- --ignored`.
#![expect(clippy::unwrap_used, reason = "helpers of tests, outside of the functions that are marked as such")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use kvcache_core::copy_engine::Piece;
use kvcache_cuda::driver::{
    Arguments, CudaDriver, Descriptors, Driver, Event, LaunchShape, Priority, SourceOrder, Stream,
};
use kvcache_cuda::fake::FakeDevice;
use kvcache_cuda::kernels::{Kernel, PieceCopy, PieceEntry, table_bytes};

const BYTES: usize = 300_000;

#[test]
fn the_fake_carries_bytes_all_ways() {
    for seed in 0..20 {
        let device = FakeDevice::new(seed);
        carry(&*device);
        assert_eq!(device.settle(), Vec::<String>::new(), "seed {seed}");
    }
}

#[test]
#[ignore = "needs a CUDA device"]
fn a_gpu_carries_bytes_all_ways() {
    carry(&*CudaDriver::open(0).unwrap());
}

/// From host memory to the device, by the kernel to a slab in another order, in a batch to the device, and back.
fn carry(driver: &dyn Driver) {
    let (first, second) =
        (driver.create_stream(Priority::High).unwrap(), driver.create_stream(Priority::Low).unwrap());
    for stream in [first, second, Stream(0)] {
        assert_eq!(driver.check_stream(stream), Ok(()));
    }
    let [copied, scattered, done] = [(); 3].map(|()| driver.create_event().unwrap());
    let [source, table, out] = [BYTES, 1 << 16, BYTES].map(|bytes| driver.allocate_host(bytes).unwrap());
    let [near, far] = [(); 2].map(|()| driver.allocate_device(BYTES).unwrap());
    let mut slab = vec![0u8; BYTES];
    let slab_at = slab.as_mut_ptr() as usize;
    // SAFETY: the slab lives until it is unregistered below.
    let slab_on_device = unsafe { driver.register_host(slab_at, BYTES) }.unwrap();

    let content: Vec<u8> = (0..BYTES as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    write(source.host, &content);
    let piece = Piece { src: source.host, dst: near as usize, bytes: BYTES };
    // SAFETY: here and below all memory lives until the end of this function, which waits for each step.
    unsafe { driver.copy(piece, first) }.unwrap();
    driver.record_event(copied, first).unwrap();

    // Pieces of all sizes and alignments, which lie the other way round in the slab.
    let (pieces, reordered) = reorder(&content, near, slab_on_device);
    write(table.host, table_bytes(&pieces));
    driver.load_kernels().unwrap();
    let arguments = Arguments::Pieces(PieceCopy::new(table.device, &pieces, 1024).unwrap());
    driver.wait_event(second, copied).unwrap();
    let shape = LaunchShape { blocks: 4, threads: 128 };
    // SAFETY: as above; the table's memory is mapped.
    unsafe { driver.launch(Kernel::CopyPieces, &arguments, shape, second) }.unwrap();
    driver.record_event(scattered, second).unwrap();
    driver.synchronize_event(scattered).unwrap();
    assert!(read(slab_at, BYTES) == reordered, "the kernel's bytes");

    // Back to the device in a batch, and from there to the host.
    let starts = (0..BYTES).step_by(4096);
    let descriptors = Arc::new(Descriptors {
        destinations: starts.clone().map(|start| far + start as u64).collect(),
        sources: starts.clone().map(|start| (slab_at + start) as u64).collect(),
        sizes: starts.map(|start| 4096.min(BYTES - start)).collect(),
    });
    if driver.has_batch_copy() {
        // SAFETY: as above; the slab is registered and complete.
        unsafe { driver.copy_batch(&descriptors, SourceOrder::Any, first) }.unwrap();
    } else {
        let piece = Piece { src: slab_at, dst: far as usize, bytes: BYTES };
        // SAFETY: as above.
        unsafe { driver.copy(piece, first) }.unwrap();
    }
    let piece = Piece { src: far as usize, dst: out.host, bytes: BYTES };
    // SAFETY: as above.
    unsafe { driver.copy(piece, first) }.unwrap();
    driver.record_event(done, first).unwrap();
    poll(driver, done);
    assert!(read(out.host, BYTES) == reordered, "the batch's bytes");

    driver.unregister_host(slab_at);
    [near, far].into_iter().for_each(|memory| driver.free_device(memory));
    [source, table, out].into_iter().for_each(|memory| driver.free_host(memory.host));
    [copied, scattered, done].into_iter().for_each(|event| driver.destroy_event(event));
    [first, second].into_iter().for_each(|stream| driver.destroy_stream(stream));
}

/// A table that takes `content` at `src` apart and puts it together at `dst` backwards, and what it will be there.
fn reorder(content: &[u8], src: u64, dst: u64) -> (Vec<PieceEntry>, Vec<u8>) {
    let (mut pieces, mut reordered) = (Vec::new(), vec![0; content.len()]);
    let mut start = 0;
    for bytes in [1, 7, 16, 17, 512, 1000, 4096, 10_000].into_iter().cycle() {
        let bytes = bytes.min(content.len() - start);
        if bytes == 0 {
            break;
        }
        let place = content.len() - start - bytes;
        pieces.push(PieceEntry { src: src + start as u64, dst: dst + place as u64, bytes: bytes as u64 });
        reordered[place..place + bytes].copy_from_slice(&content[start..start + bytes]);
        start += bytes;
    }
    (pieces, reordered)
}

fn poll(driver: &dyn Driver, event: Event) {
    let start = Instant::now();
    while !driver.query_event(event).unwrap() {
        assert!(start.elapsed() < Duration::from_secs(60), "work of microseconds does not end");
        std::thread::yield_now();
    }
}

fn write(at: usize, bytes: &[u8]) {
    // SAFETY: callers name memory of at least as many bytes, which nothing else touches now.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), at as *mut u8, bytes.len()) };
}

fn read(at: usize, bytes: usize) -> Vec<u8> {
    // SAFETY: as above; what wrote it has ended.
    unsafe { std::slice::from_raw_parts(at as *const u8, bytes) }.to_vec()
}
