use proptest::prelude::*;

use super::*;
use crate::slab::mapping::HugePages;

const SLOTS: u64 = 8;

fn description() -> Description {
    Description { layout: [1; 16], namespace: [2; 16], slot_bytes: 4096, slot_count: SLOTS }
}

fn mapping() -> Arc<Mapping> {
    let bytes = description().data_offset().unwrap();
    Arc::new(Mapping::anonymous(bytes, HugePages::Off).unwrap())
}

fn table() -> SlotTable {
    SlotTable::create(mapping(), &description(), 77)
}

/// The table as a process of boot `boot` finds it.
fn reopened(table: &SlotTable, boot: u64) -> SlotTable {
    SlotTable::existing(Arc::clone(&table.mapping), &description(), boot).unwrap()
}

fn record(seed: u64) -> SlotRecord {
    let bytes = |salt: u64| bytes_of([seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ salt, seed + salt]);
    let mut engine_hash = [0; 32];
    engine_hash[..16].copy_from_slice(&bytes(3));
    engine_hash[16..].copy_from_slice(&bytes(4));
    SlotRecord {
        key: BlockKey(bytes(1)),
        parent: BlockKey(bytes(2)),
        engine_hash,
        fill_id: seed + 1,
        info: seed as u32 ^ 5,
    }
}

fn fill(table: &SlotTable, slot: u32, seed: u64) -> SlotRecord {
    let record = record(seed);
    table.begin_fill(SlotId(slot), &record);
    assert!(table.publish(SlotId(slot), record.fill_id));
    record
}

#[test]
fn published_records_survive_and_unpublished_ones_do_not() {
    let table = table();
    let first = fill(&table, 3, 10);
    table.begin_fill(SlotId(4), &record(11));
    fill(&table, 5, 12);
    table.clear(SlotId(5));
    let expected = WarmSlot { slot: SlotId(3), record: first, needs_verify: false };
    let after = reopened(&table, 77);
    assert_eq!(after.warm_slots(), [expected]);
    assert_eq!(after.ready(SlotId(3)), Some(first));
    assert_eq!(after.highest_fill_id(), 13);
}

/// A writer killed after each of its stores: the slot is either as it was, or lost, or completely new.
#[test]
fn a_refill_cut_at_any_step_is_never_served() {
    for last_step in 0..=IDENTITY_WORDS + 1 {
        let table = table();
        fill(&table, 0, 1);
        let neighbour = fill(&table, 1, 2);
        table.begin_fill_steps(SlotId(0), &record(50), &mut |step| step < last_step);
        let warm = reopened(&table, 77).warm_slots();
        assert_eq!(warm.iter().map(|warm| warm.record).collect::<Vec<_>>(), [neighbour], "step {last_step}");
    }
}

/// Even if the state were ready (a damaged file), a record whose fields are half old, half new does not pass.
#[test]
fn a_torn_record_fails_its_checksum() {
    for last_step in 1..=IDENTITY_WORDS {
        let table = table();
        fill(&table, 0, 1);
        table.begin_fill_steps(SlotId(0), &record(50), &mut |step| step < last_step);
        table.record(SlotId(0)).state.store(READY, Ordering::Release);
        // The epoch and the boot are equal in both, so the cut between them changes nothing.
        assert_eq!(table.warm_slots(), [], "step {last_step}");
    }
}

#[test]
fn a_record_at_another_place_is_dropped() {
    let table = table();
    fill(&table, 0, 1);
    let (from, to) = (table.record(SlotId(0)), table.record(SlotId(6)));
    for (from, to) in
        from.identity.iter().chain([&from.checksum]).zip(to.identity.iter().chain([&to.checksum]))
    {
        to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
    }
    to.info.store(from.info.load(Ordering::Relaxed), Ordering::Relaxed);
    to.state.store(READY, Ordering::Relaxed);
    assert_eq!(table.warm_slots().len(), 1);
}

#[test]
fn only_the_fill_that_began_can_publish() {
    let table = table();
    assert!(!table.publish(SlotId(0), 0), "absent");
    table.begin_fill(SlotId(0), &record(1));
    table.begin_fill(SlotId(0), &record(2));
    assert!(!table.publish(SlotId(0), 2), "an earlier fill");
    assert!(table.publish(SlotId(0), 3));
    assert!(!table.publish(SlotId(0), 3), "already ready");
}

#[test]
fn of_equal_keys_the_newest_fill_is_warm() {
    let table = table();
    let old = fill(&table, 2, 5);
    let new = SlotRecord { fill_id: 90, ..old };
    table.begin_fill(SlotId(1), &new);
    table.publish(SlotId(1), 90);
    let warm = table.warm_slots();
    assert_eq!(warm.iter().map(|warm| (warm.slot, warm.record)).collect::<Vec<_>>(), [(SlotId(1), new)]);
}

#[test]
fn raising_the_epoch_voids_every_record_for_good() {
    let table = table();
    fill(&table, 0, 1);
    table.raise_epoch(4);
    assert_eq!(table.warm_slots(), []);
    let new = fill(&table, 1, 2);
    let after = reopened(&table, 77);
    after.raise_epoch(3);
    assert_eq!(after.epoch(), 4);
    assert_eq!(after.warm_slots().iter().map(|warm| warm.record).collect::<Vec<_>>(), [new]);
}

#[test]
fn after_a_reboot_only_checksummed_slots_are_warm_and_need_verification() {
    let table = table();
    fill(&table, 0, 1);
    let kept = fill(&table, 1, 2);
    assert!(table.set_checksum(SlotId(1), kept.fill_id, 99));
    let after = reopened(&table, 78);
    assert_eq!(after.warm_slots(), [WarmSlot { slot: SlotId(1), record: kept, needs_verify: true }]);
    assert_eq!(after.checksum(SlotId(1)), Some(99));
    after.confirm(SlotId(1));
    assert_eq!(after.warm_slots(), [WarmSlot { slot: SlotId(1), record: kept, needs_verify: false }]);
    assert_eq!(after.checksum(SlotId(1)), Some(99));
}

#[test]
fn a_checksum_of_an_earlier_fill_or_a_torn_one_is_no_checksum() {
    let table = table();
    let first = fill(&table, 0, 1);
    assert!(table.set_checksum(SlotId(0), first.fill_id, 99));
    fill(&table, 0, 2);
    assert_eq!(table.checksum(SlotId(0)), None);
    assert!(!table.set_checksum(SlotId(0), first.fill_id, 99), "the slot holds another fill");
    assert!(table.set_checksum(SlotId(0), 3, 98));
    table.record(SlotId(0)).data_checksum.store(97, Ordering::Relaxed);
    assert_eq!(table.checksum(SlotId(0)), None);
}

#[test]
fn another_description_is_not_this_table() {
    let table = table();
    let mine = description();
    let others = [
        Description { layout: [9; 16], ..mine },
        Description { namespace: [9; 16], ..mine },
        Description { slot_bytes: 8192, ..mine },
        Description { slot_count: SLOTS - 1, ..mine },
    ];
    for other in others {
        assert!(SlotTable::existing(Arc::clone(&table.mapping), &other, 77).is_none(), "{other:?}");
    }
    for field in table.header().description() {
        let word = field.fetch_xor(1 << 40, Ordering::Relaxed);
        assert!(SlotTable::existing(Arc::clone(&table.mapping), &mine, 77).is_none());
        field.store(word, Ordering::Relaxed);
    }
    assert!(SlotTable::existing(Arc::clone(&table.mapping), &mine, 77).is_some());
    assert!(SlotTable::existing(mapping(), &mine, 77).is_none(), "an empty file");
}

#[derive(Clone, Debug)]
enum Operation {
    Begin(u32, u64),
    Publish(u32),
    Clear(u32),
    Checksum(u32, u64),
    RaiseEpoch,
}

fn operation() -> impl Strategy<Value = Operation> {
    let slot = 0..SLOTS as u32;
    prop_oneof![
        4 => (slot.clone(), 0..20_u64).prop_map(|(slot, seed)| Operation::Begin(slot, seed)),
        4 => slot.clone().prop_map(Operation::Publish),
        1 => slot.clone().prop_map(Operation::Clear),
        2 => (slot, any::<u64>()).prop_map(|(slot, value)| Operation::Checksum(slot, value)),
        1 => Just(Operation::RaiseEpoch),
    ]
}

proptest! {
    /// Any operations, then a stop: what is warm is what a plain model says.
    #[test]
    fn the_table_agrees_with_a_plain_model(operations in prop::collection::vec(operation(), 0..80)) {
        #[derive(Clone, Copy, Default)]
        struct Slot { record: Option<SlotRecord>, ready: bool, epoch: u64, checksum: Option<u64> }
        let table = table();
        let (mut model, mut epoch, mut fills) = ([Slot::default(); SLOTS as usize], 0, 0);
        for operation in operations {
            match operation {
                Operation::Begin(slot, seed) => {
                    fills += 1;
                    let record = SlotRecord { fill_id: fills, ..record(seed) };
                    table.begin_fill(SlotId(slot), &record);
                    model[slot as usize] = Slot { record: Some(record), ready: false, epoch, checksum: None };
                }
                Operation::Publish(slot) => {
                    let expected = &mut model[slot as usize];
                    let filling = expected.record.filter(|_| !expected.ready);
                    let fill_id = filling.map_or(0, |record| record.fill_id);
                    prop_assert_eq!(table.publish(SlotId(slot), fill_id), filling.is_some());
                    expected.ready |= filling.is_some();
                }
                Operation::Clear(slot) => {
                    table.clear(SlotId(slot));
                    model[slot as usize] = Slot::default();
                }
                Operation::Checksum(slot, value) => {
                    let expected = &mut model[slot as usize];
                    let ready = expected.record.filter(|_| expected.ready);
                    let fill_id = ready.map_or(0, |record| record.fill_id);
                    prop_assert_eq!(table.set_checksum(SlotId(slot), fill_id, value), ready.is_some());
                    expected.checksum = ready.map(|_| value).or(expected.checksum);
                }
                Operation::RaiseEpoch => {
                    epoch += 1;
                    table.raise_epoch(epoch);
                }
            }
        }
        for boot in [77, 78] {
            let valid = |slot: &Slot| slot.ready && slot.epoch == epoch && (boot == 77 || slot.checksum.is_some());
            let expected: Vec<_> = (0..SLOTS as u32)
                .filter_map(|index| {
                    let slot = model[index as usize];
                    let record = slot.record.filter(|_| valid(&slot))?;
                    let newest = model.iter().filter(|other| valid(other)).all(|other| {
                        other.record.is_none_or(|other| other.key != record.key || other.fill_id <= record.fill_id)
                    });
                    newest.then_some(WarmSlot { slot: SlotId(index), record, needs_verify: boot != 77 })
                })
                .collect();
            prop_assert_eq!(reopened(&table, boot).warm_slots(), expected);
        }
        prop_assert_eq!(table.highest_fill_id(), fills);
    }
}
