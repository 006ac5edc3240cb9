//! Bytes from a peer: small ones through a buffer, values straight into their place.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};

/// The receiving half of a connection.
#[derive(Debug)]
pub(crate) struct Incoming<R> {
    reader: R,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

/// Holds many small requests; and so little of a value passes through it that the copy does not count.
const BUFFER_BYTES: usize = 16 << 10;

impl<R: AsyncRead + Unpin> Incoming<R> {
    pub(crate) fn new(reader: R) -> Self {
        Self { reader, buffer: vec![0; BUFFER_BYTES].into_boxed_slice(), start: 0, end: 0 }
    }

    /// Whether a byte is here already.
    pub(crate) fn is_buffered(&self) -> bool {
        self.start < self.end
    }

    /// Receives at least one byte into `target`, which must not be empty, and returns how many.
    ///
    /// Waits at most once, before anything has changed, so that the future may be dropped at any time.
    ///
    /// # Errors
    ///
    /// [`UnexpectedEof`](io::ErrorKind::UnexpectedEof) where the peer has ended the connection.
    pub(crate) async fn read_into(&mut self, target: &mut [u8]) -> io::Result<usize> {
        if self.start == self.end {
            if target.len() >= BUFFER_BYTES {
                return none_is_end(self.reader.read(target).await?);
            }
            let end = none_is_end(self.reader.read(&mut self.buffer).await?)?;
            (self.start, self.end) = (0, end);
        }
        let bytes = target.len().min(self.end - self.start);
        target[..bytes].copy_from_slice(&self.buffer[self.start..self.start + bytes]);
        self.start += bytes;
        Ok(bytes)
    }

    /// Fills `target`.
    ///
    /// # Errors
    ///
    /// As [`read_into`](Self::read_into).
    pub(crate) async fn read_exact(&mut self, target: &mut [u8]) -> io::Result<()> {
        let mut filled = 0;
        while filled < target.len() {
            filled += self.read_into(&mut target[filled..]).await?;
        }
        Ok(())
    }

    /// Receives `bytes` bytes and forgets them.
    ///
    /// # Errors
    ///
    /// As [`read_into`](Self::read_into).
    pub(crate) async fn discard(&mut self, mut bytes: u64) -> io::Result<()> {
        let mut scratch = vec![0; BUFFER_BYTES];
        while bytes > 0 {
            let target = scratch.len().min(usize::try_from(bytes).unwrap_or(usize::MAX));
            bytes -= self.read_into(&mut scratch[..target]).await? as u64;
        }
        Ok(())
    }
}

fn none_is_end(bytes: usize) -> io::Result<usize> {
    if bytes == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(bytes) }
}
