//! The copy kernels: their image, and their arguments with a meaning that a CPU can check.
//!
//! The sources are in `kernels/` at the root of the repository, with the design. Three forms, from general to special:
//!
//! | form | tables | for |
//! |---|---|---|
//! | [`PieceCopy`] | source, destination and length of every piece | whatever a [`CopyBatch`] holds |
//! | [`PagedCopy`] | slots and block ids, once for all layers | many small pages, loaded layer by layer |
//! | [`TokenCopy`] | the engine's slot mapping | blocks of another layout than the engine's pages |
//!
//! The structs are `#[repr(C)]` twins of those in `kernels/paged_copy.h` and are passed to a launch by value. Their tables
//! are copied to memory that the GPU reads, as [`table_bytes`]. Constructors check what a kernel cannot report: sizes that
//! overflow, and launches too large for its 32-bit item numbers.
//!
//! [`page_pieces`] and [`token_pieces`] say the same copies as plain [`Piece`]s. They define what the kernels do, tests
//! compare all bytes with them, and they are the way to do these copies where no kernel can run.
//!
//! [`CopyBatch`]: kvcache_core::copy_engine::CopyBatch
//! [`Piece`]: kvcache_core::copy_engine::Piece

mod image;
mod pages;
mod pieces;
mod tokens;

use kvcache_core::copy_engine::Direction;

pub use image::{MANIFEST, Support, image, support};
pub use pages::{LayerPages, PagedCopy, page_pieces};
pub use pieces::{PieceCopy, PieceEntry};
pub use tokens::{BlockStrides, PageStrides, TokenCopy, TokenTables, token_pieces};

/// Threads that work on one item together. A launch's blocks are 32 to 512 threads, a multiple of this.
pub const TEAM_THREADS: u32 = 32;

/// Items of a launch, at most: the kernels number them with 32 bits and stride over the grid.
pub const ITEMS_MAX: u32 = 1 << 31;

/// An entry point of the image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kernel {
    /// Takes a [`PieceCopy`].
    CopyPieces,
    /// Takes a [`PagedCopy`]: engine to slots.
    GatherPages,
    /// Takes a [`PagedCopy`]: slots to engine.
    ScatterPages,
    /// Takes a [`TokenCopy`]: engine to blocks.
    GatherTokens,
    /// Takes a [`TokenCopy`]: blocks to engine.
    ScatterTokens,
}

impl Kernel {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::CopyPieces, Self::GatherPages, Self::ScatterPages, Self::GatherTokens, Self::ScatterTokens];

    /// The kernel that moves pages this way.
    pub fn pages(direction: Direction) -> Self {
        match direction {
            Direction::Load => Self::ScatterPages,
            Direction::Offload => Self::GatherPages,
        }
    }

    /// The kernel that moves tokens this way.
    pub fn tokens(direction: Direction) -> Self {
        match direction {
            Direction::Load => Self::ScatterTokens,
            Direction::Offload => Self::GatherTokens,
        }
    }

    /// Its name in the image.
    pub fn symbol(self) -> &'static str {
        match self {
            Self::CopyPieces => "kvcache_copy_pieces",
            Self::GatherPages => "kvcache_gather_pages",
            Self::ScatterPages => "kvcache_scatter_pages",
            Self::GatherTokens => "kvcache_gather_tokens",
            Self::ScatterTokens => "kvcache_scatter_tokens",
        }
    }
}

/// Arguments that no kernel can serve.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArgumentError {
    /// A chunk is a whole number of vectors.
    #[error("chunks of {0} bytes: use a multiple of 16, at least 16")]
    ChunkBytes(u32),
    /// More items than a launch can number.
    #[error("a launch of {items} items exceeds {ITEMS_MAX}: split its table or use larger chunks")]
    TooManyItems {
        /// Items wanted.
        items: u128,
    },
    /// A number must be at least 1, and fit 32 bits.
    #[error("{name} is {value}: use 1 to {max}", max = u32::MAX)]
    OutOfRange {
        /// The argument.
        name: &'static str,
        /// Its value.
        value: u64,
    },
    /// A table has another length than the arguments say.
    #[error("{name} has {entries} entries, the arguments say {wanted}")]
    TableLength {
        /// The table.
        name: &'static str,
        /// Its entries.
        entries: usize,
        /// Those that the arguments imply.
        wanted: u64,
    },
    /// Addresses that wrap around.
    #[error("{name} reaches beyond the end of the address space")]
    AddressSpace {
        /// What does.
        name: &'static str,
    },
}

/// Plain numbers without padding: entries of tables and arguments of kernels.
///
/// Sealed: the types of this module, and the integers that tables hold.
pub trait Plain: Copy + sealed::Sealed {}

mod sealed {
    pub trait Sealed {}
}

macro_rules! plain {
    ($($type:ty),*) => { $(impl sealed::Sealed for $type {} impl Plain for $type {})* };
}
plain!(u32, u64, i64, PieceEntry, PieceCopy, LayerPages, PagedCopy, TokenCopy);

/// The bytes of a table, as the GPU reads them.
pub fn table_bytes<Entry: Plain>(table: &[Entry]) -> &[u8] {
    // SAFETY: the sealed trait admits only types of integers without padding (their sizes are asserted beside them), so
    // every byte of the slice is initialised. The bytes borrow the table.
    unsafe { std::slice::from_raw_parts(table.as_ptr().cast(), std::mem::size_of_val(table)) }
}

/// `factors` multiplied, if a launch can number as many items.
fn items(factors: &[u32]) -> Result<u32, ArgumentError> {
    let items = factors.iter().fold(1u128, |product, factor| product.saturating_mul(u128::from(*factor)));
    u32::try_from(items).ok().filter(|items| *items <= ITEMS_MAX).ok_or(ArgumentError::TooManyItems { items })
}

/// Checks that a number is at least 1 and fits.
fn count(name: &'static str, value: u64) -> Result<u32, ArgumentError> {
    u32::try_from(value).ok().filter(|value| *value > 0).ok_or(ArgumentError::OutOfRange { name, value })
}

/// Chunks of a run, at least 1.
fn chunks(bytes: u64, chunk_bytes: u32) -> Result<u32, ArgumentError> {
    if chunk_bytes == 0 || !chunk_bytes.is_multiple_of(16) {
        return Err(ArgumentError::ChunkBytes(chunk_bytes));
    }
    let chunks = bytes.div_ceil(u64::from(chunk_bytes)).max(1);
    u32::try_from(chunks).map_err(|_| ArgumentError::TooManyItems { items: u128::from(chunks) })
}

/// Checks that `base + sum of (steps * stride) + bytes` is an address.
fn reaches(name: &'static str, base: u64, steps: &[(u64, u64)], bytes: u64) -> Result<(), ArgumentError> {
    steps
        .iter()
        .try_fold(base, |end, (steps, stride)| end.checked_add(steps.checked_mul(*stride)?))
        .and_then(|end| end.checked_add(bytes))
        .map(|_| ())
        .ok_or(ArgumentError::AddressSpace { name })
}
