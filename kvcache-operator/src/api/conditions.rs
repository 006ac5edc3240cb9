//! The conditions of a cache and the reasons that they give.

use std::fmt;

/// Types of conditions in [`KVCacheStatus::conditions`](super::KVCacheStatus::conditions).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum ConditionType {
    /// The spec can be served, and this operator serves it.
    Accepted,
    /// The store of the ring's metadata can be reached; true as well where none is asked for.
    MetadataReady,
    /// The ring that is published is the one that follows from the pods.
    RingPublished,
    /// Engines can use the cache: the published ring has members.
    Available,
    /// Something is on its way: pods start, stop or are replaced.
    Progressing,
}

impl ConditionType {
    /// All of them, in the order in which they are listed.
    pub const ALL: [Self; 5] =
        [Self::Accepted, Self::MetadataReady, Self::RingPublished, Self::Available, Self::Progressing];
}

impl fmt::Display for ConditionType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Why a condition is as it is. Names are stable: alerts match them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[non_exhaustive]
pub enum Reason {
    /// Nothing is wrong.
    Valid,
    /// The backend's annotation names none that this operator serves.
    UnknownBackend,
    /// A field has a value that cannot work; the message names it.
    InvalidSpec,
    /// Capacity and headroom do not fit into the memory limit.
    MemoryTooSmall,
    /// The kind of metadata store is not served.
    UnsupportedMetadata,
    /// An object of a name that is needed belongs to someone else.
    OwnedByOther,
    /// The metadata store is not needed.
    NotConfigured,
    /// The metadata store answers.
    Connected,
    /// The metadata store cannot be reached, or refuses.
    Unreachable,
    /// The password's Secret, or its key, is not there.
    SecretMissing,
    /// Another cache publishes to the same key.
    KeyInUse,
    /// The ring is published.
    Published,
    /// The ring is published and has no members.
    EmptyRing,
    /// The ring could not be published.
    PublishFailed,
    /// All servers that were asked for are in the ring.
    AllReady,
    /// Some servers are missing in the ring.
    Degraded,
    /// No server is in the ring.
    NoServers,
    /// Nothing is on its way.
    Settled,
    /// Servers are being started.
    Scaling,
    /// Servers are being replaced.
    RollingUpdate,
    /// An object could not be written; the message names it, with the API server's answer.
    WriteFailed,
    /// The spec was refused: what runs is left as it is.
    Held,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}
