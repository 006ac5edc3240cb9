//! The stock protocol: what stock clients rely on, and what the stock server does wrong.

mod peer;

use std::io::Write;

use kvcache_wire::Status;
use kvcache_wire::stock::{Op, PayloadOp, TcpPayloadRequest};
use peer::{Peer, content, server};

#[test]
fn every_operation() {
    let server = server(|_| {});
    let mut peer = Peer::connect(server.address());
    let value = content(1, 300_000);
    assert_eq!(peer.put(b"key-001", &value), Status::OK);
    assert_eq!(peer.put(b"key-002", b"x"), Status::OK);
    assert_eq!(peer.get(b"key-001"), Some(value));
    assert!(peer.exists(b"key-002") && !peer.exists(b"key-003"));
    assert_eq!(peer.last_match(&["key-001", "key-002", "key-003"]), 1);
    assert_eq!(peer.last_match(&["zz"]), -1);
    assert_eq!(peer.last_match(&[]), -1);
    assert_eq!(peer.delete(&["key-002", "zz"]), 1);
    assert_eq!(peer.get(b"key-002"), None, "a missing value is answered, and the connection goes on");
    assert_eq!(peer.put(b"key-001", b"another"), Status::OK);
    assert_eq!(peer.get(b"key-001").as_deref(), Some(b"another".as_slice()));
}

/// The stock server halves the list and would say 3 or 0 here, by chance.
#[test]
fn match_stops_at_the_first_hole() {
    let server = server(|_| {});
    let mut peer = Peer::connect(server.address());
    for key in ["a", "b", "d", "e"] {
        peer.put(key.as_bytes(), b"1");
    }
    assert_eq!(peer.last_match(&["a", "b", "c", "d", "e"]), 1);
}

/// The stock server answers at once and takes the value's bytes for requests.
#[test]
fn a_value_without_room_is_taken_and_forgotten() {
    let server = server(|config| config.capacity_bytes = 1 << 20);
    let mut peer = Peer::connect(server.address());
    assert_eq!(peer.put(b"kept", b"small"), Status::OK);
    assert_eq!(peer.put(b"large", &content(2, 3 << 20)), Status::OUT_OF_MEMORY);
    assert_eq!(peer.put(b"empty", b""), Status::BAD_REQUEST);
    assert!(peer.exists(b"kept") && !peer.exists(b"large") && !peer.exists(b"empty"));
}

/// In the stock server the eviction of an overwritten value erases the new one from the map.
#[test]
fn overwritten_keys_are_not_lost_by_evictions() {
    let server = server(|config| {
        config.capacity_bytes = 64 << 10;
        config.eviction = "lru".to_owned();
    });
    let mut peer = Peer::connect(server.address());
    for round in 0..100_u64 {
        assert_eq!(peer.put(b"same", &content(round, 8 << 10)), Status::OK);
        assert_eq!(peer.put(format!("other-{round}").as_bytes(), &content(round, 8 << 10)), Status::OK);
        assert_eq!(peer.get(b"same"), Some(content(round, 8 << 10)), "round {round}");
    }
}

/// In the stock server a purge leaves the memory taken.
#[test]
fn a_purge_frees_memory() {
    let server = server(|config| config.capacity_bytes = 1 << 20);
    let mut peer = Peer::connect(server.address());
    for round in 0..10 {
        assert_eq!(peer.put(b"a", &content(round, 600 << 10)), Status::OK);
        assert_eq!(server.store().purge(), 1);
        assert_eq!(server.store().stats().used_bytes, 0);
        assert!(!peer.exists(b"a"));
    }
    assert_eq!(server.store().stats().evictions, 0);
}

/// In the stock server a get finds a value whose bytes are still arriving.
#[test]
fn a_value_is_visible_when_it_is_complete() {
    let server = server(|_| {});
    let (mut writer, mut reader) = (Peer::connect(server.address()), Peer::connect(server.address()));
    writer.put(b"k", b"old value");
    let request = TcpPayloadRequest { key: b"k", op: PayloadOp::Put { value_bytes: 1000 } };
    writer.request(Op::Payload, &request.encode().expect("small"));
    writer.send(&[7; 999]);
    peer::wait_for(&server, "kvcache_server_used_bytes", 8192);
    assert_eq!(reader.get(b"k").as_deref(), Some(b"old value".as_slice()));
    writer.send(&[7]);
    assert_eq!(writer.status(), Status::OK);
    assert_eq!(reader.get(b"k"), Some(vec![7; 1000]));
}

#[test]
fn requests_that_come_together_or_in_pieces() {
    let server = server(|_| {});
    let mut peer = Peer::connect(server.address());
    let header = |op: Op, body: &[u8]| {
        [&kvcache_wire::stock::Header { op, body_bytes: body.len() as u32 }.encode(), body].concat()
    };
    let put = TcpPayloadRequest { key: b"k", op: PayloadOp::Put { value_bytes: 3 } }.encode().expect("small");
    let all =
        [header(Op::Payload, &put), b"abc".to_vec(), header(Op::Exists, b"k"), header(Op::Exists, b"l")]
            .concat();
    peer.send(&all);
    assert_eq!(peer.status(), Status::OK);
    assert_eq!([peer.number(), peer.number()], [0, 1]);
    for byte in all {
        peer.stream.write_all(&[byte]).expect("sent");
    }
    assert_eq!(peer.status(), Status::OK);
    assert_eq!([peer.number(), peer.number()], [0, 1]);
}

#[test]
fn rdma_is_refused_and_the_connection_goes_on() {
    let server = server(|_| {});
    let mut peer = Peer::connect(server.address());
    peer.request(Op::Exchange, &[1; 30]);
    assert_eq!(peer.status(), Status::UNAVAILABLE);
    assert!(!peer.exists(b"k"));
}

#[test]
fn many_connections_at_a_time() {
    let server = server(|_| {});
    std::thread::scope(|scope| {
        for thread in 0..8_u64 {
            let address = server.address();
            scope.spawn(move || {
                let mut peer = Peer::connect(address);
                for round in 0..50 {
                    let key = format!("{thread}-{}", round % 7);
                    let value = content(thread << 32 | round, 1 + (round as usize * 7919) % 100_000);
                    assert_eq!(peer.put(key.as_bytes(), &value), Status::OK);
                    assert_eq!(peer.get(key.as_bytes()), Some(value));
                }
            });
        }
    });
    peer::wait_for(&server, "kvcache_server_connections", 0);
    assert_eq!(peer::metric(&server, "kvcache_server_hits_total"), 400);
}
