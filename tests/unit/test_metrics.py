"""Counts on their way from Rust to the log line and to Prometheus."""

from typing import Any

import pytest

pytest.importorskip("vllm")

from aibrix_connector import _native
from aibrix_connector.metrics import COUNTERS, GAUGES, PREFIX, REASONS, CachePromMetrics, CacheStats
from prometheus_client import (  # type: ignore[import-not-found]
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)

from tests.unit.fakes import vllm_config

KINDS: Any = {kind: kind for kind in (Counter, Gauge, Histogram)}


def source(counts: dict[str, Any]) -> CacheStats.Source:
    return CacheStats.Source(lambda: dict(counts), lambda: counts["activity"], {})


def test_counters_are_differences_and_gauges_are_values() -> None:
    counts: dict[str, Any] = {"activity": 1, "hits": 3, "slots_free": 10, "slots": 12, "policy": "s3fifo"}
    stats = source(counts)
    first = stats.take()
    assert first is not None
    assert first.data == {"activity": 1, "hits": 3, "slots_free": 10, "slots": 12}
    counts |= {"activity": 2, "hits": 5, "slots_free": 0}
    second = stats.take()
    assert second is not None
    assert second.data == {"activity": 1, "hits": 2, "slots_free": 0, "slots": 12}
    assert stats.take() is None, "nothing has happened since"


def test_aggregate_adds_counters_and_takes_the_newest_gauge() -> None:
    total = CacheStats(data={"hits": 1, "slots_free": 9})
    total.aggregate(CacheStats(data={"hits": 2, "slots_free": 5, "loaded_bytes": 7}))
    assert total.data == {"hits": 3, "slots_free": 5, "loaded_bytes": 7}
    assert not total.is_empty()
    total.reset()
    assert total.is_empty()


def test_the_log_line_names_what_a_user_looks_for() -> None:
    data = {"queried_tokens": 100, "hit_tokens": 75, "loaded_bytes": 3 << 20, "missed_tokens_evicted": 25}
    line = CacheStats(data=data).reduce()
    assert line["L1 hit ratio"] == 0.75
    assert line["loaded MiB"] == 3.0
    assert line["missed tokens (evicted)"] == 25
    assert "missed tokens (absent)" not in line
    assert CacheStats().reduce()["L1 hit ratio"] == 0.0


def test_every_count_of_the_planner_and_reason_is_a_metric() -> None:
    planner = _native.Planner(namespace=bytes(16), groups=[("full", 16, 0)], slot_blocks=1, hash_tokens=16, ranks=1)
    known = {*GAUGES, *COUNTERS} | {f"{kind}_{reason}" for kind in ("misses", "missed_tokens") for reason in REASONS}
    shown_elsewhere = {"requests"}
    assert set(planner.stats()) - shown_elsewhere <= known
    assert {name.removeprefix("misses_") for name in planner.stats() if name.startswith("misses_")} == set(REASONS)


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> CollectorRegistry:
    """Metrics of this test only."""
    fresh = CollectorRegistry()
    monkeypatch.setattr(REGISTRY, "register", fresh.register)
    return fresh


def prom(labels: dict[int, list[object]]) -> CachePromMetrics:
    return CachePromMetrics(vllm_config(), KINDS, ["model_name", "engine"], labels)


def value(registry: CollectorRegistry, name: str, **labels: str) -> Any:
    return registry.get_sample_value(PREFIX + name, {"model_name": "m", "engine": "0"} | labels)


def test_prometheus(registry: CollectorRegistry) -> None:
    metrics = prom({0: ["m", "0"], 1: ["m", "1"]})
    metrics.observe({"hits": 2, "slots_free": 5, "queried_tokens": 100, "hit_tokens": 25, "unknown": 9})
    metrics.observe({"hits": 1, "slots_free": 4, "queried_tokens": 100, "misses_absent": 1, "missed_tokens_absent": 64})
    metrics.observe({"hits": 40}, 1)
    assert value(registry, "hits_total") == 3
    assert value(registry, "hits_total", engine="1") == 40
    assert value(registry, "slots_free") == 4
    assert value(registry, "hit_ratio") == 0.125
    assert value(registry, "misses_total", reason="absent") == 1
    assert value(registry, "missed_tokens_total", reason="absent") == 64
    text = generate_latest(registry).decode()
    for name in GAUGES:
        assert f"# TYPE {PREFIX}{name} gauge" in text
    for name in COUNTERS:
        assert f"# TYPE {PREFIX}{name} counter" in text or f"# TYPE {PREFIX}{name}_total counter" in text


def test_a_damaged_report_does_not_stop_the_front_end(registry: CollectorRegistry) -> None:
    metrics = prom({0: ["m", "0"]})
    metrics.observe({"hits": -5})
    metrics.observe({"hits": "many"})
    metrics.observe({"hits": 1})
    assert value(registry, "hits_total") == 1
    assert metrics.shield.take_count() == 2


def test_an_engine_that_is_not_known_is_left_out(registry: CollectorRegistry) -> None:
    metrics = prom({0: ["m", "0"]})
    metrics.observe({"hits": 1, "queried_tokens": 5}, 7)
    assert value(registry, "hits_total") == 0
