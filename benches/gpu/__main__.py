"""Checks and measures the CUDA side on this machine's first GPU; see README.md beside this file.

    python -m benches.gpu [--quick] [--fake] [--out DIR] [--only PART]...

Exit status: 0 if all checks hold, whatever the speed; 1 if one fails; 2 if there is nothing to run on.
"""

import argparse
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from aibrix_connector import _native

from benches.gpu import (
    bytes_of_copies,
    bytes_of_engine,
    interference,
    order_of_work,
    overlap,
    pinning,
    plots,
    programs,
    rates,
    summary,
)
from benches.gpu.machine import FakeMachine, Machine, host_facts
from benches.gpu.report import Options, Report

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benches" / "results"
TOTAL_S = 450.0
"""All parts together: a machine may be lent for minutes."""


LEAST_S = 5.0
"""With less left, a part is not begun."""


@dataclass(frozen=True)
class Part:
    """A part of the run, which gets a process of its own: what it breaks, the next one does not feel."""

    run: Callable[[Machine, Report, Options], None]
    most_s: float


def look(machine: Machine, report: Report, options: Options) -> None:
    """What this machine is, and whether our engine opens its device."""
    report.note("facts", machine.facts() | host_facts() | {"nvidia_smi": said_by_nvidia_smi()})
    device = machine.copies("auto", []).describe()
    report.note("device", device)
    report.check("the device opens", True, f"{device['name']}, paths {', '.join(device['paths'])}")


PARTS = {
    "machine": Part(look, 60),
    "kernels": Part(programs.run, 65),
    "copies": Part(bytes_of_copies.run, 80),
    "order": Part(order_of_work.run, 60),
    "engine": Part(bytes_of_engine.run, 100),
    "rates": Part(rates.run, 150),
    "overlap": Part(overlap.run, 60),
    "interference": Part(interference.run, 60),
    "pinning": Part(pinning.run, 30),
}


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer points and repetitions")
    parser.add_argument(
        "--fake", action="store_true", help="no GPU: shows that the script runs; its times mean nothing"
    )
    parser.add_argument("--out", type=Path, help="folder of the results")
    parser.add_argument("--only", action="append", choices=list(PARTS), help="only this part")
    parser.add_argument("--sabotage", choices=["byte", "wait"], help="break this, to see that checks fail")
    arguments = parser.parse_args(words)
    options = Options(arguments.quick, arguments.fake, arguments.sabotage)
    if options.fake and arguments.out is not None and arguments.out.resolve().is_relative_to(RESULTS):
        parser.error(f"--fake measures nothing: its numbers do not belong into {RESULTS}")
    with tempfile.TemporaryDirectory(prefix="kvcache-gpu-") as folder:
        return run(options, arguments.only or list(PARTS), arguments.out, Path(folder))


def run(options: Options, wanted: list[str], out: Path | None, folder: Path) -> int:
    """Runs parts one after the other; writes the results after each."""
    until = time.monotonic() + TOTAL_S
    first = in_process("machine", options, folder / "machine.json", PARTS["machine"].most_s)
    if not first["ended"]:
        print("nothing to run on: " + "; ".join(check["detail"] for check in first["checks"]), file=sys.stderr)
        return 2
    document = {"facts": facts(options) | first["numbers"]["facts"], "parts": {"machine": first}}
    out = out or default_folder(options, document["facts"])
    out.mkdir(parents=True, exist_ok=True)
    for name in (name for name in PARTS if name in wanted and name != "machine"):
        most_s = min(PARTS[name].most_s, until - time.monotonic())
        if most_s < LEAST_S:
            document["parts"][name] = left_out(name)
        else:
            document["parts"][name] = in_process(name, options, folder / f"{name}.json", most_s)
        write(out, document)
    try:
        problems = plots.draw(document, out)
    except Exception as error:
        # Whatever a plotting library has against this machine: the numbers are there.
        problems = [f"no pictures: {error!r}; python -m benches.gpu.plots {out} draws them later"]
    for problem in problems:
        print(problem, flush=True)
    print((out / "results.md").read_text())
    print(f"results: {out}", flush=True)
    return 1 if summary.failures(document) else 0


def in_process(name: str, options: Options, path: Path, most_s: float) -> dict[str, Any]:
    """Runs a part in a process of its own, which is ended when its time is up; returns what it has found."""
    print(f"== {name}", flush=True)
    process = multiprocessing.get_context("fork").Process(target=child, args=(name, options, path), name=name)
    process.start()
    process.join(max(1.0, most_s))
    why = f"the process ended with status {process.exitcode}"
    if process.is_alive():
        why = f"not within {most_s:.0f} s"
        process.kill()
        process.join(10)
    found: dict[str, Any] = {"seconds": most_s, "ended": False, "checks": [], "numbers": {}}
    if path.exists():
        found = json.loads(path.read_text())
    if not found["ended"] and not any(check["status"] == "fail" for check in found["checks"]):
        print(f"  fail  {name} comes to its end: {why}", flush=True)
        found["checks"].append({"name": f"{name} comes to its end", "status": "fail", "detail": why})
    return found


def left_out(name: str) -> dict[str, Any]:
    """The findings of a part for which there was no time."""
    check = {"name": name, "status": "skip", "detail": "the time for all parts was up"}
    return {"seconds": 0, "ended": False, "checks": [check], "numbers": {}}


def child(name: str, options: Options, path: Path) -> None:
    """Runs a part, in its own process."""
    report = Report(path)
    try:
        if options.fake:
            torch.set_num_threads(1)
        elif not torch.cuda.is_available():
            why = f"torch {torch.__version__}, built for CUDA {torch.version.cuda}, sees no device"
            report.check("torch sees a CUDA device", False, why)
            return
        PARTS[name].run(FakeMachine() if options.fake else Machine(), report, options)
        report.ended = True
        report.save()
    except Exception as error:
        traceback.print_exc()
        report.check(f"{name} comes to its end", False, f"{type(error).__name__}: {error}".splitlines()[0])


def facts(options: Options) -> dict[str, Any]:
    """What the numbers depend on, as far as it is known without the device."""
    commit = said("git", "rev-parse", "HEAD")
    if commit and said("git", "status", "--porcelain", "--untracked-files=no"):
        commit += " and changes"
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "fake": options.fake,
        "quick": options.quick,
        "sabotage": options.sabotage,
        "commit": commit or os.environ.get("KVCACHE_COMMIT") or "unknown",
        "aibrix_connector": metadata.version("aibrix_connector"),
        "module": os.environ.get("KVCACHE_WHEEL", _native.__file__),
        "python": sys.version.split()[0],
    }


def default_folder(options: Options, known: dict[str, Any]) -> Path:
    """Returns where results go if nobody says: a fake's beside nothing that is kept."""
    if options.fake:
        return Path(tempfile.mkdtemp(prefix="kvcache-gpu-fake-"))
    slug = re.sub(r"[^a-z0-9]+", "-", str(known["gpu"]).lower()).strip("-")
    return RESULTS / f"{datetime.now(UTC):%Y-%m-%d}-{slug}{'-quick' if options.quick else ''}"


def write(out: Path, document: dict[str, Any]) -> None:
    """Writes what is known so far."""
    (out / "results.json").write_text(json.dumps(document, indent=1) + "\n")
    (out / "results.md").write_text(summary.page(document))


def said_by_nvidia_smi() -> str:
    """Driver, link and clocks as the driver's own tool says them."""
    fields = "name,driver_version,pcie.link.gen.current,pcie.link.width.current,clocks.sm,clocks.mem,power.limit"
    return said("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader")


def said(*command: str) -> str:
    """The output of a command, or nothing where there is no such thing."""
    try:
        answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""


if __name__ == "__main__":
    sys.exit(main())
