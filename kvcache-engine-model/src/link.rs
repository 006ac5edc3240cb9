//! A link that moves one thing after the other.

use crate::time::{from_us, whole_ns};

/// First come, first served.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Link {
    ns_per_byte: f64,
    busy_until_ns: u64,
}

impl Link {
    pub(crate) fn new(gb_per_s: f64) -> Self {
        Self { ns_per_byte: ns_per_byte(gb_per_s), busy_until_ns: 0 }
    }

    /// Moves `bytes`, with `fixed_us` before them, from `now_ns` on at the earliest; when they are there.
    pub(crate) fn transfer(&mut self, now_ns: u64, bytes: u64, fixed_us: f64) -> u64 {
        let takes_ns = whole_ns(from_us(fixed_us) + self.ns_per_byte * bytes as f64);
        self.busy_until_ns = self.busy_until_ns.max(now_ns).saturating_add(takes_ns);
        self.busy_until_ns
    }

    /// When `bytes` would be there, without moving them.
    pub(crate) fn would_end(&self, now_ns: u64, bytes: u64, fixed_us: f64) -> u64 {
        self.clone().transfer(now_ns, bytes, fixed_us)
    }
}

/// A bandwidth as a time: 1 GB/s is 1 ns a byte.
pub(crate) fn ns_per_byte(gb_per_s: f64) -> f64 {
    1.0 / gb_per_s
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_later_waits() {
        let mut link = Link::new(2.0);
        assert_eq!(link.transfer(100, 1000, 1.0), 100 + 1000 + 500);
        assert_eq!(link.would_end(200, 1000, 0.0), 1600 + 500);
        assert_eq!(link.transfer(200, 1000, 0.0), 1600 + 500);
        assert_eq!(link.transfer(9000, 0, 0.0), 9000);
    }
}
