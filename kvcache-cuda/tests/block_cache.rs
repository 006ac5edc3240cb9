//! A block cache whose blocks lie in the memory of a fake device, which runs late, in parts, and finds every access that
//! nothing orders.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvcache_core::BlockKey;
use kvcache_core::block_cache::{BlockCache, BlockCacheConfig, Segment};
use kvcache_cuda::driver::Stream;
use kvcache_cuda::engine::{CudaCopyConfig, CudaCopyEngine};
use kvcache_cuda::fake::FakeDevice;

const LAYERS: usize = 3;
const PART_BYTES: usize = 1024;
const BLOCK_BYTES: usize = LAYERS * PART_BYTES;
const BLOCKS: usize = 8;

/// An engine's tensor: layer by layer, blocks of each one after the other.
struct Tensor(Box<[u8]>);

impl Tensor {
    fn range(&self, layer: usize, block: usize) -> Range<usize> {
        let begin = self.0.as_ptr() as usize + (layer * BLOCKS + block) * PART_BYTES;
        begin..begin + PART_BYTES
    }

    fn segments(&self, blocks: &[usize]) -> Vec<Segment> {
        let parts = blocks.iter().flat_map(|block| (0..LAYERS).map(move |layer| self.range(layer, *block)));
        parts.map(|part| Segment { address: part.start, bytes: PART_BYTES }).collect()
    }

    /// A kernel that writes a value to all of a block.
    fn compute(&self, fake: &FakeDevice, stream: Stream, block: usize, value: u8) {
        let parts: Vec<_> = (0..LAYERS).map(|layer| self.range(layer, block)).collect();
        fake.engine_work(stream, Vec::new(), parts.clone(), move || {
            for address in parts.into_iter().flatten() {
                // SAFETY: the tensor outlives the device's work, and only that touches it meanwhile.
                unsafe { std::ptr::write_volatile(address as *mut u8, value) };
            }
        });
    }

    /// Whether all of a block has the value. Nothing runs on the device.
    fn holds(&self, block: usize, value: u8) -> bool {
        (0..LAYERS).flat_map(|layer| self.range(layer, block)).all(|address| {
            // SAFETY: in the tensor, which nothing writes now.
            unsafe { std::ptr::read_volatile(address as *const u8) == value }
        })
    }
}

fn keys(document: u8, blocks: u8) -> Vec<BlockKey> {
    (0..blocks)
        .map(|block| {
            let mut key = [document.wrapping_mul(77) ^ block.wrapping_mul(151); 16];
            (key[0], key[1]) = (document, block);
            BlockKey(key)
        })
        .collect()
}

/// The engine computes before and after each call, without waiting: a call must come between.
#[test]
fn blocks_leave_and_come_back_in_the_order_of_the_engines_stream() {
    for seed in 0..40 {
        let fake = FakeDevice::options().seed(seed).build();
        let tensor = Tensor(vec![0; LAYERS * BLOCKS * PART_BYTES].into_boxed_slice());
        fake.add_device_memory(tensor.0.as_ptr() as usize, tensor.0.len());
        let config = CudaCopyConfig { calibrate: false, ..CudaCopyConfig::default() };
        let engine = Arc::new(CudaCopyEngine::new(Arc::clone(&fake) as _, config).unwrap());
        let config = BlockCacheConfig {
            for_device: true,
            ..BlockCacheConfig::new(BLOCK_BYTES, 16 * BLOCK_BYTES as u64)
        };
        let cache = BlockCache::open(&config).unwrap().with_device(engine).unwrap();
        let began = Instant::now();
        while cache.pinning().is_some_and(|pinning| pinning.is_running) {
            assert!(began.elapsed() < Duration::from_secs(20), "pinning never ends");
            std::thread::sleep(Duration::from_millis(1));
        }
        let stream = fake.engine_stream();
        let (keys, there, back) = (keys(1, 3), [0, 5, 2], [1, 4, 7]);
        for (value, block) in (1..).zip(there) {
            tensor.compute(&fake, stream, block, value);
        }
        // SAFETY: the tensor lives to the end; the stream, which all that uses it is in, is given.
        let put = unsafe { cache.put_device_segments(&keys, &tensor.segments(&there), Some(stream.0)) };
        assert_eq!(put, Ok(3), "{:?}", cache.failures());
        for (value, block) in (101..).zip(there.into_iter().chain(back)) {
            tensor.compute(&fake, stream, block, value);
        }
        // SAFETY: as above, and the segments do not overlap.
        let got = unsafe { cache.get_device_segments(&keys, &tensor.segments(&back), Some(stream.0)) };
        assert_eq!(got, Ok(3), "{:?}", cache.failures());
        tensor.compute(&fake, stream, 6, 9);
        assert_eq!(fake.settle(), Vec::<String>::new(), "seed {seed}");
        for (value, block) in (1..).zip(back) {
            assert!(tensor.holds(block, value), "seed {seed}: block {block}");
        }
        assert!(tensor.holds(0, 101) && tensor.holds(6, 9));
        // Of the device's own accord nothing is ordered.
        // SAFETY: nothing is copied.
        let unordered = unsafe { cache.get_device_segments(&keys, &tensor.segments(&back), None) };
        assert_eq!(unordered, Ok(0));
        assert_eq!(cache.failures().len(), 1);
        drop(cache);
        assert_eq!(fake.settle(), Vec::<String>::new(), "seed {seed}");
    }
}
