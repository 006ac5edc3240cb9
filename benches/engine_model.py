"""The part `engine_model`: `kvcache simulate` held against a real engine, then times of modelled larger ones.

The first half measures a vLLM on this machine, calibrates the model with one configuration and predicts others. The
second simulates three workloads of the kind that AIBrix published: docs/simulate.md says what they are.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benches.machine import ROOT
from benches.rows import Row, row
from benches.tool import kvcache

RATES = (0.3, 0.8, 1.3, 1.8, 2.3, 2.8, 3.3, 3.8, 4.3)
SHARED = "name=w,prefixes={},prompt=normal:3000:400@1000..,shared=0.97,output=100"
WORKLOADS: dict[str, tuple[list[str], int]] = {
    # name: how it is made, requests that warm up
    "W1": (["share", "--class", SHARED.format(32), "--requests", "600"], 150),
    "W2": (["share", "--class", SHARED.format(256), "--requests", "2400"], 600),
    "W3": (
        ["conversation", "--sessions", "170", "--turns", "normal:6:2", "--turn-tokens", "lognormal:1000:500"]
        + ["--output-tokens", "200"],
        244,
    ),
}
L1_BLOCKS = 4768
"""10 GB, half of what the profile's engine has itself."""
WITHIN = 15.0


def engine_model(path: Path, arguments: argparse.Namespace) -> list[Row]:
    """A row for each prediction, and one for each workload and rate."""
    tool = kvcache(arguments)
    with tempfile.TemporaryDirectory(prefix="kvcache-bench-") as folder:
        rows = predictions(tool, Path(folder), arguments.quick)
        for name in WORKLOADS:
            rows += simulated(tool, Path(folder), name)
    return rows


def predictions(tool: Path, folder: Path, quick: bool) -> list[Row]:
    """Measured and predicted times to the first token."""
    command = [sys.executable, "-m", "benches.engine.simulate_steps", "--out", str(folder)]
    subprocess.run(command + (["--quick"] if quick else []), cwd=ROOT, check=True)
    rows = []
    for clock, called in (("cpu", "processor time"), ("wall", "by the clock")):
        profile = folder / f"profile-{clock}.json"
        profile.write_text(said(tool, "simulate", "--calibrate", folder / f"steps-{clock}.json"))
        cases = folder / f"cases-{clock}.json"
        for line in said(tool, "simulate", "--predict", cases, "--profile", profile, "--json").splitlines():
            one = json.loads(line)
            error = 100 * one["error"]
            spread = f"{one['predicted_ms']:.4g} for {one['measured_ms']:.4g} ms"
            spread += f" ({one['measured_min_ms']:.4g}..{one['measured_max_ms']:.4g}, {one['samples']} rounds)"
            what = f"predicted TTFT, {one['case']}, {called}"
            rows.append(row(what, f"within {WITHIN:g} %", f"{error:+.1f} %", spread, abs(error) <= WITHIN))
    return rows


def simulated(tool: Path, folder: Path, name: str) -> list[Row]:
    """A workload at every rate, with all set-ups."""
    made, warm_up = WORKLOADS[name]
    workload = folder / f"{name}.jsonl"
    said(tool, "workload", *made, "--out", workload)
    command: list[str | Path] = [
        "simulate",
        workload,
        "--warm-up",
        str(warm_up),
        "--l1-blocks",
        str(L1_BLOCKS),
        "--policy",
        "s3fifo",
    ]
    answers = said(tool, *command, "--qps", ",".join(map(str, RATES)), "--json").splitlines()
    runs: dict[float, dict[str, dict[str, Any]]] = {}
    for line in answers:
        one = json.loads(line)
        runs.setdefault(one["qps"], {})[one["setup"]] = one["ttft_s"]
    rows = []
    for rate, setups in runs.items():
        means = ", ".join(f"{setup} {times['mean']:.3g}" for setup, times in setups.items())
        late = ", ".join(f"{setup} {times['p99']:.3g}" for setup, times in setups.items())
        what = f"simulated mean TTFT, s: {name} at {rate:g} requests/s, a100-8b, L1 of 10 GB"
        rows.append(row(what, "", means, f"p99: {late}", None, workload=name, qps=rate, ttft_s=setups))
    return rows


def said(*command: str | Path) -> str:
    """The standard output of a command that has to succeed."""
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
