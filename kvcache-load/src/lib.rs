//! A load client: sends a workload to an endpoint with OpenAI's API and measures how it is answered.
//!
//! Latencies of a loaded server depend on when it is asked. A client that waits for answers before it asks again is
//! slowed down by the server that it measures, and sees the few requests that it could send in bad times (Tene, "How
//! NOT to Measure Latency", 2013, calls it coordinated omission). So each request has a time at which it is due,
//! which the workload says and answers do not move, and latencies are told from that time as well as from sending.
//!
//! - [`run`] sends the requests of a workload ([`kvcache_workload`]) as [`LoadOptions`] say, and gives a [`Summary`].
//!   An [`Observer`] sees each [`Record`] as it comes, so that nothing is lost when a run is stopped.
//! - [`Pace`] is the open or the closed loop.
//! - [`Results`] writes requests and summary as JSON Lines; [`table`] shows a summary to people.
//!
//! What reads answers and counts is apart from what waits for them: time is an argument there. `docs/load.md` defines
//! each number.

#![forbid(unsafe_code)]

mod answer;
mod body;
mod chunk;
mod client;
mod connector;
mod distribution;
mod endpoint;
mod error;
mod failure;
mod models;
mod pace;
mod record;
mod report;
mod results;
mod run;
mod sender;
mod slo;
mod source;
mod sse;
mod statistics;
#[cfg(test)]
mod tests;

pub use answer::Answered;
pub use body::{Api, BodyOptions};
pub use client::Timeouts;
pub use distribution::Percentiles;
pub use endpoint::Endpoint;
pub use error::Error;
pub use failure::Failure;
pub use pace::Pace;
pub use record::Record;
pub use report::table;
pub use results::{Results, SummaryLine};
pub use run::{End, LoadOptions, Observer, Progress, run};
pub use slo::Slo;
pub use statistics::{ErrorCount, Summary};

/// What the fuzz target `event_stream` runs: reads `bytes` as an answer that comes in parts of `part_bytes`. Tells
/// whether it is a whole one.
pub fn fuzz_entry(bytes: &[u8], part_bytes: usize) -> bool {
    let mut answer = answer::Answer::default();
    let mut parts = bytes.chunks(part_bytes.max(1)).zip(0..);
    parts.all(|(part, now_us)| answer.read(part, now_us).is_ok()) && answer.end(u64::MAX).is_ok()
}
