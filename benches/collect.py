"""Runs the measurements and writes a folder of results: `make bench`, or `make bench BENCH_ARGS=--quick`.

    python -m benches.collect [--quick] [--out DIR] [--kvcache PATH] [--only PART]...

Each part runs in a process of its own, one after the other, and leaves a JSON file. The table of all of them is
`results.md` in the same folder, `benches/results/<date>-<machine>/`, with plots (PNG) beside it. The part `compare` is
`python -m benches.compare`, whose table is `compare.md`.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from benches.cargo_parts import c_library, copies, criterion, load_client, ring
from benches.engine_model import engine_model
from benches.eviction import eviction
from benches.machine import ROOT, machine_facts, slug
from benches.rows import Row, table

Part = Callable[[Path, argparse.Namespace], list[Row]]
COMPARE = "compare"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few repetitions: shows that it runs, not how fast")
    parser.add_argument("--out", type=Path, help="folder of the results")
    parser.add_argument("--kvcache", type=Path, help="the user tool; built if not given")
    parser.add_argument("--only", action="append", choices=[*PARTS, COMPARE], help="only this part")
    arguments = parser.parse_args()
    machine = machine_facts()
    out = arguments.out or ROOT / "benches" / "results" / f"{datetime.now(UTC):%Y-%m-%d}-{slug(machine)}"
    out.mkdir(parents=True, exist_ok=True)
    failed = []
    for name, part in PARTS.items():
        if arguments.only and name not in arguments.only:
            continue
        print(f"== {name}", flush=True)
        began = time.monotonic()
        try:
            rows = part(out / f"{name}.json", arguments)
        except (subprocess.CalledProcessError, OSError, ValueError) as error:
            print(f"{name} failed: {error}\n{getattr(error, 'stderr', None) or ''}", file=sys.stderr)
            failed.append(name)
            continue
        facts = {**machine, "seconds": round(time.monotonic() - began, 1), "quick": arguments.quick}
        document = {"facts": facts, "command": COMMANDS[name], "rows": [vars(one) for one in rows]}
        (out / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
    if not arguments.only or COMPARE in arguments.only:
        command = [sys.executable, "-m", "benches.compare", "--out", str(out)]
        if subprocess.run(command + (["--quick"] if arguments.quick else []), cwd=ROOT, check=False).returncode:
            failed.append(COMPARE)
    plots: list[str] = []
    try:
        plots = draw(out)
    except (subprocess.CalledProcessError, OSError) as error:
        print(f"no plots: {error}", file=sys.stderr)
        failed.append("plots")
    (out / "results.md").write_text(results(out, plots))
    print((out / "results.md").read_text())
    if failed:
        print(f"failed, or with rows that are errors: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def draw(out: Path) -> list[str]:
    """The names of the plots of a folder of results. Matplotlib is in the environment of the developer tools."""
    tools = said_path(ROOT / "scripts" / "ensure_dev_tools.sh")
    done = subprocess.run(
        [tools / "bin" / "python", "-m", "benches.plots", out], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    )
    return done.stdout.split()


def said_path(script: Path) -> Path:
    """The path that a script prints."""
    return Path(subprocess.run([script], check=True, stdout=subprocess.PIPE, text=True).stdout.strip())


def results(out: Path, plots: list[str]) -> str:
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
    if (out / "compare.md").exists():
        lines[-1] += " Beside other systems: [side by side](compare.md)."
    lines += [line for name in plots for line in ("", f"![{Path(name).stem.replace('_', ' ')}]({name})")]
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
    shown = ("processor", "cpus", "memory", "kernel", "python", "rustc", "vllm", "torch", "wheel")
    lines += [f"- {name}: {facts[name]}" for name in shown if name in facts]
    return "\n".join(lines) + "\n"


def python_part(module: str) -> Part:
    """A module that writes its rows itself."""

    def run(path: Path, arguments: argparse.Namespace) -> list[Row]:
        command = [sys.executable, "-m", module, "--json", str(path)]
        subprocess.run(command + (["--quick"] if arguments.quick else []), cwd=ROOT, check=True)
        return [Row(**one) for one in json.loads(path.read_text())]

    return run


PARTS: dict[str, Part] = {
    "copies": copies,
    "python": python_part("benches.python.block_cache"),
    "engine": python_part("benches.engine.measures"),
    "overlap": python_part("benches.engine.overlap"),
    "prefetch": python_part("benches.engine.prefetch_overlap"),
    "l2_steps": python_part("benches.engine.l2_steps"),
    "ring": ring,
    "eviction": eviction,
    "engine_model": engine_model,
    "load_client": load_client,
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
    "ring": "cargo bench -p kvcache-benches --bench l2_tcp, l2_local and l2_engine_thread",
    "eviction": "kvcache replay TRACE --policy lru,s3fifo,default --capacity …",
    "engine_model": "python -m benches.collect --only engine_model",
    "load_client": "cargo bench -p kvcache-load --bench client_cpu",
    "parts": "cargo bench -p kvcache-benches --bench parts",
    "c_library": "cargo bench -p kvcache-capi --bench overhead -- --json",
}


if __name__ == "__main__":
    sys.exit(main())
