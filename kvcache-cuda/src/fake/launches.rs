//! What a launch copies: the kernels' meaning, with their tables read from the device's memory.

use std::ops::Range;

use kvcache_core::copy_engine::{Direction, Piece};

use super::bytes::Promise;
use super::memory::Memory;
use super::operation::{destination, source};
use super::ranges::{Ranges, overlap_within};
use crate::driver::Arguments;
use crate::kernels::{Kernel, LayerPages, PieceEntry, Plain, TokenTables, page_pieces, token_pieces};

/// A launch's tables: name, address for the device, entries, bytes of an entry.
fn tables(arguments: &Arguments) -> Vec<(&'static str, u64, usize, usize)> {
    const NUMBER: usize = size_of::<u64>();
    match arguments {
        Arguments::Pieces(copy) => {
            vec![("table of pieces", copy.pieces, copy.piece_count as usize, size_of::<PieceEntry>())]
        }
        Arguments::Pages(copy) => {
            let (layers, slots) = (copy.layer_count as usize, copy.slot_count as usize);
            vec![
                ("table of layers", copy.layers, layers, size_of::<LayerPages>()),
                ("table of slots", copy.slots, slots, NUMBER),
                ("table of block ids", copy.blocks, slots * copy.slot_blocks as usize, size_of::<u32>()),
            ]
        }
        Arguments::Tokens(copy) => {
            let (layers, blocks) =
                (copy.first_layer as usize + copy.layer_count as usize, copy.block_count as usize);
            vec![
                ("table of bases", copy.bases, layers, NUMBER),
                ("slot mapping", copy.slot_mapping, blocks * copy.block_tokens as usize, NUMBER),
                ("table of blocks", copy.blocks, blocks, NUMBER),
            ]
        }
    }
}

/// The host's addresses of a launch's tables.
pub(super) fn table_ranges(arguments: &Arguments, memory: &Memory) -> Result<Vec<Range<usize>>, String> {
    let tables = tables(arguments).into_iter().filter(|(_, _, count, _)| *count > 0);
    tables
        .map(|(name, address, count, entry_bytes)| {
            // Entries are made of numbers of 8 bytes, or of 4.
            if !address.is_multiple_of(entry_bytes.min(8) as u64) {
                return Err(format!("the {name} at {address:#x} is misaligned"));
            }
            let bytes = count.saturating_mul(entry_bytes);
            let host =
                memory.reached_by_kernels(address, bytes).map_err(|why| format!("the {name}: {why}"))?;
            Ok(host..host + bytes)
        })
        .collect()
}

/// The copies of a launch that begins now, by the host's addresses, and what is wrong with it. Copies that no kernel could do
/// are left out.
pub(super) fn pieces(
    promise: Promise,
    kernel: Kernel,
    arguments: &Arguments,
    memory: &Memory,
) -> (Vec<Piece>, Vec<String>) {
    let ranges = match table_ranges(arguments, memory) {
        Ok(ranges) => ranges,
        Err(why) => return (Vec::new(), vec![why]),
    };
    let mut wrong = Vec::new();
    let copied = match named_pieces(promise, kernel, arguments, &ranges) {
        Ok(copied) => copied,
        Err(why) => return (Vec::new(), vec![why]),
    };
    let mut pieces = Vec::with_capacity(copied.len());
    for piece in copied.into_iter().filter(|piece| piece.bytes > 0) {
        let src = memory.reached_by_kernels(piece.src as u64, piece.bytes);
        let dst = memory.reached_by_kernels(piece.dst as u64, piece.bytes);
        match (src, dst) {
            (Ok(src), Ok(dst)) => pieces.push(Piece { src, dst, bytes: piece.bytes }),
            (Err(why), _) => wrong.push(format!("it would read what it cannot reach: {why}")),
            (_, Err(why)) => wrong.push(format!("it would write what it cannot reach: {why}")),
        }
    }
    wrong.extend(unordered_conflict(&pieces));
    let tables = Ranges::new(ranges);
    if Ranges::new(pieces.iter().map(destination)).overlap(&tables).is_some() {
        wrong.push("it would overwrite its own tables".into());
    }
    (pieces, wrong)
}

/// Why these copies, done in any order and all at once, have no defined outcome.
pub(super) fn unordered_conflict(pieces: &[Piece]) -> Option<String> {
    if let Some(both) = overlap_within(pieces.iter().map(destination)) {
        return Some(format!("two destinations overlap at {}", super::memory::hex(&both)));
    }
    let both =
        Ranges::new(pieces.iter().map(source)).overlap(&Ranges::new(pieces.iter().map(destination)))?;
    Some(format!("a source overlaps a destination at {}", super::memory::hex(&both)))
}

/// The copies by the addresses that the tables hold.
fn named_pieces(
    promise: Promise,
    kernel: Kernel,
    arguments: &Arguments,
    ranges: &[Range<usize>],
) -> Result<Vec<Piece>, String> {
    let direction = match kernel {
        Kernel::GatherPages | Kernel::GatherTokens => Direction::Offload,
        Kernel::CopyPieces | Kernel::ScatterPages | Kernel::ScatterTokens => Direction::Load,
    };
    match (kernel, arguments) {
        (Kernel::CopyPieces, Arguments::Pieces(copy)) => {
            let Some(table) = ranges.first() else { return Ok(Vec::new()) };
            let entries: Vec<PieceEntry> = entries(promise, table);
            let reach = u64::from(copy.chunks_per_piece) * u64::from(copy.chunk_bytes);
            if let Some(large) = entries.iter().find(|entry| entry.bytes > reach) {
                return Err(format!("a piece of {} bytes, but the arguments cover {reach}", large.bytes));
            }
            let piece = |entry: &PieceEntry| Piece {
                src: entry.src as usize,
                dst: entry.dst as usize,
                bytes: entry.bytes as usize,
            };
            Ok(entries.iter().map(piece).collect())
        }
        (Kernel::GatherPages | Kernel::ScatterPages, Arguments::Pages(copy)) => {
            let [layers, slots, blocks] = ranges else { return Err("a table is missing".into()) };
            let layers: Vec<LayerPages> = entries(promise, layers);
            if let Some(layer) =
                layers.iter().find(|layer| layer.chunks_per_page() > copy.chunks_per_page.into())
            {
                let (has, covers) = (layer.chunks_per_page(), copy.chunks_per_page);
                return Err(format!("a page of {has} chunks, but the arguments cover {covers}"));
            }
            let (slots, blocks) = (entries::<u64>(promise, slots), entries::<u32>(promise, blocks));
            Ok(page_pieces(&layers, &slots, &blocks, copy.slot_blocks as usize, direction))
        }
        (Kernel::GatherTokens | Kernel::ScatterTokens, Arguments::Tokens(copy)) => {
            let [bases, slot_mapping, blocks] = ranges else { return Err("a table is missing".into()) };
            let (bases, blocks) = (entries::<u64>(promise, bases), entries::<u64>(promise, blocks));
            let slot_mapping: Vec<i64> = entries(promise, slot_mapping);
            let tables = TokenTables { bases: &bases, slot_mapping: &slot_mapping, blocks: &blocks };
            copy.checked(&tables).map_err(|why| why.to_string())?;
            Ok(token_pieces(copy, &tables, direction))
        }
        _ => Err("the arguments are not of the kernel's form".into()),
    }
}

/// Whether a kernel takes these arguments.
pub(super) fn is_of_form(kernel: Kernel, arguments: &Arguments) -> bool {
    match arguments {
        Arguments::Pieces(_) => kernel == Kernel::CopyPieces,
        Arguments::Pages(_) => matches!(kernel, Kernel::GatherPages | Kernel::ScatterPages),
        Arguments::Tokens(_) => matches!(kernel, Kernel::GatherTokens | Kernel::ScatterTokens),
    }
}

fn entries<Entry: Plain>(promise: Promise, table: &Range<usize>) -> Vec<Entry> {
    promise.table(table.start, table.len() / size_of::<Entry>())
}
