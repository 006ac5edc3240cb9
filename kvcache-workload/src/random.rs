//! Random numbers that are the same on every machine and with every release.
//!
//! SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014): a counter and
//! a mixing function. A workload is named by its seed in reports, so the numbers must never change; libraries of
//! random numbers allow themselves to change theirs from one minor release to the next.

/// SplitMix64's step: the golden ratio, an odd number of 64 bits.
pub(crate) const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// SplitMix64's mixing function: a permutation of the 64-bit numbers without visible pattern.
pub(crate) fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}
