//! Buffers that do not fit the keys of a call.

use super::Segment;

/// A buffer that does not fit the keys. Nothing was copied.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum WrongBuffer {
    /// One buffer of another length than the blocks have together.
    #[error(
        "{what} has {bytes} bytes, but {blocks} keys of blocks of {block_bytes} bytes need {}: pass a buffer of \
         exactly that size", .blocks.saturating_mul(*.block_bytes)
    )]
    Length {
        /// Which buffer.
        what: &'static str,
        /// Its bytes.
        bytes: usize,
        /// The keys.
        blocks: usize,
        /// Bytes of a block.
        block_bytes: usize,
    },
    /// Segments that cannot be the same number for each block.
    #[error(
        "{segments} segments for {blocks} keys: pass the same number of segments for each block, at least one"
    )]
    SegmentCount {
        /// The segments.
        segments: usize,
        /// The keys.
        blocks: usize,
    },
    /// The segments of a block are not as long as a block.
    #[error(
        "the segments of block {block} have {bytes} bytes, but a block has {block_bytes}: pass segments that add up to \
         exactly that"
    )]
    SegmentBytes {
        /// Position of the block among the keys.
        block: usize,
        /// Bytes of its segments; the largest number there is where they are more than can be counted.
        bytes: usize,
        /// Bytes of a block.
        block_bytes: usize,
    },
    /// A segment would reach beyond the end of all addresses.
    #[error("segment {segment} of block {block}: no {bytes} bytes can lie at address {address:#x}")]
    SegmentRange {
        /// Position of the block among the keys.
        block: usize,
        /// Position of the segment within its block.
        segment: usize,
        /// Where it begins.
        address: usize,
        /// Its bytes.
        bytes: usize,
    },
    /// Device memory for a cache that has no device.
    #[error("the cache has no device: open it with one, or pass host memory to the calls for host memory")]
    NoDevice,
}

/// Whether one buffer of `bytes` bytes has room for exactly these blocks.
pub(super) fn check_length(
    what: &'static str,
    bytes: usize,
    blocks: usize,
    block_bytes: usize,
) -> Result<(), WrongBuffer> {
    if Some(bytes) == blocks.checked_mul(block_bytes) {
        return Ok(());
    }
    Err(WrongBuffer::Length { what, bytes, blocks, block_bytes })
}

/// Segments of each block, if they fit. Cost: a nanosecond a segment.
pub(super) fn check_segments(
    segments: &[Segment],
    blocks: usize,
    block_bytes: usize,
) -> Result<usize, WrongBuffer> {
    let per_block = segments.len().checked_div(blocks).unwrap_or(0);
    let is_even = segments.len() == per_block * blocks && (per_block > 0 || blocks == 0);
    if !is_even {
        return Err(WrongBuffer::SegmentCount { segments: segments.len(), blocks });
    }
    for (block, segments) in segments.chunks_exact(per_block.max(1)).enumerate() {
        let bytes = segments.iter().map(|segment| segment.bytes).fold(0, usize::saturating_add);
        if bytes != block_bytes {
            return Err(WrongBuffer::SegmentBytes { block, bytes, block_bytes });
        }
        let beyond = segments.iter().position(|at| at.address.checked_add(at.bytes).is_none());
        if let Some(segment) = beyond {
            let Segment { address, bytes } = segments[segment];
            return Err(WrongBuffer::SegmentRange { block, segment, address, bytes });
        }
    }
    Ok(per_block)
}
