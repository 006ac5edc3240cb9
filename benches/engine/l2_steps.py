"""What L2 costs the engine's thread in each step: Python and Rust together, in a real engine.

    python -m benches.engine.l2_steps [--quick] [--json FILE] [--threads N]

Two engines decode one long answer, beside which prompts come whose heads have been seen. One finds them in L1, which
is large; the other one, whose L1 is small, in L2: it asks for them, fetches them into L1, and evicts others. What its
hooks take longer is L2's. The bytes move on a thread of their own.
"""

import argparse
import os
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from benches.engine.measures import DTYPE, in_turn, warm_up
from benches.engine.sides import preload, sides
from benches.rows import Row, row, write
from tests.e2e.cache_server import CacheServer
from tests.e2e.options import EngineOptions, engine_environment
from tests.models import TINY

PROMPTS, TOKENS = 24, 257
"""Prompts that come again in turn, and the tokens of each: eight slots of 32 and one to compute."""

SLOT_BYTES = 4 * 2 * 2 * 64 * 4 * 32
"""Keys and values of 4 layers and 2 heads in float32, 32 tokens."""

EVERY = 20
"""Steps from one prompt to the next."""

LIMIT_US = 20

OPTIONS = EngineOptions(
    model=TINY.name, dtype=DTYPE, kv_bytes=64 << 20, requests_max=4, step_tokens_max=512, prefix_caching=False
)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few rounds: shows that it runs, not how fast")
    parser.add_argument("--threads", type=int, default=1, help="compute threads of an engine (default 1)")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    arguments = parser.parse_args()
    os.environ.update(engine_environment(threads=arguments.threads))
    TINY.folder()
    preload()
    with tempfile.TemporaryDirectory(prefix="kvcache-bench-") as folder:
        logs = Path(folder)
        with CacheServer(logs / "server.log") as server:
            rows = measure(server, logs, 1 if arguments.quick else 8)
    write(rows, arguments.json)
    return 0


def measure(server: CacheServer, logs: Path, rounds: int) -> list[Row]:
    """Steps of both engines in turn."""
    near = {"capacity": "64MiB", "slot_blocks": 1, "eviction": "lru", "load_mode": "layerwise"}
    # Room for half of the prompts: when one comes again, it has left.
    far = near | {
        "capacity": PROMPTS // 2 * 8 * SLOT_BYTES,
        "remote": f"tcp://{server.address}",
        "weights_digest": "bench",
        "remote_presence_wait_ms": 1000,
    }
    steps: dict[str, list[float]] = {"near": [], "far": []}
    with sides(logs, near=replace(OPTIONS, connector=near), far=replace(OPTIONS, connector=far)) as engines:
        warm_up(engines, lambda side: [side.ask("first_token", seed, TOKENS, 1) for seed in range(PROMPTS)])
        for side in engines.values():
            side.ask("time_hooks", True)
            side.ask("steps_with_requests", list(range(PROMPTS)), TOKENS, EVERY)
        before = engines["far"].ask("counts")["planner"]
        for number in range(rounds):
            for side in in_turn(engines, number):
                run = side.ask("steps_with_requests", list(range(PROMPTS)), TOKENS, EVERY)
                # Whole rounds of steps: the last prompt's is one step short.
                steps[side.name] += run[: len(run) // EVERY * EVERY]
        after = engines["far"].ask("counts")["planner"]
    hits = (after["l2_hit_tokens"] - before["l2_hit_tokens"]) / (rounds * PROMPTS * (TOKENS - 1))
    assert hits > 0.9, f"{hits:.0%} of the tokens came from L2"
    far_us, near_us = steps["far"], steps["near"]
    added = statistics.mean(far_us) - statistics.mean(near_us)
    usual = statistics.median(far_us) - statistics.median(near_us)
    # By their distance from the prompt: where the work is.
    first = {name: [round(statistics.median(us[at::EVERY]), 1) for at in range(4)] for name, us in steps.items()}
    return [
        row("processor time in the connector's hooks that L2 adds to a step, a hit in L2 every "
            f"{EVERY} steps, Python included", f"<= {LIMIT_US} us", f"mean {added:.0f} us, median {usual:.0f} us",
            f"{len(far_us)} steps; with L2 {summary(far_us)}, hits in L1 {summary(near_us)}; {hits:.0%} of the tokens "
            "came from L2",
            added <= LIMIT_US, added_mean_us=added, added_median_us=usual, first_steps_us=first),
    ]  # fmt: skip


def summary(microseconds: list[float]) -> str:
    """A few words on a distribution."""
    tenths, hundredths = statistics.quantiles(microseconds, n=10), statistics.quantiles(microseconds, n=100)
    mean, median = statistics.mean(microseconds), statistics.median(microseconds)
    return f"mean {mean:.0f}, median {median:.0f}, nine of ten {tenths[-1]:.0f}, 99 of 100 {hundredths[-1]:.0f} us"


if __name__ == "__main__":
    sys.exit(main())
