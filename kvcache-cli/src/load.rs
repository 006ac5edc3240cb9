//! `kvcache load`: sends a workload to an engine and measures how it is answered.

mod arguments;
mod screen;

use std::io::IsTerminal;
use std::num::NonZeroUsize;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use kvcache_load::{End, Error, LoadOptions, Pace, Progress, Record, Results, SummaryLine, table};
use kvcache_workload::{InvalidParameter, ReadOptions, Reader, Request, Shape};

pub(crate) use arguments::Args;
use arguments::Turns;
use screen::Screen;

use crate::command_line::made_by;

/// Runs what `args` ask for; returns the text to print, and the exit status: 0 if the run came to its end or its time
/// was over, 1 if it was stopped by errors or nothing was answered, 130 if it was interrupted.
///
/// # Errors
///
/// If nothing can be sent: a parameter is impossible, the workload unreadable, the endpoint away or another than was
/// thought.
pub(crate) fn run(args: &Args) -> Result<(String, ExitCode), LoadError> {
    let reader = Reader::open(&args.workload, args.read_options())?;
    let (pace, rate) = pace(args, &reader)?;
    let options = args.options(pace)?;
    let left_out = Arc::new(Mutex::new(None));
    let requests = Requests { reader, left_out: Arc::clone(&left_out) };
    let requests = requests.take(args.requests.map_or(usize::MAX, NonZeroUsize::get));
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(LoadError::Runtime)?;
    let is_shown = args.progress || std::io::stderr().is_terminal();
    let mut observer = Observer { args, options: &options, screen: Screen::new(is_shown), results: None };
    let (result, finished) = runtime.block_on(async {
        let result = match rate {
            Some(rate) => {
                let requests = rate.requests(requests, args.seed);
                kvcache_load::run(&options, requests, &mut observer, interrupted()).await
            }
            None => kvcache_load::run(&options, requests, &mut observer, interrupted()).await,
        };
        observer.screen.clear();
        let finished = match (&result, observer.results.take()) {
            (Ok((summary, end)), Some(results)) => results.finish(&SummaryLine::new(summary, end)),
            _ => Ok(()),
        };
        (result, finished)
    });
    // A read of the standard input may still be under way.
    runtime.shutdown_background();
    let (summary, end) = result?;
    if let Some(summary) = left_out.lock().unwrap_or_else(PoisonError::into_inner).take() {
        eprintln!("kvcache: {}: {summary}", args.workload.display());
    }
    finished.map_err(|source| LoadError::cannot_write(args.out.as_deref(), source))?;
    let line = SummaryLine::new(&summary, &end);
    let text = if args.json { serde_json::to_string(&line)? + "\n" } else { table(&line) };
    let nothing = summary.answered + summary.warmup == 0;
    let status = match end {
        End::Failed(error) if nothing && summary.failed + summary.unfinished == 0 => return Err(error.into()),
        End::Complete | End::Duration if !nothing => ExitCode::SUCCESS,
        End::Interrupted => ExitCode::from(INTERRUPTED),
        _ => ExitCode::FAILURE,
    };
    Ok((text, status))
}

/// Open or closed loop, and other times for requests, where they are asked for.
fn pace(args: &Args, reader: &Reader) -> Result<(Pace, Option<Shape>), LoadError> {
    let concurrency = match (&args.rate, args.concurrency) {
        (Some(Shape::Concurrency(count)), _) => Some(*count),
        (None, None) => reader.header().and_then(|header| header.concurrency),
        (_, given) => given,
    };
    let Some(concurrency) = concurrency else {
        let pace = if args.turns == Some(Turns::Think) { Pace::Think } else { Pace::Timestamps };
        return Ok((pace, args.rate.clone()));
    };
    if args.turns == Some(Turns::Timestamp) {
        return Err(InvalidParameter::new(
            "--turns timestamp, but a closed loop has no timestamps; leave it out, or give a --rate such as poisson:2",
        )
        .into());
    }
    let concurrency = usize::try_from(concurrency.get()).ok().and_then(NonZeroUsize::new);
    let concurrency = concurrency.filter(|count| count.get() <= CONCURRENCY_MAX);
    match concurrency {
        Some(concurrency) => Ok((Pace::Closed(concurrency), None)),
        None => Err(InvalidParameter::new(format!(
            "a concurrency of more than {CONCURRENCY_MAX} is asked for, which no endpoint has connections for"
        ))
        .into()),
    }
}

/// Ready when somebody wants the program to end.
async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    let terminated = async {
        match signal(SignalKind::terminate()) {
            Ok(mut signal) => signal.recv().await,
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = terminated => {}
        result = tokio::signal::ctrl_c() => if result.is_err() {
            std::future::pending().await
        }
    }
}

/// The requests of the workload; leaves behind what is said of its bad lines.
struct Requests {
    reader: Reader,
    left_out: Arc<Mutex<Option<String>>>,
}

impl Iterator for Requests {
    type Item = Result<Request, kvcache_workload::Error>;

    fn next(&mut self) -> Option<Self::Item> {
        self.reader.next()
    }
}

impl Drop for Requests {
    fn drop(&mut self) {
        let summary = self.reader.bad_lines().summary();
        *self.left_out.lock().unwrap_or_else(PoisonError::into_inner) = summary;
    }
}

/// Writes results as they come and shows how far it is.
struct Observer<'a> {
    args: &'a Args,
    options: &'a LoadOptions,
    screen: Screen,
    results: Option<Results>,
}

impl kvcache_load::Observer for Observer<'_> {
    fn start(&mut self) -> Result<(), Error> {
        let Some(path) = &self.args.out else { return Ok(()) };
        let endpoint = self.options.endpoint.to_string();
        let results = Results::create(path, &made_by(), &endpoint, &self.options.body.model);
        self.results = Some(results.map_err(Error::Results)?);
        Ok(())
    }

    fn record(&mut self, record: &Record) -> Result<(), Error> {
        self.results.as_mut().map_or(Ok(()), |results| results.record(record)).map_err(Error::Results)
    }

    fn progress(&mut self, progress: &Progress) -> Result<(), Error> {
        self.screen.show(progress);
        self.results.as_mut().map_or(Ok(()), Results::flush).map_err(Error::Results)
    }
}

/// Why nothing was sent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    #[error(transparent)]
    Load(#[from] Error),
    #[error(transparent)]
    Workload(#[from] kvcache_workload::Error),
    #[error(transparent)]
    Parameter(#[from] InvalidParameter),
    #[error("cannot start: {0}")]
    Runtime(#[source] std::io::Error),
    #[error("cannot write {path}: {source}")]
    Write { path: String, source: std::io::Error },
    #[error("cannot write JSON: {0}")]
    Json(#[from] serde_json::Error),
}

impl LoadError {
    fn cannot_write(path: Option<&Path>, source: std::io::Error) -> Self {
        Self::Write { path: path.map_or_else(String::new, |path| path.display().to_string()), source }
    }
}

impl Args {
    fn read_options(&self) -> ReadOptions {
        ReadOptions { hash_block_tokens: self.block_tokens, bad_lines: self.bad_lines.into() }
    }
}

/// As shells have it: 128 and the number of SIGINT.
const INTERRUPTED: u8 = 130;

/// There are fewer ports.
const CONCURRENCY_MAX: usize = 65_536;
