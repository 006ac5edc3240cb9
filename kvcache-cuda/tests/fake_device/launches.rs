//! Launches do what the kernels' meaning says, with tables that lie in the device's or in mapped memory.

use kvcache_core::copy_engine::{Direction, Piece};
use kvcache_core::store::PageLayout;
use kvcache_cuda::driver::{Arguments, Driver, LaunchShape, Stream};
use kvcache_cuda::fake::FakeDevice;
use kvcache_cuda::kernels::{
    BlockStrides, Kernel, LayerPages, PageStrides, PagedCopy, PieceCopy, PieceEntry, Plain, TokenCopy,
    TokenTables, page_pieces, table_bytes, token_pieces,
};

use crate::program::{Calls, Tensor, bytes, fill};

pub(crate) const SHAPE: LaunchShape = LaunchShape { blocks: 8, threads: 256 };

/// A table that kernels reach: its address for them.
pub(crate) fn table<Entry: Plain>(device: &FakeDevice, entries: &[Entry]) -> u64 {
    let content = table_bytes(entries);
    let memory = device.allocate_host(content.len()).unwrap();
    fill(memory.host, content);
    memory.device
}

fn launch(device: &FakeDevice, kernel: Kernel, arguments: Arguments, stream: Stream) {
    // SAFETY: tests keep the memory to their end.
    unsafe { device.launch(kernel, &arguments, SHAPE, stream) }.unwrap();
}

/// Where the engine's side is: a tensor of counted bytes; and the slots' side, pinned, with its address for kernels.
struct Sides {
    engine: Tensor,
    slots: usize,
    slots_for_kernels: u64,
}

const SIDE_BYTES: usize = 4096;

impl Sides {
    fn new(device: &FakeDevice) -> Self {
        let engine = Tensor::on(device, SIDE_BYTES);
        let slots = device.allocate_host(SIDE_BYTES).unwrap();
        let counted = |seed: usize| (0..SIDE_BYTES).map(|i| ((i * seed) >> 3) as u8).collect::<Vec<_>>();
        fill(engine.at(), &counted(37));
        fill(slots.host, &counted(11));
        Self { engine, slots: slots.host, slots_for_kernels: slots.device }
    }

    /// Both sides after the pieces, which name addresses of kernels.
    fn expected(&self, pieces: &[Piece]) -> [Vec<u8>; 2] {
        let mut sides = self.content();
        let place = |address: usize| match address.checked_sub(self.slots_for_kernels as usize) {
            Some(offset) => (1, offset),
            None => (0, address - self.engine.at()),
        };
        assert!(!pieces.is_empty());
        for piece in pieces {
            let ((from, src), (to, dst)) = (place(piece.src), place(piece.dst));
            let moved = sides[from][src..src + piece.bytes].to_vec();
            sides[to][dst..dst + piece.bytes].copy_from_slice(&moved);
        }
        sides
    }

    fn content(&self) -> [Vec<u8>; 2] {
        [bytes(self.engine.at(), SIDE_BYTES), bytes(self.slots, SIDE_BYTES)]
    }
}

/// Launches, and compares both sides with the pieces.
fn check(device: &FakeDevice, sides: &Sides, kernel: Kernel, arguments: Arguments, pieces: &[Piece]) {
    let (before, expected) = (sides.content(), sides.expected(pieces));
    assert_ne!(before, expected);
    launch(device, kernel, arguments, device.stream());
    assert_eq!(sides.content(), before, "it ran at once");
    assert_eq!(device.settle(), [""; 0]);
    assert_eq!(sides.content(), expected, "{kernel:?}");
}

#[test]
fn launches_copy_pages() {
    for direction in [Direction::Load, Direction::Offload] {
        let device = FakeDevice::new(8);
        device.load_kernels().unwrap();
        let sides = Sides::new(&device);
        let layout = |layer: usize| PageLayout {
            base: sides.engine.at() + layer * 2048,
            block_stride: 64,
            block_count: 8,
            segments: 2,
            segment_stride: 512,
            segment_bytes: 48,
        };
        let layers =
            [LayerPages::new(&layout(0), 0, 16).unwrap(), LayerPages::new(&layout(1), 512, 16).unwrap()];
        let slots = [sides.slots_for_kernels, sides.slots_for_kernels + 1024];
        let blocks = [3, u32::MAX, 0, 7];
        let tables = [table(&device, &layers), table(&device, &slots), table(&device, &blocks)];
        let arguments = Arguments::Pages(PagedCopy::new(tables, &layers, 2, 2).unwrap());
        let pieces = page_pieces(&layers, &slots, &blocks, 2, direction);
        check(&device, &sides, Kernel::pages(direction), arguments, &pieces);
    }
}

#[test]
fn launches_copy_tokens() {
    for direction in [Direction::Load, Direction::Offload] {
        let device = FakeDevice::new(9);
        device.load_kernels().unwrap();
        let sides = Sides::new(&device);
        let bases = [sides.engine.at() as u64, sides.engine.at() as u64 + 2048];
        let slot_mapping = [5i64, -1, 0, 2, 7, 99];
        let blocks = [sides.slots_for_kernels, sides.slots_for_kernels + 1024];
        let copy = TokenCopy {
            bases: table(&device, &bases),
            slot_mapping: table(&device, &slot_mapping),
            blocks: table(&device, &blocks),
            page_strides: PageStrides { page: 512, kv: 256, token: 32, head: 16 },
            block_strides: BlockStrides::ncld(2, 2, 2, 16),
            head_bytes: 16,
            first_layer: 0,
            layer_count: 2,
            kv_count: 2,
            heads: 2,
            page_tokens: 4,
            page_count: 2,
            block_tokens: 3,
            block_count: 2,
        };
        let tables = TokenTables { bases: &bases, slot_mapping: &slot_mapping, blocks: &blocks };
        let arguments = Arguments::Tokens(copy.checked(&tables).unwrap());
        check(
            &device,
            &sides,
            Kernel::tokens(direction),
            arguments,
            &token_pieces(&copy, &tables, direction),
        );
    }
}

/// The table is copied to the device by the stream itself, as the engine does it.
#[test]
fn launches_copy_pieces_that_a_table_on_the_device_names() {
    let device = FakeDevice::new(10);
    device.load_kernels().unwrap();
    let sides = Sides::new(&device);
    let (engine, slots) = (sides.engine.at(), sides.slots_for_kernels as usize);
    let pieces = [
        Piece { src: slots + 1, dst: engine + 3, bytes: 100 },
        Piece { src: engine + 2000, dst: slots + 2000, bytes: 333 },
        Piece { src: slots, dst: engine, bytes: 0 },
        Piece { src: slots + 200, dst: engine + 1000, bytes: 1 },
    ];
    let entries: Vec<PieceEntry> = pieces.iter().map(|piece| PieceEntry::from(*piece)).collect();
    let content = table_bytes(&entries);
    let on_device = device.allocate_device(content.len()).unwrap();
    let staging = device.allocate_host(content.len()).unwrap();
    fill(staging.host, content);
    let stream = device.stream();
    let staged = Piece { src: staging.host, dst: on_device as usize, bytes: content.len() };
    // SAFETY: both are allocations that live as long as the device.
    unsafe { device.copy(staged, stream) }.unwrap();
    let expected = sides.expected(&pieces);
    launch(
        &device,
        Kernel::CopyPieces,
        Arguments::Pieces(PieceCopy::new(on_device, &entries, 64).unwrap()),
        stream,
    );
    assert_eq!(device.settle(), [""; 0]);
    assert_eq!(sides.content(), expected);
}
