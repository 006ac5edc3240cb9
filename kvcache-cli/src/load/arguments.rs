//! What `kvcache load` can be told.

use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

use kvcache_load::{Api, BodyOptions, Endpoint, LoadOptions, Pace, Slo, Timeouts};
use kvcache_workload::{InvalidParameter, Shape, Vocabulary};
use serde_json::{Map, Value};

use crate::trace_file::BadLinesName;

/// Sends a workload to an engine with OpenAI's API and measures how it is answered (docs/load.md).
///
/// Requests are sent at their timestamps, at a rate, or so many sessions at a time. Printed are times to the first
/// token, per token and of whole answers with their percentiles, rates, errors and what the engine had in a cache.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Workload file (docs/workloads.md), plain or compressed with zstd; `-` is the standard input.
    pub(super) workload: PathBuf,
    /// Base of the API, as http://localhost:8000/v1.
    #[arg(long, value_name = "URL")]
    url: Endpoint,
    /// Name of the model, as the server has it.
    #[arg(long, value_name = "NAME")]
    model: String,
    /// Key that is sent as `Authorization: Bearer`.
    #[arg(long, value_name = "KEY", env = "OPENAI_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
    /// Which API is spoken.
    #[arg(long, value_name = "API", default_value = "auto")]
    api: ApiName,
    /// Sends without asking first whether the server has the model.
    #[arg(long)]
    no_check: bool,

    /// When requests are sent: `recorded`, `recorded*SPEED`, `poisson:RATE` and the other rates of `kvcache workload
    /// shape`, or `concurrency:COUNT` [default: as the workload says].
    #[arg(long, value_name = "SHAPE", conflicts_with = "concurrency")]
    pub(super) rate: Option<Shape>,
    /// Serves so many sessions at a time, the same as `--rate concurrency:COUNT`.
    #[arg(long, value_name = "COUNT")]
    pub(super) concurrency: Option<NonZeroU64>,
    /// What later turns of sessions go by [default: timestamp; think in a closed loop].
    #[arg(long, value_name = "WHAT")]
    pub(super) turns: Option<Turns>,
    /// Seed of a rate.
    #[arg(long, value_name = "NUMBER", default_value = "1")]
    pub(super) seed: u64,
    /// Sends only so many requests of the workload.
    #[arg(long, value_name = "COUNT")]
    pub(super) requests: Option<NonZeroUsize>,
    /// Requests at the start that are sent and not counted.
    #[arg(long, value_name = "COUNT", default_value = "0")]
    warmup: u64,
    /// Sends nothing after so many seconds.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    duration: Option<Duration>,
    /// Seconds that are waited after --duration for answers under way.
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds_or_none)]
    drain: Duration,
    /// Requests under way at a time in an open loop; more wait and count as late.
    #[arg(long, value_name = "COUNT", default_value = "1024")]
    max_in_flight: NonZeroUsize,

    /// Token ids that prompts are made of where the workload has no text, first and last.
    #[arg(long, value_name = "FIRST..LAST", default_value = "1000..29999", value_parser = vocabulary)]
    vocabulary: Vocabulary,
    /// Tokens of answers of which the workload does not say it.
    #[arg(long, value_name = "COUNT", default_value = "128")]
    output_tokens: NonZeroU64,
    /// Leaves out `ignore_eos` and `min_tokens`, which OpenAI's API does not have: answers may be shorter then.
    #[arg(long)]
    plain_openai: bool,
    /// More fields of each request, as '{"top_p": 0.9}'; null leaves a field out.
    #[arg(long, value_name = "JSON", default_value = "{}", value_parser = object, hide_default_value = true)]
    body: Map<String, Value>,

    /// Stops when so many requests have failed.
    #[arg(long, value_name = "COUNT", default_value = "100")]
    max_errors: NonZeroU64,
    /// How often a request is sent again that was refused with status 429 or 503, after what the server's
    /// `Retry-After` says.
    #[arg(long, value_name = "COUNT", default_value = "0")]
    retry: u32,
    /// Seconds for a connection.
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = seconds)]
    connect_timeout: Duration,
    /// Seconds from sending a request to its first token.
    #[arg(long, value_name = "SECONDS", default_value = "120", value_parser = seconds)]
    first_token_timeout: Duration,
    /// Seconds from one token to the next.
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    token_timeout: Duration,
    /// Seconds from sending a request to the end of its answer.
    #[arg(long, value_name = "SECONDS", default_value = "600", value_parser = seconds)]
    request_timeout: Duration,

    /// Counts answers that hold these limits, in milliseconds, from when they were due.
    #[arg(long, value_name = "ttft=MS,tpot=MS,e2e=MS")]
    slo: Option<Slo>,
    /// Writes a line for each request as it ends, and the summary as the last one.
    #[arg(long, value_name = "FILE")]
    pub(super) out: Option<PathBuf>,
    /// Prints one JSON object instead of a table.
    #[arg(long)]
    pub(super) json: bool,
    /// Says once a second on the standard error how far it is, also where that is no terminal.
    #[arg(long)]
    pub(super) progress: bool,
    /// Tokens of a block of `hash_ids` in lines that do not say it.
    #[arg(long, value_name = "TOKENS", default_value = "512")]
    pub(super) block_tokens: NonZeroU64,
    /// What to do with lines that are no request.
    #[arg(long, value_name = "WHAT", default_value = "refuse")]
    pub(super) bad_lines: BadLinesName,
}

/// What later turns of sessions go by, as on the command line.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(super) enum Turns {
    /// Their timestamps, but not before the earlier turn has ended.
    Timestamp,
    /// The end of the earlier turn and `think_ms`. Needs memory for all requests.
    Think,
}

/// Which API is spoken, as on the command line.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
enum ApiName {
    /// Messages are a chat, all else completions.
    Auto,
    /// `/completions`.
    Completions,
    /// `/chat/completions`; a text is the message of a user.
    Chat,
}

impl Args {
    pub(super) fn options(&self, pace: Pace) -> Result<LoadOptions, InvalidParameter> {
        if self.model.is_empty() {
            return Err(InvalidParameter::new("--model is empty; give the name that the server has"));
        }
        let api = match self.api {
            ApiName::Auto => Api::Auto,
            ApiName::Completions => Api::Completions,
            ApiName::Chat => Api::Chat,
        };
        let body = BodyOptions {
            model: self.model.clone(),
            api,
            vocabulary: self.vocabulary,
            output_tokens: self.output_tokens,
            plain_openai: self.plain_openai,
            extra: self.body.clone(),
        };
        let timeouts = Timeouts {
            connect: self.connect_timeout,
            first_token: self.first_token_timeout,
            token: self.token_timeout,
            request: self.request_timeout,
        };
        Ok(LoadOptions {
            endpoint: self.url.clone(),
            api_key: self.api_key.clone().filter(|key| !key.is_empty()),
            body,
            pace,
            timeouts,
            in_flight_max: self.max_in_flight.get(),
            errors_max: self.max_errors.get(),
            retries_max: self.retry,
            warmup: self.warmup,
            duration: self.duration,
            drain: self.drain,
            slo: self.slo,
            check_model: !self.no_check,
        })
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    seconds_or_none(text).ok().filter(|time| !time.is_zero()).ok_or_else(|| out_of_range("above 0"))
}

fn seconds_or_none(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().filter(|seconds| (0.0..=SECONDS_MAX).contains(seconds));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| out_of_range("from 0"))
}

fn out_of_range(from: &str) -> String {
    format!("must be seconds {from} to {SECONDS_MAX}, as 0.5 or 60")
}

fn vocabulary(text: &str) -> Result<Vocabulary, String> {
    let range = text.split_once("..").and_then(|(first, last)| {
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        let count = NonZeroU32::new(last.checked_sub(first)?.checked_add(1)?)?;
        Some(Vocabulary { first, count })
    });
    range.ok_or_else(|| "must be the first and the last token id, as 1000..29999".to_owned())
}

fn object(text: &str) -> Result<Map<String, Value>, String> {
    serde_json::from_str(text)
        .map_err(|error| format!("must be a JSON object, as {{\"top_p\": 0.9}} ({error})"))
}

/// A day: as long as times are counted.
const SECONDS_MAX: f64 = 86_400.0;
