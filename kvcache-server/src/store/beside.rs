//! Checksums that lie beside their values.
//!
//! The extension carries a value's checksum with the value, RDMA has no room for it: a client there stores it under a name
//! of its own, the value's with [`CHECKSUM_SUFFIX`] behind it. Here both are one thing, so that what one client has put
//! over TCP another finds over RDMA, and the other way round.
//!
//! - Eight bytes that are put under such a name become the checksum of the value, if that is there; otherwise they are a
//!   value like any other, in which the checksum is looked up.
//! - A get under such a name finds the value's checksum, in memory that is taken for the answer.
//! - A value that is put without a checksum keeps that of the value in whose place it comes, as it would if both lay apart.

use std::sync::Arc;

use kvcache_core::eviction::SlotId;
use kvcache_wire::stock::CHECKSUM_SUFFIX;
use parking_lot::Mutex;

use super::{Reservation, Store, Value};

/// Bytes of a checksum.
const CHECKSUM_BYTES: u64 = 8;

/// Of a value that is in no table: the eviction policy knows no such slot.
const NO_SLOT: SlotId = SlotId(u32::MAX);

/// The name of the value whose checksum lies under `name`.
pub(super) fn value_of(name: &[u8]) -> Option<&[u8]> {
    name.strip_suffix(CHECKSUM_SUFFIX).filter(|value| !value.is_empty())
}

impl Store {
    /// The checksum of this value, wherever it lies.
    pub fn checksum_of(&self, value: &Value) -> Option<u64> {
        value.checksum().or_else(|| {
            let beside = self.shards.get(&[&value.key, CHECKSUM_SUFFIX].concat())?;
            Some(u64::from_le_bytes(beside.bytes().try_into().ok()?))
        })
    }

    /// Takes a filled reservation for the checksum of its value, if it is one; otherwise it comes back.
    pub(super) fn attach(&self, mut reservation: Reservation) -> Option<Reservation> {
        let value = value_of(&reservation.key).and_then(|name| self.shards.get(name));
        let bytes = reservation.bytes_mut();
        let (Some(value), Ok(bytes)) = (value, <[u8; CHECKSUM_BYTES as usize]>::try_from(&*bytes)) else {
            return Some(reservation);
        };
        *value.checksum.lock() = Some(u64::from_le_bytes(bytes));
        // One that came before its value would be found first.
        self.forget_beside(&reservation.key);
        None
    }

    /// Whether a checksum that came with its value is what `name` names.
    pub(super) fn is_beside(&self, name: &[u8]) -> bool {
        self.beside(name).is_some()
    }

    /// The same as a value, in memory of the pool until it is dropped. `None` if there is none, or no room.
    pub(super) fn get_beside(&self, name: &[u8]) -> Option<Arc<Value>> {
        let checksum = self.beside(name)?;
        let mut extent = self.reserve_room(CHECKSUM_BYTES).ok()?.extent;
        extent.bytes_mut().copy_from_slice(&checksum.to_le_bytes());
        let (key, extent) = (name.into(), extent.seal());
        Some(Arc::new(Value { key, hash: 0, slot: NO_SLOT, extent, checksum: Mutex::new(None) }))
    }

    /// Forgets the checksum that `name` names; whether there was one.
    pub(super) fn delete_beside(&self, name: &[u8]) -> bool {
        let value = value_of(name).and_then(|name| self.shards.get(name));
        value.is_some_and(|value| value.checksum.lock().take().is_some())
    }

    /// Forgets a checksum that lies apart from its value, which has one now.
    pub(super) fn forget_beside(&self, name: &[u8]) {
        if !self.shards.contains(name) {
            return;
        }
        let mut residents = self.residents.lock();
        if let Some(apart) = self.shards.remove(name) {
            residents.remove(&apart);
        }
    }

    fn beside(&self, name: &[u8]) -> Option<u64> {
        self.shards.get(value_of(name)?)?.checksum()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Store, StoreConfig};
    use super::*;

    fn store() -> Arc<Store> {
        let eviction = "lru".to_owned();
        Store::new(&StoreConfig { capacity_bytes: 64 << 10, eviction, values_max: None }).unwrap()
    }

    fn put(store: &Store, key: &[u8], bytes: &[u8], checksum: Option<u64>) {
        let mut reservation = store.reserve(key, bytes.len() as u64).unwrap();
        reservation.bytes_mut().copy_from_slice(bytes);
        store.publish(reservation, checksum);
    }

    fn found(store: &Store, key: &[u8]) -> Option<Vec<u8>> {
        store.get(key).map(|value| value.bytes().to_vec())
    }

    const SUM: u64 = 0x0123_4567_89ab_cdef;
    const SUM_BYTES: [u8; 8] = SUM.to_le_bytes();

    #[test]
    fn a_checksum_that_came_with_its_value_lies_beside_it() {
        let store = store();
        put(&store, b"k", b"value", Some(SUM));
        assert!(store.contains(b"k#xxh3"));
        assert_eq!(found(&store, b"k#xxh3"), Some(SUM_BYTES.to_vec()));
        let stats = store.stats();
        assert_eq!((stats.values, stats.used_bytes), (1, 4096), "nothing stays of the answer");
        assert!(store.delete(b"k#xxh3") && !store.delete(b"k#xxh3"));
        assert_eq!((store.contains(b"k#xxh3"), found(&store, b"k#xxh3")), (false, None));
        assert_eq!(found(&store, b"k"), Some(b"value".to_vec()));
    }

    #[test]
    fn a_checksum_that_lies_beside_comes_with_its_value_whichever_was_first() {
        for first in [true, false] {
            let store = store();
            if first {
                put(&store, b"k#xxh3", &SUM_BYTES, None);
            }
            put(&store, b"k", b"value", None);
            if !first {
                assert_eq!(store.checksum_of(&store.get(b"k").unwrap()), None);
                put(&store, b"k#xxh3", &SUM_BYTES, None);
                assert_eq!(store.stats().values, 1);
            }
            assert_eq!(store.checksum_of(&store.get(b"k").unwrap()), Some(SUM));
            assert_eq!(found(&store, b"k#xxh3"), Some(SUM_BYTES.to_vec()));
            // Put again without one, as over RDMA, it is there all the time.
            put(&store, b"k", b"again", None);
            assert_eq!(store.checksum_of(&store.get(b"k").unwrap()), Some(SUM));
            assert!(store.delete(b"k"));
            assert!(!store.contains(b"k#xxh3"), "it goes with its value");
            assert_eq!(store.stats().used_bytes, 0);
        }
    }

    /// A checksum whose value was refused lies alone, until there is a value that brings one.
    #[test]
    fn a_checksum_from_before_its_value_does_not_outlive_the_next() {
        let other = 77_u64.to_le_bytes();
        for over_tcp in [true, false] {
            let store = store();
            put(&store, b"k#xxh3", &SUM_BYTES, None);
            put(&store, b"k", b"value", over_tcp.then_some(77));
            if !over_tcp {
                put(&store, b"k#xxh3", &other, None);
            }
            assert_eq!(found(&store, b"k#xxh3"), Some(other.to_vec()));
            assert_eq!(store.checksum_of(&store.get(b"k").unwrap()), Some(77));
            assert_eq!(store.stats().values, 1);
        }
    }

    #[test]
    fn other_values_with_such_names_are_values() {
        let store = store();
        put(&store, b"k", b"value", None);
        for (key, bytes) in
            [(&b"k#xxh3"[..], &b"nine byte"[..]), (b"#xxh3", &SUM_BYTES), (b"j#xxh3", &SUM_BYTES)]
        {
            put(&store, key, bytes, None);
            assert_eq!(found(&store, key), Some(bytes.to_vec()));
        }
        assert_eq!(store.stats().values, 4);
        assert_eq!(store.checksum_of(&store.get(b"k").unwrap()), None);
    }
}
