//! What can go wrong.

use std::io;
use std::path::PathBuf;

/// Why a workload could not be read, written or made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file cannot be opened.
    #[error("cannot open {}: {source}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file cannot be read to its end.
    #[error(
        "{}:{line}: cannot read on: {source}; the file is damaged or cut short, fetch or compress it again",
        path.display()
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// The line that should have come.
        line: u64,
        /// Why.
        source: io::Error,
    },
    /// A line is no request.
    #[error(
        "{}:{line}: not a request: {reason}; each line must be a JSON object like \
         {{\"input_length\": 1000, \"hash_ids\": [1, 2]}} (docs/workloads.md), remove or correct the line",
        path.display()
    )]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// What is wrong with which value.
        reason: String,
    },
    /// A record of a file of another format is of no use.
    #[error(
        "{}:{line}: {reason}; correct or remove it, or leave out all such with --bad-lines skip",
        path.display()
    )]
    Record {
        /// The file.
        path: PathBuf,
        /// The line that it begins on, from 1.
        line: u64,
        /// What is wrong with which value.
        reason: String,
    },
    /// The ids of a line need another block length.
    #[error(
        "{}:{line}: {ids} block ids for {input_length} tokens do not fit blocks of {block_tokens} tokens; give the \
         block length of the trace with --block-tokens",
        path.display()
    )]
    BlockTokens {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// How many ids it has.
        ids: usize,
        /// Its tokens.
        input_length: u64,
        /// The block length that was taken.
        block_tokens: u64,
    },
    /// The first line is a header that cannot be used.
    #[error("{}:1: a header that cannot be read: {reason}", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// No line is a request.
    #[error("{}: holds no request; a workload has one JSON object a line", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// Lines were left out, and none remained.
    #[error(
        "{}: holds no request, {count} lines are none; the first is {line}: {reason}",
        path.display()
    )]
    NoGoodLine {
        /// The file.
        path: PathBuf,
        /// How many lines were left out.
        count: u64,
        /// The first of them.
        line: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// A parameter is impossible.
    #[error(transparent)]
    Parameter(#[from] InvalidParameter),
    /// The output cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Why a parameter cannot be used: the value, what is wrong with it and what to write instead.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct InvalidParameter(String);

impl InvalidParameter {
    /// An error that says this.
    pub fn new(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }
}
