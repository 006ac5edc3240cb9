//! Copies between a caller's buffer and slots. A leaf: the only place where a block cache touches block bytes.

use std::mem::MaybeUninit;
use std::ops::Deref;
use std::time::Duration;

use super::BlockCache;
use super::filling::Filling;
use super::pinned::Pinned;
use super::segments::{Source, Target};
use crate::copy_engine::stream_copy::{self, Variant};
use crate::copy_engine::{CopyBatch, CopyEngine, CopyState, Direction, HostCopyEngine, Piece};
use crate::eviction::SlotId;
use crate::store::SlotMemory;

/// Pieces below this are copied with plain stores: they fit the near caches and are likely to be read soon.
const STREAM_FROM_BYTES: usize = 16 << 10;

/// Calls below this are copied by the caller alone: waking a thread costs more than it saves.
const SHARE_FROM_BYTES: usize = 1 << 20;

/// Copies block `index` of `source` into each slot of `places`; whether all bytes arrived.
///
/// The caller has reserved the slots for filling, so that nobody else reads or writes them.
pub(super) fn copy_in(
    memory: &dyn SlotMemory,
    copies: Option<&HostCopyEngine>,
    places: impl ExactSizeIterator<Item = (usize, SlotId)>,
    source: Source<'_>,
) -> bool {
    let from = source.places();
    let mut pieces = Vec::with_capacity(places.len() * from.pieces_per_block());
    for (index, slot) in places {
        let Some(slot) = memory.slot_address(slot) else { return false };
        from.pieces(index, slot, Direction::Offload, &mut pieces);
    }
    // SAFETY: each source is readable and not written while `source` lives; each destination is a usable slot of at least
    // the bytes of a block, reserved by the caller for this fill alone, and slots do not overlap.
    unsafe { copy(copies, pieces, Direction::Offload) }
}

/// Copies each slot to the place of its block in `target`, from block `first` on; whether all bytes arrived.
///
/// The caller has pinned the slots, so that nobody writes them.
pub(super) fn copy_out(
    memory: &dyn SlotMemory,
    copies: Option<&HostCopyEngine>,
    slots: &[SlotId],
    first: usize,
    target: &mut Target<'_>,
) -> bool {
    let to = target.places();
    let mut pieces = Vec::with_capacity(slots.len() * to.pieces_per_block());
    for (index, slot) in (first..).zip(slots) {
        let Some(slot) = memory.slot_address(*slot) else { return false };
        to.pieces(index, slot, Direction::Load, &mut pieces);
    }
    // SAFETY: each source is a usable slot of at least the bytes of a block, pinned by the caller and thus not written; the
    // destinations are distinct and ours alone while `target` is borrowed.
    unsafe { copy(copies, pieces, Direction::Load) }
}

/// Copies one block, all of which has been written, to the place of block `index` in `target`.
pub(super) fn scatter(block: &[MaybeUninit<u8>], index: usize, target: &mut Target<'_>) {
    let mut pieces = Vec::with_capacity(target.places().pieces_per_block());
    target.places().pieces(index, block.as_ptr() as usize, Direction::Load, &mut pieces);
    // SAFETY: the pieces of a block are as long as `block` together, which is borrowed and overlaps nothing that `target` has
    // to itself.
    unsafe { copy_here(&pieces) };
}

/// The block in the slot at `position` of `pinned`.
pub(super) fn pinned_block<C: Deref<Target = BlockCache>>(
    pinned: &Pinned<C>,
    position: usize,
) -> Option<&[u8]> {
    let cache = pinned.cache();
    let address = cache.memory.slot_address(*pinned.slots().get(position)?)?;
    // SAFETY: the slot is mapped and has at least the bytes of a block, all of which were written when it was filled; it is
    // pinned as long as the slice is borrowed, so that nobody writes it.
    Some(unsafe { std::slice::from_raw_parts(address as *const u8, cache.block_bytes) })
}

/// Room for the block in the slot at `position` of what `filling` has reserved.
pub(super) fn reserved_block<C: Deref<Target = BlockCache>>(
    filling: &mut Filling<C>,
    position: usize,
) -> Option<&mut [u8]> {
    let cache = filling.cache();
    let address = cache.memory.slot_address(filling.reserved().get(position)?.slot)?;
    // SAFETY: the slot is mapped and has at least the bytes of a block. A mapping has bytes whether or not they were ever
    // written. Until the fill ends, for which the borrow has to, nobody else reads or writes them.
    Some(unsafe { std::slice::from_raw_parts_mut(address as *mut u8, cache.block_bytes) })
}

/// Room for all blocks that `filling` has reserved, in key order. `None` if a slot is not usable.
pub(super) fn reserved_blocks<C: Deref<Target = BlockCache>>(
    filling: &mut Filling<C>,
) -> Option<Vec<&mut [MaybeUninit<u8>]>> {
    let cache = filling.cache();
    let slots = filling.reserved().iter();
    slots
        .map(|reserved| {
            let address = cache.memory.slot_address(reserved.slot)?;
            // SAFETY: as for `reserved_block`; no slot is reserved twice.
            Some(unsafe {
                std::slice::from_raw_parts_mut(address as *mut MaybeUninit<u8>, cache.block_bytes)
            })
        })
        .collect()
}

/// # Safety
/// Sources are readable and not written, destinations writable and used by nobody else, without overlap, until the
/// return of this call.
unsafe fn copy(copies: Option<&HostCopyEngine>, pieces: Vec<Piece>, direction: Direction) -> bool {
    let bytes: usize = pieces.iter().map(|piece| piece.bytes).sum();
    if let Some(copies) = copies
        && bytes >= SHARE_FROM_BYTES
    {
        let batch = CopyBatch { pieces, direction, fence: None, streaming: true, urgent: false };
        // SAFETY: the caller's duties hold until this function returns, and it returns after the batch has ended.
        match unsafe { copies.submit(batch) } {
            Ok(ticket) => loop {
                match copies.wait(ticket, Duration::from_secs(1)) {
                    CopyState::Pending => {}
                    CopyState::Done => return true,
                    CopyState::Failed(_) => return false,
                }
            },
            // SAFETY: as above; the batch was not accepted.
            Err(rejected) => unsafe { copy_here(&rejected.into_batch().pieces) },
        }
    } else {
        // SAFETY: the caller's duties.
        unsafe { copy_here(&pieces) }
    }
    true
}

/// # Safety
/// As for [`copy`].
unsafe fn copy_here(pieces: &[Piece]) {
    for piece in pieces {
        let variant = if piece.bytes >= STREAM_FROM_BYTES { Variant::best() } else { Variant::Plain };
        // SAFETY: the caller's duties, and `best` and `Plain` are available by definition.
        unsafe { variant.copy(piece.src as *const u8, piece.dst as *mut u8, piece.bytes) };
    }
    stream_copy::fence();
}
