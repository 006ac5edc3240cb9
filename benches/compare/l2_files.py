"""AIBrix's file backends beside a server of ours over TCP: a prompt's put, exists, get and miss, all of it in L2.

The questions are those of `l1.py`: each case has two processes that are asked in turn for the same prompts, and keys
are made from tokens in every call. The peer's blocks go to files in a folder that is removed, ours to a server's
memory.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

from benches.compare import l1
from benches.compare.side import Side
from benches.rows import Row

PROGRAM = ("-m", "benches.compare.l2_files_side")
"""Of either side, started from the repository's root."""
BACKENDS = ("ROCKSDB", "SHFS")
CASES = tuple(l1.Case(block_bytes, tokens, 1) for block_bytes in (32 << 10, 2 << 20) for tokens in (16, 512))
"""Our client has 64 blocks on their way at most: a put of more would leave some of them in L1."""

Ways = dict[str, tuple[str, tuple[l1.Case, ...]]]
"""By the name of our side: how it reaches its server, and what is asked."""
WAYS: Ways = {
    "ours-tcp": ("ours over TCP", CASES),
    "ours-shared": ("ours through shared memory", tuple(case for case in CASES if case.tokens == 512)),
}
QUICK_WAYS: Ways = {name: (way, cases[-1:]) for name, (way, cases) in WAYS.items()}

Start = Callable[[str, Path], Side]
"""Starts a side of ours, or the one with a backend, whose files are in the folder."""


def compare(peer: str, start: Start, rounds: int, ways: Ways = WAYS) -> tuple[list[Row], dict[str, str]]:
    """The rows of both backends, and the versions of the sides with the file system of the files."""
    rows: list[Row] = []
    versions: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="kvcache-compare-", ignore_cleanup_errors=True) as folder:
        for backend in BACKENDS:
            for ours, (way, cases) in ways.items():
                names = {"ours": ours, peer: backend}
                place = Path(folder) / f"{backend}-{ours}"

                def side(name: str, names: dict[str, str] = names, place: Path = place) -> Side:
                    return start(names[name], place)

                found, named = l1.compare(peer, side, rounds, cases, level=f"{backend} ({way})")
                rows += found
                versions |= named
        versions["files on"] = file_system(Path(folder))
    return rows, versions


def file_system(folder: Path) -> str:
    """The kind of the file system that `folder` is on, or `unknown`."""
    try:
        mounts = [line.split(" ") for line in Path("/proc/self/mounts").read_text().splitlines()]
    except OSError:
        return "unknown"
    there = folder.resolve()
    # The last of those that cover the same folder is the one that is seen.
    kinds = {fields[1]: fields[2] for fields in mounts if there.is_relative_to(fields[1])}
    return kinds[max(kinds, key=len)] if kinds else "unknown"
