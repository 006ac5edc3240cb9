//! A server's counters by name: those of its `/metrics`, without the prefix.

use crate::reader::Reader;
use crate::{DecodeError, EncodeError};

/// Counters as the server sent them, verified and still where they arrived.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stats<'a> {
    count: u32,
    counters: &'a [u8],
}

/// Appends the body.
///
/// # Errors
///
/// A name of 256 bytes or more.
pub fn encode_stats(out: &mut Vec<u8>, counters: &[(&str, u64)]) -> Result<(), EncodeError> {
    out.extend((counters.len() as u32).to_le_bytes());
    for (name, value) in counters {
        EncodeError::check("the length of a counter's name", name.len(), u8::MAX.into())?;
        out.extend(value.to_le_bytes());
        out.push(name.len() as u8);
        out.extend(name.as_bytes());
    }
    Ok(())
}

impl<'a> Stats<'a> {
    /// Reads the body.
    ///
    /// # Errors
    ///
    /// A count that lies, names that are not text, bytes left over.
    pub fn decode(body: &'a [u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new("counters", body);
        let count = reader.u32()?;
        let counters = reader.rest();
        for _ in 0..count {
            next_counter(&mut reader)?;
        }
        reader.finish()?;
        Ok(Self { count, counters })
    }

    /// Names and values.
    pub fn iter(&self) -> impl Iterator<Item = (&'a str, u64)> {
        let mut reader = Reader::new("counters", self.counters);
        (0..self.count).map_while(move |_| next_counter(&mut reader).ok())
    }

    /// The value of the counter called `name`.
    pub fn get(&self, name: &str) -> Option<u64> {
        self.iter().find(|(known, _)| *known == name).map(|(_, value)| value)
    }
}

fn next_counter<'a>(reader: &mut Reader<'a>) -> Result<(&'a str, u64), DecodeError> {
    let value = reader.u64()?;
    let name_bytes = reader.u8()?;
    let name =
        std::str::from_utf8(reader.slice(name_bytes.into())?).map_err(|error| DecodeError::BadValue {
            what: "the position of a bad byte in a name",
            found: error.valid_up_to() as i64,
        })?;
    Ok((name, value))
}
