//! Looking again and again for a moment before falling asleep.
//!
//! A server of this host answers within a few microseconds, and to fall asleep and be woken costs more than that: tens of
//! microseconds on a virtual machine. Where that does not help, because the server's threads have no processor to run on, it is
//! given up for a while, so that it costs next to nothing then.

use std::time::{Duration, Instant};

/// Longest look at a time.
const SPIN_MAX: Duration = Duration::from_micros(50);

/// So often in a row it may be in vain.
const FAILURES_MAX: u32 = 4;

/// Then so many waits are slept through.
const SKIPPED: u32 = 64;

#[derive(Debug, Default)]
pub(super) struct Spin {
    failures: u32,
    skip: u32,
}

impl Spin {
    /// Whether `found` becomes true within a moment. Other threads that want the processor get it meanwhile.
    pub(super) fn until(&mut self, mut found: impl FnMut() -> bool) -> bool {
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        let start = Instant::now();
        while !found() {
            if start.elapsed() >= SPIN_MAX {
                self.failures += 1;
                if self.failures == FAILURES_MAX {
                    *self = Self { failures: FAILURES_MAX - 1, skip: SKIPPED };
                }
                return false;
            }
            std::thread::yield_now();
        }
        self.failures = 0;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_given_up_for_a_while_where_it_does_not_help() {
        let mut spin = Spin::default();
        let mut looks = 0;
        let mut look = |spin: &mut Spin, found| {
            let before = looks;
            let is_found = spin.until(|| {
                looks += 1;
                found
            });
            assert_eq!(is_found, found && looks > before);
            looks > before
        };
        for _ in 0..FAILURES_MAX {
            assert!(look(&mut spin, false));
        }
        assert!((0..SKIPPED).all(|_| !look(&mut spin, true)));
        // One more failure is enough then, and one success starts anew.
        assert!(look(&mut spin, false));
        assert!((0..SKIPPED).all(|_| !look(&mut spin, true)));
        assert!(look(&mut spin, true) && look(&mut spin, false) && look(&mut spin, true));
    }
}
