//! Pages: an engine's paged KV cache and contiguous slots.

use kvcache_core::copy_engine::{Direction, Piece};
use kvcache_core::store::PageLayout;

use super::{ArgumentError, chunks, count, items, reaches};

/// One layer: its pages in the engine's tensor, and its place in a slot.
///
/// A page is equally spaced runs of bytes. In a slot the runs of a page are contiguous, and so are the pages of a layer.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LayerPages {
    base: u64,
    block_stride: u64,
    segment_stride: u64,
    segment_bytes: u64,
    slot_offset: u64,
    segments: u32,
    block_count: u32,
    chunk_bytes: u32,
    chunks_per_segment: u32,
}

impl LayerPages {
    /// A layer whose pages start `slot_offset` bytes into each slot. Teams of 32 threads take `chunk_bytes` of a run each.
    ///
    /// # Errors
    /// [`ArgumentError`] if `chunk_bytes` is no multiple of 16, a count is zero or too large, or the tensor wraps around.
    pub fn new(pages: &PageLayout, slot_offset: u64, chunk_bytes: u32) -> Result<Self, ArgumentError> {
        let segments = count("segments", pages.segments as u64)?;
        let block_count = count("block_count", pages.block_count as u64)?;
        let segment_bytes = pages.segment_bytes as u64;
        let (block_stride, segment_stride) = (pages.block_stride as u64, pages.segment_stride as u64);
        let steps = [(u64::from(block_count) - 1, block_stride), (u64::from(segments) - 1, segment_stride)];
        reaches("the tensor of a layer", pages.base as u64, &steps, segment_bytes)?;
        reaches("a layer's place in a slot", slot_offset, &[(u64::from(segments), segment_bytes)], 0)?;
        Ok(Self {
            base: pages.base as u64,
            block_stride,
            segment_stride,
            segment_bytes,
            slot_offset,
            segments,
            block_count,
            chunk_bytes,
            chunks_per_segment: chunks(segment_bytes, chunk_bytes)?,
        })
    }

    /// Chunks of a page: as many items of a launch.
    pub(crate) fn chunks_per_page(&self) -> u64 {
        u64::from(self.segments) * u64::from(self.chunks_per_segment)
    }
}

/// Arguments of [`Kernel::GatherPages`](super::Kernel::GatherPages) and
/// [`Kernel::ScatterPages`](super::Kernel::ScatterPages).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PagedCopy {
    pub(crate) layers: u64,
    pub(crate) slots: u64,
    pub(crate) blocks: u64,
    pub(crate) layer_count: u32,
    pub(crate) slot_count: u32,
    pub(crate) slot_blocks: u32,
    pub(crate) chunks_per_page: u32,
}

const _: () = assert!(size_of::<LayerPages>() == 56 && std::mem::offset_of!(LayerPages, segments) == 40);
const _: () = assert!(size_of::<PagedCopy>() == 40 && std::mem::offset_of!(PagedCopy, layer_count) == 24);

impl PagedCopy {
    /// Arguments for all of `layers`, a table that lies at the first address of `tables` (of the GPU, 8-byte aligned).
    ///
    /// The second is that of the slots' addresses, `[slot_count]` as `u64`. The third is that of the engine's block ids,
    /// `[slot_count][slot_blocks]` as `u32`: [`Transfer::SKIP`](kvcache_core::plan::Transfer::SKIP) leaves a block out. Ids
    /// that a layer lacks are left out as well, since a kernel cannot report them: check them before. A launch that scatters
    /// must name no block twice.
    ///
    /// One layer alone: `layers` with one element, its address, and the other tables as they are. O(layers).
    ///
    /// # Errors
    /// [`ArgumentError`] if a count is zero or there are too many chunks for one launch.
    pub fn new(
        tables: [u64; 3],
        layers: &[LayerPages],
        slot_count: usize,
        slot_blocks: usize,
    ) -> Result<Self, ArgumentError> {
        let [table, slots, blocks] = tables;
        let layer_count = count("the number of layers", layers.len() as u64)?;
        let slot_count = count("the number of slots", slot_count as u64)?;
        let slot_blocks = count("slot_blocks", slot_blocks as u64)?;
        let mut chunks_per_page = 1;
        for layer in layers {
            chunks_per_page = chunks_per_page.max(items(&[layer.segments, layer.chunks_per_segment])?);
        }
        items(&[layer_count, slot_count, slot_blocks, chunks_per_page])?;
        Ok(Self { layers: table, slots, blocks, layer_count, slot_count, slot_blocks, chunks_per_page })
    }

    /// Items of the launch, for the choice of its grid.
    pub fn items(&self) -> u32 {
        self.layer_count * self.slot_count * self.slot_blocks * self.chunks_per_page
    }
}

/// What a launch with these tables copies, one piece for each run of each page.
pub fn page_pieces(
    layers: &[LayerPages],
    slots: &[u64],
    blocks: &[u32],
    slot_blocks: usize,
    direction: Direction,
) -> Vec<Piece> {
    let mut pieces = Vec::new();
    for layer in layers {
        for (entry, block) in blocks.iter().enumerate().filter(|(_, block)| **block < layer.block_count) {
            let page_bytes = u64::from(layer.segments) * layer.segment_bytes;
            let slot_page =
                slots[entry / slot_blocks] + layer.slot_offset + (entry % slot_blocks) as u64 * page_bytes;
            let page = layer.base + u64::from(*block) * layer.block_stride;
            for segment in 0..u64::from(layer.segments) {
                let engine_side = (page + segment * layer.segment_stride) as usize;
                let slot_side = (slot_page + segment * layer.segment_bytes) as usize;
                let (src, dst) = match direction {
                    Direction::Load => (slot_side, engine_side),
                    Direction::Offload => (engine_side, slot_side),
                };
                pieces.push(Piece { src, dst, bytes: layer.segment_bytes as usize });
            }
        }
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvcache_core::BlockKey;
    use kvcache_core::directory::FillId;
    use kvcache_core::eviction::SlotId;
    use kvcache_core::plan::{EngineHash, Transfer};
    use kvcache_core::store::{EngineLayout, LayerBinding};
    use proptest::prelude::*;

    fn each_byte(pieces: &[Piece]) -> Vec<(usize, usize)> {
        let mut bytes: Vec<_> =
            pieces.iter().flat_map(|p| (0..p.bytes).map(|i| (p.src + i, p.dst + i))).collect();
        bytes.sort_unstable();
        bytes
    }

    proptest! {
        /// The Store lays out slots; the kernels have to move the same bytes to the same places.
        #[test]
        fn pages_lie_in_slots_where_the_store_expects_them(
            shapes in prop::collection::vec((1usize..4, 1usize..40, 0usize..5), 1..4),
            slot_blocks in 1usize..4,
            picks in prop::collection::vec(prop::option::of(0u32..5), 3),
            load: bool,
        ) {
            let direction = if load { Direction::Load } else { Direction::Offload };
            let mut slot_offset = 0;
            let mut bindings = Vec::new();
            let mut layers = Vec::new();
            for (i, (segments, segment_bytes, gap)) in shapes.iter().copied().enumerate() {
                let pages = PageLayout {
                    base: (i + 1) << 20, block_stride: (segment_bytes + gap) * segments, block_count: 5,
                    segments, segment_stride: segment_bytes + gap, segment_bytes,
                };
                layers.push(LayerPages::new(&pages, slot_offset as u64, 64).unwrap());
                slot_offset += pages.page_bytes() * slot_blocks;
                bindings.push(LayerBinding { name: format!("layer {i}"), group: 0, pages });
            }
            let blocks: Vec<u32> = picks[..slot_blocks].iter().map(|pick| pick.unwrap_or(Transfer::SKIP)).collect();
            let transfer = Transfer {
                slot: SlotId(0), fill: FillId(1), group: 0, key: BlockKey([1; 16]), parent: BlockKey::default(),
                engine_hash: EngineHash::default(), blocks: blocks.clone(),
            };
            let layout = EngineLayout::new(bindings, slot_blocks).unwrap();
            let mut expected = Vec::new();
            for layer in 0..layers.len() {
                layout.pieces(layer, &transfer, 777, direction, &mut expected).unwrap();
            }
            let pieces = page_pieces(&layers, &[777], &blocks, slot_blocks, direction);
            prop_assert_eq!(each_byte(&pieces), each_byte(&expected));
        }
    }

    #[test]
    fn what_no_kernel_can_do_is_refused() {
        let pages = PageLayout {
            base: 0,
            block_stride: 64,
            block_count: 8,
            segments: 1,
            segment_stride: 64,
            segment_bytes: 64,
        };
        let layer = LayerPages::new(&pages, 0, 16).unwrap();
        let copy = PagedCopy::new([0; 3], &[layer; 2], 3, 5).unwrap();
        assert_eq!(copy.items(), 2 * 3 * 5 * 4);
        let error = PagedCopy::new([0; 3], &[layer], 1 << 30, 1).unwrap_err().to_string();
        assert_eq!(
            error,
            "a launch of 4294967296 items exceeds 2147483648: split its table or use larger chunks"
        );
        let error = PagedCopy::new([0; 3], &[layer], 1, 0).unwrap_err().to_string();
        assert_eq!(error, "slot_blocks is 0: use 1 to 4294967295");
        assert_eq!(LayerPages::new(&pages, 0, 20), Err(ArgumentError::ChunkBytes(20)));
        let far = PageLayout { base: usize::MAX - 100, ..pages };
        assert_eq!(
            LayerPages::new(&far, 0, 16),
            Err(ArgumentError::AddressSpace { name: "the tensor of a layer" })
        );
        assert!(LayerPages::new(&PageLayout { segments: 0, ..pages }, 0, 16).is_err());
    }
}
