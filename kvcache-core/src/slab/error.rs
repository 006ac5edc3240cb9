//! Why a slab could not be opened.

use std::io;
use std::path::PathBuf;

fn directory_remedy(source: &io::Error) -> &'static str {
    use io::ErrorKind::{AlreadyExists, NotADirectory, PermissionDenied, ReadOnlyFilesystem};
    match source.kind() {
        AlreadyExists | NotADirectory => "it is no directory: set slab_path to one",
        PermissionDenied | ReadOnlyFilesystem => {
            "give this user write permission there or set slab_path to another directory"
        }
        _ => "set slab_path to another directory",
    }
}

impl SlabError {
    /// Whether anonymous memory would cure it.
    pub fn is_cured_by_anonymous_memory(&self) -> bool {
        use SlabError::{InUse, NoLane, NoLeader, Room};
        matches!(self, Room { .. } | InUse { .. } | NoLane { .. } | NoLeader { .. })
    }
}

/// An operation that failed while a slab was opened. A slab that is open does not fail: it has fewer usable slots.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SlabError {
    /// A setting that no machine could satisfy.
    #[error("{setting} is {value}: {remedy}")]
    Config {
        /// The setting.
        setting: &'static str,
        /// Its value.
        value: String,
        /// What to do.
        remedy: &'static str,
    },
    /// The slab does not fit.
    #[error(
        "a slab of {wanted_bytes} bytes does not fit into {place} ({available_bytes} bytes available): {remedy}"
    )]
    Room {
        /// Bytes that are still to be allocated.
        wanted_bytes: u64,
        /// Bytes there are.
        available_bytes: u64,
        /// Where.
        place: String,
        /// What to do.
        remedy: &'static str,
    },
    /// The directory for slab files cannot be used.
    #[error("cannot use {path} for slab files: {source}; {remedy}", path = .path.display(), remedy = directory_remedy(.source))]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// An operation on a slab file failed.
    #[error("cannot {operation} {path}: {source}; remove the file or set slab_path to another directory", path = .path.display())]
    File {
        /// What was tried.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Another process keeps the slab file.
    #[error("{path} is still in use after {waited_ms} ms: end the process that holds it or give each engine its own engine_id", path = .path.display())]
    InUse {
        /// The file.
        path: PathBuf,
        /// How long its end was waited for.
        waited_ms: u128,
    },
    /// The rank whose slab was to be mapped has none in a file, or has closed it again.
    #[error("rank {rank} has not opened {path} after {waited_ms} ms: look for its reason in its log", path = .path.display())]
    NoLeader {
        /// The rank.
        rank: u32,
        /// Where its slab was looked for.
        path: PathBuf,
        /// For how long.
        waited_ms: u128,
    },
    /// All lanes of the namespace belong to living engines.
    #[error("all {lane_count} lanes in {path} belong to running engines: set slab_path to another directory", path = .path.display())]
    NoLane {
        /// The directory.
        path: PathBuf,
        /// How many lanes there are.
        lane_count: u32,
    },
    /// The system refused a mapping.
    #[error(
        "cannot map {bytes} bytes: {source}; lower the capacity or raise the limit on address space (ulimit -v)"
    )]
    Map {
        /// Bytes of the mapping.
        bytes: usize,
        /// The system's reason.
        source: io::Error,
    },
    /// The system refused the thread that reserves memory in the background.
    #[error(
        "cannot start the thread that reserves slab memory: {source}; raise the limit on threads (ulimit -u)"
    )]
    Thread {
        /// The system's reason.
        source: io::Error,
    },
}
