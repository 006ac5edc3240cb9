"""`BlockCache` beside the L1 of `aibrix-kvcache`: a prompt's put, exists, get and miss, and gets by several threads.

Each case has two processes, one a side, that are asked in turn for the same prompts; which comes first alternates. The
cache is full before anything is measured, so every put evicts. Keys are made from the tokens in every call. A call that
stores or finds less than the whole prompt, or brings other bytes, is an error and no measurement.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from benches.compare.pairs import error_row, pair_row
from benches.compare.side import Side, SideError
from benches.rows import Row
from benches.spread import spread

PROGRAM = ("-m", "benches.compare.l1_side")
"""Of either side, started from the repository's root."""
BLOCK_TOKENS = 16
CAPACITY_BYTES = 1 << 30
"""The peer's slabs have 1 GiB: less would be rounded up there and not here."""
OPEN_TIMEOUT_S = 180.0
ASK_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Case:
    """What is asked of both sides."""

    block_bytes: int
    tokens: int
    threads: int

    @property
    def blocks(self) -> int:
        """Of one prompt."""
        return self.tokens // BLOCK_TOKENS

    def __str__(self) -> str:
        size = f"{self.block_bytes >> 20} MiB" if self.block_bytes >= 1 << 20 else f"{self.block_bytes >> 10} KiB"
        threads = "one thread" if self.threads == 1 else f"{self.threads} threads"
        return f"{self.tokens:,} tokens, blocks of {size}, {threads}"


# A prompt may fill a quarter of the cache: more would measure which of its blocks each policy throws away.
CASES = (
    *(Case(32 << 10, tokens, 1) for tokens in (16, 512, 2_048, 8_192, 32_768)),
    *(Case(2 << 20, tokens, 1) for tokens in (16, 512, 2_048)),
    *(Case(32 << 10, 2_048, threads) for threads in (2, 4)),
    *(Case(2 << 20, 512, threads) for threads in (2, 4)),
)

Start = Callable[[str], Side]
"""Starts the side of that name."""


def compare(
    peer: str, start: Start, rounds: int, cases: tuple[Case, ...] = CASES, level: str = "L1"
) -> tuple[list[Row], dict[str, str]]:
    """The rows of all cases and the versions of both sides. A case that fails is a row with its error.

    Args:
        peer: The name of the other side.
        start: Starts a side.
        rounds: That are counted.
        cases: What is asked.
        level: Where the peer has its blocks.
    """
    rows: list[Row] = []
    versions: dict[str, str] = {}
    for case in cases:
        try:
            rows += one_case(case, peer, start, rounds, versions, level)
        except SideError as error:
            rows.append(error_row(f"{peer} {level} and ours, {case}", error))
        print(f"{case}: done", flush=True)
    return rows, versions


def one_case(case: Case, peer: str, start: Start, rounds: int, versions: dict[str, str], level: str) -> list[Row]:
    """Both sides in turn, and the rows of their pairs."""
    names = ("ours", peer)
    times: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    with ExitStack() as running:
        sides = {name: running.enter_context(start(name)) for name in names}
        for name, side in sides.items():
            size = {"block_bytes": case.block_bytes, "capacity_bytes": CAPACITY_BYTES}
            opened = side.ask(OPEN_TIMEOUT_S, do="open", threads=case.threads, blocks=case.blocks, **size)
            versions[name] = str(opened["version"])
        question: dict[str, Any] = {"do": "verbs", "blocks": case.blocks}
        if case.threads > 1:
            question = {"do": "threads", "blocks": case.blocks, "repeats": 4}
        # The first round warms up and is not counted.
        for number in range(rounds + 1):
            for name in names if number % 2 else names[::-1]:
                answer = sides[name].ask(ASK_TIMEOUT_S, number=number, **question)
                for verb, us in answer["us"].items():
                    if number:
                        times[name].setdefault(verb, []).append(float(us))
    return rows_of(case, peer, times, level)


def rows_of(case: Case, peer: str, times: dict[str, dict[str, list[float]]], level: str = "L1") -> list[Row]:
    """A row a verb."""
    ours, theirs = times["ours"], times[peer]
    rows = []
    for verb in (verb for verb in ours if verb != "copy"):
        beside, details = "", {}
        if "copy" in ours:
            copy = spread(ours["copy"])
            details = {"copy_us": copy.json()}
            if verb in ("put", "get"):
                beside = f"; numpy.copyto {copy.median:.4g} us"
        what = f"{verb}: time of ours to that of {peer} {level}, {case}"
        rows.append(pair_row(what, ours[verb], theirs[verb], beside, **details))
    return rows
