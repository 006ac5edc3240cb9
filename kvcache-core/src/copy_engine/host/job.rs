//! One accepted batch: which chunks are claimed, and how many bytes are still to arrive.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::copy_engine::stream_copy::{self, Variant};
use crate::copy_engine::{CopyBatch, Direction, Piece};

/// A batch that threads work on together. Claims go forward only, so every byte is copied by exactly one thread.
pub(super) struct Job {
    ticket: u64,
    bytes: usize,
    variant: Variant,
    pieces: Vec<Piece>,
    claimed: Mutex<Cursor>,
    /// Of a load, when it was being copied: nobody asks that of an offload.
    copying: Option<Mutex<Copying>>,
    /// Bytes that have not arrived. Each subtraction releases the bytes that it counts, and the last one acquires them all.
    missing_bytes: AtomicUsize,
    /// Set by whoever saw the last bytes arrive, once the engine counts the batch as ended: who sees it sees both.
    ended: AtomicBool,
}

/// The first byte that nobody has claimed. `index == pieces.len()` when all are.
#[derive(Clone, Copy, Default)]
struct Cursor {
    index: usize,
    offset: usize,
    bytes: usize,
}

/// The time during which anybody copied. Not that from the first chunk to the last, between which a batch may lie half done for
/// a step; nor the sum over the threads, who share the bandwidth.
struct Copying {
    threads: usize,
    since: Instant,
    before: Duration,
}

impl Default for Copying {
    fn default() -> Self {
        Self { threads: 0, since: Instant::now(), before: Duration::ZERO }
    }
}

impl Copying {
    fn begin(&mut self) {
        if self.threads == 0 {
            self.since = Instant::now();
        }
        self.threads += 1;
    }

    fn end(&mut self) {
        self.threads -= 1;
        if self.threads == 0 {
            self.before += self.since.elapsed();
        }
    }
}

/// Pieces of one claim: bounds the time under the batch's lock when pieces are tiny.
const PIECES_PER_CHUNK: usize = 512;

impl Job {
    /// # Safety
    ///
    /// The duties of [`CopyEngine::submit`](crate::copy_engine::CopyEngine::submit), until [`Job::is_done`] or until
    /// nobody calls [`Job::copy_chunk`] any more.
    pub(super) unsafe fn new(ticket: u64, mut batch: CopyBatch, bytes: usize) -> Self {
        // A claim of empty pieces only would look like the end of the batch.
        batch.pieces.retain(|piece| piece.bytes > 0);
        Job {
            ticket,
            bytes,
            variant: if batch.streaming { Variant::best() } else { Variant::Plain },
            pieces: batch.pieces,
            claimed: Mutex::new(Cursor::default()),
            copying: (batch.direction == Direction::Load).then(Mutex::default),
            missing_bytes: AtomicUsize::new(bytes),
            ended: AtomicBool::new(bytes == 0),
        }
    }

    pub(super) fn ticket(&self) -> u64 {
        self.ticket
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn has_unclaimed(&self) -> bool {
        self.claimed.lock().bytes < self.bytes
    }

    /// Whether more than one chunk is unclaimed.
    pub(super) fn has_more(&self, chunk_bytes: usize) -> bool {
        self.bytes - self.claimed.lock().bytes > chunk_bytes
    }

    pub(super) fn is_done(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// All bytes have arrived, and nothing counts the batch any more.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Release);
    }

    /// Of a load that has ended, how long it was being copied.
    pub(super) fn load_time(&self) -> Option<Duration> {
        self.copying.as_ref().map(|copying| copying.lock().before)
    }

    /// Claims about `chunk_bytes` and copies them. Returns the bytes copied; zero when nothing was left to claim.
    pub(super) fn copy_chunk(&self, chunk_bytes: usize) -> usize {
        let (start, end) = self.claim(chunk_bytes);
        let mut cursor = start;
        if start.bytes == end.bytes {
            return 0;
        }
        if let Some(copying) = &self.copying {
            copying.lock().begin();
        }
        while cursor.bytes < end.bytes {
            let piece = self.pieces[cursor.index];
            let bytes = (piece.bytes - cursor.offset).min(end.bytes - cursor.bytes);
            let src = (piece.src + cursor.offset) as *const u8;
            let dst = (piece.dst + cursor.offset) as *mut u8;
            // SAFETY: `Job::new`'s caller vouches for the whole piece, of which this is a part; the claim made it
            // ours alone, and the end of the batch is not reported before `account` has seen these bytes.
            unsafe { self.variant.copy(src, dst, bytes) };
            cursor = Cursor { index: cursor.index + 1, offset: 0, bytes: cursor.bytes + bytes };
        }
        if self.variant != Variant::Plain {
            // Before `account` releases these bytes to whoever sees the batch's end.
            stream_copy::fence();
        }
        if let Some(copying) = &self.copying {
            // Before `account` as well: whoever ends the batch reads the time.
            copying.lock().end();
        }
        end.bytes - start.bytes
    }

    /// Notes that `copied` bytes have arrived; true for the one caller who completes the batch.
    pub(super) fn account(&self, copied: usize) -> bool {
        self.missing_bytes.fetch_sub(copied, Ordering::AcqRel) == copied
    }

    fn claim(&self, chunk_bytes: usize) -> (Cursor, Cursor) {
        let mut cursor = self.claimed.lock();
        let start = *cursor;
        let piece_limit = start.index.saturating_add(PIECES_PER_CHUNK);
        while cursor.index < self.pieces.len() && cursor.index < piece_limit {
            let room = chunk_bytes - (cursor.bytes - start.bytes);
            let left = self.pieces[cursor.index].bytes - cursor.offset;
            if left > room {
                cursor.offset += room;
                cursor.bytes += room;
                break;
            }
            *cursor = Cursor { index: cursor.index + 1, offset: 0, bytes: cursor.bytes + left };
        }
        (start, *cursor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_two_threads_copy_at_once_takes_its_time_once() {
        let (mut copying, began) = (Copying::default(), Instant::now());
        copying.begin();
        copying.begin();
        std::thread::sleep(Duration::from_millis(50));
        copying.end();
        assert_eq!(copying.before, Duration::ZERO, "the other one copies on");
        copying.end();
        assert!((Duration::from_millis(50)..=began.elapsed()).contains(&copying.before));
    }
}
