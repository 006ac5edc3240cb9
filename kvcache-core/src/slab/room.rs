//! How much room there is for a slab. Asked before memory is taken, since finding out later kills processes.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Answers of the system, behind a trait so that tests can make it small.
pub(super) trait Room {
    /// The file system that holds `path`.
    fn file_system(&self, path: &Path) -> io::Result<FileSystem>;

    /// Bytes that this process may still take without swapping or being killed; `None` where the system does not say.
    fn memory_bytes(&self) -> Option<u64>;
}

#[derive(Clone, Copy, Debug)]
pub(super) struct FileSystem {
    pub(super) available_bytes: u64,
    /// Files are memory (tmpfs), so they must fit there as well.
    pub(super) in_memory: bool,
}

/// The running system.
pub(super) struct SystemRoom;

impl Room for SystemRoom {
    fn file_system(&self, path: &Path) -> io::Result<FileSystem> {
        let path = CString::new(path.as_os_str().as_bytes())?;
        // SAFETY: `statfs` is a struct of integers, for which zero is valid.
        let mut answer: libc::statfs = unsafe { std::mem::zeroed() };
        // SAFETY: a terminated string and a struct of the right type, both alive during the call.
        if unsafe { libc::statfs(path.as_ptr(), &mut answer) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let available_bytes = answer.f_bavail.saturating_mul(u64::try_from(answer.f_bsize).unwrap_or(0));
        // A tmpfs without a size limit reports no blocks at all.
        let unlimited = answer.f_blocks == 0;
        Ok(FileSystem {
            available_bytes: if unlimited { u64::MAX } else { available_bytes },
            in_memory: answer.f_type == libc::TMPFS_MAGIC,
        })
    }

    fn memory_bytes(&self) -> Option<u64> {
        memory_bytes()
    }
}

/// Whether files of `path` are memory (tmpfs), or would be if it were made.
///
/// # Errors
/// What the system says of its nearest folder that there is.
pub fn is_in_memory(path: &Path) -> io::Result<bool> {
    let above = path.ancestors().find(|above| above.exists());
    // A name alone is one of the working directory.
    let above = above.filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok(SystemRoom.file_system(above)?.in_memory)
}

/// All memory that this process could have: the machine's, or what its control group allows if that is less. `None` where the
/// system does not say.
pub fn machine_memory_bytes() -> Option<u64> {
    let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| of_meminfo(&text, "MemTotal:"));
    let group = fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    let group = group.and_then(|limit| limit.trim().parse().ok());
    machine.into_iter().chain(group).min()
}

/// The smaller of what the machine and the control group have left. Takes some ten microseconds.
pub(super) fn memory_bytes() -> Option<u64> {
    let machine =
        fs::read_to_string("/proc/meminfo").ok().and_then(|text| of_meminfo(&text, "MemAvailable:"));
    let group = fs::read_to_string("/sys/fs/cgroup/memory.max").ok().zip(
        // Pages of files that could be dropped count as used here: an underestimate, on the safe side.
        fs::read_to_string("/sys/fs/cgroup/memory.current").ok(),
    );
    let group = group.and_then(|(limit, used)| available_of_group(&limit, &used));
    machine.into_iter().chain(group).min()
}

fn of_meminfo(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// `None` for a control group without a limit (its text is `max`).
fn available_of_group(limit: &str, used: &str) -> Option<u64> {
    let limit: u64 = limit.trim().parse().ok()?;
    Some(limit.saturating_sub(used.trim().parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_from_the_systems_texts() {
        let text = "MemTotal: 9 kB\nMemAvailable:   12 kB\n";
        assert_eq!(of_meminfo(text, "MemAvailable:"), Some(12 * 1024));
        assert_eq!(of_meminfo(text, "MemTotal:"), Some(9 * 1024));
        assert_eq!(of_meminfo("MemTotal: 9 kB\n", "MemAvailable:"), None);
        assert_eq!(available_of_group("100\n", "30\n"), Some(70));
        assert_eq!(available_of_group("100\n", "300\n"), Some(0));
        assert_eq!(available_of_group("max\n", "30\n"), None);
    }

    #[test]
    fn the_running_system_answers() {
        let room = SystemRoom;
        assert!(room.file_system(Path::new("/")).unwrap().available_bytes > 0);
        assert!(room.file_system(Path::new("/no/such/path")).is_err());
        assert!(room.memory_bytes().is_some_and(|bytes| bytes > 0));
        assert!(machine_memory_bytes() >= room.memory_bytes());
    }

    /// `/proc` is no tmpfs on any machine, and `/dev/shm` is one where it is there at all.
    #[test]
    fn memory_is_told_from_other_file_systems() {
        for path in ["/proc", "/proc/no/such", "/proc/version"] {
            assert!(!is_in_memory(Path::new(path)).unwrap(), "{path}");
        }
        for path in ["/dev/shm", "/dev/shm/no/such"] {
            assert!(is_in_memory(Path::new(path)).unwrap() || !Path::new("/dev/shm").exists(), "{path}");
        }
        assert_eq!(is_in_memory(Path::new("no-such")).unwrap(), is_in_memory(Path::new(".")).unwrap());
    }
}
