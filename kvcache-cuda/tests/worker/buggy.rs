//! A copy engine that forgets something.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use kvcache_core::copy_engine::{
    CopyBatch, CopyEngine, CopyFailure, CopyState, Direction, Fence, InFlight, Rejected, Ticket,
};

/// What is forgotten.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Bug {
    /// Offloads do not wait for what the stream computes.
    UnfencedOffloads,
    /// Loads do not wait for what the stream still reads.
    UnfencedLoads,
    /// The stream does not wait for loads.
    NoOrder,
    /// Ends are told before they have come.
    EarlyEnds,
    /// Of the jobs that share a batch the last is not copied.
    LostShares,
}

impl Bug {
    pub(crate) const ALL: [Self; 5] =
        [Self::UnfencedOffloads, Self::UnfencedLoads, Self::NoOrder, Self::EarlyEnds, Self::LostShares];
}

/// See the module's head.
pub(crate) struct Buggy {
    pub(crate) inner: Arc<dyn CopyEngine>,
    pub(crate) bug: Bug,
    /// Where each slot begins, once that is known.
    pub(crate) slots: OnceLock<Vec<usize>>,
}

impl Buggy {
    fn slot_of(&self, address: usize) -> Option<usize> {
        self.slots.get().map(|slots| slots.partition_point(|slot| *slot <= address))
    }
}

impl CopyEngine for Buggy {
    fn name(&self) -> &'static str {
        "buggy"
    }

    unsafe fn submit(&self, mut batch: CopyBatch) -> Result<Ticket, Rejected> {
        let forgets = match batch.direction {
            Direction::Load => self.bug == Bug::UnfencedLoads,
            Direction::Offload => self.bug == Bug::UnfencedOffloads,
        };
        if forgets {
            batch.fence = None;
        }
        let (first, last) = (batch.pieces.first().copied(), batch.pieces.last().copied());
        if self.bug == Bug::LostShares
            && batch.direction == Direction::Offload
            && let (Some(first), Some(last)) = (first, last)
            && self.slot_of(first.dst) != self.slot_of(last.dst)
        {
            // Each job of the model fills one slot.
            batch.pieces.retain(|piece| self.slot_of(piece.dst) != self.slot_of(last.dst));
        }
        // SAFETY: the caller's duties are the same; that the fence is gone is what the fake device is to find.
        unsafe { self.inner.submit(batch) }
    }

    fn poll(&self, ticket: Ticket) -> CopyState {
        if self.bug == Bug::EarlyEnds {
            self.inner.forget(ticket);
            return CopyState::Done;
        }
        self.inner.poll(ticket)
    }

    fn wait(&self, ticket: Ticket, timeout: Duration) -> CopyState {
        self.inner.wait(ticket, timeout)
    }

    fn forget(&self, ticket: Ticket) {
        self.inner.forget(ticket);
    }

    fn in_flight(&self) -> InFlight {
        self.inner.in_flight()
    }

    fn has_streams(&self) -> bool {
        self.inner.has_streams()
    }

    fn fence(&self, stream: u64) -> Result<Fence, CopyFailure> {
        self.inner.fence(stream)
    }

    fn order_after(&self, ticket: Ticket, stream: u64) -> Result<(), CopyFailure> {
        if self.bug == Bug::NoOrder { Ok(()) } else { self.inner.order_after(ticket, stream) }
    }

    fn batch_bytes(&self) -> usize {
        self.inner.batch_bytes()
    }

    unsafe fn register(&self, base: usize, bytes: usize) -> Result<(), CopyFailure> {
        // SAFETY: the caller's duties are the same.
        unsafe { self.inner.register(base, bytes) }
    }

    fn unregister(&self, base: usize) {
        self.inner.unregister(base);
    }
}
