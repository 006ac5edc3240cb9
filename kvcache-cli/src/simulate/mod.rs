//! `kvcache simulate`: what caches do to the times that users see.

mod calibrate;
mod profile_file;
mod table;

use std::io::{IsTerminal, Write};
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use kvcache_core::eviction::PolicyRegistry;
use kvcache_engine_model::{
    Error, Options, Outcome, PRESET_NAMES, Profile, Progress, Setup, Simulation, Traffic,
};
use kvcache_workload::{Blocks, BytesPerToken, InvalidParameter, Rate, ReadOptions, Reader};
use serde::Serialize;

use crate::trace_file::{self, BadLinesName};

/// Serves a workload with a model of an engine, without a cache and with several, and compares the times.
///
/// The engine batches continuously as vLLM does, and behind it are the real directory and eviction policies. What
/// it costs is in a profile: a preset or a file of your own. docs/simulate.md says what is modelled and what is
/// not.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Workload file (docs/workloads.md), plain or compressed with zstd; `-` is the standard input.
    #[arg(required_unless_present_any = ["list_profiles", "show_profile", "calibrate", "predict"])]
    workload: Option<PathBuf>,
    /// Machine and model: a preset or a JSON file.
    #[arg(long, value_name = "NAME|FILE", default_value = PRESET_NAMES[0])]
    profile: String,
    /// What is compared; all that the profile has what is needed for if none is given.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    setup: Vec<Setup>,
    /// Requests a second, instead of the times in the workload; give several for a sweep.
    #[arg(long, value_name = "RATE", value_delimiter = ',', value_parser = rate, conflicts_with = "concurrency")]
    qps: Vec<f64>,
    /// How the times for `--qps` are made.
    #[arg(long, value_name = "HOW", default_value = "poisson", requires = "qps")]
    arrivals: ArrivalsName,
    /// Seed of arrivals.
    #[arg(long, value_name = "NUMBER", default_value = "1")]
    seed: u64,
    /// Sessions that are served at a time, each next one as soon as one has ended, instead of the times in the
    /// workload.
    #[arg(long, value_name = "COUNT")]
    concurrency: Option<NonZeroU64>,
    /// Blocks of the engine's KV cache, instead of the profile's.
    #[arg(long, value_name = "BLOCKS")]
    gpu_blocks: Option<u32>,
    /// Blocks of L1, instead of the profile's; 0 is none.
    #[arg(long, value_name = "BLOCKS")]
    l1_blocks: Option<u32>,
    /// Blocks of L2, instead of the profile's; 0 is none.
    #[arg(long, value_name = "BLOCKS")]
    l2_blocks: Option<u32>,
    /// Eviction policy of L1. L2 has the default one.
    #[arg(long, value_name = "NAME", default_value = PolicyRegistry::DEFAULT)]
    policy: String,
    /// The end of the run in simulated seconds, whatever is left; without it, it ends when every request has.
    #[arg(long, value_name = "SECONDS", value_parser = rate)]
    horizon: Option<f64>,
    /// Of so many requests, the first of the workload, no time and no hit is counted: they fill the caches.
    #[arg(long, value_name = "REQUESTS", default_value = "0")]
    warm_up: usize,
    /// Tokens of answers whose length the workload does not say.
    #[arg(long, value_name = "TOKENS", default_value = "64")]
    output_tokens: NonZeroU64,
    /// Bytes of a token, on average, of prompts that are text.
    #[arg(long, value_name = "BYTES", default_value = "4", value_parser = trace_file::bytes_per_token)]
    bytes_per_token: BytesPerToken,
    /// Tokens of a block of lines with `hash_ids` that do not say it.
    #[arg(long, value_name = "TOKENS", default_value = "512")]
    hash_block_tokens: NonZeroU64,
    /// What to do with lines of the workload that are no request.
    #[arg(long, value_name = "WHAT", default_value = "refuse")]
    bad_lines: BadLinesName,
    /// Prints one JSON object a line for each rate and set-up instead of a table.
    #[arg(long)]
    json: bool,
    /// Says on the standard error how far it is, also where that is no terminal.
    #[arg(long)]
    progress: bool,
    /// Prints the presets.
    #[arg(long, exclusive = true)]
    list_profiles: bool,
    /// Prints a preset as JSON, with the origin of each number, to start a profile of your own from.
    #[arg(long, value_name = "NAME", exclusive = true)]
    show_profile: Option<String>,
    /// Fits costs to the measured steps in a file, and prints the profile that is in it with them.
    #[arg(long, value_name = "FILE", exclusive = true)]
    calibrate: Option<PathBuf>,
    /// Compares measured times to the first token with those that the profile predicts.
    #[arg(long, value_name = "FILE", conflicts_with = "workload")]
    predict: Option<PathBuf>,
    /// With `--predict`: fails if a prediction is off by more.
    #[arg(long, value_name = "PERCENT", requires = "predict", value_parser = rate)]
    within: Option<f64>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
enum ArrivalsName {
    /// A Poisson process, of all requests in the order of the workload.
    Poisson,
    /// The times in the workload, so much faster or slower.
    Recorded,
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate > 0.0 && rate <= 1e9 => Ok(rate),
        _ => Err("must be a number above 0 and at most 1e9".to_owned()),
    }
}

/// Does what `args` ask for; returns the text to print.
///
/// # Errors
///
/// If the profile or a parameter is impossible, or a file cannot be read.
pub(crate) fn run(args: &Args) -> Result<String, SimulateError> {
    if args.list_profiles {
        return Ok(profile_file::list());
    }
    if let Some(name) = &args.show_profile {
        return profile_file::show(name);
    }
    if let Some(path) = &args.calibrate {
        return calibrate::calibrate(path);
    }
    let profile = profile(args)?;
    if let Some(path) = &args.predict {
        return calibrate::predict(path, &profile, args.within, args.json);
    }
    let options =
        Options { policy: args.policy.clone(), horizon_s: args.horizon, warm_up_requests: args.warm_up };
    let setups = setups(args, &profile);
    let mut traffic = read(args, &profile)?;
    // What cannot be is told before the first long run.
    let rates: Vec<Option<f64>> =
        if args.qps.is_empty() { vec![None] } else { args.qps.iter().copied().map(Some).collect() };
    let mut runs = Vec::new();
    for qps in rates {
        if let Some(qps) = qps {
            retime(&mut traffic, qps, args)?;
        }
        for setup in &setups {
            let simulation = Simulation::new(&profile, *setup, &traffic, &options)?;
            let outcome = simulation.run(&mut reporter(args.progress, *setup, qps))?;
            runs.push(Run { profile: &profile.name, policy: &args.policy, qps, outcome });
        }
    }
    if args.json {
        let mut text = String::new();
        for run in &runs {
            text += &serde_json::to_string(run)?;
            text.push('\n');
        }
        return Ok(text);
    }
    Ok(table::text(&profile, &traffic, &runs))
}

/// A set-up at a rate.
#[derive(Debug, Serialize)]
struct Run<'a> {
    profile: &'a str,
    policy: &'a str,
    /// Requests a second, where they were asked for.
    qps: Option<f64>,
    #[serde(flatten)]
    outcome: Outcome,
}

/// Why there is no simulation.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SimulateError {
    #[error(transparent)]
    Model(#[from] Error),
    #[error(transparent)]
    Workload(#[from] kvcache_workload::Error),
    #[error(transparent)]
    Parameter(#[from] InvalidParameter),
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{}: {source}; docs/simulate.md has the fields", path.display())]
    File { path: PathBuf, source: serde_json::Error },
    #[error("`{name}` is neither a preset ({}) nor a file", PRESET_NAMES.join(", "))]
    NoProfile { name: String },
    #[error("the workload has no times to make faster or slower; leave out --arrivals recorded")]
    NoTimes,
    #[error("{}: holds no case; `cases` has one object for each", path.display())]
    NoCase { path: PathBuf },
    #[error("{}: case `{case}`: {reason}", path.display())]
    Case { path: PathBuf, case: String, reason: &'static str },
    #[error("{text}{count} of {of} predictions are off by more than {within} %")]
    Off { text: String, count: usize, of: usize, within: f64 },
    #[error("cannot write JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// The profile with what the command line changes.
fn profile(args: &Args) -> Result<Profile, SimulateError> {
    let mut profile = profile_file::load(&args.profile)?;
    profile.gpu_blocks = args.gpu_blocks.unwrap_or(profile.gpu_blocks);
    profile.l1_blocks = args.l1_blocks.unwrap_or(profile.l1_blocks);
    match (args.l2_blocks, &mut profile.l2) {
        (Some(0), l2) => *l2 = None,
        (Some(blocks), Some(l2)) => l2.blocks = blocks,
        (Some(_), None) => {
            let setup = "layers+l2".to_owned();
            return Err(Error::NoL2 { setup, profile: profile.name }.into());
        }
        (None, _) => {}
    }
    profile.check()?;
    Ok(profile)
}

/// Those that were asked for, or all that are possible.
fn setups(args: &Args, profile: &Profile) -> Vec<Setup> {
    if !args.setup.is_empty() {
        return args.setup.clone();
    }
    let possible = |setup: &Setup| {
        (setup.connector.is_none() || profile.l1_slots() > 0) && (!setup.l2 || profile.l2_slots() > 0)
    };
    Setup::ALL.into_iter().filter(possible).collect()
}

fn read(args: &Args, profile: &Profile) -> Result<Traffic, SimulateError> {
    let Some(path) = &args.workload else { return Err(InvalidParameter::new("no workload is given").into()) };
    let options = ReadOptions { hash_block_tokens: args.hash_block_tokens, bad_lines: args.bad_lines.into() };
    let mut reader = Reader::open(path, options)?;
    let block_tokens = NonZeroU64::new(profile.block_tokens.into()).unwrap_or(NonZeroU64::MIN);
    let blocks = Blocks::new(block_tokens).with_bytes_per_token(args.bytes_per_token);
    let mut traffic = Traffic::new(blocks, args.output_tokens.get());
    for request in &mut reader {
        traffic.push(&request?)?;
    }
    if let Some(summary) = reader.bad_lines().summary() {
        eprintln!("kvcache: {}: {summary}", path.display());
    }
    let in_file = reader.header().and_then(|header| header.concurrency).filter(|_| args.qps.is_empty());
    traffic.serve_at_a_time(args.concurrency.or(in_file).map(NonZeroU64::get));
    Ok(traffic)
}

/// Gives the requests the times of a rate.
fn retime(traffic: &mut Traffic, qps: f64, args: &Args) -> Result<(), SimulateError> {
    match args.arrivals {
        ArrivalsName::Poisson => {
            let rate: Rate = format!("poisson:{qps}").parse()?;
            traffic.set_times_ms(rate.times(args.seed))?;
        }
        ArrivalsName::Recorded => {
            let speed = qps / traffic.offered_per_s().ok_or(SimulateError::NoTimes)?;
            let times: Vec<f64> = traffic.times_ms().flatten().map(|time_ms| time_ms / speed).collect();
            traffic.set_times_ms(times.into_iter())?;
        }
    }
    Ok(())
}

/// Says on the standard error how far a run is, once a second.
fn reporter(always: bool, setup: Setup, qps: Option<f64>) -> impl FnMut(Progress) {
    let wanted = always || std::io::stderr().is_terminal();
    let rate = qps.map_or(String::new(), |qps| format!(" at {qps} a second"));
    let mut next = Instant::now() + Duration::from_secs(1);
    move |progress| {
        if wanted && Instant::now() >= next {
            next = Instant::now() + Duration::from_secs(1);
            // Whoever closed the standard error does not want to know.
            let _ = writeln!(
                std::io::stderr(),
                "kvcache: {setup}{rate}: {} of {} requests, {:.1} s simulated",
                progress.ended,
                progress.requests,
                progress.time_s,
            );
        }
    }
}
