//! The thread that serves connections: it sleeps until one of them has something.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::connection::Link;
use super::job::Pool;
use super::storage::Storage;
use crate::verbs::wait::{Wake, wait};

/// A thread with its connections.
pub(super) struct Driver<S: Storage> {
    shared: Arc<Shared<S>>,
    thread: Option<JoinHandle<()>>,
}

struct Shared<S: Storage> {
    inbox: Mutex<Inbox<S>>,
    wake: Wake,
    storage: Arc<S>,
    pool: Arc<Pool>,
}

impl<S: Storage> Shared<S> {
    fn inbox(&self) -> MutexGuard<'_, Inbox<S>> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Inbox<S: Storage> {
    new: Vec<(u64, Link<S>, Arc<AtomicBool>)>,
    /// Connections that nobody wants any more.
    closed: Vec<u64>,
    stop: bool,
}

/// What lets a connection be closed from outside.
pub(super) trait Closer: Send + Sync {
    fn close(&self, id: u64);
}

impl<S: Storage> Closer for Shared<S> {
    fn close(&self, id: u64) {
        self.inbox().closed.push(id);
        self.wake.wake();
    }
}

impl<S: Storage> Driver<S> {
    pub(super) fn start(storage: Arc<S>, pool: Arc<Pool>) -> io::Result<Self> {
        let inbox = Mutex::new(Inbox { new: Vec::new(), closed: Vec::new(), stop: false });
        let shared = Arc::new(Shared { inbox, wake: Wake::new()?, storage, pool });
        let thread = std::thread::Builder::new().name("kvcache-rdma-serve".to_owned()).spawn({
            let shared = Arc::clone(&shared);
            move || serve(&shared)
        })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Takes a connection over. `alive` becomes false when it is over.
    pub(super) fn add(&self, id: u64, link: Link<S>, alive: Arc<AtomicBool>) {
        self.shared.inbox().new.push((id, link, alive));
        self.shared.wake.wake();
    }

    pub(super) fn closer(&self) -> Arc<dyn Closer> {
        Arc::clone(&self.shared) as Arc<dyn Closer>
    }
}

impl<S: Storage> Drop for Driver<S> {
    fn drop(&mut self) {
        self.shared.inbox().stop = true;
        self.shared.wake.wake();
        if let Some(thread) = self.thread.take() {
            // A panic was reported by the thread itself.
            let _ = thread.join();
        }
    }
}

struct Served<S: Storage> {
    link: Link<S>,
    alive: Arc<AtomicBool>,
}

impl<S: Storage> Drop for Served<S> {
    fn drop(&mut self) {
        self.alive.store(false, Ordering::Release);
    }
}

fn serve<S: Storage>(shared: &Shared<S>) {
    let mut connections: HashMap<u64, Served<S>> = HashMap::new();
    // Those that have, or may have, something to do.
    let mut ready: Vec<u64> = Vec::new();
    loop {
        {
            let mut inbox = shared.inbox();
            if inbox.stop {
                return;
            }
            for (id, link, alive) in inbox.new.drain(..) {
                connections.insert(id, Served { link, alive });
                // It may have received something before it was watched.
                ready.push(id);
            }
            for id in inbox.closed.drain(..) {
                connections.remove(&id);
            }
        }
        let mut again = Vec::new();
        for id in ready.drain(..) {
            let Some(connection) = connections.get_mut(&id) else { continue };
            match connection.link.serve(&shared.storage, &shared.pool) {
                Ok(true) => again.push(id),
                Ok(false) => {}
                Err(_) => {
                    connections.remove(&id);
                }
            }
        }
        let ids: Vec<u64> = connections.keys().copied().collect();
        let mut fds = vec![shared.wake.as_fd()];
        fds.extend(ids.iter().filter_map(|id| Some(connections.get(id)?.link.pair.event_fd())));
        let timeout = if again.is_empty() { None } else { Some(Duration::ZERO) };
        let readable = wait(&fds, timeout);
        if readable[0] {
            shared.wake.reset();
        }
        ready = again;
        ready.extend(ids.iter().zip(&readable[1..]).filter(|(_, readable)| **readable).map(|(id, _)| *id));
        ready.sort_unstable();
        ready.dedup();
    }
}
