//! Several engines of one namespace on a host: each takes a lane, and all ranks of an engine take the same one.
//!
//! A lane is a small file next to the slabs. Ranks hold a shared lock on it as long as they live; the file names the
//! [`Owner`]. All decisions for a namespace are made under one guard lock, held for microseconds, so two engines that start at
//! once cannot take the same lane. Locks end with their process, however it ends.
//!
//! A lane that is locked although its owner's core process has ended belongs to orphaned workers, which are about to end: a
//! restarted engine waits for them rather than taking another lane, since that lane holds its warm blocks.
//!
//! Locks belong to open files, which `fork` shares: a child that outlives the engine without `exec` keeps the lane.

use std::fs::{File, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::SlabError;
use super::owner::{Liveness, Owner, hex};
use super::slab_file::{open_existing, open_private};

/// Lanes of a namespace in one directory.
pub(super) const LANE_COUNT: u32 = 16;

/// Between two looks at a lock that somebody else holds.
pub(super) const LOCK_POLL: Duration = Duration::from_millis(10);

/// A place among the engines of a namespace, held until dropped.
#[derive(Debug)]
pub(super) struct Lane {
    index: u32,
    /// Carries the shared lock.
    _file: File,
}

/// What one look at the lanes found.
enum Look {
    Taken(Lane),
    /// Orphans hold a lane: look again.
    Wait,
    Full,
}

impl Lane {
    /// Takes the lane that ranks of `owner` already hold, else the first free one. Waits until `deadline` for orphans.
    pub(super) fn acquire(
        directory: &Path,
        namespace: &[u8; 16],
        owner: &Owner,
        deadline: Instant,
    ) -> Result<Lane, SlabError> {
        let started = Instant::now();
        let names = Names { directory, namespace: hex(namespace) };
        let guard_path = names.guard();
        loop {
            let guard =
                open_private(&guard_path).map_err(|source| names.error("open", &guard_path, source))?;
            let expired = Instant::now() >= deadline;
            match guard.try_lock() {
                Ok(()) => match names.look(owner, expired)? {
                    Look::Taken(lane) => return Ok(lane),
                    Look::Full => {
                        return Err(SlabError::NoLane { path: directory.to_owned(), lane_count: LANE_COUNT });
                    }
                    Look::Wait => {}
                },
                Err(TryLockError::Error(source)) => return Err(names.error("lock", &guard_path, source)),
                Err(TryLockError::WouldBlock) if expired => {
                    return Err(SlabError::InUse {
                        path: guard_path,
                        waited_ms: started.elapsed().as_millis(),
                    });
                }
                Err(TryLockError::WouldBlock) => {}
            }
            drop(guard);
            sleep(LOCK_POLL);
        }
    }

    pub(super) fn index(&self) -> u32 {
        self.index
    }
}

struct Names<'a> {
    directory: &'a Path,
    namespace: String,
}

impl Names<'_> {
    fn guard(&self) -> PathBuf {
        self.directory.join(format!("kvcache-{}.lock", self.namespace))
    }

    fn lane(&self, index: u32) -> PathBuf {
        self.directory.join(format!("kvcache-{}-lane{index}.lock", self.namespace))
    }

    /// One decision, with the guard held.
    fn look(&self, owner: &Owner, expired: bool) -> Result<Look, SlabError> {
        let mut first_free = None;
        let mut orphaned = false;
        let mut formerly_ours = None;
        for index in 0..LANE_COUNT {
            let path = self.lane(index);
            let mut file = match open_existing(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    first_free = first_free.or(Some((index, orphaned)));
                    continue;
                }
                Err(source) => return Err(self.error("open", &path, source)),
            };
            let recorded = read_owner(&mut file).map_err(|source| self.error("read", &path, source))?;
            if recorded.as_ref() == Some(owner) {
                // Held by our ranks, or by nobody if they have ended: ours either way.
                return self.join(index, file, &path);
            }
            let ended = recorded.is_some_and(|recorded| {
                let ended = recorded.liveness() == Liveness::Dead;
                if ended && recorded.is_same_engine(owner) {
                    formerly_ours = formerly_ours.or(Some(index));
                }
                ended
            });
            match file.try_lock() {
                // Dropping `file` unlocks it again; the guard keeps others from seeing that.
                Ok(()) if formerly_ours == Some(index) => return self.claim(index, owner),
                Ok(()) => first_free = first_free.or(Some((index, orphaned))),
                Err(TryLockError::Error(source)) => return Err(self.error("lock", &path, source)),
                Err(TryLockError::WouldBlock) => orphaned |= ended,
            }
        }
        match first_free {
            // What we held before is warm: worth more than a lane that is free.
            _ if formerly_ours.is_some() && !expired => Ok(Look::Wait),
            Some((_, behind_orphans)) if behind_orphans && !expired => Ok(Look::Wait),
            Some((index, _)) => self.claim(index, owner),
            None if orphaned && !expired => Ok(Look::Wait),
            None => Ok(Look::Full),
        }
    }

    /// Takes a lane that nobody holds.
    fn claim(&self, index: u32, owner: &Owner) -> Result<Look, SlabError> {
        let path = self.lane(index);
        let mut file = open_private(&path).map_err(|source| self.error("open", &path, source))?;
        write_owner(&mut file, owner).map_err(|source| self.error("write", &path, source))?;
        self.join(index, file, &path)
    }

    fn join(&self, index: u32, file: File, path: &Path) -> Result<Look, SlabError> {
        match file.try_lock_shared() {
            Ok(()) => Ok(Look::Taken(Lane { index, _file: file })),
            // Nobody keeps an exclusive lock without the guard, which we hold: a foreign tool does. Look again.
            Err(TryLockError::WouldBlock) => Ok(Look::Wait),
            Err(TryLockError::Error(source)) => Err(self.error("lock", path, source)),
        }
    }

    fn error(&self, operation: &'static str, path: &Path, source: io::Error) -> SlabError {
        match source.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem if !path.exists() => {
                SlabError::Directory { path: self.directory.to_owned(), source }
            }
            _ => SlabError::File { operation, path: path.to_owned(), source },
        }
    }
}

fn read_owner(file: &mut File) -> io::Result<Option<Owner>> {
    let mut text = Vec::new();
    // Far more than any owner's text; a foreign file is not read to its end.
    file.take(1 << 16).read_to_end(&mut text)?;
    Ok(std::str::from_utf8(&text).ok().and_then(Owner::parse))
}

fn write_owner(file: &mut File, owner: &Owner) -> io::Result<()> {
    file.set_len(0)?;
    file.seek(SeekFrom::Start(0))?;
    file.write_all(owner.to_text().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slab::test_directory::TestDirectory;

    const NAMESPACE: [u8; 16] = [7; 16];

    fn acquire(directory: &Path, owner: &Owner, wait: Duration) -> Result<Lane, SlabError> {
        Lane::acquire(directory, &NAMESPACE, owner, Instant::now() + wait)
    }

    fn alive(engine_id: &str) -> Owner {
        Owner::of(engine_id, std::process::id())
    }

    /// An engine whose core process has ended.
    fn dead(engine_id: &str) -> Owner {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let owner = Owner::of(engine_id, child.id());
        child.kill().unwrap();
        child.wait().unwrap();
        owner
    }

    #[test]
    fn ranks_of_one_engine_share_a_lane_and_engines_do_not() {
        let directory = TestDirectory::new();
        let (one, two) = (alive("one"), alive("two"));
        let first = acquire(directory.path(), &one, Duration::ZERO).unwrap();
        let other = acquire(directory.path(), &two, Duration::ZERO).unwrap();
        let second = acquire(directory.path(), &one, Duration::ZERO).unwrap();
        let last = acquire(directory.path(), &two, Duration::ZERO).unwrap();
        assert_eq!([&first, &other, &second, &last].map(Lane::index), [0, 1, 0, 1]);
        drop((first, second));
        let three = acquire(directory.path(), &alive("three"), Duration::ZERO).unwrap();
        assert_eq!(three.index(), 0, "a lane is free when its last rank has gone");
    }

    #[test]
    fn lanes_are_bounded() {
        let directory = TestDirectory::new();
        let lanes: Vec<_> = (0..LANE_COUNT)
            .map(|index| acquire(directory.path(), &alive(&index.to_string()), Duration::ZERO).unwrap())
            .collect();
        let error = acquire(directory.path(), &alive("more"), Duration::from_secs(60)).unwrap_err();
        assert!(matches!(error, SlabError::NoLane { lane_count: LANE_COUNT, .. }), "{error}");
        drop(lanes);
    }

    #[test]
    fn a_restart_waits_for_orphans_and_then_takes_their_lane() {
        let directory = TestDirectory::new();
        let orphan = acquire(directory.path(), &dead("engine"), Duration::ZERO).unwrap();
        let waiter = std::thread::scope(|scope| {
            let waiter = scope.spawn(|| acquire(directory.path(), &alive("engine"), Duration::from_secs(60)));
            sleep(Duration::from_millis(100));
            assert!(!waiter.is_finished());
            drop(orphan);
            waiter.join().unwrap().unwrap()
        });
        assert_eq!(waiter.index(), 0);
    }

    #[test]
    fn a_restarted_engine_returns_to_its_former_lane() {
        let directory = TestDirectory::new();
        let first = acquire(directory.path(), &dead("first"), Duration::ZERO).unwrap();
        let second = acquire(directory.path(), &dead("second"), Duration::ZERO);
        // Without a wait, the orphans of lane 0 cost it.
        assert_eq!(second.unwrap().index(), 1);
        drop(first);
        assert_eq!(acquire(directory.path(), &alive("second"), Duration::ZERO).unwrap().index(), 1);
    }

    #[test]
    fn orphans_that_stay_cost_a_lane_after_the_deadline() {
        let directory = TestDirectory::new();
        let _orphan = acquire(directory.path(), &dead("engine"), Duration::ZERO).unwrap();
        let started = Instant::now();
        let lane = acquire(directory.path(), &alive("engine"), Duration::from_millis(150)).unwrap();
        assert_eq!(lane.index(), 1);
        assert!(started.elapsed() >= Duration::from_millis(150));
    }

    #[test]
    fn a_lane_file_of_garbage_is_taken_over_when_free_and_left_alone_when_held() {
        let directory = TestDirectory::new();
        let path = Names { directory: directory.path(), namespace: hex(&NAMESPACE) }.lane(0);
        std::fs::write(&path, [0xFF; 300]).unwrap();
        let held = File::open(&path).unwrap();
        held.lock().unwrap();
        assert_eq!(acquire(directory.path(), &alive("a"), Duration::from_secs(60)).unwrap().index(), 1);
        held.unlock().unwrap();
        let lane = acquire(directory.path(), &alive("b"), Duration::ZERO).unwrap();
        assert_eq!(lane.index(), 0);
        assert_eq!(acquire(directory.path(), &alive("b"), Duration::ZERO).unwrap().index(), 0);
    }

    /// Many engines of several ranks start at once: one lane for each engine.
    #[test]
    fn engines_that_start_at_once_take_different_lanes() {
        for _ in 0..10 {
            let directory = TestDirectory::new();
            let mut lanes: Vec<(usize, Lane)> = std::thread::scope(|scope| {
                let ranks: Vec<_> = (0..12)
                    .map(|rank| {
                        let directory = directory.path();
                        let owner = alive(&(rank % 4).to_string());
                        scope.spawn(move || {
                            (rank % 4, acquire(directory, &owner, Duration::from_secs(60)).unwrap())
                        })
                    })
                    .collect();
                ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
            });
            lanes.sort_by_key(|(engine, _)| *engine);
            let mut of_engines: Vec<_> = lanes.iter().map(|(engine, lane)| (*engine, lane.index())).collect();
            of_engines.dedup();
            assert_eq!(of_engines.len(), 4, "{of_engines:?}");
            let mut indices: Vec<_> = of_engines.iter().map(|(_, lane)| *lane).collect();
            indices.sort_unstable();
            assert_eq!(indices, [0, 1, 2, 3]);
        }
    }
}
