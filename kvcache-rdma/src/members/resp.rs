//! As much of Redis's protocol as reading one key needs, with a bound on everything that comes back.
//!
//! <https://redis.io/docs/latest/develop/reference/protocol-spec/>: a command is an array of bulk strings; a reply's
//! first byte says what it is, a line follows, and after a bulk string's length its bytes.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Instant;

/// A reply.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Reply {
    /// `+OK`.
    Simple(String),
    /// `-NOAUTH Authentication required.`
    Error(String),
    /// `:7`.
    Integer(i64),
    /// A string, or nothing for a key that is not there.
    Bulk(Option<Vec<u8>>),
}

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

/// The bytes of a command.
pub(super) fn command(parts: &[&str]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", parts.len()).into_bytes();
    for part in parts {
        bytes.extend_from_slice(format!("${}\r\n{part}\r\n", part.len()).as_bytes());
    }
    bytes
}

/// Longest line of a reply: errors are one line.
const LINE_BYTES_MAX: usize = 1024;

/// Reads one reply; a bulk string of more than `bulk_bytes_max` is malformed.
///
/// Reads byte by byte up to the end of a line: hand it something buffered.
pub(super) fn read_reply(from: &mut impl Read, bulk_bytes_max: usize) -> Result<Reply, RespError> {
    let line = read_line(from)?;
    let Some((&kind, rest)) = line.split_first() else {
        return Err(RespError::Malformed("an empty line".to_owned()));
    };
    let text = || String::from_utf8_lossy(rest).into_owned();
    let number = || {
        let digits = std::str::from_utf8(rest).ok().filter(|text| !text.starts_with('+'));
        let number = digits.and_then(|text| text.parse::<i64>().ok());
        number.ok_or_else(|| RespError::Malformed(format!("the number {:?}", text())))
    };
    match kind {
        b'+' => Ok(Reply::Simple(text())),
        b'-' => Ok(Reply::Error(text())),
        b':' => Ok(Reply::Integer(number()?)),
        b'$' => match number()? {
            -1 => Ok(Reply::Bulk(None)),
            length => {
                let length = usize::try_from(length).ok().filter(|&length| length <= bulk_bytes_max);
                let length =
                    length.ok_or_else(|| RespError::Malformed(format!("a string of {} bytes", text())))?;
                Ok(Reply::Bulk(Some(read_bulk(from, length)?)))
            }
        },
        _ => Err(RespError::Malformed(format!("the line {:?}", String::from_utf8_lossy(&line)))),
    }
}

fn read_line(from: &mut impl Read) -> Result<Vec<u8>, RespError> {
    let mut line = Vec::new();
    loop {
        let mut byte = [0];
        from.read_exact(&mut byte)?;
        line.push(byte[0]);
        if line.ends_with(b"\r\n") {
            line.truncate(line.len() - 2);
            return Ok(line);
        }
        if line.len() > LINE_BYTES_MAX {
            let start = String::from_utf8_lossy(&line[..32]).into_owned();
            return Err(RespError::Malformed(format!("a line that begins with {start:?} and does not end")));
        }
    }
}

fn read_bulk(from: &mut impl Read, length: usize) -> Result<Vec<u8>, RespError> {
    // Memory grows with what arrives, not with what was announced.
    let mut bytes = Vec::new();
    from.by_ref().take(length as u64).read_to_end(&mut bytes)?;
    if bytes.len() < length {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    let mut end = [0; 2];
    from.read_exact(&mut end)?;
    if end != *b"\r\n" {
        return Err(RespError::Malformed("a string that does not end where it should".to_owned()));
    }
    Ok(bytes)
}

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
    use proptest::prelude::*;

    fn reply(bytes: &[u8]) -> Result<Reply, String> {
        read_reply(&mut &bytes[..], 8).map_err(|error| match error {
            RespError::Io(error) => error.kind().to_string(),
            RespError::Malformed(reason) => reason,
        })
    }

    /// The examples of the protocol's description.
    #[test]
    fn commands_and_replies_are_as_described() {
        assert_eq!(command(&["GET", "kvcache_nodes"]), b"*2\r\n$3\r\nGET\r\n$13\r\nkvcache_nodes\r\n");
        assert_eq!(reply(b"+OK\r\n"), Ok(Reply::Simple("OK".into())));
        assert_eq!(
            reply(b"-NOAUTH Authentication required.\r\n"),
            Ok(Reply::Error("NOAUTH Authentication required.".into()))
        );
        assert_eq!(reply(b":-7\r\n"), Ok(Reply::Integer(-7)));
        assert_eq!(reply(b"$5\r\nhe\r\no\r\n"), Ok(Reply::Bulk(Some(b"he\r\no".to_vec()))));
        assert_eq!(reply(b"$0\r\n\r\n"), Ok(Reply::Bulk(Some(Vec::new()))));
        assert_eq!(reply(b"$-1\r\n"), Ok(Reply::Bulk(None)));
    }

    #[test]
    fn what_is_no_reply_is_refused() {
        for (bytes, reason) in [
            (&b""[..], "unexpected end of file"),
            (b"$5\r\nhel", "unexpected end of file"),
            (b"\r\n", "an empty line"),
            (b"HTTP/1.1 400 Bad Request\r\n", "the line \"HTTP/1.1 400 Bad Request\""),
            (b"$9\r\n", "a string of 9 bytes"),
            (b"$-2\r\n", "a string of -2 bytes"),
            (b"$+5\r\nhello\r\n", "the number \"+5\""),
            (b":1e3\r\n", "the number \"1e3\""),
            (b"$2\r\nabcd", "a string that does not end where it should"),
            (&[b'x'; 2000], "a line that begins with \"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\" and does not end"),
        ] {
            assert_eq!(reply(bytes), Err(reason.to_owned()));
        }
    }

    proptest! {
        /// Whatever arrives, reading ends with a reply or an error and takes no more than it should.
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..64), kind in prop::sample::select(b"+-:$*x".to_vec())) {
            let bytes = [&[kind][..], &bytes].concat();
            if let Ok(Reply::Bulk(Some(string))) = reply(&bytes) {
                prop_assert!(string.len() <= 8);
            }
        }
    }
}
