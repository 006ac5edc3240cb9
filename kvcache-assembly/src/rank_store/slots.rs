//! What was opened for a rank, in the words of an engine's log.

use kvcache_core::store::RankSlots;

/// What was opened, for the log.
pub(super) fn describe(slots: &RankSlots) -> String {
    let memory = slots.memory();
    let (count, bytes) = (memory.slot_count(), memory.slot_bytes() as f64);
    let size = format!(
        "L1 of {count} slots of {:.2} MiB, {:.2} GiB",
        bytes / f64::from(1 << 20),
        bytes * f64::from(count) / f64::from(1 << 30),
    );
    let found = memory.warm_slots().len();
    match slots {
        RankSlots::Own(own, _) => {
            let slab = own.slab();
            let place = match slab.lane() {
                Some(lane) => format!("shared memory, lane {lane}"),
                None if slab.is_shared() => "shared memory of this engine".to_owned(),
                None => "private memory".to_owned(),
            };
            let removed = slab.report().removed.files;
            format!("{size} in {place}, {found} blocks found, {removed} idle slab files removed")
        }
        RankSlots::Replica(_, leader) => format!("{size} stored by rank {leader}, {found} blocks found"),
    }
}
