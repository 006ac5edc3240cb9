//! Which servers hold a key.

use super::action::ServerId;
use crate::BlockKey;

/// Says which servers hold a block: a pure function of the member list.
pub trait Placement: Send {
    /// Calls `holder` with each of the servers that hold `block`, the first choice first: `replicas` different ones, or all
    /// if there are fewer.
    fn holders(&self, block: &BlockKey, replicas: usize, holder: &mut dyn FnMut(ServerId));
}
