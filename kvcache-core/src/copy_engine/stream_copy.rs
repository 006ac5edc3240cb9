//! Copies memory past the caches.
//!
//! A block that is offloaded or loaded is not read again by the CPU that copies it. An ordinary store first reads the
//! line that it overwrites and then evicts what the engine's threads were using: three transfers for each line where two
//! do. Non-temporal stores write whole lines straight to memory. (The C library does that only above a size near that
//! of the last-level cache, far above a block's.)
//!
//! The kernels read two places 16 KiB apart in lockstep. The hardware prefetchers stop at 4 KiB page boundaries, and
//! with two streams one is running while the other starts its page: on Zen 3 that adds 4 % to 2 MiB pieces and
//! 10 to 15 % to 32 KiB pieces. More streams, software prefetch and page-wise read-ahead were measured slower.
//!
//! Non-temporal stores are not ordered with later stores: [`fence`] must come between the copy and its publication.

/// One way to copy. Which exist depends on the CPU at run time; ordered by the width of their stores.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Variant {
    /// The compiler's `memcpy`; the fallback of every architecture.
    Plain,
    /// 16-byte streaming stores.
    #[cfg(target_arch = "x86_64")]
    Sse2,
    /// 32-byte streaming stores.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// 64-byte streaming stores.
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Variant {
    /// Those that this CPU can run, the fastest last.
    pub fn available() -> Vec<Variant> {
        #[cfg_attr(not(target_arch = "x86_64"), expect(unused_mut, reason = "nothing is added elsewhere"))]
        let mut variants = vec![Variant::Plain];
        #[cfg(target_arch = "x86_64")]
        {
            // SSE2 is part of x86-64.
            variants.push(Variant::Sse2);
            if std::is_x86_feature_detected!("avx2") {
                variants.push(Variant::Avx2);
            }
            if std::is_x86_feature_detected!("avx512f") {
                variants.push(Variant::Avx512);
            }
        }
        variants
    }

    /// The fastest that this CPU can run. Cheap: the CPU's features are looked up once.
    #[inline]
    pub fn best() -> Variant {
        #[cfg(target_arch = "x86_64")]
        {
            if std::is_x86_feature_detected!("avx512f") {
                Variant::Avx512
            } else if std::is_x86_feature_detected!("avx2") {
                Variant::Avx2
            } else {
                Variant::Sse2
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        Variant::Plain
    }

    /// Copies a slice, visible to other threads with the next release: the fence is included.
    ///
    /// # Panics
    /// If the slices differ in length, or this CPU cannot run the variant.
    pub fn copy_slice(self, src: &[u8], dst: &mut [u8]) {
        assert_eq!(src.len(), dst.len(), "slices of different lengths");
        assert!(self <= Variant::best(), "{self:?} is not available on this CPU");
        // SAFETY: both slices have `src.len()` bytes, `dst` is borrowed exclusively, and each variant up to the best
        // one is available.
        unsafe { self.copy(src.as_ptr(), dst.as_mut_ptr(), src.len()) };
        fence();
    }

    /// Copies `bytes` bytes. The bytes are visible to other threads only after [`fence`] and a release.
    ///
    /// # Safety
    ///
    /// `src..src + bytes` is readable, `dst..dst + bytes` is writable and used by nobody else, they do not overlap,
    /// and the variant is one of [`Variant::available`].
    #[inline]
    pub unsafe fn copy(self, src: *const u8, dst: *mut u8, bytes: usize) {
        // SAFETY: the ranges are the caller's promise, and an available variant's instructions exist on this CPU.
        unsafe {
            match self {
                Variant::Plain => std::ptr::copy_nonoverlapping(src, dst, bytes),
                #[cfg(target_arch = "x86_64")]
                Variant::Sse2 => x86::sse2(src, dst, bytes),
                #[cfg(target_arch = "x86_64")]
                Variant::Avx2 => x86::avx2(src, dst, bytes),
                #[cfg(target_arch = "x86_64")]
                Variant::Avx512 => x86::avx512(src, dst, bytes),
            }
        }
    }
}

/// Orders the streaming stores of this thread before its later stores. About as cheap as the buffers are empty.
#[inline]
pub fn fence() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: `sfence` belongs to SSE, which x86-64 includes, and it touches no memory.
    unsafe {
        std::arch::x86_64::_mm_sfence();
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m128i, __m256i, __m512i, _mm_loadu_si128, _mm_stream_si128, _mm256_loadu_si256,
        _mm256_stream_si256, _mm512_loadu_si512, _mm512_stream_si512,
    };

    /// Destinations are aligned to it, so that no line is written in two halves.
    const LINE_BYTES: usize = 64;

    /// Distance of the two places that are copied in lockstep.
    const STREAM_BYTES: usize = 16 << 10;

    /// Vectors per stream and step: two streams fill the 16 vector registers of SSE2 and AVX2.
    const STEP_VECTORS: usize = 8;

    macro_rules! kernel {
        ($name:ident, $feature:literal, $vector:ty, $load:ident, $store:ident) => {
            /// # Safety
            ///
            /// The duties of `Variant::copy`, on a CPU with the feature.
            #[target_feature(enable = $feature)]
            pub(super) unsafe fn $name(src: *const u8, dst: *mut u8, bytes: usize) {
                const WIDTH: usize = size_of::<$vector>();
                const STEP_BYTES: usize = STEP_VECTORS * WIDTH;
                const { assert!(STREAM_BYTES.is_multiple_of(STEP_BYTES) && LINE_BYTES.is_multiple_of(WIDTH)) };

                let head = ((dst as usize).wrapping_neg() & (LINE_BYTES - 1)).min(bytes);
                let mut at = head;
                // SAFETY: every access lies in `at..at + n` with `n <= bytes - at`, checked by its loop, within the
                // caller's ranges. `dst + at` is a multiple of `LINE_BYTES`, and so of the vector, from the head on,
                // since steps are multiples of the vector; sources may have any alignment.
                unsafe {
                    std::ptr::copy_nonoverlapping(src, dst, head);
                    while bytes - at >= 2 * STREAM_BYTES {
                        for step in (0..STREAM_BYTES).step_by(STEP_BYTES) {
                            let from = src.add(at + step);
                            let to = dst.add(at + step);
                            let ahead: [$vector; STEP_VECTORS] =
                                std::array::from_fn(|index| $load(from.add(index * WIDTH).cast()));
                            let behind: [$vector; STEP_VECTORS] =
                                std::array::from_fn(|index| $load(from.add(STREAM_BYTES + index * WIDTH).cast()));
                            for (index, vector) in ahead.into_iter().enumerate() {
                                $store(to.add(index * WIDTH).cast(), vector);
                            }
                            for (index, vector) in behind.into_iter().enumerate() {
                                $store(to.add(STREAM_BYTES + index * WIDTH).cast(), vector);
                            }
                        }
                        at += 2 * STREAM_BYTES;
                    }
                    while bytes - at >= WIDTH {
                        $store(dst.add(at).cast(), $load(src.add(at).cast()));
                        at += WIDTH;
                    }
                    std::ptr::copy_nonoverlapping(src.add(at), dst.add(at), bytes - at);
                }
            }
        };
    }

    kernel!(sse2, "sse2", __m128i, _mm_loadu_si128, _mm_stream_si128);
    kernel!(avx2, "avx2", __m256i, _mm256_loadu_si256, _mm256_stream_si256);
    kernel!(avx512, "avx512f", __m512i, _mm512_loadu_si512, _mm512_stream_si512);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Copies in a frame of guard bytes with each variant and compares the whole frame with a byte-wise copy.
    fn check(bytes: usize, src_offset: usize, dst_offset: usize) {
        let source: Vec<u8> = (0..bytes + src_offset).map(|at| (at * 7 + at / 256 * 13 + 1) as u8).collect();
        let mut expected = vec![0xA5; bytes + dst_offset + 256];
        for (to, from) in expected[dst_offset..].iter_mut().zip(&source[src_offset..]) {
            *to = *from;
        }
        for variant in Variant::available() {
            let mut target = vec![0xA5; bytes + dst_offset + 256];
            // SAFETY: both ranges lie within their vectors, and the variant is available.
            unsafe { variant.copy(source[src_offset..].as_ptr(), target[dst_offset..].as_mut_ptr(), bytes) };
            fence();
            assert!(target == expected, "{variant:?}: {bytes} bytes, offsets {src_offset} and {dst_offset}");
        }
    }

    proptest! {
        #[test]
        fn every_variant_copies_like_bytes(
            bytes in 0..6000_usize, src_offset in 0..200_usize, dst_offset in 0..200_usize
        ) {
            check(bytes, src_offset, dst_offset);
        }
    }

    /// The lengths around the two-stream loop, with all residues of the destination.
    #[test]
    fn every_variant_copies_long_pieces() {
        for bytes in [32767, 32768, 32769, 32768 + 63, 65536 + 64, 3 * 32768 + 4097] {
            for offset in 0..65 {
                check(bytes, 64 - offset, offset);
            }
        }
    }

    #[test]
    fn slices_are_copied_by_every_variant() {
        let source: Vec<u8> = (0..100_000_u32).map(|at| (at * 31 % 251) as u8).collect();
        for variant in Variant::available() {
            let mut target = vec![0; source.len()];
            variant.copy_slice(&source, &mut target);
            assert!(target == source, "{variant:?}");
        }
    }

    #[test]
    #[should_panic(expected = "slices of different lengths")]
    fn slices_of_different_lengths_are_refused() {
        Variant::Plain.copy_slice(&[1, 2], &mut [0]);
    }

    #[test]
    fn the_best_variant_is_available() {
        assert_eq!(Variant::available().last(), Some(&Variant::best()));
    }
}
