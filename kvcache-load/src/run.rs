//! A run: requests at their times, outcomes as they come, a summary at the end.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::HeaderValue;
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::Connect;
use hyper_util::rt::TokioExecutor;
use kvcache_workload::{Error as WorkloadError, InvalidParameter, Request};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use crate::body::{Bodies, BodyOptions};
use crate::client::{Client, Timeouts};
use crate::connector;
use crate::endpoint::Endpoint;
use crate::error::Error;
use crate::models;
use crate::pace::{Pace, drive};
use crate::record::Record;
use crate::sender::{Limits, Sender};
use crate::slo::Slo;
use crate::source::Source;
use crate::statistics::{Statistics, Summary};

/// How a workload is sent.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Where to.
    pub endpoint: Endpoint,
    /// The key that the server asks for.
    pub api_key: Option<String>,
    /// How requests are written.
    pub body: BodyOptions,
    /// When they are sent.
    pub pace: Pace,
    /// How long is waited for what.
    pub timeouts: Timeouts,
    /// Requests under way at a time; more wait, and count as late. In a closed loop its concurrency is the bound.
    pub in_flight_max: usize,
    /// The run is stopped when so many requests have failed.
    pub errors_max: u64,
    /// How often a request is sent again that was refused with status 429 or 503.
    pub retries_max: u32,
    /// Requests at the start that are not counted.
    pub warmup: u64,
    /// Nothing is sent after this time.
    pub duration: Option<Duration>,
    /// How long is waited after [`LoadOptions::duration`] for the answers that are under way.
    pub drain: Duration,
    /// What an answer must hold to be good.
    pub slo: Option<Slo>,
    /// Asks for the list of models first, so that a wrong address or name is told at once.
    pub check_model: bool,
}

/// Why a run has ended.
#[derive(Debug)]
pub enum End {
    /// All requests have been sent and have ended.
    Complete,
    /// The time was over.
    Duration,
    /// The caller wanted it.
    Interrupted,
    /// Too many requests have failed.
    Errors,
    /// The workload cannot be read further, or results cannot be written.
    Failed(Error),
}

impl End {
    /// Whether requests of the workload are missing from the results.
    pub fn is_partial(&self) -> bool {
        !matches!(self, Self::Complete)
    }

    /// In one word.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Duration => "duration",
            Self::Interrupted => "interrupted",
            Self::Errors => "errors",
            Self::Failed(_) => "failed",
        }
    }
}

/// Where a run stands.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Progress {
    /// Seconds from the start.
    pub elapsed_s: f64,
    /// Requests that have been sent.
    pub sent: u64,
    /// Of these, those that have not ended.
    pub in_flight: u64,
    /// Requests that were answered.
    pub answered: u64,
    /// Requests that failed.
    pub failed: u64,
    /// Tokens of answers.
    pub output_tokens: u64,
    /// Median time to the first token, in milliseconds.
    pub ttft_ms_p50: f64,
    /// 99 % of the times to the first token are at most this.
    pub ttft_ms_p99: f64,
}

/// Sees a run as it goes on.
pub trait Observer {
    /// The endpoint has answered, and nothing has been sent yet.
    ///
    /// # Errors
    ///
    /// End the run.
    fn start(&mut self) -> Result<(), Error>;

    /// A request has ended.
    ///
    /// # Errors
    ///
    /// End the run.
    fn record(&mut self, record: &Record) -> Result<(), Error>;

    /// Called once a second.
    ///
    /// # Errors
    ///
    /// End the run.
    fn progress(&mut self, progress: &Progress) -> Result<(), Error>;
}

/// Sends `requests` as `options` say until all are answered, the time is over, too many have failed or `stop` is ready.
/// Runs on the tokio runtime of the caller, of which one thread is enough.
///
/// # Errors
///
/// Before anything is sent: of impossible options, or of an endpoint that does not answer, wants a key or does not
/// serve the model. What happens later ends the run, and [`End`] says so beside what was measured until then.
pub async fn run(
    options: &LoadOptions,
    requests: impl Iterator<Item = Result<Request, WorkloadError>> + Send + 'static,
    observer: &mut impl Observer,
    stop: impl Future<Output = ()>,
) -> Result<(Summary, End), Error> {
    let connector = connector::https(&options.endpoint, options.timeouts.connect)?;
    run_with(connector, options, Box::new(requests), observer, stop).await
}

pub(crate) async fn run_with<C: Connect + Clone + Send + Sync + 'static>(
    connector: C,
    options: &LoadOptions,
    requests: Box<dyn Iterator<Item = Result<Request, WorkloadError>> + Send>,
    observer: &mut impl Observer,
    stop: impl Future<Output = ()>,
) -> Result<(Summary, End), Error> {
    let bodies = Arc::new(Bodies::new(options.body.clone())?);
    let authorization = options.api_key.as_deref().map(bearer).transpose()?;
    let http: HttpClient<C, Full<Bytes>> = HttpClient::builder(TokioExecutor::new()).build(connector);
    let client = Client::new(http, &options.endpoint, authorization, options.timeouts);
    let mut stop = std::pin::pin!(stop);
    if options.check_model {
        tokio::select! {
            checked = models::check(&client, &options.body.model) => checked?,
            () = &mut stop => return Ok((Statistics::new(options.slo).summary(0, None), End::Interrupted)),
        }
    }
    observer.start()?;
    let started = Instant::now();
    let deadline = options.duration.map(|duration| started + duration);
    let limits = Limits {
        in_flight_max: options.pace.concurrency().unwrap_or(options.in_flight_max),
        retries_max: options.retries_max,
        warmup: options.warmup,
        deadline,
    };
    let (records_in, mut records) = mpsc::channel(RECORDS_WAITING_MAX);
    let sender = Arc::new(Sender::new(client, Arc::clone(&bodies), limits, started, records_in));
    let counts = sender.counts();
    let mut run = Run { options, started, observer, statistics: Statistics::new(options.slo), recorded: 0 };
    let mut driver = Box::pin(drive(sender, Source::new(requests, bodies), options.pace));
    let mut driven = None;
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    ticks.tick().await;
    let drained =
        sleep_until(deadline.map_or_else(|| started + FOREVER, |deadline| deadline + options.drain));
    let mut drained = std::pin::pin!(drained);
    let end = loop {
        tokio::select! {
            biased;
            () = &mut stop => break End::Interrupted,
            record = records.recv() => match record {
                // All that could send one have ended.
                None => match driven {
                    Some(Err(error)) => break End::Failed(error),
                    _ if counts.is_cut() => break End::Duration,
                    _ => break End::Complete,
                },
                Some(record) => {
                    if let Err(error) = run.record(&record) {
                        break End::Failed(error);
                    }
                    if run.statistics.failed() >= options.errors_max {
                        break End::Errors;
                    }
                }
            },
            // Drops the sender, without which there are no more records.
            result = &mut driver, if driven.is_none() => driven = Some(result),
            () = &mut drained, if deadline.is_some() => break End::Duration,
            _ = ticks.tick() => {
                let progress = run.progress(counts.sent());
                if let Err(error) = run.observer.progress(&progress) {
                    break End::Failed(error);
                }
            }
        }
    };
    drop(driver);
    let mut end = end;
    while let Ok(record) = records.try_recv() {
        if let (Err(error), false) = (run.record(&record), matches!(end, End::Failed(_))) {
            end = End::Failed(error);
        }
    }
    let unfinished = counts.sent().saturating_sub(run.recorded);
    let offered_per_s = if options.pace.is_open() { counts.offered_per_s() } else { None };
    Ok((run.statistics.summary(unfinished, offered_per_s), end))
}

struct Run<'a, O> {
    options: &'a LoadOptions,
    started: Instant,
    observer: &'a mut O,
    statistics: Statistics,
    recorded: u64,
}

impl<O: Observer> Run<'_, O> {
    fn record(&mut self, record: &Record) -> Result<(), Error> {
        debug_assert_eq!(record.is_warmup, record.index < self.options.warmup);
        self.recorded += 1;
        self.statistics.record(record);
        self.observer.record(record)
    }

    fn progress(&self, sent: u64) -> Progress {
        Progress {
            elapsed_s: self.started.elapsed().as_secs_f64(),
            sent,
            in_flight: sent.saturating_sub(self.recorded),
            answered: self.statistics.answered(),
            failed: self.statistics.failed(),
            output_tokens: self.statistics.output_tokens(),
            ttft_ms_p50: self.statistics.ttft().quantile_ms(0.5),
            ttft_ms_p99: self.statistics.ttft().quantile_ms(0.99),
        }
    }
}

fn bearer(key: &str) -> Result<HeaderValue, InvalidParameter> {
    let mut value = HeaderValue::from_str(&format!("Bearer {key}")).map_err(|_| {
        InvalidParameter::new("the API key has characters that a header cannot have; is a line end in it?")
    })?;
    value.set_sensitive(true);
    Ok(value)
}

const TICK: Duration = Duration::from_secs(1);
const FOREVER: Duration = Duration::from_secs(1 << 30);
const RECORDS_WAITING_MAX: usize = 1024;
