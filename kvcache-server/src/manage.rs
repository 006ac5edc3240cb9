//! Management over HTTP: health, metrics, and the two routes of the stock server.

use std::convert::Infallible;
use std::sync::Arc;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::session::{Shared, Stopping, stopped};

/// Serves HTTP until the server stops.
pub(crate) async fn serve(shared: Arc<Shared>, listener: TcpListener, mut stopping: Stopping) {
    let mut connections = JoinSet::new();
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let stream = tokio::select! {
            biased;
            () = stopped(&mut stopping) => return,
            _ = connections.join_next(), if !connections.is_empty() => continue,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    log::warn!("cannot accept a management connection: {error}");
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
        let (shared, state) = (Arc::clone(&shared), stopping.clone());
        connections.spawn(async move {
            let timeout = shared.timeouts.request;
            let service = service_fn(move |request| answer(Arc::clone(&shared), state.clone(), request));
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(timeout)
                .max_buf_size(BUFFER_BYTES_MAX)
                .serve_connection(TokioIo::new(stream), service);
            if let Err(error) = connection.await {
                log::debug!("a management connection ends: {error}");
            }
            drop(place);
        });
    }
}

type Answer = Response<Full<Bytes>>;

async fn answer(
    shared: Arc<Shared>,
    stopping: Stopping,
    request: Request<Incoming>,
) -> Result<Answer, Infallible> {
    Ok(match (request.method(), request.uri().path()) {
        (&Method::GET, "/healthz") => text(StatusCode::OK, "ok\n".to_owned()),
        (&Method::GET, "/readyz") if *stopping.borrow() => {
            text(StatusCode::SERVICE_UNAVAILABLE, "stopping\n".to_owned())
        }
        (&Method::GET, "/readyz") => text(StatusCode::OK, "ready\n".to_owned()),
        (&Method::GET, "/metrics") => text(StatusCode::OK, shared.metrics.prometheus(&shared.stats())),
        (&Method::GET, "/kvmap_len") => json(format!("{{\"len\":{}}}", shared.store.stats().values)),
        (&Method::POST, "/purge") if !is_authorized(&shared, &request) => text(
            StatusCode::UNAUTHORIZED,
            "say `Authorization: Bearer TOKEN` with the server's token\n".to_owned(),
        ),
        (&Method::POST, "/purge") => {
            let store = Arc::clone(&shared.store);
            match tokio::task::spawn_blocking(move || store.purge()).await {
                Ok(count) => json(format!("{{\"status\":\"ok\",\"num\":{count}}}")),
                Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
            }
        }
        (_, "/healthz" | "/readyz" | "/metrics" | "/kvmap_len" | "/purge") => {
            text(StatusCode::METHOD_NOT_ALLOWED, "GET here, but POST for /purge\n".to_owned())
        }
        _ => {
            text(StatusCode::NOT_FOUND, "there are /healthz /readyz /metrics /kvmap_len /purge\n".to_owned())
        }
    })
}

/// What destroys asks for the token that clients of the cache need.
fn is_authorized(shared: &Shared, request: &Request<Incoming>) -> bool {
    let Some(token) = &shared.token else { return true };
    let header = request.headers().get(AUTHORIZATION).map(|value| value.as_bytes());
    header.and_then(|value| value.strip_prefix(b"Bearer ")).is_some_and(|given| token.is(given.trim_ascii()))
}

fn text(status: StatusCode, body: String) -> Answer {
    response(status, "text/plain; version=0.0.4; charset=utf-8", body)
}

fn json(body: String) -> Answer {
    response(StatusCode::OK, "application/json", body)
}

fn response(status: StatusCode, content_type: &'static str, body: String) -> Answer {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(content_type));
    response
}

const CONNECTIONS_MAX: usize = 64;
const BUFFER_BYTES_MAX: usize = 16 << 10;
