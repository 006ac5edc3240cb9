//! The servers that a cache can consist of.

use std::fmt;
use std::str::FromStr;

/// What runs in a cache's pods.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Backend {
    /// Our own server, `kvcache serve`. Always served by this operator.
    KvCache,
    /// InfiniStore's own server as AIBrix runs it. Served only where the operator was told to adopt it, since AIBrix's
    /// controller claims the same resources.
    InfiniStore,
}

impl Backend {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::KvCache, Self::InfiniStore];

    /// The annotation's value.
    pub fn name(self) -> &'static str {
        match self {
            Self::KvCache => "kvcache",
            Self::InfiniStore => "infinistore",
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Backend {
    type Err = UnknownBackend;

    fn from_str(name: &str) -> Result<Self, UnknownBackend> {
        let known = Self::ALL.into_iter().find(|backend| backend.name() == name);
        known.ok_or_else(|| UnknownBackend(name.to_owned()))
    }
}

/// A name that is none of [`Backend::ALL`].
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0:?} is no backend of this operator: kvcache or infinistore")]
pub struct UnknownBackend(String);
