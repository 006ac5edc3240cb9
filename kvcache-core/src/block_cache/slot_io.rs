//! Copies between a caller's buffer and slots. A leaf: the only place where a block cache touches block bytes.

use std::time::Duration;

use crate::copy_engine::stream_copy::{self, Variant};
use crate::copy_engine::{CopyBatch, CopyEngine, CopyState, Direction, HostCopyEngine, Piece};
use crate::eviction::SlotId;
use crate::store::SlotMemory;

/// Pieces below this are copied with plain stores: they fit the near caches and are likely to be read soon.
const STREAM_FROM_BYTES: usize = 16 << 10;

/// Calls below this are copied by the caller alone: waking a thread costs more than it saves.
const SHARE_FROM_BYTES: usize = 1 << 20;

/// Copies block `index` of `data` into each slot of `places`; whether all bytes arrived.
///
/// The caller has reserved the slots for filling, so that nobody else reads or writes them.
pub(super) fn copy_in(
    memory: &dyn SlotMemory,
    copies: Option<&HostCopyEngine>,
    places: impl Iterator<Item = (usize, SlotId)>,
    data: &[u8],
    block_bytes: usize,
) -> bool {
    let pieces = places.map(|(index, slot)| {
        let source = data.get(index * block_bytes..(index + 1) * block_bytes)?;
        Some(Piece { src: source.as_ptr() as usize, dst: memory.slot_address(slot)?, bytes: block_bytes })
    });
    let Some(pieces) = pieces.collect::<Option<Vec<_>>>() else { return false };
    // SAFETY: each source is a checked part of `data`, which is borrowed for this call; each destination is a usable
    // slot of at least `block_bytes`, reserved by the caller for this fill alone, and slots do not overlap.
    unsafe { copy(copies, pieces, Direction::Offload) }
}

/// Copies each slot into its block of `out`; whether all bytes arrived.
///
/// The caller has pinned the slots, so that nobody writes them.
pub(super) fn copy_out(
    memory: &dyn SlotMemory,
    copies: Option<&HostCopyEngine>,
    slots: &[SlotId],
    out: &mut [u8],
    block_bytes: usize,
) -> bool {
    let pieces = slots.iter().zip(out.chunks_exact_mut(block_bytes.max(1))).map(|(slot, target)| {
        Some(Piece {
            src: memory.slot_address(*slot)?,
            dst: target.as_mut_ptr() as usize,
            bytes: block_bytes,
        })
    });
    let Some(pieces) = pieces.collect::<Option<Vec<_>>>() else { return false };
    // SAFETY: each source is a usable slot of at least `block_bytes`, pinned by the caller and thus not written; each
    // destination is a distinct chunk of `out`, which is borrowed exclusively for this call.
    unsafe { copy(copies, pieces, Direction::Load) }
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
