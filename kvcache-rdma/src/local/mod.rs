//! Servers on this host: values are copied between slots and the server's pool, which is mapped here.
//!
//! ```text
//! get:  lease names ──► where they lie ──► copy and hash, compare ──► give the lease back
//! put:  reserve lengths ──► where to write ──► copy and hash ──► commit names and checksums ──► stored
//!                          (or spare room)                      and reserve as much again
//! ```
//!
//! Beside its TCP port such a server listens on a Unix socket (`docs/wire.md`, "Shared memory"). It is used where the
//! server's address is one of this host, when the server that answers there is the one that answers over TCP: their ids
//! are compared, so that a forwarded port is not taken for what it hides. Everything else goes on over TCP, silently,
//! and so does everything where this is switched off.
//!
//! Values are copied on the I/O thread, a piece at a time with other sockets' turns between, past the caches, and hashed
//! in the same pass. What a get copies is hashed from what was written to the slot, so that a value whose lease has ended
//! meanwhile, or that somebody's bug has damaged, is a miss and never a wrong block. Nothing that the server says is
//! believed beyond the bounds of the mapping, which cannot shrink.
//!
//! A connection owns its mapping and what it copies; both are used by the I/O thread alone. When the server goes, copies
//! end, then the mapping; the next connection maps the next server's pool.

mod answers;
mod copying;
mod frames;
mod host;
mod mapping;
mod session;
#[cfg(test)]
mod session_tests;
mod socket;
mod spare_room;

pub(crate) use host::is_this_host;
pub(crate) use mapping::PoolMapping;
pub(crate) use session::LocalSession;
pub(crate) use socket::LocalSocket;
