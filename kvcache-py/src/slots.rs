//! One rank's slots: a slab of its own, or the one of a rank whose bytes are the same.

use std::sync::Arc;

use kvcache_core::slab::{Backing, Slab, SlabConfig, SlabError, SlabReplica};
use kvcache_core::store::{ReplicaSlots, SlabSlots, SlotMemory};

pub(crate) enum Slots {
    Own(Arc<SlabSlots>, Vec<String>),
    Replica(Arc<ReplicaSlots>, u32),
}

impl Slots {
    /// Opens the slab of `config`, or as a `replica` maps the one that its rank opens. A replica that finds none in time
    /// opens one of its own, of as many slots.
    pub(crate) fn open(config: &SlabConfig, replica: bool, checksums: bool) -> Result<Self, SlabError> {
        let mut warnings = Vec::new();
        if let Backing::Shared(backing) = &config.backing
            && replica
        {
            match SlabReplica::open(config) {
                Ok(slab) => {
                    return Ok(Self::Replica(Arc::new(ReplicaSlots::new(slab, checksums)), backing.rank));
                }
                Err(error) => warnings.push(format!(
                    "{error}; this rank stores the same bytes again, in private memory of its own"
                )),
            }
            let own = SlabConfig::anonymous(config.slot_bytes, config.slot_count);
            return Ok(Self::Own(Arc::new(SlabSlots::new(Slab::open(&own)?, checksums)), warnings));
        }
        Ok(Self::Own(Arc::new(SlabSlots::new(Slab::open(config)?, checksums)), warnings))
    }

    pub(crate) fn memory(&self) -> Arc<dyn SlotMemory> {
        match self {
            Self::Own(slots, _) => Arc::clone(slots) as _,
            Self::Replica(slots, _) => Arc::clone(slots) as _,
        }
    }

    /// What was opened, for the log.
    pub(crate) fn describe(&self) -> String {
        let memory = self.memory();
        let gib = |bytes: f64| bytes / f64::from(1 << 30);
        let (slots, bytes) = (memory.slot_count(), memory.slot_bytes() as f64);
        let size = format!(
            "L1 of {slots} slots of {:.2} MiB, {:.2} GiB",
            bytes / f64::from(1 << 20),
            gib(bytes * f64::from(slots)),
        );
        let found = memory.warm_slots().len();
        match self {
            Self::Own(own, _) => {
                let slab = own.slab();
                let place = match slab.lane() {
                    Some(lane) => format!("shared memory, lane {lane}"),
                    None if slab.is_shared() => "shared memory of this engine".to_owned(),
                    None => "private memory".to_owned(),
                };
                let removed = slab.report().removed.files;
                format!("{size} in {place}, {found} blocks found, {removed} idle slab files removed")
            }
            Self::Replica(_, leader) => format!("{size} stored by rank {leader}, {found} blocks found"),
        }
    }

    /// What the user should know, one line each.
    pub(crate) fn warnings(&self) -> Vec<String> {
        match self {
            Self::Own(slots, warnings) => {
                let of_slab = slots.slab().warnings();
                warnings.iter().chain(&of_slab).map(our_words).collect()
            }
            Self::Replica(..) => Vec::new(),
        }
    }
}

/// A message of the slab with the name that the setting has here.
pub(crate) fn our_words(message: &impl ToString) -> String {
    message.to_string().replace("slab_path", "slab_dir")
}
