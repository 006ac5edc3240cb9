//! `kvcache`: the user tool. Each subcommand has its own module.

#![forbid(unsafe_code)]

mod replay;
mod trace_file;
mod zstd_frames;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Tools for the KV cache of LLM engines.
#[derive(Debug, Parser)]
#[command(name = "kvcache", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Replay(replay::Args),
}

fn main() -> ExitCode {
    let output = match Cli::parse().command {
        Command::Replay(args) => replay::run(&args),
    };
    match output {
        Ok(text) => print_or_stop(&text),
        Err(error) => {
            eprintln!("kvcache: {error}");
            ExitCode::FAILURE
        }
    }
}

/// A reader that went away (`kvcache ... | head`) is no fault of ours.
fn print_or_stop(text: &str) -> ExitCode {
    use std::io::Write;
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kvcache: cannot write to standard output: {error}");
            ExitCode::FAILURE
        }
    }
}
