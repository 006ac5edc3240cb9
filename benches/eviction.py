"""The part `eviction`: hit ratios on the traces in `benches/traces`, against the best policy known and the optimum."""

import argparse
import json
import statistics
import subprocess
from dataclasses import dataclass
from pathlib import Path

from benches.machine import ROOT
from benches.rows import Row, row
from benches.tool import kvcache

TRACES = ROOT / "benches" / "traces"
POLICIES = ("lru", "s3fifo", "default")
TOLERANCE, SMALL_GAIN = 0.002, 0.005
"""What the default may lose to the best known, and what it has to gain at `SMALL_SHARE` of the footprint and below."""
SMALL_SHARE = 0.021


@dataclass(frozen=True)
class Trace:
    """A trace and the best block hit ratio that is known of each capacity."""

    name: str
    file: str
    distinct: int
    best_known: dict[int, float]
    """Of FIFO, LRU, LRU by leaves, SLRU, S3-FIFO, S3-FIFO by leaves and ARC, measured elsewhere by the same rule."""


SET = (
    Trace(
        "conversation",
        "conversation_trace.jsonl.zst",
        182_790,
        {913: 0.0553, 1827: 0.0760, 3655: 0.1087, 9139: 0.2121, 18279: 0.2841, 36558: 0.3453, 91395: 0.3631},
    ),
    Trace(
        "synthetic",
        "synthetic_trace.jsonl.zst",
        43_924,
        {439: 0.0390, 2196: 0.1586, 4392: 0.2697, 8784: 0.4055, 21962: 0.6035},
    ),
    Trace(
        "agentic coding",
        "agentic_coding_trace.jsonl.zst",
        71_962,
        {359: 0.1464, 719: 0.2977, 1439: 0.4692, 3598: 0.7867, 7196: 0.9192, 14392: 0.9496},
    ),
)


def eviction(path: Path, arguments: argparse.Namespace) -> list[Row]:
    """A row for each trace and capacity, and the share of the gap between LRU and the optimum that closes."""
    rows: list[Row] = []
    for trace in SET:
        command: list[str | Path] = [kvcache(arguments), "replay", TRACES / trace.file, "--json"]
        command += ["--policy", ",".join(POLICIES), "--capacity", ",".join(map(str, trace.best_known))]
        answer = subprocess.run(command, check=True, capture_output=True, text=True)
        ratios: dict[int, dict[str, float]] = {}
        for line in answer.stdout.splitlines():
            one = json.loads(line)
            at = ratios.setdefault(one["capacity_blocks"], {"optimum": one["optimum"]["block_hit_ratio"]})
            at[one["policy"]] = one["block_hit_ratio"]
        rows += [trace_row(trace, capacity, at) for capacity, at in ratios.items()]
    shares = [gap_share(one.details["ratios"]) for one in rows]
    reached = statistics.mean(shares)
    spread = f"{min(shares):.2f}..{max(shares):.2f} of {len(shares)} rows"
    what = "share of the gap between LRU (by leaves) and the optimum that the default closes, mean"
    return [*rows, row(what, ">= 0.333", f"{reached:.3f}", spread, reached >= 1 / 3)]


def trace_row(trace: Trace, capacity: int, ratios: dict[str, float]) -> Row:
    """One capacity of a trace."""
    share = capacity / trace.distinct
    best = trace.best_known[capacity]
    least = best + SMALL_GAIN if share < SMALL_SHARE else best - TOLERANCE
    others = ", ".join(f"{name} {ratios[name]:.4f}" for name in ("lru", "s3fifo", "optimum"))
    details = {"trace": trace.name, "capacity": capacity, "share": share, "best_known": best, "ratios": ratios}
    what = f"block hit ratio of the default, {trace.name}, {capacity:,} blocks ({100 * share:.1f} %)"
    return row(what, f">= {least:.4f}", f"{ratios['default']:.4f}", others, ratios["default"] >= least, **details)


def gap_share(ratios: dict[str, float]) -> float:
    """How much of what lies between LRU and the optimum the default has."""
    gap = ratios["optimum"] - ratios["lru"]
    return (ratios["default"] - ratios["lru"]) / gap if gap > 0 else 0.0
