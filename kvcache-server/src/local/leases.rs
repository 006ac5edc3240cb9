//! The leases of one connection.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::pool::GRANULE_BYTES;
use crate::store::{Refused, Room, Store, Value};

/// What one connection may hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LeaseLimits {
    /// How long values are pinned at most.
    pub(crate) time: Duration,
    /// Bytes of the pool that pinned values take; one value always may.
    pub(crate) values_bytes_max: u64,
    /// The same of room.
    pub(crate) room_bytes_max: u64,
    /// Bytes of room that all connections and all other puts hold; beyond it there is no more, however much is free. One
    /// value always fits.
    pub(crate) reserved_bytes_max: u64,
}

/// Why there is no room.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum NoRoom {
    /// The store says so.
    Refused(Refused),
    /// The connection holds too much already.
    TooMuch,
    /// The system has no memory to put behind the pool.
    NoMemory,
}

/// The leases of one connection. Dropping them gives everything back.
#[derive(Debug)]
pub(crate) struct Leases {
    limits: LeaseLimits,
    /// Ids are used once, so that the oldest lease has the smallest one.
    next: u64,
    values: BTreeMap<u64, Pinned>,
    values_bytes: u64,
    rooms: BTreeMap<u64, Room>,
    room_bytes: u64,
}

#[derive(Debug)]
struct Pinned {
    values: Vec<Arc<Value>>,
    bytes: u64,
    until: Instant,
}

impl Leases {
    pub(crate) fn new(limits: LeaseLimits) -> Self {
        Self {
            limits,
            next: 1,
            values: BTreeMap::new(),
            values_bytes: 0,
            rooms: BTreeMap::new(),
            room_bytes: 0,
        }
    }

    /// Whether a value may be pinned beside others, not pinned yet, that take `bytes` of the pool.
    pub(crate) fn may_pin(&self, value: &Value, bytes: u64) -> bool {
        let held = self.values_bytes + bytes;
        held == 0 || held + value.footprint_bytes() <= self.limits.values_bytes_max
    }

    /// Pins values, and returns the lease.
    pub(crate) fn pin(&mut self, values: Vec<Arc<Value>>, now: Instant) -> u64 {
        let lease = self.next();
        if !values.is_empty() {
            let bytes = values.iter().map(|value| value.footprint_bytes()).sum();
            self.values_bytes += bytes;
            self.values.insert(lease, Pinned { values, bytes, until: now + self.limits.time });
        }
        lease
    }

    /// Finds room for a value, and returns the lease and where the room begins.
    pub(crate) fn reserve(&mut self, store: &Store, bytes: u64) -> Result<(u64, u64), NoRoom> {
        let footprint_bytes = bytes.checked_next_multiple_of(GRANULE_BYTES).unwrap_or(u64::MAX);
        let with = |held: u64| held.saturating_add(footprint_bytes);
        if with(self.room_bytes) > self.limits.room_bytes_max && !self.rooms.is_empty() {
            return Err(NoRoom::TooMuch);
        }
        let reserved_bytes = store.reserved_bytes();
        if with(reserved_bytes) > self.limits.reserved_bytes_max && reserved_bytes > 0 {
            let capacity_bytes = store.pool().capacity_bytes();
            return Err(NoRoom::Refused(Refused::Busy { bytes, reserved_bytes, capacity_bytes }));
        }
        let room = store.reserve_room(bytes).map_err(NoRoom::Refused)?;
        room.back().map_err(|error| {
            log::warn!("no memory for {bytes} bytes of the pool: {error}");
            NoRoom::NoMemory
        })?;
        let (lease, offset_bytes) = (self.next(), room.offset_bytes());
        self.room_bytes += room.footprint_bytes();
        self.rooms.insert(lease, room);
        Ok((lease, offset_bytes))
    }

    /// Takes room back from the client, which has written it.
    pub(crate) fn take_room(&mut self, lease: u64) -> Option<Room> {
        let room = self.rooms.remove(&lease)?;
        self.room_bytes -= room.footprint_bytes();
        Some(room)
    }

    /// Ends a lease of either kind; unknown ones have ended before.
    pub(crate) fn release(&mut self, lease: u64) {
        if let Some(pinned) = self.values.remove(&lease) {
            self.values_bytes -= pinned.bytes;
            drop(pinned.values);
        } else {
            drop(self.take_room(lease));
        }
    }

    /// Ends the leases of values whose time is up; how many.
    pub(crate) fn expire(&mut self, now: Instant) -> u64 {
        let mut count = 0;
        while let Some(entry) = self.values.first_entry()
            && entry.get().until <= now
        {
            self.values_bytes -= entry.remove().bytes;
            count += 1;
        }
        count
    }

    /// When the next lease of values ends.
    pub(crate) fn next_expiry(&self) -> Option<Instant> {
        self.values.first_key_value().map(|(_, pinned)| pinned.until)
    }

    /// Gives all values back, and says whether there is room that the client may still write to.
    pub(crate) fn end_values(&mut self) -> bool {
        self.values.clear();
        self.values_bytes = 0;
        !self.rooms.is_empty()
    }

    fn next(&mut self) -> u64 {
        let lease = self.next;
        self.next += 1;
        lease
    }
}

#[cfg(test)]
mod tests;
