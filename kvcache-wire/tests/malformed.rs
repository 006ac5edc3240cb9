//! One test for each kind of malformation, so that each check is known to be there.

mod hex;

use hex::hex;
use kvcache_wire::extension::{
    Batch, ExistsReply, FrameHead, FrameHeader, FrameOp, GetItem, GetOutcome, GetReplies, Hello, LeasedRoom,
    LeasedRooms, LeasedValue, LeasedValues, Named, Numbers, PutItem, Stats, Statuses, Welcome, encode_stats,
    flags, write_frame,
};
use kvcache_wire::stock::{
    Caps, ConnectionInfo, Header, PayloadOp, RemoteMetaRequest, RemoteOp, TcpPayloadRequest, decode_keys,
    encode_keys, exists_from_reply,
};
use kvcache_wire::{DecodeError, Status};

fn keys_error(table: &[u8]) -> DecodeError {
    decode_keys(table, Caps { keys_max: 8, key_bytes_max: 8 }).expect_err("malformed")
}

/// A table of the keys `ab` and `cd`: root offset at 0, vtable at 6, table at 12, vector at 20, strings at 32 and 40.
fn table() -> Vec<u8> {
    let table = encode_keys(&["ab", "cd"]).expect("small");
    assert_eq!(hex(&table[..24]), "0c0000000000060008000400060000000400000002000000");
    table
}

fn with(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut table = table();
    table[at..at + bytes.len()].copy_from_slice(bytes);
    table
}

#[test]
fn a_header_with_another_magic() {
    let error = Header::decode(b"GET / HTT").expect_err("not ours");
    assert_eq!(error, DecodeError::BadMagic { what: "a request header", found: 0x2054_4547 });
    assert!(error.to_string().contains("another protocol"), "{error}");
}

#[test]
fn a_table_of_no_bytes() {
    assert!(matches!(keys_error(b""), DecodeError::Truncated { have: 0, .. }));
}

#[test]
fn a_table_cut_anywhere() {
    let table = table();
    for length in 0..table.len() - 1 {
        // The last byte is padding that no offset leads to.
        let cut = &table[..length];
        assert!(decode_keys(cut, Caps::default()).is_err(), "{length} bytes: {}", hex(cut));
    }
}

#[test]
fn a_root_outside_of_the_buffer() {
    for offset in [0_u32, 2, 13, 4000, u32::MAX, u32::MAX - 3] {
        assert!(
            matches!(keys_error(&with(0, &offset.to_le_bytes())), DecodeError::BadOffset { .. }),
            "{offset}"
        );
    }
}

#[test]
fn a_vtable_outside_of_the_buffer() {
    for distance in [13_i32, i32::MAX, i32::MIN, -1000, 5] {
        let error = keys_error(&with(12, &distance.to_le_bytes()));
        assert!(
            matches!(error, DecodeError::BadOffset { .. } | DecodeError::Truncated { .. }),
            "{distance}: {error}"
        );
    }
}

#[test]
fn a_vtable_with_a_bad_length() {
    for bytes in [0_u16, 2, 7, 999] {
        let error = keys_error(&with(6, &bytes.to_le_bytes()));
        assert!(
            matches!(error, DecodeError::BadValue { .. } | DecodeError::Truncated { .. }),
            "{bytes}: {error}"
        );
    }
}

#[test]
fn a_table_with_a_bad_length() {
    for bytes in [0_u16, 3, 999] {
        let error = keys_error(&with(8, &bytes.to_le_bytes()));
        assert!(
            matches!(error, DecodeError::BadValue { .. } | DecodeError::Truncated { .. }),
            "{bytes}: {error}"
        );
    }
}

#[test]
fn a_field_outside_of_its_table() {
    for offset in [1_u16, 2, 6, 8, 400] {
        let error = keys_error(&with(10, &offset.to_le_bytes()));
        assert!(matches!(error, DecodeError::BadOffset { .. }), "{offset}: {error}");
    }
}

#[test]
fn a_field_that_is_missing() {
    assert_eq!(keys_error(&with(10, &[0, 0])), DecodeError::MissingField { what: "keys" });
}

#[test]
fn a_vector_outside_of_the_buffer() {
    assert!(matches!(keys_error(&with(16, &4000_u32.to_le_bytes())), DecodeError::BadOffset { .. }));
}

#[test]
fn more_keys_than_allowed() {
    let error = keys_error(&with(20, &u32::MAX.to_le_bytes()));
    assert_eq!(error, DecodeError::AboveLimit { what: "keys", found: u32::MAX.into(), max: 8 });
}

#[test]
fn more_keys_than_there_are_bytes() {
    let error =
        decode_keys(&with(20, &60_000_u32.to_le_bytes()), Caps::default()).expect_err("a lie").to_string();
    assert_eq!(error, "keys needs 240000 bytes and 24 are there");
}

#[test]
fn a_string_outside_of_the_buffer() {
    assert!(matches!(keys_error(&with(24, &4000_u32.to_le_bytes())), DecodeError::BadOffset { .. }));
}

#[test]
fn a_string_longer_than_allowed() {
    let error = keys_error(&with(32, &9_u32.to_le_bytes()));
    assert_eq!(error, DecodeError::AboveLimit { what: "a key", found: 9, max: 8 });
}

#[test]
fn a_string_longer_than_the_buffer() {
    let error = decode_keys(&with(32, &1000_u32.to_le_bytes()), Caps::default()).expect_err("a lie");
    assert!(matches!(error, DecodeError::Truncated { wanted: 1000, .. }), "{error}");
}

#[test]
fn a_string_without_its_end() {
    assert_eq!(keys_error(&with(38, b"x")), DecodeError::Unterminated { at: 32 });
}

#[test]
fn a_payload_request_with_a_bad_operation_or_length() {
    let put =
        TcpPayloadRequest { key: b"tcpkey", op: PayloadOp::Put { value_bytes: 1 } }.encode().expect("small");
    let decode = |bytes: &[u8]| TcpPayloadRequest::decode(bytes, Caps::default()).expect_err("malformed");
    let mut table = put.clone();
    table[23] = b'Q';
    let code = u32::from(b'Q');
    assert_eq!(decode(&table), DecodeError::UnknownCode { what: "payload operation", code });
    let mut table = put;
    table[28..32].copy_from_slice(&(-5_i32).to_le_bytes());
    assert_eq!(decode(&table), DecodeError::BadValue { what: "value_length", found: -5 });
}

#[test]
fn an_rdma_request_with_fewer_addresses_than_keys() {
    let mut table = RemoteMetaRequest::encode(RemoteOp::Load, &["a", "b"], &[1, 2], 64, 1).expect("small");
    let count = table.windows(12).position(|window| window == [2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    table[count.expect("the vector")] = 1;
    let error = RemoteMetaRequest::decode(&table, Caps::default()).expect_err("a lie");
    let what = "the numbers of keys and addresses";
    assert_eq!(error, DecodeError::Mismatch { what, left: 2, right: 1 });
    assert!(RemoteMetaRequest::encode(RemoteOp::Load, &["a", "b"], &[1], 64, 1).is_err());
}

#[test]
fn connection_info_of_another_length_or_mtu() {
    assert!(matches!(ConnectionInfo::decode(&[1; 29]), Err(DecodeError::Truncated { .. })));
    assert!(matches!(ConnectionInfo::decode(&[1; 31]), Err(DecodeError::TrailingBytes { bytes: 1, .. })));
    assert!(matches!(ConnectionInfo::decode(&[0; 30]), Err(DecodeError::BadValue { found: 0, .. })));
}

#[test]
fn an_answer_to_exists_that_is_no_answer() {
    assert!(exists_from_reply(2).is_err());
}

#[test]
fn a_value_too_long_for_the_stock_protocol() {
    let put = TcpPayloadRequest { key: b"k", op: PayloadOp::Put { value_bytes: 1 << 31 } };
    assert_eq!(
        put.encode().expect_err("too long").to_string(),
        "the value's length in bytes is 2147483648, and the protocol carries 2147483647 at most"
    );
}

#[test]
fn a_hello_that_is_none() {
    let whole = Hello::new(b"secret").encode().expect("short");
    let body = &whole[Header::BYTES..];
    assert!(Hello::decode(body).is_ok());
    let mut bad = body.to_vec();
    bad[0] ^= 1;
    assert!(matches!(Hello::decode(&bad), Err(DecodeError::BadMagic { .. })));
    let mut bad = body.to_vec();
    bad[4] = 9;
    assert!(matches!(Hello::decode(&bad), Err(DecodeError::Mismatch { left: 9, .. })));
    let mut bad = body.to_vec();
    bad[16..18].copy_from_slice(&60_000_u16.to_le_bytes());
    assert!(matches!(Hello::decode(&bad), Err(DecodeError::AboveLimit { found: 60_000, .. })));
    assert!(matches!(Hello::decode(&body[..body.len() - 1]), Err(DecodeError::Truncated { .. })));
    assert!(matches!(Hello::decode(&[body, b"x"].concat()), Err(DecodeError::TrailingBytes { .. })));
    assert!(Hello::new(&[b'x'; 5000]).encode().is_err());
}

#[test]
fn a_welcome_with_another_checksum_or_a_limit_of_zero() {
    let mut body = welcome().encode().split_off(8);
    assert_eq!(Welcome::decode(&body), Ok(welcome()));
    body[6] = 2;
    assert!(matches!(Welcome::decode(&body), Err(DecodeError::UnknownCode { code: 2, .. })));
    body[6] = 1;
    body[24..28].fill(0);
    assert!(matches!(Welcome::decode(&body), Err(DecodeError::BadValue { found: 0, .. })));
    assert!(matches!(Welcome::decode(&body[..63]), Err(DecodeError::Truncated { .. })));
}

fn welcome() -> Welcome {
    use kvcache_wire::extension::{Features, Limits, VERSION};
    let limits = Limits {
        keys_max: 1,
        key_bytes_max: 2,
        value_bytes_max: 3,
        payload_bytes_max: 4,
        bytes_in_flight_max: 5,
        requests_in_flight_max: 6,
        body_bytes_max: 7,
    };
    Welcome { version: VERSION, features: Features::VERIFY_ON_PUT, server_id: 8, limits }
}

fn ping() -> Vec<u8> {
    let mut frame = Vec::new();
    write_frame(&mut frame, FrameHead::request(FrameOp::Ping, 0, 7), 0, |_| Ok(())).expect("empty");
    frame
}

fn frame_error(change: impl FnOnce(&mut Vec<u8>)) -> DecodeError {
    let mut frame = ping();
    change(&mut frame);
    let header = frame.first_chunk().expect("a header");
    FrameHeader::decode(header)
        .and_then(|header| header.verify(&frame[FrameHeader::BYTES..]))
        .expect_err("malformed")
}

#[test]
fn a_frame_that_is_none() {
    assert!(matches!(frame_error(|frame| frame[0] = 0), DecodeError::BadMagic { .. }));
    assert!(matches!(frame_error(|frame| frame[4] = 11), DecodeError::UnknownCode { code: 11, .. }));
    assert!(matches!(frame_error(|frame| frame[5] = flags::VERIFY), DecodeError::UnknownCode { .. }));
    assert!(matches!(frame_error(|frame| frame[6] = 1), DecodeError::BadValue { .. }));
    assert!(matches!(frame_error(|frame| frame.push(0)), DecodeError::Mismatch { left: 1, right: 0, .. }));
}

/// Every bit of a frame is covered: what is not refused by a field's own check is refused by the frame's.
#[test]
fn a_frame_with_any_bit_turned_over() {
    let mut frame = Vec::new();
    let head = FrameHead::request(FrameOp::Delete, 0, 1 << 40);
    let keys: [&[u8]; 2] = [b"1", b"22"];
    write_frame(&mut frame, head, 0, |out| Batch::encode(out, b"pre", keys.iter().map(|key| (Named, *key))))
        .expect("small");
    for bit in 0..frame.len() * 8 {
        let mut damaged = frame.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        let (header, body) = damaged.split_first_chunk().expect("a header");
        assert!(FrameHeader::decode(header).and_then(|header| header.verify(body)).is_err(), "bit {bit}");
    }
}

#[test]
fn a_batch_whose_lengths_lie() {
    let mut body = Vec::new();
    let items = [(GetItem { value_bytes_max: 5 }, b"1".as_slice()), (GetItem { value_bytes_max: 6 }, b"22")];
    Batch::encode(&mut body, b"pre", items.into_iter()).expect("small");
    assert_eq!(Batch::<GetItem>::decode(&body, 2).map(|batch| batch.len()), Ok(2));
    assert!(matches!(
        Batch::<GetItem>::decode(&body, 1),
        Err(DecodeError::AboveLimit { found: 2, max: 1, .. })
    ));
    for length in 0..body.len() {
        assert!(matches!(Batch::<GetItem>::decode(&body[..length], 2), Err(DecodeError::Truncated { .. })));
    }
    body.push(0);
    assert!(matches!(Batch::<GetItem>::decode(&body, 2), Err(DecodeError::TrailingBytes { bytes: 1, .. })));
    body.pop();
    body[0] = 3;
    assert!(matches!(Batch::<GetItem>::decode(&body, 3), Err(DecodeError::Truncated { .. })));
    body[0] = 2;
    body[6] = 1;
    assert!(matches!(Batch::<GetItem>::decode(&body, 2), Err(DecodeError::BadValue { .. })));
}

#[test]
fn a_put_with_a_flag_of_a_later_version_or_values_without_end() {
    let put = |value_bytes, checksum| (PutItem { value_bytes, checksum }, b"k".as_slice());
    let mut body = Vec::new();
    Batch::encode(&mut body, b"", [put(u64::MAX, None), put(1, Some(3))].into_iter()).expect("small");
    let batch = Batch::<PutItem>::decode(&body, 2).expect("its parts are fine");
    assert_eq!(batch.payload_bytes(), None);
    body[8 + 16] = 2;
    assert!(matches!(Batch::<PutItem>::decode(&body, 2), Err(DecodeError::UnknownCode { code: 2, .. })));
    body[8 + 16] = 0;
    body[8 + 8] = 1;
    assert!(matches!(Batch::<PutItem>::decode(&body, 2), Err(DecodeError::BadValue { found: 1, .. })));
}

#[test]
fn answers_for_another_number_of_keys() {
    let mut bits = Vec::new();
    ExistsReply::encode_bits(&mut bits, [true, false, true].into_iter());
    assert!(
        ExistsReply::decode(&bits, false, 3).is_ok_and(|reply| reply.is_present(2) && !reply.is_present(1))
    );
    assert!(matches!(ExistsReply::decode(&bits, false, 4), Err(DecodeError::Mismatch { .. })));
    bits[4] |= 8;
    assert!(matches!(ExistsReply::decode(&bits, false, 3), Err(DecodeError::BadValue { .. })));
    let mut leading = Vec::new();
    ExistsReply::encode_leading(&mut leading, 3);
    assert!(matches!(ExistsReply::decode(&leading, true, 2), Err(DecodeError::AboveLimit { .. })));
    let mut statuses = Vec::new();
    Statuses::encode(&mut statuses, &[Status::OK, Status::NOT_FOUND]);
    assert!(matches!(Statuses::decode(&statuses, 1), Err(DecodeError::Mismatch { .. })));
    assert!(matches!(Statuses::decode(&statuses[..7], 2), Err(DecodeError::Truncated { .. })));
}

#[test]
fn leases_of_another_number_or_cut_short() {
    let mut values = Vec::new();
    LeasedValues::encode(&mut values, 1, &[LeasedValue::without_value(Status::NOT_FOUND); 2]);
    assert!(matches!(LeasedValues::decode(&values, 1), Err(DecodeError::Mismatch { .. })));
    assert!(matches!(LeasedValues::decode(&values[..20], 2), Err(DecodeError::Truncated { .. })));
    values[14] = 2;
    assert!(matches!(LeasedValues::decode(&values, 2), Err(DecodeError::UnknownCode { code: 2, .. })));
    let mut rooms = Vec::new();
    LeasedRooms::encode(&mut rooms, &[LeasedRoom::refused(Status::OUT_OF_MEMORY)]);
    assert!(matches!(LeasedRooms::decode(&rooms, 2), Err(DecodeError::Mismatch { .. })));
    assert!(matches!(LeasedRooms::decode(&rooms[..9], 1), Err(DecodeError::Truncated { .. })));
    let mut numbers = Vec::new();
    Numbers::encode(&mut numbers, &[1, 2, 3]).expect("few");
    assert!(matches!(Numbers::decode(&numbers, 2), Err(DecodeError::AboveLimit { .. })));
    assert!(matches!(Numbers::decode(&numbers[..9], 3), Err(DecodeError::Truncated { .. })));
    numbers.push(0);
    assert!(matches!(Numbers::decode(&numbers, 3), Err(DecodeError::TrailingBytes { .. })));
}

#[test]
fn a_get_whose_values_are_not_its_payload() {
    let there = GetOutcome { status: Status::OK, value_bytes: 10, checksum: Some(1) };
    let too_large = GetOutcome { status: Status::TOO_LARGE, value_bytes: 99, checksum: None };
    let mut body = Vec::new();
    GetReplies::encode(&mut body, &[there, too_large, GetOutcome::without_value(Status::NOT_FOUND)]);
    let replies = GetReplies::decode(&body, 3, 10).expect("good");
    assert_eq!(replies.iter().nth(1), Some(too_large));
    assert!(matches!(
        GetReplies::decode(&body, 3, 11),
        Err(DecodeError::Mismatch { left: 10, right: 11, .. })
    ));
    assert!(matches!(GetReplies::decode(&body, 2, 10), Err(DecodeError::Mismatch { .. })));
}

#[test]
fn counters_whose_names_are_no_text() {
    let mut body = Vec::new();
    encode_stats(&mut body, &[("values", 3), ("bytes", 4)]).expect("short");
    assert_eq!(Stats::decode(&body).map(|stats| stats.get("bytes")), Ok(Some(4)));
    body[13] = 0xff;
    assert!(matches!(Stats::decode(&body), Err(DecodeError::BadValue { .. })));
    body[13] = b'v';
    body[0] = 200;
    assert!(matches!(Stats::decode(&body), Err(DecodeError::Truncated { .. })));
}
