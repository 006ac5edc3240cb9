//! A batch in the copy engine, which copies for one job or for several of a moment.
//!
//! The engine tells the end of a batch once. It is kept here, so that each job of a batch sees it when it looks.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::copy_engine::{CopyEngine, CopyFailure, CopyState, Ticket};

/// See the [module documentation](self). Clones are the same batch.
#[derive(Clone)]
pub(super) struct Flight(Arc<Shared>);

struct Shared {
    ticket: Ticket,
    seen: Mutex<Seen>,
}

struct Seen {
    state: CopyState,
    /// The engine's stream that waits for it.
    ordered_before: Option<u64>,
}

impl Flight {
    pub(super) fn new(ticket: Ticket) -> Self {
        let seen = Seen { state: CopyState::Pending, ordered_before: None };
        Self(Arc::new(Shared { ticket, seen: Mutex::new(seen) }))
    }

    pub(super) fn ticket(&self) -> Ticket {
        self.0.ticket
    }

    /// Where it stands, without waiting.
    pub(super) fn poll(&self, copies: &dyn CopyEngine) -> CopyState {
        self.look(|| copies.poll(self.0.ticket))
    }

    /// Where it stands when it has ended, or `timeout` has passed.
    pub(super) fn wait(&self, copies: &dyn CopyEngine, timeout: Duration) -> CopyState {
        self.look(|| copies.wait(self.0.ticket, timeout))
    }

    fn look(&self, ask: impl FnOnce() -> CopyState) -> CopyState {
        let mut seen = self.0.seen.lock();
        if !seen.state.is_finished() {
            seen.state = ask();
        }
        seen.state.clone()
    }

    /// What `stream` gets from now on waits for the batch, by one call for all its jobs.
    pub(super) fn order_before(&self, stream: u64, copies: &dyn CopyEngine) -> Result<(), CopyFailure> {
        let mut seen = self.0.seen.lock();
        match &seen.state {
            CopyState::Failed(failure) => return Err(failure.clone()),
            CopyState::Done => return Ok(()),
            CopyState::Pending if seen.ordered_before == Some(stream) => return Ok(()),
            CopyState::Pending => {}
        }
        copies.order_after(self.0.ticket, stream)?;
        seen.ordered_before = Some(stream);
        Ok(())
    }
}
