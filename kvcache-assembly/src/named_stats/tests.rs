//! Names and words against the page that documents them, and the exposition format line by line.

use std::collections::{HashMap, HashSet};

use kvcache_core::directory::DirectoryStats;

use super::*;

const DIRECTORY: DirectoryStats = DirectoryStats {
    slot_count: 64,
    unusable: 1,
    free: 2,
    filling: 3,
    ready: 4,
    draining: 5,
    pinned: 6,
    stored: 7,
    evicted: 8,
    refused: 9,
    over_share: 10,
    not_worth: 16,
    failed_fills: 11,
    cancelled_fills: 12,
    adopted: 13,
    removed: 14,
    metadata_bytes: 15,
    policy: "lru",
};

fn planner_stats() -> PlannerStats {
    PlannerStats {
        hits: 1,
        hit_tokens: 2,
        queried_tokens: 3,
        already_stored_blocks: 4,
        stored_blocks: 5,
        failed_stores: 6,
        failed_loads: 7,
        adopted_blocks: 8,
        misses: [1, 2, 3, 4, 5, 6, 7, 8, 9],
        missed_tokens: [10, 20, 30, 40, 50, 60, 70, 80, 90],
        jobs_in_flight: 9,
        requests: 10,
        directory: Some(DIRECTORY),
        remote: Some(RemoteTierStats { asked_blocks: 11, dropped_demotions: 12, ..Default::default() }),
    }
}

/// What a connector with L2 shows, of both halves.
fn of_a_connector() -> Vec<Number> {
    let link = RemoteLinkStats { failures: [1, 2, 3, 4, 5, 6], ..Default::default() };
    planner(&planner_stats()).chain(store(&StoreStats::default())).chain(store_l2(&link)).collect()
}

/// The table of docs/metrics.md: kind and help by name.
fn documented() -> HashMap<&'static str, (&'static str, &'static str)> {
    let rows = include_str!("../../../docs/metrics.md").lines();
    let rows = rows.filter_map(|line| line.strip_prefix("| `vllm:kvcache_")?.strip_suffix(" |"));
    rows.filter_map(|row| {
        let [name, kind, help] = row.split(" | ").collect::<Vec<_>>().try_into().ok()?;
        Some((name.trim_end_matches('`').trim_end_matches("{reason=…}"), (kind, help)))
    })
    .collect()
}

#[test]
fn names_and_words_are_those_of_the_documented_metrics() {
    let documented = documented();
    assert!(documented.len() > 40, "the table was not found");
    let mut left: HashSet<&str> = documented.keys().copied().collect();
    for number in of_a_connector() {
        let (name, kind) = match number.kind {
            Kind::Counter => (format!("{}_total", number.name), "counter"),
            Kind::Gauge => (number.name.to_owned(), "gauge"),
        };
        let Some(row) = documented.get(name.as_str()) else { continue };
        left.remove(name.as_str());
        match number.reason {
            None => assert_eq!(*row, (kind, number.help), "{name}"),
            Some(reason) => {
                assert!(row.0 == kind && row.1.contains(", by reason: ") && row.1.contains(reason), "{name}");
            }
        }
    }
    // What the connector counts in Python.
    assert_eq!(left, HashSet::from(["internal_errors_total", "hit_ratio"]));
}

#[test]
fn no_key_stands_twice() {
    let l2 = Some(L2Stats::default());
    let stats = BlockCacheStats { directory: DIRECTORY, block_bytes: 4096, slab_bytes: 1 << 20, l2 };
    for numbers in [of_a_connector(), cache(&stats).collect()] {
        let keys: HashSet<_> = numbers.iter().map(Number::key).collect();
        assert_eq!(keys.len(), numbers.len());
    }
}

#[test]
fn a_key_has_the_reason_behind_the_name() {
    let keys: HashMap<_, _> = of_a_connector().iter().map(|number| (number.key(), number.value)).collect();
    for (key, value) in [
        ("misses_absent", 1),
        ("misses_unknown", 9),
        ("missed_tokens_evicted", 20),
        ("l2_failures_cancelled", 6),
        ("l2_dropped_demotions", 12),
        ("slots_pinned", 6),
        ("metadata_bytes", 15),
    ] {
        assert_eq!(keys.get(key), Some(&value), "{key}");
    }
}

#[test]
fn a_metric_has_its_help_its_type_and_its_lines_in_one_place() {
    let absent = counter("misses", 3, "Misses.").by_reason("absent");
    let late = counter("misses", 4, "Misses.").by_reason("late");
    let numbers = [absent, gauge("slots", 5u64, "Slots."), late];
    let expected = "\
# HELP kvcache_misses_total Misses.
# TYPE kvcache_misses_total counter
kvcache_misses_total{reason=\"absent\"} 3
kvcache_misses_total{reason=\"late\"} 4
# HELP kvcache_slots Slots.
# TYPE kvcache_slots gauge
kvcache_slots 5
";
    assert_eq!(prometheus(numbers, &[]), expected);
}

#[test]
fn labels_are_on_every_line_and_may_hold_any_text() {
    let text = prometheus(
        [counter("misses", 3, "Misses.").by_reason("late"), gauge("slots", 5u64, "Slots.")],
        &[("cache", "a \"b\"\\c\nd"), ("engine", "1")],
    );
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(
        lines,
        [
            r#"kvcache_misses_total{cache="a \"b\"\\c\nd",engine="1",reason="late"} 3"#,
            r#"kvcache_slots{cache="a \"b\"\\c\nd",engine="1"} 5"#,
        ]
    );
}
