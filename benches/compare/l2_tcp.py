"""L2 over TCP on the loopback interface: `BlockCache` and `kvcache serve` beside Mooncake Store, and plain sockets.

Each side has three processes (`l2_tcp_side.py`): one holds the memory, one client puts, another, which has never seen
the values, asks for them and gets them. Sides take turns, and who comes first changes from round to round. A call that
moves less than all values, or brings other bytes, is an error and no measurement.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from benches.compare.pairs import error_row, pair_row
from benches.compare.side import Side, SideError
from benches.rows import Row
from benches.spread import spread

PROGRAM = ("-m", "benches.compare.l2_tcp_side")
"""Of each process, started from the repository's root."""
NAMES = ("ours", "mooncake", "plain")
CAPACITY_BYTES = 1 << 30
"""Several times what a round moves; values are removed at the round's end, so nothing is evicted."""
OPEN_TIMEOUT_S = 60.0
ASK_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Case:
    """What is asked of all sides."""

    value_bytes: int
    count: int

    def __str__(self) -> str:
        size = f"{self.value_bytes >> 20} MiB" if self.value_bytes >= 1 << 20 else f"{self.value_bytes >> 10} KiB"
        return f"one value of {size}" if self.count == 1 else f"{self.count} values of {size}"


CASES = tuple(Case(kib << 10, count) for kib in (64, 256, 1024, 2048, 4096) for count in (1, 32))
QUICK_CASES = tuple(case for case in CASES if case.value_bytes in (64 << 10, 4 << 20))

Start = Callable[[str, str], Side]
"""Starts a process of the side of that name: its `home`, or a `client`."""


def compare(start: Start, rounds: int, tool: str, cases: tuple[Case, ...] = CASES) -> tuple[list[Row], dict[str, str]]:
    """The rows of all cases and the versions of the sides. A case that fails is a row with its error."""
    rows: list[Row] = []
    versions: dict[str, str] = {}
    for case in cases:
        try:
            rows += one_case(case, start, rounds, tool, versions)
        except SideError as error:
            rows.append(error_row(f"Mooncake Store over TCP and ours, {case}", error))
        print(f"{case}: done", flush=True)
    return rows, versions


def one_case(case: Case, start: Start, rounds: int, tool: str, versions: dict[str, str]) -> list[Row]:
    """The sides in turn, and the rows of their pairs."""
    times: dict[str, dict[str, list[float]]] = {name: {} for name in NAMES}
    with ExitStack() as running:
        clients: dict[str, tuple[Side, Side]] = {}
        for name in NAMES:
            home = running.enter_context(start(name, "home"))
            address = home.ask(OPEN_TIMEOUT_S, do="open", capacity_bytes=CAPACITY_BYTES, tool=tool)["address"]
            pair = running.enter_context(start(name, "client")), running.enter_context(start(name, "client"))
            for client in pair:
                size = {"value_bytes": case.value_bytes, "count": case.count}
                versions[name] = str(client.ask(OPEN_TIMEOUT_S, do="open", address=address, **size)["version"])
            clients[name] = pair
        # The first round warms up and is not counted.
        for number in range(rounds + 1):
            first = number % len(NAMES)
            for name in NAMES[first:] + NAMES[:first]:
                for verb, us in one_round(*clients[name], number=number, count=case.count).items():
                    if number:
                        times[name].setdefault(verb, []).append(us)
    return rows_of(case, times)


def one_round(putting: Side, getting: Side, **question: Any) -> dict[str, float]:
    """One side's put, exists and get, in microseconds."""
    us: dict[str, float] = {}
    for side, verb in ((putting, "put"), (getting, "get")):
        answer = side.ask(ASK_TIMEOUT_S, do=verb, **question)
        us |= {name: float(took) for name, took in answer["us"].items()}
    putting.ask(ASK_TIMEOUT_S, do="forget", **question)
    return us


def rows_of(case: Case, times: dict[str, dict[str, list[float]]]) -> list[Row]:
    """A row a verb."""
    rows = []
    for verb, ours in times["ours"].items():
        plain = spread(times["plain"][verb])
        ratio = spread([mine / other for mine, other in zip(ours, times["plain"][verb], strict=True)])
        beside = f"; plain sockets {plain.median:.4g} us, ours to them {ratio.median:.3g}"
        what = f"{verb}: time of ours to that of Mooncake Store over TCP, {case}"
        details = {"plain_us": plain.json(), "ours_to_plain": ratio.json()}
        rows.append(pair_row(what, ours, times["mooncake"][verb], beside, **details))
    return rows
