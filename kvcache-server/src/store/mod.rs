//! Values by key, in bounded memory: what every front end of the server (TCP now, RDMA later) talks to.
//!
//! A put has two steps. [`Store::reserve`] finds memory, evicting until the value fits; the front end receives the
//! bytes straight into it; [`Store::publish`] makes the value visible, all at once. A get hands out a share of the
//! value: it stays as it is while anyone holds it, whether it is evicted, overwritten or purged meanwhile.
//!
//! Every operation is a few table look-ups under short locks, so it may be called from asynchronous code.

mod beside;
mod residents;
mod shards;
mod value;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kvcache_core::eviction::{PolicyError, PolicyRegistry};
use kvcache_wire::stock::CHECKSUM_SUFFIX;
use parking_lot::Mutex;

use crate::pool::{GRANULE_BYTES, Pool, PoolError};
use residents::Residents;
use shards::Shards;
pub use value::{Refused, Reservation, Room, Value};

/// How large a store is and what it evicts.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// Bytes of all values together, rounded up to whole granules of 4 KiB each.
    pub capacity_bytes: u64,
    /// Name of the eviction policy, as `kvcache replay` lists them.
    pub eviction: String,
    /// Values at most, however small; `None`: one for every 16 KiB of capacity, at least 1,024 and at most 2^24.
    /// The eviction policy takes about 60 bytes for each.
    pub values_max: Option<u32>,
}

/// A store could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// No memory.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// No such eviction policy.
    #[error(transparent)]
    Policy(#[from] PolicyError),
}

/// What a store holds and has done.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct StoreStats {
    /// Values that can be found.
    pub values: u64,
    /// Bytes of their contents.
    pub value_bytes: u64,
    /// Bytes of the pool in use, by values and by puts under way.
    pub used_bytes: u64,
    /// Bytes of the pool.
    pub capacity_bytes: u64,
    /// Values evicted so far.
    pub evictions: u64,
    /// Of those, values whose memory a reader still held.
    pub evictions_in_use: u64,
}

/// Values by key.
#[derive(Debug)]
pub struct Store {
    pool: Arc<Pool>,
    shards: Shards,
    /// Locked before any shard, never after.
    residents: Mutex<Residents>,
    /// Bytes of reservations that are not published yet.
    reserved_bytes: Arc<AtomicU64>,
}

impl Store {
    /// An empty store.
    ///
    /// # Errors
    ///
    /// See [`StoreError`].
    pub fn new(config: &StoreConfig) -> Result<Arc<Self>, StoreError> {
        let default = (config.capacity_bytes >> 14).clamp(1024, 1 << 24) as u32;
        let values_max = config.values_max.unwrap_or(default).clamp(1, 1 << 30);
        let policy = PolicyRegistry::with_builtin().build(&config.eviction, values_max)?;
        Ok(Arc::new(Self {
            pool: Pool::new(config.capacity_bytes)?,
            shards: Shards::default(),
            residents: Mutex::new(Residents::new(policy, values_max)),
            reserved_bytes: Arc::default(),
        }))
    }

    /// Finds memory for a value of `bytes` bytes (at least 1), evicting until it fits.
    ///
    /// Once puts under way hold half of the pool, another one gets free memory only and evicts nothing: clients that
    /// promise values and never send them cannot empty the cache.
    ///
    /// # Errors
    ///
    /// See [`Refused`]. A value that could never fit evicts nothing.
    pub fn reserve(&self, key: &[u8], bytes: u64) -> Result<Reservation, Refused> {
        if key.is_empty() {
            return Err(Refused::Empty);
        }
        self.reserve_room(bytes)?.for_key(key)
    }

    /// As [`reserve`](Self::reserve), for a value whose key is said later.
    ///
    /// # Errors
    ///
    /// As [`reserve`](Self::reserve).
    pub fn reserve_room(&self, bytes: u64) -> Result<Room, Refused> {
        let capacity_bytes = self.pool.capacity_bytes();
        if bytes == 0 {
            return Err(Refused::Empty);
        }
        if bytes > capacity_bytes {
            return Err(Refused::TooLarge { bytes, capacity_bytes });
        }
        // First, so that of puts at the same time each sees those before it. Whole granules: small values take them, too.
        let footprint_bytes = bytes.next_multiple_of(GRANULE_BYTES);
        let (share, reserved_bytes) = value::ReservedShare::new(&self.reserved_bytes, footprint_bytes);
        let extent = match self.pool.allocate(bytes) {
            Some(extent) => extent,
            None => self.allocate_evicting(bytes, reserved_bytes)?,
        };
        Ok(Room { extent, share })
    }

    /// `reserved_bytes` are those of the other puts under way.
    fn allocate_evicting(&self, bytes: u64, reserved_bytes: u64) -> Result<crate::pool::OpenExtent, Refused> {
        let capacity_bytes = self.pool.capacity_bytes();
        if reserved_bytes > 0 && reserved_bytes + bytes > capacity_bytes / 2 {
            return Err(Refused::Busy { bytes, reserved_bytes, capacity_bytes });
        }
        let mut residents = self.residents.lock();
        loop {
            // Each turn evicts a value, so there are as many turns as values at most.
            if let Some(extent) = self.pool.allocate(bytes) {
                return Ok(extent);
            }
            let Some(victim) = residents.evict() else {
                return Err(Refused::Full { bytes, capacity_bytes });
            };
            self.shards.remove_value(&victim);
        }
    }

    /// Makes a filled reservation visible in place of what was under its key. Its readers keep what they have. A checksum
    /// that a client puts beside its value becomes a part of that.
    pub fn publish(&self, reservation: Reservation, checksum: Option<u64>) {
        let Some(reservation) = self.attach(reservation) else { return };
        let Reservation { key, extent, share } = reservation;
        let extent = extent.seal();
        let hash = self.shards.hash(&key);
        let mut residents = self.residents.lock();
        let (slot, victim) = residents.slot();
        if let Some(victim) = &victim {
            self.shards.remove_value(victim);
        }
        let value = Arc::new(Value { key, hash, slot, extent, checksum: checksum.into() });
        let replaced = self.shards.insert(Arc::clone(&value));
        if let Some(replaced) = &replaced {
            residents.remove(replaced);
            if let (None, Some(known)) = (checksum, replaced.checksum()) {
                value.checksum.lock().get_or_insert(known);
            }
        }
        let name = checksum.is_some().then(|| value.key.clone());
        residents.insert(value);
        drop(residents);
        if let Some(name) = name {
            self.forget_beside(&[&name, CHECKSUM_SUFFIX].concat());
        }
        // The memory of what went goes back without any lock held.
        drop((victim, replaced, share));
    }

    /// The value under `key`, without counting as a use: see [`touch`](Self::touch).
    pub fn get(&self, key: &[u8]) -> Option<Arc<Value>> {
        self.shards.get(key).or_else(|| self.get_beside(key))
    }

    /// Counts a use of each of these values, the last one first, so that of one prompt's blocks the heads outlive the
    /// tails.
    pub fn touch(&self, values: &[Arc<Value>]) {
        if values.is_empty() {
            return;
        }
        let mut residents = self.residents.lock();
        for value in values.iter().rev() {
            residents.touch(value);
        }
    }

    /// Whether there is a value under `key`. No use of it.
    pub fn contains(&self, key: &[u8]) -> bool {
        self.shards.contains(key) || self.is_beside(key)
    }

    /// Forgets the value under `key`; whether there was one.
    pub fn delete(&self, key: &[u8]) -> bool {
        let mut residents = self.residents.lock();
        let value = self.shards.remove(key);
        // What was put before its value goes with it.
        let beside = value.as_ref().and_then(|_| self.shards.remove(&[key, CHECKSUM_SUFFIX].concat()));
        value.iter().chain(&beside).for_each(|value| residents.remove(value));
        drop(residents);
        value.is_some() || self.delete_beside(key)
    }

    /// Forgets everything and returns how many values that were. Their memory is free at once, but for those that
    /// are being sent. O(values): not for asynchronous code.
    pub fn purge(&self) -> u64 {
        let mut residents = self.residents.lock();
        let gone = self.shards.take_all();
        let held = residents.clear();
        drop(residents);
        drop(held);
        gone.len() as u64
    }

    /// What the store holds and has done.
    pub fn stats(&self) -> StoreStats {
        let residents = self.residents.lock().stats();
        StoreStats {
            used_bytes: self.pool.used_bytes(),
            capacity_bytes: self.pool.capacity_bytes(),
            ..residents
        }
    }

    /// Bytes of the pool that puts under way have reserved.
    pub fn reserved_bytes(&self) -> u64 {
        self.reserved_bytes.load(Ordering::Relaxed)
    }

    /// The memory that values live in.
    pub fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }
}

#[cfg(test)]
mod tests;
