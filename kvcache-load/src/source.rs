//! Requests of a workload, one after the other, read without holding up the answers that come meanwhile.

use kvcache_workload::{Error as WorkloadError, Request};

use crate::body::Bodies;
use crate::error::Error;
use std::sync::Arc;

type Requests = Box<dyn Iterator<Item = Result<Request, WorkloadError>> + Send>;

/// The requests of a workload, checked.
pub(crate) struct Source {
    requests: Option<Requests>,
    bodies: Arc<Bodies>,
    count: u64,
}

/// A request with its place in the workload.
#[derive(Debug)]
pub(crate) struct Indexed {
    pub(crate) index: u64,
    pub(crate) request: Request,
}

impl Source {
    pub(crate) fn new(requests: Requests, bodies: Arc<Bodies>) -> Self {
        Self { requests: Some(requests), bodies, count: 0 }
    }

    /// The next request, read on another thread. `None` at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<Indexed>, Error> {
        let Some(mut requests) = self.requests.take() else { return Ok(None) };
        let read = tokio::task::spawn_blocking(move || {
            let next = requests.next();
            (requests, next)
        });
        // The iterator of a caller has panicked, or the program is ending.
        let Ok((requests, next)) = read.await else { return Ok(None) };
        let Some(request) = next.transpose()? else { return Ok(None) };
        let index = self.count;
        self.count += 1;
        self.requests = Some(requests);
        self.bodies.check(&request).map_err(|reason| Error::Request { index, reason })?;
        Ok(Some(Indexed { index, request }))
    }

    /// All requests, each session's together, in the order in which sessions begin. A request without a session is one
    /// of its own.
    pub(crate) async fn sessions(mut self) -> Result<Vec<Vec<Indexed>>, Error> {
        let requests = self.requests.take().into_iter().flatten();
        let bodies = Arc::clone(&self.bodies);
        let grouped = tokio::task::spawn_blocking(move || grouped(requests, &bodies)).await;
        grouped.unwrap_or_else(|_| Ok(Vec::new()))
    }
}

fn grouped(
    requests: impl Iterator<Item = Result<Request, WorkloadError>>,
    bodies: &Bodies,
) -> Result<Vec<Vec<Indexed>>, Error> {
    let mut places = std::collections::HashMap::new();
    let mut sessions: Vec<Vec<Indexed>> = Vec::new();
    for (request, index) in requests.zip(0..) {
        let request = request?;
        if index == REQUESTS_MAX {
            return Err(Error::TooManyRequests { count_max: REQUESTS_MAX });
        }
        bodies.check(&request).map_err(|reason| Error::Request { index, reason })?;
        let new = sessions.len();
        let place = match &request.session_id {
            Some(session_id) => *places.entry(session_id.clone()).or_insert(new),
            None => new,
        };
        if place == new {
            sessions.push(Vec::new());
        }
        sessions[place].push(Indexed { index, request });
    }
    Ok(sessions)
}

/// About as many as fit into 4 GiB where prompts are pieces.
const REQUESTS_MAX: u64 = 1 << 23;
