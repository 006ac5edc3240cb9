//! The blocks of a workload file, for a replay.

use std::num::NonZeroU64;
use std::path::Path;

use clap::ValueEnum;
use kvcache_core::replay::Trace;
use kvcache_workload::{BadLines, BadLinesPolicy, Blocks, BytesPerToken, Error, ReadOptions, Reader};

/// Reads the workload in `path`, plain or compressed, as blocks of `block_tokens` tokens, and says which lines were
/// left out. Block ids that come without a length are of that length.
///
/// # Errors
///
/// [`Error`], with the number of the line where there is one.
pub(crate) fn read(
    path: &Path,
    block_tokens: NonZeroU64,
    bytes_per_token: BytesPerToken,
    bad_lines: BadLinesName,
) -> Result<(Trace, BadLines), Error> {
    let options = ReadOptions { hash_block_tokens: block_tokens, bad_lines: bad_lines.into() };
    let mut reader = Reader::open(path, options)?;
    let blocks = Blocks::new(block_tokens).with_bytes_per_token(bytes_per_token);
    let mut trace = Trace::new(block_tokens.get());
    for request in &mut reader {
        let request = request?;
        trace.push(blocks.input_tokens(&request), &blocks.ids(&request));
    }
    Ok((trace, reader.bad_lines().clone()))
}

/// What happens at a line that is no request, as on the command line.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum BadLinesName {
    /// Say which it is and do nothing.
    Refuse,
    /// Leave it out, and say how many there were.
    Skip,
}

impl From<BadLinesName> for BadLinesPolicy {
    fn from(name: BadLinesName) -> Self {
        match name {
            BadLinesName::Refuse => Self::Refuse,
            BadLinesName::Skip => Self::Skip,
        }
    }
}

/// Reads `--bytes-per-token`.
pub(crate) fn bytes_per_token(text: &str) -> Result<BytesPerToken, String> {
    text.parse()
        .ok()
        .and_then(BytesPerToken::new)
        .ok_or_else(|| "must be a number from 0.25 to 64, as 4 for English".to_owned())
}
