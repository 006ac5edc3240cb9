//! What has happened, as one line of JSON.

use std::time::Duration;

use kvcache_core::remote::RemoteFailure;
use kvcache_core::ring_client::OpCounts;
use kvcache_rdma::members::Members;
use kvcache_rdma::ring::RingStore;
use kvcache_rdma::tcp::FaultReason;
use serde_json::{Map, Value, json};

use crate::items::{Ends, Items};
use crate::losses::Losses;
use crate::questions::Questions;

/// A report of everything since the start; latencies are of the time since the last one.
pub(crate) fn report(
    event: &str,
    elapsed: Duration,
    (items, questions): (&mut Items, &Questions),
    store: &RingStore,
    members: &Members,
) -> Value {
    let stats = store.stats();
    let servers: Map<String, Value> = stats
        .client
        .servers
        .iter()
        .filter_map(|server| {
            let (address, connections) = stats.connections.get(&server.server)?;
            let said = json!({
                "breaker": server.breaker.name(),
                "opened": server.opened,
                "probes": server.probes,
                "get": counted(&server.get),
                "put": counted(&server.put),
                "connections": connections.open,
                "faults": named(FaultReason::ALL.map(FaultReason::name).into_iter().zip(connections.faults)),
                "last_fault": connections.last_fault,
            });
            Some((address.clone(), said))
        })
        .collect();
    let status = members.status();
    let mut latencies = std::mem::take(&mut items.latencies);
    latencies.sort_unstable();
    let at = |share: f64| {
        let index = (latencies.len() as f64 * share) as usize;
        latencies
            .get(index.min(latencies.len().saturating_sub(1)))
            .map_or(0.0, |time| time.as_secs_f64() * 1e3)
    };
    let violations = items.violations;
    json!({
        "event": event,
        "time_s": elapsed.as_secs_f64(),
        "submitted": items.submitted,
        "ended": items.ended(),
        "open": items.in_flight(),
        "oldest_s": items.oldest().max(questions.oldest()).as_secs_f64(),
        "get": ends(&items.get),
        "put": ends(&items.put),
        "verified_bytes": items.verified_bytes,
        "latency_ms": {"p50": at(0.5), "p99": at(0.99), "max": at(1.0)},
        "violations": {
            "wrong_bytes": violations.wrong_bytes,
            "unknown_ends": violations.unknown_ends,
            "late": violations.late,
            "written_after_end": violations.written_after_end,
            "wrong_answers": questions.wrong,
            "unknown_answers": questions.unknown_answers,
            "late_answers": questions.late,
        },
        "questions": {
            "asked": questions.asked,
            "answered": questions.answered,
            "present": questions.present,
            "slowest_ms": questions.slowest.as_secs_f64() * 1e3,
        },
        "client": {
            "get": counted(&stats.client.get),
            "put": counted(&stats.client.put),
            "open": stats.client.transfers_open,
            "stale_ends": stats.client.stale_ends,
            "member_changes": stats.member_changes,
        },
        "losses": items.losses.as_ref().map(Losses::report),
        "servers": servers,
        "members": {"generation": status.generation, "failures": status.failures, "last_error": status.last_error},
    })
}

fn ends(ends: &Ends) -> Value {
    json!({"done": ends.done, "missing": ends.missing, "failed": failed(ends.failed)})
}

fn counted(counts: &OpCounts) -> Value {
    json!({"done": counts.done, "missing": counts.missing, "failed": failed(counts.failed)})
}

fn failed(counts: [u64; RemoteFailure::ALL.len()]) -> Value {
    named(RemoteFailure::ALL.map(RemoteFailure::name).into_iter().zip(counts))
}

fn named<'a>(counts: impl Iterator<Item = (&'a str, u64)>) -> Value {
    counts.map(|(name, count)| (name.to_owned(), json!(count))).collect::<Map<_, _>>().into()
}
