use std::sync::atomic::{AtomicUsize, Ordering};

use super::super::room::FileSystem;
use super::super::slot_table::SlotRecord;
use super::super::test_directory::TestDirectory;
use super::*;
use crate::BlockKey;

const SLOT_BYTES: usize = 8192;

/// A machine with as much room as the test says.
struct TestRoom {
    file_system_bytes: u64,
    memory_bytes: u64,
}

impl Room for TestRoom {
    fn file_system(&self, _path: &Path) -> io::Result<FileSystem> {
        Ok(FileSystem { available_bytes: self.file_system_bytes, in_memory: true })
    }

    fn memory_bytes(&self) -> Option<u64> {
        Some(self.memory_bytes)
    }
}

fn backing(directory: &TestDirectory) -> SharedBacking {
    SharedBacking {
        engine_id: "engine".to_owned(),
        orphan_wait: Duration::from_millis(50),
        ..SharedBacking::new(directory.path(), [1; 16], [2; 16])
    }
}

fn config(directory: &TestDirectory, slot_count: usize) -> SlabConfig {
    SlabConfig::shared(SLOT_BYTES, slot_count, backing(directory))
}

fn open(config: &SlabConfig) -> Slab {
    let slab = Slab::open(config).unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    while slab.is_reserving() && Instant::now() < deadline {
        std::thread::yield_now();
    }
    slab
}

fn pattern(slot: u32, fill_id: u64) -> u8 {
    (fill_id * 37 + u64::from(slot) * 11 + 1) as u8
}

/// Fills a slot the way the Store does.
fn fill(slab: &Slab, slot: u32, fill_id: u64) -> SlotRecord {
    let key = BlockKey([slot as u8 + 1; 16]);
    let record = SlotRecord { key, parent: BlockKey([0; 16]), engine_hash: [9; 32], fill_id, info: 0 };
    slab.table().begin_fill(SlotId(slot), &record);
    let start = slab.slot_ptr(SlotId(slot)).unwrap();
    // SAFETY: the slot is usable, and this test is its only owner.
    unsafe { start.as_ptr().write_bytes(pattern(slot, fill_id), slab.slot_bytes()) };
    assert!(slab.table().publish(SlotId(slot), fill_id));
    record
}

fn bytes(slab: &Slab, slot: SlotId) -> Vec<u8> {
    // SAFETY: the slot is usable, and nobody writes it.
    unsafe { std::slice::from_raw_parts(slab.slot_ptr(slot).unwrap().as_ptr(), slab.slot_bytes()) }.to_vec()
}

fn slab_path(directory: &TestDirectory) -> std::path::PathBuf {
    let entries = fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().path());
    entries.into_iter().find(|path| path.extension().is_some_and(|extension| extension == "slab")).unwrap()
}

#[test]
fn anonymous_slots_are_separate_aligned_and_bounded() {
    let slab = open(&SlabConfig::anonymous(100, 5));
    assert_eq!((slab.slot_count(), slab.usable_slots(), slab.stride_bytes()), (5, 5, 128));
    for slot in 0..5 {
        fill(&slab, slot, 1);
    }
    for slot in 0..5 {
        assert_eq!(slab.slot_ptr(SlotId(slot)).unwrap().as_ptr() as usize % 64, 0);
        assert_eq!(bytes(&slab, SlotId(slot)), [pattern(slot, 1); 100]);
    }
    assert_eq!(slab.slot_ptr(SlotId(5)), None);
    assert_eq!(slab.base().as_ptr() as usize % (2 << 20), 0);
    assert!(slab.warm_slots().is_empty() && !slab.is_shared());
}

/// There is no such node; a container that may not ask is told so in the same way.
#[test]
fn a_slab_far_from_its_device_warns() {
    let directory = TestDirectory::new();
    for near in [SlabConfig::anonymous(SLOT_BYTES, 4), config(&directory, 4)] {
        assert_eq!(open(&near).warnings(), [""; 0]);
        let far = open(&SlabConfig { numa_node: Some(100_000), ..near });
        assert!(far.warnings().iter().any(|line| line.contains("another NUMA node")), "{:?}", far.warnings());
        assert_eq!(far.usable_slots(), 4);
    }
}

#[test]
fn blocks_in_a_file_survive_reopening() {
    let directory = TestDirectory::new();
    let slab = open(&config(&directory, 20));
    assert!(slab.is_shared() && !slab.report().reused && slab.warm_slots().is_empty());
    let records = [fill(&slab, 3, 1), fill(&slab, 19, 2)];
    slab.table().begin_fill(SlotId(7), &SlotRecord { fill_id: 3, ..records[0] });
    drop(slab);

    let slab = open(&config(&directory, 20));
    assert!(slab.report().reused && !slab.report().recreated);
    let warm = slab.warm_slots();
    assert_eq!(warm.iter().map(|warm| warm.record).collect::<Vec<_>>(), records);
    for warm in warm {
        assert!(
            bytes(&slab, warm.slot).iter().all(|&byte| byte == pattern(warm.slot.0, warm.record.fill_id))
        );
    }
    assert_eq!(slab.table().highest_fill_id(), 3);
}

/// Truncated, longer, of other settings, scribbled over, sparse: never served, never a crash, and counted.
#[test]
fn files_of_another_shape_are_started_afresh() {
    type Damage = (&'static str, fn(&Path));
    let damage: [Damage; 6] = [
        ("truncated", |path| File::options().write(true).open(path).unwrap().set_len(5000).unwrap()),
        ("longer", |path| File::options().write(true).open(path).unwrap().set_len(64 << 20).unwrap()),
        ("no header", |path| {
            let length = fs::metadata(path).unwrap().len();
            let file = File::options().write(true).open(path).unwrap();
            file.set_len(0).unwrap();
            file.set_len(length).unwrap();
        }),
        ("garbage", |path| {
            let length = fs::metadata(path).unwrap().len() as usize;
            fs::write(path, vec![0x5A; length]).unwrap();
        }),
        ("flipped", |path| {
            use std::os::unix::fs::FileExt;
            File::options().write(true).open(path).unwrap().write_all_at(&[0xFF], 40).unwrap();
        }),
        ("sparse", |path| {
            // The table as it was, without the storage that it claims.
            let content = fs::read(path).unwrap();
            fs::write(path, &content[..4096 + 20 * 128]).unwrap();
            File::options().write(true).open(path).unwrap().set_len(content.len() as u64).unwrap();
        }),
    ];
    for (name, damage) in damage {
        let directory = TestDirectory::new();
        let slab = open(&config(&directory, 20));
        fill(&slab, 3, 1);
        drop(slab);
        damage(&slab_path(&directory));
        let slab = open(&config(&directory, 20));
        assert!(slab.report().recreated && !slab.report().reused, "{name}");
        assert_eq!((slab.warm_slots(), slab.usable_slots()), (Vec::new(), 20), "{name}");
        fill(&slab, 3, 2);
    }
    let directory = TestDirectory::new();
    fill(&open(&config(&directory, 20)), 3, 1);
    let slab = open(&SlabConfig { slot_bytes: SLOT_BYTES / 2, slot_count: 40, ..config(&directory, 20) });
    assert!(slab.report().recreated && slab.warm_slots().is_empty(), "equal length, other slots");
}

#[test]
fn verification_confirms_good_bytes_and_drops_bad_ones() {
    let directory = TestDirectory::new();
    let slab = open(&config(&directory, 4));
    for slot in 0..3 {
        fill(&slab, slot, 1);
    }
    for slot in 0..2 {
        // SAFETY: this test is the slots' only owner, here and below.
        let checksum = unsafe { slab.checksum_of(SlotId(slot)) }.unwrap();
        assert!(slab.table().set_checksum(SlotId(slot), 1, checksum));
    }
    // SAFETY: the slot is usable.
    unsafe { *slab.slot_ptr(SlotId(1)).unwrap().as_ptr().add(SLOT_BYTES - 1) ^= 1 };
    // SAFETY: as above.
    let verify = |slot| unsafe { slab.verify(SlotId(slot)) };
    use Verification::{Match, Mismatch, Unknown};
    assert_eq!([0, 1, 1, 2, 3].map(verify), [Match, Mismatch, Unknown, Unknown, Unknown]);
    let ready = [0, 1, 2].map(|slot| slab.table().ready(SlotId(slot)).is_some());
    assert_eq!(ready, [true, false, true]);
}

#[test]
fn too_little_shared_memory_means_anonymous_memory_and_one_warning() {
    let directory = TestDirectory::new();
    let room = TestRoom { file_system_bytes: 1 << 20, memory_bytes: 1 << 30 };
    let slab = Slab::open_with(&config(&directory, 20), &room).unwrap();
    assert!(!slab.is_shared());
    assert_eq!((slab.usable_slots(), slab.warnings().len()), (20, 1));
    let warning = &slab.warnings()[0];
    assert!(warning.contains("1048576 bytes available") && warning.contains("--shm-size"), "{warning}");
    let left = fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(
        left.into_iter().all(|name| !name.to_string_lossy().ends_with(".slab")),
        "the empty file stays behind"
    );

    let strict = SharedBacking { fall_back: false, ..backing(&directory) };
    let strict = SlabConfig { backing: Backing::Shared(strict), ..config(&directory, 20) };
    let error = Slab::open_with(&strict, &room).map(|_| ()).unwrap_err();
    assert!(matches!(error, SlabError::Room { available_bytes: 0x10_0000, .. }), "{error}");
}

#[test]
fn more_than_the_machines_memory_is_refused_with_numbers() {
    let room = TestRoom { file_system_bytes: u64::MAX, memory_bytes: 1 << 20 };
    let error = Slab::open_with(&SlabConfig::anonymous(1 << 20, 64), &room).map(|_| ()).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("1048576 bytes available") && text.contains("lower the capacity"), "{text}");
    let directory = TestDirectory::new();
    let error = Slab::open_with(&config(&directory, 4000), &room).map(|_| ()).unwrap_err();
    assert!(matches!(error, SlabError::Room { .. }), "neither as a file nor anonymous: {error}");
}

#[test]
fn idle_slabs_of_others_make_room_when_it_is_needed() {
    let directory = TestDirectory::new();
    let other = SharedBacking { namespace: [8; 16], ..backing(&directory) };
    drop(open(&SlabConfig::shared(SLOT_BYTES, 10, other)));
    let path = slab_path(&directory);
    let config = config(&directory, 20);
    let room = TestRoom { file_system_bytes: 0, memory_bytes: 1 << 30 };

    assert_eq!(
        Slab::open_with(&config, &room).unwrap().report().removed.files,
        0,
        "used less than a minute ago"
    );
    let file = File::options().write(true).open(&path).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(120)).unwrap();
    assert_eq!(open(&config).report().removed.files, 0, "not abandoned for an hour, and there is room");
    let bigger = SlabConfig { slot_count: 4000, ..config.clone() };
    let report = Slab::open_with(&bigger, &room).unwrap().report().clone();
    assert_eq!((report.removed.files, report.warnings.len()), (1, 1), "the test's room does not grow");
    assert!(!path.exists());
}

#[test]
fn abandoned_slabs_of_other_namespaces_are_removed_and_counted() {
    let directory = TestDirectory::new();
    let other = SharedBacking { namespace: [8; 16], ..backing(&directory) };
    drop(open(&SlabConfig::shared(SLOT_BYTES, 10, other)));
    let path = slab_path(&directory);
    let own = SharedBacking { rank: 5, ..backing(&directory) };
    drop(open(&SlabConfig::shared(SLOT_BYTES, 10, own)));
    for entry in fs::read_dir(directory.path()).unwrap() {
        let file = File::options().write(true).open(entry.unwrap().path()).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(3700)).unwrap();
    }
    let keep = SharedBacking { remove_abandoned: false, ..backing(&directory) };
    drop(open(&SlabConfig::shared(SLOT_BYTES, 10, keep)));
    assert!(path.exists());
    let slab = open(&config(&directory, 10));
    assert_eq!(slab.report().removed.files, 1);
    assert!(slab.report().removed.bytes >= 10 * SLOT_BYTES as u64 && !path.exists());
}

#[test]
fn a_second_owner_of_a_rank_gets_anonymous_memory() {
    let directory = TestDirectory::new();
    let first = open(&config(&directory, 10));
    let second = open(&config(&directory, 10));
    assert_eq!((first.lane(), second.lane()), (Some(0), None));
    assert!(second.warnings()[0].contains("still in use"), "{:?}", second.warnings());
    let other_rank = SharedBacking { rank: 1, ..backing(&directory) };
    assert_eq!(open(&SlabConfig::shared(SLOT_BYTES, 10, other_rank)).lane(), Some(0));
    let other_engine = SharedBacking { engine_id: "other".to_owned(), ..backing(&directory) };
    assert_eq!(open(&SlabConfig::shared(SLOT_BYTES, 10, other_engine)).lane(), Some(1));
}

/// A path that is a file, and a directory that refuses new files: works for root as well.
#[test]
fn unusable_directories_are_errors_that_name_the_path() {
    let directory = TestDirectory::new();
    let file = directory.path().join("file");
    fs::write(&file, b"").unwrap();
    for path in [file, "/proc/self/net".into()] {
        let config = SlabConfig::shared(SLOT_BYTES, 4, SharedBacking::new(&path, [1; 16], [2; 16]));
        let text = Slab::open(&config).map(|_| ()).unwrap_err().to_string();
        assert!(text.contains(path.to_str().unwrap()) && text.contains("slab_path"), "{text}");
        assert!(!text.contains('\n'));
    }
}

#[test]
fn impossible_settings_are_refused() {
    for (slot_bytes, slot_count) in [(0, 1), (1, 0), (1, 1 << 33), (usize::MAX - 70, 1), (1 << 40, 1 << 30)] {
        let error = Slab::open(&SlabConfig::anonymous(slot_bytes, slot_count)).map(|_| ()).unwrap_err();
        assert!(matches!(error, SlabError::Config { .. }), "{error}");
    }
}

/// A large slab: only its first slots are usable when it opens, all of them soon after, also when it is reused.
#[test]
fn slots_become_usable_as_their_storage_is_reserved() {
    let directory = TestDirectory::new();
    let slot_count = (PIECE_BYTES / SLOT_BYTES) * 2 + 100;
    let slab = Slab::open(&config(&directory, slot_count)).unwrap();
    assert!(slab.usable_slots() >= PIECE_BYTES / SLOT_BYTES);
    drop(slab);
    let slab = open(&config(&directory, slot_count));
    assert_eq!(slab.usable_slots(), slot_count);
    let allocated = allocated_bytes(&fs::metadata(slab_path(&directory)).unwrap());
    assert!(allocated >= (slot_count * SLOT_BYTES) as u64);
    drop(slab);
    let slab = Slab::open(&config(&directory, slot_count)).unwrap();
    assert_eq!((slab.usable_slots(), slab.report().reused), (slot_count, true));
}

/// A file that was cut short by a full file system is used again as far as it got.
#[test]
fn a_reused_file_does_not_need_room_for_its_rest() {
    let directory = TestDirectory::new();
    let slot_count = (PIECE_BYTES / SLOT_BYTES) * 2;
    let slab = open(&config(&directory, slot_count));
    let record = fill(&slab, 5, 1);
    let half = slab.data_offset + PIECE_BYTES;
    slab.table().set_reserved_bytes(half as u64);
    drop(slab);
    let file = File::options().write(true).open(slab_path(&directory)).unwrap();
    let length = file.metadata().unwrap().len();
    file.set_len(half as u64 + 4096).unwrap();
    file.set_len(length).unwrap();
    let room = TestRoom { file_system_bytes: 0, memory_bytes: 1 << 30 };
    let slab = Slab::open_with(&config(&directory, slot_count), &room).unwrap();
    assert!(slab.report().reused, "{:?}", slab.report());
    assert_eq!(slab.warm_slots().iter().map(|warm| warm.record).collect::<Vec<_>>(), [record]);
}

#[test]
fn nothing_more_is_taken_when_memory_is_short() {
    let directory = TestDirectory::new();
    let slot_count = (PIECE_BYTES / SLOT_BYTES) * 2;
    let slab = open(&config(&directory, slot_count));
    let file = File::options().read(true).write(true).open(slab_path(&directory)).unwrap();
    let storage = Storage::File(Arc::clone(&slab.mapping), file, Arc::clone(&slab.table));
    static ASKED: AtomicUsize = AtomicUsize::new(0);
    // Enough for one piece, too little for the next.
    let memory = || Some(if ASKED.fetch_add(1, Ordering::Relaxed) == 0 { 1 << 30 } else { 1 << 20 });
    let reservation = Reservation::start(storage, slab.data_offset, memory).unwrap();
    while reservation.is_running() {
        std::thread::yield_now();
    }
    assert_eq!(reservation.usable_bytes(), slab.data_offset + PIECE_BYTES);
    assert!(reservation.warning().is_some_and(|warning| warning.contains("the cache is smaller")));
}

/// Slots beyond the reservation are never handed out, and the rest of the slab works.
#[test]
fn storage_that_runs_out_leaves_fewer_slots() {
    let directory = TestDirectory::new();
    let slab = open(&config(&directory, 20));
    fill(&slab, 2, 1);
    fill(&slab, 15, 2);
    slab.table().set_reserved_bytes((slab.data_offset + 10 * SLOT_BYTES + 100) as u64);
    let shape = Shape::of(&config(&directory, 20)).unwrap();
    // A file opened for reading only: no more storage can be reserved through it.
    let file = File::open(slab_path(&directory)).unwrap();
    let storage = Storage::File(Arc::clone(&slab.mapping), file, Arc::clone(&slab.table));
    let reservation = Reservation::start(storage, slab.table.reserved_bytes() as usize, || None).unwrap();
    let report = OpenReport { reused: true, ..OpenReport::default() };
    let slab = shape.slab(Arc::clone(&slab.mapping), Arc::clone(&slab.table), reservation, None, report);
    while slab.is_reserving() {
        std::thread::yield_now();
    }
    assert_eq!(slab.usable_slots(), 10);
    assert!(slab.slot_ptr(SlotId(9)).is_some() && slab.slot_ptr(SlotId(10)).is_none());
    assert_eq!(slab.warm_slots().iter().map(|warm| warm.slot).collect::<Vec<_>>(), [SlotId(2)]);
    assert_eq!(slab.warnings().len(), 1);
    // SAFETY: nobody writes the slot.
    assert_eq!(unsafe { slab.checksum_of(SlotId(15)) }, None);
}
