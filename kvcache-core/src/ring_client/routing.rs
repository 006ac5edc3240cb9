//! From transfers and questions to requests.

use std::collections::BTreeMap;
use std::time::Duration;

use super::action::{Action, Item, ItemResult, RequestOp, ServerId};
use super::request::{Owner, Request, Timer};
use super::{RingClient, UNREACHABLE};
use crate::BlockKey;
use crate::remote::{RemoteFailure, RemoteKey, RemoteSpace};

/// Items that can travel together: same server, same operation, same deadline.
pub(super) type Groups = BTreeMap<(ServerId, RequestOp, Duration), Vec<(Item, Owner)>>;

impl RingClient {
    /// Takes a transfer on: to its next holder (get) or all of them, or to its end if there is nobody left to ask.
    pub(super) fn advance(&mut self, place: u32, now: Duration) {
        let Some(transfer) = self.transfers.get_mut(place) else { return };
        let wanted = transfer.wanted;
        let op = RequestOp::from(wanted.op);
        while transfer.goes_on(now) {
            let left = transfer.holders.left();
            let Some(id) = transfer.holders.next() else { break };
            let Some(server) = self.servers.get_mut(&id).filter(|server| server.admits()) else {
                transfer.note(UNREACHABLE);
                continue;
            };
            let (items_max, bytes_max) = (self.config.items_max, self.config.bytes_max);
            if !server.has_room(op, wanted.bytes, &self.config)
                || !self.load.has_room(op, wanted.bytes, items_max, bytes_max)
            {
                let result = ItemResult::Failed(RemoteFailure::Overloaded);
                server.count(op, result, wanted.bytes);
                transfer.note(result);
                continue;
            }
            // A holder that does not answer must leave time for the others.
            let share = if op == RequestOp::Get { left } else { 1 };
            let deadline = now + (transfer.deadline - now) / share;
            server.load.add(op, wanted.bytes);
            self.load.add(op, wanted.bytes);
            transfer.running += 1;
            let item = Item { key: wanted.key, address: wanted.address, bytes: wanted.bytes };
            self.groups.entry((id, op, deadline)).or_default().push((item, Owner::Transfer(place)));
            if op == RequestOp::Get {
                return;
            }
        }
        if transfer.running == 0 {
            transfer.note_the_unasked();
            self.end_transfer(place);
        }
    }

    /// Asks one holder for one block in all spaces.
    pub(super) fn ask_server(
        &mut self,
        server: ServerId,
        question: u64,
        block_index: usize,
        spaces: &[RemoteSpace],
        block: &BlockKey,
        deadline: Duration,
    ) {
        let Some(known) = self.servers.get_mut(&server).filter(|server| server.admits()) else { return };
        for (index, space) in spaces.iter().enumerate() {
            if !known.has_room(RequestOp::Exists, 0, &self.config) {
                known.count(RequestOp::Exists, ItemResult::Failed(RemoteFailure::Overloaded), 0);
                continue;
            }
            known.names += 1;
            self.questions.expect(question);
            let item = Item { key: RemoteKey { space: *space, block: *block }, address: 0, bytes: 0 };
            let owner = Owner::Name { question, position: (block_index * spaces.len() + index) as u32 };
            self.groups.entry((server, RequestOp::Exists, deadline)).or_default().push((item, owner));
        }
    }

    /// Sends what was grouped.
    pub(super) fn flush(&mut self, now: Duration) {
        while let Some(((server, op, deadline), mut entries)) = self.groups.pop_first() {
            while !entries.is_empty() {
                let rest = entries.split_off(self.batch(op, &entries));
                self.send(server, op, deadline, &entries, now);
                entries = rest;
            }
        }
    }

    /// How many of `entries`, which are not none, fit one request: at least one.
    fn batch(&self, op: RequestOp, entries: &[(Item, Owner)]) -> usize {
        if op == RequestOp::Exists {
            return entries.len().min(self.config.batch_names_max);
        }
        let mut bytes = 0_usize;
        let fit = entries.iter().take(self.config.batch_items_max).take_while(|(item, _)| {
            bytes = bytes.saturating_add(item.bytes);
            bytes <= self.config.batch_bytes_max
        });
        fit.count().max(1)
    }

    pub(super) fn send(
        &mut self,
        server_id: ServerId,
        op: RequestOp,
        deadline: Duration,
        entries: &[(Item, Owner)],
        now: Duration,
    ) {
        let Some(server) = self.servers.get_mut(&server_id) else { return };
        let request = self.requests.begin(Request {
            server: server_id,
            op,
            items: entries.iter().map(|(item, owner)| Some((*owner, item.bytes))).collect(),
            left: entries.len(),
            sent: now,
            deadline,
            abandoned: None,
            answered: false,
        });
        for (position, (_, owner)) in entries.iter().enumerate() {
            if let Owner::Transfer(place) = owner
                && let Some(transfer) = self.transfers.get_mut(*place)
            {
                transfer.sent_as(request, position as u32);
            }
        }
        server.requests.insert(request);
        server.stats.requests += 1;
        if server.owed == 0 {
            server.silent_since = now;
        }
        server.owed += 1;
        if !std::mem::replace(&mut server.watched, true) {
            self.requests.set_timer(now + self.config.silence_max, Timer::Silence(server_id));
        }
        let items = entries.iter().map(|(item, _)| *item).collect();
        self.actions.push(Action::Send { server: server_id, request, op, items, deadline });
    }
}
