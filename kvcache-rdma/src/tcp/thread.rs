//! The handle of an I/O thread.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kvcache_core::BlockKey;
use kvcache_core::remote::{PresenceAnswer, RemoteEnd, RemoteSpace, RemoteTransfer};
use kvcache_core::ring_client::RingClientConfig;
use kvcache_core::thread_placement;

use super::connection::Greeting;
use super::driver::{Driver, DriverConfig, WAKER};
use super::shared::{Command, RingStats, Shared};
use super::tls::{Tls, TlsError, TlsSettings};
use crate::members::Members;
use crate::rdma::{Device, LaneSettings};
use crate::ring::BackgroundThread;
use crate::verbs_client::VerbsClientConfig;

pub(crate) struct IoThreadConfig {
    pub(crate) name: &'static str,
    pub(crate) client: RingClientConfig,
    pub(crate) token: Vec<u8>,
    pub(crate) tls: Option<TlsSettings>,
    pub(crate) connect_timeout: Duration,
    pub(crate) connections: usize,
    pub(crate) shared_memory: bool,
    pub(crate) background: Option<BackgroundThread>,
    /// If values travel over RDMA.
    pub(crate) rdma: Option<Arc<Device>>,
    pub(crate) members: Members,
}

/// How long a server may take to make a queue pair, at least: a stock one pins 512 MiB for it.
const LANE_TIMEOUT: Duration = Duration::from_secs(10);

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
        let lanes = |device| {
            Arc::new(LaneSettings {
                device,
                verbs: VerbsClientConfig {
                    connect_timeout: config.connect_timeout.max(LANE_TIMEOUT),
                    ..VerbsClientConfig::default()
                },
                connect_timeout: config.connect_timeout,
                token: config.token.clone(),
            })
        };
        let rdma = config.rdma.map(lanes);
        let greeting = Greeting { token: config.token, tls, connect_timeout: config.connect_timeout };
        let mut driver = Driver::new(
            shared.clone(),
            poll,
            DriverConfig {
                client: config.client,
                greeting,
                connections: config.connections,
                shared_memory: config.shared_memory,
                rdma,
                members: config.members,
            },
        );
        let background = config.background;
        let thread = std::thread::Builder::new().name(config.name.to_owned()).spawn(move || {
            if let Some(BackgroundThread { cpus, nice }) = background {
                thread_placement::place(&cpus, nice);
            }
            // An error of ours must not leave anybody waiting: it costs this client, as if no server could be reached.
            if catch_unwind(AssertUnwindSafe(|| driver.run())).is_err() {
                driver.give_up();
            }
        })?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use kvcache_core::remote::{RemoteFailure, RemoteKey, RemoteOp, RemoteOutcome};

    use crate::members::{Member, MemberList, PlacementSource};

    fn put(ticket: u64, value: &mut [u8]) -> RemoteTransfer {
        let key = RemoteKey { space: RemoteSpace([1; 16]), block: BlockKey([2; 16]) };
        let address = value.as_mut_ptr() as usize;
        RemoteTransfer { ticket, op: RemoteOp::Put, key, address, bytes: value.len() }
    }

    /// A thread that panics ends what it has, what it had not looked at, and what comes later.
    #[test]
    fn a_panic_leaves_nobody_waiting() {
        // It takes connections and says nothing.
        let mute = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = mute.local_addr().unwrap().to_string().parse().unwrap();
        let list = MemberList::new(vec![Member::at(address)]).unwrap();
        let thread = IoThread::start(IoThreadConfig {
            name: "kvcache-test",
            client: RingClientConfig::default(),
            token: Vec::new(),
            tls: None,
            connect_timeout: Duration::from_secs(100),
            connections: 1,
            shared_memory: false,
            rdma: None,
            background: None,
            members: Members::fixed(list, PlacementSource::Computed).unwrap(),
        })
        .unwrap();
        let long = Duration::from_secs(1000);
        let mut values = [[0_u8; 100]; 3];
        let [first, second, third] = &mut values;
        // SAFETY: the values outlive the thread, and nobody uses them.
        unsafe { thread.submit(&[put(1, first)], long) };
        mute.accept().unwrap();
        thread.ask(9, [RemoteSpace([1; 16])].into(), &[BlockKey([2; 16])], long);
        thread.shared.push(Command::Panic);
        // SAFETY: as above.
        unsafe { thread.submit(&[put(2, second)], long) };
        let (mut ends, mut answers) = (Vec::new(), Vec::new());
        let collect = |ends: &mut Vec<RemoteEnd>, answers: &mut Vec<PresenceAnswer>, count: usize| {
            let give_up = Instant::now() + Duration::from_secs(30);
            while ends.len() + answers.len() < count && Instant::now() < give_up {
                thread.wait(Duration::from_secs(1));
                thread.poll_ends(ends);
                thread.poll_answers(answers);
            }
        };
        collect(&mut ends, &mut answers, 3);
        assert!(thread.stats().died);
        // SAFETY: as above.
        unsafe { thread.submit(&[put(3, third)], long) };
        thread.ask(10, [RemoteSpace([1; 16])].into(), &[BlockKey([2; 16])], long);
        collect(&mut ends, &mut answers, 5);
        ends.sort_unstable_by_key(|end| end.ticket);
        let tickets: Vec<u64> = ends.iter().map(|end| end.ticket).collect();
        assert_eq!(tickets, [1, 2, 3]);
        let unreachable = RemoteOutcome::Failed(RemoteFailure::Unreachable);
        assert!(ends[..2].iter().all(|end| end.outcome == unreachable), "{ends:?}");
        assert_eq!(answers.iter().map(|answer| answer.question).collect::<Vec<_>>(), [9, 10]);
    }
}
