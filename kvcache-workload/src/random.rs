//! Random numbers that are the same on every machine and with every release.
//!
//! SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014): a counter and
//! a mixing function. A workload is named by its seed in reports, so the numbers must never change; libraries of
//! random numbers allow themselves to change theirs from one minor release to the next.

use xxhash_rust::xxh3::xxh3_64;

/// SplitMix64's step: the golden ratio, an odd number of 64 bits.
pub(crate) const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// SplitMix64's mixing function: a permutation of the 64-bit numbers without visible pattern.
pub(crate) fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// A sequence of random numbers.
#[derive(Clone, Debug)]
pub(crate) struct Random {
    state: u64,
}

impl Random {
    /// The sequence of a seed for one purpose. Other purposes have independent sequences, so that a number more for one
    /// of them leaves the others as they were.
    pub(crate) fn new(seed: u64, purpose: &str) -> Self {
        Self { state: mix(seed ^ xxh3_64(purpose.as_bytes())) }
    }

    /// The same for number `index` of many.
    pub(crate) fn nth(seed: u64, purpose: &str, index: u64) -> Self {
        let mut random = Self::new(seed, purpose);
        random.state = mix(random.state ^ mix(index.wrapping_add(STEP)));
        random
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(STEP);
        mix(self.state)
    }

    /// Below `count`, which is not 0.
    pub(crate) fn below(&mut self, count: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(count)) >> 64) as u64
    }

    /// In [0, 1): 53 bits, as many as a float of 64 bits has.
    pub(crate) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// In (0, 1], for logarithms.
    pub(crate) fn positive_unit(&mut self) -> f64 {
        1.0 - self.unit()
    }

    /// With mean 0 and standard deviation 1: Box and Muller's transform ("A Note on the Generation of Random Normal
    /// Deviates", 1958), of whose two values one is used.
    pub(crate) fn normal(&mut self) -> f64 {
        let radius = (-2.0 * libm::log(self.positive_unit())).sqrt();
        radius * libm::cos(std::f64::consts::TAU * self.unit())
    }

    /// With mean 1: the gaps of a Poisson process.
    pub(crate) fn exponential(&mut self) -> f64 {
        -libm::log(self.positive_unit())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SplitMix64 with seed 0 in every implementation.
    #[test]
    fn the_sequence_is_splitmix64() {
        let mut random = Random { state: 0 };
        assert_eq!([random.next(), random.next()], [0xe220_a839_7b1d_cdaf, 0x6e78_9e6a_a1b9_65f4]);
    }

    /// A workload is named by its seed: these numbers must never change.
    #[test]
    fn the_numbers_of_a_seed_stay() {
        let mut random = Random::nth(7, "golden", 3);
        assert_eq!(random.next(), 0x9287_258f_d9a0_dc14);
        assert_eq!(random.below(1000), 920);
        assert_eq!(random.unit().to_bits(), 0x3fe7_4eb7_8b6a_c355);
        assert_eq!(random.normal().to_bits(), 0x3fab_89c6_db06_9234);
        assert_eq!(random.exponential().to_bits(), 0x3ffc_a7e8_8eb8_a20b);
    }

    #[test]
    fn purposes_and_numbers_are_independent() {
        let firsts = [
            Random::new(1, "a").next(),
            Random::new(2, "a").next(),
            Random::new(1, "b").next(),
            Random::nth(1, "a", 0).next(),
            Random::nth(1, "a", 1).next(),
        ];
        for (index, first) in firsts.iter().enumerate() {
            assert!(!firsts[..index].contains(first));
        }
    }
}
