//! /dev/shm, where slabs outlive their engines: its room, and slabs that nobody uses any more.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::Finding;
use kvcache_core::byte_size::ByteSize;

const SHARED: &str = "/dev/shm";

/// Size and free bytes of a file system.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Room {
    total_bytes: u64,
    free_bytes: u64,
}

pub(super) fn room() -> Finding {
    judge_room(&fs::read_to_string("/proc/mounts").unwrap_or_default(), free_room(SHARED))
}

fn judge_room(mounts: &str, room: io::Result<Room>) -> Finding {
    let in_memory = mounts.lines().any(|line| line.split(' ').skip(1).take(2).eq([SHARED, "tmpfs"]));
    match room {
        Err(error) => Finding::degraded(
            "shared memory",
            format!("{SHARED} cannot be used: {error}"),
            "without it L1 is private memory and is gone with the engine; mount a tmpfs there",
        ),
        Ok(Room { total_bytes, free_bytes }) => {
            let found = format!("{SHARED} has {} free of {}", ByteSize(free_bytes), ByteSize(total_bytes));
            let finding = if !in_memory {
                Finding::degraded(
                    "shared memory",
                    format!("{found}, but is no tmpfs"),
                    format!("slabs there are written to a disk: `mount -t tmpfs tmpfs {SHARED}`"),
                )
            } else if free_bytes < FREE_MIN {
                Finding::degraded(
                    "shared memory",
                    found,
                    "a slab that does not fit is opened as private memory: raise the size (`docker run --shm-size=16g`, in \
                     Kubernetes an emptyDir of medium Memory at /dev/shm)",
                )
            } else {
                Finding::fine("shared memory", found)
            };
            finding.with("free_bytes", free_bytes).with("total_bytes", total_bytes)
        }
    }
}

/// Asks `df`'s question without unsafe code: the text of the kernel has no free bytes, so a child answers.
fn free_room(place: &str) -> io::Result<Room> {
    fs::metadata(place)?;
    let output = std::process::Command::new("df").args(["-B1", "--output=size,avail", place]).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    parse_df(&text).ok_or_else(|| io::Error::other(format!("df answers {text:?}")))
}

fn parse_df(text: &str) -> Option<Room> {
    let mut words = text.lines().nth(1)?.split_whitespace().map(str::parse);
    Some(Room { total_bytes: words.next()?.ok()?, free_bytes: words.next()?.ok()? })
}

/// Slab files of a folder.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Slabs {
    held: u64,
    held_bytes: u64,
    idle: u64,
    idle_bytes: u64,
}

pub(super) fn leftovers() -> Finding {
    judge_leftovers(slabs_in(Path::new(SHARED)))
}

fn judge_leftovers(slabs: Slabs) -> Finding {
    let Slabs { held, held_bytes, idle, idle_bytes } = slabs;
    let found =
        format!("{held} slabs in use ({}), {idle} not ({})", ByteSize(held_bytes), ByteSize(idle_bytes));
    // An idle slab is what a warm restart needs, so that it is no fault by itself.
    let found = if idle == 0 {
        found
    } else {
        format!(
            "{found}: kept for a restart of their engines; to give the memory back, \
             `find {SHARED} -name 'kvcache-*' -exec flock -n {{}} rm {{}} \\;`"
        )
    };
    Finding::fine("slab files", found).with("idle", idle).with("idle_bytes", idle_bytes).with("held", held)
}

fn slabs_in(folder: &Path) -> Slabs {
    let mut slabs = Slabs::default();
    let Ok(entries) = fs::read_dir(folder) else { return slabs };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        let Ok(metadata) = entry.metadata() else { continue };
        let is_folder = metadata.is_dir() && name.starts_with("kvcache-");
        if is_folder {
            // One level down, as the demo and the tests have them.
            let inner = slabs_in(&entry.path());
            slabs.held += inner.held;
            slabs.held_bytes += inner.held_bytes;
            slabs.idle += inner.idle;
            slabs.idle_bytes += inner.idle_bytes;
        }
        let is_slab = name.starts_with("kvcache-") && name.ends_with(".slab");
        if !is_slab || !metadata.is_file() {
            continue;
        }
        // Blocks of 512 bytes, whatever the file system's own are.
        let bytes = metadata.blocks() * 512;
        if is_held(&entry.path()) {
            slabs.held += 1;
            slabs.held_bytes += bytes;
        } else {
            slabs.idle += 1;
            slabs.idle_bytes += bytes;
        }
    }
    slabs
}

/// Whether an engine owns the slab. A shared lock is enough to ask, and harms no owner; it is gone with the file.
fn is_held(path: &Path) -> bool {
    match File::open(path) {
        Ok(file) => matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)),
        // Of another user: who may not be asked is not idle.
        Err(_) => true,
    }
}

const FREE_MIN: u64 = 1 << 30;

#[cfg(test)]
mod tests {
    use super::super::Grade;
    use super::*;

    const MOUNTS: &str = "proc /proc proc rw 0 0\ntmpfs /dev/shm tmpfs rw 0 0\n";

    #[test]
    fn room_is_judged() {
        let room = |free_bytes| Ok(Room { total_bytes: 16 << 30, free_bytes });
        assert_eq!(judge_room(MOUNTS, room(8 << 30)).grade, Grade::Fine);
        let small = judge_room(MOUNTS, room(64 << 20));
        assert_eq!(small.grade, Grade::Degraded);
        assert!(small.remedy.unwrap().contains("--shm-size"));
        assert!(judge_room("", room(8 << 30)).found.ends_with("no tmpfs"));
        let missing = judge_room(MOUNTS, Err(io::Error::other("gone")));
        assert_eq!(missing.found, "/dev/shm cannot be used: gone");
    }

    #[test]
    fn the_answer_of_df_is_read() {
        let room = parse_df("   1B-blocks      Avail\n 1000 900\n");
        assert_eq!(room, Some(Room { total_bytes: 1000, free_bytes: 900 }));
        for broken in ["", "header", "header\n12", "header\na b"] {
            assert_eq!(parse_df(broken), None, "{broken:?}");
        }
    }

    #[test]
    fn slabs_are_counted_as_held_or_idle() {
        let folder = std::env::temp_dir().join(format!("kvcache-doctor-test-{}", std::process::id()));
        fs::create_dir_all(folder.join("kvcache-inner")).unwrap();
        fs::write(folder.join("kvcache-a.slab"), [1; 5000]).unwrap();
        fs::write(folder.join("kvcache-inner/kvcache-b.slab"), [1; 5000]).unwrap();
        fs::write(folder.join("other.slab"), [1; 5000]).unwrap();
        let held = File::options().write(true).open(folder.join("kvcache-a.slab")).unwrap();
        held.lock().unwrap();
        let slabs = slabs_in(&folder);
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!((slabs.held, slabs.idle), (1, 1));
        assert!(slabs.held_bytes >= 5000 && slabs.idle_bytes >= 5000);
        assert!(judge_leftovers(slabs).found.contains("flock -n"));
        assert!(!judge_leftovers(Slabs::default()).found.contains("flock"));
        assert_eq!(slabs_in(Path::new("/no/such/folder")), Slabs::default());
    }
}
