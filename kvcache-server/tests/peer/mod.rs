//! A plain client for tests: sends bytes, reads bytes, waits for nothing longer than ten seconds.

#![allow(dead_code, reason = "not every test speaks both protocols")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use kvcache_server::{Server, ServerConfig, Timeouts};
use kvcache_wire::Status;
use kvcache_wire::extension::{
    Batch, FrameHead, FrameHeader, FrameOp, GetItem, GetOutcome, GetReplies, Hello, ItemFields, PutItem,
    Statuses, Welcome, write_frame,
};
use kvcache_wire::stock::{Header, Op, PayloadOp, TcpPayloadRequest, encode_keys};

/// A bound for tests that fail, not a measure of anything.
const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) fn server(change: impl FnOnce(&mut ServerConfig)) -> Server {
    let mut config = ServerConfig { capacity_bytes: 16 << 20, threads: Some(2), ..ServerConfig::default() };
    change(&mut config);
    Server::start(config).expect("the server starts")
}

pub(crate) fn hasty() -> Timeouts {
    Timeouts { request: Duration::from_millis(150), ..Timeouts::default() }
}

pub(crate) struct Peer<S = TcpStream> {
    pub(crate) stream: S,
}

impl Peer {
    pub(crate) fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("connected");
        stream.set_nodelay(true).expect("an option");
        stream.set_read_timeout(Some(PATIENCE)).expect("an option");
        stream.set_write_timeout(Some(PATIENCE)).expect("an option");
        Self { stream }
    }

    /// A connection that speaks frames.
    pub(crate) fn with_frames(address: SocketAddr) -> (Self, Welcome) {
        let mut peer = Self::connect(address);
        let welcome = peer.hello(b"").expect("welcome");
        (peer, welcome)
    }
}

impl<S: Read + Write> Peer<S> {
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("sent");
    }

    pub(crate) fn receive<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes).expect("received");
        bytes
    }

    pub(crate) fn receive_vec(&mut self, bytes: usize) -> Vec<u8> {
        let mut out = vec![0; bytes];
        self.stream.read_exact(&mut out).expect("received");
        out
    }

    /// Whether the server closes without sending anything more.
    pub(crate) fn is_closed(&mut self) -> bool {
        match self.stream.read(&mut [0]) {
            Ok(0) => true,
            Ok(_) => false,
            Err(error) => matches!(
                error.kind(),
                std::io::ErrorKind::ConnectionReset
                    | std::io::ErrorKind::BrokenPipe
                    | std::io::ErrorKind::UnexpectedEof
            ),
        }
    }

    pub(crate) fn status(&mut self) -> Status {
        Status(i32::from_le_bytes(self.receive()))
    }

    pub(crate) fn number(&mut self) -> i32 {
        assert_eq!(self.status(), Status::OK);
        i32::from_le_bytes(self.receive())
    }

    pub(crate) fn request(&mut self, op: Op, body: &[u8]) {
        self.send(&[&Header { op, body_bytes: body.len() as u32 }.encode(), body].concat());
    }

    pub(crate) fn put(&mut self, key: &[u8], value: &[u8]) -> Status {
        let request = TcpPayloadRequest { key, op: PayloadOp::Put { value_bytes: value.len() as u32 } };
        self.request(Op::Payload, &request.encode().expect("small"));
        self.send(value);
        self.status()
    }

    pub(crate) fn get(&mut self, key: &[u8]) -> Option<Vec<u8>> {
        let request = TcpPayloadRequest { key, op: PayloadOp::Get };
        self.request(Op::Payload, &request.encode().expect("small"));
        let length = self.number();
        (length > 0).then(|| self.receive_vec(length as usize))
    }

    pub(crate) fn exists(&mut self, key: &[u8]) -> bool {
        self.request(Op::Exists, key);
        self.number() == 0
    }

    pub(crate) fn last_match(&mut self, keys: &[&str]) -> i32 {
        self.request(Op::Match, &encode_keys(keys).expect("small"));
        self.number()
    }

    pub(crate) fn delete(&mut self, keys: &[&str]) -> i32 {
        self.request(Op::Delete, &encode_keys(keys).expect("small"));
        self.number()
    }

    pub(crate) fn hello(&mut self, token: &[u8]) -> Result<Welcome, Status> {
        self.send(&Hello::new(token).encode().expect("short"));
        let status = self.status();
        if !status.is_ok() {
            return Err(status);
        }
        assert_eq!(u32::from_le_bytes(self.receive()), Welcome::BYTES as u32);
        Ok(Welcome::decode(&self.receive::<{ Welcome::BYTES }>()).expect("a good welcome"))
    }

    pub(crate) fn send_batch<F: ItemFields>(
        &mut self,
        head: FrameHead,
        prefix: &str,
        items: &[(F, &str)],
        payload: &[u8],
    ) {
        let mut frame = Vec::new();
        write_frame(&mut frame, head, payload.len() as u64, |out| {
            Batch::encode(out, prefix.as_bytes(), items.iter().map(|(fields, key)| (*fields, key.as_bytes())))
        })
        .expect("small");
        self.send(&frame);
        self.send(payload);
    }

    pub(crate) fn frame(&mut self) -> (FrameHeader, Vec<u8>) {
        let header = FrameHeader::decode(&self.receive()).expect("a good header");
        let body = self.receive_vec(header.body_bytes as usize);
        header.verify(&body).expect("a good frame");
        (header, body)
    }

    pub(crate) fn put_batch(
        &mut self,
        flags: u8,
        prefix: &str,
        items: &[(PutItem, &str)],
        payload: &[u8],
    ) -> Vec<Status> {
        self.send_batch(FrameHead::request(FrameOp::Put, flags, 1), prefix, items, payload);
        let (header, body) = self.frame();
        assert_eq!(
            (header.head.op, header.head.is_answer, header.head.status),
            (FrameOp::Put, true, Status::OK)
        );
        Statuses::decode(&body, items.len() as u32).expect("statuses").iter().collect()
    }

    pub(crate) fn get_batch(
        &mut self,
        prefix: &str,
        items: &[(GetItem, &str)],
    ) -> Vec<(GetOutcome, Vec<u8>)> {
        self.send_batch(FrameHead::request(FrameOp::Get, 0, 2), prefix, items, &[]);
        self.got(items.len() as u32)
    }

    pub(crate) fn got(&mut self, keys: u32) -> Vec<(GetOutcome, Vec<u8>)> {
        let (header, body) = self.frame();
        assert_eq!((header.head.op, header.head.status), (FrameOp::Get, Status::OK));
        let outcomes: Vec<_> =
            GetReplies::decode(&body, keys, header.payload_bytes).expect("outcomes").iter().collect();
        outcomes
            .into_iter()
            .map(|outcome| (outcome, self.receive_vec(outcome.payload_bytes() as usize)))
            .collect()
    }
}

pub(crate) const ANY: GetItem = GetItem { value_bytes_max: u64::MAX };

pub(crate) fn put_item(value: &[u8]) -> PutItem {
    PutItem { value_bytes: value.len() as u64, checksum: Some(kvcache_wire::checksum(value)) }
}

/// Bytes that differ from place to place and from seed to seed.
pub(crate) fn content(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    };
    (0..bytes).map(|_| next()).collect()
}

/// One counter out of the metrics' text.
pub(crate) fn metric(server: &Server, name: &str) -> u64 {
    let text = server.metrics();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("{name} is missing")).parse().expect("a number")
}

/// Waits for a counter that another thread raises after its answer has left. A bound for tests that fail.
pub(crate) fn wait_for(server: &Server, name: &str, value: u64) {
    let end = std::time::Instant::now() + PATIENCE;
    while metric(server, name) != value {
        assert!(std::time::Instant::now() < end, "{name} is {}, not {value}", metric(server, name));
        std::thread::yield_now();
    }
}
