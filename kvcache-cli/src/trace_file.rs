//! Reads trace files: one JSON object a line, plain or compressed with zstd.
//!
//! The fields are those of the Mooncake traces (Qin et al., FAST 2025): `hash_ids`, the prefix-chained ids of the
//! request's blocks, and `input_length`, its tokens. Other fields are ignored.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

use kvcache_core::replay::Trace;
use serde::Deserialize;

use crate::zstd_frames::{self, ZstdFrames};

/// Reads the trace in `path`, of blocks of `block_tokens` tokens. Compression is told by content, not by name.
///
/// # Errors
///
/// [`TraceError`], with the number of the line where there is one.
pub(crate) fn read(path: &Path, block_tokens: u64) -> Result<Trace, TraceError> {
    let open = |source| TraceError::Open { path: path.to_owned(), source };
    let mut file = BufReader::new(File::open(path).map_err(open)?);
    if file.fill_buf().map_err(open)?.starts_with(&zstd_frames::MAGIC) {
        parse(BufReader::new(ZstdFrames::new(file)), path, block_tokens)
    } else {
        parse(file, path, block_tokens)
    }
}

fn parse(mut lines: impl BufRead, path: &Path, block_tokens: u64) -> Result<Trace, TraceError> {
    let mut trace = Trace::new(block_tokens);
    let mut text = Vec::new();
    for line in 1.. {
        text.clear();
        let read = lines.read_until(b'\n', &mut text);
        if read.map_err(|source| TraceError::Read { path: path.to_owned(), line, source })? == 0 {
            break;
        }
        if text.trim_ascii().is_empty() {
            continue;
        }
        let request: Request = serde_json::from_slice(&text).map_err(|source| TraceError::Line {
            path: path.to_owned(),
            line,
            source,
        })?;
        let tokens_max = request.hash_ids.len() as u64 * block_tokens;
        // Ids beyond the tokens mean another block length; fewer ids are fine (only full blocks have one).
        if !request.hash_ids.is_empty() && request.input_length + block_tokens <= tokens_max {
            return Err(TraceError::BlockTokens {
                path: path.to_owned(),
                line,
                ids: request.hash_ids.len(),
                input_length: request.input_length,
                block_tokens,
            });
        }
        trace.push(request.input_length, &request.hash_ids);
    }
    if trace.request_count() == 0 {
        return Err(TraceError::Empty { path: path.to_owned() });
    }
    Ok(trace)
}

#[derive(Deserialize)]
struct Request {
    input_length: u64,
    hash_ids: Vec<u64>,
}

/// Why a trace could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TraceError {
    #[error("cannot open the trace {}: {source}", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error(
        "{}:{line}: cannot read on: {source}; the file is damaged or cut short, fetch or compress it again",
        path.display()
    )]
    Read { path: PathBuf, line: u64, source: io::Error },
    #[error(
        "{}:{line}: not a request: {source}; each line must be a JSON object like \
         {{\"input_length\": 1000, \"hash_ids\": [1, 2]}}, remove or correct the line",
        path.display()
    )]
    Line { path: PathBuf, line: u64, source: serde_json::Error },
    #[error(
        "{}:{line}: {ids} block ids for {input_length} tokens do not fit blocks of {block_tokens} tokens; give the \
         block length of the trace with --block-tokens",
        path.display()
    )]
    BlockTokens { path: PathBuf, line: u64, ids: usize, input_length: u64, block_tokens: u64 },
    #[error("{}: holds no request; a trace has one JSON object a line", path.display())]
    Empty { path: PathBuf },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Trace, String> {
        parse(text.as_bytes(), Path::new("trace.jsonl"), 512).map_err(|error| error.to_string())
    }

    #[test]
    fn reads_requests_and_skips_blank_lines() {
        let trace = parsed(concat!(
            "{\"timestamp\": 0, \"input_length\": 600, \"output_length\": 5, \"hash_ids\": [7, 9]}\n",
            "\n",
            "{\"input_length\": 100, \"hash_ids\": []}\r\n",
            "{\"input_length\": 1030, \"hash_ids\": [7, 9]}",
        ))
        .expect("well formed");
        assert_eq!((trace.request_count(), trace.access_count(), trace.block_count()), (3, 4, 2));
    }

    #[test]
    fn a_bad_line_is_named_with_a_remedy() {
        let good = "{\"input_length\": 600, \"hash_ids\": [7, 9]}\n";
        for bad in ["[1, 2]\n", "{\"input_length\": 5}\n", "{\"hash_ids\": [1]}\n", "{\"input_le", "\u{1}\n"]
        {
            let error = parsed(&format!("{good}{bad}")).expect_err("bad");
            assert!(error.starts_with("trace.jsonl:2: not a request: "), "{error}");
            assert!(error.contains("remove or correct the line"), "{error}");
        }
        let error = parsed("{\"input_length\": 600, \"hash_ids\": [7, -9]}\n").expect_err("negative");
        assert!(error.starts_with("trace.jsonl:1: "), "{error}");
    }

    #[test]
    fn another_block_length_is_noticed() {
        let error =
            parsed("{\"input_length\": 60, \"hash_ids\": [1, 2, 3, 4]}\n").expect_err("16 tokens a block");
        assert!(error.contains("--block-tokens"), "{error}");
    }

    #[test]
    fn an_empty_trace_is_an_error() {
        assert!(parsed("\n\n").expect_err("empty").contains("holds no request"));
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = read(Path::new("/nowhere/trace.jsonl"), 512).expect_err("missing").to_string();
        assert!(error.starts_with("cannot open the trace /nowhere/trace.jsonl: "), "{error}");
    }
}
