"""Our cache beside `foyer` and `moka`: hit ratios on traces, and the time of operations.

They are caches of keys and values that know nothing of prompts. All run in one program, `benches/compare/rust`, which
is built first and asked in lines of JSON; it replays, and takes the samples in turn.
"""

import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benches.compare.pairs import error_row, pair_row
from benches.compare.side import Side, SideError
from benches.eviction import SET, TRACES, Trace
from benches.machine import ROOT
from benches.rows import Row, row

LOCK = ROOT / "benches" / "compare" / "rust" / "Cargo.lock"
TRACE_TIMEOUT_S = 600.0
CASE_TIMEOUT_S = 120.0

Start = Callable[[], Side]


BLOCK_TOKENS = 512
"""Of all traces."""
QUICK_TRACES = tuple(replace(trace, best_known={439: 0.0, 21_962: 0.0}) for trace in SET if trace.name == "synthetic")

OURS = {"hit-density": "default of engines' caches", "s3fifo": "default of BlockCache"}
"""The policies that are held against others."""
PEERS = ("foyer", "moka")


@dataclass(frozen=True)
class SpeedCase:
    """An operation that is timed with each cache."""

    verb: str
    value_bytes: int
    blocks: int
    threads: int

    @property
    def question(self) -> dict[str, Any]:
        """For the program. A sample takes milliseconds, and values more memory than the processor's caches have."""
        size = (
            {"capacity": 8_192, "sample_blocks": 512}
            if self.value_bytes
            else {"capacity": 65_536, "sample_blocks": 16_384}
        )
        return {"do": "speed", **vars(self), **size}

    def __str__(self) -> str:
        value = f"values of {self.value_bytes >> 10} KiB" if self.value_bytes else "slots without values"
        blocks = "one block a call" if self.blocks == 1 else f"{self.blocks} blocks a call"
        threads = "one thread" if self.threads == 1 else f"{self.threads} threads"
        return f"{value}, {blocks}, {threads}"


# A miss ends at the first block, with a value or without.
SPEED = tuple(
    SpeedCase(verb, value_bytes, blocks, threads)
    for value_bytes, verbs in (
        (0, (("get", 1), ("get", 64), ("miss", 1), ("put", 1), ("put", 64))),
        (32 << 10, (("get", 1), ("get", 64), ("put", 1), ("put", 64))),
    )
    for verb, blocks in verbs
    for threads in (1, 2, 4)
)
VERBS = {"get": "get", "miss": "get of a block that is not there", "put": "put that evicts"}


def compare(start: Start, rounds: int, traces: Sequence[Trace] = SET, cases: Sequence[SpeedCase] = SPEED) -> list[Row]:
    """The rows of all traces and cases. One that fails is a row with its error; a new program answers the others."""
    rows: list[Row] = []
    questions: list[tuple[str, Callable[[Side], list[Row]]]] = [
        *((f"hit ratios, {trace.name}", lambda side, trace=trace: quality_rows(trace, side)) for trace in traces),
        *((f"{VERBS[case.verb]}, {case}", lambda side, case=case: speed_rows(case, rounds, side)) for case in cases),
    ]
    side: Side | None = None
    try:
        for what, ask in questions:
            try:
                side = side or start()
                rows += ask(side)
            except SideError as error:
                rows.append(error_row(what, error))
                if side is not None:
                    side.close()
                side = None
            print(f"{what}: done", flush=True)
    finally:
        if side is not None:
            side.close()
    return rows


def quality_rows(trace: Trace, side: Side) -> list[Row]:
    """Two rows a capacity: our defaults beside the best that another cache does, in the order that suits it best."""
    question = {"block_tokens": BLOCK_TOKENS, "capacities": list(trace.best_known)}
    answer = side.ask(TRACE_TIMEOUT_S, do="quality", trace=str(TRACES / trace.file), **question)
    rows = []
    for at in answer["capacities"]:
        share = f"{100 * at['capacity'] / answer['distinct_blocks']:.2g} %"
        best, peer = best_of(at["peers"])
        others = ", ".join(f"{name} {digits(best_of({name: orders})[0])}" for name, orders in at["peers"].items())
        for policy, where in OURS.items():
            ours = at["ours"][policy]
            beside = f"lru here {digits(at['ours']['lru'])}, optimum {digits(at['optimum'])}; {others}"
            rows.append(
                row(
                    f"hit ratio of `{policy}` ({where}), {trace.name}, {at['capacity']:,} blocks ({share})",
                    f">= {digits(best)}",
                    digits(ours),
                    f"best other: {peer}; {beside}",
                    ours >= best,
                    **at,
                )
            )
    return rows


def best_of(peers: dict[str, dict[str, float]]) -> tuple[float, str]:
    """The highest hit ratio, and whose it is in which order."""
    return max((ratio, f"{name}, {order}") for name, orders in peers.items() for order, ratio in orders.items())


def digits(ratio: float) -> str:
    """A hit ratio as in docs/eviction.md."""
    return f"{ratio:.4f}".removeprefix("0")


def speed_rows(case: SpeedCase, rounds: int, side: Side) -> list[Row]:
    """A row a peer."""
    us = side.ask(CASE_TIMEOUT_S, **case.question, rounds=rounds)["us"]
    what = "time of ours a block to that of"
    return [pair_row(f"{VERBS[case.verb]}: {what} {peer}, {case}", us["ours"], us[peer]) for peer in PEERS]


def versions(lock: Path = LOCK) -> dict[str, str]:
    """Of the other caches."""
    packages = tomllib.loads(lock.read_text())["package"]
    of = {package["name"]: str(package["version"]) for package in packages}
    return {"foyer-memory": of["foyer-memory"], "moka": of["moka"]}
