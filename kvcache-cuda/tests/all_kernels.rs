//! Every kernel of the image on any driver, against what `page_pieces` and `token_pieces` say it copies.
//!
//! On the fake always; on a GPU with `cargo test -p kvcache-cuda --test all_kernels -- --ignored`, or by `benches/gpu/run.sh`
//! where there is no toolchain.
#![expect(clippy::unwrap_used, reason = "helpers of tests, outside of the functions that are marked as such")]

use kvcache_core::copy_engine::{Direction, Piece};
use kvcache_core::store::PageLayout;
use kvcache_cuda::driver::{
    Arguments, CudaDriver, Driver, Event, HostAllocation, LaunchShape, Priority, Stream,
};
use kvcache_cuda::fake::FakeDevice;
use kvcache_cuda::kernels::{
    BlockStrides, Kernel, LayerPages, PageStrides, PagedCopy, Plain, TokenCopy, TokenTables, page_pieces,
    table_bytes, token_pieces,
};

#[test]
fn the_fake_runs_all_kernels() {
    let device = FakeDevice::new(1);
    run_all(&*device);
    assert_eq!(device.settle(), Vec::<String>::new());
}

#[test]
#[ignore = "needs a CUDA device"]
fn a_gpu_runs_all_kernels() {
    run_all(&*CudaDriver::open(0).unwrap());
}

const SHAPES: [LaunchShape; 2] =
    [LaunchShape { blocks: 1, threads: 32 }, LaunchShape { blocks: 16, threads: 512 }];

fn run_all(driver: &dyn Driver) {
    driver.load_kernels().unwrap();
    for direction in [Direction::Load, Direction::Offload] {
        for shape in SHAPES {
            for case in PAGES {
                copy_pages(driver, &case, direction, shape);
            }
            for case in TOKENS {
                copy_tokens(driver, &case, direction, shape);
            }
        }
    }
}

/// Pages of some layers, at distances from each other.
#[derive(Debug)]
struct Pages {
    /// From one layer's first page to the next one's.
    layer_stride: usize,
    block_stride: usize,
    segments: usize,
    segment_stride: usize,
    segment_bytes: usize,
    /// What the engine's tensor begins with: makes addresses odd.
    offset: usize,
    chunk_bytes: u32,
}

const LAYERS: usize = 3;
const BLOCKS: usize = 11;
const SLOTS: usize = 3;
const SLOT_BLOCKS: usize = 3;

const PAGES: [Pages; 4] = [
    // Layers first, pages of 64 KiB.
    Pages {
        layer_stride: BLOCKS << 16,
        block_stride: 1 << 16,
        segments: 1,
        segment_stride: 1 << 16,
        segment_bytes: 1 << 16,
        offset: 0,
        chunk_bytes: 8192,
    },
    // Blocks first, pages of 8 KiB.
    Pages {
        layer_stride: 8192,
        block_stride: LAYERS * 8192,
        segments: 1,
        segment_stride: 8192,
        segment_bytes: 8192,
        offset: 0,
        chunk_bytes: 8192,
    },
    // Heads outside of the layers: each page in four runs.
    Pages {
        layer_stride: 2048,
        block_stride: 4 * LAYERS * 2048,
        segments: 4,
        segment_stride: LAYERS * 2048,
        segment_bytes: 2048,
        offset: 16,
        chunk_bytes: 512,
    },
    // No alignment at all.
    Pages {
        layer_stride: 30_011,
        block_stride: 2501,
        segments: 2,
        segment_stride: 1207,
        segment_bytes: 1001,
        offset: 3,
        chunk_bytes: 64,
    },
];

fn copy_pages(driver: &dyn Driver, case: &Pages, direction: Direction, shape: LaunchShape) {
    let page = case.segments * case.segment_bytes;
    let slot_bytes = LAYERS * SLOT_BLOCKS * page;
    let engine_bytes = case.offset
        + (LAYERS - 1) * case.layer_stride
        + (BLOCKS - 1) * case.block_stride
        + (case.segments - 1) * case.segment_stride
        + case.segment_bytes;
    let sides = Sides::new(driver, engine_bytes, SLOTS * slot_bytes);
    let layers: Vec<_> = (0..LAYERS)
        .map(|layer| {
            let pages = PageLayout {
                base: sides.engine as usize + case.offset + layer * case.layer_stride,
                block_stride: case.block_stride,
                block_count: BLOCKS,
                segments: case.segments,
                segment_stride: case.segment_stride,
                segment_bytes: case.segment_bytes,
            };
            LayerPages::new(&pages, (layer * SLOT_BLOCKS * page) as u64, case.chunk_bytes).unwrap()
        })
        .collect();
    let slots: Vec<u64> =
        [2, 0, 1].iter().map(|slot| sides.slots.device + (slot * slot_bytes) as u64).collect();
    // One is left out, one does not exist.
    let blocks = [3, 10, u32::MAX, 0, 7, 1, BLOCKS as u32, 5, 9];
    let tables = [sides.table(&layers), sides.table(&slots), sides.table(&blocks)];
    let places = [tables[0].device, tables[1].device, tables[2].device];
    let arguments = Arguments::Pages(PagedCopy::new(places, &layers, SLOTS, SLOT_BLOCKS).unwrap());
    let pieces = page_pieces(&layers, &slots, &blocks, SLOT_BLOCKS, direction);
    sides.check(Kernel::pages(direction), &arguments, shape, &pieces, &format!("{case:?}"));
    sides.free(&tables);
}

/// Head vectors in an engine's pages `[pages][K,V][tokens][heads, dim]`.
#[derive(Debug)]
struct Tokens {
    kv_count: u32,
    heads: u32,
    head_bytes: u64,
    /// The blocks hold tokens outermost.
    ncld: bool,
}

const PAGE_TOKENS: u32 = 16;
const BLOCK_TOKENS: u32 = 24;

const TOKENS: [Tokens; 4] = [
    Tokens { kv_count: 2, heads: 8, head_bytes: 256, ncld: false },
    Tokens { kv_count: 2, heads: 8, head_bytes: 256, ncld: true },
    Tokens { kv_count: 1, heads: 1, head_bytes: 1152, ncld: true },
    Tokens { kv_count: 2, heads: 3, head_bytes: 21, ncld: false },
];

fn copy_tokens(driver: &dyn Driver, case: &Tokens, direction: Direction, shape: LaunchShape) {
    let (page_count, block_count) = (7u64, 2u64);
    let (kv_count, heads) = (u64::from(case.kv_count), u64::from(case.heads));
    let row = heads * case.head_bytes;
    let page_bytes = kv_count * u64::from(PAGE_TOKENS) * row;
    let block_bytes = LAYERS as u64 * kv_count * u64::from(BLOCK_TOKENS) * row;
    let sides = Sides::new(
        driver,
        (LAYERS as u64 * page_count * page_bytes) as usize,
        (block_count * block_bytes) as usize,
    );
    let bases: Vec<u64> =
        (0..LAYERS as u64).map(|layer| sides.engine + layer * page_count * page_bytes).collect();
    let places = page_count * u64::from(PAGE_TOKENS);
    // Each place once; some tokens have none.
    let slot_mapping: Vec<i64> = (0..block_count * u64::from(BLOCK_TOKENS))
        .map(|token| match token % 10 {
            7 => -1,
            9 => (places + token) as i64,
            _ => (token * 23 % places) as i64,
        })
        .collect();
    let blocks: Vec<u64> =
        (0..block_count).rev().map(|block| sides.slots.device + block * block_bytes).collect();
    let tables = [sides.table(&bases), sides.table(&slot_mapping), sides.table(&blocks)];
    let block_strides = if case.ncld {
        BlockStrides::ncld(kv_count, LAYERS as u64, heads, case.head_bytes)
    } else {
        BlockStrides::lcnd(kv_count, u64::from(BLOCK_TOKENS), heads, case.head_bytes)
    };
    let copy = TokenCopy {
        bases: tables[0].device,
        slot_mapping: tables[1].device,
        blocks: tables[2].device,
        page_strides: PageStrides {
            page: page_bytes,
            kv: u64::from(PAGE_TOKENS) * row,
            token: row,
            head: case.head_bytes,
        },
        block_strides,
        head_bytes: case.head_bytes,
        first_layer: 0,
        layer_count: LAYERS as u32,
        kv_count: case.kv_count,
        heads: case.heads,
        page_tokens: PAGE_TOKENS,
        page_count: page_count as u32,
        block_tokens: BLOCK_TOKENS,
        block_count: block_count as u32,
    };
    let named = TokenTables { bases: &bases, slot_mapping: &slot_mapping, blocks: &blocks };
    let arguments = Arguments::Tokens(copy.checked(&named).unwrap());
    let pieces = token_pieces(&copy, &named, direction);
    sides.check(Kernel::tokens(direction), &arguments, shape, &pieces, &format!("{case:?}"));
    sides.free(&tables);
}

/// The engine's side in the device's memory, the other in pinned memory, and what fills them.
struct Sides<'a> {
    driver: &'a dyn Driver,
    stream: Stream,
    done: Event,
    engine: u64,
    slots: HostAllocation,
    staging: HostAllocation,
    before: [Vec<u8>; 2],
}

impl<'a> Sides<'a> {
    fn new(driver: &'a dyn Driver, engine_bytes: usize, slots_bytes: usize) -> Self {
        let sides = Self {
            driver,
            stream: driver.create_stream(Priority::Low).unwrap(),
            done: driver.create_event().unwrap(),
            engine: driver.allocate_device(engine_bytes).unwrap(),
            slots: driver.allocate_host(slots_bytes).unwrap(),
            staging: driver.allocate_host(engine_bytes).unwrap(),
            before: [content(engine_bytes, 2_654_435_761), content(slots_bytes, 2_246_822_519)],
        };
        write(sides.staging.host, &sides.before[0]);
        write(sides.slots.host, &sides.before[1]);
        sides.copy(sides.staging.host, sides.engine as usize);
        sides
    }

    fn table<Entry: Plain>(&self, entries: &[Entry]) -> HostAllocation {
        let bytes = table_bytes(entries);
        let memory = self.driver.allocate_host(bytes.len()).unwrap();
        write(memory.host, bytes);
        memory
    }

    /// Launches, and compares all bytes of both sides.
    fn check(&self, kernel: Kernel, arguments: &Arguments, shape: LaunchShape, pieces: &[Piece], case: &str) {
        // SAFETY: the memory lives until `free`, and the tables are mapped; `wait` sees the end.
        unsafe { self.driver.launch(kernel, arguments, shape, self.stream) }.unwrap();
        self.wait();
        let mut expected = self.before.clone();
        assert!(!pieces.is_empty());
        for piece in pieces {
            let ((from, src), (to, dst)) = (self.place(piece.src), self.place(piece.dst));
            let moved = self.before[from][src..src + piece.bytes].to_vec();
            expected[to][dst..dst + piece.bytes].copy_from_slice(&moved);
        }
        assert!(expected != self.before);
        self.copy(self.engine as usize, self.staging.host);
        for (found, expected) in [self.staging.host, self.slots.host].into_iter().zip(&expected) {
            let found = read(found, expected.len());
            let wrong = found.iter().zip(expected).position(|(found, expected)| found != expected);
            assert_eq!(wrong, None, "{kernel:?}, {shape:?}, {case}: the first byte that is wrong");
        }
    }

    /// Side and offset of an address of a piece.
    fn place(&self, address: usize) -> (usize, usize) {
        [self.engine, self.slots.device]
            .iter()
            .zip(&self.before)
            .enumerate()
            .find_map(|(side, (base, bytes))| {
                let offset = address.checked_sub(*base as usize)?;
                (offset < bytes.len()).then_some((side, offset))
            })
            .unwrap()
    }

    fn copy(&self, src: usize, dst: usize) {
        // SAFETY: all of the engine's memory and of the staging memory, which are as long, until `wait` returns.
        unsafe { self.driver.copy(Piece { src, dst, bytes: self.before[0].len() }, self.stream) }.unwrap();
        self.wait();
    }

    fn wait(&self) {
        self.driver.record_event(self.done, self.stream).unwrap();
        self.driver.synchronize_event(self.done).unwrap();
    }

    fn free(self, tables: &[HostAllocation]) {
        self.driver.destroy_event(self.done);
        self.driver.destroy_stream(self.stream);
        self.driver.free_device(self.engine);
        for memory in tables.iter().chain([&self.slots, &self.staging]) {
            self.driver.free_host(memory.host);
        }
    }
}

fn content(bytes: usize, factor: u32) -> Vec<u8> {
    (0..bytes as u32).map(|i| (i.wrapping_mul(factor) >> 13) as u8).collect()
}

fn write(at: usize, bytes: &[u8]) {
    // SAFETY: callers name memory of at least as many bytes, which nothing else touches now.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), at as *mut u8, bytes.len()) };
}

fn read(at: usize, bytes: usize) -> Vec<u8> {
    // SAFETY: as above; what wrote it has ended.
    unsafe { std::slice::from_raw_parts(at as *const u8, bytes) }.to_vec()
}
