//! What is compared.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use crate::error::Error;

/// What remembers prompts, and how it is used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Setup {
    name: &'static str,
    /// The engine's own prefix cache is on.
    pub prefix_cache: bool,
    /// The connector with its L1, if there is one.
    pub connector: Option<Loading>,
    /// The connector has an L2.
    pub l2: bool,
}

/// How a connector moves blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Loading {
    /// Nothing overlaps: what a request hits is loaded, from L2 first if it is there, before its first step computes,
    /// and what a step has computed is stored before the next one begins.
    Whole,
    /// Layer by layer: while a layer computes, the next one is loaded and the one before is stored. From L2, blocks are
    /// fetched while the request is queued.
    Layers,
}

impl Setup {
    /// Every set-up.
    pub const ALL: [Self; 6] = [
        Self { name: "none", prefix_cache: false, connector: None, l2: false },
        Self { name: "prefix", prefix_cache: true, connector: None, l2: false },
        Self { name: "whole", prefix_cache: true, connector: Some(Loading::Whole), l2: false },
        Self { name: "layers", prefix_cache: true, connector: Some(Loading::Layers), l2: false },
        Self { name: "whole+l2", prefix_cache: true, connector: Some(Loading::Whole), l2: true },
        Self { name: "layers+l2", prefix_cache: true, connector: Some(Loading::Layers), l2: true },
    ];

    /// Its name, as it is parsed.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// All names, for messages.
    pub(crate) fn names() -> String {
        Self::ALL.map(|setup| setup.name).join(", ")
    }
}

impl FromStr for Setup {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let found = Self::ALL.into_iter().find(|setup| setup.name == text);
        found.ok_or_else(|| Error::Setup { name: text.to_owned() })
    }
}

impl fmt::Display for Setup {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name)
    }
}

impl Serialize for Setup {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_parsed() {
        for setup in Setup::ALL {
            assert_eq!(setup.to_string().parse(), Ok(setup));
        }
        let error = "layer".parse::<Setup>().expect_err("unknown").to_string();
        assert_eq!(error, "`layer` is no set-up; there are none, prefix, whole, layers, whole+l2, layers+l2");
    }
}
