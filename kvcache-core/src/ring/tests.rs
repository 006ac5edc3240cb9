//! What a table promises, over many sets of names.

use proptest::prelude::*;
use xxhash_rust::xxh3::xxh3_64;

use super::assignment::room;
use super::*;
use crate::BlockKey;

/// Most slots that may move when one of `members` joined, as a multiple of the mean.
const MOVES_BOUND: f64 = 1.3;

type Name = Box<dyn Fn(usize) -> String>;

/// Families of names that are met in the field, each with as many members as one likes.
fn families() -> Vec<Name> {
    let mut families: Vec<Name> = Vec::new();
    for base in ["kvcache", "infinistore-pool", "a", "cache.prod.eu-west-1"] {
        families.push(Box::new(move |n| format!("{base}-{n}")));
        families.push(Box::new(move |n| format!("{base}-{n}.{base}.default.svc.cluster.local:12345")));
        families.push(Box::new(move |n| format!("{base}{:03}:8080", n + 1)));
    }
    for subnet in 0..8 {
        families.push(Box::new(move |n| format!("10.{subnet}.0.{}:12345", n + 1)));
        families.push(Box::new(move |n| format!("192.168.{}.{}:9000", n, 10 + subnet)));
    }
    families.push(Box::new(|n| format!("127.0.0.1:{}", 12_345 + n)));
    families.push(Box::new(|n| format!("[fd00::{n:x}]:12345")));
    families.push(Box::new(|n| format!("node-{:02}-gpu-{}", n / 8, n % 8)));
    families.push(Box::new(|n| format!("tcp://rack{}/{}", n % 4, n / 4)));
    families
}

/// Names without any order: deployments whose pods are called by hashes.
fn random_names(seed: u64) -> Name {
    Box::new(move |n| {
        let hash = xxh3_64(&[seed.to_le_bytes(), (n as u64).to_le_bytes()].concat());
        format!("kv-{:x}-{}", hash >> 32, char::from(b'a' + (hash % 26) as u8))
    })
}

fn table(names: &[String]) -> SlotTable {
    SlotTable::new(names).expect("a list of members")
}

struct Step {
    members: usize,
    /// Slots that moved, as a multiple of the mean after the step.
    moves: f64,
    /// Those of them that did not move to the newcomer.
    stirred: usize,
    fullest: u32,
}

/// The steps of a ring that grows from 1 to `members`, by the names in the order of their numbers.
fn growth(name: &Name, members: usize) -> Vec<Step> {
    let mut names = vec![name(0)];
    let mut before = table(&names);
    let mut steps = Vec::new();
    for n in 1..members {
        names.push(name(n));
        let after = table(&names);
        let newcomer = after.index_of(&names[n]);
        let moved = before.moves_to(&after);
        steps.push(Step {
            members: n + 1,
            moves: moved.len() as f64 * (n + 1) as f64 / RING_SLOTS as f64,
            stirred: moved.iter().filter(|&&slot| Some(after.owner(slot)) != newcomer).count(),
            fullest: after.loads().into_iter().max().unwrap_or(0),
        });
        before = after;
    }
    steps
}

/// Every step from 1 to 64 members and 65, over 32 families of names: both bounds.
#[test]
fn a_ring_that_grows_stays_within_both_bounds() {
    let families = families();
    assert!(families.len() >= 30);
    for name in families {
        for step in growth(&name, 65) {
            assert!(step.fullest as usize <= room(step.members), "{} of {}", step.fullest, name(0));
            assert!(
                step.moves <= MOVES_BOUND,
                "{:.3} of the mean moved at {} members of {}",
                step.moves,
                step.members,
                name(0)
            );
        }
    }
}

/// Names in which no number helps. Chance puts members on one slope, and over 400 sets of such names 10 of 25,600 steps
/// went past 1.3, all beyond 48 members, the worst to 1.42 (see `figures`); the 20 sets here stay below 1.35.
#[test]
fn names_without_numbers_stay_near_the_bound() {
    let mut past = 0;
    for seed in 0..20 {
        for step in growth(&random_names(seed), 65) {
            assert!(step.fullest as usize <= room(step.members));
            assert!(step.moves <= 1.35, "{:.3} at {} members, seed {seed}", step.moves, step.members);
            assert!(step.moves <= MOVES_BOUND || step.members > 50, "{:.3} at {}", step.moves, step.members);
            past += usize::from(step.moves > MOVES_BOUND);
        }
    }
    assert!(past <= 2, "{past} of 1,280 steps moved more than 1.3 of the mean");
}

/// A member that sorts first, in the middle or last is like any other.
#[test]
fn the_place_in_the_alphabet_makes_no_difference() {
    for members in [1, 2, 3, 7, 16, 40, 64] {
        let names: Vec<String> = (0..members).map(|n| format!("m-{n:02}:12345")).collect();
        let before = table(&names);
        for newcomer in ["a:1", "m-31-b:12345", "z:65535", "~", "\u{1}"] {
            let mut more = names.clone();
            more.insert(members / 2, newcomer.to_owned());
            let after = table(&more);
            let moved = before.moves_to(&after).len();
            let mean = RING_SLOTS as f64 / (members + 1) as f64;
            assert!(moved as f64 <= MOVES_BOUND * mean, "{moved} of {mean:.0} for {newcomer:?} in {members}");
            assert_eq!(after.moves_to(&before).len(), moved, "leaving is joining backwards");
        }
    }
}

/// The function may never change: every client of a ring has to agree, whatever its version.
#[test]
fn tables_are_golden() {
    let hashes = |names: &[String]| {
        let table = table(names);
        let bytes_of = |members: usize| -> Vec<u8> {
            let holders = RingSlot::all().flat_map(|slot| table.holders(slot, members));
            holders.flat_map(|member| (member as u16).to_le_bytes()).collect()
        };
        (xxh3_64(&bytes_of(1)), xxh3_64(&bytes_of(3)))
    };
    let addresses = |count: usize| (0..count).map(|n| format!("10.0.0.{}:12345", n + 1)).collect::<Vec<_>>();
    let got = [1, 2, 16, 64, 500].map(|count| hashes(&addresses(count)));
    assert_eq!(got, GOLDEN);
    let three = table(&["a:12345", "b:12345", "c:12345"].map(str::to_owned));
    let first: Vec<&str> = RingSlot::all().take(32).map(|slot| &three.owner_name(slot)[..1]).collect();
    assert_eq!(
        (three.loads(), first.concat()),
        (vec![1364, 1371, 1361], "cacbabaccacbcbccabcbbacbabbcabaa".to_owned())
    );
}

/// XXH3-64 of the members' indices, two bytes each, of all owners and of the first three holders of each slot.
const GOLDEN: [(u64, u64); 5] = [
    (7063781198349244698, 7063781198349244698),
    (7172737418795211446, 1883465444115249842),
    (3734676992134303063, 10223308778056604810),
    (2847184401301953374, 10658993372999125875),
    (3232418268621104069, 15922312944560176807),
];

#[test]
fn a_slot_is_the_low_bits_of_a_key() {
    let mut key = BlockKey([0xff; 16]);
    assert_eq!(RingSlot::of(&key).index(), 4095);
    key.0[..2].copy_from_slice(&0x1234u16.to_le_bytes());
    assert_eq!(SlotTable::slot_of(&key), RingSlot::new(0x234).expect("in range"));
    assert_eq!(RingSlot::new(4096), None);
    assert_eq!(RingSlot::all().len(), RING_SLOTS);
}

#[test]
fn lists_that_make_no_ring_are_refused() {
    let new = |names: &[&str]| SlotTable::new(names).map(|_| ()).map_err(|error| error.to_string());
    assert_eq!(new(&[]).unwrap_err(), "the ring has no members: name at least one server");
    assert_eq!(
        new(&["a", "", "b"]).unwrap_err(),
        "member 2 of the ring has an empty name: give each server a name or an address"
    );
    assert_eq!(new(&["a", "b", "a"]).unwrap_err(), "the ring names \"a\" twice: each server is listed once");
    let many: Vec<String> = (0..4097).map(|n| n.to_string()).collect();
    assert_eq!(
        SlotTable::new(&many).unwrap_err().to_string(),
        "a ring of 4097 members is too large, at most 4096 can each hold one of its slots"
    );
    assert_eq!(table(&many[..4096]).loads(), vec![1; 4096]);
}

/// A newcomer enters the orders of replicas and moves nobody else, but where it changes an owner.
#[test]
fn replicas_move_as_little_as_owners() {
    let names: Vec<String> = (0..12).map(|n| format!("kv-{n}")).collect();
    let (before, after) = (table(&names[..11]), table(&names));
    let newcomer = "kv-11";
    for slot in RingSlot::all().filter(|&slot| before.owner_name(slot) == after.owner_name(slot)) {
        let without = |table: &SlotTable| -> Vec<String> {
            table.holders(slot, 12).map(|m| table.members()[m].clone()).filter(|n| n != newcomer).collect()
        };
        assert_eq!(without(&before), without(&after), "{slot:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_table_is_a_function_of_the_set(names in prop::collection::btree_set("[a-z0-9.:-]{1,12}", 1..40), seed in any::<u64>()) {
        let mut shuffled: Vec<String> = names.iter().cloned().collect();
        shuffled.sort_by_key(|name| xxh3_64(format!("{name}{seed}").as_bytes()));
        let table = table(&shuffled);
        prop_assert!(table.members().iter().eq(&names));
        prop_assert_eq!(&table, &SlotTable::new(&names.iter().collect::<Vec<_>>()).expect("a list"));
        prop_assert_eq!(table.loads().iter().sum::<u32>() as usize, RING_SLOTS);
        prop_assert!(table.loads().into_iter().all(|load| load as usize <= room(names.len())));
        prop_assert!(table.moves_to(&table).is_empty());
    }

    /// The greedy walk finds the stable matching: wherever a member would rather have a slot, the slot has a better owner.
    #[test]
    fn no_member_and_slot_would_rather_have_each_other(names in prop::collection::btree_set("[a-z]{1,6}", 1..80)) {
        let names: Vec<String> = names.into_iter().collect();
        let table = table(&names);
        let preferences: Vec<_> = names.iter().map(|name| preference::Preference::of(name)).collect();
        let order = |member: usize, slot: RingSlot| {
            let slot = slot.index() as u16;
            (preferences[member].rank(slot), preferences[member].tie(slot), member)
        };
        let mut worst = vec![(0, 0, 0); names.len()];
        for slot in RingSlot::all() {
            let owner = table.owner(slot);
            worst[owner] = worst[owner].max(order(owner, slot));
        }
        let loads = table.loads();
        for slot in RingSlot::all() {
            for member in 0..names.len() {
                let wanted = order(member, slot);
                let would = (loads[member] as usize) < room(names.len()) || wanted < worst[member];
                prop_assert!(!(would && wanted < order(table.owner(slot), slot)), "{} and {:?}", names[member], slot);
            }
        }
    }

    #[test]
    fn holders_are_distinct_and_begin_with_the_owner(names in prop::collection::btree_set("[a-z]{1,6}", 1..20), slot in 0u16..4096, count in 0usize..24) {
        let table = table(&names.into_iter().collect::<Vec<_>>());
        let slot = RingSlot::new(slot).expect("in range");
        let holders: Vec<usize> = table.holders(slot, count).collect();
        prop_assert_eq!(holders.len(), count.min(table.members().len()));
        prop_assert_eq!(table.holders(slot, count).len(), holders.len());
        prop_assert!(holders.first().is_none_or(|&first| first == table.owner(slot)));
        let mut distinct = holders.clone();
        distinct.sort_unstable();
        distinct.dedup();
        prop_assert_eq!(distinct.len(), holders.len());
    }

    /// Whatever the ranges say, every slot has one owner, and what nobody disputes is as it was published.
    #[test]
    fn published_ranges_are_kept_or_repaired(ranges in prop::collection::vec((0usize..4, 0u32..5000, 0u32..5000), 0..12)) {
        let names = ["a", "b", "c", "d"];
        let published: Vec<(&str, Vec<SlotRange>)> = names.iter().enumerate().map(|(index, &name)| {
            let own = ranges.iter().filter(|range| range.0 == index);
            (name, own.map(|&(_, start, end)| SlotRange { start, end }).collect())
        }).collect();
        let (table, faults) = SlotTable::from_ranges(&published).expect("four names");
        let claims = |member: usize, slot: u32| published[member].1.iter().any(|range| match range.start <= range.end {
            true => (range.start..=range.end).contains(&slot),
            false => slot >= range.start || slot <= range.end,
        });
        for slot in RingSlot::all() {
            let claimants: Vec<usize> = (0..4).filter(|&member| claims(member, slot.index() as u32)).collect();
            if let Some(&first) = claimants.first() {
                prop_assert_eq!(table.owner(slot), first);
            }
        }
        prop_assert_eq!(faults.wrapped as usize, ranges.iter().filter(|range| range.1 > range.2).count());
    }
}

/// What AIBrix publishes where one member holds both ends: that member has lost all its ranges but a wrapped one.
#[test]
fn a_wrapped_range_gets_back_what_it_lost() {
    let ours = table(&["a", "b", "c"].map(str::to_owned));
    let both_ends = ours.owner(RingSlot::new(0).expect("in range"));
    let mut published: Vec<(String, Vec<SlotRange>)> =
        ours.members().iter().map(|name| (name.clone(), Vec::new())).collect();
    for slot in RingSlot::all() {
        let index = slot.index() as u32;
        let owner = if index == 4095 { both_ends } else { ours.owner(slot) };
        published[owner].1.push(SlotRange { start: index, end: index });
    }
    let (whole, faults) = SlotTable::from_ranges(&published).expect("three names");
    assert_eq!(faults, RangeFaults::default());
    assert!(ours.moves_to(&whole).iter().all(|slot| slot.index() == 4095));

    published[both_ends].1 = vec![SlotRange { start: 4095, end: 0 }];
    let (repaired, faults) = SlotTable::from_ranges(&published).expect("three names");
    assert_eq!((repaired, faults), (whole.clone(), RangeFaults { wrapped: 1, ..RangeFaults::default() }));

    published[both_ends].1.clear();
    let (filled, faults) = SlotTable::from_ranges(&published).expect("three names");
    assert_eq!(faults.unclaimed, whole.loads()[both_ends]);
    assert!(filled.moves_to(&ours).is_empty(), "unclaimed slots go where they would be");
}

/// Prints the figures of the documentation: `cargo test --release -p kvcache-core ring::tests::figures -- --ignored
/// --nocapture`.
#[test]
#[ignore = "prints figures, takes minutes"]
fn figures() {
    let report = |label: &str, names: Vec<Name>, members: usize| {
        let all: Vec<Vec<Step>> = names.iter().map(|name| growth(name, members)).collect();
        println!("{label}: {} sets of names", names.len());
        let until = [2, 4, 8, 16, 32, 48, 65, 100, 200, 300, 400, 500];
        for (low, high) in until.iter().scan(1, |low, &high| Some((std::mem::replace(low, high), high))) {
            let steps: Vec<&Step> =
                all.iter().flatten().filter(|s| low < s.members && s.members <= high).collect();
            if steps.is_empty() {
                continue;
            }
            let mean =
                |of: fn(&Step) -> f64| steps.iter().map(|step| of(step)).sum::<f64>() / steps.len() as f64;
            println!(
                "  to {high:>3} members: moves mean {:.3} max {:.3}, past 1.3: {} of {}; stirred {:.1}; fullest {:.3}",
                mean(|step| step.moves),
                steps.iter().map(|step| step.moves).fold(0.0, f64::max),
                steps.iter().filter(|step| step.moves > MOVES_BOUND).count(),
                steps.len(),
                mean(|step| step.stirred as f64),
                steps
                    .iter()
                    .map(|s| f64::from(s.fullest) * s.members as f64 / RING_SLOTS as f64)
                    .fold(0.0, f64::max),
            );
        }
    };
    report("field names", families(), 65);
    report("random names", (0..400).map(random_names).collect(), 65);
    report("field names, large", families().into_iter().step_by(8).collect(), 500);
    for members in [3, 64, 500, 4096] {
        let names: Vec<String> = (0..members).map(|n| format!("kv-{n}")).collect();
        let start = std::time::Instant::now();
        let runs = if members > 100 { 10 } else { 1000 };
        for _ in 0..runs {
            std::hint::black_box(table(&names));
        }
        println!(
            "{members} members: {:.3} ms a table",
            start.elapsed().as_secs_f64() * 1000.0 / f64::from(runs)
        );
    }
}
