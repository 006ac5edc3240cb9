//! Bytes captured between the stock client 0.2.35 and a server, and, for RDMA requests, written by the C++ library that
//! the stock client is built with. Each is decoded and encoded again to the same bytes.

mod hex;

use hex::{hex, unhex};
use kvcache_wire::Status;
use kvcache_wire::stock::{
    Caps, ConnectionInfo, GetReply, Header, Op, PayloadOp, RemoteMetaRequest, RemoteOp, TcpPayloadRequest,
    decode_keys, encode_keys, exists_from_reply, reply, status_from_reply,
};

fn split(request: &str) -> (Header, Vec<u8>) {
    let bytes = unhex(request);
    let (header, body) = bytes.split_first_chunk().expect("a header");
    let header = Header::decode(header).expect("a good header");
    assert_eq!(header.body_bytes as usize, body.len());
    (header, body.to_vec())
}

fn join(op: Op, body: &[u8]) -> String {
    hex(&[&Header { op, body_bytes: body.len() as u32 }.encode(), body].concat())
}

#[test]
fn exists() {
    for (request, key) in [("efbeadde43070000006b65792d303031", "key-001"), ("efbeadde43020000007a7a", "zz")]
    {
        let (header, body) = split(request);
        assert_eq!((header.op, body.as_slice()), (Op::Exists, key.as_bytes()));
        assert_eq!(join(Op::Exists, key.as_bytes()), request);
    }
    for (answer, present) in [("c800000000000000", true), ("c800000001000000", false)] {
        let bytes: [u8; 8] = unhex(answer).try_into().expect("eight bytes");
        assert_eq!(status_from_reply([bytes[0], bytes[1], bytes[2], bytes[3]]), Status::OK);
        let number = i32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
        assert_eq!(exists_from_reply(number), Ok(present));
        assert_eq!(hex(&reply(Status::OK, i32::from(!present))), answer);
    }
}

#[test]
fn match_and_delete() {
    let cases: [(Op, &[&str], &str); 6] = [
        (
            Op::Match,
            &["key-001", "key-002", "key-003"],
            "efbeadde4d480000000c0000000000060008000400060000000400000003000000240000001400000004000000070000006b65792d\
             30303300070000006b65792d30303200070000006b65792d30303100",
        ),
        (
            Op::Match,
            &["key-001", "key-002", "zz"],
            "efbeadde4d440000000c0000000000060008000400060000000400000003000000200000001000000004000000020000007a7a0000\
             070000006b65792d30303200070000006b65792d30303100",
        ),
        (
            Op::Match,
            &["zz"],
            "efbeadde4d240000000c000000000006000800040006000000040000000100000004000000020000007a7a0000",
        ),
        (
            Op::Delete,
            &["key-002", "zz"],
            "efbeadde58340000000c00000000000600080004000600000004000000020000001000000004000000020000007a7a00000700\
             00006b65792d30303200",
        ),
        (
            Op::Delete,
            &["key-002", "key-009"],
            "efbeadde58380000000c00000000000600080004000600000004000000020000001400000004000000070000006b65792d303039\
             00070000006b65792d30303200",
        ),
        (Op::Match, &[], "efbeadde4d180000000c0000000000060008000400060000000400000000000000"),
    ];
    for (op, keys, request) in cases {
        let (header, body) = split(request);
        assert_eq!(header.op, op);
        let decoded = decode_keys(&body, Caps::default()).expect("a good table");
        assert!(decoded.iter().eq(keys.iter().map(|key| key.as_bytes())), "{decoded:?}");
        assert_eq!(join(op, &encode_keys(keys).expect("small")), request);
    }
}

#[test]
fn match_pads_keys_of_every_length() {
    let keys = ["", "abc", "abcd", "abcdefgh"];
    let table = "0c0000000000060008000400060000000400000004000000340000002800000018000000040000000800000061626364656667\
                 680000000004000000616263640000000003000000616263000000000000000000";
    assert_eq!(hex(&encode_keys(&keys).expect("small")), table);
    let table = unhex(table);
    let decoded = decode_keys(&table, Caps::default()).expect("a good table");
    assert_eq!(decoded.get(2), Some(b"abcd".as_slice()));
    assert_eq!(decoded.get(4), None);
    assert_eq!(decoded.len(), 4);
}

#[test]
fn tcp_put_and_get() {
    let cases = [
        (
            TcpPayloadRequest { key: b"tcpkey", op: PayloadOp::Put { value_bytes: 1000 } },
            "efbeadde4c2c0000001000000000000a00100008000c0007000a0000000000005008000000e8030000060000007463706b6579\
             0000",
        ),
        (
            TcpPayloadRequest { key: b"tcpkey", op: PayloadOp::Get },
            "efbeadde4c280000001000000000000a000c000800000007000a0000000000004704000000060000007463706b65790000",
        ),
        (
            TcpPayloadRequest { key: b"missing", op: PayloadOp::Get },
            "efbeadde4c280000001000000000000a000c000800000007000a0000000000004704000000070000006d697373696e6700",
        ),
        (
            TcpPayloadRequest { key: b"abc", op: PayloadOp::Put { value_bytes: 2 << 20 } },
            "efbeadde4c280000001000000000000a00100008000c0007000a0000000000005008000000000020000300000061626300",
        ),
    ];
    for (request, bytes) in cases {
        let (header, body) = split(bytes);
        assert_eq!(header.op, Op::Payload);
        assert_eq!(TcpPayloadRequest::decode(&body, Caps::default()), Ok(request));
        assert_eq!(join(Op::Payload, &request.encode().expect("small")), bytes);
    }
}

#[test]
fn answers_to_a_get() {
    assert_eq!(hex(&GetReply::Value { bytes: 1000 }.encode()), "c8000000e8030000");
    assert_eq!(GetReply::from_length(1000), GetReply::Value { bytes: 1000 });
    assert_eq!(hex(&GetReply::Missing.encode()), "c8000000ffffffff");
    assert_eq!(GetReply::from_length(-1), GetReply::Missing);
    assert_eq!(GetReply::from_length(0), GetReply::Missing);
    assert_eq!(
        status_from_reply([0x94, 1, 0, 0]),
        Status::NOT_FOUND,
        "a stock server sends these four bytes alone"
    );
}

/// Operation, keys, addresses, bytes of a block, remote key, and the message.
type RemoteCase<'a> = (RemoteOp, &'a [&'a str], &'a [u64], u32, u32, &'a str);

#[test]
fn rdma_requests() {
    let cases: [RemoteCase<'_>; 5] = [
        (
            RemoteOp::Store,
            &["key-001"],
            &[0x7f00_1122_3000],
            65536,
            0x1234,
            "1400000000000e00180008000c001000140007000e000000000000572000000000000100341200000400000001000000003022\
             11007f0000000000000100000004000000070000006b65792d30303100",
        ),
        (
            RemoteOp::Load,
            &["key-001", "zz"],
            &[0x7f00_1122_3000, 0x7f00_1122_4000],
            4096,
            0xdead_beef,
            "1400000000000e00180008000c001000140007000e000000000000412400000000100000efbeadde04000000020000000030221\
             1007f000000402211007f0000020000001000000004000000020000007a7a0000070000006b65792d30303100",
        ),
        (
            RemoteOp::Load,
            &["a", "bb", "ccc"],
            &[1, 2, u64::MAX],
            2 << 20,
            7,
            "1400000000000e00180008000c001000140007000e000000000000412c00000000002000070000000400000003000000010000\
             00000000000200000000000000ffffffffffffffff030000001c00000010000000040000000300000063636300020000006262\
             00000100000061000000",
        ),
        (
            RemoteOp::Store,
            &["abcd", "key-00000001"],
            &[4096, 8192],
            65536,
            0,
            "180000000000000000000e00140008000c000000100007000e000000000000572400000000000100040000000200000000100000\
             00000000002000000000000000000000020000001c000000040000000c0000006b65792d303030303030303100000000040000\
             006162636400000000",
        ),
        (
            RemoteOp::Store,
            &[],
            &[],
            0,
            0,
            "1400000000000e0010000800000000000c0007000e000000000000570c000000040000000000000000000000",
        ),
    ];
    for (op, keys, addresses, block_bytes, remote_key, message) in cases {
        let encoded = RemoteMetaRequest::encode(op, keys, addresses, block_bytes, remote_key).expect("small");
        assert_eq!(hex(&encoded), message);
        let request = RemoteMetaRequest::decode(&encoded, Caps::default()).expect("a good table");
        assert_eq!((request.op, request.block_bytes, request.remote_key), (op, block_bytes, remote_key));
        assert!(request.keys.iter().eq(keys.iter().map(|key| key.as_bytes())));
        assert!(request.addresses.iter().eq(addresses.iter().copied()));
    }
}

#[test]
fn rdma_exchange() {
    let (header, body) =
        split("efbeadde451e000000110000000000000000000000000000000000ffff0a00020f000003000000");
    assert_eq!(header.op, Op::Exchange);
    let info = ConnectionInfo::decode(&body).expect("good info");
    assert_eq!((info.queue_pair, info.packet_sequence, info.lid), (0x11, 0, 0));
    assert_eq!(info.gid, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 2, 15]);
    assert_eq!(info.mtu_bytes(), 1024);
    assert_eq!(info.encode(), body.as_slice());
}
