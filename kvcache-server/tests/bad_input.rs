//! Whatever a peer sends, it harms its own connection at most: a neighbour goes on, and nothing stored is lost.

mod peer;

use kvcache_server::Server;
use kvcache_wire::Status;
use kvcache_wire::extension::{FrameHead, FrameHeader, FrameOp, Named, PutItem, write_frame};
use kvcache_wire::stock::{Header, Op, PayloadOp, TcpPayloadRequest, encode_keys};
use peer::{ANY, Peer, content, hasty, metric, put_item, server, wait_for};

/// A server with a value in it and a client that must notice nothing.
struct Bystander {
    server: Server,
    peer: Peer,
    value: Vec<u8>,
}

impl Bystander {
    fn new() -> Self {
        Self::on(server(|_| {}))
    }

    fn on(server: Server) -> Self {
        let mut peer = Peer::connect(server.address());
        let value = content(42, 100_000);
        assert_eq!(peer.put(b"kept", &value), Status::OK);
        Self { server, peer, value }
    }

    fn connect(&self) -> Peer {
        Peer::connect(self.server.address())
    }

    fn frames(&self) -> Peer {
        Peer::with_frames(self.server.address()).0
    }

    fn notices_nothing(mut self, reason: &str) {
        assert_eq!(self.peer.get(b"kept").as_ref(), Some(&self.value));
        assert_eq!(self.connect().get(b"kept").as_ref(), Some(&self.value));
        wait_for(&self.server, &format!("kvcache_server_errors_total{{reason=\"{reason}\"}}"), 1);
        assert_eq!(self.server.store().reserved_bytes(), 0);
    }
}

/// The server says why in a frame and closes.
fn closes_with(peer: &mut Peer, reason: &str) {
    let (header, body) = peer.frame();
    assert_eq!((header.head.op, header.head.status), (FrameOp::Close, Status::BAD_REQUEST));
    let text = String::from_utf8(body).expect("text");
    assert!(text.contains(reason), "{text}");
    assert!(peer.is_closed());
}

#[test]
fn another_magic() {
    let bystander = Bystander::new();
    let mut peer = bystander.connect();
    peer.send(b"GET / HTTP/1.1\r\n\r\n");
    assert!(peer.is_closed());
    bystander.notices_nothing("bad_magic");
}

#[test]
fn an_unknown_operation() {
    let bystander = Bystander::new();
    let mut peer = bystander.connect();
    peer.request(Op::Unknown(b'R'), b"body");
    assert_eq!(peer.status(), Status::BAD_REQUEST);
    assert!(!peer.exists(b"k"), "the connection goes on");
    bystander.notices_nothing("malformed");
}

#[test]
fn a_body_of_nothing() {
    let bystander = Bystander::new();
    let mut peer = bystander.connect();
    peer.request(Op::Exists, b"");
    assert_eq!(peer.status(), Status::BAD_REQUEST);
    assert!(!peer.exists(b"k"));
    bystander.notices_nothing("malformed");
}

#[test]
fn a_body_of_four_gibibytes() {
    let bystander = Bystander::new();
    let mut peer = bystander.connect();
    peer.send(&Header { op: Op::Match, body_bytes: u32::MAX }.encode());
    assert_eq!(peer.status(), Status::BAD_REQUEST);
    assert!(peer.is_closed());
    bystander.notices_nothing("too_large");
}

#[test]
fn a_table_with_offsets_that_lie() {
    let bystander = Bystander::new();
    let mut peer = bystander.connect();
    let mut table = encode_keys(&["ab", "cd"]).expect("small");
    table[24..28].copy_from_slice(&u32::MAX.to_le_bytes());
    peer.request(Op::Delete, &table);
    assert_eq!(peer.status(), Status::BAD_REQUEST);
    assert!(!peer.exists(b"k"), "the connection goes on");
    bystander.notices_nothing("malformed");
}

#[test]
fn a_payload_request_that_cannot_be_read() {
    let bystander = Bystander::new();
    let mut peer = bystander.connect();
    peer.request(Op::Payload, &[0xff; 40]);
    assert_eq!(peer.status(), Status::BAD_REQUEST);
    assert!(peer.is_closed(), "nobody knows where the next request would begin");
    bystander.notices_nothing("malformed");
}

#[test]
fn a_key_that_is_too_long() {
    let bystander = Bystander::new();
    let mut peer = bystander.connect();
    let long = "k".repeat(5000);
    peer.request(Op::Match, &encode_keys(&[&long]).expect("small"));
    assert_eq!(peer.status(), Status::BAD_REQUEST);
    bystander.notices_nothing("malformed");
}

#[test]
fn connections_cut_at_every_byte() {
    let bystander = Bystander::new();
    let put =
        TcpPayloadRequest { key: b"cut", op: PayloadOp::Put { value_bytes: 20 } }.encode().expect("small");
    let header = Header { op: Op::Payload, body_bytes: put.len() as u32 }.encode();
    let whole = [header.as_slice(), &put, &[1; 20]].concat();
    for length in 0..whole.len() {
        bystander.connect().send(&whole[..length]);
    }
    let mut frame = Vec::new();
    write_frame(&mut frame, FrameHead::request(FrameOp::Ping, 0, 1), 0, |_| Ok(())).expect("empty");
    for length in 0..frame.len() {
        bystander.frames().send(&frame[..length]);
    }
    // Cut before the first byte is no error, neither here nor there.
    let cuts = (whole.len() - 1 + frame.len() - 1) as u64;
    wait_for(&bystander.server, "kvcache_server_errors_total{reason=\"disconnected\"}", cuts);
    assert!(!bystander.connect().exists(b"cut"));
    assert_eq!(bystander.server.store().reserved_bytes(), 0);
    assert_eq!(bystander.server.store().stats().values, 1);
}

#[test]
fn frames_that_cannot_be_read() {
    type Damage = fn(&mut Vec<u8>);
    let damages: [(Damage, &str); 5] = [
        (|frame| frame[0] ^= 1, "another protocol"),
        (|frame| frame[4] = 99, "operation 0x63 is unknown"),
        (|frame| frame[5] = 0x40, "flag 0x40 is unknown"),
        (|frame| frame[8] ^= 1, "check of a frame"),
        (|frame| frame[36] ^= 1, "check of a frame"),
    ];
    for (damage, reason) in damages {
        let bystander = Bystander::new();
        let mut peer = bystander.frames();
        let mut frame = Vec::new();
        let head = FrameHead::request(FrameOp::Delete, 0, 7);
        let body = [0_u8, 0, 0, 0, 0, 0, 0, 0];
        write_frame(&mut frame, head, 0, |out| {
            out.extend(body);
            Ok(())
        })
        .expect("small");
        damage(&mut frame);
        peer.send(&frame);
        closes_with(&mut peer, reason);
        bystander.notices_nothing(if reason.contains("protocol") { "bad_magic" } else { "malformed" });
    }
}

#[test]
fn frames_above_the_limits() {
    for (body_bytes, payload_bytes, reason) in [
        (u32::MAX, 0, "the length of a frame's body is 4294967295"),
        (8, u64::MAX, "the length of a frame's payload"),
    ] {
        let bystander = Bystander::new();
        let mut peer = bystander.frames();
        let head = FrameHead::request(FrameOp::Put, 0, 7);
        peer.send(&FrameHeader { head, body_bytes, check: 0, payload_bytes }.encode());
        closes_with(&mut peer, reason);
        bystander.notices_nothing("too_large");
    }
}

#[test]
fn more_keys_than_allowed() {
    let bystander = Bystander::new();
    let mut peer = bystander.frames();
    let items = vec![(Named, "k"); 4097];
    peer.send_batch(FrameHead::request(FrameOp::Exists, 0, 7), "", &items, &[]);
    closes_with(&mut peer, "the number of keys is 4097, above the limit of 4096");
    bystander.notices_nothing("too_large");
}

/// The longest prefix with as many suffixes as a request may have: cheap to send, and not looked for.
#[test]
fn keys_with_an_endless_prefix() {
    let bystander = Bystander::new();
    let mut peer = bystander.frames();
    let prefix = "p".repeat(65_535);
    let items = vec![(Named, "k"); 4096];
    peer.send_batch(FrameHead::request(FrameOp::Exists, 0, 7), &prefix, &items, &[]);
    let (_, body) = peer.frame();
    assert!(body[4..].iter().all(|bits| *bits == 0));
    let item = PutItem { value_bytes: 1, checksum: None };
    let statuses = peer.put_batch(0, &prefix, &vec![(item, "k"); 4096], &[1; 4096]);
    assert!(statuses.iter().all(|status| *status == Status::TOO_LARGE));
    peer.send_batch(FrameHead::request(FrameOp::Delete, 0, 7), &prefix, &items, &[1]);
    closes_with(&mut peer, "without values");
    bystander.notices_nothing("malformed");
}

#[test]
fn values_that_are_not_the_payload() {
    let bystander = Bystander::new();
    let mut peer = bystander.frames();
    let item = PutItem { value_bytes: 10, checksum: None };
    peer.send_batch(FrameHead::request(FrameOp::Put, 0, 7), "", &[(item, "k")], b"only nine");
    closes_with(&mut peer, "the values and the payload of a put: 10 and 9 differ");
    bystander.notices_nothing("malformed");
}

#[test]
fn a_payload_where_there_is_none() {
    let bystander = Bystander::new();
    let mut peer = bystander.frames();
    peer.send_batch(FrameHead::request(FrameOp::Get, 0, 7), "", &[(ANY, "k")], b"what is this");
    closes_with(&mut peer, "without values");
    bystander.notices_nothing("malformed");
}

#[test]
fn answers_from_a_client() {
    let bystander = Bystander::new();
    let mut peer = bystander.frames();
    let mut frame = Vec::new();
    let head = FrameHead::request(FrameOp::Ping, 0, 7).answer(Status::OK);
    write_frame(&mut frame, head, 0, |_| Ok(())).expect("empty");
    peer.send(&frame);
    closes_with(&mut peer, "request");
    bystander.notices_nothing("malformed");
}

/// A client that begins a request and goes to sleep: in the header, in the body, in the value, in a frame.
#[test]
fn slow_clients_are_disconnected() {
    let put =
        TcpPayloadRequest { key: b"slow", op: PayloadOp::Put { value_bytes: 2000 } }.encode().expect("small");
    let header = Header { op: Op::Payload, body_bytes: put.len() as u32 }.encode();
    let whole = [header.as_slice(), &put, &[1; 100]].concat();
    for length in [1, 9, 30, whole.len()] {
        let bystander = Bystander::on(server(|config| config.timeouts = hasty()));
        let mut peer = bystander.connect();
        peer.send(&whole[..length]);
        assert!(peer.is_closed(), "{length} bytes");
        bystander.notices_nothing("timeout");
    }
    let mut frame = Vec::new();
    let item = PutItem { value_bytes: 1 << 20, checksum: None };
    write_frame(&mut frame, FrameHead::request(FrameOp::Put, 0, 1), 1 << 20, |out| {
        kvcache_wire::extension::Batch::encode(out, b"", [(item, b"k".as_slice())].into_iter())
    })
    .expect("small");
    for length in [1, 32, 40, frame.len()] {
        let bystander = Bystander::on(server(|config| {
            config.timeouts = hasty();
            config.timeouts.payload_bytes_per_second_min = 100 << 20;
        }));
        let mut peer = bystander.frames();
        peer.send(&frame[..length]);
        assert!(peer.is_closed(), "{length} bytes");
        bystander.notices_nothing("timeout");
    }
}

/// A client that asks and does not read: its answers must not hold the pool for ever.
#[test]
fn clients_that_do_not_read_are_disconnected() {
    for frames in [false, true] {
        let bystander = Bystander::on(server(|config| {
            config.capacity_bytes = 64 << 20;
            config.timeouts = hasty();
            // A second for the value: whoever puts it needs less, on a busy machine as well.
            config.timeouts.payload_bytes_per_second_min = 32 << 20;
        }));
        let value = content(1, 32 << 20);
        assert_eq!(bystander.connect().put(b"large", &value), Status::OK);
        let mut peer = bystander.connect();
        if frames {
            peer = bystander.frames();
            peer.send_batch(FrameHead::request(FrameOp::Get, 0, 1), "", &[(ANY, "large")], &[]);
        } else {
            let get = TcpPayloadRequest { key: b"large", op: PayloadOp::Get };
            peer.request(Op::Payload, &get.encode().expect("small"));
        }
        wait_for(&bystander.server, "kvcache_server_errors_total{reason=\"timeout\"}", 1);
        wait_for(&bystander.server, "kvcache_server_connections", 1);
        drop(peer);
        bystander.notices_nothing("timeout");
    }
}

#[test]
fn a_silent_client_is_disconnected_where_that_is_wanted() {
    let server = server(|config| config.timeouts.idle = Some(std::time::Duration::from_millis(50)));
    assert!(Peer::connect(server.address()).is_closed());
    let (mut peer, _) = Peer::with_frames(server.address());
    assert!(peer.is_closed());
    assert_eq!(metric(&server, "kvcache_server_errors_total{reason=\"timeout\"}"), 0);
}

#[test]
fn thousands_of_connections() {
    let bystander = Bystander::on(server(|config| config.connections_max = 20));
    let crowd: Vec<Peer> = (0..3000).map(|_| bystander.connect()).collect();
    let refused = "kvcache_server_errors_total{reason=\"connection_limit\"}";
    wait_for(&bystander.server, refused, 3000 - 19);
    assert_eq!(metric(&bystander.server, "kvcache_server_connections"), 20);
    let Bystander { server, mut peer, value } = bystander;
    assert_eq!(peer.get(b"kept"), Some(value));
    drop(crowd);
    wait_for(&server, "kvcache_server_connections", 1);
    assert!(Peer::connect(server.address()).exists(b"kept"), "there is room again");
}

/// Clients that promise large values and vanish cost less than half of what is stored.
#[test]
fn promises_that_are_not_kept() {
    let server = server(|config| config.capacity_bytes = 64 << 12);
    let (mut peer, _) = Peer::with_frames(server.address());
    for key in 0..60 {
        let key = key.to_string();
        assert_eq!(peer.put_batch(0, "", &[(put_item(b"x"), key.as_str())], b"x"), [Status::OK]);
    }
    let liars: Vec<Peer> = (0..20)
        .map(|_| {
            let mut liar = Peer::connect(server.address());
            let promise = TcpPayloadRequest { key: b"lie", op: PayloadOp::Put { value_bytes: 10 << 12 } };
            liar.request(Op::Payload, &promise.encode().expect("small"));
            liar
        })
        .collect();
    drop(liars);
    wait_for(&server, "kvcache_server_errors_total{reason=\"disconnected\"}", 20);
    assert!(server.store().stats().values >= 30, "{:?}", server.store().stats());
    wait_for(&server, "kvcache_server_connections", 1);
    assert_eq!(server.store().reserved_bytes(), 0);
}
