//! Tables of pieces for kernels: written by the CPU into pinned memory, copied to the device in the stream's order.
//!
//! A kernel could read them from pinned memory itself, but every team would then wait for the link once for its entry and once
//! for its bytes.

use std::sync::Arc;

use kvcache_core::copy_engine::Piece;

use crate::driver::{Driver, DriverError, HostAllocation, Stream};
use crate::kernels::{PieceEntry, table_bytes};

/// Entries of one table: 48 KiB. A launch has a table of its own, and most batches are one layer of some hundred blocks.
pub(super) const TABLE_ENTRIES: usize = 2048;

/// Tables in all: enough for the layers of a large model, or for over 200,000 pieces in flight.
const TABLES: usize = 112;

const TABLE_BYTES: usize = TABLE_ENTRIES * size_of::<PieceEntry>();

/// A table that belongs to one launch until it is given back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Table(usize);

/// The tables.
pub(super) struct Tables {
    driver: Arc<dyn Driver>,
    host: HostAllocation,
    device: u64,
    free: Vec<Table>,
}

impl Tables {
    /// Allocates them: 5.25 MiB of pinned and as much of device memory.
    pub(super) fn new(driver: Arc<dyn Driver>) -> Result<Self, DriverError> {
        let host = driver.allocate_host(TABLES * TABLE_BYTES)?;
        match driver.allocate_device(TABLES * TABLE_BYTES) {
            Ok(device) => Ok(Self { driver, host, device, free: (0..TABLES).map(Table).collect() }),
            Err(error) => {
                driver.free_host(host.host);
                Err(error)
            }
        }
    }

    /// Tables that nobody uses.
    pub(super) fn free_count(&self) -> usize {
        self.free.len()
    }

    /// A table that nobody uses.
    pub(super) fn take(&mut self) -> Option<Table> {
        self.free.pop()
    }

    /// The launch that read it has ended.
    pub(super) fn give_back(&mut self, table: Table) {
        self.free.push(table);
    }

    /// Writes up to [`TABLE_ENTRIES`] entries and sends them to the device; returns their address for a launch in `stream`.
    pub(super) fn upload(
        &mut self,
        table: Table,
        entries: &[PieceEntry],
        stream: Stream,
    ) -> Result<u64, DriverError> {
        let bytes = table_bytes(entries);
        assert!(bytes.len() <= TABLE_BYTES, "a table holds fewer entries");
        let host = self.host.host + table.0 * TABLE_BYTES;
        let device = self.device + (table.0 * TABLE_BYTES) as u64;
        // SAFETY: the table lies within our allocation, is long enough, and is ours alone: no copy reads it, since it was free
        // until the taker got it and is given back after the copy has ended.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), host as *mut u8, bytes.len()) };
        let piece = Piece { src: host, dst: device as usize, bytes: bytes.len() };
        // SAFETY: both sides are this table, which stays untouched until it is given back.
        unsafe { self.driver.copy(piece, stream) }?;
        Ok(device)
    }

    /// Frees the memory, with nothing in flight.
    pub(super) fn free(self) {
        self.driver.free_device(self.device);
        self.driver.free_host(self.host.host);
    }
}
