"""Our cache beside those of others, in one run, into a folder of results.

    python -m benches.compare [--quick] [--only PART]... [--out DIR]

Run it with the Python of `make wheel`'s environment. Each peer is installed from its published package, at the
version pinned in `scripts/locks/compare-*.txt`, into an environment of its own outside the tree, or compiled from its
published crate (`benches/compare/rust/Cargo.lock`). What cannot be
installed or run is a row with its error, and the exit status is 1 then.
"""

import argparse
import functools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from benches.compare import engines, l1, l1_traces, l2_files, l2_rdma, l2_tcp, plain_caches
from benches.compare.pairs import error_row
from benches.compare.side import Side, SideError, one_line
from benches.machine import ROOT, machine_facts, slug
from benches.rows import Row, table
from benches.tool import built

Part = Callable[[argparse.Namespace], tuple[list[Row], dict[str, str]]]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benches.compare", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few repetitions: shows that it runs, not how fast")
    parser.add_argument("--only", action="append", choices=list(PARTS), help="only this part")
    parser.add_argument("--out", type=Path, help="folder of the results")
    arguments = parser.parse_args(argv)
    machine = machine_facts()
    out = arguments.out or ROOT / "benches" / "results" / f"{datetime.now(UTC):%Y-%m-%d}-compare-{slug(machine)}"
    out.mkdir(parents=True, exist_ok=True)
    failed = False
    results = out / "compare.json"
    documents = json.loads(results.read_text()) if results.exists() else {}
    for name, part in PARTS.items():
        if arguments.only and name not in arguments.only:
            continue
        print(f"== {name}", flush=True)
        began = time.monotonic()
        rows, versions = attempt(name, part, arguments)
        failed = failed or any("error" in one.details for one in rows)
        seconds = round(time.monotonic() - began, 1)
        facts = {**machine, "seconds": seconds, "quick": arguments.quick, "versions": versions}
        documents[name] = {"facts": facts, "rows": [vars(one) for one in rows]}
        # After each part, so that what was measured outlives what goes wrong later; other parts' results stay.
        results.write_text(json.dumps(documents, indent=1) + "\n")
        (out / "compare.md").write_text(page({part: documents[part] for part in PARTS if part in documents}))
    print((out / "compare.md").read_text())
    return 1 if failed else 0


def attempt(name: str, part: Part, arguments: argparse.Namespace) -> tuple[list[Row], dict[str, str]]:
    """The part's rows, or one that says why there are none."""
    try:
        return part(arguments)
    except (SideError, OSError, subprocess.SubprocessError) as error:
        return [error_row(name, error)], {}


def page(documents: dict[str, dict[str, Any]]) -> str:
    """The parts as one page of Markdown."""
    lines = [
        "# Side by side",
        "",
        "Written by `python -m benches.compare`; do not edit. Ratios are between sides of one run that took turns,",
        "with the 95 % interval of the median. `met` is empty where the interval holds 1. `load` is the load average",
        "at the end of a measurement: above the number of CPUs, others were running too.",
    ]
    for name, document in documents.items():
        facts = document["facts"]
        quick = " **Quick run: shows that it runs, not how fast.**" if facts["quick"] else ""
        versions = ", ".join(f"{side} {version}" for side, version in facts["versions"].items()) or "no side ran"
        lines += ["", f"## {name}", "", f"{versions}; {facts['seconds']} s, {facts['date']}, commit {facts['commit']}."]
        lines[-1] += quick
        lines += ["", table(Row(**one) for one in document["rows"])]
    if documents:
        facts = next(iter(documents.values()))["facts"]
        lines += ["", "## Machine", ""]
        lines += [
            f"- {name}: {facts[name]}" for name in ("processor", "cpus", "memory", "kernel", "python", "torch", "wheel")
        ]
    return "\n".join(lines) + "\n"


def peer_python(name: str) -> Path:
    """The Python of a peer's environment, made first if needed.

    Raises:
        SideError: It cannot be had.
    """
    return Path(script_output("ensure_compare_env.sh", name)) / "bin" / "python"


def script_output(script: str, *arguments: str) -> str:
    """What a script that installs something prints.

    Raises:
        SideError: It failed; the text is the last line of what the script said.
    """
    command = [str(ROOT / "scripts" / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1800)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["said nothing"]
        raise SideError(f"{' '.join(arguments) or script}: cannot be installed: {one_line(said[-1])}")
    return done.stdout.strip()


AIBRIX = "aibrix-kvcache"


def aibrix_sides() -> tuple[dict[str, Path], l1.Start]:
    """The Pythons of both sides of the L1 comparisons, and what starts a side."""
    pythons = {"ours": Path(sys.executable), AIBRIX: peer_python(AIBRIX)}
    return pythons, lambda name: Side(name, [pythons[name], *l1.PROGRAM, name], cwd=ROOT)


def aibrix_l1(arguments: argparse.Namespace) -> tuple[list[Row], dict[str, str]]:
    """How long `aibrix-kvcache`'s L1 takes."""
    return l1.compare(AIBRIX, aibrix_sides()[1], 3 if arguments.quick else 30)


def aibrix_l1_traces(arguments: argparse.Namespace) -> tuple[list[Row], dict[str, str]]:
    """What `aibrix-kvcache`'s L1 hits of traces."""
    pythons, start = aibrix_sides()
    return l1_traces.compare(AIBRIX, pythons[AIBRIX], start, arguments.quick)


def l2_over_tcp(arguments: argparse.Namespace) -> tuple[list[Row], dict[str, str]]:
    """Mooncake Store over TCP."""
    # Its module is linked to libibverbs, as InfiniStore's is, also where only TCP is used.
    libraries = script_output("ensure_infinistore_client.sh") + "/libraries"
    paths = ":".join(filter(None, [libraries, os.environ.get("LD_LIBRARY_PATH")]))
    within: dict[str, list[str | Path]] = {"mooncake": ["env", f"LD_LIBRARY_PATH={paths}", peer_python("mooncake")]}
    tool = str(built())

    def start(name: str, role: str) -> Side:
        python = within.get(name, [sys.executable])
        return Side(f"{name} {role}", [*python, *l2_tcp.PROGRAM, name, role], cwd=ROOT)

    if arguments.quick:
        return l2_tcp.compare(start, 3, tool, l2_tcp.QUICK_CASES)
    return l2_tcp.compare(start, 30, tool)


def l2_files_of_aibrix(arguments: argparse.Namespace) -> tuple[list[Row], dict[str, str]]:
    """`aibrix-kvcache`'s file backends."""
    peer, tool = peer_python(AIBRIX), built()

    def start(name: str, place: Path) -> Side:
        python, at = (Path(sys.executable), tool) if name in l2_files.WAYS else (peer, place)
        return Side(name, [python, *l2_files.PROGRAM, name, at], cwd=ROOT)

    if arguments.quick:
        return l2_files.compare(AIBRIX, start, 3, l2_files.QUICK_WAYS)
    return l2_files.compare(AIBRIX, start, 20)


def l2_over_rdma(arguments: argparse.Namespace) -> tuple[list[Row], dict[str, str]]:
    """The published InfiniStore over soft RoCE, in a guest."""
    rounds, timeout_s = (1, 1200) if arguments.quick else (7, 1800)
    rows = l2_rdma.compare([ROOT / l2_rdma.SCRIPT], rounds, timeout_s, ROOT)
    return rows, {"ours": metadata.version("aibrix-connector"), "infinistore": infinistore_version()}


def infinistore_version() -> str:
    """The version that is pinned for the guest."""
    lock = (ROOT / "scripts" / "locks" / "infinistore-server.txt").read_text()
    found = re.search(r"^infinistore==(\S+)", lock, re.MULTILINE)
    return found[1] if found else "unknown"


def vllm(arguments: argparse.Namespace) -> tuple[list[Row], dict[str, str]]:
    """A vLLM engine without a connector, with ours and with LMCache's."""
    plain = Path(script_output("ensure_vllm_env.sh")) / "bin" / "python"
    pythons = {engines.NONE: plain, engines.OURS: Path(sys.executable)}
    absent = {}
    try:
        pythons[engines.LMCACHE] = peer_python("lmcache")
    except SideError as error:
        absent[engines.LMCACHE] = error
    cases = engines.QUICK if arguments.quick else engines.FULL
    # A side is killed in the end, so what it writes is removed here.
    with tempfile.TemporaryDirectory(prefix="kvcache-compare-") as logs:
        return engines.compare(
            lambda name: Side(name, [pythons[name], *engines.PROGRAM, name, logs], cwd=ROOT), cases, absent
        )


PLAIN_CACHES_SCRIPT = "build_plain_caches.sh"


def plain_cache_crates(arguments: argparse.Namespace) -> tuple[list[Row], dict[str, str]]:
    """`foyer` and `moka`."""
    start = functools.partial(Side, "plain-caches", [script_output(PLAIN_CACHES_SCRIPT)])
    if arguments.quick:
        rows = plain_caches.compare(start, 3, plain_caches.QUICK_TRACES)
    else:
        rows = plain_caches.compare(start, 40)
    return rows, plain_caches.versions()


PARTS: dict[str, Part] = {
    "aibrix-l1": aibrix_l1,
    "aibrix-l1-traces": aibrix_l1_traces,
    "l2-tcp": l2_over_tcp,
    "l2-rdma": l2_over_rdma,
    "l2-files": l2_files_of_aibrix,
    "vllm": vllm,
    "plain-caches": plain_cache_crates,
}


if __name__ == "__main__":
    sys.exit(main())
