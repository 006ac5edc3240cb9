use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::pool::GRANULE_BYTES;

fn store(granules: u64, eviction: &str) -> Arc<Store> {
    let config = StoreConfig {
        capacity_bytes: granules * GRANULE_BYTES,
        eviction: eviction.to_owned(),
        values_max: None,
    };
    Store::new(&config).unwrap()
}

/// A value whose every byte tells which one it is.
fn put(store: &Store, key: &[u8], bytes: u64, mark: u8) -> Result<(), Refused> {
    let mut reservation = store.reserve(key, bytes)?;
    reservation.bytes_mut().fill(mark);
    store.publish(reservation, Some(u64::from(mark)));
    Ok(())
}

fn mark_of(value: &Value) -> u8 {
    let mark = value.bytes()[0];
    assert!(value.bytes().iter().all(|byte| *byte == mark));
    assert_eq!(value.checksum(), Some(u64::from(mark)));
    mark
}

#[test]
fn the_least_recently_used_value_makes_room() {
    let store = store(3, "lru");
    for (key, mark) in [(b"a", 1), (b"b", 2), (b"c", 3)] {
        put(&store, key, GRANULE_BYTES, mark).unwrap();
    }
    let used = store.get(b"a").unwrap();
    store.touch(&[used]);
    assert!(store.contains(b"b"), "a look is no use");
    put(&store, b"d", 1, 4).unwrap();
    assert_eq!([b"a", b"b", b"c", b"d"].map(|key| store.contains(key)), [true, false, true, true]);
    assert_eq!((store.stats().values, store.stats().evictions), (3, 1));
}

#[test]
fn of_one_batch_the_tail_goes_first() {
    let store = store(3, "lru");
    for key in [b"1", b"2", b"3"] {
        put(&store, key, 1, 0).unwrap();
    }
    let batch = [b"1", b"2", b"3"].map(|key| store.get(key).unwrap());
    store.touch(&batch);
    drop(batch);
    put(&store, b"4", 1, 0).unwrap();
    assert!(store.contains(b"1") && store.contains(b"2") && !store.contains(b"3"));
}

#[test]
fn a_value_in_use_is_passed_over_and_all_in_use_is_full() {
    let store = store(2, "lru");
    put(&store, b"a", 1, 1).unwrap();
    put(&store, b"b", 1, 2).unwrap();
    let held = store.get(b"a").unwrap();
    put(&store, b"c", 1, 3).unwrap();
    assert!(store.contains(b"a") && !store.contains(b"b"));
    let also = store.get(b"c").unwrap();
    let capacity_bytes = 2 * GRANULE_BYTES;
    assert_eq!(put(&store, b"d", 1, 4), Err(Refused::Full { bytes: 1, capacity_bytes }));
    assert_eq!((mark_of(&held), mark_of(&also)), (1, 3));
}

#[test]
fn readers_keep_what_is_overwritten_deleted_or_purged() {
    let store = store(4, "s3fifo");
    put(&store, b"k", 5000, 1).unwrap();
    let first = store.get(b"k").unwrap();
    put(&store, b"k", 100, 2).unwrap();
    let second = store.get(b"k").unwrap();
    assert!(store.delete(b"k") && !store.delete(b"k"));
    put(&store, b"k", 100, 3).unwrap();
    let third = store.get(b"k").unwrap();
    assert_eq!(store.purge(), 1);
    assert_eq!([&first, &second, &third].map(|value| mark_of(value)), [1, 2, 3]);
    assert_eq!(store.stats().used_bytes, 4 * GRANULE_BYTES, "held by readers");
    drop((first, second, third));
    assert_eq!((store.stats().used_bytes, store.stats().values, store.stats().value_bytes), (0, 0, 0));
}

#[test]
fn nothing_is_visible_before_it_is_complete() {
    let store = store(4, "lru");
    put(&store, b"k", 10, 1).unwrap();
    let mut reservation = store.reserve(b"k", 10).unwrap();
    reservation.bytes_mut()[..5].fill(2);
    assert_eq!(mark_of(&store.get(b"k").unwrap()), 1);
    drop(reservation);
    assert_eq!(mark_of(&store.get(b"k").unwrap()), 1);
    assert_eq!(store.reserved_bytes(), 0);
}

#[test]
fn promises_do_not_empty_the_store() {
    let store = store(8, "lru");
    for key in 0..8_u8 {
        put(&store, &[key], 1, key).unwrap();
    }
    let promise = GRANULE_BYTES * 3;
    let held = store.reserve(b"liar", promise).unwrap();
    assert!(matches!(store.reserve(b"liar", promise), Err(Refused::Busy { .. })));
    assert_eq!(store.stats().values, 5);
    drop(held);
    assert!(store.reserve(b"honest", promise).is_ok());
}

#[test]
fn what_never_fits_evicts_nothing() {
    let store = store(2, "lru");
    put(&store, b"a", 1, 1).unwrap();
    assert!(matches!(put(&store, b"b", 2 * GRANULE_BYTES + 1, 2), Err(Refused::TooLarge { .. })));
    assert_eq!(put(&store, b"b", 0, 2), Err(Refused::Empty));
    assert_eq!(put(&store, b"", 1, 2), Err(Refused::Empty));
    assert!(store.contains(b"a"));
}

#[test]
fn more_values_than_slots_evict_as_well() {
    let config =
        StoreConfig { capacity_bytes: 64 * GRANULE_BYTES, eviction: "lru".to_owned(), values_max: Some(2) };
    let store = Store::new(&config).unwrap();
    for key in [b"a", b"b", b"c"] {
        put(&store, key, 1, 0).unwrap();
    }
    assert_eq!([b"a", b"b", b"c"].map(|key| store.contains(key)), [false, true, true]);
    let held = [b"b", b"c"].map(|key| store.get(key).unwrap());
    put(&store, b"d", 1, 9).unwrap();
    assert_eq!(store.stats().values, 2);
    assert_eq!(store.stats().evictions_in_use, 1);
    drop(held);
    assert_eq!(store.purge(), 2);
    assert_eq!(store.stats().used_bytes, 0);
}

#[test]
fn an_unknown_policy_is_refused() {
    let config = StoreConfig { capacity_bytes: 1 << 20, eviction: "s3-fifo".to_owned(), values_max: None };
    let error = Store::new(&config).unwrap_err().to_string();
    assert!(error.contains("did you mean `s3fifo`?"), "{error}");
}

#[derive(Clone, Debug)]
enum Operation {
    Put { key: u8, granules: u64 },
    Get { key: u8, hold: bool },
    Delete { key: u8 },
    Release,
    Purge,
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        6 => (0..12_u8, 1..5_u64).prop_map(|(key, granules)| Operation::Put { key, granules }),
        6 => (0..12_u8, any::<bool>()).prop_map(|(key, hold)| Operation::Get { key, hold }),
        1 => (0..12_u8).prop_map(|key| Operation::Delete { key }),
        2 => Just(Operation::Release),
        1 => Just(Operation::Purge),
    ]
}

proptest! {
    /// Against a map that forgets nothing: whatever is found is what was put last, and all memory is accounted for.
    #[test]
    fn what_is_found_is_what_was_put_last(
        operations in prop::collection::vec(operation(), 0..200),
        eviction in prop_oneof![Just("lru"), Just("s3fifo"), Just("s3fifo-fixed"), Just("hit-density")],
    ) {
        let store = store(16, eviction);
        let mut last: HashMap<u8, u8> = HashMap::new();
        let mut held: Vec<(Arc<Value>, u8)> = Vec::new();
        for (turn, operation) in operations.into_iter().enumerate() {
            let mark = turn as u8;
            match operation {
                Operation::Put { key, granules } => {
                    if put(&store, &[key], granules * GRANULE_BYTES, mark).is_ok() {
                        last.insert(key, mark);
                        prop_assert!(store.contains(&[key]), "just put");
                    } else {
                        prop_assert!(!held.is_empty(), "only readers can keep a value out");
                    }
                }
                Operation::Get { key, hold } => {
                    if let Some(value) = store.get(&[key]) {
                        prop_assert_eq!(Some(&mark_of(&value)), last.get(&key));
                        store.touch(std::slice::from_ref(&value));
                        if hold {
                            held.push((value, last[&key]));
                        }
                    }
                }
                Operation::Delete { key } => {
                    let was_there = store.contains(&[key]);
                    prop_assert_eq!(store.delete(&[key]), was_there);
                    last.remove(&key);
                }
                Operation::Release => held.clear(),
                Operation::Purge => {
                    let values = store.stats().values;
                    prop_assert_eq!(store.purge(), values);
                    last.clear();
                }
            }
            for (value, mark) in &held {
                prop_assert_eq!(mark_of(value), *mark, "a reader's value has changed");
            }
            let present = (0..12_u8).filter(|key| store.contains(&[*key])).count() as u64;
            prop_assert_eq!(store.stats().values, present);
        }
        held.clear();
        prop_assert!(store.stats().used_bytes >= store.stats().value_bytes);
        store.purge();
        prop_assert_eq!(store.stats().used_bytes, 0);
    }
}

/// Readers and writers of the same few keys, in a pool that holds half of what is written.
#[test]
fn threads_never_see_a_mixture() {
    const THREADS: u64 = 4;
    const TURNS: u64 = 3000;
    let store = store(24, "s3fifo");
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let store = &store;
            scope.spawn(move || {
                let mut state = thread + 1;
                for _ in 0..TURNS {
                    state =
                        state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    let key = [(state >> 60) as u8];
                    match state >> 33 & 7 {
                        0..3 => {
                            let _ = put(
                                store,
                                &key,
                                1 + (state >> 40) % (3 * GRANULE_BYTES),
                                (state >> 48) as u8,
                            );
                        }
                        3 => {
                            store.delete(&key);
                        }
                        4 if state >> 36 & 63 == 0 => {
                            store.purge();
                        }
                        _ => {
                            if let Some(value) = store.get(&key) {
                                mark_of(&value);
                                store.touch(&[value]);
                            }
                        }
                    }
                }
            });
        }
    });
    assert!(store.stats().evictions > 0);
    assert_eq!(store.stats().values, store.purge());
    assert_eq!((store.stats().used_bytes, store.reserved_bytes()), (0, 0));
}

/// Values of several models share a pool: gaps do not add up, and room for a large value costs little more than itself.
#[test]
fn sizes_that_do_not_fit_each_other_share_the_pool() {
    const CAPACITY: u64 = 512 << 20;
    for eviction in ["lru", "s3fifo"] {
        for (small, large) in [(64 << 10, 1 << 20), (512 << 10, 2 << 20), (300 << 10, 5 << 20)] {
            let store = store(CAPACITY / GRANULE_BYTES, eviction);
            let mut random = 1_u64;
            for number in 0..20_000_u64 {
                random =
                    random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let bytes = if random >> 40 & 1 == 0 { small } else { large };
                let used = store.stats().used_bytes;
                let reservation = store.reserve(&number.to_le_bytes(), bytes).unwrap();
                store.publish(reservation, None);
                let lost = used + bytes - store.stats().used_bytes.min(used + bytes);
                assert!(lost <= bytes + 3 * large, "{lost} bytes left for one value of {bytes} ({eviction})");
                // Some are used again, so that the order of leaving is not that of coming.
                if let Some(value) = store.get(&number.saturating_sub(random >> 33 & 255).to_le_bytes()) {
                    store.touch(&[value]);
                }
            }
            let used = store.stats().used_bytes;
            assert!(used > CAPACITY / 100 * 95, "{used} bytes of {CAPACITY} in use ({eviction})");
        }
    }
}
