//! What is present on the ring.

use std::sync::Arc;
use std::time::Duration;

use kvcache_core::BlockKey;
use kvcache_core::remote::{Presence, PresenceAnswer, RemoteSpace};

use super::config::{RingConfig, RingOpenError};
use crate::tcp::{IoThread, RingStats};

/// Answers what the servers of a ring have. One thread, started here, that touches no memory of values.
pub struct RingPresence {
    thread: IoThread,
    spaces: Arc<[RemoteSpace]>,
}

impl RingPresence {
    /// Opens a client. Does not wait for the network: servers that cannot be reached have nothing.
    ///
    /// # Errors
    /// [`RingOpenError`] names the value and the remedy.
    pub fn open(config: &RingConfig) -> Result<Self, RingOpenError> {
        Ok(Self { thread: config.start("kvcache-presence", None)?, spaces: Arc::new([]) })
    }

    /// Counters, as of now.
    pub fn stats(&self) -> RingStats {
        self.thread.stats()
    }
}

impl Presence for RingPresence {
    fn set_spaces(&mut self, spaces: &[RemoteSpace]) {
        self.spaces = spaces.into();
    }

    fn ask(&mut self, question: u64, keys: &[BlockKey], patience: Duration) {
        self.thread.ask(question, self.spaces.clone(), keys, patience);
    }

    fn poll(&mut self, answers: &mut Vec<PresenceAnswer>) {
        self.thread.poll_answers(answers);
    }

    fn wait(&mut self, timeout: Duration) -> bool {
        self.thread.wait(timeout)
    }
}
