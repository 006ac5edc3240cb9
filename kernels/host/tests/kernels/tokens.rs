//! Conversion between the engine's layout and a block's.

use std::cell::RefCell;

use kernels_on_cpu::Program;
use kvcache_core::copy_engine::Direction;
use kvcache_cuda::kernels::{
    BlockStrides, Kernel, PageStrides, TokenCopy, TokenTables, table_bytes, token_pieces,
};
use proptest::prelude::*;

use super::{Arena, check, launches};

#[derive(Clone, Debug)]
struct Model {
    layers: u64,
    kv: u64,
    heads: u64,
    head_bytes: u64,
    page_tokens: u64,
    pages: u64,
}

fn models() -> impl Strategy<Value = Model> {
    let head_bytes = prop_oneof![1u64..40, prop::sample::select(vec![64u64, 128, 192, 256])];
    (1u64..4, 1u64..3, 1u64..4, head_bytes, 1u64..5, 1u64..5).prop_map(
        |(layers, kv, heads, head_bytes, page_tokens, pages)| Model {
            layers,
            kv,
            heads,
            head_bytes,
            page_tokens,
            pages,
        },
    )
}

#[derive(Clone, Copy, Debug)]
enum EngineLayout {
    /// `[K,V][pages][tokens][heads, dim]`
    PlanesFirst,
    /// `[pages][K,V][tokens][heads, dim]`
    PagesFirst,
    /// `[pages][heads][tokens][K,V, dim]`
    HeadsOutside,
    /// As [`Self::PagesFirst`] with 4 bytes between the heads, so that heads are aligned differently.
    PaddedHeads,
    /// As [`Self::HeadsOutside`], with a page of every layer side by side: `[pages][layers][heads][tokens][K,V, dim]`
    AcrossLayers,
}

impl EngineLayout {
    /// The strides, and the address of each layer's page 0.
    fn place(self, model: &Model, arena: &mut Arena, gap: usize) -> (PageStrides, Vec<u64>) {
        let Model { layers, kv, heads, head_bytes, page_tokens, pages } = *model;
        let padding = if matches!(self, Self::PaddedHeads) { 4 } else { 0 };
        let head = head_bytes + padding;
        let row = heads * head;
        let page = kv * page_tokens * row;
        let heads_outside =
            PageStrides { page, kv: head_bytes, token: kv * head_bytes, head: page_tokens * kv * head_bytes };
        let strides = match self {
            Self::PlanesFirst => {
                PageStrides { page: page_tokens * row, kv: pages * page_tokens * row, token: row, head }
            }
            Self::PagesFirst | Self::PaddedHeads => {
                PageStrides { page, kv: page_tokens * row, token: row, head }
            }
            Self::HeadsOutside => heads_outside,
            Self::AcrossLayers => PageStrides { page: layers * page, ..heads_outside },
        };
        let bases = match self {
            Self::AcrossLayers => {
                let base = arena.place(gap, (layers * pages * page) as usize) as u64;
                (0..layers).map(|layer| base + layer * page).collect()
            }
            _ => (0..layers).map(|_| arena.place(gap, (pages * page) as usize) as u64).collect(),
        };
        (strides, bases)
    }
}

/// Places of the slot mapping: every one of `places`, in any order, and some that are to be left out.
fn mapping(places: u64) -> impl Strategy<Value = Vec<i64>> {
    let mut mapping: Vec<i64> = (0..places as i64).collect();
    mapping.extend([-1, i64::MIN, places as i64, i64::MAX]);
    Just(mapping).prop_shuffle()
}

fn cases() -> impl Strategy<Value = (Model, Vec<i64>)> {
    models().prop_flat_map(|model| {
        let places = model.page_tokens * model.pages;
        (Just(model), mapping(places))
    })
}

#[test]
#[cfg_attr(not(sanitizers), ignore = "g++ with AddressSanitizer is missing")]
fn tokens_change_their_layout_both_ways() {
    use EngineLayout::*;
    let program = RefCell::new(Program::start().unwrap());
    let engines =
        prop::sample::select(vec![PlanesFirst, PagesFirst, PaddedHeads, HeadsOutside, AcrossLayers]);
    proptest!(|(
        (model, mut slot_mapping) in cases(), engine in engines, lcnd: bool, block_tokens in 1u32..6,
        block_count in 1u32..4, gap in 0usize..33, launch in launches(), load: bool,
        one in prop::option::of(0u32..3), seed: u64,
    )| {
        let direction = if load { Direction::Load } else { Direction::Offload };
        let Model { layers, kv, heads, head_bytes, page_tokens, pages } = model;
        let mut arena = Arena::default();
        let (page_strides, bases) = engine.place(&model, &mut arena, gap);
        let block_strides = if lcnd {
            BlockStrides::lcnd(kv, u64::from(block_tokens), heads, head_bytes)
        } else {
            BlockStrides::ncld(kv, layers, heads, head_bytes)
        };
        let block_bytes = layers * kv * u64::from(block_tokens) * heads * head_bytes;
        let blocks: Vec<u64> = (0..block_count).map(|_| arena.place(gap, block_bytes as usize) as u64).collect();
        slot_mapping.resize((block_count * block_tokens) as usize, -1);

        let one = one.filter(|one| u64::from(*one) < layers);
        let (first_layer, layer_count) = one.map_or((0, layers as u32), |one| (one, 1));
        let tables = TokenTables {
            bases: &bases[..(first_layer + layer_count) as usize], slot_mapping: &slot_mapping, blocks: &blocks,
        };
        let copy = TokenCopy {
            bases: 0, slot_mapping: 0, blocks: 0, page_strides, block_strides, head_bytes, first_layer, layer_count,
            kv_count: kv as u32, heads: heads as u32, page_tokens: page_tokens as u32, page_count: pages as u32,
            block_tokens, block_count,
        };
        let copy = copy.checked(&tables).unwrap();
        let pieces = token_pieces(&copy, &tables, direction);
        check(
            &mut program.borrow_mut(), Kernel::tokens(direction), launch, table_bytes(&[copy]),
            [table_bytes(tables.bases), table_bytes(&slot_mapping), table_bytes(&blocks)], &pieces, &arena.bytes(seed),
        )?;
    });
}
