//! Whole runs against a server in the same process, with a clock that stands still while anything can be done: every
//! time is exact, and nothing takes long.

mod bad_server;
mod endings;
mod paces;
mod server;
mod times;

use std::future::Future;
use std::io;
use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use kvcache_workload::{Content, Error as WorkloadError, Piece, Request, Shape, Vocabulary};
use parking_lot::Mutex;
use serde_json::Map;
use tokio::io::DuplexStream;
use tokio::time::Instant;

use crate::run::run_with;
use crate::{Api, BodyOptions, End, Error, LoadOptions, Observer, Pace, Progress, Record, Summary, Timeouts};
use server::{Asked, Step};

/// What the server of a test does with a request.
type Reply = Arc<dyn Fn(&Asked) -> Vec<Step> + Send + Sync>;

/// Connects to a server in this process.
#[derive(Clone)]
struct Connector {
    reply: Reply,
    count: Arc<AtomicU64>,
    /// What was asked and when, from the first connection on.
    asked: Arc<Mutex<Vec<(Asked, Instant)>>>,
    refuses: Option<io::ErrorKind>,
}

struct Stream(TokioIo<DuplexStream>);

impl tower_service::Service<Uri> for Connector {
    type Response = Stream;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Stream>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move {
            if let Some(kind) = connector.refuses {
                return Err(io::Error::new(kind, "as the test wants"));
            }
            let (ours, theirs) = tokio::io::duplex(1 << 20);
            tokio::spawn(async move {
                let reply = |asked: &Asked| {
                    connector.asked.lock().push((asked.clone(), Instant::now()));
                    (connector.reply)(asked)
                };
                // A client that goes away is part of some tests.
                let _ = server::serve(theirs, connector.count, reply).await;
            });
            Ok(Stream(TokioIo::new(ours)))
        })
    }
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl Write for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

/// Keeps all that it sees.
#[derive(Default)]
struct Seen {
    records: Vec<Record>,
    progress: Vec<Progress>,
    fails: bool,
}

impl Observer for Seen {
    fn start(&mut self) -> Result<(), Error> {
        assert!(self.records.is_empty());
        Ok(())
    }

    fn record(&mut self, record: &Record) -> Result<(), Error> {
        self.records.push(record.clone());
        match self.fails {
            true => Err(Error::Results(io::Error::other("the disk is full"))),
            false => Ok(()),
        }
    }

    fn progress(&mut self, progress: &Progress) -> Result<(), Error> {
        self.progress.push(*progress);
        Ok(())
    }
}

/// A run of a test and what came of it.
struct Run {
    summary: Summary,
    end: End,
    /// In the order of the workload.
    records: Vec<Record>,
    progress: Vec<Progress>,
    /// What the server was asked, and how many milliseconds after the start of the run.
    asked: Vec<(Asked, u64)>,
}

impl Run {
    /// Milliseconds from the start at which the requests came to the server, by their place in the workload.
    fn sent_ms(&self) -> Vec<u64> {
        self.records.iter().map(|record| record.sent_us / 1000).collect()
    }

    fn kinds(&self) -> Vec<String> {
        let kind = |record: &Record| {
            record.outcome.as_ref().map_or_else(|failure| failure.kind().into_owned(), |_| String::new())
        };
        self.records.iter().map(kind).collect()
    }

    /// The message of the only request.
    fn message(&self) -> String {
        assert_eq!(self.records.len(), 1);
        self.records[0].outcome.as_ref().expect_err("it failed").to_string()
    }
}

fn options() -> LoadOptions {
    LoadOptions {
        endpoint: "http://test/v1".parse().expect("a URL"),
        api_key: None,
        body: BodyOptions {
            model: "model".to_owned(),
            api: Api::Auto,
            vocabulary: Vocabulary { first: 1000, count: NonZeroU32::new(29_001).expect("not zero") },
            output_tokens: NonZeroU64::new(4).expect("not zero"),
            plain_openai: false,
            extra: Map::new(),
        },
        pace: Pace::Timestamps,
        timeouts: Timeouts::default(),
        in_flight_max: 1000,
        errors_max: 1000,
        retries_max: 0,
        warmup: 0,
        duration: None,
        drain: ms(5000),
        slo: None,
        check_model: false,
    }
}

async fn run(
    options: &LoadOptions,
    requests: Vec<Result<Request, WorkloadError>>,
    reply: impl Fn(&Asked) -> Vec<Step> + Send + Sync + 'static,
) -> Run {
    let connector = connector(reply);
    run_until(connector, options, requests, &mut Seen::default(), std::future::pending())
        .await
        .expect("a run")
}

fn connector(reply: impl Fn(&Asked) -> Vec<Step> + Send + Sync + 'static) -> Connector {
    Connector { reply: Arc::new(reply), count: Arc::default(), asked: Arc::default(), refuses: None }
}

async fn run_until(
    connector: Connector,
    options: &LoadOptions,
    requests: Vec<Result<Request, WorkloadError>>,
    seen: &mut Seen,
    stop: impl Future<Output = ()>,
) -> Result<Run, Error> {
    let (asked, started) = (Arc::clone(&connector.asked), Instant::now());
    let (summary, end) = run_with(connector, options, Box::new(requests.into_iter()), seen, stop).await?;
    let mut records = std::mem::take(&mut seen.records);
    records.sort_by_key(|record| record.index);
    let at = |(asked, at): &(Asked, Instant)| (asked.clone(), (*at - started).as_millis() as u64);
    let asked = asked.lock().iter().map(at).collect();
    Ok(Run { summary, end, records, progress: std::mem::take(&mut seen.progress), asked })
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A prompt of 10 tokens that no other has.
fn prompt(stream: u64) -> Request {
    Request::new(Content::Pieces(vec![Piece { stream, tokens: 10 }]))
}

/// So many requests at these times.
fn shaped(count: u64, shape: &str) -> Vec<Result<Request, WorkloadError>> {
    let shape: Shape = shape.parse().expect("a shape");
    shape.requests((0..count).map(|index| Ok(prompt(index))), 1).collect()
}

/// A turn of a session.
fn turn(session: &str, timestamp_ms: u64, think_ms: u64) -> Result<Request, WorkloadError> {
    Ok(Request {
        session_id: Some(session.to_owned()),
        timestamp_ms: Some(timestamp_ms as f64),
        think_ms: Some(think_ms as f64),
        ..prompt(timestamp_ms)
    })
}

fn concurrency(count: usize) -> Pace {
    Pace::Closed(NonZeroUsize::new(count).expect("not zero"))
}
