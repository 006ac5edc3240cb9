//! Clients on the server's host: values stay where they are, and only words about them cross a socket.
//!
//! # How it works
//!
//! Besides its TCP port the server listens on a Unix socket in the abstract namespace, [`local_socket_name`](kvcache_wire::extension::local_socket_name): reachable
//! exactly from where the loopback address is (abstract names belong to a network namespace), and gone with the server,
//! so that nothing stale is left behind. The connection speaks what TCP connections speak. To a hello that asks for
//! [shared memory](kvcache_wire::extension::Features::SHARED_MEMORY) the welcome comes with two descriptors of the pool,
//! one for reading and one for writing, and the client maps both. From then on it can ask for *leases*:
//!
//! - A **lease of values** names the places of values and pins them: they can be overwritten, deleted or purged, and the
//!   bytes stay. The client copies, compares the checksum, and gives the lease back.
//! - A **lease of room** names a place to write to; a commit makes a value of it.
//!
//! # What holds when clients misbehave
//!
//! Leases belong to a connection. It ends when the process that connected does, after all its threads have stopped, even
//! if a process that was forked from it has the socket, too (its mapping it has not): the leases are back at once, and
//! nobody writes there any more. A client that is *stopped* keeps its connection:
//!
//! - Leases of values end after [`lease_time`](crate::Timeouts::lease). A client that wakes up later and reads what is
//!   somebody else's by then finds that the checksum differs: a miss. It costs no more than that, so there is no
//!   quarantine for reads.
//! - Leases of room do not end by time, because a client that wakes up writes. They stay until the connection is closed
//!   by the *client*; where the server ends a connection first, the room is kept until the client has closed its half
//!   too. What that can hold is bounded twice: for each connection, and by half of the pool for all connections and puts
//!   together.
//!
//! # Who is trusted
//!
//! A client must run as the server's user or as root, and know the token where there is one. Who is admitted can write
//! anywhere in the pool: that costs nothing, and a window of its own for each client would cost a copy or a mapping for each
//! value. So a client that means harm can do it, as it could with puts and deletes; one that has a bug can damage values,
//! which the checksum finds at the next get. The server itself never follows a pointer, a length or an offset that lies in
//! the pool, and the pool cannot be truncated under anybody's feet.

mod accept;
mod leases;
mod passing;
mod peer_process;
mod requests;

#[cfg(test)]
pub(crate) use accept::limits;
pub(crate) use accept::{LocalListener, accept, descriptors};
pub(crate) use leases::Leases;
pub(crate) use passing::Passing;
pub(crate) use requests::handle;

/// What a connection over the Unix socket has beyond others.
#[derive(Debug)]
pub(crate) struct Local {
    pub(crate) leases: Leases,
    /// Descriptors leave with the next bytes that are written.
    pub(crate) passing: Passing,
}
