//! `kvcache workload agent`.

use kvcache_workload::{Agent, Distribution, Rate};

use super::{SeedArgs, WorkloadError};

/// Makes sessions of agents: a plan, calls of tools in parallel, an answer that has their results, the next task.
///
/// Lengths are distributions: `100`, `uniform:LOW:HIGH`, `normal:MEAN:SD`, `lognormal:MEAN:SD` or `pareto:MEAN:SD`,
/// with `@LOW..HIGH` behind it to draw what is outside again. The defaults are near AIBrix's agent sessions: ten of
/// them at 0.5 a second, 2 to 5 turns with 1 to 4 tools, of which one call in ten is made again.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Number of sessions.
    #[arg(long, value_name = "COUNT", default_value = "10")]
    sessions: u64,
    /// Turns of a session, at least 1: what a user asks for.
    #[arg(long, value_name = "DIST", default_value = "uniform:2:5")]
    turns: Distribution,
    /// Rounds of tools in a turn. A turn is one request more than it has rounds.
    #[arg(long, value_name = "DIST", default_value = "1")]
    rounds: Distribution,
    /// Tools that are called in parallel in a round, at least 1.
    #[arg(long, value_name = "DIST", default_value = "uniform:1:4")]
    tools: Distribution,
    /// Milliseconds that a call of a tool takes.
    #[arg(long, value_name = "DIST", default_value = "uniform:100:500")]
    tool_ms: Distribution,
    /// How often a call fails and is made again, from 0 to 1.
    #[arg(long, value_name = "SHARE", default_value = "0.1")]
    retry: f64,
    /// How often a call is made again at most.
    #[arg(long, value_name = "COUNT", default_value = "1")]
    retries_max: u32,
    /// Tokens of the system prompt and the descriptions of tools, which all sessions share.
    #[arg(long, value_name = "TOKENS", default_value = "256")]
    system_tokens: u64,
    /// Tokens of the task that a session begins with.
    #[arg(long, value_name = "DIST", default_value = "256")]
    task_tokens: Distribution,
    /// Tokens of what the user says in later turns.
    #[arg(long, value_name = "DIST", default_value = "64")]
    user_tokens: Distribution,
    /// Tokens of a tool's result.
    #[arg(long, value_name = "DIST", default_value = "64")]
    tool_tokens: Distribution,
    /// Tokens of each answer of the model, calls of tools included.
    #[arg(long, value_name = "DIST", default_value = "64")]
    output_tokens: Distribution,
    /// Pause in milliseconds between an answer and what the user says next.
    #[arg(long, value_name = "DIST", default_value = "uniform:0:1000")]
    think_ms: Distribution,
    /// For timestamps: milliseconds that a token of an answer is taken to need.
    #[arg(long, value_name = "MS", default_value = "20")]
    token_ms: f64,
    /// Longest prompt. What is added is cut to it, and a session that has reached it ends.
    #[arg(long, value_name = "TOKENS", default_value = "131072")]
    input_tokens_max: u64,
    /// Sessions that begin in a second: `poisson:RATE`, `constant:RATE`, `burst:LOW:HIGH:PERIOD:SHARE`,
    /// `step:RATE:SECONDS,...,RATE` or `sine:MEAN:AMPLITUDE:PERIOD`.
    #[arg(long, value_name = "RATE", default_value = "poisson:0.5")]
    rate: Rate,
    #[command(flatten)]
    seed: SeedArgs,
}

pub(super) fn run(args: &Args) -> Result<String, WorkloadError> {
    let agent = Agent {
        sessions: args.sessions,
        turns: args.turns.clone(),
        rounds: args.rounds.clone(),
        tools: args.tools.clone(),
        tool_ms: args.tool_ms.clone(),
        retry: args.retry,
        retries_max: args.retries_max,
        system_tokens: args.system_tokens,
        task_tokens: args.task_tokens.clone(),
        user_tokens: args.user_tokens.clone(),
        tool_tokens: args.tool_tokens.clone(),
        output_tokens: args.output_tokens.clone(),
        think_ms: args.think_ms.clone(),
        token_ms: args.token_ms,
        input_tokens_max: args.input_tokens_max,
        rate: args.rate.clone(),
        seed: args.seed.seed,
    };
    args.seed.write(agent.requests()?)
}
