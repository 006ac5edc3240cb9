"""Part `kernels`: programs of `kvcache-cuda` that drive a GPU without torch, where they were brought along.

They launch every kernel of the image, also those that the copy engine does not use yet, and compare all bytes with what
the Rust side says that it copies. `make test` runs the same programs on the fake device.
"""

import os
import subprocess
from pathlib import Path

from benches.gpu.machine import Machine
from benches.gpu.report import Options, Report

FOLDER = Path(__file__).resolve().parents[2] / "dist" / "gpu"
MOST_S = 30.0


def run(machine: Machine, report: Report, options: Options, folder: Path = FOLDER) -> None:
    """Each program that is there."""
    programs = [path for path in sorted(folder.glob("*")) if os.access(path, os.X_OK)]
    if machine.is_fake:
        report.skip("all kernels of the image", "`make test` runs them on the fake device")
    elif not programs:
        report.skip("all kernels of the image", f"nothing in {folder}: scripts/build_gpu_programs.sh makes it")
    else:
        for path in programs:
            problem = fails(path)
            report.check(f"{path.name}: bytes", problem is None, problem or "")


def fails(path: Path) -> str | None:
    """Runs the tests of a program that are for a GPU; returns what is wrong."""
    try:
        done = subprocess.run([path, "--ignored"], capture_output=True, text=True, timeout=MOST_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode == 0 and "test result: ok. 1 passed" in done.stdout:
        return None
    print(done.stdout + done.stderr)
    said = [line for line in done.stdout.splitlines() if line.strip()]
    return f"status {done.returncode}: {' | '.join(said[-6:])[:600]}"
