"""Part `rates`: GB/s over piece size, count and path, both directions at once, and what a submission costs the CPU.

Batches wait behind a kernel until all of them are submitted, so that what is timed is the device's time from the end of
that kernel to the last byte, by CUDA events. The time of a single batch, called for on an idle device, is measured
beside it by the CPU's clock. Paths take turns.
"""

import statistics
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from benches.gpu.bytes_of_copies import DIRECTIONS, WAIT_S, Piece, counted
from benches.gpu.machine import Machine, on_host
from benches.gpu.plain import Peaks, peaks
from benches.gpu.report import Options, Report

KIB, MIB = 1 << 10, 1 << 20
SIZES = (4 * KIB, 8 * KIB, 16 * KIB, 32 * KIB, 64 * KIB, 256 * KIB, 2 * MIB, 8 * MIB)
COUNTS = (16, 128, 1024, 4096)
CALLS = 512
"""Pieces in flight: the engine takes no batch behind as many single copies."""
MEASURE_S = 100.0
"""The points of the whole table get no more; what is left out is said."""


@dataclass(frozen=True)
class Point:
    """What a batch is."""

    direction: str
    piece_bytes: int
    count: int

    @property
    def bytes(self) -> int:
        """Bytes of a batch."""
        return self.piece_bytes * self.count


def points(options: Options, most_bytes: int) -> list[Point]:
    """All points whose batches fit; those with targets first."""
    sizes: tuple[int, ...] = (KIB, 4 * KIB) if options.fake else SIZES
    counts: tuple[int, ...] = (4, 16) if options.fake else COUNTS
    if options.quick:
        sizes, counts = sizes[::2], counts[::2]
    found = [Point(way, size, count) for size in sizes for count in counts for way in DIRECTIONS]
    found = [point for point in found if point.bytes <= most_bytes]
    return sorted(found, key=lambda point: (point.piece_bytes not in (16 * KIB, 64 * KIB, 2 * MIB), point.piece_bytes))


def run(machine: Machine, report: Report, options: Options) -> None:
    """The tables."""
    peak = peaks(machine, options)
    report.note("plain_gb_s", peak.json())
    bench = Rates(machine, options)
    both = bench.both()
    report.note("both", to_plain(both, peak))
    report.note("submission", bench.submission())
    until = time.monotonic() + MEASURE_S
    rows: list[dict[str, Any]] = []
    wanted = points(options, bench.half_bytes)
    for index, point in enumerate(wanted):
        if time.monotonic() > until:
            report.note("points_left_out", len(wanted) - index)
            break
        rows += bench.measure(point)
        if index % 8 == 7:
            peak.measure()
            report.note("rates", to_plain(rows, peak))
    peak.measure()
    report.note("plain_gb_s", peak.json())
    # Once more: the fastest plain copy may have come last.
    report.note("both", to_plain(both, peak))
    report.note("rates", to_plain(rows, peak))
    report.note("choices", choices(rows, bench.engines["auto"]))
    report.note("device", bench.engines["auto"].describe())
    problems = [f"{row['piece_bytes']} x {row['count']} by {row['path']}" for row in rows if row["fell_back"]]
    report.check("each path has copied what it was measured with", not problems, "; ".join(problems[:5]))
    bench.close()


class Rates:
    """Pinned memory for an engine of each path, and device memory for all."""

    def __init__(self, machine: Machine, options: Options) -> None:
        self._machine, self._options = machine, options
        self._rng = np.random.default_rng(3)
        arena_bytes = 256 * KIB if options.fake else 512 * MIB
        self.half_bytes = arena_bytes // 2
        # The first half of both is for loads, the second for offloads.
        self._device = machine.on_device(arena_bytes)
        auto = machine.copies("auto", [self._device])
        names = auto.describe()["paths"]
        self.engines = {"auto": auto, **{name: machine.copies(name, [self._device]) for name in names}}
        # An engine knows what it has pinned itself, and the driver pins memory once: each engine has its own.
        self._host = {name: on_host(arena_bytes) for name in self.engines}
        for name, engine in self.engines.items():
            self._host[name].zero_()
            engine.register(self._host[name].data_ptr(), arena_bytes)

    def close(self) -> None:
        """Gives pinned memory back."""
        for name, engine in self.engines.items():
            engine.unregister(self._host[name].data_ptr())

    def measure(self, point: Point) -> list[dict[str, Any]]:
        """All paths at one point, in turns."""
        paths = [name for name in self.engines if name != "auto"]
        runs: dict[str, list[Run]] = {path: [] for path in paths}
        single: dict[str, list[float]] = {path: [] for path in paths}
        before = {path: counted(self.engines[path]) for path in paths}
        holds = dict.fromkeys(paths, 0.002)
        for turn in range(self._options.repeats + 1):
            for path in paths:
                timed = self._run(path, [point], holds[path])
                holds[path] = min(0.1, 1.3 * timed.submit_s + 0.0003)
                if turn:  # the first one warms up
                    runs[path].append(timed)
                    single[path].append(self._single(path, point))
        rows = []
        for path in paths:
            after = counted(self.engines[path])
            others = [key for key in after if key[1] != path and after[key] != before[path].get(key, 0)]
            rates = [timed.bytes / timed.seconds / 1e9 for timed in runs[path]]
            row = {
                "direction": point.direction,
                "piece_bytes": point.piece_bytes,
                "count": point.count,
                "path": path,
                "gb_s": statistics.median(rates),
                "gb_s_low": min(rates),
                "gb_s_high": max(rates),
                "single_us": statistics.median(single[path]) * 1e6,
                "submitted_in_time": all(timed.in_time for timed in runs[path]),
                "fell_back": bool(others),
            }
            rows.append(row)
        return rows

    def both(self) -> list[dict[str, Any]]:
        """Loads and offloads of as many bytes at once, by the path that is chosen."""
        rows = []
        for size in (KIB, 4 * KIB) if self._options.fake else (16 * KIB, 64 * KIB, 2 * MIB):
            count = min(4096, self.half_bytes // 2 // size)
            rates: list[float] = []
            for turn in range(self._options.repeats + 1):
                timed = self._run("auto", [Point(way, size, count) for way in DIRECTIONS], 0.02)
                if turn:
                    rates.append(timed.bytes / timed.seconds / 1e9)
            median = statistics.median(rates)
            row = {"direction": "both", "piece_bytes": size, "count": count, "gb_s": median}
            rows.append({**row, "gb_s_low": min(rates), "gb_s_high": max(rates)})
        return rows

    def submission(self) -> list[dict[str, Any]]:
        """Time of `submit` on the calling thread, per batch, from Python.

        The list of pieces is taken apart in each call; what that costs is measured with pieces of no bytes.
        """
        rows = []
        for count in (4, 16) if self._options.fake else (16, 128, 1024):
            size = KIB if self._options.fake else 16 * KIB
            for path, engine in self.engines.items():
                if path == "auto":
                    continue
                pieces = self._pieces(path, Point("load", size, count))
                none = [(src, dst, 0) for src, dst, _ in pieces]
                wall, cpu, lists = [], [], []
                for _ in range(4 * self._options.repeats):
                    lists.append(self._timed(engine, none, None)[0])
                    self._machine.keep_busy(0.005)
                    call = self._timed(engine, pieces, self._machine.stream_of(engine))
                    wall.append(call[0])
                    cpu.append(call[1])
                row = {"path": path, "count": count, "piece_bytes": size, "list_us": statistics.median(lists) * 1e6}
                row["submit_us"] = statistics.median(wall) * 1e6
                rows.append({**row, "cpu_us": statistics.median(cpu) * 1e6})
            rows.append(self._torch_submission(count, size))
        return rows

    def _torch_submission(self, count: int, size: int) -> dict[str, Any]:
        """The same by a `copy_` for each piece, from memory that another engine has pinned."""
        host, times = self._host["auto"], []
        for _ in range(self._options.repeats):
            began = time.perf_counter()
            for at in range(0, count * size, size):
                self._device[at : at + size].copy_(host[at : at + size], non_blocking=True)
            times.append(time.perf_counter() - began)
            self._machine.synchronize()
        submit_us = statistics.median(times) * 1e6
        return {"path": "torch copy_", "count": count, "piece_bytes": size, "list_us": 0.0, "submit_us": submit_us}

    @staticmethod
    def _timed(engine: Any, pieces: list[Piece], after: int | None) -> tuple[float, float]:
        """Wall and CPU time of one submission; then waits for the copies."""
        began, cpu = time.perf_counter(), time.thread_time()
        ticket = engine.submit("load", pieces, after=after)
        took = time.perf_counter() - began, time.thread_time() - cpu
        assert engine.wait(ticket, WAIT_S), "copies end"
        return took

    def _run(self, path: str, mix: list[Point], hold_s: float) -> "Run":
        """Some batches of each point, behind a kernel of `hold_s`."""
        engine, machine = self.engines[path], self._machine
        repeats = max(1, min(8, CALLS // mix[0].count, (64 * KIB if self._options.fake else 48 * MIB) // mix[0].bytes))
        batches = [(point.direction, self._pieces(path, point)) for _ in range(repeats) for point in mix]
        machine.synchronize()
        held = machine.mark()
        machine.keep_busy(hold_s)
        began = machine.mark()
        stream = machine.stream_of(engine)
        submitting = time.perf_counter()
        tickets: dict[str, list[int]] = {way: [] for way in DIRECTIONS}
        for way, pieces in batches:
            tickets[way].append(engine.submit(way, pieces, after=stream))
        submit_s = time.perf_counter() - submitting
        for way in DIRECTIONS:
            if tickets[way]:
                engine.order_after(tickets[way][-1], stream)
        seconds = machine.seconds(began, machine.mark())
        in_time = submit_s < machine.seconds(held, began)
        for ticket in [*tickets["load"], *tickets["offload"]]:
            assert engine.wait(ticket, WAIT_S), "copies end"
        return Run(seconds, submit_s, in_time, sum(point.bytes for point in mix) * repeats)

    def _single(self, path: str, point: Point) -> float:
        """One batch on an idle device: from the call to the end as the CPU sees it."""
        engine = self.engines[path]
        pieces = self._pieces(path, point)
        self._machine.synchronize()
        began = time.perf_counter()
        assert engine.wait(engine.submit(point.direction, pieces), WAIT_S), "copies end"
        return time.perf_counter() - began

    def _pieces(self, path: str, point: Point) -> list[Piece]:
        """Pieces in random places of their halves, in another order on each side."""
        half = 0 if point.direction == "load" else self.half_bytes
        places = self.half_bytes // point.piece_bytes
        base = [self._host[path].data_ptr() + half, self._device.data_ptr() + half]
        sides = [(start + self._rng.permutation(places)[: point.count] * point.piece_bytes).tolist() for start in base]
        if point.direction == "offload":
            sides.reverse()
        return list(zip(*sides, [point.piece_bytes] * point.count, strict=True))


@dataclass(frozen=True)
class Run:
    """One timed run."""

    seconds: float
    submit_s: float
    in_time: bool
    """Whether all was submitted before the device began: otherwise its time may be the CPU's."""
    bytes: int


def to_plain(rows: list[dict[str, Any]], peak: Peaks) -> list[dict[str, Any]]:
    """The rows with their ratio to the fastest plain copy of the run."""
    return [{**row, "to_plain": row["gb_s"] / peak.best(row["direction"])} for row in rows]


def choices(rows: list[dict[str, Any]], auto: Any) -> list[dict[str, Any]]:
    """For each point, the rate of the path that `auto` would take, and its time of a single batch, to the best."""
    found = []
    for key in dict.fromkeys((row["direction"], row["piece_bytes"], row["count"]) for row in rows):
        direction, piece_bytes, count = key
        here = [row for row in rows if (row["direction"], row["piece_bytes"], row["count"]) == key]
        rate = {row["path"]: row["gb_s"] for row in here}
        single = {row["path"]: row["single_us"] for row in here}
        chosen, best = auto.choose(direction, piece_bytes * count, count), max(rate, key=lambda path: rate[path])
        place = {"direction": direction, "piece_bytes": piece_bytes, "count": count, "chosen": chosen, "best": best}
        ratios = {"to_best": rate[chosen] / rate[best], "single_to_best": min(single.values()) / single[chosen]}
        found.append({**place, **ratios})
    return found
