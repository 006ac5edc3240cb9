//! Eviction policies by name, open to code outside this crate.

use std::collections::BTreeMap;

use super::{EvictionPolicy, HitDensity, Lru, S3Fifo, S3FifoFixed};
use crate::nearest_name::nearest_name;

/// Makes a policy over the slots `0..slot_count`.
pub type PolicyConstructor = fn(slot_count: u32) -> Box<dyn EvictionPolicy>;

/// Policies that users may select by name.
///
/// ```
/// use kvcache_core::eviction::PolicyRegistry;
///
/// let registry = PolicyRegistry::with_builtin();
/// assert_eq!(registry.build("default", 1024)?.name(), "s3fifo");
/// assert_eq!(PolicyRegistry::for_planner(false).build("default", 1024)?.name(), "hit-density");
/// assert!(registry.build("s3-fifo", 1024).is_err_and(|error| error.to_string().contains("did you mean `s3fifo`?")));
/// # Ok::<(), kvcache_core::eviction::PolicyError>(())
/// ```
#[derive(Clone, Debug)]
pub struct PolicyRegistry {
    constructors: BTreeMap<String, PolicyConstructor>,
}

impl PolicyRegistry {
    /// The name of the policy that is used where none is named.
    pub const DEFAULT: &str = "default";

    /// The policies of this crate. The default is the best one for caches that store whatever they are given.
    pub fn with_builtin() -> Self {
        let builtin: [(&str, PolicyConstructor); 5] = [
            (Self::DEFAULT, |slot_count| Box::new(S3Fifo::new(slot_count))),
            ("hit-density", |slot_count| Box::new(HitDensity::new(slot_count))),
            ("lru", |slot_count| Box::new(Lru::new(slot_count))),
            ("s3fifo", |slot_count| Box::new(S3Fifo::new(slot_count))),
            ("s3fifo-fixed", |slot_count| {
                Box::new(S3FifoFixed::new(slot_count, S3FifoFixed::PAPER_SMALL_SHARE))
            }),
        ];
        Self { constructors: builtin.map(|(name, make)| (name.to_owned(), make)).into() }
    }

    /// The same for a [planner](crate::planner), which asks whether a block is [worth storing](super::Place::NotWorth):
    /// the default is the best one where that may be answered with no. With an L2 it may not: blocks reach it through L1,
    /// so that it would never get what L1 does not deem worth its room.
    pub fn for_planner(has_l2: bool) -> Self {
        let mut registry = Self::with_builtin();
        if has_l2 {
            return registry;
        }
        let make: PolicyConstructor = |slot_count| Box::new(HitDensity::new(slot_count));
        registry.constructors.insert(Self::DEFAULT.to_owned(), make);
        registry
    }

    /// Adds a policy under a new name.
    ///
    /// # Errors
    ///
    /// [`PolicyError::NameTaken`] if the name is known already, the built-in ones included.
    pub fn register(&mut self, name: &str, make: PolicyConstructor) -> Result<(), PolicyError> {
        if self.constructors.contains_key(name) {
            return Err(PolicyError::NameTaken { name: name.to_owned() });
        }
        self.constructors.insert(name.to_owned(), make);
        Ok(())
    }

    /// Makes the policy called `name` over the slots `0..slot_count`.
    ///
    /// # Errors
    ///
    /// [`PolicyError::Unknown`], which lists the known names and the nearest one.
    pub fn build(&self, name: &str, slot_count: u32) -> Result<Box<dyn EvictionPolicy>, PolicyError> {
        match self.constructors.get(name) {
            Some(make) => Ok(make(slot_count)),
            None => Err(PolicyError::Unknown {
                name: name.to_owned(),
                nearest: nearest_name(name, self.names()).map(str::to_owned),
                known: self.names().map(str::to_owned).collect(),
            }),
        }
    }

    /// The known names in alphabetical order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.constructors.keys().map(String::as_str)
    }
}

impl Default for PolicyRegistry {
    fn default() -> Self {
        Self::with_builtin()
    }
}

/// Why a policy could not be selected or registered.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// No policy has this name.
    #[error("unknown eviction policy `{name}`{}; known: {}", did_you_mean(nearest.as_deref()), known.join(", "))]
    Unknown {
        /// The name that was asked for.
        name: String,
        /// The known name that was probably meant.
        nearest: Option<String>,
        /// All known names.
        known: Vec<String>,
    },
    /// The name stands for another policy.
    #[error("an eviction policy called `{name}` is registered already")]
    NameTaken {
        /// The name that was to be registered.
        name: String,
    },
}

fn did_you_mean(nearest: Option<&str>) -> String {
    nearest.map(|nearest| format!(" (did you mean `{nearest}`?)")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn builds_every_known_name() {
        let registry = PolicyRegistry::with_builtin();
        for name in registry.names() {
            assert!(registry.build(name, 8).expect("known").is_empty(), "{name}");
        }
    }

    #[test]
    fn a_planner_may_say_no_unless_it_has_an_l2() {
        let default = |has_l2| {
            let policy = PolicyRegistry::for_planner(has_l2).build(PolicyRegistry::DEFAULT, 8);
            policy.expect("built in").name()
        };
        assert_eq!((default(false), default(true)), ("hit-density", "s3fifo"));
    }

    #[test]
    fn unknown_name_lists_the_known_and_the_nearest() {
        let error = PolicyRegistry::with_builtin().build("s3-fifo", 8).err().expect("unknown");
        assert_eq!(
            error.to_string(),
            "unknown eviction policy `s3-fifo` (did you mean `s3fifo`?); known: default, hit-density, lru, s3fifo, s3fifo-fixed"
        );
        let error = PolicyRegistry::with_builtin().build("belady", 8).err().expect("unknown");
        assert_eq!(
            error.to_string(),
            "unknown eviction policy `belady`; known: default, hit-density, lru, s3fifo, s3fifo-fixed"
        );
    }

    #[test]
    fn others_can_be_registered_once() {
        let mut registry = PolicyRegistry::with_builtin();
        registry.register("mine", |slot_count| Box::new(Lru::new(slot_count))).expect("new name");
        assert_eq!(registry.build("mine", 8).expect("registered").name(), "lru");
        let taken = PolicyError::NameTaken { name: "lru".to_owned() };
        assert_eq!(registry.register("lru", |slot_count| Box::new(Lru::new(slot_count))), Err(taken));
    }
}
