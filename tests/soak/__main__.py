"""A soak of the ring: clients at full rate, servers that die and come back at random, and books that must balance.

    python -m tests.soak --minutes 10 --seed 1

Clients are `ring-load`, which verifies every byte and every end. The first server is stopped now and then (SIGSTOP)
and never killed, so that its memory can be followed; the others are killed (SIGKILL) as well, and come back empty. At
the end there are some seconds without faults between two moments at which nothing is in flight: in these, clients and
servers must have counted the same. Memory is flat if the median of the last third of the run is no larger than that of
the first third after the warm-up, within `MEMORY_RATIO_MAX`; what clients map of servers' pools is not theirs, and
must go with its server.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from tests.e2e.cache_server import CacheServer
from tests.faults.ring_load import Report, RingLoad, done, failed

SERVERS = 3
MEMORY_RATIO_MAX = 1.10
WARM_UP_SHARE = 0.15
"""Of the run: pools fill, and lists of what is in flight grow to their bounds."""
BALANCE_S = 10.0
CAPACITY = "128MiB"
VALUE_BYTES = "4096,65536,262144,1048576"
VALUES = 2000
"""Half as much again as fits, so that servers evict."""
POOLS_MAPPED_MAX = 4 * SERVERS
"""A client's store and its presence connect for themselves, and map a pool once to read and once to write."""
COUNTERS = {
    "kvcache_server_puts_total": ("put", "done"),
    "kvcache_server_hits_total": ("get", "done"),
    "kvcache_server_misses_total": ("get", "missing"),
}
"""What a server counts, and the client's words for it."""


class Ring:
    """Servers at fixed addresses, which die and come back empty."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder = folder
        self._lives = 0
        self.servers = [self._start(0) for _ in range(SERVERS)]
        stack.callback(self.kill_all)

    def _start(self, port: int) -> CacheServer:
        self._lives += 1
        return CacheServer(self._folder / f"server-{self._lives}.log", capacity=CAPACITY, port=port)

    def restart(self, index: int) -> None:
        """Starts a dead server anew, where it was."""
        self.servers[index] = self._start(self.servers[index].port)

    def kill_all(self) -> None:
        """Ends it."""
        for server in self.servers:
            server.kill()

    @property
    def remote(self) -> str:
        """For the clients."""
        return "tcp://" + ",".join(server.address for server in self.servers)


class Memory:
    """Resident memory of one process over time."""

    def __init__(self) -> None:
        self.samples: list[tuple[float, int]] = []

    def add(self, time_s: float, resident_bytes: int) -> None:
        """Takes in a sample."""
        self.samples.append((time_s, resident_bytes))

    def growth(self, length_s: float) -> tuple[float, float, float]:
        """MiB in the first third after the warm-up and in the last one, and the ratio."""
        warm = WARM_UP_SHARE * length_s
        third = (length_s - warm) / 3
        first = median(value for at, value in self.samples if warm <= at < warm + third)
        last = median(value for at, value in self.samples if at >= length_s - third)
        return first / 2**20, last / 2**20, last / first


def main() -> int:
    """Runs the soak; 0 if nothing is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="a file for the figures")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kvcache-soak-") as folder, ExitStack() as stack:
        figures, wrong = soak(Path(folder), stack, options.minutes * 60, options.clients, options.seed)
    text = json.dumps(figures, indent=2)
    print(text)
    if options.json is not None:
        options.json.write_text(text + "\n")
    for line in wrong:
        print(f"WRONG: {line}", file=sys.stderr)
    return 1 if wrong else 0


def soak(folder: Path, stack: ExitStack, length_s: float, clients: int, seed: int) -> tuple[dict[str, Any], list[str]]:
    """Runs it. Returns figures, and what is wrong."""
    chance = random.Random(seed)
    ring = Ring(folder, stack)
    loads = [
        stack.enter_context(
            RingLoad(
                ring.remote,
                folder / f"client-{number}.log",
                values=VALUES,
                value_bytes=VALUE_BYTES,
                in_flight=64,
                report_ms=500,
                silence_ms=1000,
                backoff_max_ms=1000,
                patience_ms=3000,
                slack_ms=2000,
            )
        )
        for number in range(clients)
    ]
    memory = {f"client {number}": Memory() for number in range(clients)}
    memory["server 0"] = Memory()
    wrong: list[str] = []
    kills = stops = 0
    start = time.monotonic()
    next_kill = chance.uniform(1, 4)
    dead: dict[int, float] = {}
    """Servers that are away, and when they come back."""
    stopped: dict[int, float] = {}
    while (now := time.monotonic() - start) < length_s:
        for index in [index for index, until in dead.items() if until <= now]:
            del dead[index]
            ring.restart(index)
        for index in [index for index, until in stopped.items() if until <= now]:
            del stopped[index]
            ring.servers[index].go_on()
        if now >= next_kill:
            next_kill = now + chance.uniform(1, 6)
            index = chance.randrange(SERVERS)
            if index not in dead and index not in stopped:
                if index > 0 and chance.random() < 0.8:
                    ring.servers[index].kill()
                    dead[index] = now + chance.uniform(0, 3)
                    kills += 1
                else:
                    ring.servers[index].stop()
                    stopped[index] = now + chance.uniform(0.5, 4)
                    stops += 1
        for number, load in enumerate(loads):
            if load.process.poll() is not None:
                return {}, [f"client {number} ended: {load.log.read_text(errors='replace')[-1000:]}"]
            # Its own: the pools of servers that it maps are theirs, and counted below.
            memory[f"client {number}"].add(now, _resident_bytes(load.process.pid, "RssAnon"))
        memory["server 0"].add(now, _resident_bytes(ring.servers[0].process.pid, "VmRSS"))
        time.sleep(0.25)
    for index in dead:
        ring.restart(index)
    for index in stopped:
        ring.servers[index].go_on()
    wrong += _balance(ring, loads)
    for number, load in enumerate(loads):
        pools = _mapped_pools(load.process.pid)
        if pools > POOLS_MAPPED_MAX:
            wrong.append(f"client {number} has {pools} mappings of servers' pools: dead servers' are left")
    ends = [load.end() for load in loads]
    for number, (load, end) in enumerate(zip(loads, ends, strict=True)):
        # Reports are checked as they were, so what was stuck for a while is found too.
        for report in load.reports:
            try:
                load.check(report)
            except AssertionError as error:
                wrong.append(f"client {number} at {report['time_s']:.1f} s: {error}")
                break
        if done(end) == 0:
            wrong.append(f"client {number} moved nothing")
    growths = {name: one.growth(length_s) for name, one in memory.items() if one.samples}
    wrong += [
        f"{name} grew from {first:.1f} to {last:.1f} MiB"
        for name, (first, last, ratio) in growths.items()
        if ratio > MEMORY_RATIO_MAX
    ]
    return _figures(length_s, seed, kills, stops, ends, growths), wrong


def _balance(ring: Ring, loads: list[RingLoad]) -> list[str]:
    """Some seconds without kills, between two moments at which nothing is in flight: both sides must count the same."""
    for load in loads:
        load.until("breakers close", lambda report: all(s["breaker"] == "closed" for s in report["servers"].values()))
    counted = []
    for last in (False, True):
        for load in loads:
            load.say("pause")
        reports = [
            load.until("quiet", lambda report: report["open"] == report["client"]["open"] == 0) for load in loads
        ]
        counted.append((reports, [_when_quiet(server) for server in ring.servers]))
        if not last:
            for load in loads:
                load.say("resume")
            time.sleep(BALANCE_S)
    (clients_before, servers_before), (clients_after, servers_after) = counted
    wrong = []
    for index, server in enumerate(ring.servers):
        for name, (op, outcome) in COUNTERS.items():
            pairs = [
                (before["servers"][server.address][op], after["servers"][server.address][op])
                for before, after in zip(clients_before, clients_after, strict=True)
            ]
            told = sum(after[outcome] - before[outcome] for before, after in pairs)
            did = servers_after[index][name] - servers_before[index][name]
            # What a client gave up, on a machine that was too busy, the server may have done all the same.
            given_up = sum(sum(after["failed"].values()) - sum(before["failed"].values()) for before, after in pairs)
            if not told <= did <= told + given_up or (outcome == "done" and told == 0):
                counted_too = f"and gave {given_up} up, the server counted {did:.0f}"
                wrong.append(f"server {index}: clients counted {told} of {op} {outcome} {counted_too}")
    return wrong


def _when_quiet(server: CacheServer) -> dict[str, float]:
    """Its counters, once it has done what clients have given up while it was stopped."""
    deadline = time.monotonic() + 30
    before = server.metrics()
    while time.monotonic() < deadline:
        time.sleep(1.0)
        now = server.metrics()
        if all(now[name] == before[name] for name in COUNTERS):
            break
        before = now
    return before


def _resident_bytes(pid: int, what: str) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(f"{what}:"))


def _mapped_pools(pid: int) -> int:
    return Path(f"/proc/{pid}/maps").read_text().count("/memfd:")


def _figures(
    length_s: float,
    seed: int,
    kills: int,
    stops: int,
    ends: list[Report],
    growths: dict[str, tuple[float, float, float]],
) -> dict[str, Any]:
    return {
        "minutes": length_s / 60,
        "seed": seed,
        "kills": kills,
        "stops": stops,
        "transfers": sum(end["ended"] for end in ends),
        "done": sum(done(end) for end in ends),
        "missing": sum(end["get"]["missing"] for end in ends),
        "failed": {reason: sum(failed(end, reason) for end in ends) for reason in ends[0]["get"]["failed"]},
        "verified_gib": round(sum(end["verified_bytes"] for end in ends) / 2**30, 2),
        "questions": sum(end["questions"]["answered"] for end in ends),
        "slowest_question_ms": max(end["questions"]["slowest_ms"] for end in ends),
        "violations": {name: sum(end["violations"][name] for end in ends) for name in ends[0]["violations"]},
        "resident_mib": {
            name: {"first_third": round(first, 1), "last_third": round(last, 1), "ratio": round(ratio, 3)}
            for name, (first, last, ratio) in growths.items()
        },
    }


if __name__ == "__main__":
    sys.exit(main())
