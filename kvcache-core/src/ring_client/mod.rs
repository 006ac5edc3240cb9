//! The client's half of the ring: which server is asked for what, how long one waits for it, and what follows.
//!
//! A [`RingClient`] is a state machine without I/O, threads or clock. It is told what users want ([`submit`], [`ask`],
//! [`cancel`]), what servers answered ([`ended`], [`request_failed`], [`heard`], [`connection_fault`]), who is a member
//! ([`set_members`]) and what time it is ([`tick`]); it says what to do as [`Action`]s and what came of it as ends and
//! answers, which are drained. The same inputs give the same outputs, so that a run can be replayed from its seed.
//!
//! # What holds
//! - Each transfer ends once, and each question is answered once. A transfer whose time is up is *abandoned*, and ends when
//!   the I/O says that its memory is out of use: a late answer never writes into memory that is somebody else's by then. A
//!   question uses no memory and is answered at its deadline.
//! - Values of one call that go to one server travel in few requests; what is in flight is bounded per server and in all,
//!   and what does not fit ends at once as overloaded. Nothing is queued here.
//! - Puts and deletes go to all holders of a key, gets to one after the other until one has it.
//! - A server that owes answers and is silent for too long, refuses connections, or fails several times in a row is left
//!   alone: its circuit breaker opens, what was in flight there is abandoned, and until a probe is answered its keys are
//!   misses at once. So a dead server costs one timeout, however much is asked of it.
//! - After a change of members the new table counts for what is submitted from then on. What is in flight at a server
//!   that left is completed or times out there.
//!
//! [`submit`]: RingClient::submit
//! [`ask`]: RingClient::ask
//! [`cancel`]: RingClient::cancel
//! [`ended`]: RingClient::ended
//! [`request_failed`]: RingClient::request_failed
//! [`heard`]: RingClient::heard
//! [`connection_fault`]: RingClient::connection_fault
//! [`set_members`]: RingClient::set_members
//! [`tick`]: RingClient::tick

mod action;
mod breaker;
mod config;
mod ending;
mod faults;
mod members;
mod question;
#[cfg(test)]
mod random_tests;
mod request;
mod routing;
mod server;
mod stats;
#[cfg(test)]
mod tests;
mod transfer;

pub use action::{Action, ConnectionFault, Item, ItemEnd, ItemResult, RequestId, RequestOp, ServerId};
pub use breaker::BreakerState;
pub use config::{REPLICAS_MAX, RingClientConfig};
pub use members::Placement;
pub use stats::{OpCounts, RingClientStats, ServerStats};

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use crate::BlockKey;
use crate::remote::{
    PresenceAnswer, RemoteEnd, RemoteFailure, RemoteOp, RemoteOutcome, RemoteSpace, RemoteTransfer,
};
use question::Questions;
use request::Requests;
use routing::Groups;
use server::{Load, Server};
use transfer::{Holders, Transfer, Transfers};

/// Routes transfers and questions to the servers of a ring. Times are durations since any fixed moment.
pub struct RingClient {
    config: RingClientConfig,
    placement: Option<Box<dyn Placement>>,
    /// Members, and those that left while something was in flight. Ordered, so that runs can be replayed.
    servers: BTreeMap<ServerId, Server>,
    transfers: Transfers,
    /// Places of the transfers that have not ended.
    tickets: HashMap<u64, u32>,
    questions: Questions,
    requests: Requests,
    /// What is about to be sent; empty between calls.
    groups: Groups,
    /// Values in flight in all.
    load: Load,
    random: u64,
    actions: Vec<Action>,
    ends: Vec<RemoteEnd>,
    totals: RingClientStats,
}

impl RingClient {
    /// A client without members, to which everything is unreachable.
    pub fn new(config: RingClientConfig) -> Self {
        let config = RingClientConfig {
            replicas: config.replicas.clamp(1, REPLICAS_MAX),
            batch_items_max: config.batch_items_max.max(1),
            batch_names_max: config.batch_names_max.max(1),
            failures_max: config.failures_max.max(1),
            ..config
        };
        Self {
            random: config.seed,
            config,
            placement: None,
            servers: BTreeMap::new(),
            transfers: Transfers::default(),
            tickets: HashMap::new(),
            questions: Questions::default(),
            requests: Requests::default(),
            groups: Groups::default(),
            load: Load::default(),
            actions: Vec::new(),
            ends: Vec::new(),
            totals: RingClientStats::default(),
        }
    }

    /// Begins transfers, which end by `deadline`.
    pub fn submit(&mut self, batch: &[RemoteTransfer], deadline: Duration, now: Duration) {
        for wanted in batch {
            let mut transfer = Transfer::new(*wanted, deadline, self.holders(&wanted.key.block));
            if transfer.holders.left() == 0 {
                transfer.note(UNREACHABLE);
            }
            if wanted.bytes == 0 && wanted.op != RemoteOp::Delete {
                // No server keeps a value of no bytes.
                transfer.holders = Holders::none();
                transfer.note(ItemResult::Failed(RemoteFailure::Refused));
            }
            let place = self.transfers.insert(transfer);
            self.tickets.insert(wanted.ticket, place);
            self.advance(place, now);
        }
        self.flush(now);
    }

    /// Begins a question: for each of `blocks`, whether a holder has it in each of `spaces`. Answered by `deadline`.
    pub fn ask(
        &mut self,
        question: u64,
        spaces: &[RemoteSpace],
        blocks: &[BlockKey],
        deadline: Duration,
        now: Duration,
    ) {
        let question = self.questions.begin(question, blocks.len(), spaces.len());
        if now < deadline {
            for (index, block) in blocks.iter().enumerate() {
                for server in self.holders(block) {
                    self.ask_server(server, question, index, spaces, block, deadline);
                }
            }
        }
        self.questions.end_if_complete(question);
        self.flush(now);
    }

    /// Nobody waits for these transfers any more. They end as soon as their memory is out of use.
    pub fn cancel(&mut self, tickets: &[u64]) {
        for ticket in tickets {
            let Some(place) = self.tickets.get(ticket) else { continue };
            let Some(transfer) = self.transfers.get_mut(*place) else { continue };
            if std::mem::replace(&mut transfer.cancelled, true) {
                continue;
            }
            for (request, item) in transfer.at() {
                if let Some(server) = self.requests.server_unless_abandoned(request) {
                    self.actions.push(Action::Abandon { server, request, item: Some(item) });
                }
            }
        }
    }

    /// Ends whatever has not ended. For a caller that cannot go on, once all memory is out of use.
    pub fn give_up(&mut self) {
        let outcome = RemoteOutcome::Failed(RemoteFailure::Unreachable);
        let left = self.tickets.drain().map(|(ticket, _)| RemoteEnd { ticket, outcome });
        self.ends.extend(left);
        self.questions.end_all();
    }

    /// Takes over a table of members: what is submitted from now on goes by it.
    pub fn set_members(&mut self, placement: Box<dyn Placement>, members: &[ServerId]) {
        self.placement = Some(placement);
        for server in members {
            let known = self.servers.entry(*server).or_insert_with(|| Server::new(*server));
            if !known.member {
                // Nobody has probed it since it left: it is asked as a new one is.
                known.member = true;
                known.breaker.close();
            }
        }
        let members: std::collections::BTreeSet<_> = members.iter().collect();
        let left: Vec<ServerId> = self.servers.keys().filter(|id| !members.contains(id)).copied().collect();
        for id in left {
            if let Some(server) = self.servers.get_mut(&id) {
                server.member = false;
            }
            self.retire_if_idle(id);
        }
    }

    /// The time of the next [`tick`](Self::tick) that would do something.
    pub fn next_tick(&self) -> Option<Duration> {
        self.requests.next_timer()
    }

    /// Moves what is to be done to `actions`. Do it in this order.
    pub fn take_actions(&mut self, actions: &mut Vec<Action>) {
        actions.append(&mut self.actions);
    }

    /// Moves what ended to `ends`.
    pub fn take_ends(&mut self, ends: &mut Vec<RemoteEnd>) {
        ends.append(&mut self.ends);
    }

    /// Moves what was answered to `answers`.
    pub fn take_answers(&mut self, answers: &mut Vec<PresenceAnswer>) {
        for answer in &self.questions.answers {
            let present = answer.present.iter().filter(|present| **present).count();
            self.totals.questions += 1;
            self.totals.blocks_present += present as u64;
            self.totals.blocks_absent += (answer.present.len() - present) as u64;
        }
        answers.append(&mut self.questions.answers);
    }

    /// A snapshot. Members that left are in the totals only.
    pub fn stats(&self) -> RingClientStats {
        let members = self.servers.values().filter(|server| server.member);
        RingClientStats {
            transfers_open: self.transfers.len(),
            questions_open: self.questions.len(),
            servers: members.map(Server::snapshot).collect(),
            ..self.totals.clone()
        }
    }

    fn holders(&self, block: &BlockKey) -> Holders {
        let mut holders = Holders::none();
        if let Some(placement) = &self.placement {
            placement.holders(block, self.config.replicas, &mut |server| holders.push(server));
        }
        holders
    }

    fn next_random(&mut self) -> u64 {
        // SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014).
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.random ^ (self.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// Ends a transfer of which nothing is in flight.
    fn end_transfer(&mut self, place: u32) {
        let Some(transfer) = self.transfers.remove(place) else { return };
        let (wanted, outcome) = (transfer.wanted, transfer.outcome());
        if self.tickets.get(&wanted.ticket) == Some(&place) {
            self.tickets.remove(&wanted.ticket);
        }
        let counts = match wanted.op {
            RemoteOp::Get => &mut self.totals.get,
            RemoteOp::Put => &mut self.totals.put,
            RemoteOp::Delete => &mut self.totals.delete,
        };
        counts.count_outcome(outcome, wanted.bytes);
        self.ends.push(RemoteEnd { ticket: wanted.ticket, outcome });
    }
}

/// What is to be known of a transfer that was not begun: the reason, as its outcome.
const UNREACHABLE: ItemResult = ItemResult::Failed(RemoteFailure::Unreachable);
