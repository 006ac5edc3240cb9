//! Our extension: many keys and many requests at a time, with checksums.
//!
//! A connection starts in InfiniStore's protocol. The client sends [`Hello`] as a stock request with the operation
//! `H`; a stock server answers 400 and goes on, a server of ours answers 200 and a [`Welcome`]. From then on both sides
//! send frames: a [`FrameHeader`], a body, a payload. Requests carry ids and may be pipelined; answers come in any
//! order. What is wrong with one key is a status of that key. A frame that cannot be read ends the connection, after a
//! frame of [`FrameOp::Close`] that says why.
//!
//! | request | body | answer's body | answer's payload |
//! |---|---|---|---|
//! | [`Ping`](FrameOp::Ping) | empty | empty | |
//! | [`Exists`](FrameOp::Exists) | [`Batch<Named>`] | [`ExistsReply`] | |
//! | [`Get`](FrameOp::Get) | [`Batch<GetItem>`] | [`GetReplies`] | the values that are there, in order |
//! | [`Put`](FrameOp::Put), values as payload | [`Batch<PutItem>`] | [`Statuses`] | |
//! | [`Delete`](FrameOp::Delete) | [`Batch<Named>`] | [`Statuses`] | |
//! | [`Stats`](FrameOp::Stats) | empty | [`Stats`] | |
//!
//! On the server's host a connection over a Unix socket has four more, see [`Features::SHARED_MEMORY`]:
//!
//! | request | body | answer's body |
//! |---|---|---|
//! | [`Lease`](FrameOp::Lease) | [`Batch<GetItem>`] | [`LeasedValues`] |
//! | [`Reserve`](FrameOp::Reserve) | [`Numbers`], the lengths | [`LeasedRooms`] |
//! | [`Commit`](FrameOp::Commit) | [`Batch<CommitItem>`] | [`Statuses`] |
//! | [`Release`](FrameOp::Release) | [`Numbers`], the leases | none: nobody waits for it |

mod batch;
mod frame;
mod hello;
mod leases;
mod replies;
mod stats;

pub use batch::{Batch, GetItem, ItemFields, Named, PutItem};
pub use frame::{FrameHead, FrameHeader, FrameOp, flags, write_frame};
pub use hello::{Features, Hello, Limits, VERSION, Welcome, local_socket_name};
pub use leases::{CommitItem, LeasedRoom, LeasedRooms, LeasedValue, LeasedValues, Numbers};
pub use replies::{ExistsReply, GetOutcome, GetReplies, Statuses};
pub use stats::{Stats, encode_stats};
