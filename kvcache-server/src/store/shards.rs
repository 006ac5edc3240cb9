//! The table of values, in parts with a lock each, so that look-ups of several cores do not meet.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use hashbrown::HashTable;
use parking_lot::RwLock;

use super::Value;

/// Keys come from strangers: the hash is keyed with a secret of this process.
#[derive(Debug, Default)]
pub(super) struct Shards {
    secret: RandomState,
    shards: [RwLock<HashTable<Arc<Value>>>; SHARDS],
}

const SHARDS: usize = 32;

impl Shards {
    pub(super) fn hash(&self, key: &[u8]) -> u64 {
        self.secret.hash_one(key)
    }

    fn shard(&self, hash: u64) -> &RwLock<HashTable<Arc<Value>>> {
        // The table uses the highest bits and the lowest; these lie between.
        &self.shards[(hash >> 32) as usize % SHARDS]
    }

    pub(super) fn get(&self, key: &[u8]) -> Option<Arc<Value>> {
        let hash = self.hash(key);
        self.shard(hash).read().find(hash, |value| *value.key == *key).cloned()
    }

    pub(super) fn contains(&self, key: &[u8]) -> bool {
        let hash = self.hash(key);
        self.shard(hash).read().find(hash, |value| *value.key == *key).is_some()
    }

    /// Puts a value under its key and returns the one that was there.
    pub(super) fn insert(&self, value: Arc<Value>) -> Option<Arc<Value>> {
        let mut shard = self.shard(value.hash).write();
        let hash = value.hash;
        match shard.entry(hash, |other| *other.key == *value.key, |other| other.hash) {
            hashbrown::hash_table::Entry::Occupied(mut entry) => {
                Some(std::mem::replace(entry.get_mut(), value))
            }
            hashbrown::hash_table::Entry::Vacant(entry) => {
                entry.insert(value);
                None
            }
        }
    }

    pub(super) fn remove(&self, key: &[u8]) -> Option<Arc<Value>> {
        let hash = self.hash(key);
        let mut shard = self.shard(hash).write();
        shard.find_entry(hash, |value| *value.key == *key).ok().map(|entry| entry.remove().0)
    }

    /// Removes exactly this value; another one under its key stays.
    pub(super) fn remove_value(&self, value: &Arc<Value>) {
        let mut shard = self.shard(value.hash).write();
        if let Ok(entry) = shard.find_entry(value.hash, |other| Arc::ptr_eq(other, value)) {
            entry.remove();
        }
    }

    pub(super) fn take_all(&self) -> Vec<Arc<Value>> {
        self.shards.iter().flat_map(|shard| std::mem::take(&mut *shard.write())).collect()
    }
}
