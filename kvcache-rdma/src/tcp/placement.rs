//! From the ring's members to the client's servers.

use std::sync::Arc;

use kvcache_core::BlockKey;
use kvcache_core::ring_client::{Placement, ServerId};

use crate::members::MemberSnapshot;

pub(super) struct SnapshotPlacement {
    pub(super) snapshot: Arc<MemberSnapshot>,
    /// By the index of the snapshot's list.
    pub(super) servers: Vec<ServerId>,
}

impl Placement for SnapshotPlacement {
    fn holders(&self, block: &BlockKey, replicas: usize, holder: &mut dyn FnMut(ServerId)) {
        for index in self.snapshot.holders(block, replicas) {
            if let Some(server) = self.servers.get(index) {
                holder(*server);
            }
        }
    }
}
