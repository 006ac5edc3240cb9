"""What `BlockCache` and the L1 of `aibrix-kvcache` hit of the traces in `benches/traces`, with as many blocks each.

A request's blocks are used as far as they are there from the first on, and the rest is stored: the hit ratio is the
share of all blocks that were there. Every run is made once: there is no chance in either side. Blocks have 16 tokens
here, made from the trace's ids: that does not change what is evicted.
"""

import json
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benches.compare.l1 import CAPACITY_BYTES, Start
from benches.compare.pairs import error_row
from benches.compare.side import SideError
from benches.machine import ROOT
from benches.rows import Row, row

UNIT_BYTES = 4 << 10
"""The peer's blocks are multiples of it: 16 tokens, keys and values, two bytes a number, heads of 64."""
REPLAY_TIMEOUT_S = 600.0
OURS = "default"
THEIRS = ("S3FIFO", "LRU")
"""Their default and the policy that most caches have."""


@dataclass(frozen=True)
class Case:
    """A trace and about how many blocks."""

    trace: str
    requests: int | None
    """Only the first so many: the peer takes 20 ms for a long prompt."""
    about: int

    @property
    def block_bytes(self) -> int:
        """So that the peer's smallest cache has about that many blocks."""
        return CAPACITY_BYTES // UNIT_BYTES // self.about * UNIT_BYTES

    @property
    def blocks(self) -> int:
        """What both sides have."""
        return CAPACITY_BYTES // self.block_bytes

    def __str__(self) -> str:
        first = f"the first {self.requests:,} requests of " if self.requests else ""
        return f"{first}{self.trace}, {self.blocks:,} blocks"


CASES = (
    *(Case("conversation", None, about) for about in (3_655, 18_279)),
    *(Case("synthetic", None, about) for about in (439, 2_196, 8_784)),
    *(Case("agentic_coding", 2_000, about) for about in (719, 3_598)),
)


def compare(
    peer: str, peer_python: Path, start: Start, quick: bool, cases: tuple[Case, ...] = CASES
) -> tuple[list[Row], dict[str, str]]:
    """A row for each case and policy of the peer."""
    rows: list[Row] = []
    versions: dict[str, str] = {}
    if quick:
        cases = tuple(Case(case.trace, 300, case.about // 10) for case in cases)
    for case in cases:
        what = f"block hit ratio of ours and of {peer} L1"
        try:
            with lines_of(case, peer_python) as trace:
                # Ours with small blocks: it copies them, which the peer is not asked to.
                runs = [("ours", OURS, UNIT_BYTES), *((peer, policy, case.block_bytes) for policy in THEIRS)]
                with ThreadPoolExecutor(2) as both:
                    pending = [both.submit(replay, case, trace, start, *run) for run in runs]
                    (mine, version), *others = [one.result() for one in pending]
        except (SideError, OSError, subprocess.SubprocessError) as error:
            rows.append(error_row(f"{what}, {case}", error))
            continue
        versions["ours"] = version
        for policy, (theirs, version) in zip(THEIRS, others, strict=True):
            versions[peer] = version
            details = {"ours": mine, "theirs": theirs, "policy": policy, "capacity": case.blocks}
            rows.append(
                row(f"{what} ({policy}), {case}", ">= 0", f"{mine - theirs:+.4f}", f"{mine:.4f} and {theirs:.4f}",
                    mine >= theirs, **details)
            )  # fmt: skip
        print(f"{case}: done", flush=True)
    return rows, versions


def replay(case: Case, trace: Path, start: Start, name: str, eviction: str, block_bytes: int) -> tuple[float, str]:
    """One side's hit ratio and version."""
    with start(name) as side:
        size = {"block_bytes": block_bytes, "capacity_bytes": block_bytes * case.blocks}
        answer = side.ask(REPLAY_TIMEOUT_S, do="replay", trace=str(trace), eviction=eviction, **size)
    return answer["hits"] / max(1, answer["accesses"]), str(answer["version"])


@contextmanager
def lines_of(case: Case, peer_python: Path) -> Iterator[Path]:
    """A file with the block ids of each request, a line each. The peer's environment has what decompresses it."""
    source = ROOT / "benches" / "traces" / f"{case.trace}_trace.jsonl.zst"
    program = (
        "import sys, zstandard; zstandard.ZstdDecompressor().copy_stream(open(sys.argv[1], 'rb'), sys.stdout.buffer)"
    )
    text = subprocess.run([peer_python, "-c", program, source], check=True, stdout=subprocess.PIPE, timeout=60).stdout
    with tempfile.TemporaryDirectory(prefix="kvcache-compare-") as folder:
        path = Path(folder) / "trace"
        with path.open("w") as file:
            for line in text.splitlines()[: case.requests]:
                file.write(json.dumps(json.loads(line)["hash_ids"]) + "\n")
        yield path
