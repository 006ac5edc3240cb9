//! Sends a request and reads the stream of its answer.

use std::error::Error as _;
use std::io;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue, RETRY_AFTER, USER_AGENT};
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_util::client::legacy::connect::Connect;
use hyper_util::client::legacy::{Client as HttpClient, Error as HttpError};
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::answer::{Answer, Answered, message};
use crate::body::Prepared;
use crate::endpoint::Endpoint;
use crate::failure::{Failure, excerpt};

/// How long is waited for what.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// For a connection.
    pub connect: Duration,
    /// From sending a request to the first token of its answer.
    pub first_token: Duration,
    /// From each token to the next, and from the last one to the end of the stream.
    pub token: Duration,
    /// From sending a request to the end of its answer.
    pub request: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { connect: seconds(5), first_token: seconds(120), token: seconds(30), request: seconds(600) }
    }
}

/// A client of one endpoint. Connections are used again.
pub(crate) struct Client<C> {
    http: HttpClient<C, Full<Bytes>>,
    completions: Uri,
    chat: Uri,
    models: Uri,
    authorization: Option<HeaderValue>,
    timeouts: Timeouts,
}

impl<C: Connect + Clone + Send + Sync + 'static> Client<C> {
    pub(crate) fn new(
        http: HttpClient<C, Full<Bytes>>,
        endpoint: &Endpoint,
        authorization: Option<HeaderValue>,
        timeouts: Timeouts,
    ) -> Self {
        let [completions, chat, models] =
            ["/completions", "/chat/completions", "/models"].map(|path| endpoint.uri(path));
        Self { http, completions, chat, models, authorization, timeouts }
    }

    /// The address that says which models there are.
    pub(crate) fn models_uri(&self) -> &Uri {
        &self.models
    }

    /// Asks which models there are. Returns status and body.
    pub(crate) async fn models(&self) -> Result<(StatusCode, Bytes), Failure> {
        let deadline = Instant::now() + MODELS_TIMEOUT;
        let request = self.request(Method::GET, &self.models, Bytes::new());
        let response = self.respond(request, deadline, Failure::RequestTimeout(MODELS_TIMEOUT)).await?;
        let status = response.status();
        let body = beginning(response.into_body(), MODELS_BYTES_MAX, deadline).await;
        Ok((status, body))
    }

    /// Sends a request that starts at `now_us` of the run's clock, and reads its answer. `clock` tells that clock.
    pub(crate) async fn send(
        &self,
        prepared: &Prepared,
        clock: impl Fn() -> u64,
    ) -> Result<Answered, Failure> {
        let (started, started_us) = (Instant::now(), clock());
        let limits = &self.timeouts;
        let at =
            |us: u64, limit: Duration| started + Duration::from_micros(us.saturating_sub(started_us)) + limit;
        let whole = started + limits.request;
        let first = started + limits.first_token;
        let late = |token_us: Option<u64>| match token_us {
            _ if Instant::now() >= whole => Failure::RequestTimeout(limits.request),
            None => Failure::FirstTokenTimeout(limits.first_token),
            Some(_) => Failure::TokenTimeout(limits.token),
        };
        let uri = if prepared.is_chat { &self.chat } else { &self.completions };
        let request = self.request(Method::POST, uri, prepared.body.clone());
        let early = if whole <= first { Failure::RequestTimeout(limits.request) } else { late(None) };
        let response = self.respond(request, first.min(whole), early).await?;
        let mut body = accepted(response).await?;
        let mut answer = Answer::default();
        // One timer for all tokens: it is set anew when it has run out too early, not for each token.
        let mut timer = std::pin::pin!(sleep_until(first.min(whole)));
        loop {
            let frame = tokio::select! {
                biased;
                frame = body.frame() => frame,
                () = &mut timer => {
                    let deadline = answer.progress_us().map_or(first, |us| at(us, limits.token)).min(whole);
                    if Instant::now() >= deadline {
                        return Err(late(answer.progress_us()));
                    }
                    timer.as_mut().reset(deadline);
                    continue;
                }
            };
            match frame {
                None => return answer.end(clock()),
                Some(Ok(frame)) => {
                    if let Some(bytes) = frame.data_ref() {
                        answer.read(bytes, clock())?;
                    }
                }
                Some(Err(error)) => return Err(Failure::Cut(chain(&error))),
            }
            // A timer for the first token that is longer than that for others must not delay these.
            if let Some(us) = answer.progress_us() {
                let deadline = at(us, limits.token).min(whole);
                if deadline < timer.deadline() {
                    timer.as_mut().reset(deadline);
                }
            }
        }
    }

    fn request(&self, method: Method, uri: &Uri, body: Bytes) -> Request<Full<Bytes>> {
        let is_post = method == Method::POST;
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = uri.clone();
        let headers = request.headers_mut();
        headers.insert(
            USER_AGENT,
            HeaderValue::from_static(concat!("kvcache-load/", env!("CARGO_PKG_VERSION"))),
        );
        if is_post {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            headers.insert(ACCEPT, HeaderValue::from_static("text/event-stream"));
        }
        if let Some(authorization) = &self.authorization {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        request
    }

    /// Sends a request and waits for the head of the response.
    async fn respond(
        &self,
        request: Request<Full<Bytes>>,
        deadline: Instant,
        late: Failure,
    ) -> Result<Response<Incoming>, Failure> {
        match timeout_at(deadline, self.http.request(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(refused(&error)),
            Err(_) => Err(late),
        }
    }
}

/// The body of an answer that is a stream of events.
async fn accepted(response: Response<Incoming>) -> Result<Incoming, Failure> {
    let status = response.status();
    let deadline = Instant::now() + REASON_TIMEOUT;
    if status != StatusCode::OK {
        let retry_after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
        // Seconds; the other form, a date, is not used by these servers.
        let retry_after = retry_after.and_then(|text| text.trim().parse().ok()).map(Duration::from_secs);
        let body = beginning(response.into_body(), REASON_BYTES_MAX, deadline).await;
        return Err(Failure::Status { code: status.as_u16(), message: said(&body), retry_after });
    }
    let content_type = response.headers().get(CONTENT_TYPE);
    let is_stream = |value: &HeaderValue| {
        let essence = value.as_bytes().split(|byte| *byte == b';').next().unwrap_or_default();
        essence.trim_ascii().eq_ignore_ascii_case(b"text/event-stream")
    };
    if content_type.is_some_and(is_stream) {
        return Ok(response.into_body());
    }
    let content_type = match content_type {
        Some(value) => format!("of type `{}`", excerpt(value.as_bytes())),
        None => "without a type".to_owned(),
    };
    let body = beginning(response.into_body(), REASON_BYTES_MAX, deadline).await;
    Err(Failure::Garbage(format!(
        "an answer {content_type} instead of text/event-stream: `{}`",
        excerpt(&body)
    )))
}

/// The first bytes of a body, as many as come in time.
async fn beginning(mut body: Incoming, bytes_max: usize, deadline: Instant) -> Bytes {
    let mut bytes = Vec::new();
    while bytes.len() < bytes_max {
        let Ok(Some(Ok(frame))) = timeout_at(deadline, body.frame()).await else { break };
        if let Some(data) = frame.data_ref() {
            bytes.extend_from_slice(&data[..data.len().min(bytes_max - bytes.len())]);
        }
    }
    bytes.into()
}

/// What a server says in the body of a refusal.
pub(crate) fn said(body: &[u8]) -> String {
    match serde_json::from_slice(body) {
        Ok(value) => message(&value),
        Err(_) if body.trim_ascii().is_empty() => "without a reason".to_owned(),
        Err(_) => excerpt(body),
    }
}

fn refused(error: &HttpError) -> Failure {
    let text = chain(error);
    if !error.is_connect() {
        return Failure::Reset(text);
    }
    let mut source = error.source();
    while let Some(inner) = source {
        if inner.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::TimedOut) {
            return Failure::ConnectTimeout(text);
        }
        source = inner.source();
    }
    Failure::Connect(text)
}

/// An error with what caused it, each said once.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        source = inner.source();
    }
    text
}

/// A server under load may be slow to say anything.
const MODELS_TIMEOUT: Duration = Duration::from_secs(30);
const REASON_TIMEOUT: Duration = Duration::from_secs(5);
const REASON_BYTES_MAX: usize = 64 << 10;
const MODELS_BYTES_MAX: usize = 4 << 20;
