//! `kvcache workload`: makes, converts, shapes and describes workload files.

mod agent;
mod conversation;
mod convert;
mod describe;
mod shape;
mod share;

use std::io;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};

use kvcache_workload::{Error, Header, InvalidParameter, Output, ReadOptions, Reader, Request, Writer};

use crate::command_line::made_by;
use crate::trace_file::BadLinesName;

/// Makes and converts files of requests, for replays, models and live engines (docs/workloads.md).
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Agent(agent::Args),
    Conversation(conversation::Args),
    Convert(Box<convert::Args>),
    Describe(describe::Args),
    Shape(shape::Args),
    Share(share::Args),
}

/// Does what `args` ask for; returns the text to print.
///
/// # Errors
///
/// If a parameter is impossible, or a file cannot be read or written.
pub(crate) fn run(args: &Args) -> Result<String, WorkloadError> {
    match &args.command {
        Command::Agent(args) => agent::run(args),
        Command::Conversation(args) => conversation::run(args),
        Command::Convert(args) => convert::run(args),
        Command::Describe(args) => describe::run(args),
        Command::Shape(args) => shape::run(args),
        Command::Share(args) => share::run(args),
    }
}

/// Why there is no workload.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WorkloadError {
    #[error(transparent)]
    Workload(#[from] Error),
    #[error(transparent)]
    Parameter(#[from] InvalidParameter),
    #[error(
        "only rates can be of sessions; give --rate poisson:RATE or another rate, or leave out --of sessions"
    )]
    ShapeOfSessions,
    #[error("cannot write JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// The workload that a command reads.
#[derive(Debug, clap::Args)]
struct ReadArgs {
    /// Workload file, plain or compressed with zstd; `-` is the standard input.
    file: PathBuf,
    /// Tokens of a block, also of `hash_ids` in lines that do not say it.
    #[arg(long, value_name = "TOKENS", default_value = "512")]
    block_tokens: NonZeroU64,
    /// What to do with lines that are no request.
    #[arg(long, value_name = "WHAT", default_value = "refuse")]
    bad_lines: BadLinesName,
}

impl ReadArgs {
    fn open(&self) -> Result<Reader, Error> {
        let options = ReadOptions { hash_block_tokens: self.block_tokens, bad_lines: self.bad_lines.into() };
        Reader::open(&self.file, options)
    }

    fn say_what_was_left_out(&self, reader: &Reader) {
        if let Some(summary) = reader.bad_lines().summary() {
            eprintln!("kvcache: {}: {summary}", self.file.display());
        }
    }
}

/// Where a workload goes.
#[derive(Debug, clap::Args)]
struct OutArgs {
    /// File to write; `-` is the standard output. A name that ends in `.zst` is compressed.
    #[arg(long, value_name = "FILE", default_value = "-")]
    out: PathBuf,
}

/// Where a generated workload goes and what it is drawn from.
#[derive(Debug, clap::Args)]
struct SeedArgs {
    /// Seed of everything that is drawn: the same command with the same seed makes the same bytes.
    #[arg(long, value_name = "NUMBER", default_value = "1")]
    seed: u64,
    #[command(flatten)]
    out: OutArgs,
}

impl SeedArgs {
    fn write(&self, requests: impl Iterator<Item = Result<Request, Error>>) -> Result<String, WorkloadError> {
        let header = Header { seed: Some(self.seed), made_by: Some(made_by()), ..Header::default() };
        self.out.write(&header, requests)
    }
}

impl OutArgs {
    /// Writes the requests as they come; what was written stays if one of them is an error.
    fn write(
        &self,
        header: &Header,
        requests: impl Iterator<Item = Result<Request, Error>>,
    ) -> Result<String, WorkloadError> {
        let to_stdout = self.out == Path::new("-");
        let result = self.write_all(header, requests);
        match result {
            // Whoever reads has enough, as in `kvcache workload ... | head`.
            Err(Error::Write { source, .. }) if to_stdout && source.kind() == io::ErrorKind::BrokenPipe => {}
            Err(error) => return Err(error.into()),
            Ok(count) if !to_stdout => eprintln!("kvcache: {count} requests in {}", self.out.display()),
            Ok(_) => {}
        }
        Ok(String::new())
    }

    fn write_all(
        &self,
        header: &Header,
        requests: impl Iterator<Item = Result<Request, Error>>,
    ) -> Result<u64, Error> {
        let failed = |source| Error::Write { path: self.out.clone(), source };
        let mut writer = Writer::new(Output::create(&self.out).map_err(failed)?, header).map_err(failed)?;
        for request in requests {
            writer.write(&request?).map_err(failed)?;
        }
        let count = writer.requests();
        writer.into_inner().and_then(Output::finish).map_err(failed)?;
        Ok(count)
    }
}
