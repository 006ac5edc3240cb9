//! Copies a value and makes its checksum in one pass.
//!
//! To hash a value before or after it is copied costs nearly as much as to copy it: the bytes pass through the core
//! twice. Here each vector is loaded once, and what was loaded goes both to the destination, past the caches, and
//! into the hash. On Zen 3 that is as fast as [`stream_copy`](super::stream_copy) alone (13 GB/s on one core); to hash
//! and copy in pieces of 16 to 64 KiB reaches 7.
//!
//! One load also makes the checksum true in memory that others can change: it is that of the bytes that were stored,
//! whatever happens to the source meanwhile. A reader of shared memory who compares it needs no lock.
//!
//! The hash is XXH3-64 with a seed, for values longer than 240 bytes (`doc/xxhash_spec.md` of Yann Collet's xxHash):
//! eight accumulators take 64 bytes at a time, and are scrambled after each 1,024.

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

#[cfg(target_arch = "x86_64")]
mod fused {
    use std::arch::asm;
    use std::arch::x86_64::{
        __m128i, __m256i, _MM_HINT_T0, _mm_prefetch, _mm_stream_si128, _mm256_add_epi64,
        _mm256_castsi256_si128, _mm256_extracti128_si256, _mm256_loadu_si256, _mm256_mul_epu32,
        _mm256_set1_epi64x, _mm256_shuffle_epi32, _mm256_slli_epi64, _mm256_srli_epi64, _mm256_storeu_si256,
        _mm256_stream_si256, _mm256_xor_si256,
    };

    use xxhash_rust::const_xxh3::const_custom_default_secret;

    use super::BLOCK_BYTES;

    const SECRET_BYTES: usize = 192;
    const STRIPE_BYTES: usize = 64;
    const PRIME32_1: u64 = 0x9e37_79b1;
    const PRIME32_2: u64 = 0x85eb_ca77;
    const PRIME32_3: u64 = 0xc2b2_ae3d;
    const PRIME64_1: u64 = 0x9e37_79b1_85eb_ca87;
    const PRIME64_2: u64 = 0xc2b2_ae3d_27d4_eb4f;
    const PRIME64_3: u64 = 0x1656_67b1_9e37_79f9;
    const PRIME64_4: u64 = 0x85eb_ca77_c2b2_ae63;
    const PRIME64_5: u64 = 0x27d4_eb2f_1656_67c5;

    /// How far ahead of the loads lines are asked for: the hardware's own prefetching stops at the end of each page.
    /// 512 to 2,048 measured alike.
    const AHEAD_BYTES: usize = 1024;

    #[derive(Clone)]
    pub(super) struct Hash {
        lanes: [u64; 8],
        secret: [u8; SECRET_BYTES],
    }

    impl Hash {
        pub(super) fn new(seed: u64) -> Self {
            let lanes =
                [PRIME32_3, PRIME64_1, PRIME64_2, PRIME64_3, PRIME64_4, PRIME32_2, PRIME64_5, PRIME32_1];
            Self { lanes, secret: const_custom_default_secret(seed) }
        }

        /// Copies and hashes whole blocks.
        ///
        /// # Safety
        ///
        /// AVX2 is there, and both ranges hold the blocks. The source may change meanwhile.
        #[target_feature(enable = "avx2")]
        pub(super) unsafe fn blocks(&mut self, src: *const u8, dst: *mut u8, blocks: usize) {
            // Whole slots are aligned to pages; what the C library allocates, to 16 bytes.
            // SAFETY: the caller's promise; the destination is as aligned as the stores ask for.
            unsafe {
                match (dst as usize).trailing_zeros() {
                    5.. => self.blocks_by::<32>(src, dst, blocks),
                    4 => self.blocks_by::<16>(src, dst, blocks),
                    _ => self.blocks_by::<1>(src, dst, blocks),
                }
            }
        }

        /// # Safety
        ///
        /// As [`blocks`](Self::blocks); the destination is a multiple of `ALIGN`.
        #[target_feature(enable = "avx2")]
        unsafe fn blocks_by<const ALIGN: usize>(&mut self, src: *const u8, dst: *mut u8, blocks: usize) {
            // SAFETY: eight lanes are two vectors.
            let mut lanes: [__m256i; 2] = unsafe {
                let lanes = self.lanes.as_ptr();
                [_mm256_loadu_si256(lanes.cast()), _mm256_loadu_si256(lanes.add(4).cast())]
            };
            let secret = self.secret.as_ptr();
            for block in 0..blocks {
                // SAFETY: the caller's ranges hold the block.
                let (from, to) = unsafe { (src.add(block * BLOCK_BYTES), dst.add(block * BLOCK_BYTES)) };
                for stripe in 0..BLOCK_BYTES / STRIPE_BYTES {
                    // SAFETY: a stripe of the block in source and destination, which is aligned as its stores ask for.
                    // A prefetch may name any address. Of the secret, bytes up to 15 * 8 + 64 are read.
                    unsafe {
                        let from = from.add(stripe * STRIPE_BYTES);
                        _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(AHEAD_BYTES).cast());
                        let loaded = load(from);
                        for (half, (lanes, data)) in lanes.iter_mut().zip(loaded).enumerate() {
                            let to: *mut __m256i = to.add(stripe * STRIPE_BYTES + half * 32).cast();
                            match ALIGN {
                                32 => _mm256_stream_si256(to, data),
                                16 => {
                                    let to: *mut __m128i = to.cast();
                                    _mm_stream_si128(to, _mm256_castsi256_si128(data));
                                    _mm_stream_si128(to.add(1), _mm256_extracti128_si256::<1>(data));
                                }
                                _ => _mm256_storeu_si256(to, data),
                            }
                            let secret = _mm256_loadu_si256(secret.add(8 * stripe + half * 32).cast());
                            *lanes = accumulate(*lanes, data, secret);
                        }
                    }
                }
                for (half, lanes) in lanes.iter_mut().enumerate() {
                    // SAFETY: the last 64 bytes of the secret.
                    let secret = unsafe {
                        _mm256_loadu_si256(secret.add(SECRET_BYTES - STRIPE_BYTES + half * 32).cast())
                    };
                    *lanes = scramble(*lanes, secret);
                }
            }
            for (half, vector) in lanes.into_iter().enumerate() {
                // SAFETY: eight lanes are two vectors.
                unsafe { _mm256_storeu_si256(self.lanes.as_mut_ptr().add(4 * half).cast(), vector) };
            }
        }

        /// Copies and hashes the end of the value.
        ///
        /// # Safety
        ///
        /// Both ranges hold `bytes` bytes, 1 to 1,024; the source may change meanwhile. `bytes_total`, of the whole value,
        /// is 64 or more, and the destination holds all of it before these.
        pub(super) unsafe fn end(&mut self, src: *const u8, dst: *mut u8, bytes: usize, bytes_total: usize) {
            // What precedes the end, for the last stripe, and the end.
            let mut tail = [0; STRIPE_BYTES + BLOCK_BYTES];
            // SAFETY: the caller's promise. Volatile, so that each byte of the source is read once only.
            unsafe {
                std::ptr::copy_nonoverlapping(dst.sub(STRIPE_BYTES), tail.as_mut_ptr(), STRIPE_BYTES);
                for at in 0..bytes {
                    tail[STRIPE_BYTES + at] = src.add(at).read_volatile();
                }
                std::ptr::copy_nonoverlapping(tail.as_ptr().add(STRIPE_BYTES), dst, bytes);
            }
            let end = &tail[STRIPE_BYTES..STRIPE_BYTES + bytes];
            for stripe in 0..(bytes - 1) / STRIPE_BYTES {
                self.stripe(&end[stripe * STRIPE_BYTES..], 8 * stripe);
            }
            let last = &tail[bytes..bytes + STRIPE_BYTES];
            self.stripe(last, SECRET_BYTES - STRIPE_BYTES - 7);
            let mut result = (bytes_total as u64).wrapping_mul(PRIME64_1);
            for pair in 0..4 {
                let left = self.lanes[2 * pair] ^ word(&self.secret, 11 + 16 * pair);
                let right = self.lanes[2 * pair + 1] ^ word(&self.secret, 19 + 16 * pair);
                let product = u128::from(left) * u128::from(right);
                result = result.wrapping_add(product as u64 ^ (product >> 64) as u64);
            }
            result = (result ^ result >> 37).wrapping_mul(0x1656_6791_9e37_79f9);
            self.lanes[0] = result ^ result >> 32;
        }

        /// The hash, after [`end`](Self::end).
        pub(super) fn finished(&self) -> u64 {
            self.lanes[0]
        }

        fn stripe(&mut self, stripe: &[u8], secret_at: usize) {
            for lane in 0..8 {
                let data = word(stripe, 8 * lane);
                let key = data ^ word(&self.secret, secret_at + 8 * lane);
                self.lanes[lane ^ 1] = self.lanes[lane ^ 1].wrapping_add(data);
                let product = (key & 0xffff_ffff) * (key >> 32);
                self.lanes[lane] = self.lanes[lane].wrapping_add(product);
            }
        }
    }

    fn word(bytes: &[u8], at: usize) -> u64 {
        bytes[at..].first_chunk().map_or(0, |word| u64::from_le_bytes(*word))
    }

    /// 64 bytes, each loaded exactly once: a compiler may repeat a load of its own, and the two could differ.
    ///
    /// # Safety
    ///
    /// 64 bytes are readable at `from`. They may change meanwhile.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn load(from: *const u8) -> [__m256i; 2] {
        let (low, high): (__m256i, __m256i);
        // SAFETY: loads the 64 bytes that the caller vouches for, and does nothing else.
        unsafe {
            asm!(
                "vmovdqu {low}, ymmword ptr [{from}]",
                "vmovdqu {high}, ymmword ptr [{from} + 32]",
                from = in(reg) from,
                low = out(ymm_reg) low,
                high = lateout(ymm_reg) high,
                options(nostack, preserves_flags, readonly),
            );
        }
        [low, high]
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn accumulate(lanes: __m256i, data: __m256i, secret: __m256i) -> __m256i {
        let key = _mm256_xor_si256(data, secret);
        let product = _mm256_mul_epu32(key, _mm256_srli_epi64::<32>(key));
        // Each lane takes its neighbour's data.
        let swapped = _mm256_shuffle_epi32::<0b01_00_11_10>(data);
        _mm256_add_epi64(lanes, _mm256_add_epi64(product, swapped))
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn scramble(lanes: __m256i, secret: __m256i) -> __m256i {
        let mixed = _mm256_xor_si256(_mm256_xor_si256(lanes, _mm256_srli_epi64::<47>(lanes)), secret);
        let prime = _mm256_set1_epi64x(PRIME32_1 as i64);
        let low = _mm256_mul_epu32(mixed, prime);
        let high = _mm256_mul_epu32(_mm256_srli_epi64::<32>(mixed), prime);
        _mm256_add_epi64(low, _mm256_slli_epi64::<32>(high))
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
