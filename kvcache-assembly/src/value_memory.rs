//! Clients of L2 whose values lie in slots.

use std::sync::Arc;

use kvcache_core::store::SlotMemory;
use kvcache_rdma::ring::{RingConfig, RingStore};

use crate::Error;

/// A client whose values lie in these slots, which are those of a slab.
pub(crate) fn open_store(ring: &RingConfig, slots: Arc<dyn SlotMemory>) -> Result<Arc<RingStore>, Error> {
    let store = RingStore::open(ring)?;
    // SAFETY: the slots are those of a slab, which is mapped as long as they live: callers have them from a `BlockCache`
    // that was opened by its settings, or from `RankSlots`.
    unsafe { store.register(slots) }.map_err(Error::RegistrationThread)?;
    Ok(Arc::new(store))
}
