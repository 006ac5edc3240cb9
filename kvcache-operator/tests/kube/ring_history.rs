//! The rings that were published one after the other, and what of a client's losses they explain.

use std::collections::BTreeMap;

use kvcache_core::ring::{RING_SLOTS, RingDocument, RingSlot, SlotTable};
use serde_json::Value;

/// Rings of one cache, in their order.
#[derive(Clone, Default, Debug)]
pub(crate) struct RingHistory {
    rings: Vec<RingDocument>,
}

/// What became of a slot between two rings.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Changes {
    /// It went to another member.
    pub(crate) moves: u64,
    /// Its member went to another address: another pod, without the blocks of the one before.
    pub(crate) restarts: u64,
}

/// The owner of each slot, and its address.
type Owners<'a> = Vec<Option<(&'a str, String)>>;

impl RingHistory {
    /// Adds a ring, which must count for more than the last one and be what the members' names make it.
    pub(crate) fn add(&mut self, ring: RingDocument) {
        if let Some(last) = self.rings.last() {
            // What its publisher remembers in it is no change of the ring.
            if (last.version, &last.nodes) == (ring.version, &ring.nodes) {
                return;
            }
            assert!(ring.version > last.version, "{:?} after {:?}", ring.version, last.version);
        }
        let owners = owners(&ring);
        if !ring.nodes.is_empty() {
            let names: Vec<&String> = ring.nodes.iter().map(|node| &node.name).collect();
            let table = SlotTable::new(&names).expect("a ring");
            for slot in RingSlot::all() {
                let owner = owners[slot.index()].as_ref().map(|(name, _)| *name);
                assert_eq!(owner, Some(table.owner_name(slot)), "of slot {}", slot.index());
            }
        }
        drop(owners);
        self.rings.push(ring);
    }

    pub(crate) fn len(&self) -> usize {
        self.rings.len()
    }

    /// What became of each slot since the ring of this index.
    pub(crate) fn changes_since(&self, index: usize) -> Vec<Changes> {
        let mut changes = vec![Changes::default(); RING_SLOTS];
        for pair in self.rings[index..].windows(2) {
            for (slot, (before, after)) in owners(&pair[0]).iter().zip(owners(&pair[1])).enumerate() {
                match (before, after) {
                    (Some((before, from)), Some((after, to))) if *before == after => {
                        changes[slot].restarts += u64::from(*from != to);
                    }
                    (None, None) => {}
                    _ => changes[slot].moves += 1,
                }
            }
        }
        changes
    }

    /// The names of the members of each ring since that of this index.
    pub(crate) fn members_since(&self, index: usize) -> Vec<Vec<String>> {
        let names = |ring: &RingDocument| ring.nodes.iter().map(|node| node.name.clone()).collect();
        self.rings[index..].iter().map(names).collect()
    }

    /// Slots that are not with their first owner again since the ring of this index.
    pub(crate) fn displaced_since(&self, index: usize) -> usize {
        let (first, last) = (owners(&self.rings[index]), owners(self.rings.last().expect("a ring")));
        let name = |owner: &Option<(&str, String)>| owner.as_ref().map(|(name, _)| (*name).to_owned());
        first.iter().zip(&last).filter(|(first, last)| name(first) != name(last)).count()
    }
}

fn owners(ring: &RingDocument) -> Owners<'_> {
    let mut owners = vec![None; RING_SLOTS];
    for node in &ring.nodes {
        for range in node.slots.iter().flatten() {
            for slot in range.start..=range.end {
                let before = owners[slot as usize].replace((node.name.as_str(), node.address.to_string()));
                assert_eq!(before, None, "slot {slot} is given twice");
            }
        }
    }
    owners
}

/// What a client that reads through has lost, slot by slot, is no more than the changes explain; nor did it wait in vain for
/// an answer in a slot without any. Returns how many values were lost, and how many could have been.
pub(crate) fn explained(report: &Value, changes: &[Changes]) -> (u64, u64) {
    let number = |slot: &Value, field: &str| slot[field].as_u64().expect("a count");
    let (mut lost, mut explained) = (0, 0);
    let mut unexplained = BTreeMap::new();
    for slot in report["losses"]["slots"].as_array().expect("a client that reads through") {
        let index = number(slot, "slot");
        let Changes { moves, restarts } = changes[index as usize];
        lost += number(slot, "lost");
        explained += number(slot, "values") * (moves + restarts);
        let has_failed = number(slot, "failed") > 0 && moves + restarts == 0;
        if number(slot, "lost") > number(slot, "values") * (moves + restarts) || has_failed {
            unexplained.insert(index, (slot.clone(), changes[index as usize]));
        }
    }
    assert!(unexplained.is_empty(), "{} slots lost more than moved: {unexplained:?}", unexplained.len());
    (lost, explained)
}

#[cfg(test)]
mod tests {
    use kvcache_core::ring::ServerAddress;
    use serde_json::json;

    use super::*;

    fn ring(version: u64, members: &[(&str, &str)]) -> RingDocument {
        let servers = members
            .iter()
            .map(|(name, host)| ((*name).to_owned(), ServerAddress::new(host, 1).expect("an address")));
        RingDocument::of(&servers.collect(), version, BTreeMap::new()).expect("a ring")
    }

    #[test]
    fn a_slot_that_moves_and_comes_back_has_moved_twice() {
        let mut history = RingHistory::default();
        let (a, b) = (("a", "10.0.0.1"), ("b", "10.0.0.2"));
        for (version, members) in
            [(1, vec![a, b]), (2, vec![a]), (3, vec![a, b]), (4, vec![("a", "10.0.0.9"), b])]
        {
            history.add(ring(version, &members));
        }
        assert_eq!((history.len(), history.displaced_since(0)), (4, 0));
        assert!(history.displaced_since(1) > 0);
        let changes = history.changes_since(0);
        let of_b = changes.iter().filter(|slot| **slot == Changes { moves: 2, restarts: 0 }).count();
        let of_a = changes.iter().filter(|slot| **slot == Changes { moves: 0, restarts: 1 }).count();
        assert!(of_a > 1500 && of_b > 1500 && of_a + of_b == RING_SLOTS, "{of_a} {of_b}");
        let slot = changes.iter().position(|slot| slot.moves == 2).expect("one of b's");
        let report = |lost: u64| json!({"losses": {"slots": [{"slot": slot, "values": 3, "lost": lost, "failed": 1}]}});
        assert_eq!(explained(&report(6), &changes), (6, 6));
        assert!(std::panic::catch_unwind(|| explained(&report(7), &changes)).is_err());
        let still = vec![Changes::default(); RING_SLOTS];
        assert!(
            std::panic::catch_unwind(|| explained(&report(0), &still)).is_err(),
            "it failed without a reason"
        );
    }

    #[test]
    #[should_panic(expected = "Some(1) after Some(2)")]
    fn a_version_that_goes_back_is_seen() {
        let mut history = RingHistory::default();
        history.add(ring(2, &[("a", "10.0.0.1")]));
        history.add(ring(1, &[("a", "10.0.0.2")]));
    }
}
