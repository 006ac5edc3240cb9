//! `kvcache`: the user tool. Each subcommand has its own module.

#![forbid(unsafe_code)]

mod bench;
mod command_line;
mod doctor;
mod load;
mod replay;
mod ring;
mod serve;
mod simulate;
mod trace_file;
mod workload;

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
    Bench(bench::Args),
    Doctor(doctor::Args),
    Load(Box<load::Args>),
    Replay(replay::Args),
    Ring(ring::Args),
    Serve(serve::Args),
    Simulate(Box<simulate::Args>),
    Workload(workload::Args),
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Bench(args) => finish(bench::run(&args)),
        Command::Doctor(args) => match doctor::run(&args) {
            Ok((text, status)) => print_or_stop(&text, status),
            Err(error) => {
                eprintln!("kvcache: {error}");
                // What was asked about cannot be used: the exit status of "unusable".
                ExitCode::from(2)
            }
        },
        Command::Load(args) => match load::run(&args) {
            Ok((text, status)) => print_or_stop(&text, status),
            Err(error) => finish(Err(error)),
        },
        Command::Replay(args) => finish(replay::run(&args)),
        Command::Ring(args) => finish(ring::run(&args)),
        Command::Serve(args) => finish(serve::run(&args)),
        Command::Simulate(args) => finish(simulate::run(&args)),
        Command::Workload(args) => finish(workload::run(&args)),
    }
}

fn finish(output: Result<String, impl std::fmt::Display>) -> ExitCode {
    match output {
        Ok(text) => print_or_stop(&text, ExitCode::SUCCESS),
        Err(error) => {
            eprintln!("kvcache: {error}");
            ExitCode::FAILURE
        }
    }
}

/// A reader that went away (`kvcache ... | head`) is no fault of ours.
fn print_or_stop(text: &str, status: ExitCode) -> ExitCode {
    use std::io::Write;
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Ok(()) => status,
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => status,
        Err(error) => {
            eprintln!("kvcache: cannot write to standard output: {error}");
            ExitCode::FAILURE
        }
    }
}
