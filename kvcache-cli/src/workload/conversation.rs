//! `kvcache workload conversation`.

use kvcache_workload::{Conversation, Distribution, Popularity, Rate};

use super::{SeedArgs, WorkloadError};

/// Makes conversations of several turns, each of whose prompts has all that was said before.
///
/// Lengths are distributions: `100`, `uniform:LOW:HIGH`, `normal:MEAN:SD`, `lognormal:MEAN:SD` or `pareto:MEAN:SD`,
/// with `@LOW..HIGH` behind it to draw what is outside again. Turns and turn lengths are by default those of AIBrix's
/// multi-turn workload; the other defaults are ours.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Number of conversations.
    #[arg(long, value_name = "COUNT", default_value = "1000")]
    sessions: u64,
    /// Turns of a conversation, at least 1.
    #[arg(long, value_name = "DIST", default_value = "normal:3.55:2.89")]
    turns: Distribution,
    /// Tokens of a user's message.
    #[arg(long, value_name = "DIST", default_value = "pareto:80:472")]
    turn_tokens: Distribution,
    /// Tokens of an answer.
    #[arg(long, value_name = "DIST", default_value = "lognormal:200:200")]
    output_tokens: Distribution,
    /// Tokens of a system prompt.
    #[arg(long, value_name = "DIST", default_value = "0")]
    system_tokens: Distribution,
    /// Number of system prompts.
    #[arg(long, value_name = "COUNT", default_value = "1")]
    system_prompts: u64,
    /// Which system prompt how often: `uniform` or `zipf:EXPONENT`.
    #[arg(long, value_name = "POPULARITY", default_value = "uniform")]
    popularity: Popularity,
    /// Pause in milliseconds between an answer and the next message.
    #[arg(long, value_name = "DIST", default_value = "lognormal:20000:20000")]
    think_ms: Distribution,
    /// For timestamps: milliseconds that a token of an answer is taken to need.
    #[arg(long, value_name = "MS", default_value = "20")]
    token_ms: f64,
    /// Longest prompt. Messages are cut to it, and a conversation that has reached it ends.
    #[arg(long, value_name = "TOKENS", default_value = "131072")]
    input_tokens_max: u64,
    /// Conversations that begin in a second: `poisson:RATE`, `constant:RATE`, `burst:LOW:HIGH:PERIOD:SHARE`,
    /// `step:RATE:SECONDS,...,RATE` or `sine:MEAN:AMPLITUDE:PERIOD`.
    #[arg(long, value_name = "RATE", default_value = "poisson:1")]
    rate: Rate,
    #[command(flatten)]
    seed: SeedArgs,
}

pub(super) fn run(args: &Args) -> Result<String, WorkloadError> {
    let conversation = Conversation {
        sessions: args.sessions,
        turns: args.turns.clone(),
        turn_tokens: args.turn_tokens.clone(),
        output_tokens: args.output_tokens.clone(),
        system_tokens: args.system_tokens.clone(),
        system_prompts: args.system_prompts,
        popularity: args.popularity,
        think_ms: args.think_ms.clone(),
        token_ms: args.token_ms,
        input_tokens_max: args.input_tokens_max,
        rate: args.rate.clone(),
        seed: args.seed.seed,
    };
    args.seed.write(conversation.requests()?)
}
