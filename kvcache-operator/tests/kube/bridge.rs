//! Between programs of today and an API server of 2021.
//!
//! Kubernetes 1.20 has disruption budgets as `policy/v1beta1` only; a release later they became `policy/v1` with the same
//! fields. The bridge is a proxy that says the one name to the server and the other to its clients, and passes on
//! everything else as it is. It speaks TLS, since kubectl says no token without.

use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::sync::Arc;

use futures::StreamExt;
use http::header::{ACCEPT_ENCODING, CONNECTION, CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use kube::Client;
use kube::client::Body;
use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio::task::{AbortHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

/// A running proxy.
pub(crate) struct Bridge {
    url: String,
    task: AbortHandle,
}

impl Bridge {
    /// Starts one at a port of `ip`. The client has no token: that of each request is passed on.
    pub(crate) async fn start(client: Client, ip: Ipv4Addr, port: u16, tls: Arc<ServerConfig>) -> Self {
        let tls = TlsAcceptor::from(tls);
        let listener = TcpListener::bind((ip, port)).await.expect("the test's own address");
        let task = tokio::spawn(async move {
            // Dropped with this task.
            let mut connections = JoinSet::new();
            loop {
                let stream = tokio::select! {
                    accepted = listener.accept() => accepted.expect("the loopback interface").0,
                    Some(_) = connections.join_next() => continue,
                };
                let (client, tls) = (client.clone(), tls.clone());
                connections.spawn(async move {
                    let Ok(stream) = tls.accept(stream).await else { return };
                    let service = service_fn(move |request| forward(client.clone(), request));
                    // An error is a client that went away.
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self { url: format!("https://{ip}:{port}"), task: task.abort_handle() }
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type Answer = http_body_util::combinators::UnsyncBoxBody<Bytes, kube::Error>;

async fn forward(client: Client, request: Request<Incoming>) -> Result<Response<Answer>, Infallible> {
    Ok(translated(&client, request).await.unwrap_or_else(|error| {
        let mut response = Response::new(whole(error.to_string().into_bytes()));
        *response.status_mut() = StatusCode::BAD_GATEWAY;
        response
    }))
}

async fn translated(client: &Client, request: Request<Incoming>) -> Result<Response<Answer>, kube::Error> {
    let (mut parts, body) = request.into_parts();
    let body = body.collect().await.map_err(kube::Error::HyperError)?.to_bytes();
    let target = parts.uri.path_and_query().map_or("/", |target| target.as_str()).to_owned();
    let server_target = server_target(&target);
    let is_translated = is_about_policy(&server_target);
    parts.uri = server_target.parse().unwrap_or(parts.uri);
    // Set again from the body's length and by the connection; a compressed answer could not be read here.
    for header in [CONTENT_LENGTH, HOST, CONNECTION, ACCEPT_ENCODING] {
        parts.headers.remove(header);
    }
    let body = if is_translated { renamed(&body, NEW, OLD) } else { body.to_vec() };
    let response = client.send(Request::from_parts(parts, Body::from(body))).await?;
    let (mut parts, body) = response.into_parts();
    for header in [CONTENT_LENGTH, TRANSFER_ENCODING, CONNECTION] {
        parts.headers.remove(header);
    }
    let answer = if !is_translated {
        BodyExt::boxed_unsync(body)
    } else if is_watch(&target) {
        // A watch has one event a line, and no end.
        let lines = renamed_lines(body);
        BodyExt::boxed_unsync(StreamBody::new(lines))
    } else {
        let text = body.collect().await?.to_bytes();
        whole(renamed(&text, OLD, NEW))
    };
    Ok(Response::from_parts(parts, answer))
}

/// The body's lines, renamed, each as soon as it is whole.
fn renamed_lines<B: hyper::body::Body<Data = Bytes>>(
    body: B,
) -> impl futures::Stream<Item = Result<Frame<Bytes>, B::Error>> {
    let mut rest: Vec<u8> = Vec::new();
    body.into_data_stream().map(move |chunk| {
        rest.extend_from_slice(&chunk?);
        let whole = rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let lines: Vec<u8> = rest.drain(..whole).collect();
        Ok(Frame::data(renamed(&lines, OLD, NEW).into()))
    })
}

fn whole(body: Vec<u8>) -> Answer {
    http_body_util::Full::new(Bytes::from(body)).map_err(|never| match never {}).boxed_unsync()
}

/// Where the server has what a client asks for.
fn server_target(target: &str) -> String {
    match target.strip_prefix("/apis/policy/v1") {
        Some(rest) if rest.is_empty() || rest.starts_with(['/', '?']) => {
            format!("/apis/policy/v1beta1{rest}")
        }
        _ => target.to_owned(),
    }
}

/// Whether names of the group's version are in what is sent or answered: its objects, and the lists of what there is.
fn is_about_policy(server_target: &str) -> bool {
    let path = server_target.split('?').next().unwrap_or_default();
    path == "/apis" || path == "/apis/policy" || path.starts_with("/apis/policy/")
}

fn is_watch(target: &str) -> bool {
    let query = target.split_once('?').map_or("", |(_, query)| query);
    query.split('&').any(|pair| pair == "watch=true" || pair == "watch=1")
}

const OLD: &str = "policy/v1beta1";
const NEW: &str = "policy/v1";

/// The JSON text with the group's version renamed where it is a whole string, and in the list of versions.
fn renamed(text: &[u8], from: &str, to: &str) -> Vec<u8> {
    let text = String::from_utf8_lossy(text);
    let listed = |name: &str| {
        let version = name.rsplit('/').next().unwrap_or_default();
        format!("\"groupVersion\":\"{name}\",\"version\":\"{version}\"")
    };
    let text = text.replace(&listed(from), &listed(to));
    text.replace(&format!("\"{from}\""), &format!("\"{to}\"")).into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_groups_own_paths_are_renamed() {
        let budgets = "/apis/policy/v1/namespaces/a/poddisruptionbudgets/b";
        assert_eq!(server_target(budgets), budgets.replace("/v1/", "/v1beta1/"));
        assert_eq!(server_target("/apis/policy/v1"), "/apis/policy/v1beta1");
        for other in ["/apis/policy/v1beta1/x", "/apis/apps/v1/x", "/apis/policy/v10", "/apis"] {
            assert_eq!(server_target(other), other);
        }
        assert!(is_about_policy("/apis?x") && is_about_policy("/apis/policy/v1beta1/x?watch=1"));
        assert!(!is_about_policy("/apis/apps/v1") && !is_about_policy("/api"));
        assert!(is_watch("/x?a=b&watch=true") && !is_watch("/x?a=watch") && !is_watch("/watch=true"));
    }

    #[test]
    fn versions_are_renamed_as_whole_strings() {
        let text = br#"{"apiVersion":"policy/v1","note":"of policy/v1"}"#;
        let sent = renamed(text, NEW, OLD);
        assert_eq!(sent, br#"{"apiVersion":"policy/v1beta1","note":"of policy/v1"}"#);
        assert_eq!(renamed(&sent, OLD, NEW), text);
        let list = br#"{"versions":[{"groupVersion":"policy/v1beta1","version":"v1beta1"}]}"#;
        assert_eq!(renamed(list, OLD, NEW), br#"{"versions":[{"groupVersion":"policy/v1","version":"v1"}]}"#);
    }

    #[tokio::test]
    async fn a_watch_is_renamed_line_by_line() {
        let chunks = ["{\"a\":\"policy/v1b", "eta1\"}\n{\"b\":", "1}\n"];
        let stream = futures::stream::iter(
            chunks.map(|chunk| Ok::<_, std::io::Error>(Frame::data(Bytes::from(chunk)))),
        );
        let body = StreamBody::new(stream);
        let lines: Vec<_> =
            renamed_lines(body).map(|frame| frame.expect("data").into_data().expect("data")).collect().await;
        assert_eq!(lines, ["", "{\"a\":\"policy/v1\"}\n", "{\"b\":1}\n"]);
    }
}
