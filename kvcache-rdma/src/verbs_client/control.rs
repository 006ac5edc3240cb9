//! What goes over a lane's TCP connection: the exchange that connects its queue pair, and deletes.
//!
//! A server that asks for a token is told it first, by a hello after which the connection stays in InfiniStore's protocol.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use kvcache_wire::Status;
use kvcache_wire::extension::{Features, Hello, Welcome};
use kvcache_wire::stock::{ConnectionInfo, Header, Op, STATUS_BYTES, encode_keys, status_from_reply};

use crate::verbs::{Error, QueuePair};
use crate::verbs_server::{info_of_address, peer_of_info};

/// Why something did not go over TCP.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ControlError {
    #[error("TCP: {0}")]
    Io(#[from] io::Error),
    #[error("the server answers {0}")]
    Refused(Status),
    #[error("the server's connection info: {0}")]
    Info(#[from] kvcache_wire::DecodeError),
    #[error(transparent)]
    Verbs(#[from] Error),
}

/// Connects a queue pair. The TCP connection stays open as long as the queue pair is used: the server ends both together.
/// The first of `timeouts` is for the TCP connection, the second for what follows. `token` is empty where none is needed.
pub(crate) fn exchange(
    server: SocketAddr,
    pair: &mut QueuePair,
    token: &[u8],
    timeouts: (Duration, Duration),
) -> Result<TcpStream, ControlError> {
    let mut stream = TcpStream::connect_timeout(&server, timeouts.0)?;
    let deadline = Instant::now() + timeouts.1;
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(timeouts.1))?;
    if !token.is_empty() {
        say_hello(&mut stream, token, deadline)?;
    }
    let mut message = Header { op: Op::Exchange, body_bytes: ConnectionInfo::BYTES as u32 }.encode().to_vec();
    message.extend(info_of_address(&pair.address()).encode());
    stream.write_all(&message)?;
    let mut status = [0; STATUS_BYTES];
    read_exact(&mut stream, &mut status, deadline)?;
    let status = status_from_reply(status);
    if !status.is_ok() {
        return Err(ControlError::Refused(status));
    }
    let mut info = [0; ConnectionInfo::BYTES];
    read_exact(&mut stream, &mut info, deadline)?;
    pair.connect(&peer_of_info(&ConnectionInfo::decode(&info)?))?;
    Ok(stream)
}

/// Gives the token. A stock server has no use for it, and says so.
fn say_hello(stream: &mut TcpStream, token: &[u8], deadline: Instant) -> Result<(), ControlError> {
    let hello = Hello { features: Features::QUEUE_PAIR, ..Hello::new(token) };
    stream.write_all(&hello.encode().map_err(io::Error::other)?)?;
    let mut status = [0; STATUS_BYTES];
    read_exact(stream, &mut status, deadline)?;
    match status_from_reply(status) {
        Status::OK => {}
        Status::BAD_REQUEST => return Ok(()),
        status => return Err(ControlError::Refused(status)),
    }
    let mut length = [0; 4];
    read_exact(stream, &mut length, deadline)?;
    if u32::from_le_bytes(length) != Welcome::BYTES as u32 {
        return Err(io::Error::other("a welcome of another length").into());
    }
    let mut welcome = [0; Welcome::BYTES];
    read_exact(stream, &mut welcome, deadline)?;
    if Welcome::decode(&welcome)?.features.contain(Features::QUEUE_PAIR) {
        return Ok(());
    }
    // It has changed to frames, in which there is no exchange.
    Err(ControlError::Refused(Status::UNAVAILABLE))
}

/// Deletes keys; how many of them were there.
///
/// # Errors
/// After anything but a refusal the stream is out of step, and the lane must end.
pub(super) fn delete<K: AsRef<[u8]>>(
    stream: &mut TcpStream,
    keys: &[K],
    deadline: Instant,
) -> Result<usize, ControlError> {
    let body = encode_keys(keys).map_err(io::Error::other)?;
    let mut message = Header { op: Op::Delete, body_bytes: body.len() as u32 }.encode().to_vec();
    message.extend(body);
    stream.set_nonblocking(false)?;
    let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    stream.set_write_timeout(Some(left))?;
    stream.write_all(&message)?;
    let mut word = [0; STATUS_BYTES];
    read_exact(stream, &mut word, deadline)?;
    let status = status_from_reply(word);
    let count = if status.is_ok() {
        read_exact(stream, &mut word, deadline)?;
        Ok(usize::try_from(i32::from_le_bytes(word)).unwrap_or(0))
    } else {
        Err(ControlError::Refused(status))
    };
    stream.set_nonblocking(true)?;
    count
}

/// Reads all of `into` before `deadline`: a peer that sends a byte now and then does not hold us for ever.
fn read_exact(stream: &mut TcpStream, into: &mut [u8], deadline: Instant) -> io::Result<()> {
    let mut filled = 0;
    while filled < into.len() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut into[filled..]) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
