//! What is said about a ring, as JSON and as text.

use std::fmt::Write;

use kvcache_core::BlockKey;
use kvcache_core::ring::{RING_SLOTS, RangeFaults, RingSlot, SlotTable};
use serde::Serialize;

use super::runs_of;

#[derive(Debug, Serialize)]
pub(super) struct Report {
    slot_count: usize,
    ring: Ring,
    /// What was wrong with published ranges; only where they were used.
    #[serde(skip_serializing_if = "Option::is_none")]
    range_faults: Option<Faults>,
    #[serde(skip_serializing_if = "Option::is_none")]
    change: Option<Change>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    keys: Vec<Key>,
}

#[derive(Debug, Serialize)]
struct Ring {
    members: Vec<Member>,
    mean_slots: f64,
    /// Slots of the fullest member, as a multiple of the mean.
    balance: f64,
}

#[derive(Debug, Serialize)]
struct Member {
    name: String,
    slots: u32,
    /// First and last slot of every run.
    #[serde(skip_serializing_if = "Option::is_none")]
    runs: Option<Vec<[usize; 2]>>,
}

#[derive(Debug, Serialize)]
struct Faults {
    wrapped: u32,
    claimed_twice: u32,
    unclaimed: u32,
    out_of_bounds: u32,
}

#[derive(Debug, Serialize)]
struct Change {
    joined: Vec<String>,
    left: Vec<String>,
    ring: Ring,
    moved_slots: usize,
    /// Of all slots.
    moved_share: f64,
    /// The fewest slots that any placement moves in this change.
    least_slots: f64,
    /// Moved slots as a multiple of the fewest.
    ratio: f64,
}

#[derive(Debug, Serialize)]
struct Key {
    key: String,
    slot: usize,
    holders: Vec<String>,
}

impl Report {
    pub(super) fn new(
        before: &SlotTable,
        after: Option<&SlotTable>,
        faults: Option<RangeFaults>,
        keys: &[BlockKey],
        holders: usize,
        with_slots: bool,
    ) -> Self {
        let now = after.unwrap_or(before);
        let held_by = |key: &BlockKey| {
            let slot = RingSlot::of(key);
            let holders = now.holders(slot, holders).map(|index| now.members()[index].clone()).collect();
            Key { key: format!("{key:?}"), slot: slot.index(), holders }
        };
        Self {
            slot_count: RING_SLOTS,
            ring: Ring::new(before, with_slots && after.is_none()),
            range_faults: faults.map(|faults| Faults {
                wrapped: faults.wrapped,
                claimed_twice: faults.claimed_twice,
                unclaimed: faults.unclaimed,
                out_of_bounds: faults.out_of_bounds,
            }),
            change: after.map(|after| Change::new(before, after, with_slots)),
            keys: keys.iter().map(held_by).collect(),
        }
    }

    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        self.ring.write(&mut text, None);
        if let Some(faults) = &self.range_faults {
            // Writing to a string cannot fail, here and below.
            let _ = writeln!(
                text,
                "published ranges: {} wrapped, {} slots claimed twice, {} slots unclaimed, {} out of bounds",
                faults.wrapped, faults.claimed_twice, faults.unclaimed, faults.out_of_bounds
            );
        }
        if let Some(change) = &self.change {
            let list =
                |names: &[String]| if names.is_empty() { "nobody".to_owned() } else { names.join(", ") };
            let _ = writeln!(
                text,
                "\nafter the change: {} joined, {} left",
                list(&change.joined),
                list(&change.left)
            );
            change.ring.write(&mut text, Some(&self.ring));
            let _ = writeln!(
                text,
                "{} of {} slots move ({:.1} %), {:.3} times the {:.0} that have to",
                change.moved_slots,
                self.slot_count,
                100.0 * change.moved_share,
                change.ratio,
                change.least_slots,
            );
        }
        for key in &self.keys {
            let _ = writeln!(
                text,
                "\nkey {}: slot {}, held by {}",
                key.key,
                key.slot,
                key.holders.join(", then ")
            );
        }
        text
    }
}

impl Ring {
    fn new(table: &SlotTable, with_slots: bool) -> Self {
        let mut runs = if with_slots { runs_of(table) } else { Vec::new() }.into_iter();
        let loads = table.loads();
        let mean_slots = RING_SLOTS as f64 / loads.len() as f64;
        let fullest = loads.iter().copied().max().unwrap_or(0);
        let members = table.members().iter().zip(&loads);
        let members = members.map(|(name, &slots)| Member { name: name.clone(), slots, runs: runs.next() });
        Self { members: members.collect(), mean_slots, balance: f64::from(fullest) / mean_slots }
    }

    /// Appends a table, with what each member had before where there is a `before`.
    fn write(&self, text: &mut String, before: Option<&Self>) {
        let width = self.members.iter().map(|member| member.name.chars().count()).max().unwrap_or(0).max(6);
        let _ = write!(text, "{:<width$}  {:>6}  {:>8}", "member", "slots", "of mean");
        text.push_str(if before.is_some() { "  before\n" } else { "\n" });
        for member in &self.members {
            let of_mean = f64::from(member.slots) / self.mean_slots;
            let _ = write!(text, "{:<width$}  {:>6}  {of_mean:>8.3}", member.name, member.slots);
            if let Some(before) = before {
                let old = before.members.iter().find(|old| old.name == member.name);
                let _ = write!(text, "  {:>6}", old.map_or("-".to_owned(), |old| old.slots.to_string()));
            }
            text.push('\n');
        }
        let _ = writeln!(
            text,
            "{} members, {:.1} slots on average, the fullest has {:.3} times that",
            self.members.len(),
            self.mean_slots,
            self.balance,
        );
        for member in &self.members {
            if let Some(runs) = &member.runs {
                let run = |[start, end]: &[usize; 2]| match start == end {
                    true => start.to_string(),
                    false => format!("{start}-{end}"),
                };
                let _ = writeln!(
                    text,
                    "\n{}: {}",
                    member.name,
                    runs.iter().map(run).collect::<Vec<_>>().join(" ")
                );
            }
        }
    }
}

impl Change {
    fn new(before: &SlotTable, after: &SlotTable, with_slots: bool) -> Self {
        let missing = |from: &SlotTable, to: &SlotTable| -> Vec<String> {
            from.members().iter().filter(|name| to.index_of(name).is_none()).cloned().collect()
        };
        let (joined, left) = (missing(after, before), missing(before, after));
        let loads = before.loads();
        let freed: u32 = left.iter().filter_map(|name| before.index_of(name)).map(|index| loads[index]).sum();
        let ring = Ring::new(after, with_slots);
        // What leaves with its holder has to move, and newcomers have to get their share: the same slots may do both.
        let least_slots = f64::from(freed).max(joined.len() as f64 * ring.mean_slots);
        let moved_slots = before.moves_to(after).len();
        let ratio = if moved_slots == 0 { 1.0 } else { moved_slots as f64 / least_slots };
        let moved_share = moved_slots as f64 / RING_SLOTS as f64;
        Self { joined, left, ring, moved_slots, moved_share, least_slots, ratio }
    }
}
