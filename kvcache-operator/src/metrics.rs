//! What the operator counts, as Prometheus reads it.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;

use crate::error::Error;

/// All counts. Labels are bounded: reasons are fixed, and what is counted for a cache goes with the cache.
#[derive(Default, Debug)]
pub struct Metrics {
    reconciles: AtomicU64,
    errors: [AtomicU64; Error::REASONS.len()],
    duration: Histogram,
    writes: AtomicU64,
    queue_depth: AtomicU64,
    is_leader: AtomicU64,
    caches: Mutex<BTreeMap<(String, String), Cache>>,
}

/// What is known of one cache.
#[derive(Clone, Copy, Debug, Default)]
struct Cache {
    ring: Option<Ring>,
    errors: [u64; Error::REASONS.len()],
}

/// The published ring of one cache.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Ring {
    /// Its version.
    pub version: u64,
    /// How many servers are in it.
    pub members: usize,
    /// When this operator saw it change.
    pub changed: Timestamp,
    /// Slots that changed hands since this operator started.
    pub moved_slots: u64,
}

impl Metrics {
    /// Counts a reconciliation of a cache: how long it took, and why it failed if it did.
    pub fn reconciled(&self, namespace: &str, name: &str, took: Duration, error: Option<&Error>) {
        self.reconciles.fetch_add(1, Ordering::Relaxed);
        self.duration.record(took);
        if let Some(error) = error
            && let Some(index) = Error::REASONS.iter().position(|reason| *reason == error.reason())
        {
            self.errors[index].fetch_add(1, Ordering::Relaxed);
            self.caches().entry((namespace.to_owned(), name.to_owned())).or_default().errors[index] += 1;
        }
    }

    /// Counts a write to an object, a ring or a status.
    pub fn wrote(&self) {
        self.writes.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes how many caches wait for their reconciliation.
    pub fn queue(&self, depth: usize) {
        self.queue_depth.store(depth as u64, Ordering::Relaxed);
    }

    /// Notes whether this operator leads.
    pub fn leads(&self, leads: bool) {
        self.is_leader.store(leads.into(), Ordering::Relaxed);
    }

    /// Notes a cache's ring. `moved` slots changed hands since the last note.
    pub fn ring(
        &self,
        namespace: &str,
        name: &str,
        version: u64,
        members: usize,
        moved: u64,
        now: Timestamp,
    ) {
        let mut caches = self.caches();
        let cache = caches.entry((namespace.to_owned(), name.to_owned())).or_default();
        let ring = cache.ring.get_or_insert_default();
        if ring.version != version || ring.changed == Timestamp::default() {
            ring.changed = now;
        }
        ring.version = version;
        ring.members = members;
        ring.moved_slots += moved;
    }

    /// Forgets a cache that is gone.
    pub fn forget(&self, namespace: &str, name: &str) {
        self.caches().remove(&(namespace.to_owned(), name.to_owned()));
    }

    /// Everything in Prometheus' text format.
    pub fn prometheus(&self, now: Timestamp) -> String {
        let mut text = String::with_capacity(8 << 10);
        let load = |number: &AtomicU64| number.load(Ordering::Relaxed);
        head(&mut text, "reconciles_total", "counter", "Reconciliations that ended.");
        line(&mut text, "reconciles_total", "", load(&self.reconciles));
        head(&mut text, "reconcile_errors_total", "counter", "Of those, the ones that failed, by reason.");
        for (reason, count) in Error::REASONS.iter().zip(&self.errors) {
            line(&mut text, "reconcile_errors_total", &format!("{{reason=\"{reason}\"}}"), load(count));
        }
        head(&mut text, "writes_total", "counter", "Objects, rings and statuses written.");
        line(&mut text, "writes_total", "", load(&self.writes));
        head(&mut text, "queue_depth", "gauge", "Caches that wait for their reconciliation.");
        line(&mut text, "queue_depth", "", load(&self.queue_depth));
        head(&mut text, "leader", "gauge", "1 while this operator leads.");
        line(&mut text, "leader", "", load(&self.is_leader));
        head(
            &mut text,
            "reconcile_duration_seconds",
            "histogram",
            "From the start of a reconciliation to its end.",
        );
        self.duration.write(&mut text, "reconcile_duration_seconds");
        let caches = self.caches();
        // Names of Kubernetes objects need no escapes.
        let labels =
            |(namespace, name): &(String, String)| format!("namespace=\"{namespace}\",name=\"{name}\"");
        let metric = "cache_reconcile_errors_total";
        head(&mut text, metric, "counter", "Failed reconciliations of a cache, by reason.");
        for (key, cache) in &*caches {
            for (reason, count) in Error::REASONS.iter().zip(cache.errors).filter(|(_, count)| *count > 0) {
                line(&mut text, metric, &format!("{{{},reason=\"{reason}\"}}", labels(key)), count);
            }
        }
        type Value = fn(&Ring, Timestamp) -> u64;
        let values: [(&str, &str, &str, Value); 4] = [
            ("ring_version", "gauge", "The version of a cache's published ring.", |ring, _| ring.version),
            ("ring_members", "gauge", "Servers in it.", |ring, _| ring.members as u64),
            (
                "ring_age_seconds",
                "gauge",
                "Time since it changed, or since the operator started.",
                |ring, now| u64::try_from(now.duration_since(ring.changed).as_secs()).unwrap_or(0),
            ),
            (
                "ring_moved_slots_total",
                "counter",
                "Slots that changed hands since the operator started.",
                |ring, _| ring.moved_slots,
            ),
        ];
        for (metric, kind, help, value) in values {
            head(&mut text, metric, kind, help);
            for (key, ring) in caches.iter().filter_map(|(key, cache)| Some((key, cache.ring.as_ref()?))) {
                line(&mut text, metric, &format!("{{{}}}", labels(key)), value(ring, now));
            }
        }
        text
    }

    fn caches(&self) -> MutexGuard<'_, BTreeMap<(String, String), Cache>> {
        // Numbers stay numbers, whoever panicked.
        self.caches.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Default, Debug)]
struct Histogram {
    buckets: [AtomicU64; BUCKETS_US.len() + 1],
    sum_us: AtomicU64,
}

impl Histogram {
    fn record(&self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let index = BUCKETS_US.partition_point(|end| *end < us);
        self.buckets[index].fetch_add(1, Ordering::Relaxed);
        self.sum_us.fetch_add(us, Ordering::Relaxed);
    }

    fn write(&self, text: &mut String, name: &str) {
        let mut count = 0;
        for (index, bucket) in self.buckets.iter().enumerate() {
            count += bucket.load(Ordering::Relaxed);
            let end = BUCKETS_US.get(index).map_or("+Inf".to_owned(), |end| (*end as f64 / 1e6).to_string());
            line(text, &format!("{name}_bucket"), &format!("{{le=\"{end}\"}}"), count);
        }
        let sum = self.sum_us.load(Ordering::Relaxed) as f64 / 1e6;
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{PREFIX}{name}_sum {sum}");
        line(text, &format!("{name}_count"), "", count);
    }
}

fn head(text: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(text, "# HELP {PREFIX}{name} {help}\n# TYPE {PREFIX}{name} {kind}");
}

fn line(text: &mut String, name: &str, labels: &str, value: u64) {
    let _ = writeln!(text, "{PREFIX}{name}{labels} {value}");
}

const PREFIX: &str = "kvcache_operator_";
/// From what an unchanged object takes to what a slow API server takes.
const BUCKETS_US: [u64; 10] =
    [100, 300, 1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000, 10_000_000];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_stand_in_the_text() {
        let metrics = Metrics::default();
        let error = Error::Conflict { what: "apply".to_owned() };
        metrics.reconciled("ns", "a", Duration::from_micros(200), None);
        metrics.reconciled("ns", "a", Duration::from_secs(20), Some(&error));
        metrics.wrote();
        metrics.queue(7);
        metrics.leads(true);
        let at = |seconds| Timestamp::new(seconds, 0).unwrap();
        metrics.ring("ns", "a", 4, 3, 1365, at(100));
        metrics.ring("ns", "a", 4, 3, 0, at(150));
        let text = metrics.prometheus(at(160));
        for expected in [
            "kvcache_operator_reconciles_total 2",
            "kvcache_operator_reconcile_errors_total{reason=\"conflict\"} 1",
            "kvcache_operator_reconcile_errors_total{reason=\"timeout\"} 0",
            "kvcache_operator_cache_reconcile_errors_total{namespace=\"ns\",name=\"a\",reason=\"conflict\"} 1",
            "kvcache_operator_reconcile_duration_seconds_bucket{le=\"0.0003\"} 1",
            "kvcache_operator_reconcile_duration_seconds_bucket{le=\"+Inf\"} 2",
            "kvcache_operator_writes_total 1",
            "kvcache_operator_queue_depth 7",
            "kvcache_operator_leader 1",
            "kvcache_operator_ring_version{namespace=\"ns\",name=\"a\"} 4",
            "kvcache_operator_ring_members{namespace=\"ns\",name=\"a\"} 3",
            "kvcache_operator_ring_age_seconds{namespace=\"ns\",name=\"a\"} 60",
            "kvcache_operator_ring_moved_slots_total{namespace=\"ns\",name=\"a\"} 1365",
        ] {
            assert!(text.lines().any(|line| line == expected), "{expected} in\n{text}");
        }
        metrics.forget("ns", "a");
        assert!(!metrics.prometheus(at(160)).contains("name=\"a\""));
    }
}
