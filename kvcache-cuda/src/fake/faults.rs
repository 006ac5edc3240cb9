//! Calls that fail on purpose.

use super::random::Random;
use super::status::{Call, Status};

/// Which calls fail, counted from the moment at which the fault was injected.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum When {
    /// One call: the one after as many others.
    Nth(u64),
    /// That one and all later ones.
    From(u64),
    /// Each with this probability.
    Chance(f64),
    /// Those with which the bytes asked for by successful calls would exceed this: a limit on pinned memory.
    AfterBytes(u64),
}

struct Fault {
    call: Call,
    when: When,
    status: Status,
    calls: u64,
    bytes: u64,
}

/// What was injected, with a generator of its own: faults do not change the order of other work.
pub(super) struct Faults {
    faults: Vec<Fault>,
    random: Random,
}

impl Faults {
    pub(super) fn new(seed: u64) -> Self {
        Self { faults: Vec::new(), random: Random::new(seed ^ 0xfa17) }
    }

    pub(super) fn inject(&mut self, call: Call, when: When, status: Status) {
        self.faults.push(Fault { call, when, status, calls: 0, bytes: 0 });
    }

    pub(super) fn clear(&mut self) {
        self.faults.clear();
    }

    /// How this call fails, if it does. Every matching fault counts it.
    pub(super) fn hit(&mut self, call: Call, bytes: usize) -> Option<Status> {
        let mut hit = None;
        for fault in self.faults.iter_mut().filter(|fault| fault.call == call) {
            let fails = match fault.when {
                When::Nth(n) => fault.calls == n,
                When::From(n) => fault.calls >= n,
                When::Chance(probability) => self.random.fraction() < probability,
                When::AfterBytes(limit) => fault.bytes.saturating_add(bytes as u64) > limit,
            };
            fault.calls += 1;
            if fails {
                hit = hit.or(Some(fault.status));
            } else {
                fault.bytes = fault.bytes.saturating_add(bytes as u64);
            }
        }
        hit
    }
}
