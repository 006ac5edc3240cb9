//! Which servers are in the ring: from the pods of this moment and the ring that is published, the ring to publish.
//!
//! Slots follow from the names of members alone, so a ring changes as little as its members do. Members come and go by
//! these rules, which keep a cache's blocks where they are while its servers restart:
//!
//! - Only the pods `NAME-0` to `NAME-(replicas - 1)` can be members.
//! - A pod *enters* when it has been ready for [`RingOptions::min_ready`].
//! - A member whose pod is not ready, restarts or is gone is *away*: it keeps its slots for
//!   [`RingOptions::not_ready_grace`], and then leaves. When it is back its address is that of the new pod, at once; it
//!   stops being away when it has been ready for `min_ready`, so that a server that crashes again and again does not
//!   begin a new grace each time.
//! - A pod that is scaled in, or that somebody drains, leaves at once.
//!
//! A rolling update whose restarts are quicker than the grace thus moves no slot, and a slower one each slot at most once
//! and back. The published document itself says who is away and since when ([`AWAY_FIELD`]), so that an
//! operator that is started anew decides as the last one would have.
//!
//! [`decide`] is pure: time is an argument, and the decision says when to ask again.

mod decide;
mod decision;
#[cfg(test)]
mod defects_tests;
#[cfg(test)]
mod history_tests;
mod pod;
mod published;
#[cfg(test)]
mod rules_tests;

pub use decide::{RingOptions, decide};
pub use decision::{RingChange, RingDecision};
pub use pod::{RingPod, RingPodState, serve_port};
pub use published::{AWAY_FIELD, PublishedRing};
