//! Counts and distributions of a run. Time is an argument: what is recorded says when it was.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::distribution::{Distribution, Percentiles};
use crate::record::Record;
use crate::slo::Slo;

/// What has been recorded so far.
#[derive(Default, Debug)]
pub(crate) struct Statistics {
    slo: Option<Slo>,
    warmup: u64,
    answered: u64,
    retries: u64,
    late: u64,
    short: u64,
    uncounted: u64,
    good: u64,
    errors: BTreeMap<String, ErrorCount>,
    failed: u64,
    prompt_tokens: u64,
    output_tokens: u64,
    /// Tokens of prompts of whose answers the server said how much was cached, and how much that was.
    cached: Option<(u64, u64)>,
    /// From the first that was sent to the last that ended.
    span: Option<(u64, u64)>,
    ttft: Distribution,
    ttft_from_due: Distribution,
    tpot: Distribution,
    itl: Distribution,
    e2e: Distribution,
    e2e_from_due: Distribution,
    lag: Distribution,
}

/// Requests that failed in one way.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct ErrorCount {
    /// How many.
    pub count: u64,
    /// What was said of the first of them.
    pub first: String,
}

/// The result of a run, without the requests of its warmup.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Summary {
    /// Requests that were answered.
    pub answered: u64,
    /// Requests that failed.
    pub failed: u64,
    /// Requests that had been sent when the run was stopped, and had not ended.
    pub unfinished: u64,
    /// Requests at the start that are counted nowhere else.
    pub warmup: u64,
    /// How often requests were sent again.
    pub retries: u64,
    /// Requests that were sent more than 10 ms after they were due.
    pub late: u64,
    /// Answers with fewer tokens than asked for.
    pub short: u64,
    /// Answers whose tokens the server did not count; their parts were counted instead.
    pub counted_by_parts: u64,
    /// From the first request's sending to the last one's end.
    pub duration_s: f64,
    /// Requests a second that were due, from the first to the last, sent or not; `None` in a closed loop.
    pub offered_per_s: Option<f64>,
    /// Answers a second.
    pub answered_per_s: f64,
    /// Tokens of prompts of answered requests.
    pub prompt_tokens: u64,
    /// Of these, a second.
    pub prompt_tokens_per_s: f64,
    /// Tokens of answers.
    pub output_tokens: u64,
    /// Of these, a second.
    pub output_tokens_per_s: f64,
    /// Tokens of prompts that the server had in a cache; `None` if it does not say so.
    pub cached_tokens: Option<u64>,
    /// Their share of the prompts of whose answers it says so.
    pub cached_ratio: Option<f64>,
    /// The limits of a good answer.
    pub slo: Option<String>,
    /// Answers that hold them.
    pub good: Option<u64>,
    /// Of these, a second.
    pub good_per_s: Option<f64>,
    /// From sending to the first token.
    pub ttft: Option<Percentiles>,
    /// From when it was due to the first token.
    pub ttft_from_due: Option<Percentiles>,
    /// From the first token to the last, for each token but the first; one value for each answer.
    pub tpot: Option<Percentiles>,
    /// From each part of an answer with tokens to the next.
    pub itl: Option<Percentiles>,
    /// From sending to the end of the answer.
    pub e2e: Option<Percentiles>,
    /// From when it was due to the end of the answer.
    pub e2e_from_due: Option<Percentiles>,
    /// From when it was due to sending.
    pub lag: Option<Percentiles>,
    /// Failures by kind.
    pub errors: BTreeMap<String, ErrorCount>,
}

impl Statistics {
    pub(crate) fn new(slo: Option<Slo>) -> Self {
        Self { slo, ..Self::default() }
    }

    pub(crate) fn record(&mut self, record: &Record) {
        if record.is_warmup {
            self.warmup += 1;
            return;
        }
        let lag_us = record.lag_us();
        self.lag.record(lag_us as f64);
        self.late += u64::from(lag_us > LATE_US);
        self.retries += u64::from(record.retries);
        widen(&mut self.span, record.sent_us, record.ended_us);
        let answered = match &record.outcome {
            Ok(answered) => answered,
            Err(failure) => {
                self.failed += 1;
                let first = || ErrorCount { count: 0, first: failure.to_string() };
                self.errors.entry(failure.kind().into_owned()).or_insert_with(first).count += 1;
                return;
            }
        };
        let latencies = record.latencies(answered);
        self.answered += 1;
        self.short += u64::from(answered.output_tokens < record.asked_tokens);
        self.uncounted += u64::from(answered.is_counted);
        self.good += u64::from(self.slo.is_some_and(|slo| slo.holds(&latencies, lag_us)));
        let prompt_tokens = record.prompt_tokens().unwrap_or(0);
        // What a server claims may be absurd.
        self.prompt_tokens = self.prompt_tokens.saturating_add(prompt_tokens);
        self.output_tokens = self.output_tokens.saturating_add(answered.output_tokens);
        if let Some(cached_tokens) = answered.cached_tokens {
            let (cached, of) = self.cached.get_or_insert((0, 0));
            *cached = cached.saturating_add(cached_tokens);
            *of = of.saturating_add(prompt_tokens);
        }
        if let Some(ttft_us) = latencies.ttft_us {
            self.ttft.record(ttft_us as f64);
            self.ttft_from_due.record((ttft_us + lag_us) as f64);
        }
        if let Some(tpot_us) = latencies.tpot_us {
            self.tpot.record(tpot_us);
        }
        answered.gaps_us.iter().for_each(|gap_us| self.itl.record(f64::from(*gap_us)));
        self.e2e.record(latencies.e2e_us as f64);
        self.e2e_from_due.record((latencies.e2e_us + lag_us) as f64);
    }

    /// Requests that have failed, those of the warmup left out.
    pub(crate) fn failed(&self) -> u64 {
        self.failed
    }

    pub(crate) fn answered(&self) -> u64 {
        self.answered
    }

    pub(crate) fn output_tokens(&self) -> u64 {
        self.output_tokens
    }

    pub(crate) fn ttft(&self) -> &Distribution {
        &self.ttft
    }

    /// The result, of a run of which `unfinished` requests were under way when it was stopped, and whose requests were due
    /// at this rate.
    pub(crate) fn summary(&self, unfinished: u64, offered_per_s: Option<f64>) -> Summary {
        let duration_s = self.span.map_or(0.0, |(from, to)| (to - from) as f64 / 1e6);
        let per_s = |count: u64| if duration_s > 0.0 { count as f64 / duration_s } else { 0.0 };
        let good = self.slo.map(|_| self.good);
        Summary {
            answered: self.answered,
            failed: self.failed,
            unfinished,
            warmup: self.warmup,
            retries: self.retries,
            late: self.late,
            short: self.short,
            counted_by_parts: self.uncounted,
            duration_s,
            offered_per_s,
            answered_per_s: per_s(self.answered),
            prompt_tokens: self.prompt_tokens,
            prompt_tokens_per_s: per_s(self.prompt_tokens),
            output_tokens: self.output_tokens,
            output_tokens_per_s: per_s(self.output_tokens),
            cached_tokens: self.cached.map(|(cached, _)| cached),
            cached_ratio: self.cached.map(|(cached, of)| cached as f64 / of.max(1) as f64),
            slo: self.slo.map(|slo| slo.to_string()),
            good,
            good_per_s: good.map(per_s),
            ttft: self.ttft.percentiles(),
            ttft_from_due: self.ttft_from_due.percentiles(),
            tpot: self.tpot.percentiles(),
            itl: self.itl.percentiles(),
            e2e: self.e2e.percentiles(),
            e2e_from_due: self.e2e_from_due.percentiles(),
            lag: self.lag.percentiles(),
            errors: self.errors.clone(),
        }
    }
}

fn widen(range: &mut Option<(u64, u64)>, from: u64, to: u64) {
    let (low, high) = range.get_or_insert((from, to));
    (*low, *high) = ((*low).min(from), (*high).max(to));
}

/// Timers have a resolution of a millisecond: what is later than this had to wait for something.
const LATE_US: u64 = 10_000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Failure;
    use crate::record::tests::answered;

    /// Requests at 10 a second. Number i is sent i ms late, its first token comes after 100 + i ms, four more i + 1
    /// ms apart.
    fn records(count: u64) -> impl Iterator<Item = Record> {
        (0..count).map(|index| {
            let due_us = index * 100_000;
            let sent_us = due_us + index * 1000;
            let first_us = sent_us + (100 + index) * 1000;
            let tokens: Vec<u64> = (0..5).map(|token| first_us + token * (index + 1) * 1000).collect();
            Record { index, due_us, asked_tokens: 5, ..answered(sent_us, &tokens) }
        })
    }

    fn summary(slo: Option<&str>, records: impl Iterator<Item = Record>) -> Summary {
        let mut statistics = Statistics::new(slo.map(|slo| slo.parse().expect("limits")));
        records.for_each(|record| statistics.record(&record));
        statistics.summary(0, Some(10.0))
    }

    fn assert_close(got: f64, expected: f64) {
        assert!(got >= expected - 1e-9 && got <= expected * 1.001 + 1e-9, "{got} instead of {expected}");
    }

    #[test]
    fn percentiles_are_those_of_what_was_recorded() {
        let summary = summary(None, records(100));
        // Numbers 0 to 99: the p-th percentile is number p - 1.
        let ttft = summary.ttft.expect("times");
        assert_eq!((ttft.count, ttft.mean_ms, ttft.max_ms), (100, 149.5, 199.0));
        assert_close(ttft.p50_ms, 149.0);
        assert_close(ttft.p99_ms, 198.0);
        let from_due = summary.ttft_from_due.expect("times");
        assert_close(from_due.p90_ms, 100.0 + 2.0 * 89.0);
        assert_eq!(from_due.max_ms, 298.0);
        let tpot = summary.tpot.expect("times");
        assert_eq!((tpot.count, tpot.mean_ms, tpot.max_ms), (100, 50.5, 100.0));
        assert_close(tpot.p95_ms, 95.0);
        let itl = summary.itl.expect("times");
        assert_eq!((itl.count, itl.mean_ms), (400, 50.5));
        assert_close(itl.p99_ms, 99.0);
        let e2e = summary.e2e.expect("times");
        assert_close(e2e.p50_ms, 100.0 + 49.0 + 4.0 * 50.0);
        assert_eq!(summary.e2e_from_due.expect("times").max_ms, 199.0 + 400.0 + 99.0);
        assert_eq!(summary.lag.expect("times").max_ms, 99.0);
        assert_eq!(summary.late, 89, "later than 10 ms");
    }

    #[test]
    fn rates_and_tokens_are_counted() {
        let summary = summary(Some("ttft=150"), records(101));
        // Sent at 0; the last one is due at 10 s, sent after 100 ms, and takes 200 + 4 * 101 ms.
        assert_eq!(summary.duration_s, 10.704);
        assert_eq!(summary.answered_per_s, 101.0 / 10.704);
        assert_eq!((summary.output_tokens, summary.prompt_tokens), (505, 10_100));
        assert_eq!(summary.output_tokens_per_s, 505.0 / 10.704);
        assert_eq!((summary.cached_tokens, summary.cached_ratio), (Some(6464), Some(0.64)));
        // 100 + 2 i ms from when it was due.
        assert_eq!((summary.good, summary.short), (Some(26), 0));
        assert_eq!(summary.good_per_s, Some(26.0 / 10.704));
    }

    #[test]
    fn failures_are_counted_by_kind() {
        let outcome = |index: u64| match index % 3 {
            0 => Err(Failure::Status { code: 429, message: format!("busy {index}"), retry_after: None }),
            1 => Err(Failure::Reset("gone".to_owned())),
            _ => answered(0, &[5]).outcome,
        };
        let records =
            records(10).map(|record| Record { outcome: outcome(record.index), retries: 2, ..record });
        let summary = summary(None, records);
        assert_eq!((summary.answered, summary.failed, summary.retries, summary.short), (3, 7, 20, 3));
        let busy = ErrorCount { count: 4, first: "busy 0".to_owned() };
        assert_eq!(summary.errors.get("status 429"), Some(&busy));
        assert_eq!(summary.errors.get("reset").map(|error| error.count), Some(3));
        assert_eq!(summary.lag.expect("of all").count, 10);
    }

    #[test]
    fn the_warmup_is_left_out() {
        let summary =
            summary(None, records(10).map(|record| Record { is_warmup: record.index < 4, ..record }));
        assert_eq!((summary.warmup, summary.answered), (4, 6));
        assert_eq!(summary.ttft.expect("times").count, 6);
    }

    #[test]
    fn nothing_has_a_summary_too() {
        let summary = summary(None, records(0));
        assert_eq!((summary.duration_s, summary.answered_per_s), (0.0, 0.0));
        assert_eq!((summary.ttft, summary.cached_tokens, summary.good), (None, None, None));
        let mut statistics = Statistics::default();
        statistics.record(&answered(2000, &[3000]));
        let summary = statistics.summary(3, None);
        assert_eq!((summary.unfinished, summary.offered_per_s, summary.tpot), (3, None, None));
    }

    #[test]
    fn absurd_claims_do_not_overflow() {
        let mut record = answered(1, &[2, 3]);
        if let Ok(answered) = &mut record.outcome {
            (answered.output_tokens, answered.prompt_tokens) = (u64::MAX, Some(u64::MAX));
            answered.cached_tokens = Some(u64::MAX);
        }
        let summary = summary(None, std::iter::repeat_n(record, 3));
        assert_eq!((summary.output_tokens, summary.cached_ratio), (u64::MAX, Some(1.0)));
    }
}
