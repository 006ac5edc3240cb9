//! The wire between cache clients and cache servers, as pure functions over bytes: no sockets, no clocks, no threads.
//!
//! Two protocols share a TCP connection. [`stock`] is InfiniStore's own (0.2.32 and later): a 9-byte header, one
//! request at a time, no checksums. [`extension`] is ours: after a `hello` that a stock server refuses harmlessly, the
//! connection speaks frames with request ids, batches and checksums. `docs/wire.md` has every byte of both.
//!
//! The little that we say to a Redis server, which may hold the list of cache servers, is here as well: [`RedisReply`].
//!
//! Every decoder trusts nothing. It checks each length and offset against the bytes that are there, refuses counts and
//! sizes above caps that the caller gives, allocates nothing, and borrows keys from its input. What it cannot read is
//! a [`DecodeError`], never a panic; [`fuzz_entry`] is what the fuzz targets run.

#![forbid(unsafe_code)]

pub mod extension;
pub mod fuzz_entry;
pub mod stock;

mod checksum;
mod error;
mod reader;
mod resp;
mod status;

pub use checksum::checksum;
pub use error::{DecodeError, EncodeError};
pub use resp::{MalformedReply, RedisReply, redis_command};
pub use status::Status;
