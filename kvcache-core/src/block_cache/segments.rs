//! Where the blocks of a call lie in its caller's memory. A leaf: here addresses become memory.
//!
//! A caller has one buffer with all blocks, or each block in several segments, as an engine has that keeps every layer in
//! a tensor of its own. [`Source`] and [`Target`] stand for both. Making one of addresses is where a caller's promise is
//! needed; what is done with it then is safe.

use std::marker::PhantomData;
use std::mem::MaybeUninit;

use crate::copy_engine::{Direction, Piece};

/// A part of a block in the caller's memory.
///
/// Laid out like two words in C: an array of address and length pairs can be taken as it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Segment {
    /// Its first byte.
    pub address: usize,
    /// Its length. Zero is allowed: nothing is read or written there.
    pub bytes: usize,
}

/// How blocks lie in a caller's memory, without a promise that they do.
#[derive(Clone, Copy, Debug)]
pub(super) enum BlockPlaces<'a> {
    /// One after the other.
    Contiguous { address: usize, block_bytes: usize },
    /// So many segments each, which were checked: block after block, each as long as a block together.
    Scattered { segments: &'a [Segment], per_block: usize },
}

impl BlockPlaces<'_> {
    /// Appends the copies between block `index` and its slot.
    pub(super) fn pieces(self, index: usize, slot: usize, direction: Direction, pieces: &mut Vec<Piece>) {
        let mut push = |place: usize, slot: usize, bytes: usize| {
            pieces.push(match direction {
                Direction::Load => Piece { src: slot, dst: place, bytes },
                Direction::Offload => Piece { src: place, dst: slot, bytes },
            });
        };
        match self {
            Self::Contiguous { address, block_bytes } => {
                push(address + index * block_bytes, slot, block_bytes)
            }
            Self::Scattered { segments, per_block } => {
                let mut slot = slot;
                for segment in &segments[index * per_block..(index + 1) * per_block] {
                    if segment.bytes > 0 {
                        push(segment.address, slot, segment.bytes);
                    }
                    slot += segment.bytes;
                }
            }
        }
    }

    /// Pieces of a block, at most.
    pub(super) fn pieces_per_block(self) -> usize {
        match self {
            Self::Contiguous { .. } => 1,
            Self::Scattered { per_block, .. } => per_block,
        }
    }

    /// The first byte of block `index`, where it is in one piece.
    fn whole(self, index: usize) -> Option<usize> {
        match self {
            Self::Contiguous { address, block_bytes } => Some(address + index * block_bytes),
            Self::Scattered { segments, per_block: 1 } => Some(segments[index].address),
            Self::Scattered { .. } => None,
        }
    }
}

/// Blocks that may be read for `'a`.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    places: BlockPlaces<'a>,
    borrowed: PhantomData<&'a [u8]>,
}

impl<'a> Source<'a> {
    /// The blocks in `data`, whose length is a multiple of theirs.
    pub(super) fn of(data: &'a [u8], block_bytes: usize) -> Self {
        let places = BlockPlaces::Contiguous { address: data.as_ptr() as usize, block_bytes };
        Self { places, borrowed: PhantomData }
    }

    /// The blocks in `segments`, which were checked to be `per_block` for each.
    ///
    /// # Safety
    /// Each segment is readable memory of this process, which nobody writes for `'a`.
    pub(super) unsafe fn scattered(segments: &'a [Segment], per_block: usize) -> Self {
        Self { places: BlockPlaces::Scattered { segments, per_block }, borrowed: PhantomData }
    }

    pub(super) fn places(&self) -> BlockPlaces<'a> {
        self.places
    }
}

/// Room for blocks that is the holder's alone for `'a`. What is in it need not have been written before.
pub(super) struct Target<'a> {
    places: BlockPlaces<'a>,
    blocks: usize,
    block_bytes: usize,
    borrowed: PhantomData<&'a mut [u8]>,
}

impl<'a> Target<'a> {
    /// Room for as many blocks as fit into `out`.
    pub(super) fn of(out: &'a mut [u8], block_bytes: usize) -> Self {
        let blocks = out.len() / block_bytes.max(1);
        let places = BlockPlaces::Contiguous { address: out.as_mut_ptr() as usize, block_bytes };
        Self { places, blocks, block_bytes, borrowed: PhantomData }
    }

    /// Room in `segments`, which were checked to be `per_block` for each block.
    ///
    /// # Safety
    /// Each segment is writable memory of this process, which nobody else uses for `'a`, and no two of them overlap.
    pub(super) unsafe fn scattered(segments: &'a [Segment], per_block: usize, block_bytes: usize) -> Self {
        let blocks = segments.len() / per_block.max(1);
        let places = BlockPlaces::Scattered { segments, per_block };
        Self { places, blocks, block_bytes, borrowed: PhantomData }
    }

    pub(super) fn places(&mut self) -> BlockPlaces<'a> {
        self.places
    }

    /// The same blocks, to be read. Only those that have been written are worth it.
    pub(super) fn as_source(&self) -> Source<'_> {
        Source { places: self.places, borrowed: PhantomData }
    }

    /// Whether each block is in one piece.
    pub(super) fn is_whole(&self) -> bool {
        self.places.pieces_per_block() == 1
    }

    /// The blocks of `indices` that are in one piece; those of the others are left out. Indices grow.
    pub(super) fn whole_blocks(
        &mut self,
        indices: impl Iterator<Item = usize>,
    ) -> Vec<&mut [MaybeUninit<u8>]> {
        let (places, blocks, block_bytes) = (self.places, self.blocks, self.block_bytes);
        let mut above = None;
        let indices = indices.inspect(move |index| {
            assert!(
                *index < blocks && above.is_none_or(|above| *index > above),
                "a block twice, or beyond the end"
            );
            above = Some(*index);
        });
        indices
            .filter_map(|index| places.whole(index))
            .map(|address| {
                // SAFETY: a block of this target, which is borrowed for as long as the slice; no index comes twice, and
                // blocks do not overlap. Nothing is said of what is in it.
                unsafe { std::slice::from_raw_parts_mut(address as *mut MaybeUninit<u8>, block_bytes) }
            })
            .collect()
    }
}
