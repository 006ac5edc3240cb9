//! What is in the store from the eviction policy's side: numbered slots with a value each.

use std::sync::Arc;

use kvcache_core::BlockKey;
use kvcache_core::eviction::{Candidate, EvictionPolicy, SlotId};

use super::{StoreStats, Value};

/// The eviction policy and the value of each of its slots.
pub(super) struct Residents {
    policy: Box<dyn EvictionPolicy>,
    values: Vec<Option<Arc<Value>>>,
    free: Vec<SlotId>,
    slots_max: u32,
    stats: StoreStats,
}

impl Residents {
    pub(super) fn new(policy: Box<dyn EvictionPolicy>, slots_max: u32) -> Self {
        Self { policy, values: Vec::new(), free: Vec::new(), slots_max, stats: StoreStats::default() }
    }

    /// A free slot. If there is none, a value is evicted for it, which the caller removes from the table.
    pub(super) fn slot(&mut self) -> (SlotId, Option<Arc<Value>>) {
        if self.free.is_empty() && self.values.len() < self.slots_max as usize {
            self.free.push(SlotId(self.values.len() as u32));
            self.values.push(None);
        }
        let mut victim = None;
        if self.free.is_empty() {
            victim = self.evict();
        }
        if self.free.is_empty() {
            // Every value is being read: the oldest slot goes nevertheless, since its readers have their shares.
            victim = self.values.iter().flatten().next().cloned();
            if let Some(victim) = &victim {
                self.policy.remove(victim.slot);
                self.evicted(victim.slot);
            }
        }
        // With no slot free, all of them hold values, and one was just evicted.
        (self.free.pop().unwrap_or(SlotId(0)), victim)
    }

    /// Evicts a value that nobody reads, and forgets it; the caller removes it from the table.
    pub(super) fn evict(&mut self) -> Option<Arc<Value>> {
        let values = &self.values;
        let slot = self.policy.evict(&mut |slot| match &values[slot.index()] {
            // The table has a share and so do we. A share that is taken just now keeps the memory alive, not the value.
            Some(value) if Arc::strong_count(value) > 2 => Candidate::Pinned,
            _ => Candidate::Leaf,
        })?;
        self.evicted(slot)
    }

    fn evicted(&mut self, slot: SlotId) -> Option<Arc<Value>> {
        let victim = self.vacate(slot)?;
        self.stats.evictions += 1;
        self.stats.evictions_in_use += u64::from(Arc::strong_count(&victim) > 2);
        Some(victim)
    }

    pub(super) fn insert(&mut self, value: Arc<Value>) {
        // The policy remembers evicted keys by eight bytes: the keyed hash serves.
        let mut key = [0; BlockKey::BYTES];
        key[..8].copy_from_slice(&value.hash.to_le_bytes());
        self.policy.insert(value.slot, BlockKey(key));
        self.stats.values += 1;
        self.stats.value_bytes += value.len_bytes();
        let slot = value.slot.index();
        self.values[slot] = Some(value);
    }

    pub(super) fn touch(&mut self, value: &Arc<Value>) {
        let holds = self.values.get(value.slot.index()).and_then(Option::as_ref);
        if holds.is_some_and(|other| Arc::ptr_eq(other, value)) {
            self.policy.touch(value.slot);
        }
    }

    /// Forgets a value that has left the table for another reason than eviction.
    pub(super) fn remove(&mut self, value: &Arc<Value>) {
        self.policy.remove(value.slot);
        self.vacate(value.slot);
    }

    /// Forgets everything and returns it, to be dropped without a lock.
    pub(super) fn clear(&mut self) -> Vec<Option<Arc<Value>>> {
        self.policy.clear();
        self.free.clear();
        self.stats.values = 0;
        self.stats.value_bytes = 0;
        std::mem::take(&mut self.values)
    }

    pub(super) fn stats(&self) -> StoreStats {
        self.stats
    }

    fn vacate(&mut self, slot: SlotId) -> Option<Arc<Value>> {
        let value = self.values.get_mut(slot.index())?.take()?;
        self.free.push(slot);
        self.stats.values -= 1;
        self.stats.value_bytes -= value.len_bytes();
        Some(value)
    }
}

impl std::fmt::Debug for Residents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Residents")
            .field("policy", &self.policy.name())
            .field("stats", &self.stats)
            .finish_non_exhaustive()
    }
}
