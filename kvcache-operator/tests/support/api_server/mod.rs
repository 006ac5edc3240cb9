//! A Kubernetes API server in memory, behind `kube::Client`: enough of its rules that an operator which behaves here
//! behaves there, and faults on demand that no real server shows on demand.
//!
//! It knows objects as JSON: get, list, watch (bookmarks, 410), create, replace, merge patch, server-side apply with
//! field managers, the status subresource, conflicts by resource version, finalizers, garbage collection by owner
//! reference, label selectors, generations, and a few of the defaults that a real server adds. It runs no controllers.
//! Every request is logged with the client that sent it.

mod answer;
mod apply;
mod defaults;
mod faults;
mod fields;
mod request;
mod selector;
mod store;
mod watch;

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::{Request, Response};
use kube::client::Body;
use serde_json::Value;
use tokio::sync::watch as signal;

use answer::Answer;
pub use faults::{Fault, Faults};
pub use request::{Call, Logged, Verb};
pub use store::Key;
use store::Store;
#[allow(unused_imports, reason = "for those who serve it")]
pub use watch::AnswerBody;

/// The server. Clones are the same server.
#[derive(Clone)]
pub struct ApiServer {
    inner: Arc<Inner>,
}

struct Inner {
    store: Mutex<Store>,
    faults: Mutex<Faults>,
    log: Mutex<Vec<Logged>>,
    latency: Mutex<Duration>,
    /// The revision, for watches to wake up by.
    revision: signal::Sender<u64>,
    /// How often all watches were cut.
    cuts: signal::Sender<u64>,
    started: tokio::time::Instant,
}

impl ApiServer {
    /// An empty server. Its clock is tokio's, so that paused time is paused here too.
    pub fn new() -> Self {
        let inner = Inner {
            store: Mutex::default(),
            faults: Mutex::default(),
            log: Mutex::default(),
            latency: Mutex::default(),
            revision: signal::channel(0).0,
            cuts: signal::channel(0).0,
            started: tokio::time::Instant::now(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// A client; its name is on every request in the log.
    pub fn client(&self, name: &str) -> kube::Client {
        let (server, name) = (self.clone(), name.to_owned());
        let service = tower::service_fn(move |request: Request<Body>| {
            let (server, name) = (server.clone(), name.clone());
            async move { server.serve(&name, request).await }
        });
        kube::Client::new(service, "default")
    }

    /// Faults for requests from now on.
    pub fn inject(&self, faults: Faults) {
        *lock(&self.inner.faults) = faults;
    }

    /// No faults from now on.
    pub fn heal(&self) {
        self.inject(Faults::default());
    }

    /// How long every answer takes from now on.
    pub fn take(&self, latency: Duration) {
        *lock(&self.inner.latency) = latency;
    }

    /// All requests since the start or the last [`forget`](Self::forget).
    pub fn requests(&self) -> Vec<Logged> {
        lock(&self.inner.log).clone()
    }

    /// Those of them that may change something, but for Leases and Events.
    pub fn writes(&self) -> Vec<Logged> {
        let counted = |request: &Logged| request.verb.writes() && !request.is_bookkeeping();
        lock(&self.inner.log).iter().filter(|request| counted(request)).cloned().collect()
    }

    /// Empties the log.
    pub fn forget(&self) {
        lock(&self.inner.log).clear();
    }

    /// Creates an object as a user would, or replaces it.
    pub fn put(&self, object: Value) -> Value {
        self.change(|store, now| store.put(object, "test", now))
    }

    /// Changes an object's status as a controller or a kubelet would.
    pub fn put_status(&self, key: &Key, status: Value) -> Value {
        self.change(|store, now| {
            let mut object = store.get(key).unwrap_or_else(|| panic!("no {key} to give a status")).clone();
            object["status"] = status;
            store.replace(key, object, Some("status"), "test", now)
        })
    }

    /// Changes an object by a function, as a user with an editor would.
    pub fn edit(&self, key: &Key, edit: impl FnOnce(&mut Value)) -> Value {
        self.change(|store, now| {
            let mut object = store.get(key).unwrap_or_else(|| panic!("no {key} to edit")).clone();
            edit(&mut object);
            store.replace(key, object, None, "test", now)
        })
    }

    /// Deletes an object, as a user would. Returns whether it was there.
    pub fn delete(&self, key: &Key) -> bool {
        let deleted = lock(&self.inner.store).delete(key, &Value::Null, self.now()).is_ok();
        self.announce();
        deleted
    }

    /// An object as it is.
    pub fn get(&self, key: &Key) -> Option<Value> {
        lock(&self.inner.store).get(key).cloned()
    }

    /// All objects of a resource, such as `pods`, in the order of their names.
    pub fn all(&self, plural: &str) -> Vec<Value> {
        lock(&self.inner.store).all(plural).map(|(_, object)| object.clone()).collect()
    }

    /// Which managers own a field, by its path, as in `["f:spec", "f:replicas"]`.
    pub fn managers(&self, key: &Key, path: &[&str]) -> Vec<String> {
        lock(&self.inner.store).managers(key, path)
    }

    /// All objects.
    pub fn dump(&self) -> Vec<Value> {
        lock(&self.inner.store).dump()
    }

    /// Objects of another server, as they were there. For a server that is still empty.
    pub fn restore(&self, objects: Vec<Value>) {
        lock(&self.inner.store).restore(objects);
        self.announce();
    }

    /// The number of changes so far.
    pub fn revision(&self) -> u64 {
        lock(&self.inner.store).revision()
    }

    /// Forgets the history: a watch that resumes from before now is told 410.
    pub fn compact(&self) {
        lock(&self.inner.store).compact();
    }

    /// Ends all watches, as a restarting server does.
    pub fn cut_watches(&self) {
        self.inner.cuts.send_modify(|cuts| *cuts += 1);
    }

    fn change(&self, change: impl FnOnce(&mut Store, jiff::Timestamp) -> Result<Value, Answer>) -> Value {
        let now = self.now();
        let changed = change(&mut lock(&self.inner.store), now);
        self.announce();
        changed.unwrap_or_else(|answer| panic!("the test's own write is refused: {answer:?}"))
    }

    /// Wakes the watches up.
    fn announce(&self) {
        let revision = lock(&self.inner.store).revision();
        self.inner.revision.send_if_modified(|seen| std::mem::replace(seen, revision) != revision);
    }

    /// A fixed start and tokio's clock.
    pub fn now(&self) -> jiff::Timestamp {
        START + jiff::SignedDuration::try_from(self.inner.started.elapsed()).expect("short enough")
    }

    pub async fn serve(
        &self,
        client: &str,
        request: Request<Body>,
    ) -> Result<Response<watch::AnswerBody>, Hung> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.map_err(|_| Hung)?.to_bytes();
        let latency = *lock(&self.inner.latency);
        if !latency.is_zero() {
            tokio::time::sleep(latency).await;
        }
        let request = match Call::parse(client, &parts, &body) {
            Ok(request) => request,
            Err(answer) => return Ok(watch::whole(&answer)),
        };
        let fault = lock(&self.inner.faults).next(&request);
        let at = self.now();
        lock(&self.inner.log).push(request.logged(at, fault));
        match fault {
            Some(fault) if !fault.after() => return self.suffer(fault).await,
            _ => {}
        }
        if request.verb == Verb::Watch {
            return Ok(watch::start(self, &request, fault));
        }
        let answer = request.execute(&mut lock(&self.inner.store), at);
        self.announce();
        match fault {
            Some(fault) => self.suffer(fault).await,
            None => Ok(watch::whole(&answer)),
        }
    }

    async fn suffer(&self, fault: Fault) -> Result<Response<watch::AnswerBody>, Hung> {
        match fault.answer() {
            Some(answer) => Ok(watch::whole(&answer)),
            None => {
                // Longer than any client waits.
                tokio::time::sleep(Duration::from_secs(3600)).await;
                Err(Hung)
            }
        }
    }
}

/// The error of a connection that never answered.
#[derive(Debug, thiserror::Error)]
#[error("the server did not answer")]
pub struct Hung;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no test panics while it holds the lock")
}

/// When the server's clock begins: 2026-01-01T00:00:00Z.
const START: jiff::Timestamp = jiff::Timestamp::constant(1_767_225_600, 0);
