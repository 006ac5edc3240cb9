//! Accesses to the same bytes, one of them writing, that nothing orders.
//!
//! Whether a run shows a race depends on luck; whether the program has one does not. So each access carries a vector clock of
//! what is ordered before it, and two that overlap are compared by their clocks, in whichever order they ran.

use std::ops::Range;
use std::sync::Arc;

use super::clock::Clock;
use super::memory::hex;
use super::operation::Touched;
use super::ranges::Ranges;

/// Accesses of one operation, or of the host.
pub(super) struct Access {
    /// Whose: a component of clocks, and its place there.
    pub(super) component: usize,
    pub(super) position: u64,
    pub(super) touched: Touched,
    pub(super) read_clock: Arc<Clock>,
    pub(super) write_clock: Arc<Clock>,
    pub(super) label: Arc<str>,
}

impl Access {
    fn is_before(&self, clock: &Clock) -> bool {
        clock.at(self.component) >= self.position
    }

    /// Drops what a later access stands for as well; whether that is all.
    ///
    /// Whatever begins from now on is not before `later`, and is after `later` only if it is after this. So if it races with
    /// this for bytes of both, it races with `later`.
    fn is_covered_by(&mut self, later: &Self) -> bool {
        let Touched { reads, writes } = &mut self.touched;
        let (is_before_reads, is_before_writes) = (
            later.read_clock.at(self.component) >= self.position,
            later.write_clock.at(self.component) >= self.position,
        );
        if is_before_writes {
            *writes = writes.without(&later.touched.writes);
            *reads = reads.without(&later.touched.writes);
        }
        if is_before_reads {
            *reads = reads.without(&later.touched.reads);
        }
        reads.is_empty() && writes.is_empty()
    }

    /// The first conflict with one that began earlier and nothing orders before this.
    fn race(&self, earlier: &Self) -> Option<(Range<usize>, &'static str)> {
        let conflict = |clock: &Clock, ours: &Ranges, theirs: &Ranges| {
            if earlier.is_before(clock) { None } else { ours.overlap(theirs) }
        };
        let (ours, theirs) = (&self.touched, &earlier.touched);
        let both_write =
            || conflict(&self.write_clock, &ours.writes, &theirs.writes).map(|at| (at, "both write"));
        let we_write =
            || conflict(&self.write_clock, &ours.writes, &theirs.reads).map(|at| (at, "the first writes"));
        let they_wrote =
            || conflict(&self.read_clock, &ours.reads, &theirs.writes).map(|at| (at, "the second writes"));
        both_write().or_else(we_write).or_else(they_wrote)
    }
}

/// Accesses that something to come may still race with.
#[derive(Default)]
pub(super) struct Races {
    accesses: Vec<Remembered>,
}

struct Remembered {
    access: Access,
    /// Operations that had been submitted when the host learned that this access has ended. Later ones are after it.
    known_after: Option<u64>,
}

impl Races {
    /// Compares an access that begins with all that are remembered, and remembers it. O(remembered × ranges).
    pub(super) fn add(&mut self, access: Access, violations: &mut Vec<String>) {
        for Remembered { access: other, .. } in &self.accesses {
            if let Some((both, how)) = access.race(other) {
                violations.push(format!(
                    "race: {} and {}, ordered by nothing, touch {}: {how}",
                    access.label,
                    other.label,
                    hex(&both)
                ));
            }
        }
        self.accesses.retain_mut(|Remembered { access: other, .. }| !other.is_covered_by(&access));
        self.accesses.push(Remembered { access, known_after: None });
    }

    /// Forgets what is before the host and therefore before all that it will submit, once all that it had submitted before
    /// it knew has begun and was compared. `submitted` counts operations, `oldest` is the first that has not begun.
    pub(super) fn forget(&mut self, host: &Clock, submitted: u64, oldest: u64) {
        self.accesses.retain_mut(|Remembered { access, known_after }| {
            if known_after.is_none() && access.is_before(host) {
                *known_after = Some(submitted);
            }
            known_after.is_none_or(|submitted| oldest < submitted)
        });
    }

    pub(super) fn len(&self) -> usize {
        self.accesses.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::{Driver, Priority};
    use crate::fake::FakeDevice;

    const ROUNDS: usize = 2000;
    const BYTES: usize = 64;

    fn block(at: usize) -> Range<usize> {
        at..at + BYTES
    }

    fn remembered(device: &FakeDevice) -> usize {
        device.shared.state.lock().races.len()
    }

    /// An engine that computes on and on, and nobody asks how far it is.
    #[test]
    fn what_later_work_covers_is_forgotten() {
        let device = FakeDevice::new(1);
        let engine = device.engine_stream();
        let cache = device.allocate_device(4 * BYTES).unwrap() as usize;
        for round in 0..ROUNDS {
            let page = cache + round % 4 * BYTES;
            device.engine_work(engine, vec![block(cache)], vec![block(page)], || ());
            device.engine_work(
                engine,
                (0..4).map(|page| block(cache + page * BYTES)).collect(),
                vec![],
                || (),
            );
            device.advance(4);
        }
        // Weights are read and never written.
        for _ in 0..ROUNDS {
            device.engine_work(engine, vec![block(cache)], vec![], || ());
            device.advance(2);
        }
        device.run_all();
        assert!(remembered(&device) <= 8, "{}", remembered(&device));
        assert_eq!(device.violations(), [""; 0]);
    }

    /// Loads to ever new memory, whose ends the host sees.
    #[test]
    fn what_the_host_knows_to_have_ended_is_forgotten() {
        let device = FakeDevice::new(1);
        let stream = device.create_stream(Priority::Low).unwrap();
        let event = device.create_event().unwrap();
        let cache = device.allocate_device(ROUNDS * BYTES).unwrap() as usize;
        for round in 0..ROUNDS {
            let page = cache + round * BYTES;
            device.engine_work(stream, vec![], vec![block(page)], || ());
            device.record_event(event, stream).unwrap();
            if round % 10 == 0 {
                while !device.query_event(event).unwrap() {}
                assert!(remembered(&device) <= 1, "{}", remembered(&device));
            }
        }
        assert_eq!(device.violations(), [""; 0]);
    }
}
