//! Simulations as a table.

use std::fmt::Write;

use kvcache_engine_model::{Profile, Traffic};

use super::Run;
use super::profile_file::gib;

pub(super) fn text(profile: &Profile, traffic: &Traffic, runs: &[Run<'_>]) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = writeln!(
        text,
        "{} requests, {} tokens in, {} out; {} distinct blocks of {} tokens ({:.1} GiB)",
        traffic.request_count(),
        traffic.input_tokens(),
        traffic.output_tokens(),
        traffic.block_count(),
        profile.block_tokens,
        gib(profile, traffic.block_count()),
    );
    let _ = write!(
        text,
        "{}: {} blocks in the engine ({:.1} GiB), {} in L1 ({:.1} GiB)",
        profile.name,
        profile.gpu_blocks,
        gib(profile, profile.gpu_blocks),
        profile.l1_blocks,
        gib(profile, profile.l1_blocks),
    );
    if let Some(l2) = &profile.l2 {
        let _ = write!(text, ", {} in L2 ({:.1} GiB)", l2.blocks, gib(profile, l2.blocks));
    }
    let _ = writeln!(
        text,
        "\n\n{:>7} {:<9} {:>7}  {:>31}  {:>7}  {:>15}  {:>8}  {:>15}  {:>17}  {:>5} {:>6}\n\
         {:>7} {:<9} {:>7}  {:>7} {:>7} {:>7} {:>7}  {:>7}  {:>7} {:>7}  {:>8}  {:>7} {:>7}  \
         {:>5} {:>5} {:>5}  {:>5} {:>6}",
        "offered",
        "set-up",
        "served",
        "TTFT, s",
        "TPOT",
        "ITL, ms",
        "E2E",
        "tokens/s",
        "hits, % of input",
        "pre-",
        "queue",
        "/s",
        "",
        "/s",
        "mean",
        "p50",
        "p90",
        "p99",
        "ms",
        "p50",
        "p99",
        "s",
        "out",
        "all",
        "gpu",
        "l1",
        "l2",
        "empt",
        "max",
    );
    for Run { outcome, .. } in runs {
        let offered = outcome.offered_per_s.map_or("-".to_owned(), |rate| format!("{rate:.2}"));
        let share = |tokens: u64| 100.0 * tokens as f64 / outcome.input_tokens.max(1) as f64;
        let _ = writeln!(
            text,
            "{offered:>7} {:<9} {:>7.2}  {} {} {} {}  {:>7.1}  {:>7.1} {:>7.1}  {:>8}  {:>7.0} {:>7.0}  \
             {:>5.1} {:>5.1} {:>5.1}  {:>5} {:>6}{}",
            outcome.setup,
            outcome.served_per_s,
            time(outcome.ttft_s.mean),
            time(outcome.ttft_s.p50),
            time(outcome.ttft_s.p90),
            time(outcome.ttft_s.p99),
            outcome.tpot_s.mean * 1e3,
            outcome.itl_s.p50 * 1e3,
            outcome.itl_s.p99 * 1e3,
            time(outcome.e2e_s.mean).trim_start(),
            outcome.output_tokens_per_s,
            outcome.total_tokens_per_s,
            share(outcome.hit_tokens.device),
            share(outcome.hit_tokens.l1),
            share(outcome.hit_tokens.l2),
            outcome.preemptions,
            outcome.queue_depth_max,
            if outcome.kept_up == Some(false) { "  fell behind" } else { "" },
        );
        let served = &outcome.served;
        if served.refused > 0 {
            let most = profile.request_tokens_max();
            let _ = writeln!(text, "{:>17} {} refused: more than {most} tokens", "", served.refused);
        }
        if served.unfinished + served.not_arrived > 0 {
            let (unfinished, not_arrived) = (served.unfinished, served.not_arrived);
            let _ = writeln!(
                text,
                "{:>17} at the horizon {unfinished} were unfinished, {not_arrived} had not come",
                ""
            );
        }
    }
    text
}

/// Seconds with three digits that count.
fn time(seconds: f64) -> String {
    match seconds {
        seconds if seconds < 9.9995 => format!("{seconds:>7.3}"),
        seconds if seconds < 99.995 => format!("{seconds:>7.2}"),
        _ => format!("{seconds:>7.1}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_keep_their_width() {
        assert_eq!(
            [0.0123, 9.9999, 12.345, 99.999, 1234.5].map(time),
            ["  0.012", "  10.00", "  12.35", "  100.0", " 1234.5"]
        );
    }
}
