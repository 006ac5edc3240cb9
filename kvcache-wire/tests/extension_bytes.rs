//! The bytes of the extension as `docs/wire.md` gives them: a change here is a new version.

mod hex;

use hex::{hex, unhex};
use kvcache_wire::Status;
use kvcache_wire::extension::{
    Batch, CommitItem, ExistsReply, Features, FrameHead, FrameHeader, FrameOp, GetItem, GetOutcome,
    GetReplies, Hello, LeasedRoom, LeasedRooms, LeasedValue, LeasedValues, Limits, Named, Numbers, PutItem,
    Stats, Statuses, Welcome, encode_stats, flags, write_frame,
};
use kvcache_wire::stock::Header;

#[test]
fn hello_and_welcome() {
    let hello = Hello::new(b"secret");
    let bytes = "efbeadde481e0000004b56433f0100010001000000000000000600000000000000736563726574";
    assert_eq!(hex(&hello.encode().expect("short")), bytes);
    assert_eq!(Hello::decode(&unhex(bytes)[Header::BYTES..]), Ok(hello));

    let limits = Limits {
        keys_max: 1,
        key_bytes_max: 2,
        value_bytes_max: 3,
        payload_bytes_max: 4,
        bytes_in_flight_max: 5,
        requests_in_flight_max: 6,
        body_bytes_max: 7,
    };
    let welcome = Welcome { version: 1, features: Features::VERIFY_ON_PUT, server_id: 9, limits };
    let bytes = "c8000000400000004b56432101000100010000000000000009000000000000000100000002000000030000000000000004000000\
                 0000000005000000000000000600000007000000";
    assert_eq!(hex(&welcome.encode()), bytes);
    assert_eq!(Welcome::decode(&unhex(bytes)[8..]), Ok(welcome));
}

#[test]
fn frames() {
    let mut frame = Vec::new();
    let suffixes: [&[u8]; 2] = [b"1", b"22"];
    let head = FrameHead::request(FrameOp::Exists, flags::LEADING_ONLY, 0x0102);
    let items = suffixes.iter().map(|suffix| (Named, *suffix));
    write_frame(&mut frame, head, 0, |out| Batch::encode(out, b"pre", items)).expect("small");
    let body = "020000000300000070726501003102003232";
    // Computed with another implementation of XXH3.
    let check = "d18db9e4";
    assert_eq!(hex(&frame), format!("4b5643660201c800020100000000000012000000{check}0000000000000000{body}"));
    let (header, rest) = frame.split_first_chunk().expect("a header");
    let header = FrameHeader::decode(header).expect("good");
    assert_eq!((header.head, header.verify(rest)), (head, Ok(())));
    let answer = head.answer(Status::NOT_FOUND);
    assert_eq!(
        hex(&FrameHeader { head: answer, body_bytes: 0, check: 0, payload_bytes: 5 }.encode()[..8]),
        "4b56436682019401"
    );
}

#[test]
fn bodies() {
    let body = |write: &dyn Fn(&mut Vec<u8>)| {
        let mut out = Vec::new();
        write(&mut out);
        hex(&out)
    };
    let get = (GetItem { value_bytes_max: u64::MAX }, b"k".as_slice());
    let put = (PutItem { value_bytes: 4096, checksum: Some(0x0a0b) }, b"k".as_slice());
    let outcomes = [
        GetOutcome { status: Status::OK, value_bytes: 4096, checksum: Some(0x0a0b) },
        GetOutcome::without_value(Status::NOT_FOUND),
    ];
    assert_eq!(
        body(&|out| Batch::encode(out, b"", [get].into_iter()).expect("small")),
        "0100000000000000ffffffffffffffff01006b"
    );
    assert_eq!(
        body(&|out| Batch::encode(out, b"", [put].into_iter()).expect("small")),
        "010000000000000000100000000000000b0a000000000000010001006b"
    );
    assert_eq!(
        body(&|out| GetReplies::encode(out, &outcomes)),
        "02000000c800010000100000000000000b0a0000000000009401000000000000000000000000000000000000"
    );
    assert_eq!(body(&|out| ExistsReply::encode_leading(out, 3)), "03000000");
    assert_eq!(
        body(&|out| ExistsReply::encode_bits(out, (0..9).map(|index| index % 4 == 0))),
        "090000001101"
    );
    assert_eq!(body(&|out| Statuses::encode(out, &[Status::OK, Status::OUT_OF_MEMORY])), "02000000c800fb01");
    let stats = "0100000007000000000000000676616c756573";
    assert_eq!(body(&|out| encode_stats(out, &[("values", 7)]).expect("short")), stats);
    assert_eq!(Stats::decode(&unhex(stats)).map(|stats| stats.get("values")), Ok(Some(7)));
}

#[test]
fn leases() {
    let body = |write: &dyn Fn(&mut Vec<u8>)| {
        let mut out = Vec::new();
        write(&mut out);
        hex(&out)
    };
    let value =
        LeasedValue { status: Status::OK, value_bytes: 4096, checksum: Some(0x0a0b), offset_bytes: 0x3000 };
    let values = [value, LeasedValue::without_value(Status::NOT_FOUND)];
    let bytes = "070000000000000002000000c800010000100000000000000b0a0000000000000030000000000000\
                 94010000000000000000000000000000000000000000000000000000";
    assert_eq!(body(&|out| LeasedValues::encode(out, 7, &values)), bytes);
    let bytes = unhex(bytes);
    let read = LeasedValues::decode(&bytes, 2).expect("good");
    assert_eq!((read.lease, read.iter().collect::<Vec<_>>()), (7, values.to_vec()));

    let bytes = "0200000000200000000000000100000000000000";
    assert_eq!(body(&|out| Numbers::encode(out, &[0x2000, 1]).expect("few")), bytes);
    assert_eq!(Numbers::decode(&unhex(bytes), 2).map(|read| read.iter().collect()), Ok(vec![0x2000, 1]));

    let rooms = [
        LeasedRoom { status: Status::OK, lease: 9, offset_bytes: 0x5000 },
        LeasedRoom::refused(Status::OUT_OF_MEMORY),
    ];
    let bytes = "02000000c80009000000000000000050000000000000fb0100000000000000000000000000000000";
    assert_eq!(body(&|out| LeasedRooms::encode(out, &rooms)), bytes);
    assert_eq!(LeasedRooms::decode(&unhex(bytes), 2).map(|read| read.iter().collect()), Ok(rooms.to_vec()));

    let commit = (CommitItem { lease: 9, checksum: 0x0a0b }, b"k".as_slice());
    assert_eq!(
        body(&|out| Batch::encode(out, b"", [commit].into_iter()).expect("small")),
        "010000000000000009000000000000000b0a00000000000001006b"
    );
    let release = FrameHead::request(FrameOp::Release, 0, 1);
    let mut frame = Vec::new();
    write_frame(&mut frame, release, 0, |out| Numbers::encode(out, &[9])).expect("small");
    assert_eq!(hex(&frame[..16]), "4b5643660a00c8000100000000000000");
}
