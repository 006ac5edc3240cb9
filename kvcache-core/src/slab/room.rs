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
        let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| available_of_meminfo(&text));
        let group = fs::read_to_string("/sys/fs/cgroup/memory.max").ok().zip(
            // Pages of files that could be dropped count as used here: an underestimate, on the safe side.
            fs::read_to_string("/sys/fs/cgroup/memory.current").ok(),
        );
        let group = group.and_then(|(limit, used)| available_of_group(&limit, &used));
        machine.into_iter().chain(group).min()
    }
}

fn available_of_meminfo(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
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
        assert_eq!(available_of_meminfo("MemTotal: 9 kB\nMemAvailable:   12 kB\n"), Some(12 * 1024));
        assert_eq!(available_of_meminfo("MemTotal: 9 kB\n"), None);
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
    }
}
