//! Pieces: any bytes to anywhere.

use kvcache_core::copy_engine::Piece;

use super::{ArgumentError, chunks, items, reaches};

/// One contiguous copy, as a table of the GPU holds it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PieceEntry {
    /// Address of the first byte to read. Any alignment; fast where source and destination agree modulo 16.
    pub src: u64,
    /// Address of the first byte to write.
    pub dst: u64,
    /// Bytes to copy; zero is allowed and copies nothing.
    pub bytes: u64,
}

impl From<Piece> for PieceEntry {
    fn from(piece: Piece) -> Self {
        Self { src: piece.src as u64, dst: piece.dst as u64, bytes: piece.bytes as u64 }
    }
}

/// Arguments of [`Kernel::CopyPieces`](super::Kernel::CopyPieces).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PieceCopy {
    pub(crate) pieces: u64,
    pub(crate) piece_count: u32,
    pub(crate) chunks_per_piece: u32,
    pub(crate) chunk_bytes: u32,
    reserved: u32,
}

const _: () = assert!(size_of::<PieceEntry>() == 24 && std::mem::offset_of!(PieceEntry, bytes) == 16);
const _: () = assert!(size_of::<PieceCopy>() == 24 && std::mem::offset_of!(PieceCopy, chunk_bytes) == 16);

impl PieceCopy {
    /// Arguments for a table that lies at `table` (an address of the GPU, 8-byte aligned) and holds `pieces`.
    ///
    /// Teams of 32 threads take chunks of `chunk_bytes` each. All pieces get as many chunks as the largest, so sizes should be of
    /// one order: a small piece beside a large one costs its team a look for each chunk that it lacks. O(pieces).
    ///
    /// # Errors
    /// [`ArgumentError`] if `chunk_bytes` is no multiple of 16, a piece wraps around, or there are too many chunks.
    pub fn new(table: u64, pieces: &[PieceEntry], chunk_bytes: u32) -> Result<Self, ArgumentError> {
        for piece in pieces {
            reaches("the source of a piece", piece.src, &[], piece.bytes)?;
            reaches("the destination of a piece", piece.dst, &[], piece.bytes)?;
        }
        let largest = pieces.iter().map(|piece| piece.bytes).max().unwrap_or(0);
        let chunks_per_piece = chunks(largest, chunk_bytes)?;
        let too_many = ArgumentError::TooManyItems { items: pieces.len() as u128 };
        let piece_count = u32::try_from(pieces.len()).map_err(|_| too_many)?;
        items(&[piece_count, chunks_per_piece])?;
        Ok(Self { pieces: table, piece_count, chunks_per_piece, chunk_bytes, reserved: 0 })
    }

    /// Items of the launch, for the choice of its grid. With zero there is nothing to launch.
    pub fn items(&self) -> u32 {
        self.piece_count * self.chunks_per_piece
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(bytes: u64) -> PieceEntry {
        PieceEntry { src: 4096, dst: 1 << 40, bytes }
    }

    #[test]
    fn items_are_counted_by_the_largest_piece() {
        let copy = PieceCopy::new(64, &[piece(0), piece(8192), piece(8193)], 8192).unwrap();
        assert_eq!((copy.piece_count, copy.chunks_per_piece, copy.items()), (3, 2, 6));
        assert_eq!(PieceCopy::new(64, &[], 16).unwrap().items(), 0);
        assert_eq!(PieceCopy::new(64, &[piece(0)], 16).unwrap().items(), 1);
    }

    #[test]
    fn what_no_kernel_can_do_is_refused() {
        for chunk_bytes in [0, 8, 24] {
            assert_eq!(PieceCopy::new(0, &[], chunk_bytes), Err(ArgumentError::ChunkBytes(chunk_bytes)));
        }
        assert!(PieceCopy::new(0, &[piece(16 << 31)], 16).is_ok());
        assert_eq!(
            PieceCopy::new(0, &[piece((16 << 31) + 1)], 16),
            Err(ArgumentError::TooManyItems { items: (1 << 31) + 1 })
        );
        assert_eq!(
            PieceCopy::new(0, &[piece(16 << 30); 3], 16),
            Err(ArgumentError::TooManyItems { items: 3 << 30 })
        );
        let error = PieceCopy::new(0, &[PieceEntry { src: u64::MAX - 3, dst: 0, bytes: 4 }], 16).unwrap_err();
        assert_eq!(error.to_string(), "the source of a piece reaches beyond the end of the address space");
    }
}
