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

    /// The first conflict with another, if nothing orders the two.
    fn race(&self, other: &Self) -> Option<(Range<usize>, &'static str)> {
        let conflict = |ours: &Ranges, our_clock: &Clock, theirs: &Ranges, their_clock: &Clock| {
            let both = ours.overlap(theirs)?;
            (!other.is_before(our_clock) && !self.is_before(their_clock)).then_some(both)
        };
        let (ours, theirs) = (&self.touched, &other.touched);
        let named = |words| move |both| (both, words);
        conflict(&ours.writes, &self.write_clock, &theirs.writes, &other.write_clock)
            .map(named("both write"))
            .or_else(|| {
                conflict(&ours.writes, &self.write_clock, &theirs.reads, &other.read_clock)
                    .map(named("the first writes"))
            })
            .or_else(|| {
                conflict(&ours.reads, &self.read_clock, &theirs.writes, &other.write_clock)
                    .map(named("the second writes"))
            })
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
    /// Compares an access with all that are remembered, and remembers it. O(remembered × ranges).
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
