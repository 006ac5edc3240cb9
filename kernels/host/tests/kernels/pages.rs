//! Engine pages and slots.

use std::cell::RefCell;

use kernels_on_cpu::Program;
use kvcache_core::copy_engine::Direction;
use kvcache_core::plan::Transfer;
use kvcache_core::store::PageLayout;
use kvcache_cuda::kernels::{Kernel, LayerPages, PagedCopy, page_pieces, table_bytes};
use proptest::prelude::*;

use super::{Arena, check, launches};

/// A layer's tensor: segments of a page, bytes of a segment, gap after each, gap before the tensor, heads outside of blocks.
type Shape = (usize, usize, usize, usize, bool);

fn shapes() -> impl Strategy<Value = Vec<Shape>> {
    let segment_bytes = prop_oneof![1usize..80, Just(512), 80usize..3000];
    prop::collection::vec((1usize..4, segment_bytes, 0usize..20, 0usize..40, any::<bool>()), 1..4)
}

/// Block ids: all of the tensor's, in any order, mixed with some that are to be left out.
fn blocks(block_count: u32) -> impl Strategy<Value = Vec<u32>> {
    let mut ids: Vec<u32> = (0..block_count).collect();
    ids.extend([Transfer::SKIP, Transfer::SKIP, block_count, block_count + 7]);
    Just(ids).prop_shuffle()
}

fn tables() -> impl Strategy<Value = (u32, Vec<u32>)> {
    (1u32..9).prop_flat_map(|block_count| (Just(block_count), blocks(block_count)))
}

#[test]
#[cfg_attr(not(sanitizers), ignore = "g++ with AddressSanitizer is missing")]
fn pages_move_both_ways_for_all_layers_and_for_one() {
    let program = RefCell::new(Program::start().unwrap());
    proptest!(|(
        shapes in shapes(), (block_count, ids) in tables(), slot_count in 1usize..4, slot_blocks in 1usize..4,
        slot_gap in 0usize..40, chunk_bytes in prop::sample::select(vec![16u32, 64, 512, 8192]),
        launch in launches(), load: bool, one in prop::option::of(0usize..3), seed: u64,
    )| {
        let direction = if load { Direction::Load } else { Direction::Offload };
        let mut arena = Arena::default();
        let mut layers = Vec::new();
        let mut slot_bytes = 0;
        for (segments, segment_bytes, gap, before, heads_outside) in shapes {
            let spaced = segment_bytes + gap;
            let (segment_stride, block_stride) =
                if heads_outside { (spaced * block_count as usize, spaced) } else { (spaced, spaced * segments) };
            let base = arena.place(before, spaced * segments * block_count as usize);
            let pages = PageLayout {
                base, block_stride, block_count: block_count as usize, segments, segment_stride, segment_bytes,
            };
            layers.push(LayerPages::new(&pages, slot_bytes as u64, chunk_bytes).unwrap());
            slot_bytes += pages.page_bytes() * slot_blocks;
        }
        let slots: Vec<u64> = (0..slot_count).map(|_| arena.place(slot_gap, slot_bytes) as u64).collect();
        let mut blocks = ids;
        blocks.resize(slot_count * slot_blocks, Transfer::SKIP);

        let range = one.filter(|one| *one < layers.len()).map_or(0..layers.len(), |one| one..one + 1);
        let first = (range.start * size_of::<LayerPages>()) as u64;
        let copy = PagedCopy::new([first, 0, 0], &layers[range.clone()], slot_count, slot_blocks).unwrap();
        let pieces = page_pieces(&layers[range], &slots, &blocks, slot_blocks, direction);
        let tables = [table_bytes(&layers), table_bytes(&slots), table_bytes(&blocks)];
        check(
            &mut program.borrow_mut(), Kernel::pages(direction), launch, table_bytes(&[copy]), tables, &pieces,
            &arena.bytes(seed),
        )?;
    });
}
