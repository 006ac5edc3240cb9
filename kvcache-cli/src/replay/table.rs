//! The result of a replay as text.

use std::fmt::Write;

use kvcache_core::replay::Trace;

use super::{HitRatios, Outcome};

/// Writing to a string cannot fail.
const INFALLIBLE: &str = "a string takes all that is written";

/// Two tables, of blocks and of tokens; with an L2 one of both.
pub(super) fn text(trace: &Trace, outcomes: &[Outcome<'_>]) -> String {
    let mut text = format!(
        "{} requests, {} block accesses, {} distinct blocks\n",
        trace.request_count(),
        trace.access_count(),
        trace.block_count(),
    );
    if outcomes.iter().any(|outcome| outcome.l2.is_some()) {
        with_l2(&mut text, trace, outcomes);
    } else {
        ratios(&mut text, trace, outcomes, "block hit ratio", |ratios| ratios.block_hit_ratio);
        ratios(&mut text, trace, outcomes, "token hit ratio", |ratios| ratios.token_hit_ratio);
    }
    text
}

/// A row a capacity, a column a policy.
fn ratios(
    text: &mut String,
    trace: &Trace,
    outcomes: &[Outcome<'_>],
    title: &str,
    ratio: impl Fn(&HitRatios) -> f64,
) {
    let policies = policies(outcomes);
    write!(text, "\n{title}\n{:>9}  {:>7}  {:>8}", "capacity", "of all", "lru").expect(INFALLIBLE);
    let width = |policy: &str| policy.len().max(8);
    for policy in &policies {
        write!(text, "  {policy:>0$}", width(policy)).expect(INFALLIBLE);
    }
    writeln!(text, "  {:>8}", "optimum").expect(INFALLIBLE);
    let rows: Vec<&[Outcome<'_>]> =
        outcomes.chunk_by(|a, b| a.capacity_blocks == b.capacity_blocks).collect();
    for row in &rows {
        let Some(first) = row.first() else { continue };
        write!(
            text,
            "{:>9}  {:>7}  {:>8.4}",
            first.capacity_blocks,
            share_of_all(first, trace),
            ratio(&first.lru)
        )
        .expect(INFALLIBLE);
        for policy in &policies {
            let of = row.iter().find(|outcome| outcome.policy == *policy);
            let cell = of.map_or(String::new(), |of| format!("{:.4}", ratio(&of.hit_ratios())));
            write!(text, "  {cell:>0$}", width(policy)).expect(INFALLIBLE);
        }
        let optimum = first.optimum.as_ref().map_or(String::new(), |of| format!("{:.4}", ratio(of)));
        writeln!(text, "  {optimum:>8}").expect(INFALLIBLE);
    }
    for policy in policies {
        let shares: Vec<f64> = outcomes
            .iter()
            .filter(|outcome| outcome.policy == policy)
            .filter_map(|outcome| {
                let (from, to) = (ratio(&outcome.lru), ratio(outcome.optimum.as_ref()?));
                (to > from).then(|| (ratio(&outcome.hit_ratios()) - from) / (to - from))
            })
            .collect();
        if !shares.is_empty() {
            let mean = shares.iter().sum::<f64>() / shares.len() as f64;
            writeln!(
                text,
                "{policy} closes {:.1} % of the gap between lru and the optimum on average",
                mean * 100.0
            )
            .expect(INFALLIBLE);
        }
    }
}

/// The policies but for the LRU, which has a column anyway, in their order.
fn policies<'a>(outcomes: &[Outcome<'a>]) -> Vec<&'a str> {
    let mut policies = Vec::new();
    for outcome in outcomes {
        if outcome.policy != super::BASELINE && !policies.contains(&outcome.policy) {
            policies.push(outcome.policy);
        }
    }
    policies
}

/// A row a capacity and policy, and what its L2 did below.
fn with_l2(text: &mut String, trace: &Trace, outcomes: &[Outcome<'_>]) {
    let width = outcomes.iter().map(|outcome| outcome.policy.len()).max().unwrap_or(0).max(6);
    writeln!(
        text,
        "\n{:>9}  {:>7}  {:<width$}  {:>8}  {:>8}  {:>8}  {:>8}\n{:>9}  {:>7}  {:<width$}  {:>8}  {:>8}  {:>8}  {:>8}",
        "capacity", "of all", "policy", "blocks", "tokens", "lru", "lru", "", "", "", "hit", "hit", "blocks", "tokens",
    )
    .expect(INFALLIBLE);
    for outcome in outcomes {
        writeln!(
            text,
            "{:>9}  {:>7}  {:<width$}  {:>8.4}  {:>8.4}  {:>8.4}  {:>8.4}",
            outcome.capacity_blocks,
            share_of_all(outcome, trace),
            outcome.policy,
            outcome.block_hit_ratio,
            outcome.token_hit_ratio,
            outcome.lru.block_hit_ratio,
            outcome.lru.token_hit_ratio,
        )
        .expect(INFALLIBLE);
        if let Some(l2) = &outcome.l2 {
            let name = format!("{:?}", l2.ingestion).to_lowercase();
            writeln!(
                text,
                "{:>9}  l2 of {} blocks, ingestion {name}: {:.4} of the blocks hit there, {:.4} sent ({} blocks)",
                "", l2.capacity_blocks, l2.block_hit_ratio, l2.sent_ratio, l2.sent_blocks,
            )
            .expect(INFALLIBLE);
        }
    }
}

fn share_of_all(outcome: &Outcome<'_>, trace: &Trace) -> String {
    format!("{:.1}%", f64::from(outcome.capacity_blocks) / trace.block_count().max(1) as f64 * 100.0)
}
