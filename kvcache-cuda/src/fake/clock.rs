//! Vector clocks: what is known to be before what.
//!
//! Component 0 counts the host's accesses, component `1 + i` the operations of stream `i`. A clock that belongs to an
//! operation holds, for each component, how many of its first operations are before it (Fidge, Mattern, 1988).

/// The host's component.
pub(super) const HOST: usize = 0;

/// The component of a stream.
pub(super) fn of_stream(index: usize) -> usize {
    index + 1
}

/// How much of each component is before something. Components that are missing are zero.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Clock(Vec<u64>);

impl Clock {
    pub(super) fn at(&self, component: usize) -> u64 {
        self.0.get(component).copied().unwrap_or(0)
    }

    pub(super) fn set(&mut self, component: usize, count: u64) {
        if self.0.len() <= component {
            self.0.resize(component + 1, 0);
        }
        self.0[component] = count;
    }

    /// After this, what was before either is before this.
    pub(super) fn join(&mut self, other: &Self) {
        for (component, count) in other.0.iter().enumerate() {
            if self.at(component) < *count {
                self.set(component, *count);
            }
        }
    }
}
