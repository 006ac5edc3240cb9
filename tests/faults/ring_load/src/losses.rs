//! A client that reads through, as an engine does: it gets values in turn, and puts what is missing. What had been stored and
//! is missing is a loss, which only a change of the ring or of its servers explains.

use std::collections::{BTreeMap, VecDeque};

use kvcache_core::remote::{RemoteOp, RemoteOutcome};
use kvcache_core::ring::RingSlot;
use serde_json::{Value, json};

use crate::values::Values;

/// What is known of each value.
#[derive(Debug)]
pub(crate) struct Losses {
    slots: Vec<usize>,
    seen: Vec<Seen>,
    /// Numbers that nothing is in flight for, in the order of their turns.
    turns: VecDeque<u64>,
    /// Missing ones, which come first.
    wanted: VecDeque<u64>,
}

#[derive(Clone, Copy, Default, Debug)]
struct Seen {
    is_stored: bool,
    lost: u64,
    failed: u64,
}

impl Losses {
    pub(crate) fn new(values: Values) -> Self {
        Self {
            slots: (0..values.count).map(|number| RingSlot::of(&values.block(number)).index()).collect(),
            seen: (0..values.count).map(|_| Seen::default()).collect(),
            turns: (0..values.count).collect(),
            wanted: VecDeque::new(),
        }
    }

    /// What to do next. There must be more values than transfers in flight.
    pub(crate) fn next(&mut self) -> (u64, RemoteOp) {
        match self.wanted.pop_front() {
            Some(number) => (number, RemoteOp::Put),
            None => (self.turns.pop_front().expect("more values than transfers"), RemoteOp::Get),
        }
    }

    /// Takes in how it ended.
    pub(crate) fn end(&mut self, number: u64, op: RemoteOp, outcome: RemoteOutcome) {
        let seen = &mut self.seen[number as usize];
        match (op, outcome) {
            (RemoteOp::Get, RemoteOutcome::Missing) => {
                seen.lost += u64::from(std::mem::take(&mut seen.is_stored));
                return self.wanted.push_back(number);
            }
            // A put of which nothing was heard may have been done: whoever gets the value knows.
            (_, RemoteOutcome::Done) => seen.is_stored = true,
            // Nothing is known of a value that nobody answered for, and its turn comes again.
            (_, RemoteOutcome::Failed(_)) => seen.failed += 1,
            _ => {}
        }
        self.turns.push_back(number);
    }

    /// How many values are stored, as far as is known, and for each slot that lost values or was not answered for: how many
    /// values are in it, how often one of them was lost, and how often a transfer failed.
    pub(crate) fn report(&self) -> Value {
        let mut slots: BTreeMap<usize, (u64, u64, u64)> = BTreeMap::new();
        for (slot, seen) in self.slots.iter().zip(&self.seen) {
            let (values, lost, failed) = slots.entry(*slot).or_default();
            (*values, *lost, *failed) = (*values + 1, *lost + seen.lost, *failed + seen.failed);
        }
        slots.retain(|_, (_, lost, failed)| *lost + *failed > 0);
        let slots = slots
            .iter()
            .map(|(slot, (values, lost, failed))| json!({"slot": slot, "values": values, "lost": lost, "failed": failed}));
        json!({
            "stored": self.seen.iter().filter(|seen| seen.is_stored).count(),
            "lost": self.seen.iter().map(|seen| seen.lost).sum::<u64>(),
            "slots": slots.collect::<Vec<_>>(),
        })
    }
}

#[cfg(test)]
mod tests {
    use kvcache_core::remote::RemoteFailure;

    use super::*;

    #[test]
    fn only_what_was_stored_is_lost() {
        let values = Values { count: 2, lengths: vec![100], seed: 1 };
        let mut losses = Losses::new(values.clone());
        assert_eq!(losses.next(), (0, RemoteOp::Get));
        losses.end(0, RemoteOp::Get, RemoteOutcome::Missing);
        assert_eq!(losses.next(), (0, RemoteOp::Put));
        losses.end(0, RemoteOp::Put, RemoteOutcome::Failed(RemoteFailure::TimedOut));
        assert_eq!((losses.next(), losses.next()), ((1, RemoteOp::Get), (0, RemoteOp::Get)));
        losses.end(0, RemoteOp::Get, RemoteOutcome::Missing);
        assert_eq!(losses.report()["lost"], 0, "it was never there");
        assert_eq!(losses.next(), (0, RemoteOp::Put));
        losses.end(0, RemoteOp::Put, RemoteOutcome::Done);
        assert_eq!((losses.report()["stored"].clone(), losses.next()), (json!(1), (0, RemoteOp::Get)));
        losses.end(0, RemoteOp::Get, RemoteOutcome::Missing);
        let slot = RingSlot::of(&values.block(0)).index();
        let expected =
            json!({"stored": 0, "lost": 1, "slots": [{"slot": slot, "values": 1, "lost": 1, "failed": 1}]});
        assert_eq!(losses.report(), expected);
        losses.end(1, RemoteOp::Get, RemoteOutcome::Done);
        assert_eq!(losses.report()["stored"], 1, "somebody has put it");
    }
}
