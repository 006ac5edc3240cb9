//! Between programs of today and an API server of 2021.
//!
//! Kubernetes 1.20 has disruption budgets as `policy/v1beta1` only; a release later they became `policy/v1` with the same
//! fields. The bridge is a proxy that says the one name to the server and the other to its clients, and passes on
//! everything else as it is. It speaks TLS, since kubectl says no token without.
//!
//! A program that has a bridge of its own can be cut off from the API server, and be stopped at the very request at which a
//! test wants to end it; and what it asked for is known.

use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::StreamExt;
use http::header::{ACCEPT_ENCODING, CONNECTION, CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use kube::Client;
use kube::client::Body;
use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

/// A running proxy.
pub(crate) struct Bridge {
    url: String,
    shared: Arc<Shared>,
    task: AbortHandle,
}

/// A request that was passed on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Asked {
    pub(crate) method: Method,
    /// With the query.
    pub(crate) target: String,
    /// `None` while there is no answer.
    pub(crate) status: Option<StatusCode>,
}

impl Asked {
    pub(crate) fn is_write(&self) -> bool {
        self.method != Method::GET
    }

    /// Whether it is about objects of this plural.
    pub(crate) fn is_about(&self, plural: &str) -> bool {
        self.target.split(['/', '?']).any(|part| part == plural)
    }
}

/// Stops everything at a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Fuse {
    /// At which write, counted from 1.
    pub(crate) write: u32,
    /// Whether that one still reaches the API server; its answer never arrives.
    pub(crate) is_done: bool,
}

struct Shared {
    client: Client,
    asked: Mutex<Vec<Asked>>,
    fuse: Mutex<Option<Fuse>>,
    is_blown: watch::Sender<bool>,
    is_open: watch::Sender<bool>,
}

impl Bridge {
    /// Listens at `ip` and `port`, and asks `client`, which has no token: that of each request is passed on.
    pub(crate) async fn start(client: Client, ip: Ipv4Addr, port: u16, tls: Arc<ServerConfig>) -> Self {
        let tls = TlsAcceptor::from(tls);
        let listener = TcpListener::bind((ip, port)).await.expect("the test's own address");
        let shared = Arc::new(Shared {
            client,
            asked: Mutex::default(),
            fuse: Mutex::default(),
            is_blown: watch::Sender::new(false),
            is_open: watch::Sender::new(true),
        });
        let task = tokio::spawn(pass_on(Arc::clone(&shared), listener, tls)).abort_handle();
        Self { url: format!("https://{ip}:{port}"), shared, task }
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Ends all connections, and ends new ones at once until it is opened again.
    pub(crate) fn cut(&self) {
        self.shared.is_open.send_replace(false);
    }

    pub(crate) fn open(&self) {
        self.shared.is_open.send_replace(true);
    }

    /// Everything that was asked, in order.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        locked(&self.shared.asked).clone()
    }

    /// Writes from now on count towards `fuse`; from that one on nothing is answered any more.
    pub(crate) fn arm(&self, fuse: Fuse) {
        *locked(&self.shared.fuse) = Some(fuse);
    }

    /// Waits until the fuse has blown.
    pub(crate) async fn blown(&self) {
        let _ = self.shared.is_blown.subscribe().wait_for(|is_blown| *is_blown).await;
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pass_on(shared: Arc<Shared>, listener: TcpListener, tls: TlsAcceptor) {
    let mut is_open = shared.is_open.subscribe();
    // Dropped with this task.
    let mut connections = JoinSet::new();
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => accepted.expect("the loopback interface").0,
            Some(_) = connections.join_next() => continue,
            _ = is_open.changed() => {
                if !*is_open.borrow_and_update() {
                    connections.abort_all();
                }
                continue;
            }
        };
        if !*is_open.borrow() {
            continue;
        }
        let (shared, tls) = (Arc::clone(&shared), tls.clone());
        connections.spawn(async move {
            let Ok(stream) = tls.accept(stream).await else { return };
            let service = service_fn(move |request| forward(Arc::clone(&shared), request));
            // An error is a client that went away.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

impl Shared {
    /// Whether the fuse lets a request pass.
    fn passes(&self, method: &Method) -> Passage {
        let mut fuse = locked(&self.fuse);
        let Some(fuse) = &mut *fuse else { return Passage::Free };
        if method != Method::GET && fuse.write > 0 {
            fuse.write -= 1;
            if fuse.write == 0 && fuse.is_done {
                return Passage::Last;
            }
        }
        if fuse.write == 0 { Passage::None } else { Passage::Free }
    }

    async fn blow(&self) {
        self.is_blown.send_replace(true);
        std::future::pending().await
    }
}

enum Passage {
    Free,
    Last,
    None,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

type Answer = http_body_util::combinators::UnsyncBoxBody<Bytes, kube::Error>;

async fn forward(shared: Arc<Shared>, request: Request<Incoming>) -> Result<Response<Answer>, Infallible> {
    let target = request.uri().path_and_query().map_or("/", |target| target.as_str()).to_owned();
    let passage = shared.passes(request.method());
    if matches!(passage, Passage::None) {
        shared.blow().await;
    }
    let asked = Asked { method: request.method().clone(), target, status: None };
    let index = {
        let mut all = locked(&shared.asked);
        all.push(asked);
        all.len() - 1
    };
    let response = translated(&shared.client, request).await.unwrap_or_else(|error| {
        let mut response = Response::new(whole(error.to_string().into_bytes()));
        *response.status_mut() = StatusCode::BAD_GATEWAY;
        response
    });
    locked(&shared.asked)[index].status = Some(response.status());
    if matches!(passage, Passage::Last) {
        shared.blow().await;
    }
    Ok(response)
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
