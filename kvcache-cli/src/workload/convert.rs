//! `kvcache workload convert`.

use std::num::NonZeroU64;
use std::path::PathBuf;

use kvcache_workload::{
    BytesPerToken, Chat, ConvertOptions, Converter, Distribution, Header, Log, Rate, TextAs, TimeUnit,
};

use super::{SeedArgs, WorkloadError, made_by};
use crate::trace_file::{BadLinesName, bytes_per_token};

/// Makes a workload of a file in another format.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// File to read, plain or compressed with zstd; `-` is the standard input.
    file: PathBuf,
    /// What it is.
    #[arg(long, value_name = "FORMAT")]
    from: From,
    /// What the text of prompts becomes.
    #[arg(long, value_name = "WHAT", default_value = "text")]
    content: ContentName,
    /// Bytes of a token, on average, of text.
    #[arg(long, value_name = "BYTES", default_value = "4", value_parser = bytes_per_token)]
    bytes_per_token: BytesPerToken,
    /// What to do with records that are no request.
    #[arg(long, value_name = "WHAT", default_value = "refuse")]
    bad_lines: BadLinesName,
    /// Arrivals a second, of conversations (`poisson:1` if not given) or of requests: `poisson:RATE`,
    /// `constant:RATE`, `burst:LOW:HIGH:PERIOD:SHARE`, `step:RATE:SECONDS,...,RATE` or `sine:MEAN:AMPLITUDE:PERIOD`.
    /// Logs and traces have times of their own, batches have none.
    #[arg(long, value_name = "RATE")]
    rate: Option<Rate>,
    /// Pause in milliseconds between an answer and the next message of a conversation.
    #[arg(long, value_name = "DIST", default_value = "lognormal:20000:20000")]
    think_ms: Distribution,
    /// For timestamps: milliseconds that a token of an answer is taken to need.
    #[arg(long, value_name = "MS", default_value = "20")]
    token_ms: f64,
    #[command(flatten)]
    fields: Fields,
    #[command(flatten)]
    seed: SeedArgs,
}

/// Where a log or trace has what.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Fields of logs and traces (`usage.prompt_tokens` goes into an object)")]
struct Fields {
    /// Time of arrival: a number, or a date like 2024-05-10T12:00:00Z.
    #[arg(long, value_name = "NAME", default_value = "timestamp")]
    time_field: String,
    /// Unit of times that are numbers: seconds in logs, milliseconds in traces if not given.
    #[arg(long, value_name = "UNIT")]
    time_unit: Option<UnitName>,
    /// Tokens of the prompt.
    #[arg(long, value_name = "NAME", default_value = "input_length")]
    input_field: String,
    /// Tokens of the answer; may be missing in a record.
    #[arg(long, value_name = "NAME", default_value = "output_length")]
    output_field: String,
    /// Text of the prompt, or its messages.
    #[arg(long, value_name = "NAME")]
    prompt_field: Option<String>,
    /// Ids of the prompt's blocks; `hash_ids` in traces if not given.
    #[arg(long, value_name = "NAME")]
    ids_field: Option<String>,
    /// Tokens of such a block.
    #[arg(long, value_name = "TOKENS", default_value = "512")]
    block_tokens: NonZeroU64,
    /// Ids name the tokens of their block only, not all before them as well.
    #[arg(long)]
    chain: bool,
    /// Session.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["id_field", "parent_field"])]
    session_field: Option<String>,
    /// Id of the record, where records name the one before them in their session.
    #[arg(long, value_name = "NAME", requires = "parent_field")]
    id_field: Option<String>,
    /// Id of the record before it.
    #[arg(long, value_name = "NAME", requires = "id_field")]
    parent_field: Option<String>,
    /// Class.
    #[arg(long, value_name = "NAME")]
    class_field: Option<String>,
    /// Sorts by time, in memory; without it, records that are not in their order are bad lines.
    #[arg(long)]
    sort: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
enum From {
    /// Conversations like ShareGPT's: a JSON array or lines of `{"conversations": [{"from": ..., "value": ...}]}`.
    Sharegpt,
    /// A file for OpenAI's batch API: lines of `{"custom_id", "method", "url", "body"}`.
    OpenaiBatch,
    /// A log of a client or a gateway: JSON or CSV with times and lengths or prompts.
    Log,
    /// A trace of block ids.
    Hashes,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
enum ContentName {
    /// It stays.
    Text,
    /// Pieces of token streams: what prompts share stays, their words do not.
    Pieces,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
enum UnitName {
    S,
    Ms,
    Us,
    Ns,
}

pub(super) fn run(args: &Args) -> Result<String, WorkloadError> {
    let options = ConvertOptions {
        bad_lines: args.bad_lines.into(),
        bytes_per_token: args.bytes_per_token,
        text: match args.content {
            ContentName::Text => TextAs::Text,
            ContentName::Pieces => TextAs::Pieces,
        },
    };
    let seed = args.seed.seed;
    let rate = args.rate.as_ref().map(|rate| (rate, seed));
    let mut converter = match args.from {
        From::Sharegpt => {
            let rate = match &args.rate {
                Some(rate) => rate.clone(),
                None => "poisson:1".parse()?,
            };
            let chat = Chat { rate, think_ms: args.think_ms.clone(), token_ms: args.token_ms, seed };
            Converter::share_gpt(&args.file, options, &chat)?
        }
        From::OpenaiBatch => Converter::openai_batch(&args.file, options, rate)?,
        From::Log | From::Hashes => Converter::log(&args.file, options, &log(args))?,
    };
    // Logs, traces and batches with their own times have nothing that is drawn.
    let drawn = args.from == From::Sharegpt || args.rate.is_some();
    let header = Header { seed: drawn.then_some(seed), made_by: Some(made_by()), ..Header::default() };
    args.seed.out.write(&header, &mut converter)?;
    if let Some(summary) = converter.bad_lines().summary() {
        eprintln!("kvcache: {}: {summary}", args.file.display());
    }
    Ok(String::new())
}

fn log(args: &Args) -> Log {
    let (fields, is_trace) = (&args.fields, args.from == From::Hashes);
    Log {
        time: fields.time_field.clone(),
        time_unit: match fields.time_unit {
            Some(UnitName::S) => TimeUnit::S,
            Some(UnitName::Ms) => TimeUnit::Ms,
            Some(UnitName::Us) => TimeUnit::Us,
            Some(UnitName::Ns) => TimeUnit::Ns,
            None if is_trace => TimeUnit::Ms,
            None => TimeUnit::S,
        },
        input: fields.input_field.clone(),
        output: fields.output_field.clone(),
        prompt: fields.prompt_field.clone(),
        ids: fields.ids_field.clone().or_else(|| is_trace.then(|| "hash_ids".to_owned())),
        block_tokens: fields.block_tokens,
        chain: fields.chain,
        session: fields.session_field.clone(),
        parents: fields.id_field.clone().zip(fields.parent_field.clone()),
        class: fields.class_field.clone(),
        rate: args.rate.clone().map(|rate| (rate, args.seed.seed)),
        sort: fields.sort,
    }
}
