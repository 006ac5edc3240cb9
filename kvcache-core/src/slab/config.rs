//! What a slab is asked to be.

use std::path::PathBuf;
use std::time::Duration;

use super::{HugePages, SlabError};

/// How a slab is opened.
#[derive(Clone, Debug)]
pub struct SlabConfig {
    /// Bytes of a slot.
    pub slot_bytes: usize,
    /// Number of slots.
    pub slot_count: usize,
    /// Where the memory comes from.
    pub backing: Backing,
    /// Which pages to ask for.
    pub huge_pages: HugePages,
    /// Whether anonymous memory is touched in the background ahead of its use. Shared memory always is.
    pub prefault: bool,
    /// The NUMA node that the memory should come from while it has some: that of the device that copies it.
    pub numa_node: Option<u32>,
    /// Whether a device copies from and to the slots, whose memory is then to be pinned.
    pub for_device: bool,
}

/// Where a slab's memory comes from.
#[derive(Clone, Debug)]
pub enum Backing {
    /// Memory of this process, gone with it.
    Anonymous,
    /// A file, by which a restarted engine finds its blocks again.
    Shared(SharedBacking),
}

/// The file of a slab and who may own it.
#[derive(Clone, Debug)]
pub struct SharedBacking {
    /// Where slab files live, such as `/dev/shm`. Created if it does not exist.
    pub directory: PathBuf,
    /// Fingerprint of everything that makes blocks of two engines interchangeable.
    pub namespace: [u8; 16],
    /// Fingerprint of the bytes of one rank's slots.
    pub shard: [u8; 16],
    /// The rank that fills the slots, to tell files of one engine apart.
    pub rank: u32,
    /// Ranks that map the slab besides that one, because their bytes are the same ([`SlabReplica`](super::SlabReplica)).
    pub replicas: u32,
    /// Whether a later engine may find the file. If not, it loses its name as soon as all replicas have it
    /// ([`Slab::all_ranks_are_in`](super::Slab::all_ranks_are_in)); what a kill before that leaves counts as abandoned.
    pub lasting: bool,
    /// Names the engine; equal for all its ranks, different from other engines of the host, the same after a restart.
    pub engine_id: String,
    /// The engine's core process, which outlives none of its ranks on purpose; equal for all ranks.
    pub owner_pid: u32,
    /// How long to wait for workers of an engine that has ended.
    pub orphan_wait: Duration,
    /// Whether slab files that nobody holds may be removed: those of other namespaces after
    /// [`abandoned_after`](Self::abandoned_after), and any other than the own one after a minute if this slab needs their room.
    pub remove_abandoned: bool,
    /// How long a slab file of another namespace must have been unused to count as abandoned.
    pub abandoned_after: Duration,
    /// Whether to open anonymous memory, with a warning, when there is too little shared memory or no free lane.
    pub fall_back: bool,
}

impl SharedBacking {
    /// Our defaults: orphans get 10 s, files of other namespaces are abandoned after an hour, anonymous memory as a last resort.
    pub fn new(directory: impl Into<PathBuf>, namespace: [u8; 16], shard: [u8; 16]) -> Self {
        SharedBacking {
            directory: directory.into(),
            namespace,
            shard,
            rank: 0,
            replicas: 0,
            lasting: true,
            engine_id: format!("pid-{}", std::process::id()),
            owner_pid: std::process::id(),
            orphan_wait: Duration::from_secs(10),
            remove_abandoned: true,
            abandoned_after: Duration::from_secs(3600),
            fall_back: true,
        }
    }
}

impl SlabConfig {
    /// Anonymous memory with our defaults: transparent huge pages, touched in the background.
    pub fn anonymous(slot_bytes: usize, slot_count: usize) -> Self {
        let backing = Backing::Anonymous;
        SlabConfig {
            slot_bytes,
            slot_count,
            backing,
            huge_pages: HugePages::Transparent,
            prefault: true,
            numa_node: None,
            for_device: false,
        }
    }

    /// A slab file, otherwise with the same defaults.
    pub fn shared(slot_bytes: usize, slot_count: usize, backing: SharedBacking) -> Self {
        SlabConfig { backing: Backing::Shared(backing), ..SlabConfig::anonymous(slot_bytes, slot_count) }
    }

    /// Distance of two slots: whole cache lines, so that no two slots share one.
    pub(super) fn stride_bytes(&self) -> Option<usize> {
        self.slot_bytes.checked_next_multiple_of(64)
    }

    pub(super) fn check(&self) -> Result<(), SlabError> {
        let fault = |setting, value: usize, remedy| {
            Err(SlabError::Config { setting, value: value.to_string(), remedy })
        };
        if self.slot_bytes == 0 {
            return fault("slot_bytes", 0, "give slots at least one byte");
        }
        if self.slot_count == 0 {
            return fault("slot_count", 0, "raise the capacity to at least one slot");
        }
        if u32::try_from(self.slot_count).is_err() {
            return fault("slot_count", self.slot_count, "slots are numbered with 32 bits: use larger slots");
        }
        Ok(())
    }
}
