//! Bytes on their way to a socket: headers of ours and values where they lie.

use std::collections::VecDeque;
use std::io::{self, IoSlice};

use super::memory::Memory;
use super::stream::Stream;

/// Slices that one system call takes: more of them would be more work per call than a call costs.
const SLICES: usize = 64;

/// Most bytes that are copied to get memory out of use early.
const DETACHED_BYTES_MAX: usize = 8 << 20;

#[derive(Debug)]
enum Part {
    Bytes(Vec<u8>),
    /// A value of the batch called `wire_id`, at this position in it.
    Value {
        memory: Memory,
        wire_id: u64,
        position: usize,
    },
}

impl Part {
    fn rest(&self, at: usize) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes.get(at..).unwrap_or(&[]),
            Self::Value { memory, .. } => memory.read(at),
        }
    }
}

/// The order in which bytes leave.
#[derive(Debug, Default)]
pub(crate) struct Outgoing {
    parts: VecDeque<Part>,
    /// Bytes of the first part that have left.
    sent: usize,
    /// Bytes that have not left.
    left: usize,
}

impl Outgoing {
    pub(crate) fn push_bytes(&mut self, bytes: Vec<u8>) {
        self.left += bytes.len();
        if !bytes.is_empty() {
            self.parts.push_back(Part::Bytes(bytes));
        }
    }

    pub(crate) fn push_value(&mut self, memory: Memory, wire_id: u64, position: usize) {
        self.left += memory.bytes();
        self.parts.push_back(Part::Value { memory, wire_id, position });
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Bytes that have not left.
    pub(crate) fn left(&self) -> usize {
        self.left
    }

    /// Whether a value of the batch called `wire_id` has not left.
    pub(crate) fn holds(&self, wire_id: u64) -> bool {
        self.parts.iter().any(|part| matches!(part, Part::Value { wire_id: of, .. } if *of == wire_id))
    }

    /// Writes until the socket takes no more or `budget` bytes have left; how many have.
    pub(crate) fn write(&mut self, stream: &mut Stream, budget: usize) -> io::Result<usize> {
        let mut written = 0;
        while !self.parts.is_empty() && written < budget {
            let mut slices = [IoSlice::new(&[]); SLICES];
            // A reader that is as fast as we are would keep one call going for as long as there is something to send.
            let (mut count, mut room) = (0, budget - written);
            for (index, part) in self.parts.iter().take(SLICES).enumerate() {
                let rest = part.rest(if index == 0 { self.sent } else { 0 });
                let slice = &rest[..rest.len().min(room)];
                slices[index] = IoSlice::new(slice);
                (count, room) = (count + 1, room - slice.len());
                if room == 0 {
                    break;
                }
            }
            match stream.write_vectored(&slices[..count]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(bytes) => {
                    written += bytes;
                    self.advance(bytes);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(written)
    }

    fn advance(&mut self, bytes: usize) {
        self.left -= bytes;
        self.sent += bytes;
        while let Some(part) = self.parts.front() {
            let rest = part.rest(0).len();
            if self.sent < rest {
                break;
            }
            self.sent -= rest;
            self.parts.pop_front();
        }
    }

    /// Gets the value at `position` of `wire_id`, which has left in part or not at all, out of its memory by copying it.
    /// False if that would be too much: the connection must end.
    pub(crate) fn detach(&mut self, wire_id: u64, position: usize) -> bool {
        let copied: usize =
            self.parts.iter().map(|part| matches!(part, Part::Bytes(_)) as usize * part.rest(0).len()).sum();
        let wanted = |part: &&mut Part| matches!(part, Part::Value { wire_id: of, position: at, .. } if (*of, *at) == (wire_id, position));
        let Some(part) = self.parts.iter_mut().find(wanted) else { return true };
        if copied + part.rest(0).len() > DETACHED_BYTES_MAX {
            return false;
        }
        *part = Part::Bytes(part.rest(0).to_vec());
        true
    }
}
