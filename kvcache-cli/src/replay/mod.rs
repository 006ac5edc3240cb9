//! `kvcache replay`: what a cache of a given capacity would have answered of a trace.

mod capacity;
mod plot;
mod table;

use std::io::{IsTerminal, Write};
use std::num::{NonZeroU32, NonZeroU64};
use std::path::PathBuf;

use kvcache_core::eviction::{PolicyError, PolicyRegistry};
use kvcache_core::planner::Ingestion;
use kvcache_core::replay::{Replay, ReplayCounts, Trace};
use kvcache_workload::BytesPerToken;
use serde::Serialize;

use self::capacity::Capacity;
use crate::trace_file::{self, BadLinesName};

/// Replays a trace of requests and prints the hit ratio of each policy, between that of an LRU and the optimum.
///
/// The optimum is what a cache that knows the future would hit: it always keeps the blocks that are used again soonest.
///
/// A hit is the leading run of a request's blocks that are in the cache. The trace is a workload file
/// (docs/workloads.md): one JSON object a line with `hash_ids` (prefix-chained block ids) and `input_length` (tokens),
/// or with `pieces`, `prompt` or `messages`. It may be compressed with zstd.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Trace file, JSONL or zstd-compressed JSONL; `-` is the standard input.
    trace: PathBuf,
    /// Capacity in blocks, or as a share of the distinct blocks such as `2%`; give several to compare them.
    #[arg(
        long,
        value_name = "BLOCKS|SHARE%",
        default_value = "0.5%,1%,2%,5%,10%,20%,50%",
        value_delimiter = ','
    )]
    capacity: Vec<Capacity>,
    /// Eviction policy; give several to compare them. `default` is the one of engines' caches: `hit-density`, or
    /// `s3fifo` with an L2.
    #[arg(long, value_name = "NAME", default_value = "s3fifo,default", value_delimiter = ',')]
    policy: Vec<String>,
    /// Tokens of a block of the cache. Lines with `hash_ids` are taken to have blocks of that length, unless they
    /// say another one with `block_tokens`.
    #[arg(long, value_name = "TOKENS", default_value = "512")]
    block_tokens: NonZeroU64,
    /// Bytes of a token, on average, of prompts that are text.
    #[arg(long, value_name = "BYTES", default_value = "4", value_parser = trace_file::bytes_per_token)]
    bytes_per_token: BytesPerToken,
    /// What to do with lines of the trace that are no request.
    #[arg(long, value_name = "WHAT", default_value = "refuse")]
    bad_lines: BadLinesName,
    /// Capacity of an L2 behind it, in blocks. Its policy is the default one.
    #[arg(long, value_name = "BLOCKS")]
    l2_capacity: Option<NonZeroU32>,
    /// Which blocks go to L2; give several to compare them.
    #[arg(
        long,
        value_name = "WHICH",
        default_value = "all",
        value_delimiter = ',',
        requires = "l2_capacity"
    )]
    ingestion: Vec<IngestionName>,
    /// Prints one JSON object a line for each capacity and policy instead of a table.
    #[arg(long)]
    json: bool,
    /// Draws the block hit ratios into this file, as SVG.
    #[arg(long, value_name = "FILE", conflicts_with = "l2_capacity")]
    plot: Option<PathBuf>,
}

/// Replays what `args` ask for; returns the text to print.
///
/// # Errors
///
/// If a policy is unknown, a capacity too large, the trace unreadable or the picture cannot be written.
pub(crate) fn run(args: &Args) -> Result<String, ReplayError> {
    // As a planner has it.
    let registry = PolicyRegistry::for_planner(args.l2_capacity.is_some());
    // A misspelt name is told before a long trace is read.
    for policy in &args.policy {
        registry.build(policy, 1)?;
    }
    let is_too_large = |blocks: NonZeroU32| blocks.get() > CAPACITY_MAX;
    let in_blocks = args.capacity.iter().filter_map(|capacity| capacity.in_blocks());
    if let Some(capacity) = in_blocks.chain(args.l2_capacity).find(|blocks| is_too_large(*blocks)) {
        return Err(ReplayError::Capacity { capacity: capacity.get() });
    }
    let (trace, bad_lines) =
        trace_file::read(&args.trace, args.block_tokens, args.bytes_per_token, args.bad_lines)?;
    if let Some(summary) = bad_lines.summary() {
        eprintln!("kvcache: {}: {summary}", args.trace.display());
    }
    let outcomes = outcomes(args, &registry, &trace)?;
    if let Some(path) = &args.plot {
        let name = args.trace.file_name().unwrap_or(args.trace.as_os_str()).to_string_lossy();
        let picture = plot::draw(&name, &outcomes).map_err(|why| ReplayError::Draw { why })?;
        std::fs::write(path, picture)
            .map_err(|source| ReplayError::WritePlot { path: path.clone(), source })?;
    }
    if args.json { json_lines(&outcomes) } else { Ok(table::text(&trace, &outcomes)) }
}

/// All capacities with all policies, in their order.
fn outcomes<'a>(
    args: &'a Args,
    registry: &PolicyRegistry,
    trace: &Trace,
) -> Result<Vec<Outcome<'a>>, ReplayError> {
    let kinds = if args.l2_capacity.is_some() { args.ingestion.len() } else { 1 };
    let mut progress = Progress::new(args.capacity.len() * (2 + args.policy.len() * kinds));
    let mut outcomes = Vec::new();
    for capacity in &args.capacity {
        let blocks = capacity.of(trace.block_count() as u64).get();
        let lru = replay(registry, trace, blocks, BASELINE)?;
        progress.step();
        let optimum = args.l2_capacity.is_none().then(|| trace.optimum(blocks));
        progress.step();
        for policy in &args.policy {
            let Some(l2_capacity) = args.l2_capacity else {
                let counts = if policy == BASELINE { lru } else { replay(registry, trace, blocks, policy)? };
                outcomes.push(Outcome::new(policy, blocks, counts, lru, optimum));
                progress.step();
                continue;
            };
            for ingestion in &args.ingestion {
                let counts = Replay::new(trace, blocks, registry.build(policy, blocks)?)
                    .with_remote(
                        l2_capacity.get(),
                        // Servers store whatever they are given.
                        PolicyRegistry::with_builtin().build(PolicyRegistry::DEFAULT, l2_capacity.get())?,
                        (*ingestion).into(),
                    )
                    .run();
                let mut outcome = Outcome::new(policy, blocks, counts, lru, None);
                outcome.l2 = Some(L2::new(*ingestion, l2_capacity.get(), counts));
                outcomes.push(outcome);
                progress.step();
            }
        }
    }
    Ok(outcomes)
}

fn replay(
    registry: &PolicyRegistry,
    trace: &Trace,
    capacity_blocks: u32,
    policy: &str,
) -> Result<ReplayCounts, PolicyError> {
    Ok(Replay::new(trace, capacity_blocks, registry.build(policy, capacity_blocks)?).run())
}

/// Says on a terminal how far it has come.
struct Progress {
    done: usize,
    all: usize,
    is_shown: bool,
}

impl Progress {
    fn new(all: usize) -> Self {
        Self { done: 0, all, is_shown: std::io::stderr().is_terminal() }
    }

    fn step(&mut self) {
        self.done += 1;
        if self.is_shown {
            // What cannot be shown is no reason to stop.
            let _ = write!(std::io::stderr(), "\rkvcache: {} of {} replays", self.done, self.all);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.is_shown {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

/// Why a replay did not happen.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReplayError {
    #[error(transparent)]
    Policy(#[from] PolicyError),
    #[error(transparent)]
    Trace(#[from] kvcache_workload::Error),
    #[error("a capacity of {capacity} blocks is too large, at most {CAPACITY_MAX} can be replayed")]
    Capacity { capacity: u32 },
    #[error("cannot write JSON: {0}")]
    Json(#[from] serde_json::Error),
    #[error("cannot draw the picture: {why}")]
    Draw { why: String },
    #[error("cannot write the picture to {}: {source}", path.display())]
    WritePlot { path: PathBuf, source: std::io::Error },
}

/// One line of the result.
#[derive(Debug, Serialize)]
struct Outcome<'a> {
    policy: &'a str,
    capacity_blocks: u32,
    requests: u64,
    accesses: u64,
    block_hit_ratio: f64,
    token_hit_ratio: f64,
    evictions: u64,
    /// Blocks that were not stored, since their request had evicted its share already or what had to leave was worth
    /// more.
    refused: u64,
    lru: HitRatios,
    #[serde(skip_serializing_if = "Option::is_none")]
    optimum: Option<HitRatios>,
    /// How much of the way from the LRU's block hit ratio to the optimum's.
    #[serde(skip_serializing_if = "Option::is_none")]
    gap_share: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    l2: Option<L2>,
}

/// What an L2 did.
#[derive(Debug, Serialize)]
struct L2 {
    ingestion: IngestionName,
    capacity_blocks: u32,
    /// Of the accesses, those that came from there.
    block_hit_ratio: f64,
    /// Blocks that went there, of the accesses.
    sent_ratio: f64,
    sent_blocks: u64,
}

impl L2 {
    fn new(ingestion: IngestionName, capacity_blocks: u32, counts: ReplayCounts) -> Self {
        let accesses = counts.accesses.max(1) as f64;
        Self {
            ingestion,
            capacity_blocks,
            block_hit_ratio: counts.remote_hit_blocks as f64 / accesses,
            sent_ratio: counts.demoted as f64 / accesses,
            sent_blocks: counts.demoted,
        }
    }
}

/// Which blocks go to L2, as on the command line.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum IngestionName {
    /// Every stored block.
    All,
    /// Those that are used again.
    Hot,
    /// Those that leave L1.
    Evicted,
}

impl From<IngestionName> for Ingestion {
    fn from(name: IngestionName) -> Self {
        match name {
            IngestionName::All => Self::All,
            IngestionName::Hot => Self::Hot,
            IngestionName::Evicted => Self::Evicted,
        }
    }
}

/// Those of another cache of the same capacity on the same trace.
#[derive(Clone, Copy, Debug, Serialize)]
struct HitRatios {
    block_hit_ratio: f64,
    token_hit_ratio: f64,
}

impl From<ReplayCounts> for HitRatios {
    fn from(counts: ReplayCounts) -> Self {
        Self { block_hit_ratio: counts.block_hit_ratio(), token_hit_ratio: counts.token_hit_ratio() }
    }
}

impl<'a> Outcome<'a> {
    fn new(
        policy: &'a str,
        capacity_blocks: u32,
        counts: ReplayCounts,
        lru: ReplayCounts,
        optimum: Option<ReplayCounts>,
    ) -> Self {
        let gap_share = optimum.filter(|optimum| optimum.hit_blocks > lru.hit_blocks).map(|optimum| {
            (counts.hit_blocks as f64 - lru.hit_blocks as f64) / (optimum.hit_blocks - lru.hit_blocks) as f64
        });
        Self {
            policy,
            capacity_blocks,
            requests: counts.requests,
            accesses: counts.accesses,
            block_hit_ratio: counts.block_hit_ratio(),
            token_hit_ratio: counts.token_hit_ratio(),
            evictions: counts.evictions,
            refused: counts.refused,
            lru: lru.into(),
            optimum: optimum.map(HitRatios::from),
            gap_share,
            l2: None,
        }
    }

    fn hit_ratios(&self) -> HitRatios {
        HitRatios { block_hit_ratio: self.block_hit_ratio, token_hit_ratio: self.token_hit_ratio }
    }
}

fn json_lines(outcomes: &[Outcome<'_>]) -> Result<String, ReplayError> {
    let mut text = String::new();
    for outcome in outcomes {
        text += &serde_json::to_string(outcome)?;
        text.push('\n');
    }
    Ok(text)
}

const BASELINE: &str = "lru";

/// Policies number their ghosts in 32 bits, and a replay holds about 130 bytes a slot.
const CAPACITY_MAX: u32 = 1 << 30;
