//! The handle of an I/O thread.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kvcache_core::BlockKey;
use kvcache_core::remote::{PresenceAnswer, RemoteEnd, RemoteSpace, RemoteTransfer};
use kvcache_core::ring_client::RingClientConfig;

use super::connection::Greeting;
use super::driver::{Driver, DriverConfig, WAKER};
use super::shared::{Command, RingStats, Shared};
use super::tls::{Tls, TlsError, TlsSettings};
use crate::members::Members;

pub(crate) struct IoThreadConfig {
    pub(crate) name: &'static str,
    pub(crate) client: RingClientConfig,
    pub(crate) token: Vec<u8>,
    pub(crate) tls: Option<TlsSettings>,
    pub(crate) connect_timeout: Duration,
    pub(crate) connections: usize,
    pub(crate) shared_memory: bool,
    pub(crate) members: Members,
}

/// Why a client cannot start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    System(#[from] std::io::Error),
}

/// A running thread. Dropping it ends the thread; all memory of transfers is out of use then.
pub(crate) struct IoThread {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl IoThread {
    pub(crate) fn start(config: IoThreadConfig) -> Result<Self, StartError> {
        let tls = config.tls.as_ref().map(Tls::open).transpose()?.map(Arc::new);
        let poll = mio::Poll::new()?;
        let shared = Arc::new(Shared::new(mio::Waker::new(poll.registry(), WAKER)?));
        let greeting = Greeting { token: config.token, tls, connect_timeout: config.connect_timeout };
        let driver = Driver::new(
            shared.clone(),
            poll,
            DriverConfig {
                client: config.client,
                greeting,
                connections: config.connections,
                shared_memory: config.shared_memory,
                members: config.members,
            },
        );
        let thread = std::thread::Builder::new().name(config.name.to_owned()).spawn(move || driver.run())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// # Safety
    /// As [`RemoteStore::submit`](kvcache_core::remote::RemoteStore::submit), or until this is dropped.
    pub(crate) unsafe fn submit(&self, batch: &[RemoteTransfer], patience: Duration) {
        self.shared.submit(batch, patience);
    }

    pub(crate) fn ask(
        &self,
        question: u64,
        spaces: Arc<[RemoteSpace]>,
        blocks: &[BlockKey],
        patience: Duration,
    ) {
        self.shared.ask(question, spaces, blocks, patience);
    }

    pub(crate) fn cancel(&self, tickets: &[u64]) {
        self.shared.push(Command::Cancel(tickets.to_vec()));
    }

    pub(crate) fn poll_ends(&self, ended: &mut Vec<RemoteEnd>) {
        self.shared.poll_ends(ended);
    }

    pub(crate) fn last_arrival(&self) -> Option<Instant> {
        self.shared.last_arrival()
    }

    pub(crate) fn poll_answers(&self, answers: &mut Vec<PresenceAnswer>) {
        self.shared.poll_answers(answers);
    }

    pub(crate) fn wait(&self, timeout: Duration) -> bool {
        self.shared.wait(timeout)
    }

    pub(crate) fn stats(&self) -> RingStats {
        self.shared.stats()
    }
}

impl Drop for IoThread {
    fn drop(&mut self) {
        self.shared.close();
        if let Some(thread) = self.thread.take() {
            // It looks at the inbox at least after each turn of a socket, and a turn never blocks.
            let _ = thread.join();
        }
    }
}
