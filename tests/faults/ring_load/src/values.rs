//! What is stored: bytes that follow from their number alone, so that every reader knows what is right.

use kvcache_core::BlockKey;
use kvcache_core::remote::{RemoteKey, RemoteSpace};

/// The values of one seed.
#[derive(Clone, Debug)]
pub(crate) struct Values {
    /// How many there are.
    pub(crate) count: u64,
    /// Their lengths, in turn.
    pub(crate) lengths: Vec<usize>,
    pub(crate) seed: u64,
}

impl Values {
    pub(crate) fn bytes(&self, number: u64) -> usize {
        self.lengths[(number % self.lengths.len() as u64) as usize]
    }

    pub(crate) fn bytes_max(&self) -> usize {
        self.lengths.iter().copied().max().unwrap_or(0)
    }

    pub(crate) fn block(&self, number: u64) -> BlockKey {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&mixed(self.seed ^ number).to_le_bytes());
        bytes[8..].copy_from_slice(&number.to_le_bytes());
        BlockKey(bytes)
    }

    pub(crate) fn key(&self, number: u64) -> RemoteKey {
        RemoteKey { space: self.space(), block: self.block(number) }
    }

    pub(crate) fn space(&self) -> RemoteSpace {
        RemoteSpace([0xab; 16])
    }

    /// Writes value `number`.
    pub(crate) fn fill(&self, number: u64, value: &mut [u8]) {
        for (word, at) in self.words(number).zip(value.chunks_mut(8)) {
            at.copy_from_slice(&word.to_le_bytes()[..at.len()]);
        }
    }

    /// Whether `value` is that of `number`.
    pub(crate) fn verify(&self, number: u64, value: &[u8]) -> bool {
        self.words(number).zip(value.chunks(8)).all(|(word, at)| word.to_le_bytes()[..at.len()] == *at)
    }

    /// No two values share a word at the same place, and no value repeats one: what is moved, swapped or torn shows.
    fn words(&self, number: u64) -> impl Iterator<Item = u64> {
        let first = mixed(self.seed ^ mixed(number));
        (0..).map(move |index: u64| first.wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
    }
}

/// The finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): a bijection in which every bit depends on all.
pub(crate) fn mixed(number: u64) -> u64 {
    let number = (number ^ number >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ number >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ number >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_itself_alone() {
        let values = Values { count: 10, lengths: vec![4096, 13], seed: 7 };
        for number in 0..values.count {
            let mut value = vec![0; values.bytes(number)];
            values.fill(number, &mut value);
            assert!(values.verify(number, &value));
            assert!(!values.verify(number + 2, &value));
            for at in [0, value.len() / 2, value.len() - 1] {
                value[at] ^= 1;
                assert!(!values.verify(number, &value), "byte {at} of value {number}");
                value[at] ^= 1;
            }
            value.rotate_left(8);
            assert!(!values.verify(number, &value));
        }
    }
}
