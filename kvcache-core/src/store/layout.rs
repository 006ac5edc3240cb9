//! Where a block's bytes are: in the engine's tensors, and in a slot.
//!
//! A slot holds `slot_blocks` consecutive engine blocks of one KV cache group, layer by layer:
//!
//! ```text
//! slot:  | layer 0: block 0, block 1, … | layer 1: block 0, block 1, … | …      (pages, contiguous)
//! ```
//!
//! Pages are opaque bytes. In the engine a page is one run of bytes, or equally spaced runs (a layout with the heads
//! outside of the blocks), at a constant stride from block to block.

use crate::copy_engine::{Direction, Piece};
use crate::plan::Transfer;

/// One layer's pages in the engine's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageLayout {
    /// Address of block 0.
    pub base: usize,
    /// Bytes from one block to the next.
    pub block_stride: usize,
    /// Blocks in the tensor.
    pub block_count: usize,
    /// Contiguous runs of a page.
    pub segments: usize,
    /// Bytes from one run to the next.
    pub segment_stride: usize,
    /// Bytes of a run.
    pub segment_bytes: usize,
}

impl PageLayout {
    /// Bytes of a page.
    pub fn page_bytes(&self) -> usize {
        self.segments * self.segment_bytes
    }
}

/// One layer: its name in the engine, its group and its pages.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LayerBinding {
    /// The engine's name.
    pub name: String,
    /// The KV cache group.
    pub group: u16,
    /// Its pages.
    pub pages: PageLayout,
}

/// All layers of a rank, in the order in which the forward pass reaches them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EngineLayout {
    layers: Vec<LayerBinding>,
    /// Offset of each layer within its group's slots.
    offsets: Vec<usize>,
    slot_blocks: usize,
    slot_bytes: usize,
}

/// A layout that cannot be served.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum LayoutError {
    /// No layers were given.
    #[error("no KV cache layers were given: there are no attention layers that could be stored")]
    NoLayers,
    /// A layer's numbers do not describe pages.
    #[error(
        "layer {layer}: pages of {segments} runs of {segment_bytes} bytes every {segment_stride} bytes do not fit blocks \
         {block_stride} bytes apart: this KV layout is not supported, choose another (in vLLM by VLLM_KV_CACHE_LAYOUT)"
    )]
    Overlap {
        /// The layer.
        layer: String,
        /// Runs of a page.
        segments: usize,
        /// Bytes of a run.
        segment_bytes: usize,
        /// Bytes between runs.
        segment_stride: usize,
        /// Bytes between blocks.
        block_stride: usize,
    },
    /// A slot holds at least one block.
    #[error("slot_blocks is 0: use 1 or more")]
    NoBlocks,
    /// Numbers that no address can have.
    #[error(
        "layer {layer}: {block_count} blocks {block_stride} bytes apart, of {segments} runs of {segment_bytes} bytes, or slots of \
         {slot_blocks} of them, are more than memory can hold: lower slot_blocks, or mend the layer"
    )]
    TooLarge {
        /// The layer.
        layer: String,
        /// Blocks in the tensor.
        block_count: usize,
        /// Bytes between blocks.
        block_stride: usize,
        /// Runs of a page.
        segments: usize,
        /// Bytes of a run.
        segment_bytes: usize,
        /// Blocks in a slot.
        slot_blocks: usize,
    },
}

/// A block id that the engine's tensors do not have.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("block {block} of layer {layer} is out of range: the tensor holds {block_count} blocks")]
pub struct BadBlock {
    block: u32,
    layer: String,
    block_count: usize,
}

impl EngineLayout {
    /// Checks the layers and lays out the slots.
    ///
    /// # Errors
    /// [`LayoutError`] names the layer and its numbers.
    pub fn new(layers: Vec<LayerBinding>, slot_blocks: usize) -> Result<Self, LayoutError> {
        if layers.is_empty() {
            return Err(LayoutError::NoLayers);
        }
        if slot_blocks == 0 {
            return Err(LayoutError::NoBlocks);
        }
        let groups = layers.iter().map(|layer| usize::from(layer.group) + 1).max().unwrap_or(1);
        let mut used = vec![0usize; groups];
        let mut offsets = Vec::with_capacity(layers.len());
        for layer in &layers {
            let pages = layer.pages;
            let group = usize::from(layer.group);
            let Some(end) = slot_end(&pages, slot_blocks, used[group]) else {
                return Err(LayoutError::TooLarge {
                    layer: layer.name.clone(),
                    block_count: pages.block_count,
                    block_stride: pages.block_stride,
                    segments: pages.segments,
                    segment_bytes: pages.segment_bytes,
                    slot_blocks,
                });
            };
            // Runs must not overlap each other, and blocks must not overlap: either whole pages lie apart, or the runs
            // of a page are so far apart that the blocks lie between them.
            let extent =
                pages.segment_stride.saturating_mul(pages.segments.saturating_sub(1)) + pages.segment_bytes;
            let runs_apart = pages.segments <= 1 || pages.segment_stride >= pages.segment_bytes;
            let between = pages.block_stride.saturating_mul(pages.block_count) <= pages.segment_stride
                && pages.block_stride >= pages.segment_bytes;
            if pages.page_bytes() == 0 || !runs_apart || !(pages.block_stride >= extent || between) {
                return Err(LayoutError::Overlap {
                    layer: layer.name.clone(),
                    segments: pages.segments,
                    segment_bytes: pages.segment_bytes,
                    segment_stride: pages.segment_stride,
                    block_stride: pages.block_stride,
                });
            }
            offsets.push(used[group]);
            used[group] = end;
        }
        // One pool serves all groups, so a slot is as large as the largest group needs. Engines give their groups equal
        // page sizes and layer counts, so this wastes little.
        let slot_bytes = used.iter().copied().max().unwrap_or(0);
        Ok(Self { layers, offsets, slot_blocks, slot_bytes })
    }

    /// The layers, in order.
    pub fn layers(&self) -> &[LayerBinding] {
        &self.layers
    }

    /// Index of the last layer.
    pub fn last_layer(&self) -> usize {
        self.layers.len() - 1
    }

    /// Engine blocks in a slot.
    pub fn slot_blocks(&self) -> usize {
        self.slot_blocks
    }

    /// Bytes of a slot on this rank.
    pub fn slot_bytes(&self) -> usize {
        self.slot_bytes
    }

    /// Bytes of a page of `layer`.
    pub fn page_bytes(&self, layer: usize) -> usize {
        self.layers[layer].pages.page_bytes()
    }

    /// Appends the copies of one layer of `transfer` to `pieces`. Neighbouring pages become one piece, and the first one
    /// continues the last of `pieces` where it can: all layers of a block are one piece where the engine keeps them together.
    ///
    /// # Errors
    /// [`BadBlock`] if a block id lies outside of the tensor; `pieces` is unchanged then.
    pub fn pieces(
        &self,
        layer: usize,
        transfer: &Transfer,
        slot_address: usize,
        direction: Direction,
        pieces: &mut Vec<Piece>,
    ) -> Result<(), BadBlock> {
        let binding = &self.layers[layer];
        if binding.group != transfer.group {
            return Ok(());
        }
        let pages = binding.pages;
        let blocks = transfer.blocks.iter().take(self.slot_blocks);
        let is_bad = |block: &&u32| **block != Transfer::SKIP && **block as usize >= pages.block_count;
        if let Some(block) = blocks.clone().find(is_bad) {
            let layer = binding.name.clone();
            return Err(BadBlock { block: *block, layer, block_count: pages.block_count });
        }
        let mut slot_side = slot_address + self.offsets[layer];
        for block in blocks {
            if *block == Transfer::SKIP {
                slot_side += pages.page_bytes();
                continue;
            }
            let mut engine_side = pages.base + *block as usize * pages.block_stride;
            for _ in 0..pages.segments {
                let (src, dst) = match direction {
                    Direction::Load => (slot_side, engine_side),
                    Direction::Offload => (engine_side, slot_side),
                };
                match pieces.last_mut() {
                    Some(last) if last.src + last.bytes == src && last.dst + last.bytes == dst => {
                        last.bytes += pages.segment_bytes;
                    }
                    _ => pieces.push(Piece { src, dst, bytes: pages.segment_bytes }),
                }
                slot_side += pages.segment_bytes;
                engine_side += pages.segment_stride;
            }
        }
        Ok(())
    }
}

/// Where a layer's part of a slot ends that begins at `start`; `None` if that, or any address of the layer, is none.
fn slot_end(pages: &PageLayout, slot_blocks: usize, start: usize) -> Option<usize> {
    let extent = pages
        .segment_stride
        .checked_mul(pages.segments.saturating_sub(1))?
        .checked_add(pages.segment_bytes)?;
    let layer = pages.block_stride.checked_mul(pages.block_count)?.checked_add(extent)?;
    pages.base.checked_add(layer)?;
    let page_bytes = pages.segments.checked_mul(pages.segment_bytes)?;
    let end = page_bytes.checked_mul(slot_blocks)?.checked_add(start)?;
    isize::try_from(end).is_ok().then_some(end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::BlockKey;
    use crate::directory::FillId;
    use crate::eviction::SlotId;
    use crate::plan::EngineHash;
    use proptest::prelude::*;

    fn transfer(group: u16, blocks: &[u32]) -> Transfer {
        Transfer {
            slot: SlotId(0),
            fill: FillId(1),
            group,
            key: BlockKey([1; 16]),
            parent: BlockKey::default(),
            engine_hash: EngineHash::default(),
            blocks: blocks.to_vec(),
        }
    }

    fn layer(name: &str, group: u16, pages: PageLayout) -> LayerBinding {
        LayerBinding { name: name.into(), group, pages }
    }

    /// Sums that do not fit are refused: wrapped, they would be places inside of other blocks.
    #[test]
    fn numbers_that_no_memory_has_are_refused() {
        let small = PageLayout {
            base: 4096,
            block_stride: 64,
            block_count: 4,
            segments: 1,
            segment_stride: 64,
            segment_bytes: 64,
        };
        let huge = usize::MAX / 2;
        let layouts = [
            (PageLayout { segment_bytes: huge, block_stride: huge, ..small }, 4),
            (PageLayout { segments: huge, segment_bytes: 4, ..small }, 1),
            (PageLayout { segments: 2, segment_stride: usize::MAX, ..small }, 1),
            (PageLayout { block_count: huge, ..small }, 1),
            (PageLayout { base: usize::MAX - 100, ..small }, 1),
            (small, huge),
        ];
        for (pages, slot_blocks) in layouts {
            let refused = EngineLayout::new(vec![layer("l0", 0, pages)], slot_blocks);
            assert!(
                matches!(refused, Err(LayoutError::TooLarge { .. })),
                "{pages:?} {slot_blocks}: {refused:?}"
            );
        }
        // Each alone would fit.
        let half = PageLayout { segment_bytes: 1 << 61, block_stride: 1 << 61, block_count: 1, ..small };
        let layers = (0..4).map(|number| layer(&format!("l{number}"), 0, half)).collect();
        assert!(matches!(EngineLayout::new(layers, 1), Err(LayoutError::TooLarge { .. })));
        assert!(EngineLayout::new(vec![layer("l0", 0, small)], 2).is_ok());
    }

    proptest! {
        /// Pieces move exactly the bytes that the definition of the layout names, in both directions.
        #[test]
        fn pieces_cover_each_byte_of_each_page_once(
            segments in 1usize..4, segment_bytes in 1usize..9, gap in 0usize..5, between in any::<bool>(),
            slot_blocks in 1usize..5, picks in prop::collection::vec(prop::option::of(0u32..6), 1..5),
        ) {
            let block_count = 6;
            let (segment_stride, block_stride) = if between {
                ((segment_bytes + gap) * block_count, segment_bytes + gap)
            } else {
                (segment_bytes + gap, (segment_bytes + gap) * segments)
            };
            let pages = PageLayout { base: 10_000, block_stride, block_count, segments, segment_stride, segment_bytes };
            let layout = EngineLayout::new(vec![layer("a", 0, pages), layer("b", 1, pages), layer("c", 0, pages)], slot_blocks).unwrap();
            prop_assert_eq!(layout.slot_bytes(), 2 * slot_blocks * segments * segment_bytes);
            let blocks: Vec<u32> = (0..slot_blocks).map(|i| picks.get(i).copied().flatten().unwrap_or(Transfer::SKIP)).collect();
            let mut expected = Vec::new();
            for (i, block) in blocks.iter().enumerate().filter(|(_, block)| **block != Transfer::SKIP) {
                for segment in 0..segments {
                    for byte in 0..segment_bytes {
                        // Layer "c" is the second of group 0.
                        let slot = 500 + (slot_blocks + i) * segments * segment_bytes + segment * segment_bytes + byte;
                        expected.push((10_000 + *block as usize * block_stride + segment * segment_stride + byte, slot));
                    }
                }
            }
            for direction in [Direction::Offload, Direction::Load] {
                let mut pieces = Vec::new();
                layout.pieces(2, &transfer(0, &blocks), 500, direction, &mut pieces).unwrap();
                let mut moved: Vec<(usize, usize)> = pieces
                    .iter()
                    .flat_map(|p| (0..p.bytes).map(|i| (p.src + i, p.dst + i)))
                    .map(|(src, dst)| if direction == Direction::Offload { (src, dst) } else { (dst, src) })
                    .collect();
                moved.sort_by_key(|(_, slot)| *slot);
                prop_assert_eq!(&moved, &expected);
                let mut none = Vec::new();
                layout.pieces(1, &transfer(0, &blocks), 500, direction, &mut none).unwrap();
                prop_assert!(none.is_empty(), "a layer of another group is not touched");
            }
        }
    }

    #[test]
    fn consecutive_blocks_become_one_piece() {
        let pages = PageLayout {
            base: 0,
            block_stride: 64,
            block_count: 8,
            segments: 1,
            segment_stride: 64,
            segment_bytes: 64,
        };
        let layout = EngineLayout::new(vec![layer("a", 0, pages)], 4).unwrap();
        let mut pieces = Vec::new();
        layout.pieces(0, &transfer(0, &[2, 3, 4, 6]), 1000, Direction::Offload, &mut pieces).unwrap();
        assert_eq!(
            pieces,
            [Piece { src: 128, dst: 1000, bytes: 192 }, Piece { src: 384, dst: 1192, bytes: 64 }]
        );
    }

    #[test]
    fn bad_layouts_and_blocks_are_named() {
        let pages = PageLayout {
            base: 0,
            block_stride: 32,
            block_count: 8,
            segments: 1,
            segment_stride: 64,
            segment_bytes: 64,
        };
        let error = EngineLayout::new(vec![layer("model.0", 0, pages)], 1).unwrap_err().to_string();
        assert!(
            error.starts_with("layer model.0: pages of 1 runs of 64 bytes")
                && error.contains("VLLM_KV_CACHE_LAYOUT")
        );
        assert_eq!(EngineLayout::new(Vec::new(), 1).unwrap_err(), LayoutError::NoLayers);
        let good = PageLayout { block_stride: 64, ..pages };
        assert_eq!(EngineLayout::new(vec![layer("a", 0, good)], 0).unwrap_err(), LayoutError::NoBlocks);
        let layout = EngineLayout::new(vec![layer("a", 0, good)], 1).unwrap();
        let mut pieces = Vec::new();
        let error =
            layout.pieces(0, &transfer(0, &[8]), 0, Direction::Load, &mut pieces).unwrap_err().to_string();
        assert_eq!(error, "block 8 of layer a is out of range: the tensor holds 8 blocks");
        assert!(pieces.is_empty());
    }
}
