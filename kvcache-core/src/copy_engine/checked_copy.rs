//! Copies a value and makes its checksum in one pass.
//!
//! To hash a value before or after it is copied costs nearly as much as to copy it: the bytes pass through the core
//! twice. Here each vector is loaded once, and what was loaded goes both to the destination, past the caches, and
//! into the hash. On Zen 3 that is 0.92 to 0.97 times as fast as [`stream_copy`](super::stream_copy) alone (13 GB/s on one
//! core); to hash and copy in pieces of 16 to 64 KiB is half as fast.
//!
//! One load also makes the checksum true in memory that others can change: it is that of the bytes that were stored,
//! whatever happens to the source meanwhile. A reader of shared memory who compares it needs no lock.
//!
//! The hash is XXH3-64 with a seed, for values longer than 240 bytes (`doc/xxhash_spec.md` of Yann Collet's xxHash):
//! eight accumulators take 64 bytes at a time, and are scrambled after each 1,024.

#[cfg(target_arch = "x86_64")]
mod fused;

use xxhash_rust::xxh3::{Xxh3, xxh3_64};

/// Copies up to which nothing is gained: hashed after they were copied.
const SHORT_BYTES_MAX: usize = BLOCK_BYTES;

/// Bytes after which XXH3 scrambles its accumulators.
const BLOCK_BYTES: usize = 1024;

/// Bytes that are copied and then hashed by processors without AVX2: they stay in the nearest cache.
const PIECE_BYTES: usize = 16 << 10;

/// A copy under way, and the hash of what was copied so far.
#[derive(Clone)]
pub struct CheckedCopy {
    bytes: usize,
    at: usize,
    hash: Hash,
}

#[derive(Clone)]
enum Hash {
    /// On the way, bytes are hashed where they were stored.
    Plain(Box<Xxh3>),
    #[cfg(target_arch = "x86_64")]
    Fused(Box<fused::Hash>),
}

impl CheckedCopy {
    /// Of a value of `bytes` bytes called `name`; see [`value_checksum`](crate::remote::value_checksum).
    pub fn new(name: &[u8], bytes: usize) -> Self {
        let seed = xxh3_64(name);
        #[cfg(target_arch = "x86_64")]
        if bytes > SHORT_BYTES_MAX && std::is_x86_feature_detected!("avx2") {
            return Self { bytes, at: 0, hash: Hash::Fused(Box::new(fused::Hash::new(seed))) };
        }
        Self { bytes, at: 0, hash: Hash::Plain(Box::new(Xxh3::with_seed(seed))) }
    }

    /// Bytes that are not copied yet.
    pub fn left(&self) -> usize {
        self.bytes - self.at
    }

    /// Copies the next part: about `bytes_max` bytes, at least 1 KiB, or what is left. Visible to other threads with
    /// the next release: the fence is included.
    ///
    /// # Safety
    ///
    /// `src` and `dst` are the addresses of the whole value and the same in all steps. The value's bytes are readable
    /// at `src`; they may change meanwhile, and are then copied from before or after. They are writable at `dst`, which
    /// nobody else uses and which does not overlap.
    pub unsafe fn step(&mut self, src: *const u8, dst: *mut u8, bytes_max: usize) {
        let left = self.left();
        if left == 0 {
            return;
        }
        let bytes_max = bytes_max.max(BLOCK_BYTES);
        let is_last = bytes_max >= left;
        match &mut self.hash {
            Hash::Plain(hash) => {
                let end = self.at + bytes_max.min(left);
                while self.at < end {
                    let piece = (end - self.at).min(PIECE_BYTES);
                    // SAFETY: `at + piece` is at most the value's length, within both ranges; the destination is ours.
                    let copied = unsafe {
                        std::ptr::copy_nonoverlapping(src.add(self.at), dst.add(self.at), piece);
                        std::slice::from_raw_parts(dst.add(self.at), piece)
                    };
                    hash.update(copied);
                    self.at += piece;
                }
            }
            #[cfg(target_arch = "x86_64")]
            Hash::Fused(hash) => {
                // The last 1 to 1,024 bytes are the end, which has rules of its own.
                let before_end = self.bytes - 1 - (self.bytes - 1) % BLOCK_BYTES - self.at;
                let blocks = before_end.min(bytes_max) / BLOCK_BYTES;
                // SAFETY: AVX2 is there, as `new` has seen; the blocks end before the value does.
                unsafe { hash.blocks(src.add(self.at), dst.add(self.at), blocks) };
                self.at += blocks * BLOCK_BYTES;
                if is_last {
                    // SAFETY: all blocks are done, so these are the 1 to 1,024 bytes after them, and as the value is
                    // longer than a block there are 64 bytes before its end.
                    unsafe { hash.end(src.add(self.at), dst.add(self.at), self.bytes - self.at, self.bytes) };
                    self.at = self.bytes;
                }
                super::stream_copy::fence();
            }
        }
    }

    /// The checksum of what was copied, once nothing is left. Of less it is no checksum of anything.
    pub fn checksum(&self) -> u64 {
        match &self.hash {
            Hash::Plain(hash) => hash.digest(),
            #[cfg(target_arch = "x86_64")]
            Hash::Fused(hash) => hash.finished(),
        }
    }
}

impl std::fmt::Debug for CheckedCopy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CheckedCopy")
            .field("bytes", &self.bytes)
            .field("at", &self.at)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::remote::value_checksum;

    fn plain(name: &[u8], bytes: usize) -> CheckedCopy {
        CheckedCopy { bytes, at: 0, hash: Hash::Plain(Box::new(Xxh3::with_seed(xxh3_64(name)))) }
    }

    /// Copies in a frame of guard bytes and compares everything with a byte-wise copy and the ordinary hash.
    fn check(bytes: usize, src_offset: usize, dst_offset: usize, step: usize) {
        let source: Vec<u8> = (0..bytes + src_offset).map(|at| (at * 7 + at / 256 * 13 + 1) as u8).collect();
        let source = &source[src_offset..];
        let mut expected = vec![0xA5; bytes + dst_offset + 256];
        expected[dst_offset..dst_offset + bytes].copy_from_slice(source);
        for mut copy in [CheckedCopy::new(b"name", bytes), plain(b"name", bytes)] {
            let mut target = vec![0xA5; bytes + dst_offset + 256];
            while copy.left() > 0 {
                // SAFETY: both ranges lie within their vectors.
                unsafe { copy.step(source.as_ptr(), target[dst_offset..].as_mut_ptr(), step) };
            }
            assert!(target == expected, "{bytes} bytes, offsets {src_offset} and {dst_offset}, step {step}");
            assert_eq!(copy.checksum(), value_checksum(b"name", source), "{bytes} bytes, step {step}");
        }
    }

    proptest! {
        #[test]
        fn copies_and_hashes_like_bytes(
            bytes in 1..9000_usize, src_offset in 0..100_usize, dst_offset in 0..100_usize, step in 0..5000_usize
        ) {
            check(bytes, src_offset, dst_offset, step);
        }
    }

    /// The lengths at which XXH3 changes its ways, and those around blocks and stripes.
    #[test]
    fn copies_and_hashes_the_edges() {
        for bytes in
            [1, 16, 17, 128, 129, 240, 241, 1023, 1024, 1025, 1087, 1088, 1089, 2048, 2049, 3072, 65_536]
                .into_iter()
                // What is copied from two places, and what is left.
                .chain([
                    32 << 10,
                    (32 << 10) + 1,
                    128 << 10,
                    (128 << 10) + 1,
                    (331 << 10) + 77,
                    (421 << 10) - 63,
                ])
        {
            for step in [1, 1024, 2000, usize::MAX] {
                check(bytes, 3, 0, step);
                check(bytes, 0, 32, step);
                check(bytes, 0, 16, step);
            }
        }
    }

    #[test]
    fn a_changed_byte_changes_the_checksum() {
        let mut value = vec![7_u8; 5000];
        let of = |value: &[u8]| {
            let mut target = vec![0; value.len()];
            let mut copy = CheckedCopy::new(b"name", value.len());
            // SAFETY: both vectors have that length.
            unsafe { copy.step(value.as_ptr(), target.as_mut_ptr(), usize::MAX) };
            copy.checksum()
        };
        let before = of(&value);
        for at in [0, 1023, 1024, 4095, 4096, 4935, 4936, 4999] {
            value[at] ^= 1;
            assert_ne!(of(&value), before, "{at}");
            value[at] ^= 1;
        }
    }
}
