//! InfiniStore's protocol: one request at a time.

use std::net::IpAddr;
use std::time::Instant;

use kvcache_rdma::verbs_server::{ConnectError, Connection};
use kvcache_wire::extension::{Features, Hello, VERSION, Welcome};
use kvcache_wire::stock::{
    GetReply, Header, Op, PayloadOp, STATUS_BYTES, TcpPayloadRequest, decode_keys, reply,
};
use kvcache_wire::{DecodeError, Status};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{End, Shared, Stopping, broken, stopped};
use crate::config::{STOCK_BODY_BYTES_MAX, STOCK_CAPS};
use crate::incoming::Incoming;
use crate::local::{self, Local};
use crate::metrics::{Fault, Operation};
use crate::outgoing::Outgoing;
use crate::store::Refused;

/// What comes after the stock protocol.
#[derive(Debug)]
pub(super) enum Next {
    /// The connection ends.
    End(End),
    /// The client has said hello.
    Frames {
        /// Whether it has the pool mapped.
        shares_memory: bool,
    },
}

/// Serves requests until the connection ends or changes to frames.
pub(super) async fn serve<R, W>(
    shared: &Shared,
    stopping: Stopping,
    incoming: &mut Incoming<R>,
    outgoing: &mut Outgoing<W>,
    peer: IpAddr,
    local: Option<&Local>,
) -> Next
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut session = Session {
        shared,
        stopping,
        incoming,
        outgoing,
        peer,
        local,
        queue_pair: None,
        has_said_hello: false,
    };
    loop {
        match session.request().await {
            Ok(None) => {}
            Ok(Some(features)) => {
                return Next::Frames { shares_memory: features.contain(Features::SHARED_MEMORY) };
            }
            Err(end) => {
                if let End::Fault(fault) = end {
                    shared.metrics.fault(fault);
                }
                return Next::End(end);
            }
        }
    }
}

struct Session<'s, R, W> {
    shared: &'s Shared,
    stopping: Stopping,
    incoming: &'s mut Incoming<R>,
    outgoing: &'s mut Outgoing<W>,
    peer: IpAddr,
    local: Option<&'s Local>,
    /// The client's RDMA connection, which ends with this one.
    queue_pair: Option<Connection>,
    /// Whether the client has given its token, and then stayed in this protocol.
    has_said_hello: bool,
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Session<'_, R, W> {
    /// One request and its answer; what was agreed on if frames follow.
    async fn request(&mut self) -> Result<Option<Features>, End> {
        let mut header = [0; Header::BYTES];
        let started = self.first_bytes(&mut header).await?;
        let request = self.shared.timeouts.request;
        let incoming = &mut *self.incoming;
        let head = async { incoming.read_exact(&mut header[started..]).await.map_err(broken) };
        tokio::time::timeout(request, head).await.map_err(|_| End::Fault(Fault::Timeout))??;

        let header = Header::decode(&header).map_err(|_| End::Fault(Fault::BadMagic))?;
        // Before the body: who is not known yet gets no memory for it.
        let is_let_in = self.has_said_hello || self.shared.allow_stock || header.op == Op::Hello;
        if self.shared.token.is_some() && !is_let_in {
            self.refuse(Status::UNAUTHORIZED);
            return Err(End::Fault(Fault::Unauthorized));
        }
        let body_bytes_max = if header.op == Op::Hello { HELLO_BODY_BYTES_MAX } else { STOCK_BODY_BYTES_MAX };
        if header.body_bytes > body_bytes_max {
            self.refuse(Status::BAD_REQUEST);
            return Err(End::Fault(Fault::TooLarge));
        }
        let body = self.body(header.body_bytes as usize).await?;
        let started = Instant::now();
        if header.op == Op::Hello {
            return self.hello(&body).await;
        }
        let operation = match header.op {
            Op::Exists => self.exists(&body),
            Op::Match => self.last_match(&body),
            Op::Delete => self.delete(&body),
            Op::Payload => self.payload(&body).await?,
            Op::Exchange => self.exchange(body).await,
            Op::Hello | Op::Unknown(_) => self.bad_request(),
        };
        // A put's time includes the arrival of the value.
        self.shared.metrics.request(operation, started.elapsed());
        self.answer().await?;
        Ok(None)
    }

    /// Waits for a request, for as long as peers may be silent, and returns how much of the header has come.
    async fn first_bytes(&mut self, header: &mut [u8]) -> Result<usize, End> {
        // A client over RDMA is silent here.
        let has_queue_pair = self.queue_pair.as_ref().is_some_and(Connection::is_alive);
        let idle = self.shared.timeouts.idle.filter(|_| !has_queue_pair);
        let silence = async {
            match idle {
                Some(idle) => tokio::time::sleep(idle).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            bytes = self.incoming.read_into(header) => bytes.map_err(|_| End::Closed),
            () = stopped(&mut self.stopping) => Err(End::Stopped),
            () = silence => Err(End::Closed),
        }
    }

    async fn body(&mut self, bytes: usize) -> Result<Vec<u8>, End> {
        let mut body = Vec::new();
        let timeouts = &self.shared.timeouts;
        let incoming = &mut *self.incoming;
        let receive = async {
            // Memory follows what has arrived: a length that lies costs its sender, not us.
            while body.len() < bytes {
                let filled = body.len();
                body.resize((2 * filled).max(BODY_STEP).min(bytes), 0);
                incoming.read_exact(&mut body[filled..]).await.map_err(broken)?;
            }
            Ok(body)
        };
        let allowed = timeouts.transfer(bytes as u64);
        tokio::time::timeout(allowed, receive).await.map_err(|_| End::Fault(Fault::Timeout))?
    }

    async fn answer(&mut self) -> Result<(), End> {
        let allowed = self.shared.timeouts.transfer(self.outgoing.queued_bytes());
        let outgoing = &mut *self.outgoing;
        let send = async { outgoing.write_all().await.map_err(broken) };
        tokio::time::timeout(allowed, send).await.map_err(|_| End::Fault(Fault::Timeout))?
    }

    fn refuse(&mut self, reason: Status) -> Operation {
        self.outgoing.push(status(reason), Vec::new());
        Operation::Other
    }

    fn bad_request(&mut self) -> Operation {
        self.shared.metrics.fault(Fault::Malformed);
        self.refuse(Status::BAD_REQUEST)
    }

    fn number(&mut self, number: usize) {
        self.outgoing.push(reply(Status::OK, i32::try_from(number).unwrap_or(i32::MAX)).to_vec(), Vec::new());
    }

    /// Connects the client's queue pair. Without RDMA, or a second time, it is what the stock server says when it cannot.
    async fn exchange(&mut self, body: Vec<u8>) -> Operation {
        let (Some(rdma), None) = (self.shared.rdma.clone(), &self.queue_pair) else {
            return self.refuse(Status::UNAVAILABLE);
        };
        // Memory is registered for it: too long for a thread that serves others.
        let peer = self.peer;
        match tokio::task::spawn_blocking(move || rdma.connect(&body, peer)).await {
            Ok(Ok(connection)) => {
                let answer = [status(Status::OK), connection.info().encode().to_vec()].concat();
                self.outgoing.push(answer, Vec::new());
                self.queue_pair = Some(connection);
                Operation::Other
            }
            Ok(Err(ConnectError::Info(_))) => self.bad_request(),
            Ok(Err(error)) => {
                log::warn!("a client cannot be connected over RDMA: {error}");
                self.refuse(Status::UNAVAILABLE)
            }
            Err(_) => self.refuse(Status::INTERNAL),
        }
    }

    fn exists(&mut self, key: &[u8]) -> Operation {
        if key.is_empty() {
            return self.bad_request();
        }
        self.number(usize::from(!self.shared.store.contains(key)));
        Operation::Exists
    }

    /// The stock server halves the list, which is right only if nothing in the middle was evicted. What its clients
    /// want is the longest prefix that is there.
    fn last_match(&mut self, body: &[u8]) -> Operation {
        let Ok(keys) = decode_keys(body, STOCK_CAPS) else { return self.bad_request() };
        let leading = keys.iter().take_while(|key| self.shared.store.contains(key)).count();
        self.outgoing.push(reply(Status::OK, leading as i32 - 1).to_vec(), Vec::new());
        Operation::Match
    }

    fn delete(&mut self, body: &[u8]) -> Operation {
        let Ok(keys) = decode_keys(body, STOCK_CAPS) else { return self.bad_request() };
        let deleted = keys.iter().filter(|key| self.shared.store.delete(key)).count();
        self.shared.metrics.deletes.add(deleted as u64);
        self.number(deleted);
        Operation::Delete
    }

    async fn payload(&mut self, body: &[u8]) -> Result<Operation, End> {
        match TcpPayloadRequest::decode(body, STOCK_CAPS) {
            Ok(TcpPayloadRequest { key, op: PayloadOp::Get }) => {
                self.get(key);
                Ok(Operation::Get)
            }
            Ok(TcpPayloadRequest { key, op: PayloadOp::Put { value_bytes } }) => {
                self.put(key, u64::from(value_bytes)).await?;
                Ok(Operation::Put)
            }
            Err(_) => {
                // Perhaps a put, whose value of unknown length follows: nobody can tell where the next request begins.
                self.outgoing.push(status(Status::BAD_REQUEST), Vec::new());
                Err(End::Fault(Fault::Malformed))
            }
        }
    }

    fn get(&mut self, key: &[u8]) {
        let metrics = &self.shared.metrics;
        let value = self.shared.store.get(key);
        let sendable = value.filter(|value| i32::try_from(value.len_bytes()).is_ok());
        let Some(value) = sendable else {
            metrics.misses.add(1);
            return self.outgoing.push(GetReply::Missing.encode().to_vec(), Vec::new());
        };
        let values = vec![value];
        self.shared.store.touch(&values);
        metrics.hits.add(1);
        let bytes = values[0].len_bytes();
        metrics.sent_bytes.add(bytes);
        self.outgoing.push(GetReply::Value { bytes: bytes as u32 }.encode().to_vec(), values);
    }

    async fn put(&mut self, key: &[u8], bytes: u64) -> Result<(), End> {
        let shared = self.shared;
        let limit = shared.limits.value_bytes_max;
        let reservation = if bytes > limit {
            Err(Refused::TooLarge { bytes, capacity_bytes: limit })
        } else {
            shared.store.reserve(key, bytes)
        };
        let incoming = &mut *self.incoming;
        let receive = async {
            match reservation {
                Ok(mut reservation) => {
                    incoming.read_exact(reservation.bytes_mut()).await.map_err(broken)?;
                    shared.store.publish(reservation, None);
                    Ok(Status::OK)
                }
                // The value comes all the same; without taking it the next request would not be found.
                Err(refused) => {
                    incoming.discard(bytes).await.map_err(broken)?;
                    Ok(if refused == Refused::Empty { Status::BAD_REQUEST } else { Status::OUT_OF_MEMORY })
                }
            }
        };
        let allowed = shared.timeouts.transfer(bytes);
        let outcome =
            tokio::time::timeout(allowed, receive).await.map_err(|_| End::Fault(Fault::Timeout))??;
        shared.metrics.received_bytes.add(bytes);
        if outcome.is_ok() {
            shared.metrics.puts.add(1)
        } else {
            shared.metrics.puts_refused.add(1)
        }
        self.outgoing.push(status(outcome), Vec::new());
        Ok(())
    }

    async fn hello(&mut self, body: &[u8]) -> Result<Option<Features>, End> {
        let shared = self.shared;
        let refusal = match Hello::decode(body) {
            Err(error) => {
                log::debug!("a hello that is none: {error}");
                Status::BAD_REQUEST
            }
            Ok(hello) if shared.token.as_ref().is_some_and(|token| !token.is(hello.token)) => {
                self.outgoing.push(status(Status::UNAUTHORIZED), Vec::new());
                return Err(End::Fault(Fault::Unauthorized));
            }
            Ok(hello) if !(hello.version_min..=hello.version_max).contains(&VERSION) => {
                Status::VERSION_UNSUPPORTED
            }
            Ok(hello) => {
                let stays = hello.features.contain(Features::QUEUE_PAIR) && shared.rdma.is_some();
                let features = match stays {
                    true => Features::QUEUE_PAIR,
                    false => self.share_memory(hello.features),
                };
                let (server_id, limits) = (shared.server_id, shared.limits);
                let welcome = Welcome { version: VERSION, features, server_id, limits };
                self.outgoing.push(welcome.encode(), Vec::new());
                self.answer().await?;
                self.has_said_hello |= stays;
                return Ok((!stays).then_some(features));
            }
        };
        shared.metrics.fault(Fault::Malformed);
        self.outgoing.push(status(refusal), Vec::new());
        self.answer().await?;
        Ok(None)
    }

    /// What both sides can do. If that is to share memory, descriptors of the pool leave with the welcome.
    fn share_memory(&self, wanted: Features) -> Features {
        let without = wanted.and(Features::VERIFY_ON_PUT);
        let Some(local) = self.local.filter(|_| wanted.contain(Features::SHARED_MEMORY)) else {
            return without;
        };
        match local::descriptors(self.shared) {
            Ok(descriptors) => {
                local.passing.push(descriptors);
                Features(without.0 | Features::SHARED_MEMORY.0)
            }
            Err(error) => {
                log::warn!("no shared memory for a client of this host: {error}");
                without
            }
        }
    }
}

fn status(status: Status) -> Vec<u8> {
    let bytes: [u8; STATUS_BYTES] = status.0.to_le_bytes();
    bytes.to_vec()
}

const HELLO_BODY_BYTES_MAX: u32 = (Hello::FIXED_BYTES + Hello::TOKEN_BYTES_MAX) as u32;

/// Bodies are received in steps that double from here on.
const BODY_STEP: usize = 64 << 10;

/// The reasons for which a request cannot be read, by kind.
pub(super) fn fault_of(error: &DecodeError) -> Fault {
    match error {
        DecodeError::BadMagic { .. } => Fault::BadMagic,
        DecodeError::AboveLimit { .. } => Fault::TooLarge,
        _ => Fault::Malformed,
    }
}
