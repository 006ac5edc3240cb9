//! Between users' threads and the thread that does the I/O.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kvcache_core::BlockKey;
use kvcache_core::remote::{
    PresenceAnswer, RemoteEnd, RemoteFailure, RemoteOutcome, RemoteSpace, RemoteTransfer,
};
use kvcache_core::ring_client::{RingClientStats, ServerId};
use parking_lot::{Condvar, Mutex};

use super::fault::Fault;
use super::server::ConnectionStats;
use crate::rdma::ReadyLane;

/// Transfers that the I/O thread has not seen yet, at most.
const INBOX_TRANSFERS_MAX: usize = 65_536;

/// Commands that it has not seen yet, at most; more questions are answered with nothing.
const INBOX_COMMANDS_MAX: usize = 65_536;

/// How long a snapshot of counters may take; then an older one will do.
const STATS_TIMEOUT: Duration = Duration::from_millis(100);

pub(super) enum Command {
    Submit {
        batch: Vec<RemoteTransfer>,
        deadline: Duration,
    },
    Ask {
        question: u64,
        spaces: Arc<[RemoteSpace]>,
        blocks: Vec<BlockKey>,
        deadline: Duration,
    },
    Cancel(Vec<u64>),
    LaneReady {
        server: ServerId,
        place: usize,
        ready: Box<Result<ReadyLane, Fault>>,
    },
    Resolved {
        server: ServerId,
        found: Result<Vec<SocketAddr>, String>,
    },
    Stats,
    #[cfg(test)]
    Panic,
}

/// Counters of a client.
#[derive(Clone, Debug, Default)]
pub struct RingStats {
    /// What became of transfers and questions.
    pub client: RingClientStats,
    /// The connections of each member, by the number that `client` has it under, and its address.
    pub connections: HashMap<ServerId, (String, ConnectionStats)>,
    /// Why the RDMA device could not register memory the last time, if it could not.
    pub rdma_problem: Option<String>,
    /// Changes of the member list that were taken over.
    pub member_changes: u64,
    /// Whether the I/O thread has ended by an error of its own: everything fails from then on.
    pub died: bool,
}

#[derive(Default)]
pub(super) struct Inbox {
    pub(super) commands: Vec<Command>,
    transfers: usize,
    closing: bool,
}

#[derive(Default)]
struct Outbox {
    ends: Vec<RemoteEnd>,
    answers: Vec<PresenceAnswer>,
    stats: (u64, RingStats),
    last_arrival: Option<Instant>,
}

pub(super) struct Shared {
    start: Instant,
    inbox: Mutex<Inbox>,
    /// Whether the I/O thread waits for events, or is about to: then it must be woken. Set before its last look at the
    /// inbox, and cleared after a push, both sequentially consistent: one of the two sees the other.
    asleep: AtomicBool,
    waker: mio::Waker,
    outbox: Mutex<Outbox>,
    arrived: Condvar,
}

impl Shared {
    pub(super) fn new(waker: mio::Waker) -> Self {
        Self {
            start: Instant::now(),
            inbox: Mutex::default(),
            asleep: AtomicBool::new(false),
            waker,
            outbox: Mutex::default(),
            arrived: Condvar::new(),
        }
    }

    /// The clock of everything here.
    pub(super) fn now(&self) -> Duration {
        self.start.elapsed()
    }

    pub(super) fn submit(&self, batch: &[RemoteTransfer], patience: Duration) {
        if batch.is_empty() {
            return;
        }
        let deadline = self.now().saturating_add(patience);
        let taken = {
            let mut inbox = self.inbox.lock();
            let room = INBOX_TRANSFERS_MAX.saturating_sub(inbox.transfers);
            let taken = if inbox.closing { 0 } else { batch.len().min(room) };
            inbox.transfers += taken;
            if taken > 0 {
                inbox.commands.push(Command::Submit { batch: batch[..taken].to_vec(), deadline });
            }
            taken
        };
        if taken < batch.len() {
            let outcome = RemoteOutcome::Failed(RemoteFailure::Overloaded);
            let ends = batch[taken..].iter().map(|wanted| RemoteEnd { ticket: wanted.ticket, outcome });
            self.outbox.lock().ends.extend(ends);
            self.arrived.notify_all();
        }
        self.wake();
    }

    pub(super) fn ask(
        &self,
        question: u64,
        spaces: Arc<[RemoteSpace]>,
        blocks: &[BlockKey],
        patience: Duration,
    ) {
        let deadline = self.now().saturating_add(patience);
        let mut inbox = self.inbox.lock();
        if inbox.commands.len() < INBOX_COMMANDS_MAX && !inbox.closing {
            inbox.commands.push(Command::Ask { question, spaces, blocks: blocks.to_vec(), deadline });
            drop(inbox);
            self.wake();
        } else {
            drop(inbox);
            let present = vec![false; blocks.len()];
            self.outbox.lock().answers.push(PresenceAnswer { question, present });
            self.arrived.notify_all();
        }
    }

    pub(super) fn push(&self, command: Command) {
        {
            let mut inbox = self.inbox.lock();
            if inbox.closing {
                // Nobody will look.
                return;
            }
            inbox.commands.push(command);
        }
        self.wake();
    }

    fn wake(&self) {
        if self.asleep.swap(false, Ordering::SeqCst) {
            // It cannot fail while the poll lives, and then the thread is gone.
            let _ = self.waker.wake();
        }
    }

    pub(super) fn close(&self) {
        self.inbox.lock().closing = true;
        self.asleep.store(true, Ordering::SeqCst);
        self.wake();
    }

    /// For the I/O thread, after a panic: what was submitted fails, and what will be does at once.
    pub(super) fn die(&self, unseen: impl Iterator<Item = Command>) {
        let unseen: Vec<Command> = {
            let mut inbox = self.inbox.lock();
            inbox.closing = true;
            unseen.chain(std::mem::take(&mut inbox.commands)).collect()
        };
        let mut outbox = self.outbox.lock();
        outbox.stats.0 += 1;
        outbox.stats.1.died = true;
        for command in unseen {
            match command {
                Command::Submit { batch, .. } => {
                    let outcome = RemoteOutcome::Failed(RemoteFailure::Unreachable);
                    let ends = batch.iter().map(|wanted| RemoteEnd { ticket: wanted.ticket, outcome });
                    outbox.ends.extend(ends);
                }
                Command::Ask { question, blocks, .. } => {
                    outbox.answers.push(PresenceAnswer { question, present: vec![false; blocks.len()] });
                }
                _ => {}
            }
        }
        drop(outbox);
        self.arrived.notify_all();
    }

    /// For the I/O thread: what came; `None` when it is to end.
    pub(super) fn take(&self) -> Option<Vec<Command>> {
        let mut inbox = self.inbox.lock();
        inbox.transfers = 0;
        (!inbox.closing).then(|| std::mem::take(&mut inbox.commands))
    }

    /// For the I/O thread: whether it may wait for events.
    pub(super) fn fall_asleep(&self) -> bool {
        self.asleep.store(true, Ordering::SeqCst);
        let inbox = self.inbox.lock();
        inbox.commands.is_empty() && !inbox.closing
    }

    pub(super) fn awake(&self) {
        self.asleep.store(false, Ordering::SeqCst);
    }

    /// For the I/O thread.
    pub(super) fn deliver(&self, ends: &mut Vec<RemoteEnd>, answers: &mut Vec<PresenceAnswer>) {
        if ends.is_empty() && answers.is_empty() {
            return;
        }
        let mut outbox = self.outbox.lock();
        if !ends.is_empty() {
            outbox.last_arrival = Some(Instant::now());
        }
        outbox.ends.append(ends);
        outbox.answers.append(answers);
        drop(outbox);
        self.arrived.notify_all();
    }

    /// For the I/O thread.
    pub(super) fn deliver_stats(&self, stats: RingStats) {
        let mut outbox = self.outbox.lock();
        outbox.stats = (outbox.stats.0 + 1, stats);
        drop(outbox);
        self.arrived.notify_all();
    }

    pub(super) fn poll_ends(&self, ended: &mut Vec<RemoteEnd>) {
        ended.append(&mut self.outbox.lock().ends);
    }

    pub(super) fn last_arrival(&self) -> Option<Instant> {
        self.outbox.lock().last_arrival
    }

    pub(super) fn poll_answers(&self, answers: &mut Vec<PresenceAnswer>) {
        answers.append(&mut self.outbox.lock().answers);
    }

    /// Waits until something can be polled.
    pub(super) fn wait(&self, timeout: Duration) -> bool {
        let mut outbox = self.outbox.lock();
        let nothing = |outbox: &mut Outbox| outbox.ends.is_empty() && outbox.answers.is_empty();
        self.arrived.wait_while_for(&mut outbox, nothing, timeout);
        !nothing(&mut outbox)
    }

    pub(super) fn stats(&self) -> RingStats {
        let before = {
            let outbox = self.outbox.lock();
            if outbox.stats.1.died {
                return outbox.stats.1.clone();
            }
            outbox.stats.0
        };
        self.push(Command::Stats);
        let mut outbox = self.outbox.lock();
        let _ = self.arrived.wait_while_for(&mut outbox, |outbox| outbox.stats.0 == before, STATS_TIMEOUT);
        outbox.stats.1.clone()
    }
}
