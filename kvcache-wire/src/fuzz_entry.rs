//! What the fuzz targets in `fuzz/` run, and a short seeded run of the same in the ordinary tests.
//!
//! Each function gives bytes to a decoder. The decoder must not panic, and what it accepts must survive being encoded
//! and decoded again. Each tells whether the decoder has accepted the bytes.

use crate::Status;
use crate::extension::{
    Batch, CommitItem, ExistsReply, FrameHeader, GetItem, GetReplies, Hello, ItemFields, LeasedRooms,
    LeasedValues, Named, Numbers, PutItem, Stats, Statuses, Welcome, encode_stats, write_frame,
};
use crate::stock::{
    Caps, ConnectionInfo, GetReply, Header, RemoteMetaRequest, TcpPayloadRequest, decode_keys, encode_keys,
};

/// A decoder under test.
pub type Entry = fn(&[u8]) -> bool;

/// Every entry function by the name of its fuzz target.
pub const ENTRIES: [(&str, Entry); 20] = [
    ("stock_header", stock_header),
    ("stock_keys", stock_keys),
    ("stock_tcp_payload", stock_tcp_payload),
    ("stock_remote_meta", stock_remote_meta),
    ("stock_connection_info", stock_connection_info),
    ("stock_get_reply", stock_get_reply),
    ("hello", hello),
    ("welcome", welcome),
    ("frame", frame),
    ("batch_named", batch::<Named>),
    ("batch_get", batch::<GetItem>),
    ("batch_put", batch::<PutItem>),
    ("batch_commit", batch::<CommitItem>),
    ("exists_reply", exists_reply),
    ("get_replies", get_replies),
    ("statuses", statuses),
    ("stats", stats),
    ("leased_values", leased_values),
    ("leased_rooms", leased_rooms),
    ("numbers", numbers),
];

/// [`Header::decode`].
pub fn stock_header(bytes: &[u8]) -> bool {
    let Some((bytes, _)) = bytes.split_first_chunk() else { return false };
    let Ok(header) = Header::decode(bytes) else { return false };
    assert_eq!(header.encode(), *bytes);
    true
}

/// [`decode_keys`].
pub fn stock_keys(bytes: &[u8]) -> bool {
    let Ok(keys) = decode_keys(bytes, CAPS) else { return false };
    let listed: Vec<&[u8]> = keys.iter().collect();
    let again = encode_keys(&listed);
    assert!(again.is_ok_and(|again| decode_keys(&again, CAPS) == Ok(keys)));
    true
}

/// [`TcpPayloadRequest::decode`].
pub fn stock_tcp_payload(bytes: &[u8]) -> bool {
    let Ok(request) = TcpPayloadRequest::decode(bytes, CAPS) else { return false };
    assert!(request.encode().is_ok_and(|again| TcpPayloadRequest::decode(&again, CAPS) == Ok(request)));
    true
}

/// [`RemoteMetaRequest::decode`].
pub fn stock_remote_meta(bytes: &[u8]) -> bool {
    let Ok(request) = RemoteMetaRequest::decode(bytes, CAPS) else { return false };
    let keys: Vec<&[u8]> = request.keys.iter().collect();
    let addresses: Vec<u64> = request.addresses.iter().collect();
    let again =
        RemoteMetaRequest::encode(request.op, &keys, &addresses, request.block_bytes, request.remote_key);
    assert!(again.is_ok_and(|again| RemoteMetaRequest::decode(&again, CAPS) == Ok(request)));
    true
}

/// [`ConnectionInfo::decode`].
pub fn stock_connection_info(bytes: &[u8]) -> bool {
    let Ok(info) = ConnectionInfo::decode(bytes) else { return false };
    assert_eq!(info.encode(), bytes);
    true
}

/// [`GetReply::from_length`].
pub fn stock_get_reply(bytes: &[u8]) -> bool {
    let Some((length, _)) = bytes.split_first_chunk() else { return false };
    let reply = GetReply::from_length(i32::from_le_bytes(*length));
    let [_, _, _, _, length @ ..] = reply.encode();
    assert_eq!(GetReply::from_length(i32::from_le_bytes(length)), reply);
    true
}

/// [`Hello::decode`].
pub fn hello(bytes: &[u8]) -> bool {
    let Ok(hello) = Hello::decode(bytes) else { return false };
    assert!(hello.encode().is_ok_and(|again| again.get(Header::BYTES..) == Some(bytes)));
    true
}

/// [`Welcome::decode`].
pub fn welcome(bytes: &[u8]) -> bool {
    let Ok(welcome) = Welcome::decode(bytes) else { return false };
    assert_eq!(welcome.encode().get(8..), Some(bytes));
    true
}

/// [`FrameHeader::decode`] and [`FrameHeader::verify`]: the body is the rest of the input.
pub fn frame(bytes: &[u8]) -> bool {
    let Some((header_bytes, body)) = bytes.split_first_chunk() else { return false };
    let Ok(header) = FrameHeader::decode(header_bytes) else { return false };
    assert_eq!(header.encode(), *header_bytes);
    if header.verify(body).is_err() {
        return false;
    }
    let mut again = Vec::new();
    let written = write_frame(&mut again, header.head, header.payload_bytes, |out| {
        out.extend_from_slice(body);
        Ok(())
    });
    assert!(written.is_ok() && again == bytes);
    true
}

/// [`Batch::decode`].
pub fn batch<F: ItemFields>(bytes: &[u8]) -> bool {
    let Ok(batch) = Batch::<F>::decode(bytes, CAPS.keys_max) else { return false };
    let items: Vec<_> = batch.items().collect();
    assert_eq!(items.len(), batch.len());
    let mut again = Vec::new();
    let written = Batch::encode(&mut again, batch.prefix(), items.into_iter());
    assert!(written.is_ok() && again == bytes);
    true
}

/// [`ExistsReply::decode`]: the first byte chooses what was asked.
pub fn exists_reply(bytes: &[u8]) -> bool {
    let Some((&choice, body)) = bytes.split_first() else { return false };
    let mut again = Vec::new();
    let keys = u32::from(choice >> 1);
    match ExistsReply::decode(body, choice & 1 == 1, keys) {
        Ok(ExistsReply::Leading(leading)) => ExistsReply::encode_leading(&mut again, leading),
        Ok(reply) => {
            ExistsReply::encode_bits(&mut again, (0..keys as usize).map(|index| reply.is_present(index)));
        }
        Err(_) => return false,
    }
    assert_eq!(again, body);
    true
}

/// [`GetReplies::decode`]: the first byte is the number of keys, the next one the payload.
pub fn get_replies(bytes: &[u8]) -> bool {
    let [keys, payload_bytes, body @ ..] = bytes else { return false };
    let Ok(replies) = GetReplies::decode(body, u32::from(*keys), u64::from(*payload_bytes)) else {
        return false;
    };
    let mut again = Vec::new();
    GetReplies::encode(&mut again, &replies.iter().collect::<Vec<_>>());
    assert_eq!(again, body);
    true
}

/// [`Statuses::decode`]: the first byte is the number of keys.
pub fn statuses(bytes: &[u8]) -> bool {
    let [keys, body @ ..] = bytes else { return false };
    let Ok(statuses) = Statuses::decode(body, u32::from(*keys)) else { return false };
    let mut again = Vec::new();
    Statuses::encode(&mut again, &statuses.iter().collect::<Vec<Status>>());
    assert_eq!(again, body);
    true
}

/// [`Stats::decode`].
pub fn stats(bytes: &[u8]) -> bool {
    let Ok(stats) = Stats::decode(bytes) else { return false };
    let mut again = Vec::new();
    let written = encode_stats(&mut again, &stats.iter().collect::<Vec<_>>());
    assert!(written.is_ok() && again == bytes);
    true
}

/// [`LeasedValues::decode`]: the first byte is the number of keys.
pub fn leased_values(bytes: &[u8]) -> bool {
    let [keys, body @ ..] = bytes else { return false };
    let Ok(values) = LeasedValues::decode(body, u32::from(*keys)) else { return false };
    let mut again = Vec::new();
    LeasedValues::encode(&mut again, values.lease, &values.iter().collect::<Vec<_>>());
    assert_eq!(again, body);
    true
}

/// [`LeasedRooms::decode`]: the first byte is the number of values.
pub fn leased_rooms(bytes: &[u8]) -> bool {
    let [values, body @ ..] = bytes else { return false };
    let Ok(rooms) = LeasedRooms::decode(body, u32::from(*values)) else { return false };
    let mut again = Vec::new();
    LeasedRooms::encode(&mut again, &rooms.iter().collect::<Vec<_>>());
    assert_eq!(again, body);
    true
}

/// [`Numbers::decode`].
pub fn numbers(bytes: &[u8]) -> bool {
    let Ok(numbers) = Numbers::decode(bytes, CAPS.keys_max) else { return false };
    let mut again = Vec::new();
    let written = Numbers::encode(&mut again, &numbers.iter().collect::<Vec<_>>());
    assert!(written.is_ok() && again == bytes);
    true
}

const CAPS: Caps = Caps { keys_max: 4096, key_bytes_max: 4096 };
