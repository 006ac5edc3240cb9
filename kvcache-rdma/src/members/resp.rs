//! Redis's protocol on a socket: replies, and an end to waiting for them.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Instant;

use kvcache_wire::{MalformedReply, RedisReply};

/// Why there is no reply.
#[derive(Debug)]
pub(super) enum RespError {
    Io(io::Error),
    /// It is not the protocol.
    Malformed(String),
}

impl From<io::Error> for RespError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<MalformedReply> for RespError {
    fn from(error: MalformedReply) -> Self {
        Self::Malformed(error.to_string())
    }
}

/// Reads the reply to the one command that was sent; a string of more than `bulk_bytes_max` is malformed.
pub(super) fn read_reply(from: &mut impl Read, bulk_bytes_max: usize) -> Result<RedisReply, RespError> {
    // Memory grows with what arrives, not with what was announced.
    let mut bytes = Vec::new();
    let mut piece = [0; PIECE_BYTES];
    loop {
        match from.read(&mut piece)? {
            0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            count => bytes.extend_from_slice(&piece[..count]),
        }
        match RedisReply::read(&bytes, bulk_bytes_max)? {
            Some((reply, length)) if length == bytes.len() => return Ok(reply),
            Some(_) => return Err(RespError::Malformed("more than one reply".to_owned())),
            None => {}
        }
    }
}

const PIECE_BYTES: usize = 16 << 10;

/// A stream whose reads and writes all end by one instant, however little arrives at a time.
#[derive(Debug)]
pub(super) struct DeadlineStream {
    pub(super) stream: TcpStream,
    pub(super) deadline: Instant,
}

impl DeadlineStream {
    fn left(&self) -> io::Result<std::time::Duration> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        // A timeout of zero would mean none at all.
        (!left.is_zero()).then_some(left).ok_or_else(|| io::ErrorKind::TimedOut.into())
    }
}

/// What a timeout of a socket is called differs between systems.
fn timed_out(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock => io::ErrorKind::TimedOut.into(),
        _ => error,
    }
}

impl Read for DeadlineStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(self.left()?))?;
        self.stream.read(buffer).map_err(timed_out)
    }
}

impl Write for DeadlineStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(Some(self.left()?))?;
        self.stream.write(bytes).map_err(timed_out)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives a few bytes at a time.
    struct Slowly<'a>(&'a [u8]);

    impl Read for Slowly<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.0.read(&mut buffer[..3])
        }
    }

    #[test]
    fn a_reply_may_come_in_pieces_but_must_end_and_be_the_only_one() {
        let read = |bytes: &[u8]| match read_reply(&mut Slowly(bytes), 8) {
            Ok(reply) => Ok(reply),
            Err(RespError::Io(error)) => Err(error.kind().to_string()),
            Err(RespError::Malformed(reason)) => Err(reason),
        };
        assert_eq!(read(b"$5\r\nhello\r\n"), Ok(RedisReply::Bulk(Some(b"hello".to_vec()))));
        assert_eq!(read(b""), Err("unexpected end of file".to_owned()));
        assert_eq!(read(b"$5\r\nhel"), Err("unexpected end of file".to_owned()));
        assert_eq!(read(b"+OK\r\n+OK\r\n"), Err("more than one reply".to_owned()));
        assert_eq!(read(b"HTTP/1.1 400\r\n"), Err("the line \"HTTP/1.1 400\"".to_owned()));
    }
}
