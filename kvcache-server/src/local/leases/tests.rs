use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::pool::GRANULE_BYTES;
use crate::store::StoreConfig;

const TIME: Duration = Duration::from_secs(10);
const CAPACITY: u64 = 16 * GRANULE_BYTES;
const LIMITS: LeaseLimits = LeaseLimits {
    time: TIME,
    values_bytes_max: 5 * GRANULE_BYTES,
    room_bytes_max: 3 * GRANULE_BYTES,
    reserved_bytes_max: 8 * GRANULE_BYTES,
};

/// In whole granules.
fn footprint(bytes: u64) -> u64 {
    bytes.next_multiple_of(GRANULE_BYTES)
}

fn store() -> Arc<Store> {
    let config = StoreConfig { capacity_bytes: CAPACITY, eviction: "lru".to_owned(), values_max: Some(64) };
    Store::new(&config).expect("memory")
}

#[derive(Clone, Debug)]
enum Step {
    Pin(Vec<u8>),
    Reserve(u64),
    Commit(prop::sample::Index, u8),
    Release(prop::sample::Index),
    Delete(u8),
    Pass(u64),
    Close,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => prop::collection::vec(0_u8..6, 0..4).prop_map(Step::Pin),
        4 => (1..2 * GRANULE_BYTES).prop_map(Step::Reserve),
        4 => (any::<prop::sample::Index>(), 0_u8..6).prop_map(|(index, key)| Step::Commit(index, key)),
        2 => any::<prop::sample::Index>().prop_map(Step::Release),
        2 => (0_u8..6).prop_map(Step::Delete),
        2 => (0_u64..8).prop_map(Step::Pass),
        1 => Just(Step::Close),
    ]
}

/// What the leases should hold, each thing by itself: values by their place, which nobody else may have meanwhile.
#[derive(Default)]
struct Oracle {
    /// Place of the value under each key.
    stored: BTreeMap<u8, u64>,
    /// Until when, and places and lengths.
    pinned: BTreeMap<u64, (u64, Vec<(u64, u64)>)>,
    rooms: BTreeMap<u64, (u64, u64)>,
    now: u64,
}

impl Oracle {
    fn expire(&mut self) -> usize {
        let before = self.pinned.len();
        let now = self.now;
        self.pinned.retain(|_, (until, _)| *until > now);
        before - self.pinned.len()
    }

    fn pinned_bytes(&self) -> u64 {
        self.pinned.values().flat_map(|(_, places)| places).map(|(_, bytes)| footprint(*bytes)).sum()
    }

    fn room_bytes(&self) -> u64 {
        self.rooms.values().map(|(_, bytes)| footprint(*bytes)).sum()
    }

    /// Granules that must not be free.
    fn held(&self, lengths: &BTreeMap<u64, u64>) -> u64 {
        let mut places: BTreeMap<u64, u64> = BTreeMap::new();
        places.extend(self.pinned.values().flat_map(|(_, places)| places).copied());
        places.extend(self.rooms.values().copied());
        places.extend(self.stored.values().map(|place| (*place, lengths[place])));
        places.values().map(|bytes| bytes.div_ceil(GRANULE_BYTES)).sum()
    }
}

proptest! {
    /// Whatever happens in whatever order: what is leased is kept, what is not is free, and bounds hold.
    #[test]
    fn leases_hold_exactly_what_they_should(steps in prop::collection::vec(step(), 0..120)) {
        let store = store();
        let start = Instant::now();
        let mut leases = Leases::new(LIMITS);
        let mut oracle = Oracle::default();
        let mut lengths: BTreeMap<u64, u64> = BTreeMap::new();
        for step in steps {
            let now = start + Duration::from_secs(oracle.now);
            match step {
                Step::Pin(keys) => {
                    let mut values: Vec<_> = keys.iter().filter_map(|key| store.get(&[*key])).collect();
                    let mut bytes = 0;
                    values.retain(|value| {
                        let held = oracle.pinned_bytes() + bytes;
                        let may = held == 0 || held + footprint(value.len_bytes()) <= LIMITS.values_bytes_max;
                        assert_eq!(leases.may_pin(value, bytes), may);
                        bytes += if may { value.footprint_bytes() } else { 0 };
                        may
                    });
                    let places: Vec<_> =
                        values.iter().map(|value| (value.offset_bytes(), value.len_bytes())).collect();
                    let lease = leases.pin(values, now);
                    prop_assert!(!oracle.pinned.contains_key(&lease) && !oracle.rooms.contains_key(&lease));
                    if !places.is_empty() {
                        oracle.pinned.insert(lease, (oracle.now + TIME.as_secs(), places));
                    }
                }
                Step::Reserve(bytes) => match leases.reserve(&store, bytes) {
                    Ok((lease, place)) => {
                        prop_assert!(!oracle.pinned.contains_key(&lease) && !oracle.rooms.contains_key(&lease));
                        lengths.insert(place, bytes);
                        oracle.rooms.insert(lease, (place, bytes));
                        // What had to go for it.
                        oracle.stored.retain(|key, place| {
                            store.get(&[*key]).is_some_and(|value| value.offset_bytes() == *place)
                        });
                    }
                    Err(NoRoom::TooMuch) => {
                        prop_assert!(footprint(bytes) + oracle.room_bytes() > LIMITS.room_bytes_max);
                        prop_assert!(!oracle.rooms.is_empty());
                    }
                    Err(why) => {
                        prop_assert!(matches!(why, NoRoom::Refused(_)));
                        oracle.stored.retain(|key, _| store.contains(&[*key]));
                    }
                },
                Step::Commit(index, key) => {
                    let known: Vec<u64> = oracle.rooms.keys().copied().chain([u64::MAX]).collect();
                    let lease = *index.get(&known);
                    let room = leases.take_room(lease);
                    prop_assert_eq!(room.is_some(), lease != u64::MAX);
                    let Some(room) = room else { continue };
                    prop_assert_eq!(Some((room.offset_bytes(), room.len_bytes())), oracle.rooms.remove(&lease));
                    oracle.stored.insert(key, room.offset_bytes());
                    store.publish(room.for_key(&[key]).expect("a key"), Some(1));
                }
                Step::Release(index) => {
                    let known: Vec<u64> =
                        oracle.rooms.keys().chain(oracle.pinned.keys()).copied().chain([u64::MAX]).collect();
                    let lease = *index.get(&known);
                    leases.release(lease);
                    oracle.rooms.remove(&lease);
                    oracle.pinned.remove(&lease);
                }
                Step::Delete(key) => {
                    prop_assert_eq!(store.delete(&[key]), oracle.stored.remove(&key).is_some());
                }
                Step::Pass(seconds) => {
                    oracle.now += seconds;
                    let ended = leases.expire(start + Duration::from_secs(oracle.now));
                    prop_assert_eq!(ended as usize, oracle.expire());
                }
                Step::Close => {
                    prop_assert_eq!(leases.end_values(), !oracle.rooms.is_empty());
                    leases = Leases::new(LIMITS);
                    oracle.pinned.clear();
                    oracle.rooms.clear();
                }
            }
            prop_assert_eq!(leases.values_bytes, oracle.pinned_bytes());
            prop_assert_eq!(leases.room_bytes, oracle.room_bytes());
            let next = oracle.pinned.values().map(|(until, _)| start + Duration::from_secs(*until)).min();
            prop_assert_eq!(leases.next_expiry(), next);
            prop_assert_eq!(store.pool().used_bytes(), oracle.held(&lengths) * GRANULE_BYTES);
        }
        drop(leases);
        store.purge();
        prop_assert_eq!((store.pool().used_bytes(), store.reserved_bytes()), (0, 0));
    }
}

#[test]
fn what_others_have_reserved_counts() {
    let store = store();
    let mut all: Vec<Leases> = (0..4).map(|_| Leases::new(LIMITS)).collect();
    for (leases, granted) in all.iter_mut().zip([3, 3, 2, 0]) {
        let rooms = (0..3).filter(|_| leases.reserve(&store, 1).is_ok()).count();
        assert_eq!(rooms, granted);
    }
    assert_eq!(store.reserved_bytes(), LIMITS.reserved_bytes_max);
    // A value that is larger than that finds room when nobody else has any.
    let large = LIMITS.reserved_bytes_max + 1;
    assert!(matches!(all[3].reserve(&store, large), Err(NoRoom::Refused(Refused::Busy { .. }))));
    all.truncate(0);
    assert!(Leases::new(LIMITS).reserve(&store, large).is_ok());
}
