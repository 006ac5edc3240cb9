//! Tokens: between an engine's pages and contiguous blocks of another layout.

use kvcache_core::copy_engine::{Direction, Piece};

use super::{ArgumentError, count, items, reaches};

/// Where the head vectors are in an engine's tensor: bytes from one to the next along each axis.
///
/// This covers `[K,V][pages][tokens][heads, dim]`, `[pages][K,V][tokens][heads, dim]`, and the layouts with heads outside of the
/// tokens or with K and V side by side in one vector (`kv` is then the bytes of a head vector).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageStrides {
    /// From page to page.
    pub page: u64,
    /// From K to V.
    pub kv: u64,
    /// From token to token.
    pub token: u64,
    /// From head to head.
    pub head: u64,
}

/// Where the head vectors are in a contiguous block.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockStrides {
    /// From layer to layer.
    pub layer: u64,
    /// From K to V.
    pub kv: u64,
    /// From token to token.
    pub token: u64,
    /// From head to head.
    pub head: u64,
}

impl BlockStrides {
    /// `[layers][K,V][tokens][heads, dim]`: AIBrix calls it LCND. A layer is contiguous.
    pub fn lcnd(kv_count: u64, tokens: u64, heads: u64, head_bytes: u64) -> Self {
        let token = heads * head_bytes;
        Self { layer: kv_count * tokens * token, kv: tokens * token, token, head: head_bytes }
    }

    /// `[tokens][K,V][layers][heads, dim]`: AIBrix calls it NCLD. A token is contiguous.
    pub fn ncld(kv_count: u64, layers: u64, heads: u64, head_bytes: u64) -> Self {
        let layer = heads * head_bytes;
        Self { layer, kv: layers * layer, token: kv_count * layers * layer, head: head_bytes }
    }
}

/// Arguments of [`Kernel::GatherTokens`](super::Kernel::GatherTokens) and
/// [`Kernel::ScatterTokens`](super::Kernel::ScatterTokens). Fill it in and have it [checked](Self::checked).
///
/// Bytes of a head vector keep their order: there is no conversion of element types. A launch that scatters must map no two
/// tokens to one place.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TokenCopy {
    /// Address of [`TokenTables::bases`].
    pub bases: u64,
    /// Address of [`TokenTables::slot_mapping`].
    pub slot_mapping: u64,
    /// Address of [`TokenTables::blocks`].
    pub blocks: u64,
    /// The engine's layout.
    pub page_strides: PageStrides,
    /// The blocks' layout.
    pub block_strides: BlockStrides,
    /// Bytes of a head vector: dimension times bytes of an element.
    pub head_bytes: u64,
    /// The first layer to copy. With `layer_count` 1: one layer, with the tables of all.
    pub first_layer: u32,
    /// Layers to copy.
    pub layer_count: u32,
    /// 2, or 1 where K and V are one vector (latent attention).
    pub kv_count: u32,
    /// Heads.
    pub heads: u32,
    /// Tokens of an engine's page.
    pub page_tokens: u32,
    /// Pages of a layer's tensor.
    pub page_count: u32,
    /// Tokens of a block; need not be those of a page.
    pub block_tokens: u32,
    /// Blocks.
    pub block_count: u32,
}

const _: () = assert!(size_of::<TokenCopy>() == 128 && std::mem::offset_of!(TokenCopy, first_layer) == 96);

/// The tables of a [`TokenCopy`], before they are copied to the GPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TokenTables<'a> {
    /// `[first_layer + layer_count]`: address of page 0 of each layer.
    pub bases: &'a [u64],
    /// `[block_count][block_tokens]`: page × page_tokens + place in the page, as attention kernels take it. Negative entries,
    /// and those beyond the last page, are left out.
    pub slot_mapping: &'a [i64],
    /// `[block_count]`: address of each block.
    pub blocks: &'a [u64],
}

impl TokenCopy {
    /// These arguments, if a kernel can serve them with `tables`. O(tables).
    ///
    /// # Errors
    /// [`ArgumentError`] if a count is zero or not that of its table, an address wraps around, or there are too many items.
    pub fn checked(self, tables: &TokenTables<'_>) -> Result<Self, ArgumentError> {
        for (name, value) in [
            ("layer_count", self.layer_count),
            ("kv_count", self.kv_count),
            ("heads", self.heads),
            ("page_tokens", self.page_tokens),
            ("page_count", self.page_count),
            ("block_tokens", self.block_tokens),
            ("block_count", self.block_count),
        ] {
            count(name, u64::from(value))?;
        }
        let layers = u64::from(self.first_layer) + u64::from(self.layer_count);
        let tokens = u64::from(self.block_count) * u64::from(self.block_tokens);
        for (name, wanted, entries) in [
            ("bases", layers, tables.bases.len()),
            ("slot_mapping", tokens, tables.slot_mapping.len()),
            ("blocks", u64::from(self.block_count), tables.blocks.len()),
        ] {
            if wanted != entries as u64 {
                return Err(ArgumentError::TableLength { name, entries, wanted });
            }
        }
        // Lanes number the vectors of a row with 32 bits and stride by a team.
        let row_bytes = u128::from(self.heads) * u128::from(self.head_bytes);
        if row_bytes > u128::from(super::ITEMS_MAX) {
            return Err(ArgumentError::TooManyItems { items: row_bytes });
        }
        let last = |count: u32| u64::from(count) - 1;
        let (page, block) = (self.page_strides, self.block_strides);
        for base in tables.bases {
            let steps = [
                (last(self.page_count), page.page),
                (last(self.kv_count), page.kv),
                (last(self.page_tokens), page.token),
                (last(self.heads), page.head),
            ];
            reaches("the tensor of a layer", *base, &steps, self.head_bytes)?;
        }
        for base in tables.blocks {
            let steps = [
                (layers - 1, block.layer),
                (last(self.kv_count), block.kv),
                (last(self.block_tokens), block.token),
                (last(self.heads), block.head),
            ];
            reaches("a block", *base, &steps, self.head_bytes)?;
        }
        items(&[self.layer_count, self.block_count, self.block_tokens, self.kv_count])?;
        Ok(self)
    }

    /// Items of the launch, for the choice of its grid.
    pub fn items(&self) -> u32 {
        self.layer_count * self.block_count * self.block_tokens * self.kv_count
    }
}

/// What a launch copies, one piece for each head vector.
pub fn token_pieces(copy: &TokenCopy, tables: &TokenTables<'_>, direction: Direction) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let (page, block) = (copy.page_strides, copy.block_strides);
    let page_tokens = u64::from(copy.page_tokens);
    for layer in u64::from(copy.first_layer)..u64::from(copy.first_layer) + u64::from(copy.layer_count) {
        for (entry, place) in tables.slot_mapping.iter().enumerate() {
            let Some(place) =
                u64::try_from(*place).ok().filter(|place| place / page_tokens < u64::from(copy.page_count))
            else {
                continue;
            };
            let (in_blocks, token) = (entry / copy.block_tokens as usize, entry % copy.block_tokens as usize);
            for kv in 0..u64::from(copy.kv_count) {
                for head in 0..u64::from(copy.heads) {
                    let engine_side = tables.bases[layer as usize]
                        + place / page_tokens * page.page
                        + place % page_tokens * page.token
                        + kv * page.kv
                        + head * page.head;
                    let block_side = tables.blocks[in_blocks]
                        + layer * block.layer
                        + kv * block.kv
                        + token as u64 * block.token
                        + head * block.head;
                    let (src, dst) = match direction {
                        Direction::Load => (block_side, engine_side),
                        Direction::Offload => (engine_side, block_side),
                    };
                    pieces.push(Piece {
                        src: src as usize,
                        dst: dst as usize,
                        bytes: copy.head_bytes as usize,
                    });
                }
            }
        }
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYERS: u64 = 3;
    const TOKENS: u64 = 4;
    const HEADS: u64 = 2;
    const HEAD_BYTES: u64 = 8;

    /// LCND to NCLD: an LCND block is an engine's tensors of one page each.
    fn lcnd_to_ncld() -> TokenCopy {
        let lcnd = BlockStrides::lcnd(2, TOKENS, HEADS, HEAD_BYTES);
        TokenCopy {
            bases: 0,
            slot_mapping: 0,
            blocks: 0,
            page_strides: PageStrides { page: 0, kv: lcnd.kv, token: lcnd.token, head: lcnd.head },
            block_strides: BlockStrides::ncld(2, LAYERS, HEADS, HEAD_BYTES),
            head_bytes: HEAD_BYTES,
            first_layer: 0,
            layer_count: LAYERS as u32,
            kv_count: 2,
            heads: HEADS as u32,
            page_tokens: TOKENS as u32,
            page_count: 1,
            block_tokens: TOKENS as u32,
            block_count: 1,
        }
    }

    /// Every head vector carries its own coordinates, so that a wrong place shows what landed there.
    #[test]
    fn the_named_layouts_are_what_their_names_say() {
        let total = LAYERS * 2 * TOKENS * HEADS * HEAD_BYTES;
        let mut memory = vec![0u8; 2 * total as usize];
        let vectors = |layer, kv, token, head| [layer as u8, kv as u8, token as u8, head as u8, 9, 8, 7, 6];
        let mut at = 0;
        for layer in 0..LAYERS {
            for kv in 0..2u64 {
                for token in 0..TOKENS {
                    for head in 0..HEADS {
                        memory[at..at + 8].copy_from_slice(&vectors(layer, kv, token, head));
                        at += 8;
                    }
                }
            }
        }
        let layer_bytes = BlockStrides::lcnd(2, TOKENS, HEADS, HEAD_BYTES).layer;
        let bases: Vec<u64> = (0..LAYERS).map(|layer| layer * layer_bytes).collect();
        let tables = TokenTables { bases: &bases, slot_mapping: &[0, 1, 2, 3], blocks: &[total] };
        let copy = lcnd_to_ncld().checked(&tables).unwrap();
        for piece in token_pieces(&copy, &tables, Direction::Offload) {
            memory.copy_within(piece.src..piece.src + piece.bytes, piece.dst);
        }
        let mut at = total as usize;
        for token in 0..TOKENS {
            for kv in 0..2u64 {
                for layer in 0..LAYERS {
                    for head in 0..HEADS {
                        assert_eq!(memory[at..at + 8], vectors(layer, kv, token, head));
                        at += 8;
                    }
                }
            }
        }
        assert_eq!(at, memory.len());
    }

    #[test]
    fn what_no_kernel_can_do_is_refused() {
        let tables = TokenTables { bases: &[0, 0, 0], slot_mapping: &[0, 1, 2, 3], blocks: &[0] };
        let good = lcnd_to_ncld();
        assert_eq!(good.checked(&tables).unwrap().items(), 3 * 4 * 2);
        let refused =
            |copy: TokenCopy, tables: &TokenTables<'_>| copy.checked(tables).unwrap_err().to_string();
        assert_eq!(refused(TokenCopy { heads: 0, ..good }, &tables), "heads is 0: use 1 to 4294967295");
        assert_eq!(
            refused(TokenCopy { first_layer: 1, ..good }, &tables),
            "bases has 3 entries, the arguments say 4"
        );
        assert!(refused(TokenCopy { block_count: 2, ..good }, &tables).starts_with("slot_mapping has 4"));
        let far = TokenTables { blocks: &[u64::MAX - 8], ..tables };
        assert_eq!(refused(good, &far), "a block reaches beyond the end of the address space");
        let wide = PageStrides { kv: u64::MAX, ..good.page_strides };
        assert!(
            refused(TokenCopy { page_strides: wide, ..good }, &tables).starts_with("the tensor of a layer")
        );
        assert!(refused(TokenCopy { head_bytes: 1 << 31, ..good }, &tables).contains("exceeds"));
    }
}
