//! `/metrics`, `/healthz` and `/readyz` over HTTP.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

use crate::clock::Clock;
use crate::metrics::Metrics;

/// Serves until it is dropped. Ready means that all caches of the cluster's objects are filled; an operator that follows
/// is ready as well, as it takes over at once.
pub async fn serve(listener: TcpListener, metrics: Arc<Metrics>, ready: watch::Receiver<bool>, clock: Clock) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    // Connections end with this future.
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let stream = tokio::select! {
            _ = connections.join_next(), if !connections.is_empty() => continue,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    log::warn!("cannot accept an HTTP connection: {error}");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
        let (metrics, ready, clock) = (Arc::clone(&metrics), ready.clone(), Arc::clone(&clock));
        connections.spawn(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let answer =
                    answer(request.method(), request.uri().path(), &metrics, *ready.borrow(), &clock);
                async move { Ok::<_, Infallible>(answer) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .max_buf_size(BUFFER_BYTES_MAX)
                .serve_connection(TokioIo::new(stream), service);
            if let Err(error) = connection.await {
                log::debug!("an HTTP connection ends: {error}");
            }
            drop(place);
        });
    }
}

fn answer(
    method: &Method,
    path: &str,
    metrics: &Metrics,
    is_ready: bool,
    clock: &Clock,
) -> Response<Full<Bytes>> {
    let (status, body) = match (method, path) {
        (&Method::GET, "/healthz") => (StatusCode::OK, "ok\n".to_owned()),
        (&Method::GET, "/readyz") if is_ready => (StatusCode::OK, "ready\n".to_owned()),
        (&Method::GET, "/readyz") => {
            (StatusCode::SERVICE_UNAVAILABLE, "the cluster's objects are not listed yet\n".to_owned())
        }
        (&Method::GET, "/metrics") => (StatusCode::OK, metrics.prometheus(clock())),
        (_, "/healthz" | "/readyz" | "/metrics") => (StatusCode::METHOD_NOT_ALLOWED, "GET here\n".to_owned()),
        _ => (StatusCode::NOT_FOUND, "there are /metrics /healthz /readyz\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let content_type = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

const CONNECTIONS_MAX: usize = 32;
const BUFFER_BYTES_MAX: usize = 16 << 10;
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_has_its_answer() {
        let clock: Clock = Arc::new(|| jiff::Timestamp::UNIX_EPOCH);
        let code =
            |method: &Method, path, ready| answer(method, path, &Metrics::default(), ready, &clock).status();
        assert_eq!(code(&Method::GET, "/healthz", false), 200);
        assert_eq!(code(&Method::GET, "/readyz", false), 503);
        assert_eq!(code(&Method::GET, "/readyz", true), 200);
        assert_eq!(code(&Method::GET, "/metrics", false), 200);
        assert_eq!(code(&Method::POST, "/metrics", true), 405);
        assert_eq!(code(&Method::GET, "/other", true), 404);
    }
}
