//! The connection to a server of this host, beside those over TCP.

use std::collections::VecDeque;
use std::time::Duration;

use mio::{Interest, Registry, Token};

use super::connection::{Connection, Greeting};
use super::server::News;
use super::work::Batch;

/// After a connection failed the next one waits so long, and twice as long after each further one. Nobody waits for it:
/// TCP does the work meanwhile.
const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// At most one connection over a Unix socket, and what waits for it. There is none until a connection over TCP has told
/// which server it must lead to; while there is one, everything goes through it.
#[derive(Default)]
pub(super) struct LocalLane {
    /// The TCP port it belongs to; `None` where the server is on another host or memory is not to be shared.
    port: Option<u16>,
    /// Who answers over TCP.
    server_id: Option<u64>,
    pub(super) connection: Option<Connection>,
    pub(super) queue: VecDeque<Batch>,
    open_after: Duration,
    backoff: Duration,
}

impl LocalLane {
    /// A connection over TCP was welcomed, by this server.
    pub(super) fn welcomed(&mut self, port: Option<u16>, server_id: Option<u64>) {
        if (self.port, self.server_id) != (port, server_id) {
            (self.port, self.server_id) = (port, server_id);
            (self.open_after, self.backoff) = (Duration::ZERO, Duration::ZERO);
        }
    }

    /// Whether requests go through it.
    pub(super) fn is_open(&self) -> bool {
        self.connection.as_ref().is_some_and(Connection::is_open)
    }

    /// Calls the server's Unix socket, if it is time.
    pub(super) fn open(&mut self, registry: &Registry, token: Token, greeting: &Greeting, now: Duration) {
        let (Some(port), Some(server_id), None) = (self.port, self.server_id, &self.connection) else {
            return;
        };
        if now < self.open_after {
            return;
        }
        self.wait_longer(now);
        let Ok(mut connection) = Connection::open_local(port, server_id, greeting, now) else { return };
        let interest = Interest::READABLE | Interest::WRITABLE;
        if registry.register(connection.source(), token, interest).is_ok() {
            self.connection = Some(connection);
        }
    }

    /// It is open: the next one need not wait long.
    pub(super) fn opened(&mut self) {
        self.backoff = Duration::ZERO;
    }

    /// The next one must wait.
    pub(super) fn wait_longer(&mut self, now: Duration) {
        self.backoff = (self.backoff * 2).clamp(RETRY_MIN, RETRY_MAX);
        self.open_after = now + self.backoff;
    }

    /// Begins what can be begun; whether anything was.
    pub(super) fn begin(&mut self, now: Duration, news: &mut News) -> bool {
        let mut began = false;
        while let Some(batch) = self.queue.front_mut()
            && let Some(connection) =
                self.connection.as_mut().filter(|connection| connection.load().is_some())
        {
            connection.begin(batch, now, &mut news.ends);
            began = true;
            if batch.items.is_empty() {
                self.queue.pop_front();
            }
        }
        began
    }
}
