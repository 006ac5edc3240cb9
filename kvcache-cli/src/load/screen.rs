//! Where a run stands, on the standard error.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};

use kvcache_load::Progress;

/// A line that is written over itself on a terminal, or one after the other elsewhere.
pub(crate) struct Screen {
    is_shown: bool,
    is_terminal: bool,
    last: Option<Progress>,
}

impl Screen {
    pub(crate) fn new(is_shown: bool) -> Self {
        Self { is_shown, is_terminal: std::io::stderr().is_terminal(), last: None }
    }

    pub(crate) fn show(&mut self, progress: &Progress) {
        if !self.is_shown {
            return;
        }
        let line = line(progress, self.last.as_ref());
        let (before, after) = if self.is_terminal { ("\r", "\x1b[K") } else { ("", "\n") };
        // Nobody may be looking any more.
        let _ = write!(std::io::stderr(), "{before}{line}{after}");
        self.last = Some(*progress);
    }

    /// Makes room for what comes after it.
    pub(crate) fn clear(&self) {
        if self.is_terminal && self.last.is_some() {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

/// Rates are those since the line before.
fn line(now: &Progress, before: Option<&Progress>) -> String {
    let seconds = now.elapsed_s - before.map_or(0.0, |before| before.elapsed_s);
    let per_s = |count: u64, before: u64| count.saturating_sub(before) as f64 / seconds.max(0.001);
    let answered_per_s = per_s(now.answered, before.map_or(0, |before| before.answered));
    let tokens_per_s = per_s(now.output_tokens, before.map_or(0, |before| before.output_tokens));
    let mut text = format!(
        "{:.0} s: {} sent, {} under way, {} answered ({answered_per_s:.1}/s), {tokens_per_s:.0} tokens/s",
        now.elapsed_s, now.sent, now.in_flight, now.answered
    );
    if now.answered > 0 {
        // Writing to a string cannot fail.
        let _ = write!(text, ", TTFT p50 {:.1} ms, p99 {:.1} ms", now.ttft_ms_p50, now.ttft_ms_p99);
    }
    if now.failed > 0 {
        let _ = write!(text, ", {} FAILED", now.failed);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_happened_since_the_one_before() {
        let first = Progress {
            elapsed_s: 1.0,
            sent: 20,
            in_flight: 5,
            answered: 15,
            failed: 0,
            output_tokens: 900,
            ttft_ms_p50: 12.34,
            ttft_ms_p99: 99.9,
        };
        let text =
            "1 s: 20 sent, 5 under way, 15 answered (15.0/s), 900 tokens/s, TTFT p50 12.3 ms, p99 99.9 ms";
        assert_eq!(line(&first, None), text);
        let second = Progress { elapsed_s: 3.0, answered: 16, failed: 4, output_tokens: 901, ..first };
        assert!(line(&second, Some(&first)).contains("16 answered (0.5/s), 0 tokens/s, TTFT"));
        assert!(line(&second, Some(&first)).ends_with("99.9 ms, 4 FAILED"));
    }
}
