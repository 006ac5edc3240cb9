//! Starting, stopping, and management over HTTP.

mod peer;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use kvcache_server::{Server, ServerConfig, Token};
use kvcache_wire::Status;
use kvcache_wire::extension::{FrameHead, FrameOp};
use kvcache_wire::stock::{Op, PayloadOp, TcpPayloadRequest};
use peer::{ANY, Peer, content, put_item, server};

#[test]
fn an_address_in_use_is_named() {
    let first = server(|_| {});
    let config = ServerConfig { listen: first.address(), capacity_bytes: 1 << 20, ..ServerConfig::default() };
    let error = Server::start(config).expect_err("taken").to_string();
    assert!(error.starts_with(&format!("cannot listen on {}: ", first.address())), "{error}");
    assert!(error.ends_with("a port that is free, or 0 for any"), "{error}");
}

#[test]
fn idle_connections_are_told_and_closed() {
    let server = server(|_| {});
    let address = server.address();
    let mut stock = Peer::connect(address);
    assert!(!stock.exists(b"k"));
    let (mut frames, _) = Peer::with_frames(address);
    server.stop();
    assert!(stock.is_closed());
    let (header, body) = frames.frame();
    assert_eq!((header.head.op, header.head.status), (FrameOp::Close, Status::UNAVAILABLE));
    assert_eq!(body, b"the server stops");
    assert!(frames.is_closed());
    assert!(TcpStream::connect(address).is_err(), "nobody listens any more");
}

/// Puts that have begun when the server is stopped are finished and answered.
#[test]
fn what_runs_is_finished() {
    let server = server(|_| {});
    let mut stock = Peer::connect(server.address());
    let put = TcpPayloadRequest { key: b"k", op: PayloadOp::Put { value_bytes: 100 } };
    stock.request(Op::Payload, &put.encode().expect("small"));
    stock.send(&[1; 50]);
    let (mut frames, _) = Peer::with_frames(server.address());
    let value = content(1, 100);
    let item = [(put_item(&value), "l")];
    frames.send_batch(FrameHead::request(FrameOp::Put, 0, 5), "", &item, &value);
    assert_eq!(frames.frame().0.head.request_id, 5);
    peer::wait_for(&server, "kvcache_server_used_bytes", 8192);
    let stopping = std::thread::spawn(move || server.stop());
    assert_eq!(frames.frame().0.head.op, FrameOp::Close, "the stop has begun");
    stock.send(&[1; 50]);
    assert_eq!(stock.status(), Status::OK);
    assert!(stock.is_closed());
    stopping.join().expect("stopped");
}

#[test]
fn what_does_not_end_within_the_grace_is_cut_off() {
    let server = server(|config| config.timeouts.grace = std::time::Duration::from_millis(50));
    let mut stock = Peer::connect(server.address());
    let put = TcpPayloadRequest { key: b"k", op: PayloadOp::Put { value_bytes: 100 } };
    stock.request(Op::Payload, &put.encode().expect("small"));
    peer::wait_for(&server, "kvcache_server_used_bytes", 4096);
    server.stop();
    assert!(stock.is_closed());
}

fn http(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("connected");
    stream.write_all(format!("{request}\r\nConnection: close\r\n\r\n").as_bytes()).expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("text");
    answer
}

fn managed(token: Option<Token>) -> (Server, SocketAddr) {
    let server = server(|config| {
        config.manage = Some("127.0.0.1:0".parse().expect("an address"));
        config.token = token;
        config.allow_stock = true;
    });
    let address = server.manage_address().expect("asked for");
    (server, address)
}

#[test]
fn management_answers() {
    let (server, manage) = managed(None);
    let mut peer = Peer::connect(server.address());
    peer.put(b"a", b"1");
    peer.put(b"b", b"22");
    assert_eq!(peer.get(b"zz"), None);
    assert!(http(manage, "GET /healthz HTTP/1.1\r\nHost: x").starts_with("HTTP/1.1 200 OK\r\n"));
    assert!(http(manage, "GET /readyz HTTP/1.1\r\nHost: x").ends_with("ready\n"));
    assert!(http(manage, "GET /kvmap_len HTTP/1.1\r\nHost: x").ends_with("{\"len\":2}"));
    let metrics = http(manage, "GET /metrics HTTP/1.1\r\nHost: x");
    for line in [
        "kvcache_server_values 2",
        "kvcache_server_value_bytes 3",
        "kvcache_server_used_bytes 8192",
        "kvcache_server_capacity_bytes 16777216",
        "kvcache_server_misses_total 1",
        "kvcache_server_puts_total 2",
        "kvcache_server_connections 1",
        "kvcache_server_request_duration_seconds_count{operation=\"put\"} 2",
        "kvcache_server_request_duration_seconds_count{operation=\"get\"} 1",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line} is missing:\n{metrics}");
    }
    assert!(http(manage, "GET /purge HTTP/1.1\r\nHost: x").starts_with("HTTP/1.1 405"));
    assert!(http(manage, "GET /nowhere HTTP/1.1\r\nHost: x").starts_with("HTTP/1.1 404"));
    assert!(http(manage, "POST /purge HTTP/1.1\r\nHost: x").ends_with("{\"status\":\"ok\",\"num\":2}"));
    assert!(http(manage, "GET /kvmap_len HTTP/1.1\r\nHost: x").ends_with("{\"len\":0}"));
    assert!(!peer.exists(b"a"));
    assert!(http(manage, "\u{1}garbage").starts_with("HTTP/1.1 400"));
    assert!(!peer.exists(b"a"), "data connections notice nothing");
}

#[test]
fn purging_asks_for_the_token() {
    let (server, manage) = managed(Some(Token::new(b"0123456789abcdef")));
    Peer::connect(server.address()).put(b"a", b"1");
    assert!(http(manage, "POST /purge HTTP/1.1\r\nHost: x").starts_with("HTTP/1.1 401"));
    let wrong = "POST /purge HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer 0123456789abcdeF";
    assert!(http(manage, wrong).starts_with("HTTP/1.1 401"));
    let right = "POST /purge HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer 0123456789abcdef";
    assert!(http(manage, right).ends_with("\"num\":1}"));
}

#[test]
fn a_populated_pool_works_like_any() {
    let server = server(|config| config.populate = true);
    let (mut peer, _) = Peer::with_frames(server.address());
    for round in 0..20 {
        let value = content(round, 3 << 20);
        assert_eq!(peer.put_batch(0, "", &[(put_item(&value), "k")], &value), [Status::OK]);
        assert!(peer.get_batch("", &[(ANY, "k")])[0].1 == value);
    }
}
