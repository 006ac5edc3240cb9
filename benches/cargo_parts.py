"""The parts of `make bench` that are programs of the workspace."""

import argparse
import json
import re
import statistics
import subprocess
from pathlib import Path

from benches.machine import ROOT
from benches.rows import Row, row
from benches.tool import kvcache


def copies(path: Path, arguments: argparse.Namespace) -> list[Row]:
    """`kvcache bench`: the copies of the cache against memcpy, and its metadata."""
    seconds = "2" if arguments.quick else "20"
    answer = subprocess.run(
        [kvcache(arguments), "bench", "--json", "--seconds", seconds], check=True, capture_output=True, text=True
    )
    rows = []
    for outcome in json.loads(answer.stdout):
        size = {2 << 20: "2 MiB", 32 << 10: "32 KiB"}.get(outcome["block_bytes"], f"{outcome['block_bytes']} B")
        least = 1.3 if outcome["block_bytes"] >= 2 << 20 else 1.2
        for way in ("put", "get"):
            ratio, rate, plain = outcome[f"{way}_to_memcpy"], outcome[f"{way}_gb_s"], outcome["memcpy_gb_s"]
            rows.append(
                row(
                    f"{way} of {size} blocks, one thread, to memcpy of the same pieces",
                    f">= {least}",
                    f"{ratio['median']:.2f}",
                    f"{ratio['low']:.2f}..{ratio['high']:.2f}, {ratio['rounds']} rounds; {rate['median']:.1f} to "
                    f"{plain['median']:.1f} GB/s",
                    ratio["median"] >= least,
                )
            )
        threads = outcome["threads"]
        for way in ("put", "get"):
            ratio, rate = outcome[f"threads_{way}_to_best"], outcome[f"threads_{way}_gb_s"]
            rows.append(
                row(
                    f"{way} of {size} blocks, {threads} threads, to min({threads} x one thread, ceiling)",
                    ">= 0.95",
                    f"{ratio['median']:.2f}",
                    f"{ratio['low']:.2f}..{ratio['high']:.2f}, {ratio['rounds']} rounds; {rate['median']:.1f} GB/s, "
                    f"ceiling {outcome['ceiling_gb_s']['median']:.1f} GB/s",
                    ratio["median"] >= 0.95,
                )
            )
        slot = outcome["metadata_bytes_per_slot"]
        rows.append(
            row(
                f"directory metadata, {size} blocks, ghosts included (from stats())",
                "<= 128 bytes a slot",
                f"{slot:.1f}",
                "exact",
                slot <= 128,
                **outcome,
            )
        )
    return rows


def criterion(path: Path, arguments: argparse.Namespace) -> list[Row]:
    """The parts, by Criterion: times without targets."""
    command = ["cargo", "bench", "--locked", "--quiet", "-p", "kvcache-benches", "--bench", "parts", "--"]
    command += ["--noplot", *(["--quick"] if arguments.quick else [])]
    answer = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    rows = []
    for name, low, middle, high in re.findall(
        r"^(\S+)\s+time:\s+\[(\S+ \S+) (\S+ \S+) (\S+ \S+)\]", _joined(answer.stdout), re.M
    ):
        rows.append(row(f"`{name}`", "", middle, f"{low}..{high}", None))
    return rows


def c_library(path: Path, arguments: argparse.Namespace) -> list[Row]:
    """What the boundary of the C library costs, against the Rust API in the same run."""
    command = ["cargo", "bench", "--locked", "--quiet", "-p", "kvcache-capi", "--bench", "overhead", "--", "--json"]
    answer = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    rows = []
    for one in json.loads(answer.stdout):
        low, median, high = one["low"], one["median"], one["high"]
        target, met = "", None
        if one["at_most"] is not None:
            target, met = f"<= {one['at_most']:g} {one['unit']}", median <= one["at_most"]
        if one["at_least"] is not None:
            target, met = f">= {one['at_least']:g}", median >= one["at_least"]
        spread = f"{low:.3g}..{high:.3g}, {one['rounds']} rounds"
        rows.append(row(one["what"], target, f"{median:.3g} {one['unit']}".strip(), spread, met))
    return rows


def _joined(text: str) -> str:
    """Criterion breaks the line after a long name."""
    return re.sub(r"^(\S+)\n\s+time:", r"\1 time:", text, flags=re.M)


RING_BENCHES = ("l2_tcp", "l2_local", "l2_engine_thread")


def ring(path: Path, arguments: argparse.Namespace) -> list[Row]:
    """The ring's client beside plain copies of the same bytes, and what it takes of the engine's thread."""
    rows = []
    for bench in RING_BENCHES:
        command = ["cargo", "bench", "--locked", "--quiet", "-p", "kvcache-benches", "--bench", bench]
        answer = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
        rows += [measured(bench, cells) for cells in table_cells(answer.stdout)]
    return rows


def table_cells(text: str) -> list[dict[str, str]]:
    """The rows of the Markdown tables in a program's output, each by its columns; the first column is `what`."""
    rows: list[dict[str, str]] = []
    header: list[str] = []
    lines = text.splitlines()
    for line, after in zip(lines, [*lines[1:], ""], strict=True):
        if not line.startswith("|"):
            header = []
            continue
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if after.startswith("|---"):
            header = cells
        elif header and not line.startswith("|---"):
            rows.append(dict(zip(header, cells, strict=True), what=cells[0], header=header[0]))
    return rows


def measured(bench: str, cells: dict[str, str]) -> Row:
    """A row of a bench's own table: the mean where it has one, else the median, against the target."""
    reached = cells.get("mean", cells["median"])
    target = cells["target"].replace("≤", "<=").replace("≥", ">=")
    spread = ", ".join(f"{name} {cells[name]}" for name in ("median", "quartiles", "90 %", "99 %") if name in cells)
    what = cells["what"] if cells["header"] == "what" else f"{cells['header']}: {cells['what']}"
    return row(f"{bench}: {what}", target, reached, spread, meets(target, reached))


def meets(target: str, reached: str) -> bool | None:
    """Whether a number is within a target such as `<= 20`; None without one."""
    if not target:
        return None
    sign, bound = target.split()
    return float(reached) <= float(bound) if sign == "<=" else float(reached) >= float(bound)


def load_client(path: Path, arguments: argparse.Namespace) -> list[Row]:
    """What `kvcache load` takes of a core at 100 requests a second of 64 tokens."""
    command = ["cargo", "bench", "--locked", "--quiet", "-p", "kvcache-load", "--bench", "client_cpu"]
    answer = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    turns = re.findall(r"client ([\d.]+) of a core, plain sockets ([\d.]+)", answer.stdout)
    ours, plain = ([float(turn[side]) for turn in turns] for side in (0, 1))
    reached = statistics.median(ours)
    spread = f"{min(ours):.4f}..{max(ours):.4f}, {len(ours)} turns; plain sockets {min(plain):.4f}..{max(plain):.4f}"
    what = "the load client at 100 requests/s of 64 streamed tokens, of a core"
    return [row(what, "<= 0.10", f"{reached:.4f}", spread, reached <= 0.10)]
