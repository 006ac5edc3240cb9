//! Values on the ring.

use std::time::{Duration, Instant};

use kvcache_core::remote::{RemoteEnd, RemoteStore, RemoteTransfer};

use super::config::{RingConfig, RingOpenError};
use crate::tcp::{IoThread, RingStats};

/// Moves values between memory and the servers of a ring. One thread, started here; calls cost a few microseconds.
///
/// Dropping it abandons what has not ended: its memory is out of use when the drop returns, which takes milliseconds.
pub struct RingStore {
    thread: IoThread,
}

impl RingStore {
    /// Opens a client. Does not wait for the network: servers that cannot be reached are misses.
    ///
    /// # Errors
    /// [`RingOpenError`] names the value and the remedy.
    pub fn open(config: &RingConfig) -> Result<Self, RingOpenError> {
        Ok(Self { thread: config.start("kvcache-ring")? })
    }

    /// Counters, as of now. Waits for the I/O thread, well below a millisecond unless the machine is busy.
    pub fn stats(&self) -> RingStats {
        self.thread.stats()
    }
}

impl RemoteStore for RingStore {
    unsafe fn submit(&self, batch: &[RemoteTransfer], patience: Duration) {
        // SAFETY: the caller's duty is the same.
        unsafe { self.thread.submit(batch, patience) }
    }

    fn poll(&self, ended: &mut Vec<RemoteEnd>) {
        self.thread.poll_ends(ended);
    }

    fn wait(&self, timeout: Duration) -> bool {
        self.thread.wait(timeout)
    }

    fn last_arrival(&self) -> Option<Instant> {
        self.thread.last_arrival()
    }

    fn cancel(&self, tickets: &[u64]) {
        self.thread.cancel(tickets);
    }
}
