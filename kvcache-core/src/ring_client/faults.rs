//! Time that is up, servers that are silent, connections that break.

use std::time::Duration;

use super::RingClient;
use super::action::{Action, ConnectionFault, Item, RequestId, RequestOp, ServerId};
use super::breaker::BreakerState;
use super::request::{Owner, Timer};
use crate::BlockKey;
use crate::remote::{RemoteFailure, RemoteKey, RemoteSpace};

impl RingClient {
    /// Does what is due at `now`.
    pub fn tick(&mut self, now: Duration) {
        while let Some(timer) = self.requests.take_due(now) {
            match timer {
                Timer::Request(id) => self.time_is_up(id, now),
                Timer::Silence(server) => self.check_silence(server, now),
                Timer::Probe(server) => self.probe(server, now),
            }
        }
        self.flush(now);
    }

    /// A connection could not be made, or broke. The requests that it carried end apart from this.
    pub fn connection_fault(&mut self, id: ServerId, fault: ConnectionFault, now: Duration) {
        let Some(server) = self.servers.get_mut(&id).filter(|server| server.breaker.admits()) else { return };
        let opens = match fault {
            ConnectionFault::Refused => true,
            ConnectionFault::Lost => server.breaker.failed(&self.config),
        };
        if opens {
            self.open_breaker(id, RemoteFailure::Unreachable, now);
        }
        self.flush(now);
    }

    fn time_is_up(&mut self, id: RequestId, now: Duration) {
        let Some(request) = self.requests.get_mut(id) else { return };
        let (server_id, op, sent) = (request.server, request.op, request.sent);
        self.abandon(id, RemoteFailure::TimedOut);
        if op == RequestOp::Probe {
            self.end_probe(server_id, false, now);
            return;
        }
        let Some(server) = self.servers.get_mut(&server_id) else { return };
        // Requests of one moment that were all too late are one failure, and a server that has answered others since this
        // one was sent is slow, not dead.
        let silent = server.silent_since <= sent;
        if silent && server.breaker.admits() && sent >= server.last_failure {
            server.last_failure = now;
            if server.breaker.failed(&self.config) {
                self.open_breaker(server_id, RemoteFailure::TimedOut, now);
            }
        }
    }

    fn check_silence(&mut self, id: ServerId, now: Duration) {
        let Some(server) = self.servers.get_mut(&id) else { return };
        server.watched = false;
        if server.owed == 0 {
            return;
        }
        let due = server.silent_since + self.config.silence_max;
        if due > now || !server.breaker.admits() {
            server.watched = true;
            let again = if due > now { due } else { now + self.config.silence_max };
            self.requests.set_timer(again, Timer::Silence(id));
        } else {
            self.open_breaker(id, RemoteFailure::TimedOut, now);
        }
    }

    fn open_breaker(&mut self, id: ServerId, why: RemoteFailure, now: Duration) {
        let random = self.next_random();
        let Some(server) = self.servers.get_mut(&id) else { return };
        server.stats.opened += 1;
        let probe_at = server.breaker.open(&self.config, random, now);
        self.requests.set_timer(probe_at, Timer::Probe(id));
        let in_flight: Vec<RequestId> = server.requests.iter().copied().collect();
        for request in in_flight {
            self.abandon(request, why);
        }
    }

    fn probe(&mut self, id: ServerId, now: Duration) {
        let Some(server) = self.servers.get_mut(&id) else { return };
        if !server.member || !server.breaker.begin_probe(now) {
            return;
        }
        server.stats.probes += 1;
        let key = RemoteKey { space: RemoteSpace([0; 16]), block: BlockKey([0; 16]) };
        let item = Item { key, address: 0, bytes: 0 };
        let deadline = now + self.config.silence_max;
        self.send(id, RequestOp::Probe, deadline, &[(item, Owner::Nobody)], now);
    }

    pub(super) fn end_probe(&mut self, id: ServerId, answered: bool, now: Duration) {
        let random = self.next_random();
        let Some(server) = self.servers.get_mut(&id) else { return };
        if server.breaker.state() != BreakerState::HalfOpen {
            return;
        }
        if answered {
            server.breaker.close();
        } else {
            let probe_at = server.breaker.open(&self.config, random, now);
            self.requests.set_timer(probe_at, Timer::Probe(id));
        }
    }

    /// Nobody waits for a request any more, whose items end when their memory is out of use. Names have none: their
    /// questions go on at once.
    fn abandon(&mut self, id: RequestId, why: RemoteFailure) {
        let Some(request) = self.requests.get_mut(id) else { return };
        if request.abandoned.is_some() {
            return;
        }
        request.abandoned = Some(why);
        let server_id = request.server;
        let mut unanswered = Vec::new();
        for (owner, _) in request.items.iter_mut().flatten() {
            if let Owner::Name { question, position } = *owner {
                unanswered.push((question, position));
                *owner = Owner::Nobody;
            }
        }
        for (question, position) in unanswered {
            self.questions.answer(question, position, false);
        }
        if let Some(server) = self.servers.get_mut(&server_id) {
            server.owed -= 1;
            server.stats.abandoned += 1;
        }
        self.actions.push(Action::Abandon { server: server_id, request: id, item: None });
    }
}
