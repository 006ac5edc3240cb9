"""L2 over RDMA: our client and server beside the published InfiniStore's, over soft RoCE in a virtual machine.

The measuring is done by `tests/rdma/run_infinistore_guest.sh --bench`, in a guest whose processor is emulated: both
sides are as slow as that makes them, and only their ratios mean something. Here its results become rows.
"""

import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benches.compare.pairs import pair_row
from benches.compare.side import SideError, one_line
from benches.rows import Row

SCRIPT = Path("tests/rdma/run_infinistore_guest.sh")
"""From the repository's root."""
TERMINATE_S = 5.0
# Each what the guest calls ours, and what it is compared with.
PAIRS = (
    ("our client, stock server", "stock client, stock server"),
    ("our ring, stock server", "stock client, stock server"),
    ("stock client, our server", "stock client, stock server"),
    ("our ring, our server", "stock client, stock server"),
)


def compare(command: Sequence[str | os.PathLike[str]], rounds: int, timeout_s: float, cwd: Path) -> list[Row]:
    """The rows of a run in the guest.

    Args:
        command: The script, or what stands in for it.
        rounds: Of each, in turn.
        timeout_s: For all of it, installing and compiling included.
        cwd: The repository's root.

    Raises:
        SideError: The guest cannot be had, has failed, took too long or left no results.
    """
    with tempfile.TemporaryDirectory(prefix="kvcache-compare-") as folder:
        results = Path(folder) / "results.json"
        said = run([*command, "--bench", results], timeout_s, cwd, {**os.environ, "RDMA_BENCH_ROUNDS": str(rounds)})
        skipped = [line for line in said.splitlines() if "SKIPPED" in line]
        if skipped:
            raise SideError(f"InfiniStore's guest: {one_line(skipped[0])}")
        try:
            return rows_of(json.loads(results.read_bytes()))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SideError(f"InfiniStore's guest: results that cannot be read: {error!r}") from error


def run(command: Sequence[str | os.PathLike[str]], timeout_s: float, cwd: Path, environment: dict[str, str]) -> str:
    """What a command printed. It has a session of its own, which is ended with all that is in it."""
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            status = process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise SideError(f"InfiniStore's guest: not done within {timeout_s:g} s") from error
        finally:
            end_session(process)
        output.seek(0)
        said = output.read().decode(errors="replace")
    if status:
        lines = [line for line in said.splitlines() if line.strip()] or ["said nothing"]
        raise SideError(f"InfiniStore's guest: has ended: status {status}; {one_line(lines[-1])}")
    return said


def end_session(leader: "subprocess.Popen[bytes]") -> None:
    """Ends the processes of a session: those that a shell's `timeout` has started are in a group of their own."""
    until = time.monotonic() + TERMINATE_S
    while members := session_members(leader):
        for member in members:
            try:
                # They may remove their files first.
                os.kill(member, signal.SIGTERM if time.monotonic() < until else signal.SIGKILL)
            except ProcessLookupError:
                # It has just ended.
                pass
        time.sleep(0.1)


def session_members(leader: "subprocess.Popen[bytes]") -> list[int]:
    """The ids of the processes of a session; ended ones that nobody has waited for are not counted."""
    leader.poll()
    members = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # Behind the program's name, which may hold anything: state, parent, group, session.
            state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            # It has just ended.
            continue
        if int(session) == leader.pid and state != "Z":
            members.append(int(stat.parent.name))
    return members


def rows_of(results: dict[str, Any]) -> list[Row]:
    """A row for each of ours, way and shape. Rates of rounds become times of one value or request."""
    shapes = results["shapes"]
    rates = {(one["who"], one["op"], "MB/s" in one["unit"]): one["values"] for one in results["rates"]}
    rows = []
    for ours, theirs in PAIRS:
        for op in ("put", "get"):
            for name, shape in shapes.items():
                large = name == "large"
                # Bytes a second, or values a second.
                moved = shape["bytes"] * shape["keys"] if large else 1
                mine, other = ([moved / rate * 1e6 for rate in rates[who, op, large]] for who in (ours, theirs))
                size = (
                    f"{shape['keys']} values of {shape['bytes'] >> 10} KiB" if large else f"{shape['bytes'] >> 10} KiB"
                )
                what = (
                    f"{op} over soft RoCE: time of {ours}, to {theirs}: {size}, {shape['in_flight']} requests in flight"
                )
                rows.append(pair_row(what, mine, other))
    return rows
