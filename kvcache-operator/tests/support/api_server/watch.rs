//! Answers as bodies: whole ones, and watches, which go on.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::Response;
use hyper::body::{Bytes, Frame};
use serde_json::{Value, json};
use tokio::sync::watch as signal;
use tokio::time::Instant;

use super::answer::Answer;
use super::request::Call;
use super::store::Change;
use super::{ApiServer, Fault, lock};

/// The body of every answer.
pub type AnswerBody = UnsyncBoxBody<Bytes, Infallible>;

/// An answer that is complete.
pub fn whole(answer: &Answer) -> Response<AnswerBody> {
    let body = Full::new(Bytes::from(answer.body.to_string())).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = hyper::StatusCode::from_u16(answer.code).expect("one of ours");
    response
}

/// A watch from the revision that the call names. Ends at its timeout, when watches are cut, or by a fault.
pub fn start(server: &ApiServer, call: &Call, fault: Option<Fault>) -> Response<AnswerBody> {
    let asked = call.query.get("resourceVersion").map_or("", String::as_str);
    let seconds = call.query.get("timeoutSeconds").and_then(|text| text.parse().ok()).unwrap_or(300);
    let mut watch = Watch {
        server: server.clone(),
        call: call.clone(),
        position: asked.parse().unwrap_or(0),
        revision: server.inner.revision.subscribe(),
        cuts: server.inner.cuts.subscribe(),
        cut_at_start: 0,
        until: Instant::now() + Duration::from_secs(seconds),
        bookmarks: call.query.get("allowWatchBookmarks").is_some_and(|wanted| wanted == "true"),
        ready: VecDeque::new(),
        is_over: false,
    };
    watch.cut_at_start = *watch.cuts.borrow();
    match fault {
        Some(Fault::Cut) => watch.is_over = true,
        Some(_) => watch.fail(),
        // Without a revision, a watch begins with all that is there.
        None if matches!(asked, "" | "0") => watch.begin(),
        None => {}
    }
    let lines = stream::unfold(watch, |mut watch| async move {
        let line = watch.next().await?;
        Some((Ok::<_, Infallible>(Frame::data(Bytes::from(format!("{line}\n")))), watch))
    });
    Response::new(StreamBody::new(lines).boxed_unsync())
}

struct Watch {
    server: ApiServer,
    call: Call,
    position: u64,
    revision: signal::Receiver<u64>,
    cuts: signal::Receiver<u64>,
    cut_at_start: u64,
    until: Instant,
    bookmarks: bool,
    ready: VecDeque<Value>,
    is_over: bool,
}

impl Watch {
    async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(line) = self.ready.pop_front() {
                return Some(line);
            }
            if self.is_over || *self.cuts.borrow() != self.cut_at_start {
                return None;
            }
            self.revision.mark_unchanged();
            self.collect();
            if !self.ready.is_empty() {
                continue;
            }
            tokio::select! {
                changed = self.revision.changed() => changed.ok()?,
                changed = self.cuts.changed() => changed.ok()?,
                () = tokio::time::sleep_until(self.until) => return None,
            }
        }
    }

    /// Everything as it is, as additions.
    fn begin(&mut self) {
        let store = lock(&self.server.inner.store);
        self.position = store.revision();
        let all = store.all(self.call.resource.plural);
        let seen = all.filter(|(key, object)| self.call.selects(key, object));
        self.ready.extend(seen.map(|(_, object)| event("ADDED", self.call.view(object))));
    }

    fn collect(&mut self) {
        let store = lock(&self.server.inner.store);
        let Some(changes) = store.since(self.position) else {
            drop(store);
            self.fail();
            return;
        };
        let lines: Vec<Value> = changes.iter().filter_map(|change| line(&self.call, change)).collect();
        let moved = std::mem::replace(&mut self.position, store.revision()) != store.revision();
        self.ready.extend(lines);
        // A bookmark after changes that were not for this watch, so that it resumes from where it is.
        if self.bookmarks && moved && self.ready.is_empty() {
            let revision = self.position.to_string();
            let bookmark = json!({
                "kind": self.call.resource.kind, "apiVersion": self.call.resource.api_version(),
                "metadata": { "resourceVersion": revision, "creationTimestamp": null },
            });
            self.ready.push_back(event("BOOKMARK", bookmark));
        }
    }

    fn fail(&mut self) {
        self.ready.push_back(event("ERROR", Answer::gone().body));
        self.is_over = true;
    }
}

/// What a watch is told of a change.
fn line(call: &Call, change: &Change) -> Option<Value> {
    let seen =
        |object: &Option<Arc<Value>>| object.as_ref().is_some_and(|object| call.selects(&change.key, object));
    let view = |object: &Option<Arc<Value>>| object.as_ref().map(|object| call.view(object));
    match (seen(&change.before), seen(&change.after)) {
        (false, true) => Some(event("ADDED", view(&change.after)?)),
        (true, true) => Some(event("MODIFIED", view(&change.after)?)),
        // An object that no longer matches is gone, with the version of the change.
        (true, false) => Some(event("DELETED", view(&change.after).or_else(|| view(&change.before))?)),
        (false, false) => None,
    }
}

fn event(kind: &str, object: Value) -> Value {
    json!({ "type": kind, "object": object })
}
