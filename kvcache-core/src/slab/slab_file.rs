//! Files of slabs: their names, their locks, and the removal of those that nobody wants any more.

use std::fmt;
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use super::SlabError;
use super::lane::LOCK_POLL;
use super::owner::{hex, unhex};

/// What a slab file's name says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct SlabName {
    pub(super) namespace: [u8; 16],
    pub(super) lane: u32,
    pub(super) shard: [u8; 16],
    pub(super) rank: u32,
}

impl fmt::Display for SlabName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (namespace, shard) = (hex(&self.namespace), hex(&self.shard));
        write!(f, "kvcache-{namespace}-lane{}-shard{shard}-rank{}.slab", self.lane, self.rank)
    }
}

impl SlabName {
    /// `None` unless `name` is exactly what [`Display`](fmt::Display) writes.
    pub(super) fn parse(name: &str) -> Option<Self> {
        let mut parts = name.strip_prefix("kvcache-")?.strip_suffix(".slab")?.split('-');
        let namespace = unhex(parts.next()?)?.try_into().ok()?;
        let lane = parts.next()?.strip_prefix("lane")?.parse().ok()?;
        let shard = unhex(parts.next()?.strip_prefix("shard")?)?.try_into().ok()?;
        let rank = parts.next()?.strip_prefix("rank")?.parse().ok()?;
        let parsed = SlabName { namespace, lane, shard, rank };
        (parsed.to_string() == name).then_some(parsed)
    }
}

/// Opens or creates a file that only this user may read, without following a link that somebody planted.
pub(super) fn open_private(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    options.custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC).open(path)
}

/// Opens a file that exists, without following a link.
pub(super) fn open_existing(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.read(true).write(true).custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC).open(path)
}

/// Opens the slab file and becomes its only owner, waiting until `deadline` for the one before.
pub(super) fn open_owned(path: &Path, deadline: Instant) -> Result<File, SlabError> {
    let started = Instant::now();
    let failed = |operation, source| SlabError::File { operation, path: path.to_owned(), source };
    loop {
        let file = open_private(path).map_err(|source| failed("open", source))?;
        match file.try_lock() {
            // Whoever removes a file locks it first: it may have gone between our open and our lock.
            Ok(()) if is_at(&file, path) => return Ok(file),
            Ok(()) => continue,
            Err(TryLockError::Error(source)) => return Err(failed("lock", source)),
            Err(TryLockError::WouldBlock) if Instant::now() >= deadline => {
                return Err(SlabError::InUse {
                    path: path.to_owned(),
                    waited_ms: started.elapsed().as_millis(),
                });
            }
            Err(TryLockError::WouldBlock) => sleep(LOCK_POLL),
        }
    }
}

/// Slab files that were removed.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Removed {
    /// Files.
    pub files: u64,
    /// Bytes that they occupied.
    pub bytes: u64,
}

/// Removes slab files of `directory` that nobody holds, that were neither opened nor closed for `idle`, and that `unwanted` agrees
/// to lose. Files that cannot be looked at or removed stay.
pub(super) fn remove_idle(directory: &Path, idle: Duration, unwanted: &dyn Fn(&SlabName) -> bool) -> Removed {
    let mut removed = Removed::default();
    let Ok(entries) = fs::read_dir(directory) else { return removed };
    for path in entries.flatten().map(|entry| entry.path()) {
        let name = path.file_name().and_then(|name| name.to_str()).and_then(SlabName::parse);
        if !name.is_some_and(|name| unwanted(&name)) {
            continue;
        }
        let open = open_existing(&path).ok();
        let Some((file, metadata)) = open.and_then(|file| file.metadata().ok().map(|found| (file, found)))
        else {
            continue;
        };
        let age = metadata.modified().ok().and_then(|time| SystemTime::now().duration_since(time).ok());
        let is_idle = metadata.is_file() && age.is_some_and(|age| age >= idle);
        if is_idle && file.try_lock().is_ok() && is_at(&file, &path) && fs::remove_file(&path).is_ok() {
            removed.files += 1;
            removed.bytes += allocated_bytes(&metadata);
        }
    }
    removed
}

/// Bytes of storage that a file has; less than its length when it has holes.
pub(super) fn allocated_bytes(metadata: &fs::Metadata) -> u64 {
    // POSIX counts blocks of 512 bytes here, whatever the file system's own block is.
    metadata.blocks().saturating_mul(512)
}

fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::symlink_metadata(path)) {
        (Ok(open), Ok(named)) => (open.dev(), open.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slab::test_directory::TestDirectory;

    fn name(namespace: u8, rank: u32) -> SlabName {
        SlabName { namespace: [namespace; 16], lane: 3, shard: [0xAB; 16], rank }
    }

    #[test]
    fn names_are_parsed_back_and_near_misses_are_not() {
        let text = name(1, 12).to_string();
        assert_eq!(SlabName::parse(&text), Some(name(1, 12)));
        for wrong in [
            text.replace("rank12", "rank012"),
            text.replace("rank12", "rank+12"),
            text.replace("abab", "ABAB"),
            text.replace(".slab", ".slab~"),
            text.replace("0101-", "01-"),
            text.replace("-lane3", ""),
            format!("{text}-x"),
        ] {
            assert_eq!(SlabName::parse(&wrong), None, "{wrong}");
        }
    }

    #[test]
    fn only_idle_unlocked_unwanted_slabs_are_removed() {
        let directory = TestDirectory::new();
        let path = |name: &str| directory.path().join(name);
        let (idle, recent, held, wanted) = (name(1, 0), name(1, 1), name(1, 2), name(2, 0));
        let mut locked = Vec::new();
        for slab in [&idle, &recent, &held, &wanted] {
            let file = open_private(&path(&slab.to_string())).unwrap();
            let age = Duration::from_secs(if *slab == recent { 10 } else { 5000 });
            file.set_modified(SystemTime::now() - age).unwrap();
            if *slab == held {
                file.lock().unwrap();
                locked.push(file);
            }
        }
        fs::write(path("kvcache-notes.slab"), b"not ours").unwrap();
        let removed =
            remove_idle(directory.path(), Duration::from_secs(3600), &|name| name.namespace != [2; 16]);
        assert_eq!(removed.files, 1);
        let mut left: Vec<_> = fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        let mut expected = [recent, held, wanted].map(|name| name.to_string()).to_vec();
        expected.push("kvcache-notes.slab".to_owned());
        expected.sort();
        assert_eq!(left, expected);
    }

    #[test]
    fn a_slab_file_has_one_owner() {
        let directory = TestDirectory::new();
        let path = directory.path().join("slab");
        let owner = open_owned(&path, Instant::now()).unwrap();
        let error = open_owned(&path, Instant::now() + Duration::from_millis(50)).unwrap_err();
        assert!(matches!(error, SlabError::InUse { waited_ms: 50.., .. }), "{error}");
        std::thread::scope(|scope| {
            let next = scope.spawn(|| open_owned(&path, Instant::now() + Duration::from_secs(60)));
            sleep(Duration::from_millis(30));
            drop(owner);
            next.join().unwrap().unwrap();
        });
    }

    /// The waiter has the old file open when it is removed; it must not own a file without a name.
    #[test]
    fn a_file_removed_while_waiting_is_opened_anew() {
        let directory = TestDirectory::new();
        let path = directory.path().join("slab");
        let owner = open_owned(&path, Instant::now()).unwrap();
        std::thread::scope(|scope| {
            let next = scope.spawn(|| open_owned(&path, Instant::now() + Duration::from_secs(60)));
            sleep(Duration::from_millis(30));
            fs::remove_file(&path).unwrap();
            drop(owner);
            assert!(is_at(&next.join().unwrap().unwrap(), &path));
        });
    }

    #[test]
    fn links_are_not_followed() {
        let directory = TestDirectory::new();
        let (target, link) = (directory.path().join("target"), directory.path().join("link"));
        fs::write(&target, b"precious").unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        assert!(matches!(open_owned(&link, Instant::now()), Err(SlabError::File { operation: "open", .. })));
    }
}
