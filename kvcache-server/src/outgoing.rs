//! Answers on their way to a peer: small parts from memory of their own, values straight from the pool.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::Arc;

use tokio::io::{AsyncWrite, AsyncWriteExt};

use crate::store::Value;

/// The sending half of a connection: a queue of answers.
#[derive(Debug)]
pub(crate) struct Outgoing<W> {
    writer: W,
    queue: VecDeque<Answer>,
    /// Bytes of the first answer that have left.
    sent: usize,
    /// Bytes of all answers, those that have left included until their answer has.
    queued_bytes: u64,
    /// Whether a transport that collects bytes (TLS) may hold some back.
    is_flushed: bool,
}

#[derive(Debug)]
struct Answer {
    head: Vec<u8>,
    values: Vec<Arc<Value>>,
    bytes: usize,
}

/// Pieces handed to the system at a time. A batch of small values leaves in a few calls.
const PIECES: usize = 64;

impl<W: AsyncWrite + Unpin> Outgoing<W> {
    pub(crate) fn new(writer: W) -> Self {
        Self { writer, queue: VecDeque::new(), sent: 0, queued_bytes: 0, is_flushed: true }
    }

    /// Queues an answer: the bytes of `head`, then the values. They stay in memory until they have left.
    pub(crate) fn push(&mut self, head: Vec<u8>, values: Vec<Arc<Value>>) {
        let bytes = head.len() + values.iter().map(|value| value.bytes().len()).sum::<usize>();
        if bytes > 0 {
            self.queue.push_back(Answer { head, values, bytes });
            self.queued_bytes += bytes as u64;
            self.is_flushed = false;
        }
    }

    /// Bytes of the answers that have not left entirely.
    pub(crate) fn queued_bytes(&self) -> u64 {
        self.queued_bytes
    }

    /// Answers that have not left entirely.
    pub(crate) fn answers(&self) -> usize {
        self.queue.len()
    }

    /// Whether everything has left.
    pub(crate) fn is_idle(&self) -> bool {
        self.is_flushed
    }

    /// Bytes of the first answer that have not left.
    pub(crate) fn bytes_of_first(&self) -> u64 {
        self.queue.front().map_or(0, |answer| (answer.bytes - self.sent) as u64)
    }

    /// Sends a part of what is queued.
    ///
    /// Waits at most once, before anything has changed, so that the future may be dropped at any time.
    ///
    /// # Errors
    ///
    /// What the transport says.
    pub(crate) async fn write_some(&mut self) -> io::Result<()> {
        if self.queue.is_empty() {
            self.writer.flush().await?;
            self.is_flushed = true;
            return Ok(());
        }
        let mut pieces = [IoSlice::new(&[]); PIECES];
        let count = gather(&self.queue, self.sent, &mut pieces);
        let mut sent = self.writer.write_vectored(&pieces[..count]).await?;
        if sent == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        sent += self.sent;
        while let Some(first) = self.queue.front()
            && sent >= first.bytes
        {
            sent -= first.bytes;
            self.queued_bytes -= first.bytes as u64;
            self.queue.pop_front();
        }
        self.sent = sent;
        Ok(())
    }

    /// Sends everything that is queued.
    ///
    /// # Errors
    ///
    /// What the transport says.
    pub(crate) async fn write_all(&mut self) -> io::Result<()> {
        while !self.is_idle() {
            self.write_some().await?;
        }
        Ok(())
    }

    /// Tells the peer that nothing more comes.
    pub(crate) async fn shutdown(&mut self) -> io::Result<()> {
        self.writer.shutdown().await
    }
}

/// The first pieces of the queue from byte `skip` on.
fn gather<'a>(queue: &'a VecDeque<Answer>, mut skip: usize, pieces: &mut [IoSlice<'a>; PIECES]) -> usize {
    let mut count = 0;
    let all = queue.iter().flat_map(|answer| {
        std::iter::once(answer.head.as_slice()).chain(answer.values.iter().map(|value| value.bytes()))
    });
    for piece in all {
        if skip >= piece.len() {
            skip -= piece.len();
            continue;
        }
        pieces[count] = IoSlice::new(&piece[skip..]);
        skip = 0;
        count += 1;
        if count == PIECES {
            break;
        }
    }
    count
}
