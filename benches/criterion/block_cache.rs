//! Put and get of a block cache beside `memcpy` of the same pieces. `cargo bench -p kvcache-benches --bench block_cache`
//!
//! Criterion measures one contender after the other; for ratios, `kvcache bench` measures them in turn.

use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use kvcache_core::BlockKey;
use kvcache_core::block_cache::{BlockCache, BlockCacheConfig};
use kvcache_core::copy_engine::stream_copy::Variant;

const POOL_BYTES: usize = 256 << 20;

/// Bytes of one call.
const CALL_BYTES: usize = 64 << 20;

criterion_group! {
    name = block_cache;
    config = Criterion::default().sample_size(10).warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = copies
}
criterion_main!(block_cache);

fn copies(criterion: &mut Criterion) {
    let mut pool = vec![1_u8; POOL_BYTES];
    let mut buffer = vec![2_u8; CALL_BYTES];
    for (name, block_bytes) in [("2MiB", 2 << 20), ("32KiB", 32 << 10)] {
        let mut group = criterion.benchmark_group(format!("blocks_of_{name}"));
        group.throughput(Throughput::Bytes(CALL_BYTES as u64));
        let blocks = CALL_BYTES / block_bytes;
        // An odd factor visits the places of a power of two of them in an order that looks random.
        let places: Vec<usize> =
            (0..blocks).map(|index| index * 89 % (POOL_BYTES / block_bytes) * block_bytes).collect();
        group.bench_function("memcpy_put", |bench| {
            bench.iter(|| {
                for (place, block) in places.iter().zip(buffer.chunks_exact(block_bytes)) {
                    pool[*place..place + block_bytes].copy_from_slice(block);
                }
            });
        });
        for threads in [1, 2] {
            let cache = BlockCache::open(&BlockCacheConfig {
                copy_threads: threads,
                ..BlockCacheConfig::new(block_bytes, POOL_BYTES as u64)
            })
            .expect("room for the cache");
            let keys: Vec<BlockKey> = (0..blocks as u64).map(|number| key(number * 2)).collect();
            while cache.put(&keys, &buffer).expect("a buffer of the right size") < blocks
                || cache.stats().directory.unusable > 0
            {
                std::thread::sleep(Duration::from_millis(5));
            }
            group.bench_function(format!("put_{threads}_threads"), |bench| {
                bench.iter(|| {
                    cache.delete(&keys);
                    cache.put(&keys, &buffer)
                });
            });
            group.bench_function(format!("get_{threads}_threads"), |bench| {
                bench.iter(|| cache.get(&keys, &mut buffer));
            });
        }
        group.bench_function("ceiling_2_threads_streaming", |bench| {
            bench.iter(|| {
                let halves = buffer.chunks_exact(CALL_BYTES / 2).zip(pool.chunks_exact_mut(POOL_BYTES / 2));
                std::thread::scope(|scope| {
                    for (from, to) in halves {
                        scope.spawn(move || Variant::best().copy_slice(from, &mut to[..CALL_BYTES / 2]));
                    }
                });
            });
        });
        group.finish();
    }
}

fn key(number: u64) -> BlockKey {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&number.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes());
    bytes[8..].copy_from_slice(&number.to_le_bytes());
    BlockKey(bytes)
}
