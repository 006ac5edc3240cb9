"""Statistics: counted in Rust, sent as differences, shown in the log line and in Prometheus."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from prometheus_client import Counter, Gauge  # type: ignore[import-not-found]
from vllm.config import VllmConfig
from vllm.distributed.kv_transfer.kv_connector.v1.metrics import (
    KVConnectorPromMetrics,
    KVConnectorStats,
    PromMetric,
    PromMetricT,
)

from aibrix_connector.shield import Shield, returning, shielded

GAUGES = {
    "slots": "Slots of L1.",
    "slots_ready": "Slots whose block is a hit.",
    "slots_free": "Slots that can be filled at once.",
    "slots_filling": "Slots being filled.",
    "slots_draining": "Slots of cancelled work that is not acknowledged yet.",
    "slots_pinned": "Slots that loads are using, or that hold what has come from L2 for requests that wait.",
    "slots_unusable": "Empty slots that cannot be filled yet: without memory, or not pinned.",
    "metadata_bytes": "Memory of the directory and the eviction policy.",
    "jobs_in_flight": "Jobs that are not acknowledged by every rank: the queue's depth.",
}
"""Values that are shown as they are. Everything else is a counter."""

COUNTERS = {
    "hits": "Requests for which blocks were loaded.",
    "hit_tokens": "Tokens loaded instead of computed.",
    "queried_tokens": "Tokens asked about beyond the engine's own cache.",
    "stored_blocks": "Blocks stored by all ranks.",
    "already_stored_blocks": "Blocks offered for storing that were there already.",
    "evicted": "Blocks evicted for room.",
    "refused": "Blocks dropped because everything else was in use.",
    "over_share": "Blocks dropped because their request had evicted its share, a quarter of the slots.",
    "not_worth": "Blocks dropped because what would have had to leave was likelier to be used again.",
    "failed_stores": "Blocks that some rank could not store, or that a reset overtook.",
    "failed_loads": "Loads that failed; their tokens were computed instead.",
    "adopted_blocks": "Blocks found in the slab after a restart.",
    "loaded_bytes": "Bytes copied from L1 into the engine.",
    "load_ns": "Nanoseconds from the start of loads to their end.",
    "loads": "Load jobs that ended, per rank.",
    "offloaded_bytes": "Bytes copied from the engine into L1.",
    "offload_ns": "Nanoseconds from the start of offloads to their end.",
    "offloads": "Offload jobs that ended, per rank.",
    "failed_offloads": "Offload jobs that failed, per rank.",
    "wait_ns": "Nanoseconds that the engine's thread waited for layers.",
    "l2_asked_blocks": "Blocks that L2 was asked about.",
    "l2_present_blocks": "Blocks that L2 had when a request asked.",
    "l2_fetch_jobs": "Jobs that bring blocks from L2.",
    "l2_fetched_blocks": "Blocks that came from L2 to every rank.",
    "l2_failed_fetches": "Blocks that were sent for and did not come, or not intact: they shorten a match.",
    "l2_cancelled_fetches": "Jobs cancelled because their requests had gone, or had begun without them.",
    "l2_refused_fetches": "Requests for which nothing was sent for at first because L1 had no room.",
    "l2_break_even": "Requests for which nothing was sent for because computing is measured to be faster.",
    "l2_hit_tokens": "Tokens loaded from blocks that had come from L2 for it.",
    "l2_demoted_blocks": "Blocks that every rank has brought to L2.",
    "l2_already_demoted": "Blocks that L2 had already when they were to go there.",
    "l2_failed_demotions": "Blocks that some rank could not bring to L2.",
    "l2_dropped_demotions": "Blocks that were to go to L2 and did not: too many at once, or their slots were needed.",
    "l2_fetched_bytes": "Bytes that came from L2, over the ranks.",
    "l2_fetch_ns": "Nanoseconds during which any were on their way.",
    "l2_demoted_bytes": "Bytes brought to L2, over the ranks.",
    "l2_missing_values": "Values that L2 was said to have and had not, over the ranks.",
    "l2_unfit_blocks": "Blocks left out of L2 because L1 could not vouch for them.",
    "internal_errors": "Errors inside the connector that became misses; each of the first is in the log.",
}
"""Values that only grow."""

REMOTE_FAILURES = ("unreachable", "timed_out", "corrupt", "refused", "overloaded", "cancelled")
"""Why a value did not move between L1 and L2."""

REASONS = ("absent", "evicted", "late", "not_ready", "too_short", "break_even", "opt_out", "declined", "unknown")
"""Why tokens were not loaded: see docs/troubleshooting.md."""

PREFIX = "vllm:kvcache_"


class CacheStats(KVConnectorStats):
    """Differences since the last report, by name; gauges as they are."""

    @dataclass
    class Source:
        """Something that counts, and what it said last."""

        read: Callable[[], dict[str, Any]]
        activity: Callable[[], int]
        last: dict[str, Any]
        seen: int = 0

        def take(self) -> "CacheStats | None":
            """Returns what has changed since the last call, or None. Costs a fraction of a microsecond then."""
            activity = self.activity()
            if activity == self.seen:
                return None
            self.seen = activity
            now = self.read()
            data = {
                name: value if name in GAUGES else value - self.last.get(name, 0)
                for name, value in now.items()
                if not isinstance(value, str)
            }
            self.last = now
            return CacheStats(data={name: value for name, value in data.items() if value or name in GAUGES})

    data: dict[str, Any]

    def __getitem__(self, name: str) -> Any:
        """What vLLM 0.29's MultiConnector reads it by, for whom statistics are what another process sent: a mapping."""
        return getattr(self, name)

    def reset(self) -> None:
        """Forgets everything."""
        self.data = {}

    def aggregate(self, other: KVConnectorStats) -> "CacheStats":
        """Adds another report's counters and takes its gauges."""
        for name, value in other.data.items():
            self.data[name] = value if name in GAUGES else self.data.get(name, 0) + value
        return self

    def reduce(self) -> dict[str, int | float]:
        """Returns the interval in a few words, for the log line."""
        data = self.data
        queried, hit = data.get("queried_tokens", 0), data.get("hit_tokens", 0)
        out: dict[str, int | float] = {
            "L1 hit tokens": hit,
            "L1 queried tokens": queried,
            "L1 hit ratio": round(hit / queried, 3) if queried else 0.0,
            "stored blocks": data.get("stored_blocks", 0),
            "dropped blocks": sum(data.get(name, 0) for name in ("refused", "over_share", "not_worth")),
            "evicted blocks": data.get("evicted", 0),
            "loaded MiB": round(data.get("loaded_bytes", 0) / (1 << 20), 1),
            "offloaded MiB": round(data.get("offloaded_bytes", 0) / (1 << 20), 1),
            "slots ready": data.get("slots_ready", 0),
        }
        if "l2_asked_blocks" in data:
            out["L2 hit tokens"] = data.get("l2_hit_tokens", 0)
            out["L2 fetched MiB"] = round(data.get("l2_fetched_bytes", 0) / (1 << 20), 1)
            out["L2 demoted MiB"] = round(data.get("l2_demoted_bytes", 0) / (1 << 20), 1)
        for reason in REASONS:
            if tokens := data.get(f"missed_tokens_{reason}", 0):
                out[f"missed tokens ({reason})"] = tokens
        return out

    def is_empty(self) -> bool:
        """Whether there is nothing to report."""
        return not self.data


class CachePromMetrics(KVConnectorPromMetrics):
    """The metrics of ``/metrics``."""

    def __init__(
        self,
        vllm_config: VllmConfig,
        metric_types: dict[type[PromMetric], type[PromMetricT]],
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> None:
        super().__init__(vllm_config, metric_types, labelnames, per_engine_labelvalues)
        self._metrics: dict[str, dict[int, Any]] = {}
        counter: Any = metric_types[Counter]
        gauge: Any = metric_types[Gauge]
        for name, text in GAUGES.items():
            self._add(name, gauge(name=PREFIX + name, documentation=text, labelnames=labelnames))
        for name, text in COUNTERS.items():
            self._add(name, counter(name=PREFIX + name, documentation=text, labelnames=labelnames))
        text = "Tokens that were not loaded, by reason."
        missed = counter(name=PREFIX + "missed_tokens", documentation=text, labelnames=[*labelnames, "reason"])
        for reason in REASONS:
            self._metrics[f"missed_tokens_{reason}"] = {
                engine: missed.labels(*labels, reason) for engine, labels in per_engine_labelvalues.items()
            }
        text = "Requests for which nothing was loaded, by reason."
        misses = counter(name=PREFIX + "misses", documentation=text, labelnames=[*labelnames, "reason"])
        for reason in REASONS:
            self._metrics[f"misses_{reason}"] = {
                engine: misses.labels(*labels, reason) for engine, labels in per_engine_labelvalues.items()
            }
        text = "Values that did not move between L1 and L2, by reason."
        failed = counter(name=PREFIX + "l2_failures", documentation=text, labelnames=[*labelnames, "reason"])
        for reason in REMOTE_FAILURES:
            self._metrics[f"l2_failures_{reason}"] = {
                engine: failed.labels(*labels, reason) for engine, labels in per_engine_labelvalues.items()
            }
        self.shield = Shield()
        self._ratio: dict[int, tuple[int, int]] = {}
        text = "Share of the queried tokens that were loaded, since the start."
        self._add("hit_ratio", gauge(name=PREFIX + "hit_ratio", documentation=text, labelnames=labelnames))

    def _add(self, name: str, metric: Any) -> None:
        self._metrics[name] = {engine: metric.labels(*labels) for engine, labels in self.per_engine_labelvalues.items()}

    def poison(self) -> None:
        """No native code runs here."""

    @shielded(returning(None))
    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        """Records one report."""
        for name, value in transfer_stats_data.items():
            metric = self._metrics.get(name, {}).get(engine_idx)
            if metric is None:
                continue
            if name in GAUGES:
                metric.set(value)
            else:
                metric.inc(value)
        hit, queried = self._ratio.get(engine_idx, (0, 0))
        hit += transfer_stats_data.get("hit_tokens", 0)
        queried += transfer_stats_data.get("queried_tokens", 0)
        self._ratio[engine_idx] = hit, queried
        ratio = self._metrics["hit_ratio"].get(engine_idx)
        if queried and ratio is not None:
            ratio.set(hit / queried)


def reference() -> str:
    """Returns the Markdown table of all metrics."""
    lines = ["| metric | type | meaning |", "|---|---|---|"]
    lines += [f"| `{PREFIX}{name}` | gauge | {text} |" for name, text in GAUGES.items()]
    lines += [f"| `{PREFIX}{name}_total` | counter | {text} |" for name, text in COUNTERS.items()]
    lines.append(f"| `{PREFIX}hit_ratio` | gauge | Share of the queried tokens that were loaded, since the start. |")
    for name, text in (("misses", "Requests for which nothing was loaded"), ("missed_tokens", "Tokens not loaded")):
        lines.append(f"| `{PREFIX}{name}_total{{reason=…}}` | counter | {text}, by reason: {', '.join(REASONS)}. |")
    lines.append(
        f"| `{PREFIX}l2_failures_total{{reason=…}}` | counter | Values that did not move between L1 and L2, by reason: "
        f"{', '.join(REMOTE_FAILURES)}. |"
    )
    return "\n".join(lines) + "\n"
