//! One connection: from the call to the hello to requests and answers.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use kvcache_core::remote::RemoteFailure;
use kvcache_core::ring_client::{ItemEnd, RequestId};
use kvcache_wire::Status;
use kvcache_wire::extension::{Features, Hello, Welcome};
use kvcache_wire::stock::{STATUS_BYTES, status_from_reply};
use mio::event::Source;
use mio::net::TcpStream;

use super::extension::ExtensionSession;
use super::fault::{Fault, FaultReason};
use super::in_buffer::InBuffer;
use super::outgoing::Outgoing;
use super::stock::StockSession;
use super::stream::Stream;
use super::tls::{Tls, TlsStream};
use super::work::Batch;
use crate::local::{LocalSession, LocalSocket, PoolMapping};

/// Bytes that one call reads or writes before others have their turn.
const TURN_BYTES: usize = 1 << 20;

/// A batch is begun when no more than this waits for the socket: later, its checksums would be made too early.
const BACKLOG_BYTES: usize = 64 << 10;

/// Room in a server's pool is kept for values to come for so long.
const SPARE_TIME: Duration = Duration::from_millis(100);

/// What connections to one server have in common.
pub(super) struct Greeting {
    pub(super) token: Vec<u8>,
    pub(super) tls: Option<Arc<Tls>>,
    pub(super) connect_timeout: Duration,
}

pub(super) struct Connection {
    stream: Stream,
    state: State,
    outgoing: Outgoing,
    buffer: InBuffer,
    readable: bool,
    writable: bool,
    /// Whether the last write left something because the socket was full.
    full: bool,
    /// Whether anything came over it since it was open.
    answered: bool,
    began: Duration,
    heard: Duration,
    /// Of a Unix socket: the server that must answer. Of others: the one that did, if it is ours.
    server_id: Option<u64>,
}

enum State {
    /// The network has not answered yet.
    Connecting,
    /// The hello is under way.
    Greeting,
    Extension(Box<ExtensionSession>),
    Stock(Box<StockSession>),
    Local(Box<LocalSession>),
}

/// What a turn did.
pub(super) struct Turn {
    /// Whether the server gave a sign of life.
    pub(super) heard: bool,
    /// Whether there may be more to do without waiting.
    pub(super) again: bool,
}

impl Connection {
    /// Calls `address`.
    pub(super) fn open(
        address: SocketAddr,
        host: &str,
        greeting: &Greeting,
        now: Duration,
    ) -> Result<Self, Fault> {
        let unreachable = |error: std::io::Error| Fault::new(FaultReason::Unreachable, error.to_string());
        let socket = TcpStream::connect(address).map_err(unreachable)?;
        let stream = match &greeting.tls {
            None => Stream::Plain(socket),
            Some(tls) => {
                let fault = |error: rustls::Error| Fault::new(FaultReason::Tls, error.to_string());
                let name = tls.server_name(host)?;
                Stream::Tls(Box::new(TlsStream::new(socket, tls.config(), name).map_err(fault)?))
            }
        };
        Ok(Self::new(stream, State::Connecting, now))
    }

    /// Calls the Unix socket beside TCP `port` and greets it, if there is one. It must belong to the server of this id.
    pub(super) fn open_local(
        port: u16,
        server_id: u64,
        greeting: &Greeting,
        now: Duration,
    ) -> std::io::Result<Self> {
        let stream = Stream::Local(LocalSocket::connect(port)?);
        let mut hello = Hello::new(&greeting.token);
        hello.features = Features(hello.features.0 | Features::SHARED_MEMORY.0);
        let mut connection = Self::new(stream, State::Greeting, now);
        connection.outgoing.push_bytes(hello.encode().map_err(std::io::Error::other)?);
        connection.server_id = Some(server_id);
        Ok(connection)
    }

    fn new(stream: Stream, state: State, now: Duration) -> Self {
        Self {
            stream,
            state,
            outgoing: Outgoing::default(),
            buffer: InBuffer::default(),
            readable: false,
            writable: false,
            full: false,
            answered: false,
            began: now,
            heard: now,
            server_id: None,
        }
    }

    pub(super) fn source(&mut self) -> &mut dyn Source {
        self.stream.source()
    }

    /// The id of the server at the other end, once it has said it.
    pub(super) fn server_id(&self) -> Option<u64> {
        self.server_id
    }

    /// Whether it can be asked for something.
    pub(super) fn is_open(&self) -> bool {
        matches!(self.state, State::Extension(_) | State::Stock(_) | State::Local(_))
    }

    /// Whether anything came over it since it was open.
    pub(super) fn has_answered(&self) -> bool {
        self.answered
    }

    /// Whether the server speaks the extension; `None` while nobody knows.
    pub(super) fn speaks_extension(&self) -> Option<bool> {
        match self.state {
            State::Connecting | State::Greeting => None,
            State::Extension(_) | State::Local(_) => Some(true),
            State::Stock(_) => Some(false),
        }
    }

    /// How much it has to do already; `None` if it can take no more now.
    pub(super) fn load(&self) -> Option<u64> {
        let load = match &self.state {
            State::Extension(session) if session.has_room() => session.load(),
            State::Stock(session) if session.has_room() => 0,
            State::Local(session) if session.has_room() => session.load(),
            _ => return None,
        };
        (self.outgoing.left() <= BACKLOG_BYTES).then_some(load + self.outgoing.left() as u64)
    }

    /// Sends a part of `batch`; the rest stays in it.
    pub(super) fn begin(&mut self, batch: &mut Batch, now: Duration, ends: &mut Vec<ItemEnd>) {
        if !self.owes() {
            self.heard = now;
        }
        match &mut self.state {
            State::Extension(session) => session.begin(batch, &mut self.outgoing, ends),
            State::Stock(session) => session.begin(batch, &mut self.outgoing, ends),
            State::Local(session) => session.begin(batch, &mut self.outgoing, ends),
            State::Connecting | State::Greeting => {}
        }
    }

    /// Nobody waits for these any more: when this returns true their memory is out of use, otherwise when the connection is
    /// gone.
    pub(super) fn forget(&mut self, request: RequestId, item: Option<u32>) -> bool {
        match &mut self.state {
            State::Extension(session) => session.forget(request, item, &mut self.outgoing),
            State::Stock(session) => session.forget(request, item, &mut self.outgoing),
            State::Local(session) => {
                session.forget(request, item, &mut self.outgoing);
                true
            }
            State::Connecting | State::Greeting => true,
        }
    }

    /// The socket may have become ready.
    pub(super) fn wake(&mut self, readable: bool, writable: bool) {
        self.readable |= readable;
        self.writable |= writable;
    }

    /// Moves what can be moved. After a fault the connection must be dropped, and only then `ends` be reported.
    pub(super) fn turn(
        &mut self,
        greeting: &Greeting,
        sink: &mut [u8],
        now: Duration,
        ends: &mut Vec<ItemEnd>,
    ) -> Result<Turn, Fault> {
        if matches!(self.state, State::Connecting) && !self.connected(greeting)? {
            return Ok(Turn { heard: false, again: false });
        }
        let (was_open, was_full) = (self.is_open(), self.full);
        let written = if self.writable { self.write()? } else { 0 };
        let (mut read, mut more) = (0, false);
        if self.readable {
            (read, more) = self.read(sink, ends)?;
            self.readable = more;
        }
        // Answers to the handshake and to reads wait in the TLS session.
        if self.writable && read > 0 {
            self.flush()?;
        }
        let (copied, copies_more) = self.copy(ends);
        // What follows from the last copy need not wait for another turn; what follows from others leaves with what
        // the next turn has to say.
        if copied + read > 0 && !copies_more && self.writable && self.is_local() {
            self.write()?;
        }
        self.answered |= was_open && read > 0;
        // The kernel takes what we write whether or not anyone is at the other end, as long as it has room: only room in a
        // socket that was full is made by the server.
        let heard = read + copied > 0 || (was_full && written > 0);
        if heard {
            self.heard = now;
        }
        let again = more || copies_more || (self.writable && !self.outgoing.is_empty());
        Ok(Turn { heard, again })
    }

    fn is_local(&self) -> bool {
        matches!(self.state, State::Local(_))
    }

    /// Copies values from or to the pool of a server of this host: the bytes, and whether there is more.
    fn copy(&mut self, ends: &mut Vec<ItemEnd>) -> (usize, bool) {
        match &mut self.state {
            State::Local(session) if session.is_copying() => {
                let copied = session.copy(&mut self.outgoing, ends);
                (copied, session.is_copying())
            }
            _ => (0, false),
        }
    }

    fn write(&mut self) -> Result<usize, Fault> {
        self.flush()?;
        let written = self.outgoing.write(&mut self.stream, TURN_BYTES)?;
        // Less than a turn, and something left: the socket is full and will say when it is not.
        self.full = !self.outgoing.is_empty() && written < TURN_BYTES;
        if self.full {
            self.writable = false;
        }
        Ok(written)
    }

    fn flush(&mut self) -> Result<(), Fault> {
        match self.stream.flush() {
            Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => Err(error.into()),
            _ => Ok(()),
        }
    }

    fn read(&mut self, sink: &mut [u8], ends: &mut Vec<ItemEnd>) -> Result<(usize, bool), Fault> {
        let mut read = 0;
        if matches!(self.state, State::Greeting) {
            read = self.greeted()?;
            if matches!(self.state, State::Greeting) {
                return Ok((read, false));
            }
        }
        let (stream, buffer, outgoing) = (&mut self.stream, &mut self.buffer, &mut self.outgoing);
        let (more_read, more) = match &mut self.state {
            State::Extension(session) => session.receive(stream, buffer, outgoing, sink, TURN_BYTES, ends)?,
            State::Stock(session) => session.receive(stream, buffer, outgoing, sink, TURN_BYTES, ends)?,
            State::Local(session) => session.receive(stream, buffer, outgoing, TURN_BYTES, ends)?,
            State::Connecting | State::Greeting => (0, false),
        };
        Ok((read + more_read, more))
    }

    /// Whether the network has answered; sends the hello once it has.
    fn connected(&mut self, greeting: &Greeting) -> Result<bool, Fault> {
        let unreachable = |error: std::io::Error| Fault::new(FaultReason::Unreachable, error.to_string());
        if !self.writable && !self.readable {
            return Ok(false);
        }
        let Some(socket) = self.stream.tcp() else { return Ok(true) };
        if let Some(error) = socket.take_error().map_err(unreachable)? {
            return Err(unreachable(error));
        }
        match socket.peer_addr() {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotConnected => {
                self.writable = false;
                return Ok(false);
            }
            Err(error) => return Err(unreachable(error)),
        }
        // Requests are small and wait for nobody: without this the kernel would make them wait for more.
        socket.set_nodelay(true).map_err(unreachable)?;
        let hello = Hello::new(&greeting.token).encode();
        let hello = hello.map_err(|error| Fault::new(FaultReason::Unauthorized, error.to_string()))?;
        self.outgoing.push_bytes(hello);
        self.state = State::Greeting;
        Ok(true)
    }

    /// Reads the answer to the hello; the bytes read.
    fn greeted(&mut self) -> Result<usize, Fault> {
        let mut read = 0;
        loop {
            let wanted = match self.buffer.peek_array::<STATUS_BYTES>() {
                None => STATUS_BYTES,
                Some(status) => match status_from_reply(status) {
                    Status::OK => match self.welcomed()? {
                        true => return Ok(read),
                        false => STATUS_BYTES + 4 + Welcome::BYTES,
                    },
                    // A stock server does not know the operation; ours may have no version in common with us.
                    Status::BAD_REQUEST | Status::VERSION_UNSUPPORTED if self.stream.tcp().is_some() => {
                        self.buffer.consume(STATUS_BYTES);
                        self.state = State::Stock(Box::default());
                        return Ok(read);
                    }
                    Status::UNAUTHORIZED => {
                        let text = "the server asks for another token";
                        return Err(Fault::new(FaultReason::Unauthorized, text));
                    }
                    Status::UNAVAILABLE => {
                        let text = "the server takes no more connections, or is shutting down";
                        return Err(Fault::new(FaultReason::Unavailable, text));
                    }
                    status => {
                        let text = format!("the hello was answered with {status}: this is no cache server");
                        return Err(Fault::new(FaultReason::Malformed, text));
                    }
                },
            };
            match self.buffer.read(&mut self.stream, wanted)? {
                None => return Ok(read),
                Some(count) => read += count,
            }
        }
    }

    /// Takes the welcome if all of it is there.
    fn welcomed(&mut self) -> Result<bool, Fault> {
        let Some(answer) = self.buffer.peek(STATUS_BYTES + 4) else { return Ok(false) };
        if answer[STATUS_BYTES..] != (Welcome::BYTES as u32).to_le_bytes() {
            return Err(Fault::new(FaultReason::Malformed, "a welcome of another length"));
        }
        let Some(answer) = self.buffer.peek(STATUS_BYTES + 4 + Welcome::BYTES) else { return Ok(false) };
        let welcome = Welcome::decode(&answer[STATUS_BYTES + 4..])?;
        self.buffer.consume(STATUS_BYTES + 4 + Welcome::BYTES);
        let Stream::Local(socket) = &mut self.stream else {
            self.server_id = Some(welcome.server_id);
            self.state = State::Extension(Box::new(ExtensionSession::new(welcome.limits)));
            return Ok(true);
        };
        if self.server_id != Some(welcome.server_id) {
            return Err(Fault::new(FaultReason::Unavailable, "its Unix socket is another server's"));
        }
        let descriptors = socket.take_descriptors();
        let shares = welcome.features.contain(Features::SHARED_MEMORY);
        let Some(descriptors) = descriptors.filter(|_| shares) else {
            return Err(Fault::new(FaultReason::Unavailable, "the server does not share its memory"));
        };
        // Before it is open: where the pool cannot be mapped everything goes on over TCP, as if there were no Unix socket.
        let pool = PoolMapping::new(descriptors).map_err(|error| {
            Fault::new(FaultReason::Unavailable, format!("the server's pool cannot be mapped: {error}"))
        })?;
        self.state = State::Local(Box::new(LocalSession::new(welcome.limits, pool)));
        Ok(true)
    }

    /// What is wrong with it if nothing moves for too long.
    pub(super) fn check(
        &self,
        greeting: &Greeting,
        silence_max: Duration,
        now: Duration,
    ) -> Result<(), Fault> {
        let (since, limit, reason) = match self.state {
            State::Connecting | State::Greeting => {
                (self.began, greeting.connect_timeout, FaultReason::Timeout)
            }
            _ if self.owes() => (self.heard, silence_max, FaultReason::Stalled),
            _ => return Ok(()),
        };
        if now.saturating_sub(since) < limit {
            return Ok(());
        }
        Err(Fault::new(reason, format!("nothing came for {} ms", limit.as_millis())))
    }

    /// Whether it holds room for nobody in a server's pool.
    pub(super) fn holds_spare(&self) -> bool {
        matches!(&self.state, State::Local(session) if session.holds_spare())
    }

    /// Gives that back if nothing has moved for a while; whether it did.
    pub(super) fn rest(&mut self, now: Duration) -> bool {
        match &mut self.state {
            State::Local(session)
                if session.holds_spare() && now.saturating_sub(self.heard) >= SPARE_TIME =>
            {
                session.rest(&mut self.outgoing);
                true
            }
            _ => false,
        }
    }

    /// Whether something is due from the server.
    pub(super) fn owes(&self) -> bool {
        match &self.state {
            State::Connecting | State::Greeting => true,
            State::Extension(session) => session.owes(),
            State::Stock(session) => session.owes(),
            State::Local(session) => session.owes(),
        }
    }

    /// Closes it, and ends what it carries.
    pub(super) fn close(self, failure: RemoteFailure, ends: &mut Vec<ItemEnd>) {
        // First the memory, then the news.
        drop((self.stream, self.outgoing));
        match self.state {
            State::Extension(session) => session.fail(failure, ends),
            State::Stock(session) => session.fail(failure, ends),
            State::Local(session) => session.fail(failure, ends),
            State::Connecting | State::Greeting => {}
        }
    }
}
