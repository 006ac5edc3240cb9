//! InfiniStore's own protocol, 0.2.32 and later: what stock clients and stock servers speak.
//!
//! A TCP request is a 9-byte [`Header`] and a body; over RDMA a [`RemoteMetaRequest`] travels alone. Integers are
//! little-endian. There is no request id, so one request at a time is in flight on a connection. Bodies with more than
//! a key are flatbuffers tables: they are written byte for byte as the stock client's library writes them, and every
//! offset of what is read is verified.

mod connection_info;
mod flatbuffer_builder;
mod flatbuffer_table;
mod header;
mod replies;
mod requests;

/// Appended to a value's name, it names the value's checksum, 8 bytes, little-endian: clients of ours over RDMA store it
/// beside the value, since the protocol has no place for it.
pub const CHECKSUM_SUFFIX: &[u8] = b"#xxh3";

pub use connection_info::ConnectionInfo;
pub use flatbuffer_table::Keys;
pub use header::{Header, Op};
pub use replies::{GetReply, REPLY_BYTES, STATUS_BYTES, exists_from_reply, reply, status_from_reply};
pub use requests::{
    Addresses, Caps, PayloadOp, RemoteMetaRequest, RemoteOp, TcpPayloadRequest, decode_keys, encode_keys,
};
