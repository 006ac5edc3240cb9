//! What cannot be a ring.

use super::MEMBERS_MAX;

/// Why a list of members makes no ring.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MemberListError {
    /// The list names nobody.
    #[error("the ring has no members: name at least one server")]
    Empty,
    /// A name is empty.
    #[error("member {position} of the ring has an empty name: give each server a name or an address")]
    Nameless {
        /// Its place in the list, counted from 1.
        position: usize,
    },
    /// Two members have one name.
    #[error("the ring names {name:?} twice: each server is listed once")]
    Duplicate {
        /// The name.
        name: String,
    },
    /// There are more members than slots.
    #[error("a ring of {count} members is too large, at most {MEMBERS_MAX} can each hold one of its slots")]
    TooMany {
        /// Members listed.
        count: usize,
    },
}
