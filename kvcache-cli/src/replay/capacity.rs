//! Capacities as they are written on the command line.

use std::num::NonZeroU32;
use std::str::FromStr;

/// Blocks, or a share of the distinct blocks of a trace.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Capacity {
    Blocks(NonZeroU32),
    /// Above 0, at most 1.
    Share(f64),
}

impl Capacity {
    /// In blocks, where that does not depend on the trace.
    pub(super) fn in_blocks(self) -> Option<NonZeroU32> {
        match self {
            Self::Blocks(blocks) => Some(blocks),
            Self::Share(_) => None,
        }
    }

    /// In blocks, for a trace with so many distinct ones; at least one.
    pub(super) fn of(self, distinct_blocks: u64) -> NonZeroU32 {
        match self {
            Self::Blocks(blocks) => blocks,
            // At most 2^32 - 1: a trace has no more distinct blocks.
            Self::Share(share) => {
                NonZeroU32::new((share * distinct_blocks as f64) as u32).unwrap_or(NonZeroU32::MIN)
            }
        }
    }
}

impl FromStr for Capacity {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(percent) = text.strip_suffix('%') {
            let percent = percent.parse().ok().filter(|percent| *percent > 0.0 && *percent <= 100.0);
            return percent
                .map(|percent: f64| Self::Share(percent / 100.0))
                .ok_or_else(|| "a share must be above 0% and at most 100%, as 2.5%".to_owned());
        }
        text.parse()
            .map(Self::Blocks)
            .map_err(|_| format!("must be blocks from 1 to {}, or a share such as 2%", u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_and_shares_are_told_apart() {
        assert_eq!("12".parse(), Ok(Capacity::Blocks(NonZeroU32::new(12).expect("above 0"))));
        let share: Capacity = "0.5%".parse().expect("a share");
        assert_eq!((share.of(182_790).get(), share.of(3).get()), (913, 1));
        assert_eq!("100%".parse::<Capacity>().expect("all").of(u64::from(u32::MAX)), NonZeroU32::MAX);
        for bad in ["", "0", "-1", "1.5", "4294967296", "0%", "-1%", "100.1%", "NaN%", "%", "1 %x"] {
            assert!(bad.parse::<Capacity>().is_err(), "{bad}");
        }
    }
}
