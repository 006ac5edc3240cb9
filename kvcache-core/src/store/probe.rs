//! Reads and writes one engine block through the copy engine, for the self-test at registration.
//!
//! Whoever derived the layout proves it here: what the engine wrote through its own view of a block must be what this
//! reads, and what this writes must be what the engine reads.

use std::time::Duration;

use super::{BadBlock, Store};
use crate::BlockKey;
use crate::copy_engine::{CopyBatch, CopyFailure, CopyState, Direction, Rejected};
use crate::directory::FillId;
use crate::eviction::SlotId;
use crate::plan::{EngineHash, Transfer};
use crate::slab::page_bytes;

/// A block that could not be read or written.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProbeError {
    /// The tensors have no such block.
    #[error(transparent)]
    BadBlock(#[from] BadBlock),
    /// The bytes are not those of one slot.
    #[error("{given} bytes were given for a slot of {slot_bytes}")]
    Length {
        /// Bytes given.
        given: usize,
        /// Bytes of a slot.
        slot_bytes: usize,
    },
    /// The copy engine writes to pinned memory only, and there can be none.
    #[error(
        "host memory cannot be pinned: {0}; raise the limit on locked memory (ulimit -l, docker run --ulimit memlock=-1)"
    )]
    NotPinned(CopyFailure),
    /// The copy engine cannot do it.
    #[error("the copy of a block failed: {0}")]
    Copy(#[from] CopyFailure),
}

impl Store {
    /// The bytes of one engine block of `group`, as a slot would hold them. The engine has completed them.
    ///
    /// # Errors
    /// [`ProbeError`] if the tensors have no such block, or the copy engine fails.
    pub fn read_block(&self, group: u16, block: u32) -> Result<Vec<u8>, ProbeError> {
        let mut bytes = vec![0u8; self.layout.slot_bytes()];
        self.probe(group, block, &mut bytes, Direction::Offload)?;
        Ok(bytes)
    }

    /// Writes what [`read_block`](Self::read_block) returned into a block. The caller says that nobody uses the block.
    ///
    /// # Errors
    /// As [`read_block`](Self::read_block), and if `bytes` are not those of one slot.
    pub fn write_block(&self, group: u16, block: u32, bytes: &[u8]) -> Result<(), ProbeError> {
        let (given, slot_bytes) = (bytes.len(), self.layout.slot_bytes());
        if given != slot_bytes {
            return Err(ProbeError::Length { given, slot_bytes });
        }
        self.probe(group, block, &mut bytes.to_vec(), Direction::Load)
    }

    fn probe(
        &self,
        group: u16,
        block: u32,
        bytes: &mut [u8],
        direction: Direction,
    ) -> Result<(), ProbeError> {
        let mut blocks = vec![Transfer::SKIP; self.layout.slot_blocks()];
        blocks[0] = block;
        let transfer = Transfer {
            slot: SlotId(0),
            fill: FillId(0),
            group,
            key: BlockKey::default(),
            parent: BlockKey::default(),
            engine_hash: EngineHash::default(),
            blocks,
        };
        // Whole pages of our own: that is what a device engine pins.
        let unit = page_bytes();
        let length = bytes.len().next_multiple_of(unit);
        let mut pages = vec![0u8; length + unit];
        let start = pages.as_ptr().align_offset(unit);
        let page = &mut pages[start..start + length];
        page[..bytes.len()].copy_from_slice(bytes);
        let address = page.as_mut_ptr() as usize;
        let mut pieces = Vec::new();
        for layer in 0..self.layout.layers().len() {
            self.layout.pieces(layer, &transfer, address, direction, &mut pieces)?;
        }
        // SAFETY: the pages live to the end of this function, which unregisters them if they are.
        let registered = unsafe { self.copies.register(address, length) };
        let batch = CopyBatch { pieces, direction, fence: None, streaming: false, urgent: false };
        // SAFETY: one side is a checked block of the registered tensors, which the caller says nobody uses; the other is
        // `page`, which outlives the copy: the end of the batch is waited for.
        let outcome = match unsafe { self.copies.submit(batch) } {
            Ok(ticket) => loop {
                match self.copies.wait(ticket, Duration::from_secs(1)) {
                    CopyState::Pending => {}
                    CopyState::Done => break Ok(()),
                    CopyState::Failed(failure) => break Err(failure),
                }
            },
            Err(rejected) => match &registered {
                Err(failure) if matches!(rejected, Rejected::Unsupported(..)) => {
                    return Err(ProbeError::NotPinned(failure.clone()));
                }
                _ => Err(CopyFailure::Other(rejected.reason().to_owned())),
            },
        };
        // Of memory that nobody has touched yet: it says nothing of loads.
        self.copies.take_load_time();
        if registered.is_ok() {
            self.copies.unregister(address);
        }
        bytes.copy_from_slice(&pages[start..start + bytes.len()]);
        Ok(outcome?)
    }
}
