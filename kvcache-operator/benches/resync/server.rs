//! The API server in memory over HTTP, in a process of its own: what it needs is not counted as the operator's.

use std::convert::Infallible;
use std::error::Error;
use std::io::Write;
use std::path::Path;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use kube::client::Body;
use tokio::net::TcpListener;

use crate::support::api_server::{AnswerBody, ApiServer};

/// Serves the objects of `file` at a port of its own, which it says in one line, until its process is ended.
pub(crate) fn serve(file: &Path) -> Result<(), Box<dyn Error>> {
    let server = ApiServer::new();
    server.restore(serde_json::from_slice(&std::fs::read(file)?)?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        println!("http://{}", listener.local_addr()?);
        std::io::stdout().flush()?;
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let server = server.clone();
            tokio::spawn(async move {
                let service = service_fn(move |request| answer(server.clone(), request));
                // An error is a client that went away.
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    })
}

async fn answer(server: ApiServer, request: Request<Incoming>) -> Result<Response<AnswerBody>, Infallible> {
    let (parts, body) = request.into_parts();
    let failed = |code| {
        let mut response = Response::new(Full::new(Bytes::new()).boxed_unsync());
        *response.status_mut() = code;
        response
    };
    let Ok(body) = body.collect().await else { return Ok(failed(StatusCode::BAD_REQUEST)) };
    let request = Request::from_parts(parts, Body::from(body.to_bytes().to_vec()));
    let answer = server.serve("second", request).await;
    Ok(answer.unwrap_or_else(|_| failed(StatusCode::INTERNAL_SERVER_ERROR)))
}
