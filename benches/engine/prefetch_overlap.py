"""How well fetches from L2 hide behind compute: prompts whose heads are in a slow L2 and whose tails are computed.

    python -m benches.engine.prefetch_overlap [--quick] [--only NAME]... [--json FILE] [--threads N]

One engine fills a cache server, another one reads it through a proxy that throttles, so that fetching a prompt's head
takes half as long as computing its tail, as long, and twice as long. Shared memory is out of play, because the proxy
listens on a port of its own. vLLM computes a prompt's tail when its whole head is there: alone, a prompt waits for its
fetch and then for its tail. So what can overlap is the fetch of one prompt with the tails of others, and prompts that
come together are measured, against the same number of prompts that come one after the other.
"""

import argparse
import os
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from benches.engine.measures import DTYPE, warm_up
from benches.engine.sides import Side, preload, sides
from benches.rows import Row, row, write
from benches.spread import spread
from tests.e2e.cache_server import CacheServer
from tests.e2e.options import EngineOptions, engine_environment
from tests.e2e.proxy import Proxy
from tests.models import DEMO, MODELS, Model

LAYERS = 4

THIN = Model(
    "thin",
    "Llama, 4 layers, one KV head: much to compute for each byte of KV, so that even a slow L2 is worth waiting for",
    {**DEMO.config, "num_hidden_layers": LAYERS, "num_key_value_heads": 1},
    DEMO.tensors,
)

HEAD, TAIL = 512, 128
"""Tokens of a prompt that are in L2, and those that are computed."""

HEAD_BYTES = HEAD * LAYERS * 2 * THIN.config["head_dim"] * 4
"""KV of a head: keys and values of all layers in float32."""

PROMPTS = 8
"""Prompts that come together."""

SETS = 6
"""Sets of that many heads. They are used in turn, and L1 has room for four: what is used next has left it."""

L1 = {"capacity": 4 * PROMPTS * HEAD_BYTES, "eviction": "lru", "slot_blocks": 1, "load_mode": "layerwise"}

OPTIONS = EngineOptions(
    model=THIN.name, dtype=DTYPE, kv_bytes=64 << 20, tokens_max=2048, step_tokens_max=2048, requests_max=16
)

THROTTLES = {"half": 0.5, "equal": 1.0, "double": 2.0}
"""How long a head is fetched, in times of what its tail takes to compute."""

LIMIT = 1.2


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few rounds: shows that it runs, not how fast")
    parser.add_argument("--only", action="append", choices=list(THROTTLES), help="only this throttle")
    parser.add_argument("--threads", type=int, default=1, help="compute threads of an engine (default 1)")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    arguments = parser.parse_args()
    os.environ.update(engine_environment(threads=arguments.threads))
    MODELS[THIN.name] = THIN
    THIN.folder()
    preload()
    throttles = {name: times for name, times in THROTTLES.items() if name in (arguments.only or THROTTLES)}
    with tempfile.TemporaryDirectory(prefix="kvcache-bench-") as folder:
        logs = Path(folder)
        # Both are started before the engines are forked, and idle until these are there.
        with CacheServer(logs / "server.log") as server, Proxy(("127.0.0.1", server.port)) as proxy:
            fill(server, logs)
            with sides(logs, ours=connected(proxy.address, **L1)) as engines:
                bench = Bench(engines["ours"], proxy)
                rows = bench.run(throttles, 2 if arguments.quick else 9)
    write(rows, arguments.json)
    return 0


def connected(address: str, **connector: Any) -> EngineOptions:
    """An engine that shares its blocks through the server at `address`."""
    # Deadlines that do not matter: what is measured is when requests begin by themselves.
    deadlines = dict.fromkeys(("remote_wait_ms", "remote_timeout_ms", "remote_presence_wait_ms"), 30_000)
    shared = {"remote": f"tcp://{address}", "weights_digest": "bench"}
    return replace(OPTIONS, connector=connector | shared | deadlines)


def fill(server: CacheServer, logs: Path) -> None:
    """Lets an engine compute every head, and another process forget all but what has got to the server."""
    with sides(logs, filler=connected(server.address, **L1 | {"capacity": "256MiB"})) as engines:
        warm_up(engines, lambda side: None)
        for seed in range(SETS * PROMPTS):
            engines["filler"].ask("first_token", seed, HEAD, 1)
        stored = engines["filler"].ask("counts")["store"]["l2_demoted_bytes"]
    assert stored == SETS * PROMPTS * HEAD_BYTES, f"{stored} bytes have got to L2"


class Bench:
    """The engine that loads, behind its proxy."""

    def __init__(self, side: Side, proxy: Proxy) -> None:
        self._side = side
        self._proxy = proxy
        self._next_set = 0
        self._next_tail = 1_000_000

    def run(self, throttles: dict[str, float], rounds: int) -> list[Row]:
        """Measures under each throttle in turn."""
        warm_up({"ours": self._side}, lambda side: side.ask("first_token", 900_000, HEAD + TAIL, 1))
        # The engine learns what computing and fetching cost, and the bench what a tail costs.
        for _ in range(SETS):
            self._hits(together=False)
        tail_s = statistics.median(self._controls(together=False)["first_s"])
        runs: dict[str, list[Run]] = {name: [] for name in throttles}
        for number in range(rounds):
            for name in list(throttles) if number % 2 == 0 else list(throttles)[::-1]:
                self._proxy.bytes_per_s = HEAD_BYTES / (throttles[name] * tail_s)
                print(f"== {name} {number}", file=sys.stderr, flush=True)
                runs[name].append(self._run_once())
        load_s = self._side.ask("copy_seconds", PROMPTS * HEAD_BYTES, 16 << 10)
        return [line for name in runs for line in rows_of(throttles[name], runs[name], load_s)]

    def _run_once(self) -> "Run":
        alone = self._hits(together=False)
        together = self._hits(together=True)
        tails = self._controls(together=True)
        return Run(alone, together, tails)

    def _hits(self, *, together: bool) -> dict[str, Any]:
        """Prompts whose heads are in L2 only."""
        self._next_set = (self._next_set + 1) % SETS
        self._side.ask("forget")
        return self._ask(together)

    def _controls(self, *, together: bool) -> dict[str, Any]:
        """New tails of the same heads, which the engine has itself now."""
        answer = self._ask(together)
        assert answer["cached"] == [HEAD] * PROMPTS, f"of the heads the engine has {answer['cached']} tokens"
        return answer

    def _ask(self, together: bool) -> dict[str, Any]:
        heads = [self._next_set * PROMPTS + position for position in range(PROMPTS)]
        self._next_tail += PROMPTS
        answer: dict[str, Any] = self._side.ask("tails", heads, HEAD, self._next_tail, TAIL, together)
        return answer


class Run:
    """One round under one throttle, in seconds."""

    def __init__(self, alone: dict[str, Any], together: dict[str, Any], tails: dict[str, Any]) -> None:
        store = alone["counts"]["store"]
        # Of the heads that were fetched: when the machine has other things to do, it can be quicker to compute one.
        assert store["l2_fetched_bytes"] > 0, "nothing was fetched"
        self.fetch_s: float = store["l2_fetch_ns"] / 1e9 * PROMPTS * HEAD_BYTES / store["l2_fetched_bytes"]
        self.alone_s: list[float] = alone["first_s"]
        self.together_s: list[float] = together["first_s"]
        self.tails_s: float = max(tails["first_s"])
        self.computed_heads = [sum(1 - cached / HEAD for cached in hits["cached"]) for hits in (together, alone)]

    def ratio(self, load_s: float) -> float:
        """The last first token less the first fetch, to the longest of the three stages of all prompts."""
        first_s = self.fetch_s / PROMPTS
        return (max(self.together_s) - first_s) / max(self.fetch_s, load_s, self.tails_s)


def rows_of(times: float, runs: list[Run], load_s: float) -> list[Row]:
    """The rows of one throttle.

    Args:
        times: What fetching a head takes, in times of computing its tail.
        runs: The rounds.
        load_s: Seconds that copying all heads into the engine takes.
    """
    ratio = spread([run.ratio(load_s) for run in runs])
    last = spread([max(run.together_s) * 1e3 for run in runs])
    fetch = spread([run.fetch_s * 1e3 for run in runs])
    tails = spread([run.tails_s * 1e3 for run in runs])
    sequential = spread([sum(run.alone_s) * 1e3 for run in runs])
    gain = spread([sum(run.alone_s) / max(run.together_s) for run in runs])
    alone = spread([statistics.median(run.alone_s) * 1e3 for run in runs])
    parts_ms = statistics.median((run.fetch_s + run.tails_s) * 1e3 for run in runs) / PROMPTS
    longest_ms = statistics.median(max(run.fetch_s, run.tails_s) * 1e3 for run in runs) / PROMPTS
    computed, computed_alone = (statistics.mean(run.computed_heads[at] for run in runs) for at in (0, 1))
    return [
        row(f"L2 throttled to {times:g} x compute, {PROMPTS} hits of {HEAD} + {TAIL} tokens that come together: the "
            "last first token", f"<= {LIMIT} x max(prefetch, load, tails) + first fetch", f"{ratio.median:.2f} x",
            f"95 % {ratio.low:.2f}..{ratio.high:.2f}, {ratio.samples} rounds; {last.median:.0f} ms "
            f"({last.low:.0f}..{last.high:.0f}), prefetch {fetch.median:.0f}, load {load_s * 1e3:.0f}, tails "
            f"{tails.median:.0f}, first fetch {fetch.median / PROMPTS:.0f}; {computed:.1f} heads computed instead",
            ratio.median <= LIMIT, ratio=ratio.json(), last_ms=last.json(), fetch_ms=fetch.json(),
            tails_ms=tails.json(), load_ms=load_s * 1e3, computed_heads=computed,
            together_s=[run.together_s for run in runs]),
        row("the same one after the other, each fetched, loaded and computed before the next comes", "",
            f"{sequential.median:.0f} ms", f"{sequential.low:.0f}..{sequential.high:.0f} ms, {gain.median:.2f} "
            f"({gain.low:.2f}..{gain.high:.2f}) x of together; {computed_alone:.1f} heads computed instead", None,
            sequential_ms=sequential.json(), gain=gain.json(), computed_heads=computed_alone,
            alone_s=[run.alone_s for run in runs]),
        row("TTFT of one of these, which waits for its own fetch", "", f"{alone.median:.0f} ms",
            f"{alone.low:.0f}..{alone.high:.0f} ms, {alone.median / longest_ms:.2f} x the longer of its fetch and its "
            f"tail, which take {parts_ms:.0f} together", None, alone_ms=alone.json()),
    ]  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
