//! Counters of a server, and their text for Prometheus.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kvcache_rdma::verbs_server::VerbsServerStats;

use crate::store::StoreStats;

/// What the server counts. All loads and stores are relaxed: each number stands for itself.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    pub(crate) hits: Counter,
    pub(crate) misses: Counter,
    pub(crate) puts: Counter,
    pub(crate) puts_refused: Counter,
    pub(crate) deletes: Counter,
    pub(crate) received_bytes: Counter,
    pub(crate) sent_bytes: Counter,
    pub(crate) shared_written_bytes: Counter,
    pub(crate) shared_read_bytes: Counter,
    pub(crate) leases_expired: Counter,
    pub(crate) connections_total: Counter,
    pub(crate) connections: Counter,
    errors: [Counter; Fault::ALL.len()],
    requests: [Histogram; Operation::ALL.len()],
}

/// What others count.
#[derive(Debug, Default)]
pub(crate) struct Stats {
    pub(crate) store: StoreStats,
    pub(crate) rdma: VerbsServerStats,
}

/// A number that goes up, or both ways where it is a gauge.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, number: u64) {
        self.0.fetch_add(number, Ordering::Relaxed);
    }

    pub(crate) fn subtract(&self, number: u64) {
        self.0.fetch_sub(number, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Why a connection, or a request, was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fault {
    /// The stream is not, or no longer, in this protocol.
    BadMagic,
    /// A request that cannot be read.
    Malformed,
    /// A request above a limit.
    TooLarge,
    /// No token, or a wrong one.
    Unauthorized,
    /// Too slow.
    Timeout,
    /// No TLS where TLS is asked for.
    Tls,
    /// More connections than allowed.
    ConnectionLimit,
    /// The connection broke in the middle of a request or an answer.
    Disconnected,
}

impl Fault {
    const ALL: [Self; 8] = [
        Self::BadMagic,
        Self::Malformed,
        Self::TooLarge,
        Self::Unauthorized,
        Self::Timeout,
        Self::Tls,
        Self::ConnectionLimit,
        Self::Disconnected,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::BadMagic => "bad_magic",
            Self::Malformed => "malformed",
            Self::TooLarge => "too_large",
            Self::Unauthorized => "unauthorized",
            Self::Timeout => "timeout",
            Self::Tls => "tls",
            Self::ConnectionLimit => "connection_limit",
            Self::Disconnected => "disconnected",
        }
    }
}

/// Requests whose durations are told apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Operation {
    Exists,
    Match,
    Get,
    Put,
    Delete,
    Other,
}

impl Operation {
    const ALL: [Self; 6] = [Self::Exists, Self::Match, Self::Get, Self::Put, Self::Delete, Self::Other];

    fn name(self) -> &'static str {
        match self {
            Self::Exists => "exists",
            Self::Match => "match",
            Self::Get => "get",
            Self::Put => "put",
            Self::Delete => "delete",
            Self::Other => "other",
        }
    }
}

/// Upper ends of the buckets in microseconds; one more takes what is above.
const BUCKETS_US: [u64; 14] =
    [25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 25_000, 50_000, 100_000, 500_000, 2_000_000];

#[derive(Debug, Default)]
struct Histogram {
    buckets: [AtomicU64; BUCKETS_US.len() + 1],
    sum_us: AtomicU64,
}

impl Metrics {
    pub(crate) fn fault(&self, fault: Fault) {
        self.errors[fault as usize].add(1);
    }

    /// A request that took so long, from its head's last byte until its answer was ready to leave.
    pub(crate) fn request(&self, operation: Operation, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let histogram = &self.requests[operation as usize];
        let bucket = BUCKETS_US.partition_point(|end| *end < micros);
        histogram.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        histogram.sum_us.fetch_add(micros, Ordering::Relaxed);
    }

    /// Names (without `kvcache_server_`), helps and values of everything that is one number.
    pub(crate) fn numbers(&self, stats: &Stats) -> [(&'static str, Kind, &'static str, u64); 27] {
        let Stats { store, rdma } = stats;
        use Kind::{Counter, Gauge};
        [
            ("values", Gauge, "Values that can be found.", store.values),
            ("value_bytes", Gauge, "Bytes of their contents.", store.value_bytes),
            (
                "used_bytes",
                Gauge,
                "Bytes of the pool in use, by values and by puts under way.",
                store.used_bytes,
            ),
            ("capacity_bytes", Gauge, "Bytes of the pool.", store.capacity_bytes),
            ("hits_total", Counter, "Gets that found their value.", self.hits.get()),
            ("misses_total", Counter, "Gets that did not.", self.misses.get()),
            ("puts_total", Counter, "Values stored.", self.puts.get()),
            (
                "puts_refused_total",
                Counter,
                "Values refused: no room, too large, empty, wrong checksum.",
                self.puts_refused.get(),
            ),
            ("deletes_total", Counter, "Values deleted by clients.", self.deletes.get()),
            ("evictions_total", Counter, "Values evicted to make room.", store.evictions),
            (
                "evictions_in_use_total",
                Counter,
                "Of those, values that were being sent.",
                store.evictions_in_use,
            ),
            ("received_bytes_total", Counter, "Bytes of values received.", self.received_bytes.get()),
            ("sent_bytes_total", Counter, "Bytes of values sent.", self.sent_bytes.get()),
            (
                "shared_written_bytes_total",
                Counter,
                "Bytes of values that clients of this host wrote to the pool themselves.",
                self.shared_written_bytes.get(),
            ),
            (
                "shared_read_bytes_total",
                Counter,
                "Bytes of values whose place clients of this host were told.",
                self.shared_read_bytes.get(),
            ),
            (
                "leases_expired_total",
                Counter,
                "Leases of values that a client of this host did not give back in time.",
                self.leases_expired.get(),
            ),
            ("connections", Gauge, "Connections now.", self.connections.get()),
            ("connections_total", Counter, "Connections accepted.", self.connections_total.get()),
            ("rdma_connections", Gauge, "Queue pairs now.", rdma.connections),
            ("rdma_connections_total", Counter, "Queue pairs connected.", rdma.connections_total),
            (
                "rdma_exchanges_refused_total",
                Counter,
                "Queue pairs refused: malformed, beyond a limit, or by the device.",
                rdma.exchanges_refused,
            ),
            ("rdma_stored_values_total", Counter, "Values stored over RDMA.", rdma.stored_values),
            ("rdma_received_bytes_total", Counter, "Bytes of values stored over RDMA.", rdma.received_bytes),
            ("rdma_loaded_values_total", Counter, "Values loaded over RDMA.", rdma.loaded_values),
            ("rdma_sent_bytes_total", Counter, "Bytes of values loaded over RDMA.", rdma.sent_bytes),
            (
                "rdma_requests_refused_total",
                Counter,
                "Requests over RDMA refused: a key is missing, no room, malformed.",
                rdma.requests_refused,
            ),
            (
                "rdma_pinned_bytes",
                Gauge,
                "Memory pinned for RDMA: the pool, and the buffers of queue pairs.",
                rdma.pinned_bytes,
            ),
        ]
    }

    /// Everything in Prometheus' text format.
    pub(crate) fn prometheus(&self, stats: &Stats) -> String {
        let mut text = String::with_capacity(8 << 10);
        // Writing to a string cannot fail.
        for (name, kind, help, value) in self.numbers(stats) {
            let kind = kind.name();
            let _ = writeln!(
                text,
                "# HELP {PREFIX}{name} {help}\n# TYPE {PREFIX}{name} {kind}\n{PREFIX}{name} {value}"
            );
        }
        let name = "errors_total";
        let _ = writeln!(text, "# HELP {PREFIX}{name} Requests and connections refused, by reason.");
        let _ = writeln!(text, "# TYPE {PREFIX}{name} counter");
        for fault in Fault::ALL {
            let count = self.errors[fault as usize].get();
            let _ = writeln!(text, "{PREFIX}{name}{{reason=\"{}\"}} {count}", fault.name());
        }
        let name = "request_duration_seconds";
        let _ = writeln!(text, "# HELP {PREFIX}{name} From a request's head to its answer, by operation.");
        let _ = writeln!(text, "# TYPE {PREFIX}{name} histogram");
        for operation in Operation::ALL {
            self.requests[operation as usize].write(&mut text, name, operation.name());
        }
        text
    }
}

impl Histogram {
    fn write(&self, text: &mut String, name: &str, operation: &str) {
        let mut count = 0;
        for (index, bucket) in self.buckets.iter().enumerate() {
            count += bucket.load(Ordering::Relaxed);
            let end = match BUCKETS_US.get(index) {
                Some(end) => (*end as f64 / 1e6).to_string(),
                None => "+Inf".to_owned(),
            };
            let _ = writeln!(text, "{PREFIX}{name}_bucket{{operation=\"{operation}\",le=\"{end}\"}} {count}");
        }
        let sum = self.sum_us.load(Ordering::Relaxed) as f64 / 1e6;
        let _ = writeln!(text, "{PREFIX}{name}_sum{{operation=\"{operation}\"}} {sum}");
        let _ = writeln!(text, "{PREFIX}{name}_count{{operation=\"{operation}\"}} {count}");
    }
}

/// Whether a number only grows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Counter,
    Gauge,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
        }
    }
}

const PREFIX: &str = "kvcache_server_";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_fall_into_their_buckets_and_buckets_add_up() {
        let metrics = Metrics::default();
        for micros in [0, 25, 26, 3_000_000] {
            metrics.request(Operation::Get, Duration::from_micros(micros));
        }
        metrics.fault(Fault::Tls);
        let text = metrics.prometheus(&Stats::default());
        for line in [
            "kvcache_server_request_duration_seconds_bucket{operation=\"get\",le=\"0.000025\"} 2",
            "kvcache_server_request_duration_seconds_bucket{operation=\"get\",le=\"0.00005\"} 3",
            "kvcache_server_request_duration_seconds_bucket{operation=\"get\",le=\"2\"} 3",
            "kvcache_server_request_duration_seconds_bucket{operation=\"get\",le=\"+Inf\"} 4",
            "kvcache_server_request_duration_seconds_count{operation=\"get\"} 4",
            "kvcache_server_errors_total{reason=\"tls\"} 1",
            "kvcache_server_errors_total{reason=\"timeout\"} 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing:\n{text}");
        }
    }

    #[test]
    fn every_metric_and_reason_is_documented() {
        let page = include_str!("../../docs/server.md");
        let text = Metrics::default().prometheus(&Stats::default());
        let names = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
        let reasons = Fault::ALL.iter().map(|fault| fault.name());
        for name in names.chain(reasons) {
            assert!(page.contains(&format!("`{name}`")) || page.contains(&format!("`{name}{{")), "{name}");
        }
    }

    /// The arrays are indexed by discriminant.
    #[test]
    fn every_label_has_its_place() {
        assert!(Fault::ALL.iter().enumerate().all(|(index, fault)| *fault as usize == index));
        assert!(Operation::ALL.iter().enumerate().all(|(index, operation)| *operation as usize == index));
    }
}
