//! The servers of a ring at one moment, as a source named them.

use std::collections::HashMap;

use kvcache_core::ring::{MEMBERS_MAX, MemberListError, SlotRange};

use super::{ServerAddress, ServerAddressError};

/// A server of the ring.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Member {
    /// What places it on the ring. Sources that know no names use the address.
    ///
    /// A server that keeps its name and changes its address (a pod that restarts) keeps its slots.
    pub name: String,
    /// Where it listens.
    pub address: ServerAddress,
}

impl Member {
    /// A member that is called by its address.
    pub fn at(address: ServerAddress) -> Self {
        Self { name: address.to_string(), address }
    }
}

/// The members of a ring, each once, in the order of their names. May be empty: then the ring has nobody to ask.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct MemberList {
    members: Vec<Member>,
    /// The slots of each member, where the source published them; as long as `members`.
    ranges: Option<Vec<Vec<SlotRange>>>,
    version: Option<u64>,
}

impl MemberList {
    /// A list of these members in any order.
    ///
    /// # Errors
    ///
    /// If a name or an address is there twice, a name is empty, or there are more than [`MEMBERS_MAX`].
    pub fn new(members: Vec<Member>) -> Result<Self, MembersError> {
        Self::published(members.into_iter().map(|member| (member, None)).collect(), None)
    }

    /// A list with the version that its publisher gave it and the slots that it gave to members.
    pub(super) fn published(
        mut members: Vec<(Member, Option<Vec<SlotRange>>)>,
        version: Option<u64>,
    ) -> Result<Self, MembersError> {
        if members.len() > MEMBERS_MAX {
            return Err(MemberListError::TooMany { count: members.len() }.into());
        }
        if let Some(position) = members.iter().position(|(member, _)| member.name.is_empty()) {
            return Err(MemberListError::Nameless { position: position + 1 }.into());
        }
        members.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
        if let Some(pair) = members.windows(2).find(|pair| pair[0].0.name == pair[1].0.name) {
            return Err(MemberListError::Duplicate { name: pair[0].0.name.clone() }.into());
        }
        let mut names: HashMap<&ServerAddress, &str> = HashMap::with_capacity(members.len());
        for (member, _) in &members {
            if let Some(first) = names.insert(&member.address, &member.name) {
                return Err(MembersError::SameAddress {
                    address: member.address.clone(),
                    first: first.to_owned(),
                    second: member.name.clone(),
                });
            }
        }
        let any_ranges = members.iter().any(|(_, ranges)| ranges.is_some());
        let (members, ranges): (Vec<_>, Vec<_>) =
            members.into_iter().map(|(member, ranges)| (member, ranges.unwrap_or_default())).unzip();
        Ok(Self { members, ranges: any_ranges.then_some(ranges), version })
    }

    /// The members in the order of their names.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// The version that its publisher gave the list. Nothing is decided by it: publishers start again from 1.
    pub fn version(&self) -> Option<u64> {
        self.version
    }

    /// The slots that the publisher gave to each of [`Self::members`], if it published any.
    pub fn ranges(&self) -> Option<&[Vec<SlotRange>]> {
        self.ranges.as_deref()
    }
}

/// Why names and addresses make no list of members.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MembersError {
    /// The names make no ring.
    #[error(transparent)]
    Ring(#[from] MemberListError),
    /// One server has two names.
    #[error("members {first:?} and {second:?} both listen on {address}: each server is listed once")]
    SameAddress {
        /// The address.
        address: ServerAddress,
        /// The name that comes first.
        first: String,
        /// The other name.
        second: String,
    },
    /// An address cannot be read.
    #[error("member {position}: {source}")]
    Address {
        /// Its place in the list, counted from 1.
        position: usize,
        /// What is wrong with it.
        source: ServerAddressError,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str, address: &str) -> Member {
        Member { name: name.to_owned(), address: address.parse().unwrap() }
    }

    #[test]
    fn the_order_makes_no_difference() {
        let (a, b) = (member("a", "10.0.0.1:1"), member("b", "10.0.0.2:1"));
        let list = MemberList::new(vec![b.clone(), a.clone()]).unwrap();
        assert_eq!(list, MemberList::new(vec![a.clone(), b]).unwrap());
        assert_eq!(list.members()[0], a);
        assert!(MemberList::new(Vec::new()).unwrap().is_empty());
    }

    #[test]
    fn what_is_twice_is_told() {
        let list = |members: &[(&str, &str)]| {
            MemberList::new(members.iter().map(|(name, address)| member(name, address)).collect())
                .unwrap_err()
                .to_string()
        };
        assert_eq!(
            list(&[("a", "h:1"), ("a", "h:2")]),
            "the ring names \"a\" twice: each server is listed once"
        );
        assert_eq!(
            list(&[("b", "H:1"), ("a", "h:1")]),
            "members \"a\" and \"b\" both listen on h:1: each server is listed once"
        );
        assert_eq!(
            list(&[("", "h:1")]),
            "member 1 of the ring has an empty name: give each server a name or an address"
        );
        let many = (0..4097).map(|n| Member::at(ServerAddress::new(&format!("h{n}"), 1).unwrap())).collect();
        assert_eq!(MemberList::new(many), Err(MemberListError::TooMany { count: 4097 }.into()));
    }
}
