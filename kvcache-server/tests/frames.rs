//! The extension: batches, pipelining, limits and statuses of single keys.

mod peer;

use kvcache_wire::Status;
use kvcache_wire::extension::{
    ExistsReply, Features, FrameHead, FrameOp, GetItem, Named, PutItem, Stats, Statuses, flags, write_frame,
};
use peer::{ANY, Peer, content, put_item, server};

#[test]
fn values_come_back_with_their_checksums() {
    let server = server(|_| {});
    let (mut peer, welcome) = Peer::with_frames(server.address());
    assert!(welcome.features.contain(Features::VERIFY_ON_PUT));
    let values = [content(1, 1), content(2, 70_000), content(3, 4096)];
    let items: Vec<(PutItem, &str)> =
        values.iter().map(|value| put_item(value)).zip(["a", "b", "c"]).collect();
    assert_eq!(peer.put_batch(0, "pre/", &items, &values.concat()), [Status::OK; 3]);
    let got = peer.get_batch("pre/", &[(ANY, "c"), (ANY, "missing"), (ANY, "b"), (ANY, "a")]);
    let statuses: Vec<_> = got.iter().map(|(outcome, _)| outcome.status).collect();
    assert_eq!(statuses, [Status::OK, Status::NOT_FOUND, Status::OK, Status::OK]);
    for (index, value) in [(0, &values[2]), (2, &values[1]), (3, &values[0])] {
        assert_eq!(&got[index].1, value);
        assert_eq!(got[index].0.checksum, Some(kvcache_wire::checksum(value)));
    }
}

#[test]
fn both_protocols_see_the_same_values() {
    let server = server(|_| {});
    let mut stock = Peer::connect(server.address());
    let (mut peer, _) = Peer::with_frames(server.address());
    stock.put(b"from-stock", b"12345");
    let got = peer.get_batch("from-", &[(ANY, "stock")]);
    assert_eq!((got[0].1.as_slice(), got[0].0.checksum), (b"12345".as_slice(), None));
    let without = PutItem { value_bytes: 3, checksum: None };
    peer.put_batch(0, "", &[(without, "from-us")], b"abc");
    assert_eq!(stock.get(b"from-us").as_deref(), Some(b"abc".as_slice()));
    let got = peer.get_batch("", &[(ANY, "from-us")]);
    assert_eq!(got[0].0.checksum, None);
}

#[test]
fn presence_of_all_keys_or_of_the_leading_ones() {
    let server = server(|_| {});
    let (mut peer, _) = Peer::with_frames(server.address());
    for key in ["0", "1", "3", "9"] {
        peer.put_batch(0, "k", &[(put_item(b"x"), key)], b"x");
    }
    let keys: Vec<String> = (0..10).map(|key| key.to_string()).collect();
    let items: Vec<(Named, &str)> = keys.iter().map(|key| (Named, key.as_str())).collect();
    peer.send_batch(FrameHead::request(FrameOp::Exists, 0, 7), "k", &items, &[]);
    let (header, body) = peer.frame();
    assert_eq!(header.head.request_id, 7);
    let reply = ExistsReply::decode(&body, false, 10).expect("bits");
    let present: Vec<usize> = (0..10).filter(|index| reply.is_present(*index)).collect();
    assert_eq!(present, [0, 1, 3, 9]);
    peer.send_batch(FrameHead::request(FrameOp::Exists, flags::LEADING_ONLY, 8), "k", &items, &[]);
    let (header, body) = peer.frame();
    assert_eq!(header.head.flags, flags::LEADING_ONLY);
    assert_eq!(ExistsReply::decode(&body, true, 10), Ok(ExistsReply::Leading(2)));
}

#[test]
fn a_buffer_that_is_too_small_gets_the_length_and_no_bytes() {
    let server = server(|_| {});
    let (mut peer, _) = Peer::with_frames(server.address());
    let value = content(1, 1000);
    peer.put_batch(0, "", &[(put_item(&value), "k")], &value);
    let got = peer
        .get_batch("", &[(GetItem { value_bytes_max: 999 }, "k"), (GetItem { value_bytes_max: 1000 }, "k")]);
    assert_eq!((got[0].0.status, got[0].0.value_bytes, got[0].1.len()), (Status::TOO_LARGE, 1000, 0));
    assert_eq!(got[1].1, value);
}

#[test]
fn what_is_wrong_with_one_value_concerns_that_value_only() {
    let server = server(|config| {
        config.capacity_bytes = 1 << 20;
        config.value_bytes_max = Some(300_000);
    });
    let (mut peer, welcome) = Peer::with_frames(server.address());
    assert_eq!(welcome.limits.value_bytes_max, 300_000);
    let long_key = "k".repeat(welcome.limits.key_bytes_max as usize + 1);
    let (good, large) = (content(1, 5000), content(2, 300_001));
    let empty = PutItem { value_bytes: 0, checksum: None };
    let items = [
        (empty, "empty"),
        (put_item(&large), "large"),
        (put_item(&good), "good"),
        (put_item(&good), long_key.as_str()),
        (put_item(&good), ""),
        (put_item(&good), "also good"),
        (empty, "empty"),
    ];
    let payload = [large.as_slice(), &good, &good, &good, &good].concat();
    let statuses = peer.put_batch(0, "", &items, &payload);
    assert_eq!(
        statuses,
        [
            Status::BAD_REQUEST,
            Status::TOO_LARGE,
            Status::OK,
            Status::TOO_LARGE,
            Status::BAD_REQUEST,
            Status::OK,
            Status::BAD_REQUEST
        ]
    );
    let got =
        peer.get_batch("", &[(ANY, "good"), (ANY, "also good"), (ANY, "large"), (ANY, long_key.as_str())]);
    assert_eq!((&got[0].1, &got[1].1), (&good, &good));
    assert!(got[2..].iter().all(|(outcome, _)| outcome.status == Status::NOT_FOUND));
}

#[test]
fn a_value_that_is_not_its_checksums_is_refused_where_that_was_asked_for() {
    let server = server(|_| {});
    let (mut peer, _) = Peer::with_frames(server.address());
    let (value, mut damaged) = (content(1, 5000), content(1, 5000));
    damaged[77] ^= 4;
    let items = [(put_item(&value), "a"), (put_item(&value), "b")];
    let payload = [damaged.as_slice(), &value].concat();
    let verified = peer.put_batch(flags::VERIFY, "", &items, &payload);
    assert_eq!(verified, [Status::CHECKSUM_MISMATCH, Status::OK]);
    assert_eq!(peer.get_batch("", &[(ANY, "a")])[0].0.status, Status::NOT_FOUND);
    assert_eq!(peer.put_batch(0, "", &items, &payload), [Status::OK; 2]);
    let got = peer.get_batch("", &[(ANY, "a")]);
    assert_ne!(got[0].0.checksum, Some(kvcache_wire::checksum(&got[0].1)), "the reader finds out");
}

#[test]
fn requests_are_pipelined() {
    const REQUESTS: u64 = 200;
    let server = server(|_| {});
    let (mut peer, _) = Peer::with_frames(server.address());
    let values: Vec<Vec<u8>> = (0..8).map(|seed| content(seed, 20_000 + 1000 * seed as usize)).collect();
    let names: Vec<String> = (0..8).map(|index| format!("v{index}")).collect();
    let mut sender = Peer { stream: peer.stream.try_clone().expect("a second handle") };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for id in 0..REQUESTS {
                let index = (id % 8) as usize;
                let item = [(put_item(&values[index]), names[index].as_str())];
                sender.send_batch(FrameHead::request(FrameOp::Put, 0, 2 * id), "", &item, &values[index]);
                let asked = [(ANY, names[index].as_str())];
                sender.send_batch(FrameHead::request(FrameOp::Get, 0, 2 * id + 1), "", &asked, &[]);
            }
        });
        let mut answered = std::collections::BTreeSet::new();
        for _ in 0..2 * REQUESTS {
            let (header, body) = peer.frame();
            assert!(answered.insert(header.head.request_id));
            if header.head.op == FrameOp::Put {
                assert!(Statuses::decode(&body, 1).expect("statuses").iter().all(Status::is_ok));
            } else {
                let value = peer.receive_vec(header.payload_bytes as usize);
                assert_eq!(value, values[(header.head.request_id / 2 % 8) as usize]);
            }
        }
        assert_eq!(answered.len() as u64, 2 * REQUESTS);
    });
}

/// More answers than the server queues: it waits with reading, and everything comes in the end.
#[test]
fn a_client_that_reads_late_is_waited_for() {
    let server = server(|config| config.capacity_bytes = 64 << 20);
    let (mut peer, welcome) = Peer::with_frames(server.address());
    let value = content(5, 2 << 20);
    peer.put_batch(0, "", &[(put_item(&value), "k")], &value);
    let requests = u64::from(welcome.limits.requests_in_flight_max) * 2;
    for id in 0..requests {
        peer.send_batch(FrameHead::request(FrameOp::Get, 0, id), "", &[(ANY, "k")], &[]);
    }
    for _ in 0..requests {
        assert!(peer.got(1)[0].1 == value);
    }
}

#[test]
fn values_beyond_one_answer_are_asked_for_again() {
    let server = server(|config| {
        config.value_bytes_max = Some(1000);
        config.payload_bytes_max = 2500;
    });
    let (mut peer, welcome) = Peer::with_frames(server.address());
    assert_eq!(welcome.limits.payload_bytes_max, 2500);
    let value = content(1, 1000);
    let items = [(put_item(&value), "a"), (put_item(&value), "b")];
    assert_eq!(peer.put_batch(0, "", &items, &value.repeat(2)), [Status::OK; 2]);
    let got = peer.get_batch("", &[(ANY, "a"), (ANY, "b"), (ANY, "a"), (ANY, "missing")]);
    let statuses: Vec<_> = got.iter().map(|(outcome, bytes)| (outcome.status, bytes.len())).collect();
    let expected = [(Status::OK, 1000), (Status::OK, 1000), (Status::RETRY, 0), (Status::NOT_FOUND, 0)];
    assert_eq!(statuses, expected);
    assert_eq!(got[2].0.value_bytes, 1000);
}

#[test]
fn delete_ping_and_stats() {
    let server = server(|_| {});
    let (mut peer, _) = Peer::with_frames(server.address());
    peer.put_batch(0, "", &[(put_item(b"x"), "k")], b"x");
    peer.send_batch(FrameHead::request(FrameOp::Delete, 0, 1), "", &[(Named, "k"), (Named, "l")], &[]);
    let (_, body) = peer.frame();
    let statuses: Vec<_> = Statuses::decode(&body, 2).expect("statuses").iter().collect();
    assert_eq!(statuses, [Status::OK, Status::NOT_FOUND]);
    for op in [FrameOp::Ping, FrameOp::Stats] {
        let mut frame = Vec::new();
        write_frame(&mut frame, FrameHead::request(op, 0, 9), 0, |_| Ok(())).expect("empty");
        peer.send(&frame);
    }
    assert_eq!(peer.frame().0.head, FrameHead::request(FrameOp::Ping, 0, 9).answer(Status::OK));
    let (_, body) = peer.frame();
    let stats = Stats::decode(&body).expect("counters");
    assert_eq!(stats.get("puts_total"), Some(1));
    assert_eq!(stats.get("deletes_total"), Some(1));
    assert_eq!(stats.get("capacity_bytes"), Some(16 << 20));
}
