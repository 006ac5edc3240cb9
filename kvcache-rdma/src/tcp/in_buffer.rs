//! What was read and is not used yet.

use std::io::{self, IoSliceMut};

use super::fault::{Fault, FaultReason};
use super::stream::Stream;

/// Room for a few small answers. Large enough that they cost one system call together; small, since what is read of a
/// value that follows has to be copied.
const ROOM_BYTES: usize = 4096;

#[derive(Debug, Default)]
pub(crate) struct InBuffer {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl InBuffer {
    pub(crate) fn available(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// The first `count` bytes, if they are there.
    pub(crate) fn peek(&self, count: usize) -> Option<&[u8]> {
        self.available().get(..count)
    }

    /// The first `N` bytes, if they are there.
    pub(crate) fn peek_array<const N: usize>(&self) -> Option<[u8; N]> {
        self.peek(N)?.try_into().ok()
    }

    pub(crate) fn consume(&mut self, count: usize) {
        self.start += count.min(self.end - self.start);
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// A place for more, with room so that `wanted` bytes are there in the end.
    pub(crate) fn spare(&mut self, wanted: usize) -> &mut [u8] {
        if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let room = wanted.max(ROOM_BYTES);
        if self.bytes.len() < room {
            self.bytes.resize(room, 0);
        }
        &mut self.bytes[self.end..]
    }

    /// `count` bytes of the place were filled.
    pub(crate) fn filled(&mut self, count: usize) {
        self.end += count;
    }

    /// Reads until `wanted` bytes are there or the socket has no more; the number read, `None` if there was nothing.
    pub(crate) fn read(&mut self, stream: &mut Stream, wanted: usize) -> Result<Option<usize>, Fault> {
        let spare = self.spare(wanted);
        match read_some(stream, &mut [IoSliceMut::new(spare)])? {
            None => Ok(None),
            Some(count) => {
                self.filled(count);
                Ok(Some(count))
            }
        }
    }
}

/// Reads what is there; `None` if that is nothing yet. The end of the stream is a fault.
pub(crate) fn read_some(stream: &mut Stream, slices: &mut [IoSliceMut<'_>]) -> Result<Option<usize>, Fault> {
    loop {
        match stream.read_vectored(slices) {
            Ok(0) => return Err(Fault::new(FaultReason::Lost, "the server closed the connection")),
            Ok(count) => return Ok(Some(count)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
}
