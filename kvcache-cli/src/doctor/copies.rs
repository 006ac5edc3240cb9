//! How fast this CPU copies, past its caches and through them.

use std::time::Instant;

use kvcache_core::copy_engine::stream_copy::Variant;

use super::Finding;

/// Rates of one piece size, in GB/s.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Rates {
    plain: f64,
    streaming: f64,
}

pub(super) fn check() -> Finding {
    let (large, small) = (measure(2 << 20), measure(32 << 10));
    judge(Variant::best(), std::env::consts::ARCH, large, small)
}

fn judge(best: Variant, arch: &str, large: Rates, small: Rates) -> Finding {
    let rates = format!(
        "2 MiB pieces {:.1} GB/s ({:.1} with memcpy), 32 KiB pieces {:.1} GB/s ({:.1})",
        large.streaming, large.plain, small.streaming, small.plain
    );
    let finding = if best == Variant::Plain {
        Finding::degraded(
            "copies",
            format!("no streaming stores for {arch}; {rates}"),
            "this version has them for x86-64 only: copies take up to half the bandwidth more than they need",
        )
    } else {
        Finding::fine("copies", format!("{best:?} streaming stores; {rates}"))
    };
    finding
        .with("variant", format!("{best:?}"))
        .with("plain_2mib_gb_s", large.plain)
        .with("streaming_2mib_gb_s", large.streaming)
        .with("plain_32kib_gb_s", small.plain)
        .with("streaming_32kib_gb_s", small.streaming)
}

/// Copies of random pieces between two pools, the variants in turn; the best of a few rounds of each. A tenth of a second.
fn measure(piece_bytes: usize) -> Rates {
    let source = vec![1_u8; POOL_BYTES];
    let mut target = vec![2_u8; POOL_BYTES];
    let pieces = POOL_BYTES / piece_bytes;
    let mut best = [0.0_f64; 2];
    for round in 0..ROUNDS {
        for (variant, best) in [Variant::Plain, Variant::best()].into_iter().zip(&mut best) {
            let began = Instant::now();
            for index in 0..pieces {
                // An odd factor visits every piece of a power of two of them once, in an order that looks random.
                let from = (index * 167 + round) % pieces * piece_bytes;
                let to = (index * 89 + round) % pieces * piece_bytes;
                variant.copy_slice(&source[from..from + piece_bytes], &mut target[to..to + piece_bytes]);
            }
            let rate = POOL_BYTES as f64 / began.elapsed().as_secs_f64() / 1e9;
            *best = best.max(rate);
        }
    }
    Rates { plain: best[0], streaming: best[1] }
}

/// Larger than the caches of most processors, and touched in a moment.
const POOL_BYTES: usize = 64 << 20;

const ROUNDS: usize = 3;

#[cfg(test)]
mod tests {
    use super::super::Grade;
    use super::*;

    const RATES: Rates = Rates { plain: 10.0, streaming: 15.26 };

    #[test]
    fn a_processor_without_streaming_stores_is_degraded() {
        let finding = judge(Variant::Plain, "riscv64", RATES, RATES);
        assert_eq!(finding.grade, Grade::Degraded);
        assert!(finding.found.starts_with("no streaming stores for riscv64; 2 MiB pieces 15.3 GB/s (10.0"));
    }

    #[test]
    fn measured_rates_are_positive() {
        let Rates { plain, streaming } = measure(2 << 20);
        assert!(plain > 0.0 && streaming > 0.0);
    }
}
