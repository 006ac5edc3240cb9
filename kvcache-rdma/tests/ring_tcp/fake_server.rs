//! A small cache server, one thread a connection, that can be told to misbehave.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use kvcache_wire::Status;
use kvcache_wire::extension::{
    Batch, ExistsReply, Features, FrameHeader, FrameOp, GetItem, GetOutcome, GetReplies, Hello, Limits,
    Named, PutItem, Statuses, Welcome, write_frame,
};
use kvcache_wire::stock::{self, Caps, Header, Op, PayloadOp, TcpPayloadRequest, decode_keys};

/// What a server does that a good one does not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Manner {
    /// Nothing.
    Good,
    /// Knows InfiniStore's protocol alone.
    Stock,
    /// Takes connections and never says a word.
    Mute,
    /// Answers the hello and nothing else.
    MuteAfterHello,
    /// Answers the hello and closes the connection.
    CloseAfterHello,
    /// Sends a web page.
    WebServer,
    /// Answers requests that nobody sent.
    Unasked,
    /// Says that a body is larger than it can be.
    LongBody,
    /// Sends values that are longer than what was asked for.
    LongValue,
    /// Damages one byte of each value.
    Damage,
    /// Keeps the checksum to itself.
    NoChecksum,
    /// Closes in the middle of the first value of each answer.
    CloseInValue,
    /// Refuses every put: 507.
    Full,
    /// Answers a put before the value has come.
    EarlyAnswer,
}

type Stored = HashMap<Vec<u8>, (Vec<u8>, Option<u64>)>;

pub(crate) struct FakeServer {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    manner: Mutex<Manner>,
    /// For good: knows InfiniStore's protocol alone.
    stock: bool,
    token: Vec<u8>,
    stored: Mutex<Stored>,
    sockets: Mutex<Vec<TcpStream>>,
    closed: AtomicBool,
    connections: AtomicUsize,
    frames: AtomicUsize,
    /// While true, requests are read and not answered.
    held: Mutex<bool>,
    released: Condvar,
}

impl FakeServer {
    pub(crate) fn start(manner: Manner) -> Self {
        Self::start_with(manner, b"", 0)
    }

    pub(crate) fn start_with(manner: Manner, token: &[u8], port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            manner: Mutex::new(manner),
            stock: manner == Manner::Stock,
            token: token.to_vec(),
            stored: Mutex::default(),
            sockets: Mutex::default(),
            closed: AtomicBool::new(false),
            connections: AtomicUsize::new(0),
            frames: AtomicUsize::new(0),
            held: Mutex::new(false),
            released: Condvar::new(),
        });
        let accepting = shared.clone();
        std::thread::spawn(move || {
            for socket in listener.incoming() {
                let Ok(socket) = socket else { return };
                if accepting.closed.load(Ordering::SeqCst) {
                    return;
                }
                accepting.connections.fetch_add(1, Ordering::SeqCst);
                accepting.sockets.lock().unwrap().push(socket.try_clone().unwrap());
                let serving = accepting.clone();
                std::thread::spawn(move || {
                    // Clients come and go as they like.
                    let _ = serving.serve(&socket);
                    let _ = socket.shutdown(Shutdown::Both);
                });
            }
        });
        Self { address, shared }
    }

    pub(crate) fn set_manner(&self, manner: Manner) {
        *self.shared.manner.lock().unwrap() = manner;
    }

    pub(crate) fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// Requests in frames that have come.
    pub(crate) fn frames(&self) -> usize {
        self.shared.frames.load(Ordering::SeqCst)
    }

    pub(crate) fn stored(&self) -> usize {
        self.shared.stored.lock().unwrap().len()
    }

    pub(crate) fn hold(&self) {
        *self.shared.held.lock().unwrap() = true;
    }

    pub(crate) fn release(&self) {
        *self.shared.held.lock().unwrap() = false;
        self.shared.released.notify_all();
    }

    /// Ends every connection, as a kill does.
    pub(crate) fn disconnect(&self) {
        for socket in self.shared.sockets.lock().unwrap().drain(..) {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    /// Ends the server: nobody listens any more.
    pub(crate) fn kill(&self) {
        self.shared.closed.store(true, Ordering::SeqCst);
        // The listener notices with its next connection.
        let _ = TcpStream::connect(self.address);
        self.disconnect();
        self.release();
    }
}

impl Drop for FakeServer {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Shared {
    fn manner(&self) -> Manner {
        *self.manner.lock().unwrap()
    }

    fn serve(&self, mut socket: &TcpStream) -> io::Result<()> {
        socket.set_nodelay(true)?;
        match self.manner() {
            Manner::Mute => return swallow(socket),
            Manner::WebServer => {
                socket.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")?;
                return swallow(socket);
            }
            _ => {}
        }
        loop {
            let header = Header::decode(&read_array(socket)?).map_err(invalid)?;
            let body = read(socket, header.body_bytes as usize)?;
            match header.op {
                Op::Hello if !self.stock => {
                    let hello = Hello::decode(&body).map_err(invalid)?;
                    if hello.token != self.token {
                        return socket.write_all(&Status::UNAUTHORIZED.0.to_le_bytes());
                    }
                    if self.manner() == Manner::CloseAfterHello {
                        // The end comes with the last byte.
                        hold_back(socket);
                        return socket.write_all(&welcome());
                    }
                    socket.write_all(&welcome())?;
                    return self.serve_frames(socket);
                }
                Op::Hello => socket.write_all(&Status::BAD_REQUEST.0.to_le_bytes())?,
                _ => self.serve_stock(socket, header.op, &body)?,
            }
        }
    }

    /// As a stock server does, its bugs included.
    fn serve_stock(&self, mut socket: &TcpStream, op: Op, body: &[u8]) -> io::Result<()> {
        match op {
            Op::Exists => {
                let there = self.stored.lock().unwrap().contains_key(body);
                socket.write_all(&stock::reply(Status::OK, i32::from(!there)))
            }
            Op::Delete => {
                let keys = decode_keys(body, Caps::default()).map_err(invalid)?;
                let mut stored = self.stored.lock().unwrap();
                let deleted = keys.iter().filter(|key| stored.remove(*key).is_some()).count();
                socket.write_all(&stock::reply(Status::OK, deleted as i32))
            }
            Op::Payload => {
                let request = TcpPayloadRequest::decode(body, Caps::default()).map_err(invalid)?;
                match request.op {
                    PayloadOp::Get => {
                        let value = self.stored.lock().unwrap().get(request.key).cloned();
                        match value {
                            None => socket.write_all(&Status::NOT_FOUND.0.to_le_bytes()),
                            Some((mut value, _)) => {
                                let length = value.len();
                                if self.manner() == Manner::Damage {
                                    value[length / 2] ^= 1;
                                }
                                socket.write_all(&stock::reply(Status::OK, length as i32))?;
                                socket.write_all(&value)
                            }
                        }
                    }
                    PayloadOp::Put { value_bytes } => {
                        if self.manner() == Manner::Full {
                            // And takes the value for a request.
                            return socket.write_all(&Status::OUT_OF_MEMORY.0.to_le_bytes());
                        }
                        let value = read(socket, value_bytes as usize)?;
                        self.stored.lock().unwrap().insert(request.key.to_vec(), (value, None));
                        socket.write_all(&Status::OK.0.to_le_bytes())
                    }
                }
            }
            _ => socket.write_all(&Status::BAD_REQUEST.0.to_le_bytes()),
        }
    }

    fn serve_frames(&self, mut socket: &TcpStream) -> io::Result<()> {
        loop {
            let header = FrameHeader::decode(&read_array(socket)?).map_err(invalid)?;
            let body = read(socket, header.body_bytes as usize)?;
            header.verify(&body).map_err(invalid)?;
            self.frames.fetch_add(1, Ordering::SeqCst);
            let manner = self.manner();
            let early = manner == Manner::EarlyAnswer;
            let values = if early { Vec::new() } else { read(socket, header.payload_bytes as usize)? };
            let mut held = self.held.lock().unwrap();
            while *held {
                held = self.released.wait(held).unwrap();
            }
            drop(held);
            let mut head = header.head.answer(Status::OK);
            match manner {
                Manner::MuteAfterHello => continue,
                Manner::Unasked => head.request_id += 1000,
                _ => {}
            }
            let (answer, mut payload) = self.answer(header.head.op, &body, &values)?;
            let mut out = Vec::new();
            write_frame(&mut out, head, payload.len() as u64, |body| {
                body.extend(answer);
                Ok(())
            })
            .map_err(invalid)?;
            match manner {
                Manner::LongBody => out[16..20].copy_from_slice(&u32::MAX.to_le_bytes()),
                Manner::CloseInValue => payload.truncate(payload.len() / 2),
                Manner::Damage if !payload.is_empty() => {
                    let middle = payload.len() / 2;
                    payload[middle] ^= 1;
                }
                _ => {}
            }
            socket.write_all(&out)?;
            socket.write_all(&payload)?;
            if manner == Manner::CloseInValue && header.head.op == FrameOp::Get {
                return Ok(());
            }
            if early {
                return swallow(socket);
            }
        }
    }

    fn answer(&self, op: FrameOp, body: &[u8], values: &[u8]) -> io::Result<(Vec<u8>, Vec<u8>)> {
        let manner = self.manner();
        let mut stored = self.stored.lock().unwrap();
        let (mut answer, mut payload) = (Vec::new(), Vec::new());
        match op {
            FrameOp::Exists => {
                let batch = Batch::<Named>::decode(body, u32::MAX).map_err(invalid)?;
                let present: Vec<bool> = names(&batch).map(|(_, name)| stored.contains_key(&name)).collect();
                ExistsReply::encode_bits(&mut answer, present.into_iter());
            }
            FrameOp::Delete => {
                let batch = Batch::<Named>::decode(body, u32::MAX).map_err(invalid)?;
                let statuses = names(&batch).map(|(_, name)| match stored.remove(&name) {
                    Some(_) => Status::OK,
                    None => Status::NOT_FOUND,
                });
                Statuses::encode(&mut answer, &statuses.collect::<Vec<_>>());
            }
            FrameOp::Put => {
                let batch = Batch::<PutItem>::decode(body, u32::MAX).map_err(invalid)?;
                let mut statuses = Vec::new();
                let mut at = 0;
                for (item, name) in names(&batch) {
                    let end = at + item.value_bytes as usize;
                    if manner == Manner::Full || end > values.len() {
                        statuses.push(Status::OUT_OF_MEMORY);
                    } else {
                        stored.insert(name, (values[at..end].to_vec(), item.checksum));
                        statuses.push(Status::OK);
                    }
                    at = end;
                }
                Statuses::encode(&mut answer, &statuses);
            }
            FrameOp::Get => {
                let batch = Batch::<GetItem>::decode(body, u32::MAX).map_err(invalid)?;
                let mut outcomes = Vec::new();
                for (item, name) in names(&batch) {
                    outcomes.push(match stored.get(&name) {
                        None => GetOutcome::without_value(Status::NOT_FOUND),
                        Some((value, _)) if value.len() as u64 > item.value_bytes_max => GetOutcome {
                            status: Status::TOO_LARGE,
                            value_bytes: value.len() as u64,
                            checksum: None,
                        },
                        Some((value, checksum)) => {
                            payload.extend(value);
                            if manner == Manner::LongValue {
                                payload.push(0);
                            }
                            let value_bytes = value.len() as u64 + u64::from(manner == Manner::LongValue);
                            let checksum = checksum.filter(|_| manner != Manner::NoChecksum);
                            GetOutcome { status: Status::OK, value_bytes, checksum }
                        }
                    });
                }
                GetReplies::encode(&mut answer, &outcomes);
            }
            _ => {}
        }
        Ok((answer, payload))
    }
}

fn names<'a, F: kvcache_wire::extension::ItemFields>(
    batch: &'a Batch<'a, F>,
) -> impl Iterator<Item = (F, Vec<u8>)> + 'a {
    batch.items().map(|(fields, suffix)| (fields, [batch.prefix(), suffix].concat()))
}

fn welcome() -> Vec<u8> {
    let limits = Limits {
        keys_max: 1000,
        key_bytes_max: 1024,
        value_bytes_max: 64 << 20,
        payload_bytes_max: 64 << 20,
        bytes_in_flight_max: 256 << 20,
        requests_in_flight_max: 64,
        body_bytes_max: 1 << 20,
    };
    Welcome { version: 1, features: Features::default(), server_id: 7, limits }.encode()
}

fn read(mut socket: &TcpStream, bytes: usize) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; bytes];
    socket.read_exact(&mut buffer)?;
    Ok(buffer)
}

fn read_array<const N: usize>(mut socket: &TcpStream) -> io::Result<[u8; N]> {
    let mut buffer = [0; N];
    socket.read_exact(&mut buffer)?;
    Ok(buffer)
}

/// What is written is sent when the socket is closed.
fn hold_back(socket: &TcpStream) {
    let on: libc::c_int = 1;
    // SAFETY: the option takes an integer, which outlives the call.
    let refused = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_CORK,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    assert_eq!(refused, 0);
}

/// Reads without a word until the client gives up.
fn swallow(mut socket: &TcpStream) -> io::Result<()> {
    let mut buffer = [0; 65536];
    while socket.read(&mut buffer)? > 0 {}
    Ok(())
}

fn invalid(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
