//! Collects the ranks' first reports and finds what all of them still hold from before a restart.

use std::collections::HashMap;

use crate::directory::{FillId, Resident};
use crate::eviction::SlotId;
use crate::report::{Hello, RemoteShard, Report};

pub(super) struct Startup {
    hellos: Vec<Option<Hello>>,
    usable: Vec<u32>,
    complete: bool,
}

impl Startup {
    pub(super) fn new(ranks: u32) -> Self {
        Self { hellos: (0..ranks).map(|_| None).collect(), usable: vec![0; ranks as usize], complete: false }
    }

    /// Takes in a report; whether it completes the start.
    pub(super) fn absorb(&mut self, report: &Report) -> bool {
        let rank = report.rank as usize;
        let Some(usable) = self.usable.get_mut(rank) else { return false };
        *usable = (*usable).max(report.usable_slots);
        if self.complete {
            return false;
        }
        if let Some(hello) = &report.hello {
            self.hellos[rank] = Some(hello.clone());
        }
        self.complete = self.hellos.iter().all(Option::is_some);
        self.complete
    }

    fn known(&self) -> impl Iterator<Item = &Hello> {
        self.hellos.iter().flatten()
    }

    pub(super) fn slot_count(&self) -> u32 {
        self.known().map(|hello| hello.slot_count).min().unwrap_or(0)
    }

    pub(super) fn usable_slots(&self) -> u32 {
        self.usable.iter().copied().min().unwrap_or(0)
    }

    /// Bytes of a slot over all ranks.
    pub(super) fn slot_bytes(&self) -> u64 {
        self.known().map(|hello| hello.slot_bytes).max().unwrap_or(0)
    }

    pub(super) fn copy_threads(&self) -> u32 {
        self.known().map(|hello| hello.copy_threads).min().unwrap_or(0)
    }

    /// The distinct shards of the ranks in L2; `None` unless every rank has one.
    pub(super) fn remote_shards(&self) -> Option<Vec<RemoteShard>> {
        let mut shards: Vec<RemoteShard> = Vec::new();
        for hello in self.known() {
            let shard = hello.remote?;
            if !shards.contains(&shard) {
                shards.push(shard);
            }
        }
        Some(shards)
    }

    /// The highest fill that any rank has seen, agreed on or not.
    pub(super) fn highest_fill(&self) -> FillId {
        self.known().map(|hello| hello.highest_fill).max().unwrap_or_default()
    }

    pub(super) fn lowest_epoch(&self) -> u64 {
        self.known().map(|hello| hello.epoch).min().unwrap_or(0)
    }

    pub(super) fn epoch(&self) -> u64 {
        self.known().map(|hello| hello.epoch).max().unwrap_or(0)
    }

    /// The blocks that every rank holds in the same slot, oldest first, and the slots on which the ranks disagree.
    ///
    /// A rank of an older epoch has missed a reset: nothing of it counts. Frees the tables.
    pub(super) fn agree(&mut self) -> (Vec<Resident>, Vec<SlotId>) {
        let epoch = self.epoch();
        let ranks = self.hellos.len();
        // By slot: its block, the ranks that hold it, and the last of them, so that a rank counts once.
        let mut seen: HashMap<SlotId, (Resident, usize, usize)> = HashMap::new();
        for (rank, hello) in self.hellos.iter_mut().flatten().enumerate() {
            let warm = std::mem::take(&mut hello.warm);
            for block in warm {
                let entry = seen.entry(block.slot).or_insert((block, 0, usize::MAX));
                if entry.0.key == block.key && hello.epoch == epoch && entry.2 != rank {
                    entry.1 += 1;
                    entry.2 = rank;
                }
            }
        }
        let (mut agreed, mut doubtful) = (Vec::new(), Vec::new());
        for (slot, (block, count, _)) in seen {
            if count == ranks {
                agreed.push(block);
            } else {
                doubtful.push(slot);
            }
        }
        agreed.sort_unstable_by_key(|block| (block.fill, block.slot));
        doubtful.sort_unstable();
        (agreed, doubtful)
    }
}
