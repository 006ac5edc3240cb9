//! One rank's slots: a slab of its own, or the one of a rank whose bytes are the same.

use std::sync::Arc;

use super::{ReplicaSlots, SlabSlots, SlotMemory};
use crate::slab::{Backing, Slab, SlabConfig, SlabError, SlabReplica};

/// What one rank stores into, or loads from.
pub enum RankSlots {
    /// Its own slab, and what the user should know of how it was opened.
    Own(Arc<SlabSlots>, Vec<String>),
    /// The slab of the rank with this number.
    Replica(Arc<ReplicaSlots>, u32),
}

impl RankSlots {
    /// Opens the slab of `config`, or as a `replica` maps the one that the rank named there opens.
    ///
    /// Where ranks were to share and cannot, each has anonymous memory of its own, and together as many bytes as they
    /// would have shared. The slots that all ranks have are what counts, so it is enough that one of them falls back.
    ///
    /// # Errors
    /// As [`Slab::open`].
    pub fn open(config: &SlabConfig, replica: bool, checksums: bool) -> Result<Self, SlabError> {
        let Backing::Shared(backing) = &config.backing else {
            return Self::own(config, checksums, Vec::new());
        };
        if backing.replicas == 0 {
            return Self::own(config, checksums, Vec::new());
        }
        let rank = backing.rank;
        let shared = if replica {
            SlabReplica::open(config)
                .map(|slab| Self::Replica(Arc::new(ReplicaSlots::new(slab, checksums)), rank))
        } else {
            let strict = crate::slab::SharedBacking { fall_back: false, ..backing.clone() };
            let strict = SlabConfig { backing: Backing::Shared(strict), ..config.clone() };
            Self::own(&strict, checksums, Vec::new())
        };
        shared.or_else(|error| {
            if !(backing.fall_back && error.is_cured_by_anonymous_memory()) {
                return Err(error);
            }
            let slot_count = (config.slot_count / (backing.replicas as usize + 1)).max(1);
            let own = SlabConfig { slot_count, backing: Backing::Anonymous, ..config.clone() };
            let warning =
                format!("{error}; ranks that hold the same bytes store them once each, in anonymous memory");
            Self::own(&own, checksums, vec![warning])
        })
    }

    fn own(config: &SlabConfig, checksums: bool, warnings: Vec<String>) -> Result<Self, SlabError> {
        Ok(Self::Own(Arc::new(SlabSlots::new(Slab::open(config)?, checksums)), warnings))
    }

    /// The slots as the Store uses them.
    pub fn memory(&self) -> Arc<dyn SlotMemory> {
        match self {
            Self::Own(slots, _) => Arc::clone(slots) as _,
            Self::Replica(slots, _) => Arc::clone(slots) as _,
        }
    }

    /// This rank gives up in the middle of a step. What the rank that it shares slots with stores from now on stands on what
    /// this one has not loaded, so no later engine may find any of it.
    pub fn give_up(&self) {
        if let Self::Replica(slots, _) = self {
            slots.replica().disown();
        }
    }

    /// What the user should know, one line each.
    pub fn warnings(&self) -> Vec<String> {
        match self {
            Self::Own(slots, warnings) => warnings.iter().cloned().chain(slots.slab().warnings()).collect(),
            Self::Replica(..) => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::slab::SharedBacking;

    const SLOTS: usize = 24;

    fn folder(name: &str) -> std::path::PathBuf {
        let name = format!("kvcache-rank-slots-{name}-{}", std::process::id());
        std::env::temp_dir().join(name).join("not there yet")
    }

    fn config(folder: &std::path::Path, replicas: u32) -> SlabConfig {
        let backing = SharedBacking {
            replicas,
            orphan_wait: Duration::from_millis(300),
            ..SharedBacking::new(folder, [1; 16], [2; 16])
        };
        SlabConfig::shared(4096, SLOTS, backing)
    }

    /// What the kernel says of the mapping that holds a rank's first slot.
    fn kernel_flags(opened: &RankSlots) -> Vec<String> {
        let address = opened.memory().slot_address(crate::eviction::SlotId(0)).unwrap();
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let range = |line: &str| {
            let (start, end) = line.split(' ').next()?.split_once('-')?;
            Some(usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?)
        };
        let mut lines = maps.lines().skip_while(|line| !range(line).is_some_and(|at| at.contains(&address)));
        let flags = lines.find_map(|line| line.strip_prefix("VmFlags:")).unwrap();
        flags.split_whitespace().map(str::to_owned).collect()
    }

    fn slots(opened: &RankSlots) -> (u32, bool) {
        (opened.memory().slot_count(), opened.memory().is_replica())
    }

    #[test]
    fn a_replica_may_come_first_even_into_a_folder_that_is_not_there() {
        let folder = folder("first");
        let config = SlabConfig::shared(
            4096,
            SLOTS,
            SharedBacking { replicas: 1, ..SharedBacking::new(&*folder, [1; 16], [2; 16]) },
        );
        std::thread::scope(|scope| {
            let replica = scope.spawn(|| RankSlots::open(&config, true, false).unwrap());
            std::thread::sleep(Duration::from_millis(50));
            let owner = RankSlots::open(&config, false, false).unwrap();
            let replica = replica.join().unwrap();
            assert_eq!((slots(&owner), slots(&replica)), ((SLOTS as u32, false), (SLOTS as u32, true)));
            replica.give_up();
        });
        let RankSlots::Own(again, _) = RankSlots::open(&config, false, false).unwrap() else { panic!() };
        assert!(again.slab().report().recreated, "a rank has given up: nothing of it is found");
        std::fs::remove_dir_all(folder.parent().unwrap()).unwrap();
    }

    #[test]
    fn a_rank_that_cannot_share_still_opens_memory_for_its_device() {
        let folder = folder("device");
        for for_device in [false, true] {
            let lonely = SlabConfig { for_device, ..config(&folder, 1) };
            let lonely = RankSlots::open(&lonely, true, false).unwrap();
            let kept_from_children = kernel_flags(&lonely).iter().any(|flag| flag == "dc");
            assert_eq!((slots(&lonely).1, kept_from_children), (false, for_device));
        }
        std::fs::remove_dir_all(folder.parent().unwrap()).unwrap();
    }

    /// Together they take no more memory than they would have shared.
    #[test]
    fn ranks_that_cannot_share_have_a_part_each() {
        let folder = folder("apart");
        let lonely = RankSlots::open(&config(&folder, 2), true, false).unwrap();
        assert_eq!((slots(&lonely), lonely.warnings().len()), ((SLOTS as u32 / 3, false), 1));
        assert!(lonely.warnings()[0].contains("rank 0 has not opened"), "{:?}", lonely.warnings());

        let holder = RankSlots::open(&config(&folder, 0), false, false).unwrap();
        let mut other = config(&folder, 2);
        if let Backing::Shared(backing) = &mut other.backing {
            // The same file as the holder's, whose lane it shares.
            backing.orphan_wait = Duration::from_millis(50);
        }
        let owner = RankSlots::open(&other, false, false).unwrap();
        assert_eq!((slots(&owner), owner.warnings().len()), ((SLOTS as u32 / 3, false), 1));
        drop(holder);
        std::fs::remove_dir_all(folder.parent().unwrap()).unwrap();
    }
}
