//! What can go wrong with a run, as opposed to one of its requests.

use std::io;

use kvcache_workload::InvalidParameter;

/// Why there was no run, or why it was stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The workload cannot be read.
    #[error(transparent)]
    Workload(#[from] kvcache_workload::Error),
    /// A parameter is impossible.
    #[error(transparent)]
    Parameter(#[from] InvalidParameter),
    /// The API that was chosen does not take a request.
    #[error("request {index} (from 0) cannot be sent: {reason}")]
    Request {
        /// Its place in the workload.
        index: u64,
        /// What to do.
        reason: &'static str,
    },
    /// Sessions and concurrency need all requests in memory.
    #[error(
        "the workload has more than {count_max} requests, which is what is held in memory; take fewer of them"
    )]
    TooManyRequests {
        /// How many may be held.
        count_max: u64,
    },
    /// The certificates of the system cannot be read.
    #[error("cannot read the system's certificates: {source}; name a file of them in SSL_CERT_FILE")]
    Certificates {
        /// Why.
        source: io::Error,
    },
    /// The first question was not answered.
    #[error("{url}: {failure}; is the address right, and the server running?")]
    Unreachable {
        /// What was asked for.
        url: String,
        /// Why.
        failure: crate::Failure,
    },
    /// The first question was refused.
    #[error("{url}: refused with status {status}: {message}; give the server's key")]
    Unauthorized {
        /// What was asked for.
        url: String,
        /// Of HTTP.
        status: u16,
        /// What the server said.
        message: String,
    },
    /// The server does not serve the model.
    #[error("{url} has no model `{model}`, it serves {}", list(served))]
    Model {
        /// What was asked for.
        url: String,
        /// The model that was named.
        model: String,
        /// The models that the server names.
        served: Vec<String>,
    },
    /// A line of results cannot be written.
    #[error("cannot write results: {0}")]
    Results(#[source] io::Error),
}

fn list(names: &[String]) -> String {
    const NAMED_MAX: usize = 20;
    let named: Vec<String> = names.iter().take(NAMED_MAX).map(|name| format!("`{name}`")).collect();
    match names.len() {
        0 => "none".to_owned(),
        count if count > NAMED_MAX => format!("{} and {} more", named.join(", "), count - NAMED_MAX),
        _ => named.join(", "),
    }
}
