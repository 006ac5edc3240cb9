//! How items and requests end.

use std::time::Duration;

use super::RingClient;
use super::action::{Action, ItemEnd, ItemResult, RequestId, RequestOp, ServerId};
use super::request::Owner;
use crate::remote::RemoteFailure;

impl RingClient {
    /// Items ended: answered, or abandoned and their memory out of use. Unknown ones are ignored and counted.
    pub fn ended(&mut self, ends: &[ItemEnd], now: Duration) {
        for end in ends {
            self.end_item(*end, now);
        }
        self.flush(now);
    }

    /// All items of a request that have not ended do so now, and their memory is out of use.
    pub fn request_failed(&mut self, request: RequestId, failure: RemoteFailure, now: Duration) {
        self.request_failed_but(request, failure, &[], now);
    }

    /// As [`request_failed`](Self::request_failed), but for the items at these positions: their memory is in use, and they
    /// end when it is not any more.
    pub fn request_failed_but(
        &mut self,
        request: RequestId,
        failure: RemoteFailure,
        in_use: &[u32],
        now: Duration,
    ) {
        let items = match self.requests.get_mut(request) {
            Some(open) => open.items.len() as u32,
            None => {
                self.totals.stale_ends += 1;
                return;
            }
        };
        for item in 0..items {
            // Those that ended are skipped without being counted.
            let running =
                self.requests.get_mut(request).is_some_and(|open| open.items[item as usize].is_some());
            if running && !in_use.contains(&item) {
                self.end_item(ItemEnd { request, item, result: ItemResult::Failed(failure) }, now);
            }
        }
        self.flush(now);
    }

    /// Something arrived from the server, or it took something: it lives.
    pub fn heard(&mut self, server: ServerId, now: Duration) {
        if let Some(server) = self.servers.get_mut(&server) {
            server.silent_since = now;
        }
    }

    fn end_item(&mut self, end: ItemEnd, now: Duration) {
        let Some(request) = self.requests.get_mut(end.request) else {
            self.totals.stale_ends += 1;
            return;
        };
        let place = request.items.get_mut(end.item as usize);
        let Some((owner, bytes)) = place.and_then(Option::take) else {
            self.totals.stale_ends += 1;
            return;
        };
        request.left -= 1;
        let (server_id, op, complete) = (request.server, request.op, request.left == 0);
        let first = !std::mem::replace(&mut request.answered, true);
        let abandoned = request.abandoned;
        let sent = request.sent;
        let answer = match end.result {
            ItemResult::Done | ItemResult::Missing => true,
            ItemResult::Failed(reason) => matches!(reason, RemoteFailure::Corrupt | RemoteFailure::Refused),
        };
        let result = match (end.result, abandoned) {
            (ItemResult::Failed(_), Some(why)) if !answer => ItemResult::Failed(why),
            (result, _) => result,
        };
        if let Some(server) = self.servers.get_mut(&server_id) {
            match op {
                RequestOp::Exists => server.names -= 1,
                RequestOp::Probe => {}
                RequestOp::Get | RequestOp::Put | RequestOp::Delete => {
                    server.load.subtract(op, bytes);
                    self.load.subtract(op, bytes);
                }
            }
            if answer {
                server.silent_since = now;
                server.breaker.answered();
                if first && matches!(op, RequestOp::Exists | RequestOp::Probe | RequestOp::Delete) {
                    server.observe_round_trip(now.saturating_sub(sent));
                }
            }
            server.count(op, result, bytes);
        }
        match owner {
            Owner::Transfer(place) => {
                if let Some(transfer) = self.transfers.get_mut(place) {
                    transfer.item_ended(end.request, end.item);
                    let cancelled = transfer.cancelled && matches!(result, ItemResult::Failed(_));
                    let cancelled_result = ItemResult::Failed(RemoteFailure::Cancelled);
                    transfer.note(if cancelled { cancelled_result } else { result });
                }
                self.advance(place, now);
            }
            Owner::Name { question, position } => {
                self.questions.answer(question, position, result == ItemResult::Done);
            }
            Owner::Nobody => {}
        }
        if complete {
            self.end_request(end.request);
        }
        if op == RequestOp::Probe && abandoned.is_none() {
            self.end_probe(server_id, answer, now);
        }
    }

    fn end_request(&mut self, id: RequestId) {
        let Some(request) = self.requests.remove(id) else { return };
        if let Some(server) = self.servers.get_mut(&request.server) {
            server.requests.remove(&id);
            if request.abandoned.is_none() {
                server.owed -= 1;
            }
        }
        self.retire_if_idle(request.server);
    }

    /// Lets go of a server that is no member, once nothing is in flight there.
    pub(super) fn retire_if_idle(&mut self, id: ServerId) {
        if self.servers.get(&id).is_some_and(|server| !server.member && server.requests.is_empty()) {
            self.servers.remove(&id);
            self.actions.push(Action::Retire { server: id });
        }
    }
}
