//! The jobs that are not acknowledged by every rank yet, and what they keep from being reused.

use std::collections::HashMap;

use crate::BlockKey;
use crate::directory::FillId;
use crate::eviction::SlotId;
use crate::plan::{JobId, JobKind};

pub(super) struct Pending {
    pub(super) kind: JobKind,
    /// Slots being filled (offload).
    pub(super) fills: Vec<(SlotId, FillId)>,
    /// Slots being read (load).
    pub(super) pinned: Vec<SlotId>,
    /// Keys being read (load).
    pub(super) keys: Vec<BlockKey>,
    /// Engine blocks being read (offload).
    pub(super) held: Vec<u32>,
    pub(super) reported: u32,
    /// Bit `rank % 64`: a rank that says it twice is counted once.
    pub(super) ranks_seen: u64,
    pub(super) failed: bool,
}

#[derive(Default)]
pub(super) struct JobTable {
    next: u64,
    pending: HashMap<JobId, Pending>,
}

impl JobTable {
    pub(super) fn peek_id(&self, epoch: u32) -> JobId {
        JobId { epoch, number: self.next }
    }

    pub(super) fn next_id(&mut self, epoch: u32) -> JobId {
        let id = self.peek_id(epoch);
        self.next += 1;
        id
    }

    pub(super) fn begin(&mut self, id: JobId, pending: Pending) {
        self.pending.insert(id, pending);
    }

    /// Counts one rank's report; the job if it was the last. Unknown jobs and repeated reports are ignored.
    pub(super) fn report(&mut self, id: JobId, rank: u32, ok: bool, ranks: u32) -> Option<Pending> {
        let pending = self.pending.get_mut(&id)?;
        if ranks <= 64 {
            let bit = 1u64 << (rank % 64);
            if pending.ranks_seen & bit != 0 {
                return None;
            }
            pending.ranks_seen |= bit;
        }
        pending.reported += 1;
        pending.failed |= !ok;
        if pending.reported == ranks { self.pending.remove(&id) } else { None }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.pending.len()
    }
}
