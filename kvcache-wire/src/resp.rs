//! As much of Redis's protocol as keeping a ring under one key needs, with a bound on everything that comes back.
//!
//! <https://redis.io/docs/latest/develop/reference/protocol-spec/>: a command is an array of bulk strings; a reply's
//! first byte says what it is, a line follows, and after a bulk string's length its bytes.

/// A reply of a Redis server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RedisReply {
    /// `+OK`.
    Simple(String),
    /// `-NOAUTH Authentication required.`
    Error(String),
    /// `:7`.
    Integer(i64),
    /// A string, or nothing for a key that is not there.
    Bulk(Option<Vec<u8>>),
    /// Replies of a transaction, or nothing for one that was given up. None of them is an array itself.
    Array(Option<Vec<RedisReply>>),
}

/// Bytes that no Redis server would send, or more than the caller wants.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct MalformedReply(String);

/// The bytes of a command.
pub fn redis_command(parts: &[&str]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", parts.len()).into_bytes();
    for part in parts {
        bytes.extend_from_slice(format!("${}\r\n{part}\r\n", part.len()).as_bytes());
    }
    bytes
}

impl RedisReply {
    /// The reply at the beginning of `bytes` and how long it is there; nothing as long as its end is missing.
    ///
    /// # Errors
    ///
    /// If it is no reply, has a string of more than `bulk_bytes_max`, a line of more than 1 KiB or an array of more than
    /// 16 elements.
    pub fn read(bytes: &[u8], bulk_bytes_max: usize) -> Result<Option<(Self, usize)>, MalformedReply> {
        read(bytes, bulk_bytes_max, Nested::Allowed)
    }
}

/// Longest line of a reply: errors are one line.
const LINE_BYTES_MAX: usize = 1024;
/// Most elements of an array: those of a short transaction, or the words of a command.
const ELEMENTS_MAX: i64 = 16;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Nested {
    Allowed,
    Refused,
}

type Found = Option<(RedisReply, usize)>;

fn read(bytes: &[u8], bulk_bytes_max: usize, nested: Nested) -> Result<Found, MalformedReply> {
    let Some((line, start)) = line(bytes)? else { return Ok(None) };
    let Some((&kind, rest)) = line.split_first() else {
        return Err(MalformedReply("an empty line".to_owned()));
    };
    let text = || String::from_utf8_lossy(rest).into_owned();
    let number = || {
        let digits = std::str::from_utf8(rest).ok().filter(|text| !text.starts_with('+'));
        let number = digits.and_then(|text| text.parse::<i64>().ok());
        number.ok_or_else(|| MalformedReply(format!("the number {:?}", text())))
    };
    let reply = match kind {
        b'+' => RedisReply::Simple(text()),
        b'-' => RedisReply::Error(text()),
        b':' => RedisReply::Integer(number()?),
        b'$' => match number()? {
            -1 => RedisReply::Bulk(None),
            length => {
                let length = usize::try_from(length).ok().filter(|&length| length <= bulk_bytes_max);
                let length = length.ok_or_else(|| MalformedReply(format!("a string of {} bytes", text())))?;
                let Some(string) = bytes.get(start..start + length + 2) else { return Ok(None) };
                let Some(string) = string.strip_suffix(b"\r\n") else {
                    return Err(MalformedReply("a string that does not end where it should".to_owned()));
                };
                return Ok(Some((RedisReply::Bulk(Some(string.to_vec())), start + length + 2)));
            }
        },
        b'*' if nested == Nested::Allowed => match number()? {
            -1 => RedisReply::Array(None),
            count @ 0..=ELEMENTS_MAX => {
                let (mut elements, mut end) = (Vec::new(), start);
                for _ in 0..count {
                    let Some((element, length)) = read(&bytes[end..], bulk_bytes_max, Nested::Refused)?
                    else {
                        return Ok(None);
                    };
                    elements.push(element);
                    end += length;
                }
                return Ok(Some((RedisReply::Array(Some(elements)), end)));
            }
            _ => return Err(MalformedReply(format!("an array of {} elements", text()))),
        },
        _ => return Err(MalformedReply(format!("the line {:?}", String::from_utf8_lossy(line)))),
    };
    Ok(Some((reply, start)))
}

/// The first line without its end, and where the next one begins.
fn line(bytes: &[u8]) -> Result<Option<(&[u8], usize)>, MalformedReply> {
    let searched = &bytes[..bytes.len().min(LINE_BYTES_MAX + 2)];
    match searched.windows(2).position(|pair| pair == b"\r\n") {
        Some(end) => Ok(Some((&bytes[..end], end + 2))),
        None if bytes.len() <= LINE_BYTES_MAX => Ok(None),
        None => {
            let start = String::from_utf8_lossy(&bytes[..32]).into_owned();
            Err(MalformedReply(format!("a line that begins with {start:?} and does not end")))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn reply(bytes: &[u8]) -> Result<Option<RedisReply>, String> {
        let read = RedisReply::read(bytes, 8).map_err(|error| error.to_string())?;
        Ok(read.map(|(reply, length)| {
            assert_eq!(length, bytes.len());
            reply
        }))
    }

    /// The examples of the protocol's description, and no reply before their last byte is there.
    #[test]
    fn commands_and_replies_are_as_described() {
        use RedisReply::{Array, Bulk, Error, Integer, Simple};
        assert_eq!(redis_command(&["GET", "kvcache_nodes"]), b"*2\r\n$3\r\nGET\r\n$13\r\nkvcache_nodes\r\n");
        for (bytes, expected) in [
            (&b"+OK\r\n"[..], Simple("OK".into())),
            (b"-NOAUTH Authentication required.\r\n", Error("NOAUTH Authentication required.".into())),
            (b":-7\r\n", Integer(-7)),
            (b"$5\r\nhe\r\no\r\n", Bulk(Some(b"he\r\no".to_vec()))),
            (b"$0\r\n\r\n", Bulk(Some(Vec::new()))),
            (b"$-1\r\n", Bulk(None)),
            (b"*-1\r\n", Array(None)),
            (b"*0\r\n", Array(Some(Vec::new()))),
            (
                b"*3\r\n+OK\r\n:1\r\n$2\r\nhi\r\n",
                Array(Some(vec![Simple("OK".into()), Integer(1), Bulk(Some(b"hi".to_vec()))])),
            ),
        ] {
            assert_eq!(reply(bytes), Ok(Some(expected)));
            for end in 0..bytes.len() {
                assert_eq!(reply(&bytes[..end]), Ok(None), "{end} bytes of {bytes:?}");
            }
        }
        assert_eq!(
            RedisReply::read(b":1\r\n:2\r\n", 8),
            Ok(Some((Integer(1), 4))),
            "the rest is another reply"
        );
    }

    #[test]
    fn what_is_no_reply_is_refused() {
        for (bytes, reason) in [
            (&b"\r\n"[..], "an empty line"),
            (b"HTTP/1.1 400 Bad Request\r\n", "the line \"HTTP/1.1 400 Bad Request\""),
            (b"$9\r\n", "a string of 9 bytes"),
            (b"$-2\r\n", "a string of -2 bytes"),
            (b"$+5\r\nhello\r\n", "the number \"+5\""),
            (b":1e3\r\n", "the number \"1e3\""),
            (b"$2\r\nabcd", "a string that does not end where it should"),
            (b"*17\r\n", "an array of 17 elements"),
            (b"*1\r\n*0\r\n", "the line \"*0\""),
            (&[b'x'; 2000], "a line that begins with \"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\" and does not end"),
        ] {
            assert_eq!(reply(bytes), Err(reason.to_owned()));
        }
    }

    proptest! {
        /// Whatever arrives, it is read, refused or not yet whole, and never more than was allowed.
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..64), kind in prop::sample::select(b"+-:$*x".to_vec())) {
            let bytes = [&[kind][..], &bytes].concat();
            if let Ok(Some((reply, length))) = RedisReply::read(&bytes, 8) {
                prop_assert!(length <= bytes.len());
                if let RedisReply::Bulk(Some(string)) = reply {
                    prop_assert!(string.len() <= 8);
                }
            }
        }
    }
}
