//! The jobs that are not acknowledged by every rank yet, and what they keep from being reused.

use std::collections::{BTreeMap, BTreeSet};

use crate::BlockKey;
use crate::directory::FillId;
use crate::eviction::SlotId;
use crate::plan::{EngineHash, JobId, JobKind};
use crate::report::JobEnd;

pub(super) struct Pending {
    pub(super) kind: JobKind,
    /// Slots being filled (offload, fetch).
    pub(super) fills: Vec<(SlotId, FillId)>,
    /// Slots being read (load, demote).
    pub(super) pinned: Vec<SlotId>,
    /// Keys being read (load); empty if the job cannot succeed for another reason than what they hold. Keys of the fills
    /// (fetch).
    pub(super) keys: Vec<BlockKey>,
    /// Blocks that the request hit, to be touched after what this job stores (offload).
    pub(super) hits: Vec<BlockKey>,
    /// Engine hashes of the blocks being stored, if they are kept (offload).
    pub(super) hashes: Vec<EngineHash>,
    /// The request it serves.
    pub(super) request: String,
    /// Engine blocks being read (offload).
    pub(super) held: Vec<u32>,
    pub(super) reported: u32,
    /// A bit for each rank, 64 to a word: a rank that says it twice is counted once.
    pub(super) ranks_seen: Vec<u64>,
    pub(super) failed: bool,
    /// Positions of transfers that some rank could not do, where the others count nevertheless.
    pub(super) failed_transfers: BTreeSet<u32>,
}

impl Pending {
    pub(super) fn new(kind: JobKind, request: &str) -> Self {
        Self {
            kind,
            fills: Vec::new(),
            pinned: Vec::new(),
            keys: Vec::new(),
            hits: Vec::new(),
            hashes: Vec::new(),
            request: request.to_owned(),
            held: Vec::new(),
            reported: 0,
            ranks_seen: Vec::new(),
            failed: false,
            failed_transfers: BTreeSet::new(),
        }
    }

    /// Whether every rank has done the transfer at this position.
    pub(super) fn has_done(&self, position: usize) -> bool {
        !self.failed && !self.failed_transfers.contains(&(position as u32))
    }
}

#[derive(Default)]
pub(super) struct JobTable {
    next: u64,
    /// By number, so that the oldest is first.
    pending: BTreeMap<u64, (JobId, Pending)>,
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
        self.pending.insert(id.number, (id, pending));
    }

    /// Counts one rank's report; the job if it was the last. Unknown jobs and repeated reports are ignored.
    pub(super) fn report(&mut self, end: &JobEnd, rank: u32, ranks: u32) -> Option<Pending> {
        let id = end.id;
        let (known, pending) = self.pending.get_mut(&id.number)?;
        if *known != id || rank >= ranks {
            return None;
        }
        pending.ranks_seen.resize(ranks.div_ceil(64) as usize, 0);
        let (word, bit) = (&mut pending.ranks_seen[rank as usize / 64], 1u64 << (rank % 64));
        if *word & bit != 0 {
            return None;
        }
        *word |= bit;
        pending.reported += 1;
        pending.failed |= !end.ok;
        pending.failed_transfers.extend(&end.failed);
        if pending.reported < ranks {
            return None;
        }
        self.pending.remove(&id.number).map(|(_, pending)| pending)
    }

    /// Every load with a smaller number has ended. Jobs between L1 and L2, which take their time, do not matter to the steps
    /// that stand on loads.
    pub(super) fn settled(&self) -> u64 {
        let is_local = |pending: &Pending| !matches!(pending.kind, JobKind::Fetch | JobKind::Demote);
        let oldest = self.pending.iter().find(|(_, (_, pending))| is_local(pending));
        oldest.map_or(self.next, |(number, _)| *number)
    }

    /// Slots being read; each as often as it is.
    pub(super) fn pinned(&self) -> impl Iterator<Item = SlotId> {
        self.pending.values().flat_map(|(_, pending)| pending.pinned.iter().copied())
    }

    /// Keys that fetches of this epoch bring.
    pub(super) fn fetched_keys(&self, epoch: u32) -> impl Iterator<Item = BlockKey> {
        let of_epoch = self.pending.values().filter(move |(id, _)| id.epoch == epoch);
        let fetches = of_epoch.filter(|(_, pending)| pending.kind == JobKind::Fetch);
        fetches.flat_map(|(_, pending)| pending.keys.iter().copied())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.pending.len()
    }
}
