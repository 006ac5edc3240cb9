//! Processes that share slab files and are killed: what a survivor finds is complete, and lanes come free.
//!
//! The children are this test binary again, running [`child`] with the environment telling what to do.

#![expect(clippy::unwrap_used, reason = "tests panic")]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use kvcache_core::BlockKey;
use kvcache_core::copy_engine::stream_copy::{Variant, fence};
use kvcache_core::eviction::SlotId;
use kvcache_core::slab::{SharedBacking, Slab, SlabConfig, SlotRecord};

const SLOT_BYTES: usize = 256 << 10;
const SLOT_COUNT: usize = 64;
const ROUNDS: u64 = 30;

/// A child whose parent was killed ends by itself.
const CHILD_LIFE: Duration = Duration::from_secs(60);

/// Thirty times: a child refills slots in a loop and is killed at a random moment. Every slot that is then ready holds
/// exactly the bytes of the fill that its record names.
#[test]
fn after_sigkill_every_ready_slot_is_complete() {
    let directory = Directory::new("kill");
    let mut random = 0x2545_F491_4F6C_DD1D_u64;
    let (mut ready, mut lost, mut newest) = (0, 0, 0);
    for round in 0..ROUNDS {
        let mut child = Process::start(directory.path(), "fill", "engine");
        assert_eq!(child.next_line(), format!("open {}", round > 0), "round {round}");
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        std::thread::sleep(Duration::from_micros(500 + random % 40_000));
        drop(child);

        let slab = Slab::open(&config(directory.path(), "engine")).unwrap();
        assert!(slab.report().reused, "{:?}", slab.report());
        let warm = slab.warm_slots();
        for warm in &warm {
            let start = slab.slot_ptr(warm.slot).unwrap().as_ptr();
            // SAFETY: a usable slot of `SLOT_BYTES`, whose only writer was killed.
            let words = unsafe { std::slice::from_raw_parts(start.cast::<u64>(), SLOT_BYTES / 8) };
            let expected = word(warm.slot, warm.record.fill_id);
            let wrong = words.iter().position(|&found| found != expected);
            assert_eq!(wrong, None, "round {round}: {warm:?} is torn");
            assert_eq!(warm.record.key, key(warm.slot, warm.record.fill_id));
        }
        let highest = slab.table().highest_fill_id();
        assert!(highest >= newest && warm.iter().all(|warm| warm.record.fill_id <= highest));
        newest = highest;
        ready += warm.len();
        lost += SLOT_COUNT - warm.len();
    }
    println!("{ready} ready slots checked, {lost} absent, {newest} fills");
    assert!(newest > 2 * ROUNDS, "the children hardly wrote: {newest} fills");
    assert!(lost > 0 && ready > 0);
}

/// Two processes of different engines take two lanes; after the first is killed, its lane and its blocks come back to it.
#[test]
fn processes_take_lanes_and_find_them_again() {
    let directory = Directory::new("lanes");
    let mut first = Process::start(directory.path(), "hold", "first");
    assert_eq!(first.next_line(), "lane Some(0) warm 0");
    let mut second = Process::start(directory.path(), "hold", "second");
    assert_eq!(second.next_line(), "lane Some(1) warm 0");
    drop((first, second));
    let mut second = Process::start(directory.path(), "hold", "second");
    assert_eq!(second.next_line(), "lane Some(1) warm 1");
}

/// A worker outlives its engine's core process: the restarted engine waits for it instead of starting cold.
#[test]
fn a_restart_waits_for_orphaned_workers() {
    let directory = Directory::new("orphan");
    let mut core = Command::new("sleep").arg("60").spawn().unwrap();
    let mut orphan = Process::start(directory.path(), &format!("hold:{}", core.id()), "engine");
    assert_eq!(orphan.next_line(), "lane Some(0) warm 0");
    core.kill().unwrap();
    core.wait().unwrap();
    let mut restarted = Process::start(directory.path(), "hold", "engine");
    std::thread::sleep(Duration::from_millis(200));
    let killed = Instant::now();
    drop(orphan);
    assert_eq!(restarted.next_line(), "lane Some(0) warm 1");
    assert!(killed.elapsed() < Duration::from_secs(5));
}

#[test]
#[ignore = "the child process of the other tests"]
fn child() {
    let Ok(role) = std::env::var("SLAB_CRASH_ROLE") else { return };
    let directory = PathBuf::from(std::env::var("SLAB_CRASH_DIRECTORY").unwrap());
    let engine = std::env::var("SLAB_CRASH_ENGINE").unwrap();
    let mut config = config(&directory, &engine);
    if let (Some((_, pid)), kvcache_core::slab::Backing::Shared(backing)) =
        (role.split_once(':'), &mut config.backing)
    {
        backing.owner_pid = pid.parse().unwrap();
    }
    let slab = Slab::open(&config).unwrap();
    while slab.usable_slots() < SLOT_COUNT {
        std::thread::yield_now();
    }
    if role.starts_with("hold") {
        let warm = slab.warm_slots().len();
        // Before the word: its reader may kill this process at once.
        fill(&slab, SlotId(0), slab.table().highest_fill_id() + 1);
        say(&format!("lane {:?} warm {warm}", slab.lane()));
        std::thread::sleep(CHILD_LIFE);
        return;
    }
    say(&format!("open {}", slab.report().reused));
    let mut fill_id = slab.table().highest_fill_id();
    let end = Instant::now() + CHILD_LIFE;
    while Instant::now() < end {
        fill_id += 1;
        fill(&slab, SlotId((fill_id.wrapping_mul(0x9E37_79B9) % SLOT_COUNT as u64) as u32), fill_id);
    }
}

fn fill(slab: &Slab, slot: SlotId, fill_id: u64) {
    let source = vec![word(slot, fill_id); SLOT_BYTES / 8];
    let key = key(slot, fill_id);
    let record = SlotRecord { key, parent: BlockKey([0; 16]), engine_hash: [1; 32], fill_id, info: 0 };
    slab.table().begin_fill(slot, &record);
    let target = slab.slot_ptr(slot).unwrap().as_ptr();
    // SAFETY: a usable slot of `SLOT_BYTES` that only this thread touches, and a source of the same length.
    unsafe { Variant::best().copy(source.as_ptr().cast(), target, SLOT_BYTES) };
    fence();
    assert!(slab.table().publish(slot, fill_id));
}

fn word(slot: SlotId, fill_id: u64) -> u64 {
    (fill_id << 8 | u64::from(slot.0)).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

fn key(slot: SlotId, fill_id: u64) -> BlockKey {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&fill_id.to_le_bytes());
    key[8..12].copy_from_slice(&slot.0.to_le_bytes());
    BlockKey(key)
}

fn config(directory: &Path, engine: &str) -> SlabConfig {
    let backing = SharedBacking {
        engine_id: engine.to_owned(),
        fall_back: false,
        orphan_wait: Duration::from_secs(30),
        ..SharedBacking::new(directory, [1; 16], [2; 16])
    };
    SlabConfig::shared(SLOT_BYTES, SLOT_COUNT, backing)
}

/// A child, killed when dropped.
struct Process {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Process {
    fn start(directory: &Path, role: &str, engine: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "child", "--nocapture"])
            .env("SLAB_CRASH_ROLE", role)
            .env("SLAB_CRASH_DIRECTORY", directory)
            .env("SLAB_CRASH_ENGINE", engine)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Process { child, lines }
    }

    fn next_line(&mut self) -> String {
        let mut line = String::new();
        while self.lines.read_line(&mut line).unwrap() > 0 {
            if let Some(words) = line.strip_prefix("child: ") {
                return words.trim_end().to_owned();
            }
            line.clear();
        }
        panic!("the child ended without a word");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A child's words are marked, since the test harness prints on the same stream.
fn say(words: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "\nchild: {words}").unwrap();
    out.flush().unwrap();
}

struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let shared = Path::new("/dev/shm");
        let parent = if shared.is_dir() { shared.to_path_buf() } else { std::env::temp_dir() };
        let path = parent.join(format!("kvcache-crash-{name}-{}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Directory(path)
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
