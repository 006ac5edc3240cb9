use std::fs;
use std::time::Duration;

use super::super::slot_table::SlotRecord;
use super::super::test_directory::TestDirectory;
use super::super::{Slab, Verification};
use super::*;
use crate::BlockKey;

const SLOT_BYTES: usize = 8192;
const SLOTS: usize = 20;

fn config(directory: &TestDirectory, lasting: bool, replicas: u32) -> SlabConfig {
    let backing = SharedBacking {
        engine_id: "engine".to_owned(),
        orphan_wait: Duration::from_secs(30),
        replicas,
        lasting,
        ..SharedBacking::new(directory.path(), [1; 16], [2; 16])
    };
    SlabConfig::shared(SLOT_BYTES, SLOTS, backing)
}

/// Of a slab that is not there.
fn impatient(mut config: SlabConfig) -> SlabConfig {
    if let Backing::Shared(backing) = &mut config.backing {
        backing.orphan_wait = Duration::from_millis(50);
    }
    config
}

fn fill(slab: &Slab, slot: u32, fill_id: u64) -> SlotRecord {
    let key = BlockKey([slot as u8 + 1; 16]);
    let record = SlotRecord { key, parent: BlockKey([0; 16]), engine_hash: [9; 32], fill_id, info: 0 };
    slab.table().begin_fill(SlotId(slot), &record);
    // SAFETY: the slot is usable, and this test is its only owner.
    unsafe { slab.slot_ptr(SlotId(slot)).unwrap().as_ptr().write_bytes(slot as u8 + 7, SLOT_BYTES) };
    assert!(slab.table().publish(SlotId(slot), fill_id));
    record
}

fn bytes(replica: &SlabReplica, slot: u32) -> Vec<u8> {
    let start = replica.slot_ptr(SlotId(slot)).unwrap();
    // SAFETY: the slot is usable, and nobody writes it.
    unsafe { std::slice::from_raw_parts(start.as_ptr(), SLOT_BYTES) }.to_vec()
}

fn slab_files(directory: &TestDirectory) -> usize {
    let entries = fs::read_dir(directory.path()).unwrap();
    entries
        .filter(|entry| entry.as_ref().unwrap().path().extension().is_some_and(|end| end == "slab"))
        .count()
}

#[test]
fn a_replica_reads_what_the_owner_fills() {
    let directory = TestDirectory::new();
    let config = config(&directory, true, 1);
    let slab = Slab::open(&config).unwrap();
    let before = fill(&slab, 3, 1);
    let replica = SlabReplica::open(&config).unwrap();
    assert_eq!((replica.slot_count(), replica.usable_slots(), replica.lane()), (SLOTS, SLOTS, Some(0)));
    assert_eq!(replica.warm_slots().iter().map(|warm| warm.record).collect::<Vec<_>>(), [before]);
    let after = fill(&slab, 19, 2);
    assert_eq!(replica.table().ready(SlotId(19)), Some(after));
    assert_eq!((bytes(&replica, 3), bytes(&replica, 19)), (vec![10; SLOT_BYTES], vec![26; SLOT_BYTES]));
    assert_eq!(replica.slot_ptr(SlotId(SLOTS as u32)), None);
    assert_eq!(slab_files(&directory), 1, "stored once");
    // What the owner has begun is not there.
    slab.table().begin_fill(SlotId(3), &SlotRecord { fill_id: 3, ..before });
    assert_eq!(replica.table().ready(SlotId(3)), None);
}

#[test]
fn a_replica_waits_for_no_more_than_its_owner_will_reserve() {
    let directory = TestDirectory::new();
    let config = config(&directory, true, 1);
    let slab = Slab::open(&config).unwrap();
    let replica = SlabReplica::open(&config).unwrap();
    while slab.is_reserving() {
        sleep(Duration::from_millis(1));
    }
    // As if shared memory had ended in the middle.
    slab.table().set_reserved_bytes((replica.data_offset + 7 * replica.stride_bytes) as u64);
    assert_eq!((replica.usable_slots(), replica.is_growing()), (7, false));
    slab.table().set_reserving_ended(false);
    assert!(replica.is_growing());
}

/// A CUDA driver refuses to pin what is mapped for reading only.
#[test]
fn a_replica_can_be_pinned_where_a_device_copies() {
    let directory = TestDirectory::new();
    let config = config(&directory, true, 1);
    let _slab = Slab::open(&config).unwrap();
    for (for_device, permissions) in [(false, "r--s"), (true, "rw-s")] {
        let replica = SlabReplica::open(&SlabConfig { for_device, ..config.clone() }).unwrap();
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        let start = format!("{:x}-", replica.data.base().as_ptr() as usize);
        let line = maps.lines().find(|line| line.starts_with(&start)).expect("the mapping is listed");
        assert_eq!(line.split(' ').nth(1), Some(permissions), "{line}");
    }
}

#[test]
fn a_replica_waits_for_its_owner_and_gives_up() {
    let directory = TestDirectory::new();
    let config = config(&directory, true, 1);
    let error = SlabReplica::open(&impatient(config.clone())).map(|_| ()).unwrap_err();
    assert!(matches!(error, SlabError::NoLeader { rank: 0, waited_ms: 50.., .. }), "{error}");
    // The file of an engine that has ended is none to map: its next owner may start it afresh.
    drop(Slab::open(&config).unwrap());
    let error = SlabReplica::open(&impatient(config.clone())).map(|_| ()).unwrap_err();
    assert!(matches!(error, SlabError::NoLeader { .. }), "{error}");
    std::thread::scope(|scope| {
        let replica = scope.spawn(|| SlabReplica::open(&config).unwrap());
        sleep(Duration::from_millis(50));
        assert!(!replica.is_finished());
        let _slab = Slab::open(&config).unwrap();
        replica.join().unwrap();
    });
}

#[test]
fn the_owner_says_how_many_slots_there_are_and_must_agree_on_the_rest() {
    let directory = TestDirectory::new();
    let config = config(&directory, true, 1);
    let slab = Slab::open(&SlabConfig { slot_count: SLOTS - 1, ..config.clone() }).unwrap();
    assert_eq!(SlabReplica::open(&config).unwrap().slot_count(), SLOTS - 1);
    drop(slab);
    let _slab =
        Slab::open(&SlabConfig { slot_bytes: SLOT_BYTES / 2, slot_count: SLOTS * 2, ..config.clone() });
    let error = SlabReplica::open(&impatient(config)).map(|_| ()).unwrap_err();
    assert!(matches!(error, SlabError::NoLeader { .. }), "{error}");
}

#[test]
fn a_file_that_need_not_last_goes_when_everybody_has_it() {
    let directory = TestDirectory::new();
    let config = config(&directory, false, 2);
    let slab = Slab::open(&config).unwrap();
    let first = SlabReplica::open(&config).unwrap();
    assert_eq!(slab_files(&directory), 1);
    let second = SlabReplica::open(&config).unwrap();
    assert_eq!(slab_files(&directory), 0);
    fill(&slab, 5, 1);
    assert_eq!(
        [&first, &second].map(|replica| bytes(replica, 5)),
        [vec![12; SLOT_BYTES], vec![12; SLOT_BYTES]]
    );
    drop(slab);
    assert_eq!(bytes(&first, 5), [12; SLOT_BYTES], "the mapping stays");
    // Nobody finds what it held, and nothing is left of it, if a replica never came either.
    let slab = Slab::open(&config).unwrap();
    assert!(slab.warm_slots().is_empty());
    drop(slab);
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn a_void_fill_is_not_published_by_its_owner() {
    let directory = TestDirectory::new();
    let config = config(&directory, true, 1);
    let slab = Slab::open(&config).unwrap();
    let replica = SlabReplica::open(&config).unwrap();
    let record = fill(&slab, 3, 1);
    replica.table().void(SlotId(3), 9);
    assert!(slab.table().ready(SlotId(3)).is_some(), "another fill's");
    replica.table().void(SlotId(3), 1);
    assert_eq!(slab.table().ready(SlotId(3)), None);
    slab.table().begin_fill(SlotId(3), &SlotRecord { fill_id: 2, ..record });
    replica.table().void(SlotId(3), 2);
    assert!(!slab.table().publish(SlotId(3), 2));
    drop((slab, replica));
    assert!(Slab::open(&config).unwrap().warm_slots().is_empty());
}

#[test]
fn checksums_are_compared_without_changing_anything() {
    let directory = TestDirectory::new();
    let config = config(&directory, true, 1);
    let slab = Slab::open(&config).unwrap();
    let replica = SlabReplica::open(&config).unwrap();
    fill(&slab, 0, 1);
    // SAFETY: this test is the only owner of all slots.
    let matches = || unsafe { replica.matches_checksum(SlotId(0)) };
    assert!(!matches(), "it has none");
    // SAFETY: as above.
    let checksum = unsafe { slab.checksum_of(SlotId(0)) }.unwrap();
    assert!(slab.table().set_checksum(SlotId(0), 1, checksum) && matches());
    // SAFETY: as above; the slot is usable.
    unsafe { *slab.slot_ptr(SlotId(0)).unwrap().as_ptr() ^= 1 };
    assert!(!matches() && slab.table().ready(SlotId(0)).is_some());
    // SAFETY: as above.
    assert_eq!(unsafe { slab.verify(SlotId(0)) }, Verification::Mismatch);
}
