//! A storage of equal slots that never evicts: for tests and drills, and small enough to be read in a minute.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::storage::{PutRefused, Storage, ValueMemory};
use crate::verbs::Memory;

/// Values in slots of one size.
pub struct SlotStorage {
    shared: Arc<Shared>,
}

struct Shared {
    base: usize,
    slot_bytes: usize,
    slots: Mutex<Slots>,
}

struct Slots {
    free: Vec<usize>,
    values: HashMap<Vec<u8>, Arc<Slot>>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SlotStorage {
    /// A storage, and its memory for the server to register.
    pub fn new(slot_bytes: usize, slot_count: usize) -> (Self, Memory) {
        let memory = Memory::allocate(slot_bytes * slot_count);
        let shared = Shared {
            base: memory.address(),
            slot_bytes,
            slots: Mutex::new(Slots { free: (0..slot_count).rev().collect(), values: HashMap::new() }),
        };
        (Self { shared: Arc::new(shared) }, memory)
    }

    /// Values that are there.
    pub fn len(&self) -> usize {
        self.shared.lock().values.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Slots that hold nothing: neither a value, nor one that is being filled, nor a replaced one that is being read.
    pub fn free_slots(&self) -> usize {
        self.shared.lock().free.len()
    }
}

impl std::fmt::Debug for SlotStorage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SlotStorage {{ {} values }}", self.len())
    }
}

/// A slot that is in use; dropping it frees it.
struct Slot {
    shared: Arc<Shared>,
    index: usize,
    bytes: usize,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.shared.lock().free.push(self.index);
    }
}

/// A value of a [`SlotStorage`] that is being filled.
pub struct SlotPut {
    key: Vec<u8>,
    slot: Slot,
}

/// A value of a [`SlotStorage`].
pub struct SlotValue(Arc<Slot>);

// SAFETY: the slot is within the storage's memory, and out of the free list until it is dropped.
unsafe impl ValueMemory for SlotPut {
    fn address(&self) -> usize {
        self.slot.shared.base + self.slot.index * self.slot.shared.slot_bytes
    }

    fn bytes(&self) -> usize {
        self.slot.bytes
    }
}

// SAFETY: as above; a slot that holds a value is not written.
unsafe impl ValueMemory for SlotValue {
    fn address(&self) -> usize {
        self.0.shared.base + self.0.index * self.0.shared.slot_bytes
    }

    fn bytes(&self) -> usize {
        self.0.bytes
    }
}

impl Storage for SlotStorage {
    type Put = SlotPut;
    type Value = SlotValue;

    fn begin_put(&self, key: &[u8], bytes: usize) -> Result<SlotPut, PutRefused> {
        if bytes > self.shared.slot_bytes {
            return Err(PutRefused::TooLarge);
        }
        let index = self.shared.lock().free.pop().ok_or(PutRefused::NoRoom)?;
        Ok(SlotPut { key: key.to_vec(), slot: Slot { shared: Arc::clone(&self.shared), index, bytes } })
    }

    fn commit(&self, filled: Vec<SlotPut>) {
        for put in filled {
            let replaced = self.shared.lock().values.insert(put.key, Arc::new(put.slot));
            drop(replaced);
        }
    }

    fn get(&self, key: &[u8]) -> Option<SlotValue> {
        self.shared.lock().values.get(key).cloned().map(SlotValue)
    }

    fn delete(&self, key: &[u8]) -> bool {
        let removed = self.shared.lock().values.remove(key);
        // Dropped here, after the lock: the slot takes it again to free itself.
        removed.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_freed_when_nobody_holds_them() {
        let (storage, memory) = SlotStorage::new(64, 3);
        assert!(memory.bytes() >= 192);
        let put = storage.begin_put(b"a", 10).unwrap();
        assert!(storage.get(b"a").is_none());
        storage.commit(vec![put]);
        let old = storage.get(b"a").unwrap();
        storage.commit(vec![storage.begin_put(b"a", 20).unwrap()]);
        assert_eq!((old.bytes(), storage.get(b"a").unwrap().bytes(), storage.free_slots()), (10, 20, 1));
        drop(old);
        assert_eq!(storage.free_slots(), 2);
        drop(storage.begin_put(b"b", 1).unwrap());
        assert!(storage.delete(b"a") && !storage.delete(b"a"));
        assert_eq!((storage.free_slots(), storage.len()), (3, 0));
        assert_eq!(storage.begin_put(b"c", 65).err(), Some(PutRefused::TooLarge));
        let held: Vec<_> = (0..3).map(|_| storage.begin_put(b"c", 64).unwrap()).collect();
        assert_eq!(storage.begin_put(b"c", 64).err(), Some(PutRefused::NoRoom));
        drop(held);
    }
}
