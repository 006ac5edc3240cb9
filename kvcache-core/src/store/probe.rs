//! Reads and writes one engine block through the copy engine, for the self-test at registration.
//!
//! Whoever derived the layout proves it here: what the engine wrote through its own view of a block must be what this
//! reads, and what this writes must be what the engine reads.

use std::time::Duration;

use super::{BadBlock, Store};
use crate::BlockKey;
use crate::copy_engine::{CopyBatch, CopyState, Direction};
use crate::directory::FillId;
use crate::eviction::SlotId;
use crate::plan::{EngineHash, Transfer};

impl Store {
    /// The bytes of one engine block of `group`, as a slot would hold them; `None` if the copy failed.
    ///
    /// # Errors
    /// [`BadBlock`] if the tensors have no such block.
    pub fn read_block(&self, group: u16, block: u32) -> Result<Option<Vec<u8>>, BadBlock> {
        let mut bytes = vec![0u8; self.layout.slot_bytes()];
        let address = bytes.as_mut_ptr() as usize;
        Ok(self.probe(group, block, address, Direction::Offload)?.then_some(bytes))
    }

    /// Writes what [`read_block`](Self::read_block) returned into a block; whether it succeeded. The caller says that
    /// nobody uses the block.
    ///
    /// # Errors
    /// [`BadBlock`] if the tensors have no such block.
    pub fn write_block(&self, group: u16, block: u32, bytes: &[u8]) -> Result<bool, BadBlock> {
        if bytes.len() != self.layout.slot_bytes() {
            return Ok(false);
        }
        self.probe(group, block, bytes.as_ptr() as usize, Direction::Load)
    }

    fn probe(&self, group: u16, block: u32, address: usize, direction: Direction) -> Result<bool, BadBlock> {
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
        let mut pieces = Vec::new();
        for layer in 0..self.layout.layers().len() {
            self.layout.pieces(layer, &transfer, address, direction, &mut pieces)?;
        }
        let batch = CopyBatch { pieces, direction, fence: None, streaming: false, urgent: false };
        // SAFETY: one side is a checked block of the registered tensors, which the caller says nobody uses; the other is
        // a buffer of `slot_bytes` bytes that outlives this function, which returns only after the batch has ended.
        let Ok(ticket) = (unsafe { self.copies.submit(batch) }) else { return Ok(false) };
        loop {
            match self.copies.wait(ticket, Duration::from_secs(1)) {
                CopyState::Pending => {}
                state => return Ok(state == CopyState::Done),
            }
        }
    }
}
