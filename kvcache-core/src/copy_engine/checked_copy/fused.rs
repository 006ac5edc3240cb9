//! XXH3-64 of bytes while they are copied, with AVX2. A leaf.

use std::arch::asm;
use std::arch::x86_64::{
    __m128i, __m256i, _MM_HINT_T0, _mm_prefetch, _mm_stream_si128, _mm256_add_epi64, _mm256_castsi256_si128,
    _mm256_extracti128_si256, _mm256_loadu_si256, _mm256_mul_epu32, _mm256_set1_epi64x, _mm256_setzero_si256,
    _mm256_shuffle_epi32, _mm256_slli_epi64, _mm256_srli_epi64, _mm256_storeu_si256, _mm256_stream_si256,
    _mm256_xor_si256,
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
const AHEAD_BYTES: usize = 1024;

/// Distance of the two places that are copied in lockstep, in blocks: 64 KiB, and 16 for what is left. On Zen 3 a value of
/// 2 MiB takes 0.8 times as long from two places that are 64 KiB apart as from one; farther apart is the same.
const FAR_BLOCKS: usize = 64;
const NEAR_BLOCKS: usize = 16;

/// Two stripes: what is loaded, stored and added at a time.
const STEP_BYTES: usize = 2 * STRIPE_BYTES;
const BLOCK_STEPS: usize = BLOCK_BYTES / STEP_BYTES;

/// The secret of each step of a block, as it is used. Of its 192 bytes each stripe begins 8 after the one before, so that
/// every other vector would lie in two lines of the cache.
#[repr(align(64))]
struct StepSecrets([[__m256i; 4]; BLOCK_STEPS]);

#[derive(Clone)]
pub(super) struct Hash {
    lanes: [u64; 8],
    secret: [u8; SECRET_BYTES],
}

impl Hash {
    pub(super) fn new(seed: u64) -> Self {
        let lanes = [PRIME32_3, PRIME64_1, PRIME64_2, PRIME64_3, PRIME64_4, PRIME32_2, PRIME64_5, PRIME32_1];
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
                5.. => {
                    let done = self.lockstep::<FAR_BLOCKS>(src, dst, blocks);
                    let (src, dst) = (src.add(done * BLOCK_BYTES), dst.add(done * BLOCK_BYTES));
                    let blocks = blocks - done;
                    let done = self.lockstep::<NEAR_BLOCKS>(src, dst, blocks);
                    let (src, dst) = (src.add(done * BLOCK_BYTES), dst.add(done * BLOCK_BYTES));
                    self.blocks_by::<32>(src, dst, blocks - done);
                }
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
        let mut lanes = self.loaded_lanes();
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
                let secret =
                    unsafe { _mm256_loadu_si256(secret.add(SECRET_BYTES - STRIPE_BYTES + half * 32).cast()) };
                *lanes = scramble(*lanes, secret);
            }
        }
        self.store_lanes(lanes);
    }

    /// Copies and hashes as many blocks as can be done `2 * APART` at a time, from two places in lockstep; how many.
    ///
    /// What a block adds to the lanes does not depend on what they are, only the scrambling after it does. So the sums of
    /// the second place's blocks are kept, and added and scrambled after the first place's.
    ///
    /// # Safety
    ///
    /// As [`blocks`](Self::blocks); the destination is a multiple of 32.
    #[target_feature(enable = "avx2")]
    unsafe fn lockstep<const APART: usize>(&mut self, src: *const u8, dst: *mut u8, blocks: usize) -> usize {
        let whole = blocks / (2 * APART);
        if whole == 0 {
            return 0;
        }
        let mut lanes = self.loaded_lanes();
        let secrets = self.step_secrets();
        // SAFETY: the last 64 bytes of the secret.
        let last_secret = unsafe { load(self.secret.as_ptr().add(SECRET_BYTES - STRIPE_BYTES)) };
        let none = [_mm256_setzero_si256(); 2];
        let mut later = [none; APART];
        for pair in 0..whole {
            for (block, later) in later.iter_mut().enumerate() {
                let at = (pair * 2 * APART + block) * BLOCK_BYTES;
                let mut sums = none;
                for (step, secrets) in secrets.0.iter().enumerate() {
                    let near = at + step * STEP_BYTES;
                    let far = near + APART * BLOCK_BYTES;
                    // SAFETY: steps of two blocks that are among the caller's, in source and destination.
                    unsafe {
                        add(&mut lanes, copy_step(src.add(near), dst.add(near)), secrets);
                        add(&mut sums, copy_step(src.add(far), dst.add(far)), secrets);
                    }
                }
                for (lanes, secret) in lanes.iter_mut().zip(last_secret) {
                    *lanes = scramble(*lanes, secret);
                }
                *later = sums;
            }
            for sums in &later {
                for half in 0..2 {
                    lanes[half] = scramble(_mm256_add_epi64(lanes[half], sums[half]), last_secret[half]);
                }
            }
        }
        self.store_lanes(lanes);
        whole * 2 * APART
    }

    #[target_feature(enable = "avx2")]
    fn step_secrets(&self) -> StepSecrets {
        let mut secrets = StepSecrets([[_mm256_setzero_si256(); 4]; BLOCK_STEPS]);
        for (vector, secret) in secrets.0.as_flattened_mut().iter_mut().enumerate() {
            let at = 8 * (vector / 2) + 32 * (vector % 2);
            // SAFETY: bytes up to 15 * 8 + 64 of the secret are read.
            *secret = unsafe { _mm256_loadu_si256(self.secret.as_ptr().add(at).cast()) };
        }
        secrets
    }

    #[target_feature(enable = "avx2")]
    fn loaded_lanes(&self) -> [__m256i; 2] {
        let lanes = self.lanes.as_ptr();
        // SAFETY: eight lanes are two vectors.
        unsafe { [_mm256_loadu_si256(lanes.cast()), _mm256_loadu_si256(lanes.add(4).cast())] }
    }

    #[target_feature(enable = "avx2")]
    fn store_lanes(&mut self, lanes: [__m256i; 2]) {
        for (half, vector) in lanes.into_iter().enumerate() {
            // SAFETY: eight lanes are two vectors.
            unsafe { _mm256_storeu_si256(self.lanes.as_mut_ptr().add(4 * half).cast(), vector) };
        }
    }

    /// Copies and hashes the end of the value.
    ///
    /// # Safety
    ///
    /// AVX2 is there. Both ranges hold `bytes` bytes, 1 to 1,024; the source may change meanwhile. `bytes_total`, of the whole
    /// value, is 64 or more, and the destination holds all of it before these.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn end(&mut self, src: *const u8, dst: *mut u8, bytes: usize, bytes_total: usize) {
        // What precedes the end, for the last stripe, and the end.
        let mut tail = [0; STRIPE_BYTES + BLOCK_BYTES];
        // SAFETY: the caller's promise. Each byte of the source is read once only: whole stripes by `load`, others volatile.
        unsafe {
            std::ptr::copy_nonoverlapping(dst.sub(STRIPE_BYTES), tail.as_mut_ptr(), STRIPE_BYTES);
            let stripes = bytes / STRIPE_BYTES;
            for stripe in 0..stripes {
                let to: *mut __m256i = tail.as_mut_ptr().add(STRIPE_BYTES * (stripe + 1)).cast();
                let [low, high] = load(src.add(STRIPE_BYTES * stripe));
                _mm256_storeu_si256(to, low);
                _mm256_storeu_si256(to.add(1), high);
            }
            for at in STRIPE_BYTES * stripes..bytes {
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

/// Copies 128 bytes past the caches, asks for those ahead, and returns them. Each is loaded exactly once, see [`load`].
///
/// # Safety
///
/// 128 bytes are readable at `from`, and may change meanwhile, and writable at `to`, a multiple of 32.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn copy_step(from: *const u8, to: *mut u8) -> [__m256i; 4] {
    let (a, b, c, d): (__m256i, __m256i, __m256i, __m256i);
    // SAFETY: loads and stores the bytes that the caller vouches for, and nothing else; a prefetch may name any address.
    unsafe {
        asm!(
            "prefetcht0 byte ptr [{from} + {ahead}]",
            "prefetcht0 byte ptr [{from} + {ahead} + 64]",
            "vmovdqu {a}, ymmword ptr [{from}]",
            "vmovdqu {b}, ymmword ptr [{from} + 32]",
            "vmovdqu {c}, ymmword ptr [{from} + 64]",
            "vmovdqu {d}, ymmword ptr [{from} + 96]",
            "vmovntdq ymmword ptr [{to}], {a}",
            "vmovntdq ymmword ptr [{to} + 32], {b}",
            "vmovntdq ymmword ptr [{to} + 64], {c}",
            "vmovntdq ymmword ptr [{to} + 96], {d}",
            from = in(reg) from,
            to = in(reg) to,
            ahead = const AHEAD_BYTES,
            a = out(ymm_reg) a,
            b = out(ymm_reg) b,
            c = out(ymm_reg) c,
            d = out(ymm_reg) d,
            options(nostack, preserves_flags),
        );
    }
    [a, b, c, d]
}

/// Adds what was copied to lanes or sums.
#[inline]
#[target_feature(enable = "avx2")]
fn add(lanes: &mut [__m256i; 2], data: [__m256i; 4], secrets: &[__m256i; 4]) {
    for (vector, (data, secret)) in data.into_iter().zip(secrets).enumerate() {
        lanes[vector % 2] = accumulate(lanes[vector % 2], data, *secret);
    }
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
