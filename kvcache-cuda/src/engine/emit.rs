//! Puts the copies of a batch into a stream, by one path or the next.

use std::sync::Arc;

use kvcache_core::copy_engine::{Direction, Piece};

use super::config::{CopyPath, CudaCopyConfig};
use super::pinned::PinnedPiece;
use super::tables::{TABLE_ENTRIES, Table, Tables};
use crate::driver::{Arguments, Descriptors, Driver, DriverError, LaunchShape, SourceOrder, Stream};
use crate::kernels::{Kernel, PieceCopy, PieceEntry};

/// What a batch needs until it has ended.
#[derive(Default)]
pub(super) struct Kept {
    pub(super) descriptors: Vec<Arc<Descriptors>>,
    pub(super) tables: Vec<Table>,
}

/// Knows the paths and which of them work.
pub(super) struct Emitter {
    driver: Arc<dyn Driver>,
    /// Those that can be used, in the order of [`CopyPath::ALL`]; [`CopyPath::Dma`] always can.
    paths: Vec<CopyPath>,
    tables: Option<Tables>,
    /// Why paths cannot be used, one line each.
    remarks: Vec<String>,
    /// How often the driver has refused a path.
    refusals: Vec<CopyPath>,
    shape: LaunchShape,
    chunk_bytes: u32,
    call_bytes: usize,
}

/// Refusals after which a path is given up: one may be due to what another program does at that moment.
const REFUSALS_MAX: usize = 3;

/// Kernels give every piece of a launch as many turns as the largest needs. Cutting large pieces bounds what that wastes.
const CHUNKS_PER_ENTRY: usize = 8;

impl Emitter {
    pub(super) fn new(driver: Arc<dyn Driver>, config: &CudaCopyConfig) -> Self {
        let mut paths = vec![CopyPath::Dma];
        let mut remarks = Vec::new();
        if driver.has_batch_copy() {
            paths.insert(0, CopyPath::DmaBatch);
        } else {
            let device = driver.device();
            let (major, minor) = (device.driver_version / 1000, device.driver_version % 1000 / 10);
            remarks.push(if device.host_addresses_are_shared {
                format!("no batch copies: the driver is of CUDA {major}.{minor}, they came with 12.8")
            } else {
                "no batch copies: the device does not take the host's addresses of pinned memory".to_owned()
            });
        }
        let kernels = driver.load_kernels().and_then(|()| Tables::new(Arc::clone(&driver)));
        let tables = match kernels {
            Ok(tables) => {
                paths.push(CopyPath::Kernel);
                Some(tables)
            }
            Err(error) => {
                remarks.push(format!("no copy kernels, so that many small pieces are slower: {error}"));
                None
            }
        };
        let shape = LaunchShape { blocks: config.kernel_blocks.max(1), threads: config.kernel_threads };
        let (chunk_bytes, call_bytes) = (config.kernel_chunk_bytes, config.call_bytes.max(1));
        Self { driver, paths, tables, remarks, refusals: Vec::new(), shape, chunk_bytes, call_bytes }
    }

    pub(super) fn paths(&self) -> &[CopyPath] {
        &self.paths
    }

    pub(super) fn remarks(&self) -> &[String] {
        &self.remarks
    }

    /// Something that the user should know.
    pub(super) fn remark(&mut self, remark: String) {
        self.remarks.push(remark);
    }

    /// Uses a path no more. The plain one stays.
    pub(super) fn give_up(&mut self, path: CopyPath, why: String) {
        if path != CopyPath::Dma && self.paths.contains(&path) {
            self.paths.retain(|other| *other != path);
            self.remarks.push(format!("{} is not used any more: {why}", path.name()));
        }
    }

    /// Operations that `path` puts into a stream for so many pieces of `bytes` bytes together, at most, unless the driver refuses
    /// it.
    pub(super) fn calls_max(&self, path: CopyPath, bytes: usize, pieces: usize) -> usize {
        match path {
            CopyPath::Dma => pieces,
            // Two calls that follow each other hold more than one may.
            CopyPath::DmaBatch => pieces.min(bytes / self.call_bytes * 2 + 1),
            CopyPath::Kernel => {
                let entries = pieces + bytes / self.entry_bytes().max(1);
                2 * entries.div_ceil(TABLE_ENTRIES)
            }
        }
    }

    /// Bytes of the largest entry of a table.
    fn entry_bytes(&self) -> usize {
        self.chunk_bytes as usize * CHUNKS_PER_ENTRY
    }

    /// Puts the pieces into the stream by `path`. Where the driver refuses it the plain one does it all (what was accepted before is
    /// copied twice then, in order), and a path that is refused again and again is given up. Returns the path that did it.
    ///
    /// # Errors
    /// The driver refuses plain copies too. What was accepted is in the stream.
    ///
    /// # Safety
    /// As [`CopyEngine::submit`](kvcache_core::copy_engine::CopyEngine::submit), until the work of the stream so far has
    /// ended; until then `kept` is kept.
    pub(super) unsafe fn emit(
        &mut self,
        path: CopyPath,
        pieces: &[PinnedPiece],
        direction: Direction,
        stream: Stream,
        kept: &mut Kept,
    ) -> Result<CopyPath, DriverError> {
        let refused = match path {
            CopyPath::Dma => None,
            // SAFETY: handed on to the caller.
            CopyPath::DmaBatch => unsafe { self.emit_batches(pieces, direction, stream, kept) }.err(),
            CopyPath::Kernel => {
                // SAFETY: handed on to the caller.
                match unsafe { self.emit_launches(pieces, direction, stream, kept) } {
                    Ok(true) => return Ok(path),
                    Ok(false) => {
                        // All tables are in use: this batch goes another way, the next one may not.
                        let other = self.paths[0];
                        // SAFETY: handed on to the caller.
                        return unsafe { self.emit(other, pieces, direction, stream, kept) };
                    }
                    Err(error) => Some(error),
                }
            }
        };
        match refused {
            None if path != CopyPath::Dma => return Ok(path),
            None => {}
            Some(error) => {
                self.refusals.push(path);
                if self.refusals.iter().filter(|refused| **refused == path).count() >= REFUSALS_MAX {
                    self.give_up(path, error.to_string());
                }
            }
        }
        for PinnedPiece { piece, .. } in pieces {
            // SAFETY: the caller's duties are those of a copy.
            unsafe { self.driver.copy(*piece, stream) }?;
        }
        Ok(CopyPath::Dma)
    }

    /// # Safety
    /// As [`emit`](Self::emit).
    unsafe fn emit_batches(
        &self,
        pieces: &[PinnedPiece],
        direction: Direction,
        stream: Stream,
        kept: &mut Kept,
    ) -> Result<(), DriverError> {
        // Slots are complete before a load is planned, and pinned by the Directory. The engine's pages are not complete
        // before the stream's turn.
        let order = match direction {
            Direction::Load => SourceOrder::Any,
            Direction::Offload => SourceOrder::Stream,
        };
        for pieces in calls(pieces, self.call_bytes) {
            let descriptors = Arc::new(Descriptors {
                destinations: pieces.iter().map(|cut| cut.piece.dst as u64).collect(),
                sources: pieces.iter().map(|cut| cut.piece.src as u64).collect(),
                sizes: pieces.iter().map(|cut| cut.piece.bytes).collect(),
            });
            kept.descriptors.push(Arc::clone(&descriptors));
            // SAFETY: as the caller says; host sides are pinned, sizes are not zero, and `kept` holds the arrays.
            unsafe { self.driver.copy_batch(&descriptors, order, stream) }?;
        }
        Ok(())
    }

    /// Whether there were tables enough.
    ///
    /// # Safety
    /// As [`emit`](Self::emit).
    unsafe fn emit_launches(
        &mut self,
        pieces: &[PinnedPiece],
        direction: Direction,
        stream: Stream,
        kept: &mut Kept,
    ) -> Result<bool, DriverError> {
        let entries = self.entries(pieces, direction);
        let Some(tables) = self.tables.as_mut() else { return Ok(false) };
        if entries.len().div_ceil(TABLE_ENTRIES) > tables.free_count() {
            return Ok(false);
        }
        for entries in entries.chunks(TABLE_ENTRIES) {
            let Some(table) = tables.take() else { return Ok(false) };
            kept.tables.push(table);
            let address = tables.upload(table, entries, stream)?;
            let Ok(copy) = PieceCopy::new(address, entries, self.chunk_bytes) else { return Ok(false) };
            // A team of 32 threads for each item at most.
            let teams = self.shape.threads / crate::kernels::TEAM_THREADS;
            let blocks = self.shape.blocks.min(copy.items().div_ceil(teams.max(1)).max(1));
            let shape = LaunchShape { blocks, ..self.shape };
            // SAFETY: as the caller says; the table is kept, and it and the pinned memory are mapped for the device.
            unsafe { self.driver.launch(Kernel::CopyPieces, &Arguments::Pieces(copy), shape, stream) }?;
        }
        Ok(true)
    }

    /// The pieces as a kernel finds them: host sides at their addresses for the device, none larger than some chunks.
    fn entries(&self, pieces: &[PinnedPiece], direction: Direction) -> Vec<PieceEntry> {
        let most = self.entry_bytes() as u64;
        let mut entries = Vec::with_capacity(pieces.len());
        for PinnedPiece { piece, host_for_device } in pieces {
            let Piece { src, dst, bytes } = *piece;
            let (src, dst) = match direction {
                Direction::Load => (*host_for_device, dst as u64),
                Direction::Offload => (src as u64, *host_for_device),
            };
            let bytes = bytes as u64;
            let mut at = 0;
            while at < bytes {
                let part = most.min(bytes - at);
                entries.push(PieceEntry { src: src + at, dst: dst + at, bytes: part });
                at += part;
            }
        }
        entries
    }

    /// The batch has ended: its tables can be used again.
    pub(super) fn give_back(&mut self, kept: Kept) {
        if let Some(tables) = &mut self.tables {
            kept.tables.into_iter().for_each(|table| tables.give_back(table));
        }
    }

    /// Frees device memory, with nothing in flight.
    pub(super) fn free(&mut self) {
        self.paths.retain(|path| *path != CopyPath::Kernel);
        if let Some(tables) = self.tables.take() {
            tables.free();
        }
    }
}

/// The pieces in runs of about `call_bytes` bytes, one piece at least.
fn calls(pieces: &[PinnedPiece], call_bytes: usize) -> impl Iterator<Item = &[PinnedPiece]> {
    let mut rest = pieces;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let end = rest.iter().position(|cut| {
            let full = bytes > 0 && bytes + cut.piece.bytes > call_bytes;
            bytes += cut.piece.bytes;
            full
        });
        let (call, left) = rest.split_at(end.unwrap_or(rest.len()));
        rest = left;
        (!call.is_empty()).then_some(call)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_hold_all_pieces_in_order_and_no_more_than_they_should() {
        let pieces: Vec<PinnedPiece> = [5usize, 5, 20, 1, 9, 1]
            .iter()
            .map(|bytes| PinnedPiece { piece: Piece { src: 0, dst: 0, bytes: *bytes }, host_for_device: 0 })
            .collect();
        let sizes: Vec<Vec<usize>> =
            calls(&pieces, 10).map(|call| call.iter().map(|cut| cut.piece.bytes).collect()).collect();
        assert_eq!(sizes, [vec![5, 5], vec![20], vec![1, 9], vec![1]]);
        assert_eq!(calls(&[], 10).count(), 0);
    }
}
