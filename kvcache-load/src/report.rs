//! A summary as a table.

use std::fmt::Write;

use crate::distribution::Percentiles;
use crate::results::SummaryLine;

/// The summary for people.
pub fn table(line: &SummaryLine<'_>) -> String {
    let summary = line.summary;
    let mut text = String::new();
    let why = match line.end {
        "complete" => "complete",
        "duration" => "partial: the time was over",
        "interrupted" => "partial: interrupted",
        "errors" => "partial: too many requests failed",
        _ => "partial: stopped by an error",
    };
    // Writing to a string cannot fail.
    let _ = writeln!(
        text,
        "{} answered, {} failed, {} unfinished, {} of the warmup left out; {:.3} s, {why}\n",
        summary.answered, summary.failed, summary.unfinished, summary.warmup, summary.duration_s,
    );
    let _ = writeln!(text, "{:<16}  {:>12}  {:>12}", "", "total", "a second");
    if let Some(offered_per_s) = summary.offered_per_s {
        let _ = writeln!(text, "{:<16}  {:>12}  {offered_per_s:>12.3}", "offered", "");
    }
    let mut rate = |name: &str, total: u64, per_s: f64| {
        let _ = writeln!(text, "{name:<16}  {total:>12}  {per_s:>12.3}");
    };
    rate("answered", summary.answered, summary.answered_per_s);
    if let Some((good, good_per_s)) = summary.good.zip(summary.good_per_s) {
        rate("good", good, good_per_s);
    }
    rate("prompt tokens", summary.prompt_tokens, summary.prompt_tokens_per_s);
    rate("output tokens", summary.output_tokens, summary.output_tokens_per_s);
    if let Some((tokens, ratio)) = summary.cached_tokens.zip(summary.cached_ratio) {
        let _ = writeln!(text, "{:<16}  {tokens:>12}  {:>11.1}%", "cached tokens", ratio * 100.0);
    }
    let _ = writeln!(
        text,
        "\n{:<16}  {:>9}  {:>9}  {:>9}  {:>9}  {:>9}  {:>9}",
        "ms", "mean", "p50", "p90", "p95", "p99", "max"
    );
    for (name, times) in [
        ("TTFT", summary.ttft),
        ("TTFT from due", summary.ttft_from_due),
        ("TPOT", summary.tpot),
        ("ITL", summary.itl),
        ("end to end", summary.e2e),
        ("e2e from due", summary.e2e_from_due),
        ("send lag", summary.lag),
    ] {
        let Some(Percentiles { mean_ms, p50_ms, p90_ms, p95_ms, p99_ms, max_ms, .. }) = times else {
            continue;
        };
        let _ = writeln!(
            text,
            "{name:<16}  {mean_ms:>9.2}  {p50_ms:>9.2}  {p90_ms:>9.2}  {p95_ms:>9.2}  {p99_ms:>9.2}  {max_ms:>9.2}"
        );
    }
    for (count, what) in [
        (summary.late, "requests were sent more than 10 ms after they were due"),
        (summary.retries, "times a request was sent again"),
        (summary.short, "answers are shorter than asked for"),
        (summary.counted_by_parts, "answers came without usage: their parts are counted as tokens"),
    ] {
        if count > 0 {
            let _ = writeln!(text, "{}{count} {what}", if text.ends_with("\n\n") { "" } else { "\n" });
        }
    }
    for (kind, error) in &summary.errors {
        let _ = writeln!(text, "\n{} failed with `{kind}`, the first: {}", error.count, error.first);
    }
    if let Some(error) = &line.error {
        let _ = writeln!(text, "\nstopped: {error}");
    }
    text
}
