//! `kvcache replay`: what a cache of a given capacity would have answered of a trace.

use std::fmt::Write;
use std::num::{NonZeroU32, NonZeroU64};
use std::path::PathBuf;

use kvcache_core::eviction::{PolicyError, PolicyRegistry};
use kvcache_core::planner::Ingestion;
use kvcache_core::replay::{Replay, ReplayCounts, Trace};
use kvcache_workload::BytesPerToken;
use serde::Serialize;

use crate::trace_file::{self, BadLinesName};

/// Replays a trace of requests and prints the hit ratio of each policy, beside that of a plain LRU.
///
/// A hit is the leading run of a request's blocks that are in the cache. The trace is a workload file
/// (docs/workloads.md): one JSON object a line with `hash_ids` (prefix-chained block ids) and `input_length` (tokens),
/// or with `pieces`, `prompt` or `messages`. It may be compressed with zstd.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Trace file, JSONL or zstd-compressed JSONL; `-` is the standard input.
    trace: PathBuf,
    /// Capacity in blocks; give several to compare them.
    #[arg(long, value_name = "BLOCKS", required = true, value_delimiter = ',')]
    capacity: Vec<NonZeroU32>,
    /// Eviction policy; give several to compare them.
    #[arg(long, value_name = "NAME", default_value = PolicyRegistry::DEFAULT, value_delimiter = ',')]
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
}

/// Replays what `args` ask for; returns the text to print.
///
/// # Errors
///
/// If a policy is unknown, a capacity too large or the trace unreadable.
pub(crate) fn run(args: &Args) -> Result<String, ReplayError> {
    let registry = PolicyRegistry::with_builtin();
    // A misspelt name is told before a long trace is read.
    for policy in &args.policy {
        registry.build(policy, 1)?;
    }
    if let Some(capacity) =
        args.capacity.iter().chain(&args.l2_capacity).find(|capacity| capacity.get() > CAPACITY_MAX)
    {
        return Err(ReplayError::Capacity { capacity: capacity.get() });
    }
    let (trace, bad_lines) =
        trace_file::read(&args.trace, args.block_tokens, args.bytes_per_token, args.bad_lines)?;
    if let Some(summary) = bad_lines.summary() {
        eprintln!("kvcache: {}: {summary}", args.trace.display());
    }
    let mut outcomes = Vec::new();
    for capacity in &args.capacity {
        let lru = replay(&registry, &trace, capacity.get(), BASELINE)?;
        for policy in &args.policy {
            let Some(l2_capacity) = args.l2_capacity else {
                let counts =
                    if policy == BASELINE { lru } else { replay(&registry, &trace, capacity.get(), policy)? };
                outcomes.push(Outcome::new(policy, capacity.get(), counts, lru));
                continue;
            };
            for ingestion in &args.ingestion {
                let counts = Replay::new(&trace, capacity.get(), registry.build(policy, capacity.get())?)
                    .with_remote(
                        l2_capacity.get(),
                        registry.build(PolicyRegistry::DEFAULT, l2_capacity.get())?,
                        (*ingestion).into(),
                    )
                    .run();
                let mut outcome = Outcome::new(policy, capacity.get(), counts, lru);
                outcome.l2 = Some(L2::new(*ingestion, l2_capacity.get(), counts));
                outcomes.push(outcome);
            }
        }
    }
    if args.json { json_lines(&outcomes) } else { Ok(table(&trace, &outcomes)) }
}

fn replay(
    registry: &PolicyRegistry,
    trace: &Trace,
    capacity_blocks: u32,
    policy: &str,
) -> Result<ReplayCounts, PolicyError> {
    Ok(Replay::new(trace, capacity_blocks, registry.build(policy, capacity_blocks)?).run())
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
    /// Blocks that were not stored, since their request had evicted its share already.
    refused: u64,
    lru: Baseline,
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

/// A plain LRU of the same capacity on the same trace.
#[derive(Debug, Serialize)]
struct Baseline {
    block_hit_ratio: f64,
    token_hit_ratio: f64,
}

impl<'a> Outcome<'a> {
    fn new(policy: &'a str, capacity_blocks: u32, counts: ReplayCounts, lru: ReplayCounts) -> Self {
        Self {
            policy,
            capacity_blocks,
            requests: counts.requests,
            accesses: counts.accesses,
            block_hit_ratio: counts.block_hit_ratio(),
            token_hit_ratio: counts.token_hit_ratio(),
            evictions: counts.evictions,
            refused: counts.refused,
            lru: Baseline { block_hit_ratio: lru.block_hit_ratio(), token_hit_ratio: lru.token_hit_ratio() },
            l2: None,
        }
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

fn table(trace: &Trace, outcomes: &[Outcome<'_>]) -> String {
    let policy_width = outcomes.iter().map(|outcome| outcome.policy.len()).max().unwrap_or(0).max(6);
    let mut text = format!(
        "{} requests, {} block accesses, {} distinct blocks\n\n\
         {:>9}  {:>7}  {:<policy_width$}  {:>8}  {:>8}  {:>8}  {:>8}\n\
         {:>9}  {:>7}  {:<policy_width$}  {:>8}  {:>8}  {:>8}  {:>8}\n",
        trace.request_count(),
        trace.access_count(),
        trace.block_count(),
        "capacity",
        "of all",
        "policy",
        "blocks",
        "tokens",
        "lru",
        "lru",
        "blocks",
        "blocks",
        "",
        "hit",
        "hit",
        "blocks",
        "tokens",
    );
    for outcome in outcomes {
        let of_all = f64::from(outcome.capacity_blocks) / trace.block_count().max(1) as f64;
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{:>9}  {:>6.1}%  {:<policy_width$}  {:>8.4}  {:>8.4}  {:>8.4}  {:>8.4}",
            outcome.capacity_blocks,
            of_all * 100.0,
            outcome.policy,
            outcome.block_hit_ratio,
            outcome.token_hit_ratio,
            outcome.lru.block_hit_ratio,
            outcome.lru.token_hit_ratio,
        );
        if let Some(l2) = &outcome.l2 {
            let name = format!("{:?}", l2.ingestion).to_lowercase();
            let _ = writeln!(
                text,
                "{:>9}  l2 of {} blocks, ingestion {name}: {:.4} of the blocks hit there, {:.4} sent ({} blocks)",
                "", l2.capacity_blocks, l2.block_hit_ratio, l2.sent_ratio, l2.sent_blocks,
            );
        }
    }
    text
}

const BASELINE: &str = "lru";

/// Policies number their ghosts in 32 bits, and a replay holds about 130 bytes a slot.
const CAPACITY_MAX: u32 = 1 << 30;
